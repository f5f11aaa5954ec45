"""What the tests of references share: a student of the tiny FLUX, and how far it is from its reference."""

from dataclasses import replace
from typing import Any

import torch
from torch import Tensor

from flowrl.build import add_reference, build_policy
from flowrl.contracts import LogProbs, Policy, Prompt, Rollout, View
from flowrl.core.backward import fill_reference
from flowrl.planning.costs import plan_for
from flowrl.policies.pipelines.policy import PipelinePolicy
from flowrl.recipe.load import build
from flowrl.recipe.schema import Recipe
from policies_support import shake

PROMPTS = [Prompt("circle", "a red circle left of a blue square"), Prompt("squares", "three blue squares")]
CALL = {"height": 16, "width": 16, "max_sequence_length": 16, "guidance_scale": 1.0}
GUIDED = CALL | {"true_cfg_scale": 3.0, "negative_prompt": ""}
DISTILLED: dict[str, Any] = {
    "model": "shapes-flux",
    "pipeline": CALL,
    "lora": {"rank": 2, "alpha": 4},
    "prompts": {"train": "shapes/train"},
    "sampler": {"step": "flow_sde", "noise": 0.7, "steps": 4, "window": {"kind": "first", "size": 3}},
    "rewards": {"strict": {"use": "shapes_strict", "weight": 0.0}},
    "objective": {"kl": 1.0, "kl_kind": "exact"},
    "train": {"prompts": 2, "group": 2},
    "device": "cpu",
}


def recipe(reference: dict[str, Any], **more: Any) -> Recipe:
    return build(DISTILLED | {"reference": reference} | more)


def student(of: Recipe) -> PipelinePolicy:
    policy = build_policy(of)
    assert isinstance(policy, PipelinePolicy)
    add_reference(of, policy)
    shake(policy.modules, 0.05, seed=3)
    return policy


def drawn(policy: Policy, of: Recipe, group: int = 2) -> Rollout:
    return policy.rollout(PROMPTS, group_size=group, plan=plan_for(of, 0), seed=1)


def divergence(policy: Policy, rollout: Rollout, rows: list[int], view: View | None = None) -> Tensor:
    """The exact divergence of these rows [r, K], each looked at as the loop does it."""
    view, found = View(exact_kl=True) if view is None else view, torch.full_like(rollout.rollout_logp, torch.nan)

    def visit(seen: LogProbs) -> None:
        assert seen.kl is not None
        found[seen.rows[:, None], seen.columns[None]] = seen.kl.detach()

    fill_reference(policy, rollout, torch.tensor(rows), view)
    policy.look(rollout, torch.tensor(rows), view, visit)
    return found[rows]


def reference_logp(policy: Policy, rollout: Rollout) -> Tensor:
    again = replace(rollout, reference=None)
    fill_reference(policy, again, torch.arange(len(rollout.rollout_logp)), View())
    assert again.reference is not None
    return again.reference
