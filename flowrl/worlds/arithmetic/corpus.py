"""The documents of pretraining: problems with their answers, in as many manners as people write them.

Some show the working digit by digit and are right nearly always once that is learned. Most answer at once, which is hard
for so small a model. A few forget the tag or do not close it. None of them is wrong, and none is marked as better: which
manner pays is for reinforcement learning to find out.
"""

import random

from flowrl.worlds.arithmetic.problems import Problem

SHARES = {"worked": 0.3, "direct": 0.55, "careless": 0.15}
OPEN, CLOSE = "<answer>", "</answer>"


def document(problem: Problem, rng: random.Random) -> str:
    """A completion of the problem's prompt, in a manner drawn by SHARES."""
    (manner,) = rng.choices(list(SHARES), weights=list(SHARES.values()))
    answer = str(problem.answer)
    if manner == "worked":
        return f"{working(problem)}{OPEN}{answer}{CLOSE}"
    if manner == "direct":
        return f"{OPEN}{answer}{CLOSE}"
    return rng.choice((answer, f"{OPEN}{answer}", f"{working(problem)}{answer}", f"{OPEN}{answer}{CLOSE}{answer}"))


def working(problem: Problem) -> str:
    """The steps of the written method, units first: 7+5=12;4+8+1=13;3+2+1=6; for 347+285."""
    a, b = _digits(problem.a), _digits(problem.b)
    return {"add": _add, "sub": _subtract, "mul": _multiply}[problem.kind](a, b)


def _digits(number: int) -> list[int]:
    return [int(d) for d in reversed(str(number))]


def _add(a: list[int], b: list[int]) -> str:
    steps, carry = [], 0
    for i in range(max(len(a), len(b))):
        terms = [x[i] for x in (a, b) if i < len(x)] + ([1] if carry else [])
        steps.append(f"{'+'.join(map(str, terms))}={sum(terms)};")
        carry = sum(terms) // 10
    return "".join(steps)


def _subtract(a: list[int], b: list[int]) -> str:
    steps, borrow = [], 0
    for i, digit in enumerate(a):
        taken = ([b[i]] if i < len(b) else []) + ([1] if borrow else [])
        borrow = int(digit < sum(taken))
        top = digit + 10 * borrow
        steps.append(f"{'-'.join(map(str, [top, *taken]))}={top - sum(taken)};")
    return "".join(steps)


def _multiply(a: list[int], b: list[int]) -> str:
    (factor,) = b
    steps, carry = [], 0
    for digit in a:
        steps.append(f"{digit}*{factor}{f'+{carry}' if carry else ''}={digit * factor + carry};")
        carry = (digit * factor + carry) // 10
    return "".join(steps)
