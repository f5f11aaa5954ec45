"""A process reward of the arithmetic world: each written step of the working is right or wrong.

What it reads is a completion in that world's manner, such as 7+5=12;4+8+1=13;3+2+1=6;<answer>632</answer>. Values of
steps are for advantage.credit of kind step (GRPO with process supervision, DeepSeekMath, arXiv:2402.03300, section
4.1.3), or of reward_to_go, gae and two_level.
"""

import re

from flowrl.contracts import Prompt, Samples, StepScores
from flowrl.worlds.arithmetic.corpus import CLOSE, OPEN, working
from flowrl.worlds.arithmetic.problems import SIGNS, Problem
from reward_models.parts.texts import texts_of

_END = re.compile(f";|{re.escape(CLOSE)}")


def worked_steps(samples: Samples, *, right: float = 1.0, wrong: float = 0.0, answer: bool = True) -> StepScores:
    """`right` or `wrong` for each step of a completion; its score is their sum, or their mean.

    A step ends at ";" and is right where it stands at its place in the written method, units first: a true equation
    that does not belong there is wrong, and so is each one too many. answer: what stands before </answer> is a step
    too, right where it is <answer> and the result. Raises ValueError for a prompt that is no problem of the world.
    """
    texts = texts_of(samples, "worked_steps")
    pairs = zip(texts, samples.prompts, strict=True)
    return StepScores([_steps(text, prompt, right, wrong, answer) for text, prompt in pairs])


def _steps(text: str, prompt: Prompt, right: float, wrong: float, answer: bool) -> list[tuple[int, float]]:
    problem = _problem(prompt)
    expected = working(problem).split(";")[:-1]
    found, start, number = [], 0, 0
    for mark in _END.finditer(text):
        step, start = text[start : mark.start()].strip(), mark.end()
        if mark[0] == ";":
            good = number < len(expected) and step == expected[number]
            number += 1
        elif answer:
            good = step == f"{OPEN}{problem.answer}"
        else:
            continue
        found.append((mark.end(), right if good else wrong))
    return found


def _problem(prompt: Prompt) -> Problem:
    match = re.fullmatch(r"(\d+)([+*-])(\d+)", prompt.text.strip())
    if match is None:
        raise ValueError(f"prompt {prompt.text!r} is no problem such as 347+285: worked_steps reads arithmetic/train")
    kind = next(kind for kind, sign in SIGNS.items() if sign == match[2])
    if kind == "mul" and int(match[3]) > 9:
        raise ValueError(f"prompt {prompt.text!r}: worked_steps knows products by one digit; write the factor last")
    return Problem(kind, int(match[1]), int(match[3]))
