"""The proof that a policy's replay is its rollout, by a short generation before the first one.

Two prompts of different lengths are decoded together and replayed one by one, the shorter without the padding. Where
the prompt has pictures those of the second are smaller, a third row is a text alone or has the pictures of the first,
and a replay with other pictures has to be another one. Where the model talks to an environment, it is
shown something within.
"""

from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any, Protocol

import torch
from PIL import Image
from torch import Tensor

from flowrl.contracts import Prompt, Rollout, View, Visit
from flowrl.media.files import MARK, media_kind
from flowrl.policies.errors import PolicyError
from flowrl.policies.language.drawing.forwards import read_whole
from flowrl.policies.language.media.inputs import Inputs
from flowrl.policies.language.media.processing import FAULTS
from flowrl.untyped import LanguageModel
from samplers.tokens import Generation

PROBE_TOKENS = 16
MAX_GAP = 1e-4  # of a log-prob, between decoding and replay, in float32
MAX_MEAN_GAP = 0.1  # and in half precision, where single tokens may be further off


def telling(prompts: Sequence[Prompt]) -> Prompt:
    """The prompt that tells most about a model: the first with media, else the first."""
    return next((prompt for prompt in prompts if prompt.media), prompts[0])


class Provable(Protocol):
    """What is asked of a policy."""

    model: LanguageModel
    rollout: Callable[..., Rollout]
    conversations: Any
    static: Any

    def look(self, rollout: Rollout, rows: Tensor, view: View, visit: Visit) -> None:
        """Scores rows."""
        ...


def prove(policy: Provable, prompt: Prompt, plan: Generation) -> None:
    """Raises PolicyError where a replay is not its rollout, or where pictures do not change it."""
    with TemporaryDirectory() as folder:
        prompts = [prompt, _shorter(prompt, Path(folder))]
        if prompt.media:
            prompts.append(replace(prompts[1], id=f"{prompt.id} (third)", media=prompt.media))
        try:
            rollout, again, gap, limit = _gap(policy, prompts, plan)
            remedy = "" if gap <= limit else _remedy(policy, prompts, plan)
        except PolicyError:
            raise
        except FAULTS as error:
            if not prompt.media:
                raise
            reason = " ".join(str(error).split())[:200]
            raise PolicyError(
                f"{type(policy.model).__name__} cannot take what its processor makes of "
                f"{', '.join(prompt.media)[:120]} ({reason}); give the processor that belongs to it, or another model"
            ) from error
    if not gap <= limit:  # NaN is not
        raise PolicyError(
            f"{type(policy.model).__name__}: a replay gives log-probs that differ by {gap:.2g} from "
            f"those of decoding (accepted: {limit:g}); {remedy}"
        )
    if prompt.media:
        changed = (with_other_media(policy, rollout) - again).abs()[:, 0]
        if not (changed > 0).all():
            raise PolicyError(
                f"{type(policy.model).__name__}: other media ({', '.join(prompt.media)[:120]}) give the "
                "same log-probs, so the model does not see them; give a model and a chat template that show them"
            )


def _gap(policy: Provable, prompts: Sequence[Prompt], plan: Generation) -> tuple[Rollout, Tensor, float, float]:
    """(a short rollout, its log-probs [R, K] in a replay, how far these are from those of decoding, and may be)."""
    rollout = _short_rollout(policy, prompts, plan)
    again = _replayed(policy, rollout)
    gap = (again - rollout.rollout_logp).abs()[rollout.mask]
    exact = policy.model.dtype == torch.float32
    measured, limit = (gap.max(), MAX_GAP) if exact else (gap.mean(), MAX_MEAN_GAP)
    return rollout, again, float(measured), limit


def _remedy(policy: Provable, prompts: Sequence[Prompt], plan: Generation) -> str:
    """What can be done about a replay that is not its rollout, in words: it is tried whether the cache is to blame."""

    def works() -> bool:
        _, _, gap, limit = _gap(policy, prompts, plan)
        return gap <= limit

    static, policy.static, before = policy.static, None, read_whole(policy.model, False)
    try:
        if static is not None and works():
            return "its static cache does not work, set rollout.cache=true"
        read_whole(policy.model)
        helps = works() and not before
    finally:
        read_whole(policy.model, before)
        policy.static = static
    if helps:
        return "its cache does not work, set rollout.cache=false: each token then reads all before it again"
    alone = ", or set rollout.batch_invariant=true: each row by itself" if prompts[0].media else ""
    return f"its cache, positions or padding do not work, give another model{alone}"


def _shorter(prompt: Prompt, folder: Path) -> Prompt:
    """The first half of a prompt's text under another id, with smaller pictures, which are written to the folder."""
    plain, marks = MARK.sub("", prompt.text), "".join(MARK.findall(prompt.text)) if prompt.media else ""
    text = marks + plain[: (len(plain) + 1) // 2] if marks else prompt.text[: (len(prompt.text) + 1) // 2]
    messages = prompt.messages and (*prompt.messages[:-1], {**prompt.messages[-1], "content": text})
    media = [_smaller(path, folder / f"{i}.png") for i, path in enumerate(prompt.media)]
    return replace(prompt, id=f"{prompt.id} (half)", text=text, messages=messages, media=tuple(media))


def _smaller(path: str, target: Path) -> str:
    if media_kind(path) != "image":
        return path
    with Image.open(path) as picture:
        width, height = picture.size
        picture.convert("RGB").resize((max(width * 2 // 3, 8), max(height // 2, 8))).save(target)
    return str(target)


def with_other_media(policy: Provable, rollout: Rollout) -> Tensor:
    """The log-probs of a rollout's tokens [R, K] where all media have other values."""
    shown = rollout.replay.inputs
    rollout.replay.inputs = [_other(own, lambda value: 0.5 - value) for own in shown]
    try:
        return _replayed(policy, rollout)
    except FAULTS:  # an index among the values, which this leaves within its range
        rollout.replay.inputs = [_other(own, lambda value: 0.75 * value + 0.05) for own in shown]
        return _replayed(policy, rollout)


def _other(shown: Inputs, change: Callable[[Tensor], Tensor]) -> Inputs:
    """The same media with other values."""
    pieces = []
    for piece in shown.pieces:
        other = {name: change(v) if v.is_floating_point() else v for name, v in piece.tensors.items()}
        pieces.append(piece.with_tensors(other))
    return Inputs(tuple(pieces))


def _short_rollout(policy: Provable, prompts: Sequence[Prompt], plan: Generation) -> Rollout:
    number = min(PROBE_TOKENS, plan.max_new_tokens)
    short = replace(plan, max_new_tokens=number, temperature=plan.scale, force=None, precision=None)
    if policy.conversations is not None:
        return policy.conversations.probe(policy, prompts, short)
    return policy.rollout(prompts, plan=short, seed=0)


def _replayed(policy: Provable, rollout: Rollout) -> Tensor:
    """The log-probs of a rollout's tokens [R, K], each row alone."""
    logp: list[Tensor] = []
    for row in torch.arange(len(rollout.mask)).split(1):
        policy.look(rollout, row, View(), lambda seen: logp.append(seen.logp.detach().cpu()))
    return torch.cat(logp)
