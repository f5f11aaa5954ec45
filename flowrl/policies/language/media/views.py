"""Completions drawn, or looked at once more, beside changed pictures of their prompts.

A view changes what was opened, before the processor sees it, and keeps its size: the ids of a row stay as they are.
What is random in it is named by seed, prompt and sample, so that a resumed run has the same pictures, and every batch.
"""

from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any, Protocol

import numpy as np
import torch
from PIL import Image
from torch import Tensor

from flowrl.contracts import Drawing, Explored, LogProbs, Prompt, Rollout, View
from flowrl.media.changes import CHANGES
from flowrl.media.files import media_kind
from flowrl.policies.errors import PolicyError
from flowrl.policies.language.chat import Encoder
from flowrl.policies.language.drawing.rows import Row, finish
from flowrl.policies.language.drawing.stopping import Stop
from flowrl.policies.language.drawing.trees import ScoreAll
from flowrl.policies.language.media.inputs import EMPTY, Inputs
from flowrl.policies.language.policy import LanguagePolicy
from flowrl.policies.language.proving import telling
from flowrl.policies.language.talks.conversations import drawer
from flowrl.policies.language.talks.state import Talk, completed
from flowrl.policies.noise import Key, copy_numbers, group_keys
from flowrl.untyped import Processor
from samplers.tokens import Generation

STILL = ("mask_patches", "diffuse", "drop")  # kinds that change pictures; all change videos


class Encodes(Protocol):
    """What is asked of a policy to make a row's media."""

    encode: Encoder
    stop: Stop


@dataclass(frozen=True)
class PictureView:
    """A change of pictures and videos: one of CHANGES and its arguments. each: every sample has its own."""

    name: str
    kind: str
    how: Mapping[str, Any] = field(default_factory=dict)
    each: bool = False

    def fits(self, prompt: Prompt) -> bool:
        """Whether a prompt shows anything that it changes."""
        kinds = {media_kind(path) for path in prompt.media}
        return "video" in kinds or (self.kind in STILL and "image" in kinds)

    def inputs(self, policy: Encodes, prompt: Prompt, key: Key, ids: Sequence[int]) -> Inputs:
        """The media of a row of this prompt, whose ids are given; key names what is random.

        Raises PolicyError where the processor writes other ids for them.
        """

        def change(number: int, kind: str, one: Any, processor: Processor) -> Any:
            draw = torch.Generator().manual_seed(key.number("view", self.name, number))
            if kind == "image" and self.kind in STILL:
                frames = torch.from_numpy(np.array(one))[None]
                return Image.fromarray(CHANGES[self.kind](frames, draw, **self.how)[0].numpy())
            if kind != "video":
                return one
            frames, known = one
            how = dict(self.how) if self.kind in STILL else {"shown": _sampled(frames, known, processor)}
            return CHANGES[self.kind](torch.from_numpy(np.array(frames)), draw, **how).numpy(), known

        own, shown = policy.encode.row(prompt, policy.stop, change)
        if shown is None or own != list(ids):
            raise PolicyError(
                f"views.{self.name}: the processor writes other tokens for the changed pictures of "
                f"{prompt.text[:80]!r} than for the pictures as they are; remove the view, or give another model"
            )
        return shown


def _sampled(frames: Any, known: Any, processor: Processor) -> Sequence[int] | None:
    """The positions of the frames that a processor takes of a video; None where it takes all."""
    sampler = getattr(processor, "video_processor", None)
    if known is None or sampler is None or not getattr(sampler, "do_sample_frames", False):
        return None
    return [int(i) for i in sampler.sample_frames(known)]


@dataclass(frozen=True)
class Views:
    """What a rollout does beside changed pictures.

    draws: the last `number` samples of each group are drawn beside these; clean: they are scored with the pictures as
    they are. beside: so many `further` samples of each prompt are drawn beside these, for `Samples.contrast`. second:
    the pictures of a second look at every row.
    """

    draws: PictureView | None = None
    number: int = 0
    clean: bool = True
    beside: PictureView | None = None
    further: int = 0
    second: PictureView | None = None


