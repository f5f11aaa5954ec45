"""Pipelines that predict noise, v or the image: DDIM's table, DDIM's step, and what has no density refused."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from diffusers import (
    CogVideoXDDIMScheduler,
    DDIMScheduler,
    DDPMScheduler,
    DPMSolverMultistepScheduler,
    EulerDiscreteScheduler,
    HeunDiscreteScheduler,
    PNDMScheduler,
)
from torch import Tensor

import golden
from families.noise import SHIPPED, STABLE
from flowrl.contracts import LogProbs, View
from flowrl.core.backward import fill_reference
from flowrl.policies import adapters
from flowrl.policies.errors import PolicyError
from flowrl.policies.pipelines.steps.ddim import amplitudes, ddim_of, predicts_noise
from flowrl.policies.pipelines.steps.intercepted import Session, Step, intercept
from flowrl.policies.pipelines.walks.replay import Dynamics
from golden import Case, tensor
from policies_support import PROMPTS, SDE, SEED, FamilyPolicy, gap, pictures, scores, shake
from samplers.gaussian import Gaussian
from samplers.plan import OwnTable, Plan
from samplers.transitions import flow_sde


class Asking:
    """A walk that keeps the distribution of each next state and goes on with given draws, or with the mean."""

    rows = 2
    table = OwnTable()

    def __init__(self, eta: float, noise: Tensor | None = None):
        self.dynamics, self.noise = Dynamics(flow_sde, eta), noise
        self.seen: list[tuple[Step, Gaussian]] = []

    def is_real(self, iteration: int) -> bool:
        return True

    def skipped_state(self, iteration: int, stream: int) -> Tensor:
        raise AssertionError("nothing is skipped")

    def step(self, step: Step) -> Tensor:
        gaussian = self.dynamics.gaussian(step, stochastic=True)
        self.seen.append((step, gaussian))
        return gaussian.mean if self.noise is None else gaussian.sample(self.noise)


def begun(own: Any, walk: Asking, *, steps: int) -> Any:
    session = Session()
    scheduler = intercept(own, session)
    scheduler.set_timesteps(steps)
    session.begin(walk)
    return scheduler


def stable(kind: Any = DDIMScheduler, **options: Any) -> Any:
    more = {"clip_sample": False, "set_alpha_to_one": False} if kind is DDIMScheduler else {}
    return kind(**(STABLE | more | options))


@pytest.mark.parametrize("case", golden.cases("samplers/ddim_eta.json"))
def test_a_model_output_gives_the_published_step(case: Case) -> None:
    """The intercepted scheduler is fed what a denoiser would have said, a row at a time: rows stand at other steps."""
    params, inputs = case["params"], {name: tensor(v) for name, v in case["inputs"].items() if name[0] != "a"}
    found: dict[str, list[Tensor]] = {"prev_sample": [], "log_prob": [], "std": []}
    for row, t in enumerate(inputs["timestep"]):
        one = {name: value[row : row + 1] for name, value in inputs.items()}
        walk = Asking(params["eta"], one.get("noise"))
        scheduler = begun(stable(prediction_type=params["prediction_type"]), walk, steps=params["num_steps"])
        drawn = scheduler.step(one["model_output"], t, one["sample"], return_dict=False)[0]
        drawn, gaussian = one.get("prev_sample", drawn), walk.seen[0][1]
        found["prev_sample"].append(drawn)
        found["log_prob"].append(gaussian.log_prob(drawn))
        found["std"].append(gaussian.std.reshape(1))
    golden.check({name: torch.cat(values) for name, values in found.items()}, case)


def noise_at(t: int) -> Tensor:
    return torch.randn(2, 4, 3, 3, generator=torch.Generator().manual_seed(t))


def drive(scheduler: Any, x: Tensor, **options: Any) -> list[Tensor]:
    """A pipeline's loop with a made-up model."""
    states = []
    for t in scheduler.timesteps:
        getattr(scheduler, "_session", Session()).fresh = True
        output = x / 2 + noise_at(int(t)) * 0.3
        x = scheduler.step(output, t, x, return_dict=False, **options)[0]
        states.append(x)
    return states


TABLES = [
    ({}, 5),
    ({"set_alpha_to_one": True, "steps_offset": 0}, 7),
    ({"timestep_spacing": "trailing"}, 6),  # 6 does not divide 1000: DDIM's own strides do not meet
    ({"timestep_spacing": "linspace", "beta_schedule": "squaredcos_cap_v2"}, 4),
    ({"rescale_betas_zero_snr": True, "timestep_spacing": "trailing"}, 5),  # begins at s = 1
]


