"""A row is what it is alone, whatever shares its call: pictures, padding, generators, the global generator, caches."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from diffusers import FluxPipeline

import families
from flowrl.contracts import LogProbs, Prompt, View
from flowrl.policies.pipelines.policy import PipelinePolicy
from flowrl.policies.pipelines.probing.sharing import Sharing
from flowrl.policies.pipelines.steps.dynamics import Dynamics
from policies_support import PROMPTS, SDE, SEED, FamilyPolicy, gap, pictures, scores
from samplers.plan import Plan
from samplers.transitions import flow_sde

ROWS = ([1], [2], [3], [2, 3], [3, 0])
LONG = Prompt("long", "seven very small and very old green houses by the sea")


def with_pictures(
    name: str, folder: Path, prompts: list[Prompt], size: int = 16
) -> tuple[PipelinePolicy, list[Prompt]]:
    """A family's pipeline as a recipe calls it, and prompts with a picture file each."""
    family = families.get(name)
    pipe = family.build()
    found = []
    for prompt in prompts:
        path = folder / f"{prompt.id}.png"
        families.base.image_for(prompt.text, size).save(path)
        found.append(Prompt(prompt.id, prompt.text, (str(path),)))
    modules = {part: getattr(pipe, part) for part in family.modules}
    return PipelinePolicy(pipe, modules, Dynamics(flow_sde, 0.7), call=dict(family.call)), found


def assert_rows_are_their_own(policy: PipelinePolicy, prompts: list[Prompt], accepted: float = 2e-6) -> None:
    """Of a group and of two prompts: rows replayed alone and the samples of other calls are those of the rollout."""
    group = policy.rollout(prompts[:1], group_size=4, plan=SDE, seed=SEED)
    for rows in ROWS:
        assert gap(scores(policy, group, rows), group.rollout_logp[rows]) <= accepted
    pair = policy.rollout(prompts, plan=SDE, seed=SEED)
    assert gap(pair.rollout_logp[0], group.rollout_logp[0]) <= accepted
    for row in range(len(prompts)):
        assert gap(scores(policy, pair, [row]), pair.rollout_logp[[row]]) <= accepted
    assert len({tuple(row.tolist()) for row in group.rollout_logp}) == 4
    assert gap(pictures(group)[:1], pictures(group)[1:2]) > 1e-3


@pytest.mark.parametrize("name", ["flux_img2img", "sdxl_img2img"])
def test_rows_of_one_picture_have_a_posterior_each(name: str, tmp_path: Path) -> None:
    policy, prompts = with_pictures(name, tmp_path, PROMPTS)
    if name == "sdxl_img2img":
        policy.dynamics = FamilyPolicy("sdxl_img2img").dynamics
    assert_rows_are_their_own(policy, prompts, 1e-5)
    assert policy.sharing == Sharing("any", "each")


def test_pictures_that_a_pipeline_takes_as_references_of_all_rows_are_given_once(tmp_path: Path) -> None:
    policy, prompts = with_pictures("flux2_klein", tmp_path, PROMPTS, 64)
    assert_rows_are_their_own(policy, prompts)
    assert policy.sharing == Sharing("prompt", "once")


class OneSeed(FluxPipeline):
    """A pipeline that seeds all rows of a call by the first (GLM-Image, EasyAnimate)."""

    def prepare_latents(self, *args: Any, **kwargs: Any) -> Any:
        latents, ids = super().prepare_latents(*args, **kwargs)
        generator = next(a for a in args if isinstance(a, list) and isinstance(a[0], torch.Generator))[0]
        return latents + torch.randn(latents.shape, generator=generator), ids


class Unseeded(FluxPipeline):
    """A pipeline that draws without its generator (JoyImageEdit)."""

    def prepare_latents(self, *args: Any, **kwargs: Any) -> Any:
        latents, ids = super().prepare_latents(*args, **kwargs)
        return torch.randn_like(latents), ids


class Faint(FluxPipeline):
    """The same, so narrowly that no replay would show it (the posterior of a trained autoencoder)."""

    def prepare_latents(self, *args: Any, **kwargs: Any) -> Any:
        latents, ids = super().prepare_latents(*args, **kwargs)
        return latents + 1e-6 * torch.randn_like(latents), ids