def viewed(
    policy: LanguagePolicy,
    drawing: Drawing,
    score: ScoreAll,
    *,
    views: Views,
    explore: Callable[[LanguagePolicy, Drawing, ScoreAll], Explored | None] | None = None,
) -> Explored | None:
    """Groups of which some samples are drawn beside changed pictures, all rows in one go; conversations where the
    policy talks to an environment, which shows them what it does without.

    Rows that are scored clean have the log-probs that the policy now gives to their tokens beside the pictures as they
    are (NoisyRollout, arXiv:2504.13055): the ratio of the loss is to these, 1 before an update, and not to who drew.
    Metrics have the view's name: gap, how far the two are apart, a token; by reward the mean of the samples beside.
    explore: draws groups of which only a second look is taken.
    """
    if views.draws is not None or views.beside is not None:
        found = _drawn(policy, drawing, score, views)
    elif explore is not None:
        found = explore(policy, drawing, score)
    else:
        how: dict[str, Any] = {name: getattr(drawing, name) for name in ("plan", "seed", "first", "progress")}
        found = Explored(policy.rollout(drawing.prompts, group_size=drawing.group, **how), None, {})
    if views.second is not None and found is not None:
        found.rollout.replay.shown = _second(policy, drawing, found.rollout, views.second)
    return found


def _drawn(policy: LanguagePolicy, drawing: Drawing, score: ScoreAll, views: Views) -> Explored:
    """The rollout beside changed pictures, and metrics of it."""
    prompts, plan, size, told = drawing.prompts, drawing.plan, drawing.group, dict[str, float]()
    policy.prepare(telling(prompts), plan)
    talks = _begun(policy, drawing, 0, size)
    rows = [talk.row for talk in talks]
    clean, late, drawn = [row.inputs for row in rows], list[int](), list[int]()
    if (view := views.draws) is not None:
        late = [at for at in range(len(rows)) if at % size >= size - views.number and view.fits(rows[at].prompt)]
        _show(policy, [rows[at] for at in late], view, drawing.first)
        drawn = [at for at in late if (rows[at].inputs or EMPTY).key != (clean[at] or EMPTY).key]
    others: list[Talk] = []
    if (beside := views.beside) is not None:
        others = [talk for talk in _begun(policy, drawing, size, views.further) if beside.fits(talk.row.prompt)]
        _show(policy, [talk.row for talk in others], beside, drawing.first)
    _finish(policy, [*talks, *others], drawing)
    rollout = _rollout(policy, talks, len(prompts), plan)
    if view is not None and views.clean and late:
        held = zip(clean, rollout.replay.inputs or [], strict=True)
        rollout.replay.inputs = [now if own is None else own.before(now) for own, now in held]
        told[f"views/{view.name}/gap"] = _score_again(policy, rollout, torch.tensor(drawn)) if drawn else 0.0
    if beside is not None:
        means = _means(policy, drawing, others, score, views.further)
        contrast = {name: mean.repeat_interleave(size) for name, mean in means.items()}
        rollout.samples = replace(rollout.samples, contrast=contrast)
        told |= {f"views/{beside.name}/{name}": float(mean.nanmean()) for name, mean in means.items()}
    return Explored(rollout, None, told)


def _begun(policy: LanguagePolicy, drawing: Drawing, begin: int, number: int) -> list[Talk]:
    """So many samples of each prompt in which nothing was said yet, from number `begin` of the drawing on."""
    members = range(drawing.first + begin, drawing.first + begin + number)
    keys = group_keys(drawing.seed, [prompt.id for prompt in drawing.prompts], members)
    if policy.conversations is not None:
        return policy.conversations.started(policy, drawing.prompts, keys, drawing.plan)
    return [Talk(row) for row in policy.start(drawing.prompts, keys, drawing.plan)]


