"""A policy as the loop sees it, and the pipelines that it refuses."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from diffusers import DiffusionPipeline, FlowMatchEulerDiscreteScheduler, FluxPipeline
from torch import Tensor

import families
from flowrl.contracts import LogProbs, Prompt, View
from flowrl.core.backward import fill_reference
from flowrl.core.learning.learner import Learner
from flowrl.policies import adapters
from flowrl.policies.errors import PolicyError
from flowrl.policies.hosting import hosted
from flowrl.policies.pipelines.policy import PipelinePolicy
from flowrl.policies.pipelines.steps.dynamics import Dynamics
from flowrl.policies.weights import weights_of
from policies_support import (
    ODE,
    PROMPTS,
    SDE,
    SEED,
    STEPS,
    FamilyPolicy,
    gap,
    pictures,
    scaled,
    scores,
    shake,
    untouched,
    watched_steps,
)
from samplers.plan import Plan
from samplers.transitions import flow_sde


@pytest.fixture(scope="module")
def policy() -> FamilyPolicy:
    return FamilyPolicy("flux")


# ---------------------------------------------------------------------- samples


def test_a_sample_does_not_depend_on_its_company(policy: FamilyPolicy) -> None:
    whole = policy.rollout(PROMPTS, group_size=3, plan=SDE, seed=SEED)
    assert [p.id for p in whole.samples.prompts] == ["cat"] * 3 + ["dogs"] * 3
    assert whole.samples.group.tolist() == [0, 0, 0, 1, 1, 1]
    assert len({tuple(row.tolist()) for row in whole.rollout_logp}) == 6

    swapped = policy.rollout(PROMPTS[::-1], group_size=3, plan=SDE, seed=SEED)
    assert gap(pictures(swapped).roll(3, 0), pictures(whole)) <= 1e-5
    alone = policy.rollout(PROMPTS[1:], group_size=1, plan=SDE, seed=SEED, first=2)
    assert gap(pictures(alone)[0], pictures(whole)[5]) <= 1e-5
    assert gap(alone.rollout_logp[0], whole.rollout_logp[5]) <= 1e-5
    other = policy.rollout(PROMPTS, group_size=3, plan=SDE, seed=SEED + 1)
    assert gap(pictures(other), pictures(whole)) > 1e-3


def test_arguments_of_every_call_and_only_those_that_the_pipeline_takes() -> None:
    pipe = families.get("flux").build()
    call = dict(families.get("flux").call) | {"nobody_takes_this": 1}
    plain = PipelinePolicy(pipe, {"transformer": pipe.transformer}, Dynamics(flow_sde, 0.7), call=call)
    rollout = plain.rollout(PROMPTS, plan=ODE, seed=SEED)
    assert gap(pictures(rollout), untouched(FamilyPolicy("flux", pipe), PROMPTS)) <= 1e-5


def test_pictures_of_a_prompt_are_opened(tmp_path: Any) -> None:
    family = families.get("flux_img2img")
    pipe = family.build()
    media = []
    for prompt in PROMPTS:
        picture = families.base.image_for(prompt.text)
        picture.save(tmp_path / f"{prompt.id}.png")
        media.append(Prompt(prompt.id, prompt.text, (str(tmp_path / f"{prompt.id}.png"),)))
    plain = PipelinePolicy(pipe, {"transformer": pipe.transformer}, Dynamics(flow_sde, 0.7), call=dict(family.call))
    found = plain.rollout(media, plan=ODE, seed=SEED)
    assert gap(pictures(found), untouched(FamilyPolicy("flux_img2img", pipe), PROMPTS)) <= 1e-5


def test_the_pipeline_is_left_as_it_was() -> None:
    pipe = families.get("flux").build()
    before = dict(pipe.__dict__)
    kind, scheduler = type(pipe), type(pipe.scheduler)
    FamilyPolicy("flux", pipe).rollout(PROMPTS, plan=SDE, seed=SEED)
    assert type(pipe) is kind
    assert type(pipe.scheduler) is scheduler
    assert set(pipe.__dict__) == set(before)
    assert all(pipe.__dict__[key] is value for key, value in before.items())


# ---------------------------------------------------------------------- the reference


@pytest.mark.parametrize("name", ["flux", "wan22", "sd3_inpaint", "ltx2", "hunyuan_image"])
def test_the_reference_is_the_untouched_model(name: str) -> None:
    plans = [Plan(STEPS, (1, 2), (1, 2), share_noise=share_noise) for share_noise in (False, True)]
    policy, untrained, rows = FamilyPolicy(name), FamilyPolicy(name), torch.arange(4)
    adapters.add_lora(policy.modules, rank=2, alpha=4, targets="all")
    for plan in plans:
        start = policy.rollout(PROMPTS, group_size=2, plan=plan, seed=SEED)
        fill_reference(policy, start, rows, View(exact_kl=True))
        assert torch.equal(start.reference, start.rollout_logp)  # type: ignore[arg-type]
        assert divergences(policy, start) == [0.0] * 8

    shake(policy.modules)
    for plan in plans:
        moved = policy.rollout(PROMPTS, group_size=2, plan=plan, seed=SEED)
        for part in (rows[:1], rows[1:]):  # filled in piece by piece
            fill_reference(policy, moved, part, View(exact_kl=True))
        untrained.prepare(PROMPTS[0], plan)
        assert moved.reference is not None
        assert gap(scores(untrained, moved), moved.reference) <= 1e-5
        assert gap(moved.rollout_logp, moved.reference) > 1e-4
        assert all(value > 0 for value in divergences(policy, moved))
        assert torch.equal(scores(policy, moved), moved.rollout_logp), "the adapters must be on again"


def divergences(policy: FamilyPolicy, rollout: Any) -> list[float]:
    """The exact divergences of all decisions."""
    found: list[float] = []

    def visit(score: LogProbs) -> None:
        assert score.kl is not None
        found.extend(score.kl.flatten().tolist())

    policy.look(rollout, torch.arange(len(rollout.rollout_logp)), View(exact_kl=True), visit)
    return found


def test_the_exact_divergence_is_the_distance_of_the_means() -> None:
    policy = FamilyPolicy("flux")
    adapters.add_lora(policy.modules, rank=2, alpha=4)
    shake(policy.modules)
    rollout = policy.rollout(PROMPTS, plan=SDE, seed=SEED)
    fill_reference(policy, rollout, torch.arange(2), View(exact_kl=True))
    untrained = FamilyPolicy("flux")
    found: dict[int, Tensor] = {}

    def visit(score: LogProbs) -> None:
        assert score.kl is not None
        assert score.kl.requires_grad
        found[int(score.columns)] = score.kl[:, 0].detach()

    policy.look(rollout, torch.arange(2), View(exact_kl=True), visit)
    sigmas = policy.pipe.scheduler.sigmas.tolist()
    trajectory = rollout.replay
    for step in (1, 2):
        x = trajectory.enter[step][0]
        levels = {"noise": 0.7, "s_cap": sigmas[1]}
        own, other = (
            flow_sde(x, p.velocity(PROMPTS, x, step, plan=SDE, seed=SEED).detach(), *sigmas[step : step + 2], **levels)
            for p in (policy, untrained)
        )
        expected = ((own.mean - other.mean).square() / (2 * own.std**2)).flatten(1).mean(1)
        assert torch.allclose(found[step], expected, rtol=1e-3, atol=1e-8)
        assert float(expected.min()) > 1e-6


def test_the_reference_of_full_weights_is_a_copy() -> None:
    policy, untrained = FamilyPolicy("flux"), FamilyPolicy("flux")
    untrained.prepare(PROMPTS[0], SDE)
    adapters.train_full(policy.modules)
    learner = Learner(policy.trainable(), lr=0.1, reference=True)
    policy.weights = weights_of(policy.modules, learner.copies)
    with torch.no_grad():
        for parameter in policy.trainable():
            parameter.mul_(1.02)
    rollout = policy.rollout(PROMPTS, plan=SDE, seed=SEED)
    fill_reference(policy, rollout, torch.arange(2), View(exact_kl=True))
    assert rollout.reference is not None
    assert gap(scores(untrained, rollout), rollout.reference) <= 1e-5 < gap(rollout.rollout_logp, rollout.reference)
    assert all(value > 0 for value in divergences(policy, rollout))
    assert torch.equal(scores(policy, rollout), rollout.rollout_logp), "the trained weights must be back"
    with pytest.raises(RuntimeError, match="while gradient is recorded"), policy.weights("reference"):
        pass


def test_a_reference_needs_adapters(policy: FamilyPolicy) -> None:
    rollout = policy.rollout(PROMPTS, plan=SDE, seed=SEED)
    with pytest.raises(PolicyError, match="transformer has no LoRA adapter"):
        fill_reference(policy, rollout, torch.arange(2), View(exact_kl=True))


# ---------------------------------------------------------------------- velocity and decoding


@pytest.mark.parametrize("name", ["flux", "sd3", "z_image", "wan22", "mochi", "kandinsky5_t2v", "ltx2", "cosmos2"])
def test_a_velocity_is_the_one_that_the_rollout_saw(name: str) -> None:
    policy = FamilyPolicy(name)
    policy.prepare(PROMPTS[0], SDE)
    with watched_steps() as seen:
        policy.rollout(PROMPTS, plan=SDE, seed=SEED)
    for at in (1, 2):
        steps = [step for step, _ in seen if step.iteration == at]  # several calls where rows share none
        x = {s: torch.cat([step.x for step in steps if step.stream == s]) for s in {step.stream for step in steps}}
        x = {stream: state.requires_grad_() for stream, state in x.items()}
        v = policy.velocity(PROMPTS, x if len(x) > 1 else x[0], at, plan=SDE, seed=SEED)
        assert v.dtype == torch.float32
        assert gap(v.detach(), torch.cat([step.v for step in steps if step.stream == 0])) <= 1e-5
        (own,) = torch.autograd.grad(v.square().sum(), x[0], retain_graph=True)
        assert (own.flatten(1).abs().sum(1) > 0).all()
        weights = [p for m in policy.modules.values() for p in m.parameters()]
        grads = torch.autograd.grad(v.sum(), weights, allow_unused=True)
        assert any(g is not None and float(g.abs().max()) > 0 for g in grads)


def test_a_velocity_at_the_first_step_takes_the_given_state(policy: FamilyPolicy) -> None:
    policy.prepare(PROMPTS[0], SDE)
    with watched_steps() as seen:
        policy.rollout(PROMPTS, plan=SDE, seed=SEED)
    x = torch.randn(seen[0][0].x.shape, generator=torch.Generator().manual_seed(0)).requires_grad_()
    v = policy.velocity(PROMPTS, x, 0, plan=SDE, seed=SEED)
    assert gap(v.detach(), seen[0][0].v) > 1e-3
    same = policy.velocity(PROMPTS, seen[0][0].x, 0, plan=SDE, seed=SEED)
    assert gap(same.detach(), seen[0][0].v) <= 1e-5


@pytest.mark.parametrize("name", ["flux", "sd3", "qwen_image", "wan", "ltx", "hunyuan_video"])
def test_decoding_gives_the_pictures_of_the_rollout_with_gradient(name: str) -> None:
    policy = FamilyPolicy(name)
    with watched_steps() as seen:
        rollout = policy.rollout(PROMPTS, plan=SDE, seed=SEED)
    x = seen[-1][1].detach().clone().requires_grad_()
    found = policy.decode(PROMPTS, x, plan=SDE, seed=SEED)
    assert gap(found.detach(), pictures(rollout)) <= 1e-5
    (grad,) = torch.autograd.grad(found.square().sum(), x)
    assert (grad.flatten(1).abs().sum(1) > 0).all()
    with torch.no_grad():
        assert not policy.decode(PROMPTS, x, plan=SDE, seed=SEED).requires_grad


# ---------------------------------------------------------------------- refusals


def refused(pipe: Any, message: str, *, name: str = "flux") -> str:
    """The reason why a pipeline is refused, at the latest before its first rollout is returned."""
    with pytest.raises(PolicyError, match=message) as error:
        FamilyPolicy(name, pipe).rollout(PROMPTS[:1], plan=SDE, seed=SEED)
    assert "\n" not in str(error.value)
    return str(error.value)


def test_a_pipeline_of_another_kind_is_refused_by_its_scheduler() -> None:
    (name,) = families.OUTSIDE
    reason = refused(families.get(name).build(), "LCMScheduler", name=name)
    assert "epsilon" in reason


class Composite(DiffusionPipeline):
    """A pipeline that leaves the work to another one."""

    def __init__(self, scheduler: Any, transformer: Any):
        super().__init__()
        self.register_modules(scheduler=scheduler, transformer=transformer)

    @torch.no_grad()
    def __call__(self, prompt: list[str], generator: Any = None, num_inference_steps: int = 4, **rest: Any) -> Any:
        call = families.get("flux").call
        return self.inner(
            prompt, generator=generator, num_inference_steps=num_inference_steps, output_type="pt", **call
        )


class Bare(FluxPipeline):
    """A pipeline that is not wrapped by torch.no_grad."""

    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        return super().__call__(*args, **kwargs)


class Forgetful(FluxPipeline):
    """A pipeline whose initial noise comes from a generator of its own."""

    own = torch.Generator().manual_seed(0)

    def prepare_latents(self, *args: Any, **kwargs: Any) -> Any:
        latents, ids = super().prepare_latents(*args, **kwargs)
        return torch.randn(latents.shape, generator=self.own), ids


class ScaledFlowEuler(FlowMatchEulerDiscreteScheduler):
    """A scheduler whose steps are a tenth too short."""

    def step(self, model_output: Tensor, timestep: Any, sample: Tensor, *args: Any, **kwargs: Any) -> Any:
        stepped = super().step(model_output, timestep, sample, *args, **kwargs | {"return_dict": False})[0]
        return (sample + 0.9 * (stepped - sample),)


def flux_as(kind: type) -> Any:
    """The FLUX family as a subclass of its pipeline."""
    return kind(**families.get("flux").build().components)


def test_a_composite_pipeline_is_refused() -> None:
    inner = families.get("flux").build()
    outer = Composite(inner.scheduler, inner.transformer)
    outer.__dict__["inner"] = inner
    refused(outer, "Composite finished without calling its scheduler's step.*inner pipeline")


def test_a_pipeline_without_no_grad_to_look_beneath_is_refused() -> None:
    refused(flux_as(Bare), "Bare.__call__ is not wrapped by torch.no_grad")


def test_a_denoiser_that_changes_from_call_to_call_is_refused() -> None:
    pipe = families.get("flux").build()
    own, source = pipe.transformer.forward, torch.Generator().manual_seed(0)
    pipe.transformer.forward = lambda *a, **k: (own(*a, **k)[0] + torch.randn(1, generator=source),)
    refused(pipe, "replay of a step gives a log-prob .* outside `generator`")


def test_a_denoiser_that_draws_from_the_global_generator_is_replayed_with_its_draws() -> None:
    pipe = families.get("flux").build()
    own = pipe.transformer.forward
    pipe.transformer.forward = lambda *a, **k: (own(*a, **k)[0] + torch.randn(1),)
    policy = FamilyPolicy("flux", pipe)
    rollout = policy.rollout(PROMPTS, plan=SDE, seed=SEED)
    assert (policy.sharing.rows, policy.keeper.skip) == ("none", False)
    assert torch.equal(scores(policy, rollout, [1]), rollout.rollout_logp[[1]])


def test_a_pipeline_whose_start_changes_from_call_to_call_is_refused() -> None:
    refused(flux_as(Forgetful), "Forgetful: the replay of a step gives a log-prob")


def test_a_denoiser_under_no_grad_is_refused() -> None:
    pipe = families.get("flux").build()
    pipe.transformer.forward = torch.no_grad()(pipe.transformer.forward)
    refused(pipe, "no gradient reaches the log-prob")


def test_a_scheduler_that_is_not_euler_is_refused() -> None:
    pipe = families.get("flux").build()
    pipe.scheduler = ScaledFlowEuler.from_config(pipe.scheduler.config)
    refused(pipe, "a step at noise 0 differs from ScaledFlowEuler's own")


def test_a_step_that_the_loop_never_reaches_is_refused() -> None:
    policy = FamilyPolicy("flux_img2img")  # runs three of four steps
    with pytest.raises(PolicyError, match="step 3 is to be trained, but the pipeline's loop ended after 3 steps of 4"):
        policy.rollout(PROMPTS, plan=Plan(STEPS, (3,), (3,)), seed=SEED)


# ---------------------------------------------------------------------- memory and speed


def test_without_offload_all_stay() -> None:
    pipe = families.get("flux").build()
    policy = FamilyPolicy("flux", pipe)
    policy.rollout(PROMPTS, plan=SDE, seed=SEED)
    assert all(hosted(getattr(pipe, name), policy.device).on_device for name in ("text_encoder", "vae", "transformer"))


@pytest.mark.parametrize("part", ["transformer", "transformer_2"])
def test_one_of_two_denoisers_may_be_trained(part: str) -> None:
    pipe = families.get("wan22").build()
    pipe.transformer.requires_grad_(False)
    pipe.transformer_2.requires_grad_(False)
    modules = adapters.denoisers(pipe, [part])
    adapters.train_full(modules)
    call = dict(families.get("wan22").call)
    policy = PipelinePolicy(pipe, modules, Dynamics(flow_sde, 0.7), call=call)
    rollout = policy.rollout(PROMPTS, plan=SDE, seed=SEED)
    reached: list[int] = []
    policy.look(
        rollout,
        torch.arange(2),
        View(),
        lambda seen: reached.extend(seen.columns.tolist() * seen.logp.requires_grad),
    )
    assert reached == ([0, 1] if part == "transformer" else [2])


@pytest.mark.parametrize("name", ["flux", "sd3", "wan22"])
def test_gradient_checkpointing_changes_nothing(name: str) -> None:
    plain, saving = FamilyPolicy(name), FamilyPolicy(name)
    for module in saving.modules.values():
        module.enable_gradient_checkpointing()
        module.train()
    rollout = plain.rollout(PROMPTS, plan=SDE, seed=SEED)
    saving.prepare(PROMPTS[0], SDE)
    assert torch.equal(saving.rollout(PROMPTS, plan=SDE, seed=SEED).rollout_logp, rollout.rollout_logp)
    assert torch.equal(scores(saving, rollout), rollout.rollout_logp)
    expected, found = gradient(plain, rollout), gradient(saving, rollout)
    assert float(expected.abs().max()) > 1e-3
    assert gap(found, expected) <= 1e-4 * float(expected.abs().max())


def gradient(policy: FamilyPolicy, rollout: Any) -> Tensor:
    """The gradient of the sum of all log-probs, as one vector."""
    weights = list(policy.trainable())
    for parameter in weights:
        parameter.grad = None
    policy.look(rollout, torch.arange(2), View(), lambda seen: seen.logp.sum().backward())
    return torch.cat([torch.zeros_like(p).flatten() if p.grad is None else p.grad.flatten() for p in weights])


def test_gradients_of_pieces_add_up(policy: FamilyPolicy) -> None:
    rollout = policy.rollout(PROMPTS, plan=SDE, seed=SEED)
    whole = gradient(policy, rollout)
    for parameter in policy.trainable():
        parameter.grad = None
    for row in range(2):
        policy.look(rollout, torch.tensor([row]), View(), lambda seen: seen.logp.sum().backward())
    pieces = torch.cat(
        [torch.zeros_like(p).flatten() if p.grad is None else p.grad.flatten() for p in policy.trainable()]
    )
    assert gap(pieces, whole) <= 1e-5 * float(whole.abs().max())


def test_the_gradient_is_that_of_the_log_prob(policy: FamilyPolicy) -> None:
    rollout = policy.rollout(PROMPTS, plan=SDE, seed=SEED)
    along = gradient(policy, rollout)
    weights = torch.cat([p.detach().flatten() for p in policy.trainable()])
    size = 1e-4
    sums = []
    for factor in (1 + size, 1 - size):
        with scaled(policy.modules, factor):
            sums.append(float(scores(policy, rollout).double().sum()))
    slope = (sums[0] - sums[1]) / (2 * size)
    assert slope == pytest.approx(float(along @ weights), rel=2e-2)
