"""Guidance whose unconditional half is not trained: which rows of a denoiser's calls that half is, found out by asking.

Classifier-free guidance runs the denoiser with the prompt and without it, as rows of one call (SD3) or as two calls
(Wan, Qwen-Image). Flow-GRPO's first SD3 script detaches what comes without it. Which rows these are is not declared
for each family: the pipeline runs with dry denoisers for some prompts, then with one prompt replaced. Rows whose inputs
stay as they were whatever is replaced know nothing of any prompt.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from itertools import combinations
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor
from torch.utils._pytree import tree_flatten, tree_map

from flowrl.contracts import Prompt
from flowrl.policies.errors import PolicyError
from flowrl.policies.noise import Key
from flowrl.policies.pipelines.branches import REMEDY, ROW, Branches, Guidance, pairs
from flowrl.policies.pipelines.intercepted_step import EndOfWalk, Step
from samplers.plan import Own

if TYPE_CHECKING:
    from flowrl.policies.pipelines.policy import PipelinePolicy


@dataclass(frozen=True)
class Heard:
    """A call of a denoiser: number among its calls of the pass and of the iteration, and copies of its arguments."""

    name: str
    ordinal: int
    position: int
    given: Any


Reading = tuple[str, list[Heard]]  # a text, and the calls of a pass for it


class Still:
    """A walk that stays where it begins, so that what a denoiser is given depends on the prompts alone."""

    table = Own()

    def __init__(self, rows: int) -> None:
        self.rows = rows

    def is_real(self, iteration: int) -> bool:
        """Every iteration steps."""
        return True

    def entering(self, iteration: int, stream: int) -> Tensor:
        """Never asked for."""
        raise AssertionError("nothing is skipped")

    def step(self, step: Step) -> Tensor:
        """The state as it was."""
        return step.x


class Glance(Still):
    """A walk that takes the velocity of the first step and leaves."""

    velocity: Tensor | None = None

    def step(self, step: Step) -> Tensor:
        """Keeps the velocity."""
        self.velocity = step.v
        raise EndOfWalk


def find_guidance(policy: PipelinePolicy, prompt: Prompt, steps: int) -> Guidance:
    """How the calls of the trained denoisers divide. Raises PolicyError where no row is free of the prompt, or where
    that cannot be told."""
    name = type(policy.source).__name__
    (longest, single), (text, calm), (changed, other) = _texts(policy, prompt, steps)
    both = [(text, longest), (changed, longest), (longest, text), (longest, changed)]
    twins = [_two(policy, prompt, pair, steps) for pair in both]
    if twins[0] is None:
        found = [_alone(policy, a, b) for a, b in zip(calm, other, strict=True)]
    else:
        heard = [single, *(calls or [] for calls in twins)]
        if any(len(calls) != len(single) for calls in heard):
            raise _unclear(name)
        found = [_together(policy, *calls) for calls in zip(*heard, strict=True)]
    calls: dict[tuple[str, int], list[Branches]] = {}
    for heard, branches in zip(single, found, strict=True):
        known = calls.setdefault((heard.name, heard.position), [])
        if all(b.prompted != branches.prompted for b in known):
            known.append(branches)
    if any(len({len(b.prompted) for b in known}) < len(known) for known in calls.values()):
        raise _unclear(name)
    if all(all(b.prompted) for known in calls.values() for b in known):
        raise PolicyError(
            f"objective.guidance_gradient: got conditional, but with these arguments no row of {name}'s denoiser is "
            f"free of the prompt (no guidance, an embedded one, or inputs that mix both); {REMEDY}"
        )
    return Guidance(calls)


def _unclear(name: str) -> PolicyError:
    return PolicyError(
        f"objective.guidance_gradient: got conditional, but which rows of {name}'s denoiser know nothing of the prompt "
        f"cannot be told from its calls; {REMEDY}"
    )


# ---------------------------------------------------------------------- listening


def _heard(policy: PipelinePolicy, prompts: Sequence[Prompt], steps: int) -> list[Heard]:
    """The calls of the trained denoisers in a pass for these prompts, in which none of them runs where that will do."""
    keeper = policy.keeper
    for dry in (True, False):
        heard: list[Heard] = []

        def listen(name: str, ordinal: int, position: int, given: Any, heard: list[Heard] = heard) -> None:
            if name in policy.modules:
                heard.append(Heard(name, ordinal, position, _copied(given)))

        keeper.listener, keeper.dry = listen, dry
        try:
            policy._pass(Still(len(prompts)), prompts, [Key(0, prompts[0].id, 0)] * len(prompts), steps=steps)
            return heard
        except PolicyError:
            raise
        except (AttributeError, RuntimeError, TypeError, ValueError, KeyError, IndexError):
            if not dry:
                raise
        finally:
            keeper.listener, keeper.dry = None, False
    raise AssertionError("not reached")


def _two(policy: PipelinePolicy, prompt: Prompt, texts: Sequence[str], steps: int) -> list[Heard] | None:
    """The calls for two prompts of these texts; None where the pipeline takes one prompt a call."""
    pair = [replace(prompt, id=f"{prompt.id}/{i}", text=text) for i, text in enumerate(texts)]
    try:
        return _heard(policy, pair, steps)
    except (PolicyError, AttributeError, RuntimeError, TypeError, ValueError, KeyError, IndexError):
        return None


def _texts(policy: PipelinePolicy, prompt: Prompt, steps: int) -> list[Reading]:
    """Three texts that the denoisers hear as different, none longer than the first, and the calls of each.

    They have as many tokens where such are found, so that padding, masks and the rounding of what is encoded beside
    them stay. Where not, the longest stands in every call of two rows: all are padded to its length, and a row that is
    not replaced stays as it was. No call has one text twice, since a call whose rows share a prompt may encode it once.
    """
    kept = [(prompt.text, _heard(policy, [prompt], steps))]
    for text in _others(prompt.text):
        new = (text, _heard(policy, [replace(prompt, text=text)], steps))
        if len(new[1]) != len(kept[0][1]) or any(_is_same(old[1], new[1]) for old in kept):
            continue
        kept.append(new)
        alike = [old for old in kept if _fits(old[1], new[1]) and _fits(new[1], old[1])]
        if len(alike) == 3:
            return alike
    found = _unlike(kept)
    if not found:
        raise _unclear(type(policy.source).__name__)
    return found


def _unlike(kept: list[Reading]) -> list[Reading]:
    """The longest and two others, which are of one length where such are found; empty where there are none."""
    found: list[Reading] = []
    for longest in kept:
        below = [other for other in kept if other is not longest and _fits(other[1], longest[1])]
        for one, other in combinations(below, 2):
            if _fits(one[1], other[1]) and _fits(other[1], one[1]):
                return [longest, one, other]
            found = found or [longest, one, other]
    return found


def _is_same(calls: list[Heard], others: list[Heard]) -> bool:
    return not any(_differ(a.given, b.given) for a, b in zip(calls, others, strict=True))


def _others(text: str) -> Iterator[str]:
    """Texts of about as many tokens, no two the same; first those that change from the beginning."""
    words, seen = text.split() or [""], {text}
    tried = [list(reversed(words)), [*words[1:], words[0]]]
    for word in ("cat", "two", "a", "blue", "of"):
        tried += [[word, *words[1:]], [*words[:-1], word]]
    for changed in map(" ".join, tried):
        if changed not in seen:
            seen.add(changed)
            yield changed


# ---------------------------------------------------------------------- what a call's rows are


def _alone(policy: PipelinePolicy, call: Heard, other: Heard) -> Branches:
    """The branches of a call where each pass has one row."""
    number = policy.keeper.rows_of(call.name, call.ordinal)
    marks = _marks(call.given, call.given, number, number)
    changed = _changed(call.given, other.given, marks, number)
    return Branches(tuple(changed), True, marks)


def _together(policy: PipelinePolicy, single: Heard, *twins: Heard) -> Branches:
    """The branches of a call, from one for a prompt, and for two before and after the first, or second, is replaced."""
    number = policy.keeper.rows_of(single.name, single.ordinal)
    marks = _marks(single.given, twins[0].given, number, 2 * number)
    owned = [_changed(twins[i].given, twins[i + 1].given, marks, 2 * number) for i in (0, 2)]
    for in_blocks in (True, False):
        place = [[b * 2 + i if in_blocks else i * number + b for b in range(number)] for i in (0, 1)]
        mine = [[owned[i][at] for at in place[i]] for i in (0, 1)]
        foreign = [owned[i][at] for i in (0, 1) for at in place[1 - i]]
        if mine[0] == mine[1] and not any(foreign):
            return Branches(tuple(mine[0]), in_blocks, marks)
    if all(owned[0]) and all(owned[1]):  # every row hears of every prompt, and none is known to be free of it
        return Branches((True,) * number, True, marks)
    raise _unclear(type(policy.source).__name__)


def _marks(one: Any, two: Any, number: int, twice: int) -> Any:
    """The structure of arguments, given for one prompt and for two, with ROW where an input has an entry a row."""
    if isinstance(one, Tensor) and isinstance(two, Tensor):
        return ROW if one.shape[:1] == (number,) and two.shape[:1] == (twice,) else None
    if isinstance(one, list | tuple) and isinstance(two, list | tuple):
        if isinstance(one, list) and (len(one), len(two)) == (number, twice):
            return ROW
        return [_marks(a, b, number, twice) for a, b in zip(one, two, strict=False)] if len(one) == len(two) else None
    if isinstance(one, dict) and isinstance(two, dict):
        return {k: _marks(v, two.get(k), number, twice) for k, v in one.items()}
    return None


def _changed(given: Any, other: Any, marks: Any, number: int) -> list[bool]:
    """Which rows of a call have other inputs; all where something differs that has no rows."""
    changed = [False] * number
    for a, b, mark in pairs(given, other, marks):
        if not _differ(a, b):
            continue
        if mark is None or len(a) != len(b):
            return [True] * number
        changed = [was or _differ(a[i], b[i]) for i, was in enumerate(changed)]
    return changed


def _differ(a: Any, b: Any) -> bool:
    if isinstance(a, Tensor) and isinstance(b, Tensor):
        return a.shape != b.shape or not torch.equal(a, b)
    if isinstance(a, list | tuple) and isinstance(b, list | tuple):
        return len(a) != len(b) or any(map(_differ, a, b))
    if isinstance(a, dict) and isinstance(b, dict):
        return a.keys() != b.keys() or any(_differ(v, b[k]) for k, v in a.items())
    plain = isinstance(a, int | float | str | bool | None)
    return (a != b) if plain else type(a) is not type(b)


def _fits(calls: list[Heard], others: list[Heard]) -> bool:
    """Whether no tensor given to some calls is larger than that given to the others in any dimension."""
    mine, theirs = (tree_flatten([call.given for call in heard])[0] for heard in (calls, others))
    return len(mine) == len(theirs) and all(_is_within(a, b) for a, b in zip(mine, theirs, strict=True))


def _is_within(a: Any, b: Any) -> bool:
    if not isinstance(a, Tensor) or not isinstance(b, Tensor):
        return True
    return a.dim() == b.dim() and all(m <= n for m, n in zip(a.shape, b.shape, strict=True))


def _copied(given: Any) -> Any:
    return tree_map(lambda leaf: leaf.detach().clone() if isinstance(leaf, Tensor) else leaf, given)