def _finish(policy: LanguagePolicy, talks: Sequence[Talk], drawing: Drawing) -> None:
    """Draws them to their ends, each by itself where no batch is to change anything."""
    draw = drawer(policy, drawing.plan)
    if policy.conversations is not None:
        policy.conversations.converse(policy, talks, drawing.plan, drawing.progress, draw=draw)
        return
    for part in [[talk] for talk in talks] if policy.batch_invariant else [talks]:
        finish(policy, [talk.row for talk in part], drawing.plan, progress=drawing.progress, draw=draw)


def _rollout(policy: LanguagePolicy, talks: Sequence[Talk], groups: int, plan: Generation) -> Rollout:
    """The rollout of these samples, as many of each of so many groups."""
    group = torch.arange(groups).repeat_interleave(len(talks) // groups)
    if policy.conversations is not None:
        return completed(policy, talks, group, plan)
    return policy.completed([talk.row for talk in talks], group, plan)


def _show(policy: LanguagePolicy, rows: Sequence[Row], view: PictureView, first: int) -> None:
    """Gives rows their changed media, each its own or all of a prompt those that are named by its sample `first`."""
    made: dict[tuple[Key, tuple[int, ...]], Inputs] = {}
    for row in rows:
        key = row.key if view.each else replace(row.key, index=first)
        at = key, tuple(row.prompt_ids)  # which an environment's opening may end differently
        if at not in made:
            made[at] = view.inputs(policy, row.asked or row.prompt, key, row.prompt_ids)
        row.inputs = made[at]


def _second(policy: LanguagePolicy, drawing: Drawing, rollout: Rollout, view: PictureView) -> list[Inputs | None]:
    """The media of each row for a second look; None where its prompt shows nothing that could be changed.

    What tools showed in a conversation stays as it was.
    """
    prompts, asked, group = rollout.samples.prompts, rollout.replay.asked, rollout.samples.group.tolist()
    first = {number: prompts[group.index(number)].id for number in dict.fromkeys(group)}
    copy, seen = dict(zip(first, copy_numbers(first.values()), strict=True)), Counter[int]()
    keys = []
    for prompt, number in zip(prompts, group, strict=True):
        keys.append(Key(drawing.seed, prompt.id, drawing.first + seen[number], copy[number]))
        seen[number] += 1
    given = zip(prompts, rollout.replay.prompts, keys, prompts if asked is None else asked, strict=True)
    rows = [Row(prompt, ids, key, asked=own) for prompt, ids, key, own in given]
    _show(policy, [row for row in rows if view.fits(row.prompt)], view, drawing.first)
    held = zip(rows, rollout.replay.inputs or [], strict=True)
    return [None if row.inputs is None else row.inputs.before(own) for row, own in held]


def _score_again(policy: LanguagePolicy, rollout: Rollout, rows: Tensor) -> float:
    """Fills in the log-probs of rows beside the pictures that they have now; the mean distance from those before."""
    before = rollout.rollout_logp.clone()

    def visit(seen: LogProbs) -> None:
        rollout.rollout_logp[seen.rows] = seen.logp.to(before).where(rollout.mask[seen.rows], 0.0)

    with torch.no_grad():
        for part in rows.split(policy.max_rows or len(rows)):
            policy.look(rollout, part, View(), visit)
    gap = (rollout.rollout_logp - before).abs()[rows]
    return float(gap[rollout.mask[rows]].mean())


def _means(
    policy: LanguagePolicy, drawing: Drawing, talks: Sequence[Talk], score: ScoreAll, further: int
) -> dict[str, Tensor]:
    """By reward the mean score of each prompt's further samples, float [P], NaN where it has none."""
    if not talks:
        return {}
    scores, _ = score(_rollout(policy, talks, len(talks) // further, drawing.plan).samples)
    copy = copy_numbers(prompt.id for prompt in drawing.prompts)
    place = {(prompt.id, copy[at]): at for at, prompt in enumerate(drawing.prompts)}
    owners = torch.tensor([place[row.key.prompt, row.key.copy] for row in (talk.row for talk in talks[::further])])
    made = {}
    for name, values in scores.items():
        made[name] = torch.full((len(drawing.prompts),), torch.nan)
        made[name][owners] = values.cpu().float().unflatten(0, (-1, further)).nanmean(1)
    return made
