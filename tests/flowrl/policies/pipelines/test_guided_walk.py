"""A reward of noisy latents steers a walk: as published, row by row, and through the features of the denoiser."""

from dataclasses import replace
from pathlib import Path
from typing import Any, cast

import pytest
import torch
from torch import Tensor

import golden
from flowrl.contracts import Prompt
from flowrl.policies.errors import PolicyError
from flowrl.policies.noise import Key
from flowrl.policies.pipelines.looks import latent_reward
from flowrl.policies.pipelines.looks.latent_reward import Features, LatentReward
from flowrl.policies.pipelines.steps.intercepted import Step
from flowrl.policies.pipelines.walks.guided import Guide, guide_of
from flowrl.policies.pipelines.walks.replay import LookWalk
from policies_support import ODE, PROMPTS, SDE, SEED, FamilyPolicy, gap, pictures
from samplers.tables import At

THREE = [*PROMPTS, Prompt("long", "a much longer text about three dogs beside a red cat")]


@pytest.mark.parametrize("case", golden.cases("direct/flow_nrg.json"))
def test_a_step_is_steered_as_published(case: dict[str, Any]) -> None:
    x = {name: golden.tensor(value, torch.float32) for name, value in case["inputs"].items()}
    leaf, s = x["x_t"].requires_grad_(), case["params"]["t"]
    nothing = cast(Any, None)
    step = Step(1, 0, leaf.detach(), x["v"], s, 0.0, 1.0, "flow", None, nothing, 1, torch.tensor([1.0, s, 0.0]))
    weight = case["params"]["guidance_weight"]
    guide = Guide(lambda state, level, rows: -(state - x["c"]).square().flatten(1).mean(1), weight)
    reward = guide.rewarding(leaf, torch.tensor([s, s]), 2)
    gradient = torch.autograd.grad(reward.sum(), leaf)[0]
    golden.check({"reward": reward, "grad_reward": gradient, "v_guided": guide.velocity(step, leaf)}, case)


def bright(x: Tensor, level: Tensor, rows: int) -> Tensor:
    assert len(level) == rows == len(x)
    return x.flatten(1).sum(1)


@pytest.mark.parametrize("name", ["flux", "sd15", "cosmos2"])
def test_walks_from_which_nothing_is_trained_are_steered(name: str) -> None:
    policy = FamilyPolicy(name)
    plain = policy.rollout(PROMPTS, group_size=2, plan=ODE, seed=SEED)
    trained = policy.rollout(PROMPTS, group_size=2, plan=SDE, seed=SEED)
    seen: list[Tensor] = []

    def watched(x: Tensor, level: Tensor, rows: int) -> Tensor:
        seen.append(level.clone())
        return bright(x, level, rows)

    policy.guide = Guide(watched, 0.0)
    assert torch.equal(pictures(policy.rollout(PROMPTS, group_size=2, plan=ODE, seed=SEED)), pictures(plain))
    assert [len(level) for level in seen] == [4] * len(seen) and len(seen) >= 2
    assert all(a[0] > b[0] > 0 for a, b in zip(seen, seen[1:], strict=False))
    policy.guide = Guide(bright, 0.5)
    steered = pictures(policy.rollout(PROMPTS, group_size=2, plan=ODE, seed=SEED))
    assert gap(steered, pictures(plain)) > 1e-3 and not steered.requires_grad
    again = policy.rollout(PROMPTS, group_size=2, plan=SDE, seed=SEED)
    assert torch.equal(pictures(again), pictures(trained))


def test_a_steered_row_alone_is_that_row_and_goes_where_the_reward_says() -> None:
    policy, final = FamilyPolicy("flux"), []
    policy.guide = Guide(bright, 0.2)
    together = pictures(policy.rollout(THREE, group_size=1, plan=ODE, seed=SEED))
    alone = pictures(policy.rollout(THREE[2:], group_size=1, plan=ODE, seed=SEED))
    assert gap(together[2:], alone) <= 1e-5
    for weight in (-0.2, 0.0, 0.2):
        policy.guide = Guide(bright, weight)
        decode = policy.source.vae.decode
        policy.source.vae.decode = lambda z, *a, _d=decode, **k: (final.append(float(z.sum())), _d(z, *a, **k))[1]
        policy.rollout(THREE[2:], group_size=1, plan=ODE, seed=SEED)
        policy.source.vae.decode = decode
    assert final[0] < final[1] < final[2]


def head(width: int) -> LatentReward:
    torch.manual_seed(0)
    return LatentReward(width).eval().requires_grad_(False)


@pytest.mark.parametrize("name", ["sd3", "qwen_image"])
def test_the_gradient_through_the_features_is_that_of_a_look(name: str) -> None:
    """Guidance as one call on twice the rows, and as two calls; the second row of two, and its level."""
    policy, level = FamilyPolicy(name), 0.6
    policy.prepare(PROMPTS[0], ODE)
    features = Features(policy.modules)
    starts = [Key(SEED, p.id, 0) for p in PROMPTS]

    def look(x: Tensor) -> Tensor:
        features.clear()
        policy.run(LookWalk({0: x}, 1, 1, At(level)), PROMPTS, starts, steps=2, grad=True)
        return features.take(2)

    shape = policy.rollout(PROMPTS, group_size=1, plan=replace(ODE, levels=(0.5,)), seed=SEED).replay.clean[0].shape
    x = torch.randn(shape, generator=torch.Generator().manual_seed(5)).requires_grad_()
    found = look(x)
    reward, at = head(found.shape[1]), torch.full((2,), level)
    slope = torch.autograd.grad(reward(found, at).sum(), x)[0]
    aside = torch.zeros_like(x.detach())
    aside[1] = torch.randn(shape[1:], generator=torch.Generator().manual_seed(6))
    with torch.no_grad():
        moved = [reward(look(x.detach() + e * aside), at) for e in (1e-2, -1e-2)]
    assert gap(moved[0][:1], moved[1][:1]) <= 1e-5  # the first row is left alone
    wanted = float(moved[0][1] - moved[1][1]) / 2e-2
    assert abs(wanted) > 1e-4 and abs(float((slope[1] * aside[1]).sum()) - wanted) <= 0.02 * abs(wanted)
    features.close()


def test_a_reward_of_another_call_is_refused(tmp_path: Path) -> None:
    policy = FamilyPolicy("flux")
    blocks = {name: latent_reward.blocks_of(module) for name, module in policy.modules.items()}
    latent_reward.save(head(7), tmp_path, {"blocks": blocks})
    reward, card = latent_reward.load(tmp_path)
    assert torch.equal(reward.layers[1].weight, head(7).layers[1].weight)
    policy.guide = guide_of(reward, card, policy.modules, 1.0, 0.95)
    with pytest.raises(PolicyError, match="reads 7 features .* fit it with the same model and guidance"):
        policy.rollout(PROMPTS, group_size=1, plan=ODE, seed=SEED)
    with pytest.raises(PolicyError, match="transformer.blocks.9, which this model does not have"):
        guide_of(reward, {"blocks": {"transformer": ["blocks.9"]}}, policy.modules, 1.0, 0.95)
    with pytest.raises(PolicyError, match="holds no latent reward .* `flowrl train-latent-reward` wrote"):
        latent_reward.load(tmp_path / "nowhere")
