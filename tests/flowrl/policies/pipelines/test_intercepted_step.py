"""The intercepted step: genuine in all but `step`, and right about where on the flow it stands."""

from __future__ import annotations

import copy
from typing import Any

import pytest
import torch
from diffusers import (
    EDMEulerScheduler,
    EulerDiscreteScheduler,
    FlowMatchEulerDiscreteScheduler,
    FlowMatchHeunDiscreteScheduler,
    LCMScheduler,
    UniPCMultistepScheduler,
)
from diffusers.schedulers.scheduling_utils import SchedulerOutput
from torch import Tensor

from flowrl.policies.errors import PolicyError
from flowrl.policies.pipelines.steps.first_order import predicts_flow
from flowrl.policies.pipelines.steps.intercepted import Session, Step, intercept
from samplers.plan import OwnTable
from samplers.schedules import shifted
from samplers.tables import Merged, Shifted
from samplers.transitions import flow_sde


class Euler:
    """A walk that takes Euler steps and remembers them; iterations below `begin` are not real."""

    rows = 2
    table = OwnTable()

    def __init__(self, begin: int = 0):
        self.begin = begin
        self.seen: list[Step] = []

    def is_real(self, iteration: int) -> bool:
        return iteration >= self.begin

    def skipped_state(self, iteration: int, stream: int) -> Tensor:
        return torch.full((2, 4), float(iteration))

    def step(self, step: Step) -> Tensor:
        self.seen.append(step)
        return step.x + step.v * (step.s_next - step.s)


def begun(own: Any = None, *, steps: int = 4, begin: int = 0) -> tuple[Any, Euler]:
    """An intercepted scheduler at the start of a walk."""
    session, walk = Session(), Euler(begin)
    scheduler = intercept(FlowMatchEulerDiscreteScheduler(shift=3.0) if own is None else own, session)
    scheduler.set_timesteps(steps)
    session.begin(walk)
    return scheduler, walk


def drive(scheduler: Any, x: Tensor, **options: Any) -> list[Tensor]:
    """A pipeline's loop with the velocity x / 2 + 1."""
    states = []
    for t in scheduler.timesteps:
        scheduler.__dict__.get("_session", Session()).fresh = True
        x = scheduler.step(x / 2 + 1, t, x, return_dict=False, **options)[0]
        states.append(x)
    return states


def test_all_but_the_step_is_genuine() -> None:
    own = FlowMatchEulerDiscreteScheduler(shift=3.0)
    scheduler, _ = begun(own)
    assert isinstance(scheduler, FlowMatchEulerDiscreteScheduler)
    assert type(scheduler).__name__ == "FlowMatchEulerDiscreteScheduler"
    assert scheduler.config is own.config
    assert scheduler.order == 1
    assert type(own) is FlowMatchEulerDiscreteScheduler
    assert len(own.sigmas) == 1000  # set_timesteps on the copy left the original alone
    sample = torch.ones(1)
    assert scheduler.scale_model_input(sample) is sample


def test_euler_steps_are_those_of_the_scheduler() -> None:
    own = FlowMatchEulerDiscreteScheduler(shift=3.0)
    scheduler, walk = begun(own)
    own.set_timesteps(4)
    x = torch.randn(2, 4, generator=torch.Generator().manual_seed(0))
    for found, expected in zip(drive(scheduler, x), drive(own, x), strict=True):
        assert torch.equal(found, expected)
    assert [s.iteration for s in walk.seen] == [0, 1, 2, 3]
    assert [s.s for s in walk.seen] == own.sigmas[:-1].tolist()
    assert [s.s_next for s in walk.seen] == own.sigmas[1:].tolist()
    assert {s.s_cap for s in walk.seen} == {float(own.sigmas[1])}
    assert {s.path for s in walk.seen} == {"flow"}
    assert all(s.kept is None for s in walk.seen)


def test_the_twin_is_the_schedulers_own_step_and_leaves_no_trace() -> None:
    scheduler, walk = begun()
    x = torch.randn(2, 4, generator=torch.Generator().manual_seed(0))
    twins: list[Tensor] = []

    def step(seen: Step) -> Tensor:
        before = scheduler.step_index
        twins.append(seen.scheduler_reference.step())
        assert seen.scheduler_reference.is_comparable
        assert scheduler.step_index == before
        return Euler.step(walk, seen)

    walk.step = step  # type: ignore[method-assign]
    states = drive(scheduler, x)
    assert all(torch.equal(a, b) for a, b in zip(twins, states, strict=True))


def test_multistep_schedulers_are_compared_at_their_first_step_only() -> None:
    own = UniPCMultistepScheduler(prediction_type="flow_prediction", use_flow_sigmas=True, flow_shift=3.0)
    scheduler, walk = begun(own)
    comparable: list[bool] = []

    def step(seen: Step) -> Tensor:
        comparable.append(seen.scheduler_reference.is_comparable)
        if comparable[-1]:
            assert float((seen.scheduler_reference.step() - Euler.step(walk, seen)).abs().max()) <= 1e-5
        return Euler.step(walk, seen)

    walk.step = step  # type: ignore[method-assign]
    drive(scheduler, torch.ones(2, 4))
    assert comparable == [True, False, False, False]


