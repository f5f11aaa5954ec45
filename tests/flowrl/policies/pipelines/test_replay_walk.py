"""What a rollout stores, how it is rounded, and how tapes of several calls become one."""

from __future__ import annotations

import functools
from typing import Any

import pytest
import torch
from torch import Tensor

from flowrl.contracts import Rollout, View
from flowrl.policies.pipelines.steps.dynamics import Dynamics
from flowrl.policies.pipelines.walks.trajectory import Trajectory
from policies_support import PROMPTS, SDE, SEED, STEPS, FamilyPolicy, gap, pictures, scores, watched_steps
from samplers.decisions import decisions
from samplers.gaussian import Gaussian
from samplers.plan import Plan
from samplers.renoising import cps, ddim
from samplers.transitions import dance_sde, flow_sde, ode, wan_sde


def tape_tensors(rollout: Rollout) -> dict[str, dict[int, list[int]]]:
    """Which steps and streams of a rollout hold states."""
    trajectory = rollout.replay
    return {name: {k: list(v) for k, v in getattr(trajectory, name).items()} for name in ("enter", "drawn", "keep")}


@pytest.fixture(scope="module")
def policy() -> FamilyPolicy:
    return FamilyPolicy("flux")


def test_only_trained_steps_are_stored(policy: FamilyPolicy) -> None:
    rollout = policy.rollout(PROMPTS, plan=Plan(STEPS, (0, 1, 2), (2,)), seed=SEED)
    assert tape_tensors(rollout) == {"enter": {2: [0]}, "drawn": {2: [0]}, "keep": {}}
    assert rollout.rollout_logp.shape == (2, 1)
    assert torch.equal(scores(policy, rollout), rollout.rollout_logp)


def test_the_first_state_is_drawn_again_instead_of_stored(policy: FamilyPolicy) -> None:
    rollout = policy.rollout(PROMPTS, plan=SDE, seed=SEED)
    assert tape_tensors(rollout) == {"enter": {1: [0], 2: [0]}, "drawn": {0: [0], 1: [0], 2: [0]}, "keep": {}}
    shared = rollout.replay.enter[1][0].data_ptr() == rollout.replay.drawn[0][0].data_ptr()
    assert shared, "the state after a step is the one before the next, in one piece of memory"


def test_every_stream_is_stored_and_scored() -> None:
    policy = FamilyPolicy("ltx2")
    rollout = policy.rollout(PROMPTS[:1], plan=Plan(STEPS, (1,), (1,)), seed=SEED)
    assert tape_tensors(rollout) == {"enter": {1: [0, 1]}, "drawn": {1: [0, 1]}, "keep": {}}
    assert torch.equal(scores(policy, rollout), rollout.rollout_logp)
    for stream in (0, 1):
        drawn = rollout.replay.drawn[1][stream]
        rollout.replay.drawn[1][stream] = drawn + 1
        assert gap(scores(policy, rollout), rollout.rollout_logp) > 1e-3
        rollout.replay.drawn[1][stream] = drawn


@pytest.mark.parametrize("transition", [flow_sde, wan_sde, dance_sde, cps, ddim], ids=lambda t: t.__name__)
@pytest.mark.parametrize("share_noise", [False, True])
def test_every_step_gives_the_ratio_1_at_the_policy_that_drew(transition: Any, share_noise: bool) -> None:
    policy = FamilyPolicy("flux", transition=transition, noise=0.5)
    plan = Plan(STEPS, (0, 1, 2), (0, 1, 2), share_noise=share_noise)
    rollout = policy.rollout(PROMPTS, group_size=2, plan=plan, seed=SEED)
    assert rollout.mask.all() and torch.isfinite(rollout.rollout_logp).all()
    assert torch.equal(scores(policy, rollout), rollout.rollout_logp)
    assert rollout.step_stats["std"].gt(0).all()


