"""Guidance whose unconditional half is not trained: which rows of a denoiser's calls are that half, found by probing.

Classifier-free guidance runs the denoiser with the prompt and without it, as rows of one call (SD3) or as two calls
(Wan, Qwen-Image). Flow-GRPO's first SD3 script detaches the output without it. Which rows these are is not declared
for each family: the pipeline runs with dry denoisers for some prompts, then with one prompt replaced. Rows whose inputs
stay the same whichever prompt is replaced are free of any prompt.
"""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from itertools import combinations

import torch
from torch import Tensor
from torch.utils._pytree import tree_flatten, tree_map

from flowrl.contracts import Prompt
from flowrl.policies.errors import PolicyError
from flowrl.policies.noise import Key
from flowrl.policies.pipelines.calls.passes import PipelinePasses
from flowrl.policies.pipelines.probing.branches import REMEDY, ROW, Branches, Guidance, leaf_pairs
from flowrl.policies.pipelines.steps.intercepted import EndOfWalk, Step
from flowrl.untyped import Nest
from samplers.plan import OwnTable


@dataclass(frozen=True)
class RecordedCall:
    """A call of a denoiser: number among its calls of the pass and of the iteration, and copies of its arguments."""

    name: str
    ordinal: int
    position: int
    given: Nest


Reading = tuple[str, list[RecordedCall]]  # a text, and the calls of a pass for it


class StationaryWalk:
    """A walk that stays where it begins, so that the denoiser's inputs depend on the prompts alone."""

    table = OwnTable()

    def __init__(self, rows: int) -> None:
        self.rows = rows

    def is_real(self, iteration: int) -> bool:
        """Every iteration steps."""
        return True

    def skipped_state(self, iteration: int, stream: int) -> Tensor:
        """Never called: no iteration is skipped. Would return [R, ...]."""
        raise AssertionError("nothing is skipped")

    def step(self, step: Step) -> Tensor:
        """The unchanged state [R, ...]."""
        return step.x


class VelocityWalk(StationaryWalk):
    """A walk that keeps the velocity of the first step and ends."""

    velocity: Tensor | None = None

    def step(self, step: Step) -> Tensor:
        """Keeps the velocity [R, ...] and ends the walk."""
        self.velocity = step.v
        raise EndOfWalk


def find_guidance(passes: PipelinePasses, prompt: Prompt, steps: int) -> Guidance:
    """How the calls of the trained denoisers are split. Raises PolicyError if no row is free of the prompt, or if that
    cannot be determined."""
    name = type(passes.source).__name__
    (longest, single), (text, calm), (changed, other) = _texts(passes, prompt, steps)
    both = [(text, longest), (changed, longest), (longest, text), (longest, changed)]
    twins = [_calls_for_two(passes, prompt, pair, steps) for pair in both]
    if twins[0] is None:
        branches_by_call = [_branches_of_one_row(passes, a, b) for a, b in zip(calm, other, strict=True)]
    else:
        heard = [single, *(calls or [] for calls in twins)]
        if any(len(calls) != len(single) for calls in heard):
            raise _undecidable(name)
        branches_by_call = [_branches_of_two_rows(passes, *calls) for calls in zip(*heard, strict=True)]
    calls: dict[tuple[str, int], list[Branches]] = {}
    for heard, branches in zip(single, branches_by_call, strict=True):
        known = calls.setdefault((heard.name, heard.position), [])
        if all(b.prompted != branches.prompted for b in known):
            known.append(branches)
    if any(len({len(b.prompted) for b in known}) < len(known) for known in calls.values()):
        raise _undecidable(name)
    if all(all(b.prompted) for known in calls.values() for b in known):
        raise PolicyError(
            f"objective.guidance_gradient: got conditional, but with these arguments no row of {name}'s denoiser is "
            f"free of the prompt (no guidance, an embedded one, or inputs that mix both); {REMEDY}"
        )
    return Guidance(calls)


def _undecidable(name: str) -> PolicyError:
    return PolicyError(
        f"objective.guidance_gradient: got conditional, but it cannot be told from its calls which rows of {name}'s "
        f"denoiser are free of the prompt; {REMEDY}"
    )