@pytest.mark.parametrize(
    ("prediction", "options", "steps"),
    [
        (prediction, options, steps)
        for prediction in ("epsilon", "v_prediction", "sample")
        for options, steps in TABLES
        if prediction != "epsilon" or "rescale_betas_zero_snr" not in options  # refused, see below
    ],
)
def test_without_noise_its_steps_are_ddims_and_with_noise_too(prediction: str, options: dict, steps: int) -> None:
    own, x = stable(prediction_type=prediction, **options), noise_at(10**6)
    for eta in (0.0, 0.6):
        walk = Asking(eta)
        scheduler = begun(own, walk, steps=steps)
        assert isinstance(scheduler, DDIMScheduler) and scheduler.config is own.config
        reference = stable(prediction_type=prediction, **options)
        reference.set_timesteps(steps)
        quiet = torch.zeros_like(x)
        expected = drive(reference, x, eta=eta, variance_noise=quiet)
        for mine, theirs in zip(drive(scheduler, x, eta=0.0, generator=None), expected, strict=True):
            assert gap(mine, theirs) <= 1e-5 * (1 + float(theirs.abs().max()))
        assert {step.path for step, _ in walk.seen} == {"preserving"}
        for t, (step, gaussian) in zip(reference.timesteps.tolist(), walk.seen, strict=True):
            variance = float(reference._get_variance(t, t - 1000 // steps))
            assert float(gaussian.std) == pytest.approx(eta * variance**0.5, rel=1e-3, abs=1e-7)
            assert (
                gap(step.scheduler_reference.step(), reference.step(*twin_arguments(step), return_dict=False)[0]) == 0
            )
            assert step.scheduler_reference.is_comparable


def twin_arguments(step: Step) -> tuple:
    return step.scheduler_reference._args[:3]


def test_the_velocity_is_noise_less_image() -> None:
    """A model that knows x_0 and eps gives v = eps - x_0, whichever of the three it predicts."""
    image, noise = noise_at(1), noise_at(2)
    for prediction in ("epsilon", "v_prediction", "sample"):
        walk = Asking(0.0)
        scheduler = begun(stable(prediction_type=prediction), walk, steps=5)
        t = scheduler.timesteps[1]
        alpha = float(scheduler.alphas_cumprod[t])
        a, s = alpha**0.5, (1 - alpha) ** 0.5
        output = {"epsilon": noise, "v_prediction": a * noise - s * image, "sample": image}[prediction]
        scheduler.step(output, t, a * image + s * noise)
        step = walk.seen[0][0]
        assert (step.s, step.s_next) == pytest.approx((s, (1 - float(scheduler.alphas_cumprod[t - 200])) ** 0.5))
        assert gap(step.v, noise - image) <= 1e-5


def test_the_table_ends_where_the_scheduler_says() -> None:
    for to_one, last in ((True, 0.0), (False, (1 - 0.99915) ** 0.5)):
        scheduler = stable(set_alpha_to_one=to_one)
        scheduler.set_timesteps(50)
        table = amplitudes(scheduler)
        assert len(table) == 50 and table[-1][1] == pytest.approx(last, abs=1e-6)
        assert [s_next for _, s_next in table[:-1]] == [s for s, _ in table[1:]]
        assert all(s > s_next for s, s_next in table)
    scheduler.set_timesteps(1000)
    with pytest.raises(PolicyError, match="lower sampler.steps"):
        amplitudes(scheduler)


def test_a_step_index_is_found_anywhere_in_the_walk_and_starts_anew() -> None:
    """Image-to-image begins in the middle; every pass sets the timesteps again."""
    walk = Asking(0.0)
    scheduler = begun(stable(), walk, steps=5)
    for start in (2, 0, 4):
        scheduler.set_timesteps(5)
        assert scheduler.step_index is None
        scheduler.step(noise_at(0), scheduler.timesteps[start], noise_at(1))
        assert scheduler.step_index == start + 1
        assert walk.seen[-1][0].s == amplitudes(scheduler)[start][0]


# ---------------------------------------------------------------------- whose scheduler is walked


def test_other_schedulers_give_way_to_ddim_on_their_own_table() -> None:
    ddim = stable()
    assert ddim_of(ddim) is ddim
    pndm = ddim_of(stable(PNDMScheduler, skip_prk_steps=True))
    assert float(pndm.final_alpha_cumprod) == float(pndm.alphas_cumprod[0])  # PNDM's default
    euler = ddim_of(stable(EulerDiscreteScheduler))
    assert float(euler.final_alpha_cumprod) == 1.0  # Euler's last sigma is 0
    for found in (pndm, euler):
        assert torch.equal(found.alphas_cumprod, ddim.alphas_cumprod)
        assert not found.config.clip_sample and found.config.steps_offset == 1
    # what a scheduler walks by default is what its DDIM walks, though DDIM's own default is another
    assert (euler.config.timestep_spacing, pndm.config.timestep_spacing) == ("linspace", "leading")
    euler.set_timesteps(5)
    own = stable(EulerDiscreteScheduler)
    own.set_timesteps(5)
    assert gap(euler.timesteps, own.timesteps) <= 0.5
    trailing = stable(DPMSolverMultistepScheduler, timestep_spacing="trailing", prediction_type="v_prediction")
    config = ddim_of(trailing).config
    assert (config.timestep_spacing, config.prediction_type) == ("trailing", "v_prediction")
    assert type(ddim_of(HeunDiscreteScheduler())) is DDIMScheduler


def test_what_a_pipeline_reads_of_a_scheduler_that_ddim_stands_in_for_is_told_by_its_name() -> None:
    stand_in = intercept(EulerDiscreteScheduler(), Session())
    assert not hasattr(stand_in, "sigmas") and stand_in.init_noise_sigma == 1.0
    with pytest.raises(AttributeError, match="the pipeline reads 'sigmas' of its scheduler, which DDIM does not have"):
        stand_in.sigmas  # noqa: B018


def test_a_shipped_scheduler_file_keeps_what_only_ddim_reads() -> None:
    """SDXL's file names set_alpha_to_one, which its Euler scheduler does not know but hands on."""
    shipped = EulerDiscreteScheduler.from_config(SHIPPED)
    found = ddim_of(shipped)
    assert float(found.final_alpha_cumprod) == float(found.alphas_cumprod[0])


def test_a_table_that_its_options_do_not_give_is_taken_over() -> None:
    own = CogVideoXDDIMScheduler(clip_sample=False, snr_shift_scale=3.0, set_alpha_to_one=False)
    assert float(ddim_of(own).final_alpha_cumprod) == float(own.alphas_cumprod[0])
    plain = CogVideoXDDIMScheduler(clip_sample=False, snr_shift_scale=1.0)
    assert torch.equal(ddim_of(own).alphas_cumprod, own.alphas_cumprod)
    assert gap(own.alphas_cumprod, plain.alphas_cumprod) > 0.1


@pytest.mark.parametrize(
    ("scheduler", "words"),
    [
        (DDIMScheduler(), "clip_sample=true"),
        (DDPMScheduler(), "clip_sample=true"),
        (DDIMScheduler(clip_sample=False, thresholding=True), "thresholding=true"),
        (DPMSolverMultistepScheduler(thresholding=True), "thresholding=true"),
        (stable(rescale_betas_zero_snr=True), "rescale_betas_zero_snr=true"),
    ],
)
def test_what_leaves_no_density_is_refused(scheduler: Any, words: str) -> None:
    assert predicts_noise(scheduler)
    with pytest.raises(PolicyError, match=words) as error:
        intercept(scheduler, Session())
    assert type(scheduler).__name__ in str(error.value) and "\n" not in str(error.value)
    assert "scheduler_config.json" in str(error.value)


def test_predicted_variances_are_refused() -> None:
    scheduler = begun(stable(), Asking(0.0), steps=5)
    with pytest.raises(PolicyError, match="variances"):
        scheduler.step(torch.ones(2, 8, 3, 3), scheduler.timesteps[0], torch.zeros(2, 4, 3, 3))


# ---------------------------------------------------------------------- whole policies


@pytest.mark.parametrize("name", ["sd15", "sdxl"])
def test_the_noise_of_a_policy_is_eta(name: str) -> None:
    """The std of every step is eta times that of DDPM's posterior, and a larger one draws further away."""
    policies = {eta: FamilyPolicy(name, noise=eta) for eta in (0.2, 1.0)}
    rollouts = {eta: policy.rollout(PROMPTS, plan=SDE, seed=SEED) for eta, policy in policies.items()}
    quiet = pictures(policies[1.0].rollout(PROMPTS, plan=Plan(SDE.num_steps, (), ()), seed=SEED))
    distance = {eta: float((pictures(r) - quiet).abs().mean()) for eta, r in rollouts.items()}
    assert 1e-3 < distance[0.2] < distance[1.0]
    for eta, rollout in rollouts.items():
        assert torch.equal(scores(policies[eta], rollout), rollout.rollout_logp)


def test_the_last_step_can_be_trained_where_it_does_not_end_at_the_image() -> None:
    """SD 1.5's table ends at alphas_cumprod[0]; CogVideoX's at 1, where the last step has nothing to draw."""
    plan = Plan(SDE.num_steps, (3,), (3,))
    for name, drawn in (("sd15", True), ("cogvideox", False)):
        policy = FamilyPolicy(name, noise=1.0)
        policy.prepare(PROMPTS[0], plan)
        rollout = policy.rollout(PROMPTS, plan=plan, seed=SEED)
        assert rollout.mask.all() == drawn and rollout.mask.any() == drawn
        assert torch.equal(scores(policy, rollout), rollout.rollout_logp)


def test_the_divergence_from_the_reference_begins_at_zero() -> None:
    policy = FamilyPolicy("sdxl", noise=1.0)
    adapters.add_lora(policy.modules, rank=2, alpha=4)
    rollout = policy.rollout(PROMPTS, plan=SDE, seed=SEED)
    rows = torch.arange(len(PROMPTS))
    found: list[Tensor] = []

    def visit(score: LogProbs) -> None:
        assert score.kl is not None
        found.append(score.kl.detach())

    fill_reference(policy, rollout, rows, View(exact_kl=True))
    for moved in (False, True):
        found.clear()
        policy.look(rollout, rows, View(exact_kl=True), visit)
        assert len(found) == len(SDE.trained)
        assert all(bool((kl > 0).all() if moved else (kl == 0).all()) for kl in found)
        shake(policy.modules)
