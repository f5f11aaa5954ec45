"""Process rewards: rewards that give values of the steps of a completion.

The scores that are reported, gated and compared are sums or means over the steps of a completion; the steps themselves
are `Samples.steps`, which credit of single decisions reads (core/advantages/process.py).
"""

import inspect
import math
from collections.abc import Sequence
from functools import partial

import torch

from flowrl.contracts import Steps, StepScores
from flowrl.scoring.cache import CachedScores
from flowrl.scoring.results import RewardError, check_scores


def gives_steps(reward: object) -> bool:
    """Whether a reward gives values of steps: its return annotation is StepScores."""
    while isinstance(reward, partial):
        reward = reward.func
    call = reward if inspect.isfunction(reward) else type(reward).__dict__.get("__call__")
    given = getattr(call, "__annotations__", {}).get("return")
    name = given if isinstance(given, str) else getattr(given, "__name__", "")
    return name.strip("'\"").rpartition(".")[2] == "StepScores"


def total(steps: Steps, how: str) -> float:
    """The score that the steps of a completion make: their sum or mean, 0 without any."""
    return sum(value for _, value in steps) / (len(steps) if how == "mean" and steps else 1)


def scores_of_steps(name: str, given: object, number: int, texts: Sequence[str], how: str) -> CachedScores:
    """The scores float32 [number], sums or means (`how`) over steps, 0 without any, and the steps of each sample.

    Raises RewardError for anything but StepScores of so many samples whose steps lie in their texts, in order.
    """
    if not isinstance(given, StepScores):
        got = f"a {type(given).__name__}"
        raise RewardError(f"reward {name!r} returned {got}; accepted: StepScores, as its return annotation says")
    if len(given.steps) != number or len(texts) != number:
        got = (
            f"the steps of {len(given.steps)} samples" if len(texts) == number else "steps of samples that are no texts"
        )
        raise RewardError(f"reward {name!r} returned {got}; accepted: those of {number} texts")
    steps: list[Steps] = []
    for of, text in zip(given.steps, texts, strict=True):
        taken = ((0, math.nan),) if of is None else tuple((int(end), float(value)) for end, value in of)
        ends = [0, *(end for end, _ in taken)]
        if of is not None and (ends != sorted(ends) or any(not 1 <= end <= len(text) for end in ends[1:])):
            raise RewardError(
                f"reward {name!r} returned steps that end at {ends[1:]} of a text of {len(text)} characters; "
                "accepted: ends from 1 to its length, in order"
            )
        steps.append(taken)
    totals = [total(of, how) for of in steps]
    scores = check_scores(name, torch.tensor(totals, dtype=torch.float64), number)
    return CachedScores(
        scores, steps=[() if math.isnan(s) else of for s, of in zip(scores.tolist(), steps, strict=True)]
    )
