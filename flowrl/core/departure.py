"""How far a policy with adapters has moved from the model without them."""

from collections.abc import Iterator, Sequence
from typing import Any

import torch
from torch import Tensor

from flowrl.contracts import LogProbs, Policy, Prompt


@torch.no_grad()
def divergence(policy: Policy, prompts: Sequence[Prompt], *, plan: Any, seed: int, batch: int) -> float:
    """The exact divergence from the base model a decision: mean over the trained ones of one rollout a prompt.

    Of a denoising step it is that of its Gaussians, a latent element (or summed over them, where `sampler.reduce` says
    sum), of a token that over the vocabulary. Rollouts are drawn by the policy as it is, `batch` prompts at once.
    Raises PolicyError where it has no adapters.
    """
    total, number = 0.0, 0
    for part in _parts(prompts, batch):
        rollout = policy.rollout(part, group_size=1, plan=plan, seed=seed)
        rows = torch.arange(len(rollout.rollout_logp))
        policy.reference(rollout, rows)
        found: list[Tensor] = []

        def visit(score: LogProbs, mask: Tensor = rollout.mask, found: list[Tensor] = found) -> None:
            if score.kl is None:
                raise ValueError("the policy was asked for its exact divergence, and gave none")
            found.append(score.kl.cpu()[mask[score.rows[:, None], score.columns[None]]])

        policy.replay(rollout, rows, visit, exact_kl=True)
        values = torch.cat(found).double()
        total, number = total + float(values.sum()), number + len(values)
    return total / number


def _parts(prompts: Sequence[Prompt], size: int) -> Iterator[Sequence[Prompt]]:
    size = max(1, size)
    return (prompts[i : i + size] for i in range(0, len(prompts), size))