@pytest.mark.parametrize("reduce", ["mean", "sum"])
def test_log_probs_are_those_of_the_gaussians_that_were_drawn_from(reduce: str) -> None:
    policy = FamilyPolicy("flux", dynamics={"reduce": reduce})
    policy.prepare(PROMPTS[0], SDE)
    with watched_steps() as seen:
        rollout = policy.rollout(PROMPTS, plan=SDE, seed=SEED)
    for step, state in seen[:3]:
        gaussian = flow_sde(step.x, step.v, step.s, step.s_next, noise=0.7, s_cap=step.s_cap)
        law = torch.distributions.Normal(gaussian.mean, gaussian.std)
        expected = getattr(law.log_prob(state).flatten(1), reduce)(1)
        assert torch.allclose(rollout.rollout_logp[:, step.iteration], expected, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("name", ["flux", "wan", "sd3_inpaint"])
def test_states_are_rounded_before_they_are_scored(name: str) -> None:
    policy = FamilyPolicy(name, dynamics={"storage": torch.bfloat16})
    with watched_steps() as seen:
        rollout = policy.rollout(PROMPTS, plan=SDE, seed=SEED)
    assert seen
    for streams in rollout.replay.drawn.values():
        assert all(state.dtype == torch.bfloat16 for state in streams.values())
    assert torch.equal(scores(policy, rollout), rollout.rollout_logp)
    # the walk went on from the rounded states (in a mask, from the pipeline's own values)
    for streams, (step, _) in zip(
        rollout.replay.drawn.values(), [s for s in seen if s[0].iteration > 0][-3:], strict=True
    ):
        on_grid = step.x == streams[0].float()
        assert on_grid.float().mean() >= (0.4 if name == "sd3_inpaint" else 1.0)


def test_log_probs_may_be_computed_in_double(policy: FamilyPolicy) -> None:
    fine = FamilyPolicy("flux", dynamics={"precision": torch.float64, "reduce": "sum"})
    seen: list[Tensor] = []
    rollout = fine.rollout(PROMPTS, plan=SDE, seed=SEED)
    fine.look(rollout, torch.arange(2), View(), lambda found: seen.append(found.logp))
    assert {logp.dtype for logp in seen} == {torch.float64}
    assert all(logp.requires_grad for logp in seen)
    assert torch.equal(scores(fine, rollout), rollout.rollout_logp)
    coarse = policy.rollout(PROMPTS, plan=SDE, seed=SEED)
    elements = rollout.replay.drawn[0][0][0].numel()
    assert gap(rollout.rollout_logp / elements, coarse.rollout_logp) <= 1e-5


def test_a_deterministic_transition_has_nothing_to_score() -> None:
    policy = FamilyPolicy("flux", transition=ode)
    rollout = policy.rollout(PROMPTS, plan=SDE, seed=SEED)
    assert not rollout.mask.any()
    assert torch.equal(rollout.rollout_logp, torch.zeros(2, 3))


def test_a_last_step_is_masked_like_the_one_before_it() -> None:
    policy = FamilyPolicy("flux_inpaint")
    rollout = policy.rollout(PROMPTS, plan=Plan(STEPS, (2, 3), (2, 3)), seed=SEED)
    keep = rollout.replay.keep
    assert torch.equal(keep[2][0], keep[3][0])
    assert float(keep[3][0].float().mean()) == pytest.approx(0.5)
    assert torch.equal(scores(policy, rollout), rollout.rollout_logp)


@functools.cache
def of_family(name: str, max_rows: int | None) -> FamilyPolicy:
    return FamilyPolicy(name, max_rows=max_rows)


@pytest.mark.parametrize(
    ("name", "max_rows"),
    [("flux", rows) for rows in (1, 2, 3, 4)]
    + [(name, rows) for name in ("flux_inpaint", "ltx2", "hunyuan_image") for rows in (2, 4)],
)
def test_a_rollout_in_pieces_is_the_whole(name: str, max_rows: int) -> None:
    whole, pieces = of_family(name, None), of_family(name, max_rows)
    a = whole.rollout(PROMPTS, group_size=3, plan=SDE, seed=SEED)
    b = pieces.rollout(PROMPTS, group_size=3, plan=SDE, seed=SEED)
    assert gap(pictures(a), pictures(b)) <= 1e-4
    assert gap(a.rollout_logp, b.rollout_logp) <= 1e-5
    assert torch.equal(a.samples.group, b.samples.group)
    assert a.samples.prompts == b.samples.prompts
    assert tape_tensors(a) == tape_tensors(b)
    assert a.replay.prompts == b.replay.prompts
    assert gap(scores(whole, b, [5, 0, 3]), a.rollout_logp[[5, 0, 3]]) <= 1e-5


@pytest.mark.parametrize("stochastic", [(0, 1), (1, 2), (3,)])
@pytest.mark.parametrize("max_rows", [2, 3, 4])
def test_fanned_rollouts_join(stochastic: tuple[int, ...], max_rows: int) -> None:
    plan = Plan(STEPS, stochastic, stochastic, share_noise=True)
    whole, pieces = of_family("flux", None), of_family("flux", max_rows)
    a = whole.rollout(PROMPTS, group_size=4, plan=plan, seed=SEED)
    b = pieces.rollout(PROMPTS, group_size=4, plan=plan, seed=SEED)
    assert gap(pictures(a), pictures(b)) <= 1e-4
    assert gap(a.rollout_logp, b.rollout_logp) <= 1e-5
    assert len(decisions(a.replay.tree)[stochastic[0]].units) == 1
    rows = [7, 2, 1, 4]
    assert gap(scores(pieces, b, rows), b.rollout_logp[rows]) <= 1e-6
    assert gap(scores(whole, a, rows), a.rollout_logp[rows]) <= 1e-6
    assert gap(pictures(a)[0], pictures(a)[1]) > 1e-3


@pytest.mark.parametrize("share_noise", [False, True])
@pytest.mark.parametrize("max_rows", [None, 1, 2])
def test_the_same_prompt_twice_draws_two_different_groups(
    policy: FamilyPolicy, max_rows: int | None, share_noise: bool
) -> None:
    plan = Plan(STEPS, (1, 2), (1, 2), share_noise=share_noise)
    policy.max_rows, prompts = max_rows, [PROMPTS[0], PROMPTS[1], PROMPTS[0]]
    try:
        rollout = policy.rollout(prompts, group_size=2, plan=plan, seed=SEED)
        replayed = [scores(policy, rollout), *(scores(policy, rollout, [row]) for row in range(6))]
        once = policy.rollout(PROMPTS[:1], group_size=2, plan=plan, seed=SEED)
    finally:
        policy.max_rows = None
    images, whole = pictures(rollout), policy.rollout(prompts, group_size=2, plan=plan, seed=SEED)
    assert all(gap(images[i], images[j]) > 1e-2 for i in (0, 1) for j in (4, 5))
    assert gap(images[:2], pictures(once)) <= 1e-5  # the first of the two is what it is alone
    assert gap(images, pictures(whole)) <= 1e-5
    assert gap(replayed[0], rollout.rollout_logp) <= 1e-5 and gap(torch.cat(replayed[1:]), rollout.rollout_logp) <= 1e-5


def test_a_fanned_prefix_is_computed_once() -> None:
    policy = FamilyPolicy("flux")
    plan = Plan(STEPS, (2,), (2,), share_noise=True)
    policy.prepare(PROMPTS[0], plan)
    rows: list[int] = []
    policy.rollout(PROMPTS, group_size=3, plan=plan, seed=SEED, progress=rows.append)
    assert rows == [2, 2, 2, 6]
    rows.clear()
    policy.rollout(PROMPTS, group_size=3, plan=Plan(STEPS, (2,), (2,)), seed=SEED, progress=rows.append)
    assert rows == [6, 6, 6, 6]


class TestTransition:
    """Which transition a step takes."""

    class Step:
        iteration, stream, s, s_next, s_cap = 0, 0, 0.8, 0.5, 0.9
        x, v = torch.ones(1, 2), torch.ones(1, 2)
        path = "flow"

    def iterations_by_module(self, *, stochastic: bool, exploding: bool = False) -> list[Any]:
        calls: list[Any] = []

        def transition(x: Tensor, v: Tensor, s: float, s_next: float, *, noise: float, s_cap: float) -> Gaussian:
            calls.append((s, s_next, noise, s_cap))
            return flow_sde(x, v, s, s_next, noise=noise, s_cap=s_cap)

        step = self.Step()
        step.path = "exploding" if exploding else "flow"
        Dynamics(transition, 0.7).gaussian(step, stochastic=stochastic)  # type: ignore[arg-type]
        return calls

    def test_noise_is_drawn_at_stochastic_steps_only(self) -> None:
        assert self.iterations_by_module(stochastic=True) == [(0.8, 0.5, 0.7, 0.9)]
        assert self.iterations_by_module(stochastic=False) == [(0.8, 0.5, 0.0, 0.9)]

    def test_tables_above_one_take_the_variance_exploding_form(self) -> None:
        assert self.iterations_by_module(stochastic=True, exploding=True) == []


def test_a_tape_counts_rows() -> None:
    assert len(Trajectory(PROMPTS, SDE.tree(3), SEED)) == 6
