"""Several rewards combined: which prompts each is asked about, how scores are reshaped, and which counts only where
another is satisfied.

This happens between scores and advantages; the reported scores of each reward stay as they are.
"""

from collections.abc import Mapping, Sequence
from typing import NamedTuple

import torch
from torch import Tensor

from flowrl.contracts import Prompt, Samples
from flowrl.core.advantages.combined import combined_reward
from flowrl.names import UserError
from flowrl.recipe.keys.rewards import RewardSpec, fits
from flowrl.scoring.shaping import contrasted, shape
from flowrl.untyped import JSON


def concerns(when: Mapping[str, JSON] | None, prompt: Prompt) -> bool:
    """Whether a reward is asked about this prompt: each key of its meta has the value, or one of those, in `when`."""
    return fits(when, prompt.meta)


def asked_masks(specs: Mapping[str, RewardSpec], prompts: Sequence[Prompt]) -> dict[str, Tensor]:
    """For each reward that is not asked about all samples: bool [B], whether it is asked about a sample."""
    return {
        name: torch.tensor([concerns(spec.when, p) for p in prompts], dtype=torch.bool)
        for name, spec in specs.items()
        if spec.when
    }


def apply_gates(scores: Mapping[str, Tensor], specs: Mapping[str, RewardSpec], group: Tensor) -> dict[str, Tensor]:
    """The scores [B] that are trained on: where a gate stays shut, the value that the recipe gives in their place, or
    the product with the gate's score.

    `lowest` is the reward's lowest score in that sample's group. NaN stays NaN, and a score whose gate's score is NaN
    becomes NaN, since its value is unknown.
    """
    gated_scores = dict(scores)
    for name, spec in specs.items():
        if spec.gate is not None and spec.gate.by in scores:
            judge, own = scores[spec.gate.by], scores[name]
            otherwise = spec.gate.otherwise
            if spec.gate.least is None:
                gated_scores[name] = own * judge
                continue
            shut = _lowest(own, group) if isinstance(otherwise, str) else torch.full_like(own, otherwise)
            value = torch.where(judge >= spec.gate.least, own, shut)
            gated_scores[name] = value.masked_fill(judge.isnan() | own.isnan(), torch.nan)
    return gated_scores


class CountedRewards(NamedTuple):
    """Rewards that are trained on: name -> [B], after their gates; the arguments of flowrl.core.advantages.combined."""

    rewards: dict[str, Tensor]
    weights: dict[str, float]
    asked: dict[str, Tensor]

    @property
    def total(self) -> Tensor | None:
        """Their weighted sum, float32 [B], NaN where one of them could not score; None if none is trained on."""
        return combined_reward(*self).float() if any(self.weights.values()) else None


def counted_rewards(
    specs: Mapping[str, RewardSpec],
    scores: Mapping[str, Tensor],
    prompts: Sequence[Prompt],
    group: Tensor | None = None,
    samples: Samples | None = None,
) -> CountedRewards:
    """The scores [B] as the recipe counts them. group int64 [B]; None: all samples are one group, as in an evaluation.

    samples: those that are scored, whose scores are reshaped where the recipe says so; None: as in an evaluation.

    Rewards without scores are left out, and gates that depend on them stay open.
    """
    scores, shaped = dict(scores), dict[str, Tensor]()
    for name, spec in specs.items():
        if spec.shape is not None and name in scores and samples is not None:
            shaped[name] = shape(scores[name], samples, spec.shape.kind, spec.shape.given)
        if spec.contrast is not None and name in scores and samples is not None and name in samples.contrast:
            more = contrasted(scores[name], samples.contrast[name], samples.group, **spec.contrast.model_dump())
            shaped[name] = shaped.get(name, scores[name]) + more
    scores |= shaped
    specs = {name: spec for name, spec in specs.items() if name in scores}
    group = torch.zeros(len(prompts), dtype=torch.int64) if group is None else group
    weights = {name: spec.weight for name, spec in specs.items()}
    return CountedRewards(apply_gates(scores, specs, group), weights, asked_masks(specs, prompts))


def check_prompts(specs: Mapping[str, RewardSpec], prompts: Sequence[Prompt], source: str) -> None:
    """Raises UserError for a prompt that no trained reward is asked about: nothing could be learned from it.

    Where no reward is trained, there is none to ask.
    """
    trained = {name: spec.when for name, spec in specs.items() if spec.weight}
    for prompt in prompts if trained else ():
        if not any(concerns(when, prompt) for when in trained.values()):
            held = ", ".join(f"{key}={value!r}"[:40] for key, value in prompt.meta.items()) or "nothing"
            raise UserError(
                f"rewards: none of {', '.join(trained)} is asked about the prompt {prompt.text!r} of {source}, whose "
                f"meta holds {held}; widen a reward's `when`"
            )


def _lowest(values: Tensor, group: Tensor) -> Tensor:
    """The lowest value of each one's group that is not NaN, [B]."""
    labels, index = torch.unique(group.cpu(), return_inverse=True)
    low = values.new_full((len(labels),), torch.inf)
    low = low.scatter_reduce(0, index, values.nan_to_num(torch.inf), "amin")
    return low[index]
