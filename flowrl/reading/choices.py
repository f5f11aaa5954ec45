"""Which prompts a run passes over when their turn comes, by what it remembers of them.

Each function gives the chance, in [0, 1], that the prompt is drawn, and in a word why it is below 1. It depends on its
arguments alone; the draw itself is `Cursor`'s. Rewards are those that `prompts.remember` names: thresholds are in their
units, and are published for rewards of 1 for right and 0 for wrong.
"""

import math
from collections.abc import Mapping, Sequence
from typing import Annotated

from flowrl.reading.prompt_memory import Turn, trailing

Chance = tuple[float, str]
DRAWN: Chance = (1.0, "")


def shuffle(turn: Turn) -> Chance:
    """Every prompt, once a pass."""
    return DRAWN


def drop_solved(turn: Turn, *, solved: float = 1.0) -> Chance:
    """All but those whose samples were all right when they were last drawn: history resampling of SRPO (Kwaipilot,
    arXiv:2504.14286, section 3.4). Those of mixed success stay, and those that all failed, for a better policy.

    solved: the mean reward that says so.
    """
    means = turn.record.means
    return (0.0, "solved") if means and means[-1] >= solved - 1e-6 else DRAWN


def skip_chances(
    means: Sequence[float], *, easy: float, hard: float, p_easy: float, p_hard: float, min_keep: float
) -> tuple[float, float]:
    """The chances that a prompt is passed over as too easy and as too hard, from its mean rewards so far.

    Of n times in a row, the last ones, at `easy` and above (at `hard` and below): 1 - max(p ** n, min_keep), and 0 for
    n = 0. GRESO (arXiv:2506.02177, eq. 4), as in its code.
    """
    runs = trailing([m >= easy for m in means]), trailing([m <= hard for m in means])
    chances = [1 - max(p**n, min_keep) if n else 0.0 for p, n in zip((p_easy, p_hard), runs, strict=True)]
    return chances[0], chances[1]


def skip(
    turn: Turn,
    *,
    easy: float = 0.98,
    hard: float = 0.11,
    p_easy: Annotated[float, "in (0, 1]"] = 0.5,
    p_hard: Annotated[float, "in (0, 1]"] = 0.5,
    min_keep: Annotated[float, "in [0, 1]"] = 0.01,
    target_easy: Annotated[float, "in [0, 1]"] | None = None,
    target_hard: Annotated[float, "in [0, 1]"] | None = None,
) -> Chance:
    """Prompts whose samples were all right, or all wrong, several times in a row come less and less often: GRESO
    (arXiv:2506.02177).

    easy, hard: mean rewards from which on, and up to which, a time counts so. After n of them in a row a prompt is
    drawn with a chance of p ** n, at least min_keep. p_easy, p_hard: these bases at the start; after each iteration
    they move by 0.01 within [0.05, 0.95]: down where more of the groups drawn than the target were so, else up (null:
    the base stays; the paper's targets are 25 % in all, 1 : 2).
    """
    given = {"easy": easy, "hard": hard, "p_easy": p_easy, "p_hard": p_hard, "min_keep": min_keep}
    too_easy, too_hard = skip_chances(turn.record.means, **given)
    if too_easy:
        return 1 - too_easy, "easy"
    return (1 - too_hard, "hard") if too_hard else DRAWN


def adapted_bases(arguments: Mapping[str, float | None], means: Sequence[float]) -> dict[str, float]:
    """The bases p_easy and p_hard of `skip` for the next iteration, from the mean rewards of the groups just drawn."""
    bases, number = {}, max(len(means), 1)
    for name, hits in (
        ("easy", [m >= (arguments["easy"] or 0) for m in means]),
        ("hard", [m <= (arguments["hard"] or 0) for m in means]),
    ):
        target, base = arguments[f"target_{name}"], arguments[f"p_{name}"]
        if target is not None and base is not None:
            step = -0.01 if sum(hits) / number > target else 0.01
            bases[f"p_{name}"] = min(max(round(base + step, 10), 0.05), 0.95)
    return bases


skip.adapt = adapted_bases  # pyright: ignore[reportFunctionMemberAccess] - asked after each iteration


def tiers(
    turn: Turn,
    *,
    bounds: Annotated[Sequence[float], "a list of mean rewards that rise"] = (0.1, 0.9),
    shares: Annotated[Sequence[float], "a list of as many numbers >= 0 and one more"] = (0.25, 1.0, 0.1),
) -> Chance:
    """Prompts are sorted into tiers by their mean reward, and drawn from each at a rate of its own: curriculum sampling
    of GLM-4.1V-Thinking and GLM-4.5V (RLCS, arXiv:2507.01006, section 5.3).

    bounds: of the tiers; shares: how often the turns of a tier, from the hardest, lead to a draw. The paper gives no
    numbers. A prompt that was never drawn is drawn.
    """
    if not turn.record.epochs:
        return DRAWN
    tier = sum(turn.record.mean > bound for bound in bounds)
    return min(shares[tier] / (max(shares) or 1.0), 1.0), f"tier_{tier}"


def pass_rate(
    turn: Turn,
    *,
    low: float | None = None,
    high: float = 0.9,
    key: str | None = None,
    epochs: Annotated[int, ">= 1"] = 1,
) -> Chance:
    """All but those whose mean reward lies above `high` or below `low`: Qwen3-VL leaves out what is right more than 90
    % of the time (arXiv:2511.21631).

    key: of the prompts' meta, where their files hold a rate that was measured before; null: the mean of all times in
    this run, once there are `epochs` of them.
    """
    if key is None:
        rate = turn.record.mean if turn.record.epochs >= epochs else math.nan
    else:
        rate = float(turn.prompt.meta.get(key, math.nan))
    if rate > high:
        return 0.0, "easy"
    return (0.0, "hard") if low is not None and rate < low else DRAWN


def prioritized(turn: Turn, *, least: Annotated[float, "in [0, 1]"] = 0.05) -> Chance:
    """In proportion to 1 - the mean reward, at least `least`: prioritized sampling of Kimi k1.5 (arXiv:2501.12599,
    section 2.3.4). The paper names no least chance."""
    if not turn.record.epochs:
        return DRAWN
    return min(max(1 - turn.record.mean, least), 1.0), "solved"


def curriculum(
    turn: Turn,
    *,
    by: str = "length",
    start: Annotated[float, "in (0, 1]"] = 0.25,
    until: Annotated[int, ">= 1"] = 100,
) -> Chance:
    """The easiest prompts first: of all, ordered by a number of their meta, or by the length of their text, the share
    that takes part grows from `start` to all at iteration `until`, in equal steps.
    """
    share = start + (1 - start) * min(turn.iteration / until, 1.0)
    return DRAWN if turn.rank < share else (0.0, "later")


# name of a choice -> the function, whose arguments are keys of a recipe
CHOICES = {
    "shuffle": shuffle,
    "drop_solved": drop_solved,
    "skip": skip,
    "tiers": tiers,
    "pass_rate": pass_rate,
    "prioritized": prioritized,
    "curriculum": curriculum,
}


def ranks(values: Sequence[float]) -> list[float]:
    """Of each value, the share of all that are smaller, in [0, 1)."""
    order = sorted(values)
    first = {value: i for i, value in reversed(list(enumerate(order)))}
    return [first[value] / len(values) for value in values]