# ---------------------------------------------------------------------- listening


def _record_calls(passes: PipelinePasses, prompts: Sequence[Prompt], steps: int) -> list[RecordedCall]:
    """The calls of the trained denoisers in a pass for these prompts, dry (no denoiser runs) where that works."""
    keeper = passes.keeper
    for dry in (True, False):
        heard: list[RecordedCall] = []

        def listen(name: str, ordinal: int, position: int, given: Nest, heard: list[RecordedCall] = heard) -> None:
            if name in passes.modules:
                heard.append(RecordedCall(name, ordinal, position, _copy_tensors(given)))

        keeper.listener, keeper.dry = listen, dry
        try:
            passes.run(StationaryWalk(len(prompts)), prompts, [Key(0, prompts[0].id, 0)] * len(prompts), steps=steps)
            return heard
        except (PolicyError, torch.OutOfMemoryError):
            raise
        except (AttributeError, RuntimeError, TypeError, ValueError, KeyError, IndexError):
            if not dry:
                raise
        finally:
            keeper.listener, keeper.dry = None, False
    raise AssertionError("not reached")


def _calls_for_two(
    passes: PipelinePasses, prompt: Prompt, texts: Sequence[str], steps: int
) -> list[RecordedCall] | None:
    """The calls for two prompts of these texts; None if the pipeline takes one prompt per call."""
    pair = [replace(prompt, id=f"{prompt.id}/{i}", text=text) for i, text in enumerate(texts)]
    try:
        return _record_calls(passes, pair, steps)
    except torch.OutOfMemoryError:
        raise
    except (PolicyError, AttributeError, RuntimeError, TypeError, ValueError, KeyError, IndexError):
        return None


def _texts(passes: PipelinePasses, prompt: Prompt, steps: int) -> list[Reading]:
    """Three texts with different denoiser inputs, none longer than the first, and the calls of each.

    They have equally many tokens if such texts are found, so that padding, masks and the rounding of what is encoded
    with them stay the same. If not, the longest is in every call of two rows: all are padded to its length, and a row
    that is not replaced stays the same. No call has one text twice, since rows that share a prompt may be encoded once.
    """
    kept = [(prompt.text, _record_calls(passes, [prompt], steps))]
    for text in _other_texts(prompt.text):
        new = (text, _record_calls(passes, [replace(prompt, text=text)], steps))
        if len(new[1]) != len(kept[0][1]) or any(_is_same(old[1], new[1]) for old in kept):
            continue
        kept.append(new)
        alike = [old for old in kept if _is_no_larger(old[1], new[1]) and _is_no_larger(new[1], old[1])]
        if len(alike) == 3:
            return alike
    readings = _different_readings(kept)
    if not readings:
        raise _undecidable(type(passes.source).__name__)
    return readings


def _different_readings(kept: list[Reading]) -> list[Reading]:
    """The longest and two others, of equal length if such are found; empty if there are no three."""
    readings: list[Reading] = []
    for longest in kept:
        below = [other for other in kept if other is not longest and _is_no_larger(other[1], longest[1])]
        for one, other in combinations(below, 2):
            if _is_no_larger(one[1], other[1]) and _is_no_larger(other[1], one[1]):
                return [longest, one, other]
            readings = readings or [longest, one, other]
    return readings


def _is_same(calls: list[RecordedCall], others: list[RecordedCall]) -> bool:
    return not any(_differ(a.given, b.given) for a, b in zip(calls, others, strict=True))


def _other_texts(text: str) -> Iterator[str]:
    """Distinct texts of about as many tokens; first those that differ from the beginning."""
    words, seen = text.split() or [""], {text}
    tried = [list(reversed(words)), [*words[1:], words[0]]]
    for word in ("cat", "two", "a", "blue", "of"):
        tried += [[word, *words[1:]], [*words[:-1], word]]
    for changed in map(" ".join, tried):
        if changed not in seen:
            seen.add(changed)
            yield changed


# ---------------------------------------------------------------------- what a call's rows are