class Averaging(FluxPipeline):
    """A pipeline whose state is normed over the batch (Kandinsky 5, image to video)."""

    def prepare_latents(self, *args: Any, **kwargs: Any) -> Any:
        latents, ids = super().prepare_latents(*args, **kwargs)
        return latents / latents.std(), ids


@pytest.mark.parametrize("pipeline", [OneSeed, Unseeded, Faint, Averaging])
def test_rows_that_change_with_their_company_are_called_one_by_one(pipeline: type) -> None:
    pipe = families.get("flux").build()
    pipe.__class__ = pipeline
    policy = FamilyPolicy("flux", pipe)
    before = torch.random.get_rng_state()
    assert_rows_are_their_own(policy, [PROMPTS[0], LONG])
    assert policy.sharing.rows == "none"
    assert torch.equal(torch.random.get_rng_state(), before), "the caller's generator goes on from where it was"


@pytest.mark.parametrize("name", ["cogview4", "kandinsky5_t2v"])
def test_where_padding_counts_the_size_of_a_call_changes_no_sample(name: str) -> None:
    policy = FamilyPolicy(name)
    prompts = [*PROMPTS, LONG, Prompt("b", "a hat")]
    plan = Plan(4, (1, 2), (1, 2), share_noise=True)
    whole = policy.rollout(prompts, group_size=2, plan=plan, seed=SEED)
    assert policy.sharing.rows == "prompt"
    for rows in ([0], [1, 6], [7, 2, 5]):
        assert gap(scores(policy, whole, rows), whole.rollout_logp[rows]) <= 2e-6
    for size in (1, 4):
        policy.max_rows = size
        again = policy.rollout(prompts, group_size=2, plan=plan, seed=SEED)
        assert gap(again.rollout_logp, whole.rollout_logp) <= 2e-6
        assert gap(pictures(again), pictures(whole)) <= 1e-5
    policy.max_rows = None
    others = policy.rollout(prompts[1::2], group_size=2, plan=plan, seed=SEED)  # as a rank draws its own
    assert gap(pictures(others), pictures(whole).unflatten(0, (-1, 2))[1::2].flatten(0, 1)) <= 1e-5
    x = torch.cat([policy.rollout([p], plan=SDE, seed=SEED).replay.enter[1][0] for p in prompts])
    together = policy.velocity(prompts, x, 1, plan=SDE, seed=SEED)
    alone = [policy.velocity([p], x[i : i + 1], 1, plan=SDE, seed=SEED) for i, p in enumerate(prompts)]
    assert gap(together.detach(), torch.cat(alone).detach()) <= 1e-6


@pytest.mark.parametrize("name", ["flux2_klein_kv", "hunyuan_image"])
def test_a_gradient_reaches_through_what_earlier_steps_left_behind(name: str) -> None:
    policy = FamilyPolicy(name, dynamics={"precision": torch.float64})
    for module in policy.modules.values():
        module.requires_grad_(True)
    rollout = policy.rollout(PROMPTS[:1], plan=SDE, seed=SEED)
    assert not policy.keeper.skip
    weights = [p for m in policy.modules.values() for p in m.parameters()]
    generator = torch.Generator().manual_seed(0)
    way = [torch.randn(p.shape, generator=generator) * p.detach().std().nan_to_num(0.1) for p in weights]
    slope: list[float] = []

    def visit(score: LogProbs) -> None:
        if int(score.columns) == 2:
            grads = torch.autograd.grad(score.logp.sum(), weights, allow_unused=True)
            slope.append(sum(float((g * w).sum()) for g, w in zip(grads, way, strict=True) if g is not None))

    policy.look(rollout, torch.tensor([0]), View(), visit)
    assert slope[0] == pytest.approx(difference(policy, rollout, weights, way), rel=0.02)


def difference(policy: PipelinePolicy, rollout: Any, weights: list, way: list, size: float = 2e-3) -> float:
    """The slope of the last step's log-prob along a way, by a central difference."""
    found = []
    for sign in (1, -1):
        with torch.no_grad():
            torch._foreach_add_(weights, way, alpha=sign * size)
            found.append(float(scores(policy, rollout)[0, 2].double()))
            torch._foreach_add_(weights, way, alpha=-sign * size)
    return (found[0] - found[1]) / (2 * size)
