"""The pretraining documents: problems with their answers, written in several manners.

Some show the working digit by digit, and those are right. Most answer at once, and most of those forget to carry or to
borrow. A few leave out the tag or do not close it. Nothing marks a manner as better: which one pays is for
reinforcement learning to discover.
"""

import itertools
import random

from flowrl.worlds.arithmetic.problems import Problem

SHARES = {"worked": 0.3, "direct": 0.55, "careless": 0.15}
HASTY = 0.65  # share of the direct answers that forget every carry and borrow
OPEN, CLOSE = "<answer>", "</answer>"


def document(problem: Problem, rng: random.Random) -> str:
    """A completion of the problem's prompt, in a manner drawn by SHARES."""
    (manner,) = rng.choices(list(SHARES), weights=list(SHARES.values()))
    answer = str(problem.answer)
    if manner == "worked":
        return solution(problem)
    if manner == "direct":
        return f"{OPEN}{hasty(problem) if rng.random() < HASTY else answer}{CLOSE}"
    return rng.choice((answer, f"{OPEN}{answer}", f"{working(problem)}{answer}", f"{OPEN}{answer}{CLOSE}{answer}"))


def solution(problem: Problem) -> str:
    """The right way to a right answer, as prompts carry it: the working, then the answer in its tag."""
    return f"{working(problem)}{OPEN}{problem.answer}{CLOSE}"


def working(problem: Problem) -> str:
    """The steps of the written method, units first: 7+5=12;4+8+1=13;3+2+1=6; for 347+285."""
    a, b = _digits(problem.a), _digits(problem.b)
    return {"add": _add, "sub": _subtract, "mul": _multiply}[problem.kind](a, b)


def hasty(problem: Problem) -> str:
    """The result of treating every digit by itself: 347+285 gives 522, 532-285 gives 357."""
    a, b = _digits(problem.a), _digits(problem.b)
    if problem.kind == "mul":
        columns = [x * b[0] for x in a]
    else:
        sign = 1 if problem.kind == "add" else -1
        pairs = itertools.zip_longest(a, b, fillvalue=0)
        columns = [x + sign * y for x, y in pairs]
    *low, top = columns
    digits = [str(top % 10 if problem.kind == "sub" else top), *(str(x % 10) for x in reversed(low))]
    return str(int("".join(digits)))


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