def _branches_of_one_row(passes: PipelinePasses, call: RecordedCall, other: RecordedCall) -> Branches:
    """The branches of a call whose passes have one row each."""
    number = passes.keeper.rows_of(call.name, call.ordinal)
    marks = _marks(call.given, call.given, number, number)
    changed = _changed_rows(call.given, other.given, marks, number)
    return Branches(tuple(changed), True, marks)


def _branches_of_two_rows(passes: PipelinePasses, single: RecordedCall, *twins: RecordedCall) -> Branches:
    """The branches of a call, from its call for one prompt and those for two, before and after one is replaced."""
    number = passes.keeper.rows_of(single.name, single.ordinal)
    marks = _marks(single.given, twins[0].given, number, 2 * number)
    owned = [_changed_rows(twins[i].given, twins[i + 1].given, marks, 2 * number) for i in (0, 2)]
    for in_blocks in (True, False):
        place = [[b * 2 + i if in_blocks else i * number + b for b in range(number)] for i in (0, 1)]
        mine = [[owned[i][at] for at in place[i]] for i in (0, 1)]
        foreign = [owned[i][at] for i in (0, 1) for at in place[1 - i]]
        if mine[0] == mine[1] and not any(foreign):
            return Branches(tuple(mine[0]), in_blocks, marks)
    if all(owned[0]) and all(owned[1]):  # every row depends on every prompt: none is known to be free of them
        return Branches((True,) * number, True, marks)
    raise _undecidable(type(passes.source).__name__)


def _marks(one: Nest, two: Nest, number: int, twice: int) -> Nest:
    """The structure of arguments, given for one prompt and for two, with ROW for an input with one entry per row."""
    if isinstance(one, Tensor) and isinstance(two, Tensor):
        return ROW if one.shape[:1] == (number,) and two.shape[:1] == (twice,) else None
    if isinstance(one, list | tuple) and isinstance(two, list | tuple):
        if isinstance(one, list) and (len(one), len(two)) == (number, twice):
            return ROW
        return [_marks(a, b, number, twice) for a, b in zip(one, two, strict=False)] if len(one) == len(two) else None
    if isinstance(one, dict) and isinstance(two, dict):
        return {k: _marks(v, two.get(k), number, twice) for k, v in one.items()}
    return None


def _changed_rows(given: Nest, other: Nest, marks: Nest, number: int) -> list[bool]:
    """Which rows of a call have other inputs; all if something without rows differs."""
    changed = [False] * number
    for a, b, mark in leaf_pairs(given, other, marks):
        if not _differ(a, b):
            continue
        if mark is None or len(a) != len(b):
            return [True] * number
        changed = [was or _differ(a[i], b[i]) for i, was in enumerate(changed)]
    return changed


def _differ(a: Nest, b: Nest) -> bool:
    if isinstance(a, Tensor) and isinstance(b, Tensor):
        return a.shape != b.shape or not torch.equal(a, b)
    if isinstance(a, list | tuple) and isinstance(b, list | tuple):
        return len(a) != len(b) or any(map(_differ, a, b))
    if isinstance(a, dict) and isinstance(b, dict):
        return a.keys() != b.keys() or any(_differ(v, b[k]) for k, v in a.items())
    plain = isinstance(a, int | float | str | bool | None)
    return (a != b) if plain else type(a) is not type(b)


def _is_no_larger(calls: list[RecordedCall], others: list[RecordedCall]) -> bool:
    """Whether no tensor given to some calls is larger than that given to the others in any dimension."""
    mine, theirs = (tree_flatten([call.given for call in heard])[0] for heard in (calls, others))
    return len(mine) == len(theirs) and all(_is_within(a, b) for a, b in zip(mine, theirs, strict=True))


def _is_within(a: Nest, b: Nest) -> bool:
    if not isinstance(a, Tensor) or not isinstance(b, Tensor):
        return True
    return a.dim() == b.dim() and all(m <= n for m, n in zip(a.shape, b.shape, strict=True))


def _copy_tensors(given: Nest) -> Nest:
    return tree_map(lambda leaf: leaf.detach().clone() if isinstance(leaf, Tensor) else leaf, given)