def test_a_result_is_a_tuple_or_an_output_as_asked() -> None:
    scheduler, _ = begun()
    x = torch.ones(2, 4)
    assert isinstance(scheduler.step(x, scheduler.timesteps[0], x), SchedulerOutput)
    assert isinstance(scheduler.step(x, scheduler.timesteps[1], x, return_dict=False), tuple)


def test_skipped_iterations_return_the_recorded_state() -> None:
    scheduler, walk = begun(begin=2)
    states = drive(scheduler, torch.zeros(2, 4))
    assert [float(s[0, 0]) for s in states[:2]] == [0.0, 1.0]
    assert [s.iteration for s in walk.seen] == [2, 3]
    assert torch.equal(walk.seen[0].x, torch.ones(2, 4))
    assert walk.seen[0].s == float(scheduler.sigmas[2])


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_the_fine_state_is_kept_behind_the_rounded_one(dtype: torch.dtype) -> None:
    scheduler, walk = begun()
    x = torch.randn(2, 4, generator=torch.Generator().manual_seed(0)).to(dtype)
    states = drive(scheduler, x)
    assert all(s.dtype == dtype for s in states)
    first = walk.seen[0]
    fine = first.x + first.v * (first.s_next - first.s)
    assert torch.equal(walk.seen[1].x, fine)
    assert not torch.equal(states[0].float(), fine)


@pytest.mark.parametrize("in_place", [True, False])
def test_what_the_pipeline_overwrites_is_found(in_place: bool) -> None:
    scheduler, walk = begun()
    out = scheduler.step(torch.ones(2, 4), scheduler.timesteps[0], torch.zeros(2, 4), return_dict=False)[0]
    changed = out if in_place else out.clone()
    changed[:, :2] = 9.0
    scheduler._session.fresh = True
    scheduler.step(torch.ones(2, 4), scheduler.timesteps[1], changed, return_dict=False)
    kept = walk.seen[1].kept
    assert kept is not None
    assert kept.tolist() == [[False, False, True, True]] * 2
    assert torch.equal(walk.seen[1].x, changed)


def test_writing_into_a_result_does_not_reach_the_recorded_state() -> None:
    scheduler, walk = begun()
    out = scheduler.step(torch.ones(2, 4), scheduler.timesteps[0], torch.zeros(2, 4), return_dict=False)[0]
    state = walk.seen[0].x + walk.seen[0].v * (walk.seen[0].s_next - walk.seen[0].s)
    out.zero_()
    assert torch.equal(scheduler._returned.state, state)


def test_a_new_walk_is_not_compared_with_the_last_one() -> None:
    scheduler, walk = begun()
    scheduler.step(torch.ones(2, 4), scheduler.timesteps[0], torch.zeros(2, 4))
    scheduler._session.begin(walk)
    scheduler.set_timesteps(4)
    scheduler.step(torch.ones(2, 4), scheduler.timesteps[0], torch.ones(2, 4))
    assert walk.seen[1].iteration == 0
    assert walk.seen[1].kept is None


def test_latents_that_change_shape_are_refused() -> None:
    scheduler, _ = begun()
    scheduler.step(torch.ones(2, 4), scheduler.timesteps[0], torch.zeros(2, 4))
    with pytest.raises(PolicyError, match="latents change shape"):
        scheduler.step(torch.ones(2, 8), scheduler.timesteps[1], torch.zeros(2, 8))


def test_inverted_sigmas_become_shares_of_noise() -> None:
    own = FlowMatchEulerDiscreteScheduler(invert_sigmas=True)
    scheduler, walk = begun(own)
    own.set_timesteps(4)
    x = torch.randn(2, 4, generator=torch.Generator().manual_seed(0))
    for found, expected in zip(drive(scheduler, x), drive(own, x), strict=True):
        assert float((found - expected).abs().max()) <= 1e-6
    assert [s.s for s in walk.seen] == [1 - s for s in own.sigmas[:-1].tolist()]
    assert all(s.s > s.s_next for s in walk.seen)
    assert torch.equal(walk.seen[0].v, -(x / 2 + 1))


def test_levels_above_one_are_variance_exploding() -> None:
    scheduler, walk = begun(FlowMatchEulerDiscreteScheduler(use_karras_sigmas=True))
    scheduler.set_timesteps(sigmas=[80.0, 8.0, 0.1])
    drive(scheduler, torch.ones(2, 4))
    assert {s.path for s in walk.seen} == {"exploding"}


def test_tokens_have_levels_of_their_own() -> None:
    own = FlowMatchEulerDiscreteScheduler(shift=1.0)
    scheduler, walk = begun(own)
    own.set_timesteps(4)
    x = torch.randn(2, 3, 5, generator=torch.Generator().manual_seed(0))
    t = scheduler.timesteps[1]
    tokens = torch.stack([torch.tensor([float(t), 0.0, 500.0])] * 2)
    found = scheduler.step(x / 2, t, x, per_token_timesteps=tokens, return_dict=False)[0]
    expected = own.step(x / 2, t, x, per_token_timesteps=tokens, return_dict=False)[0]
    assert float((found - expected).abs().max()) <= 1e-6
    step = walk.seen[0]
    assert isinstance(step.s, Tensor)
    assert torch.equal(step.s[..., 0], tokens / 1000)
    assert float(step.s_next[0, 1, 0]) == 0.0  # type: ignore[index]
    assert torch.equal(found[:, 1], x[:, 1])  # a token at level 0 stays


def test_deep_copies_are_streams_of_the_same_session() -> None:
    scheduler, walk = begun()
    audio = copy.deepcopy(scheduler)
    third = copy.deepcopy(scheduler)
    assert audio._session is scheduler._session
    assert audio.sigmas is not scheduler.sigmas
    for t in scheduler.timesteps[:2]:
        scheduler._session.fresh = True
        for each in (scheduler, audio, third):
            each.step(torch.ones(2, 4), t, torch.zeros(2, 4))
    assert [(s.iteration, s.stream) for s in walk.seen] == [(0, 0), (0, 1), (0, 2), (1, 0), (1, 1), (1, 2)]
    scheduler._session.begin(walk)
    assert copy.deepcopy(scheduler)._stream == 1


def test_a_second_order_scheduler_gives_way_to_euler() -> None:
    heun = FlowMatchHeunDiscreteScheduler(shift=3.0)
    assert heun.order == 2
    scheduler = intercept(heun, Session())
    assert isinstance(scheduler, FlowMatchEulerDiscreteScheduler)
    assert scheduler.config.shift == 3.0


@pytest.mark.parametrize(
    "scheduler",
    [
        EDMEulerScheduler(),
        LCMScheduler(clip_sample=False),
        EulerDiscreteScheduler(timestep_type="continuous", prediction_type="v_prediction"),
    ],
)
def test_schedulers_of_another_kind_are_refused_by_name(scheduler: Any) -> None:
    assert not predicts_flow(scheduler)
    with pytest.raises(PolicyError, match=type(scheduler).__name__) as error:
        intercept(scheduler, Session())
    assert scheduler.config.prediction_type in str(error.value)


def test_a_step_outside_a_walk_is_refused() -> None:
    scheduler = intercept(FlowMatchEulerDiscreteScheduler(), Session())
    scheduler.set_timesteps(4)
    with pytest.raises(PolicyError, match="outside a walk"):
        scheduler.step(torch.ones(2, 4), scheduler.timesteps[0], torch.zeros(2, 4))


@pytest.mark.parametrize("begin", [0, 2])
def test_a_merged_step_is_as_strong_as_the_steps_it_stands_for(begin: int) -> None:
    """E-GRPO: from s = 1 the std is noise sqrt(|dt| / (1 - cap)), with the second level of the table before merging."""
    session, walk = Session(), Euler()
    walk.table = Merged(Shifted(3.0), begin, 3)
    scheduler = intercept(FlowMatchEulerDiscreteScheduler(shift=3.0), session)
    session.begin(walk)
    scheduler.set_timesteps(16)
    drive(scheduler, torch.ones(2, 4))
    levels = shifted(16, 3.0).tolist()
    step = walk.seen[begin]
    assert (step.s, step.s_next, step.s_cap) == (levels[begin], levels[begin + 3], levels[1])
    std = flow_sde(step.x, step.v, step.s, step.s_next, noise=0.7, s_cap=step.s_cap).std
    s, s_next, cap = levels[begin], levels[begin + 3], levels[1]
    assert float(std) == pytest.approx(0.7 * ((s - s_next) * s / (1 - min(s, cap))) ** 0.5, rel=1e-6)
    assert begin or float(std) == pytest.approx(1.2688578, rel=1e-5)


def test_an_inverted_table_is_capped_alike() -> None:
    session, walk = Session(), Euler()
    walk.table = Merged(OwnTable(), 0, 2)
    scheduler = intercept(FlowMatchEulerDiscreteScheduler(invert_sigmas=True), session)
    session.begin(walk)
    scheduler.set_timesteps(4)
    drive(scheduler, torch.ones(2, 4))
    plain, seen = begun(FlowMatchEulerDiscreteScheduler(invert_sigmas=True))
    drive(plain, torch.ones(2, 4))
    assert walk.seen[0].s_cap == pytest.approx(seen.seen[0].s_next, abs=1e-6)
    assert walk.seen[0].s_next == pytest.approx(seen.seen[1].s_next, abs=1e-6)
