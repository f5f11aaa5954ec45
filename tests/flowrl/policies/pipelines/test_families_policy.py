"""Every family as a policy: it samples what its pipeline samples, and scores its own steps as they were drawn."""

from __future__ import annotations

import functools
from collections.abc import Iterator
from typing import Any

import pytest
import torch
from diffusers import UniPCMultistepScheduler
from torch import Tensor

import families
from flowrl.contracts import LogProbs, Prompt, Rollout, View
from flowrl.policies.pipelines.steps.ddim import ddim_of, predicts_noise
from flowrl.policies.pipelines.walks.trajectory import Trajectory
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
    untouched,
)
from samplers.plan import Plan

PADDING = [name for name in families.NAMES if "padding" in families.get(name).tags]
SINGLE = [name for name in families.NAMES if families.get(name).max_rows == 1]
OVERWRITING = [name for name in families.NAMES if "overwrites" in families.get(name).tags]


class Case:
    """A family's policy with one rollout, which its tests share."""

    def __init__(self, name: str):
        self.name, self.policy = name, FamilyPolicy(name)
        self.prompts: list[Prompt] = PROMPTS[: self.policy.family.max_rows]
        self.users: dict[int, set[str]] = {}  # iteration -> trained modules that it calls

    @functools.cached_property
    def rollout(self) -> Rollout:
        policy = self.policy
        policy.prepare(self.prompts[0], SDE)
        hooks = [
            module.register_forward_pre_hook(
                lambda *_, name=name: self.users.setdefault(policy.session.upcoming, set()).add(name)
            )
            for name, module in policy.modules.items()
        ]
        rollout = policy.rollout(self.prompts, plan=SDE, seed=SEED)
        for hook in hooks:
            hook.remove()
        return rollout


@pytest.fixture(scope="module")
def case(request: pytest.FixtureRequest) -> Iterator[Case]:
    yield Case(request.param)


every_family = pytest.mark.parametrize("case", families.NAMES, indirect=True)


def first_order(pipe: Any) -> Any:
    """The pipeline's scheduler cut down to what a chain of single steps can do."""
    if predicts_noise(pipe.scheduler):
        return ddim_of(pipe.scheduler)
    return UniPCMultistepScheduler.from_config(
        pipe.scheduler.config, solver_order=1, disable_corrector=list(range(STEPS))
    )


@every_family
def test_without_noise_it_is_the_untouched_pipeline(case: Case, monkeypatch: pytest.MonkeyPatch) -> None:
    own = case.policy.source
    multistep = case.policy.family.base == "multistep"
    if multistep or case.policy.family.base == "ddim":
        monkeypatch.setitem(own.__dict__, "scheduler", first_order(own))
    expected = untouched(case.policy, case.prompts)
    rollout = case.policy.rollout(case.prompts, plan=ODE, seed=SEED)
    found = pictures(rollout)
    assert rollout.rollout_logp.shape == (len(case.prompts), 0)
    assert gap(found, expected) <= (1e-4 if multistep else 1e-5)
    assert float(found.std()) > 1e-2  # a picture that is all black or white would hide a difference
    # the comparison sees noise, and sees the weights
    assert gap(pictures(case.rollout), expected) > 1e-3
    with scaled(case.policy.modules, 1.05):
        assert gap(untouched(case.policy, case.prompts), expected) > 1e-4


@every_family
def test_a_replay_is_the_rollout(case: Case) -> None:
    rollout = case.rollout
    assert rollout.rollout_logp.shape == (len(case.prompts), 3)
    assert rollout.mask.all()
    assert torch.isfinite(rollout.rollout_logp).all()
    # to the bit in the layout in memory that was sampled; tapes of several calls are joined into one
    accepted = 0 if case.policy.sharing.rows == "any" else 1e-6
    assert gap(scores(case.policy, rollout), rollout.rollout_logp) <= accepted
    with scaled(case.policy.modules, 1.05):
        changed = (scores(case.policy, rollout) - rollout.rollout_logp).abs().amin(1)
    assert changed.min() > 1e-7, "other weights must give other log-probs"
    assert gap(scores(case.policy, rollout), rollout.rollout_logp) <= accepted


@every_family
def test_gradient_reaches_the_denoisers_of_each_trained_step(case: Case) -> None:
    policy, rollout = case.policy, case.rollout
    reached: dict[int, set[str]] = {}

    def visit(score: LogProbs) -> None:
        weights = {n: [p for p in m.parameters() if p.requires_grad] for n, m in policy.modules.items()}
        flat = [p for ps in weights.values() for p in ps]
        grads = iter(torch.autograd.grad(score.logp.sum(), flat, allow_unused=True))
        for name, parameters in weights.items():
            sizes = [float(g.abs().sum()) for g in (next(grads) for _ in parameters) if g is not None]
            if sum(sizes) > 0:
                reached.setdefault(SDE.trained[int(score.columns)], set()).add(name)

    policy.look(rollout, torch.arange(len(case.prompts)), View(), visit)
    assert reached == {step: case.users[step] for step in SDE.trained}
    assert set().union(*reached.values()) == set(policy.family.modules)


@every_family
def test_rows_are_replayed_alone_and_in_any_order(case: Case) -> None:
    rollout = case.rollout
    # guided noise is divided by a, 0.07 at the first step, so that other batch shapes round the state more
    accepted = 1e-5 if case.policy.family.base == "ddim" else 4e-6  # of log-probs near 6
    for rows in ([0], [1], [1, 0])[: 3 if len(case.prompts) > 1 else 1]:
        assert gap(scores(case.policy, rollout, rows), rollout.rollout_logp[rows]) <= accepted
    if len(case.prompts) > 1:
        assert gap(scores(case.policy, rollout, [1]), rollout.rollout_logp[[0]]) > 1e-6


@every_family
def test_rows_share_calls_where_neither_padding_nor_the_pipeline_stands_against_it(case: Case) -> None:
    case.policy.prepare(case.prompts[0], SDE)
    assert (case.policy.sharing.rows == "prompt") is (case.name in PADDING)
    assert (case.policy.sharing.rows == "none") is (case.name in SINGLE)


@pytest.mark.parametrize("case", [n for n in families.NAMES if families.get(n).max_rows != 1], indirect=True)
def test_a_group_shares_its_start(case: Case, monkeypatch: pytest.MonkeyPatch) -> None:
    policy = case.policy
    plan = Plan(STEPS, (1, 2), (1, 2), share_noise=True)
    policy.prepare(case.prompts[0], plan)
    fanned = policy.rollout(case.prompts, group_size=2, plan=plan, seed=SEED)
    assert gap(scores(policy, fanned), fanned.rollout_logp) <= (0 if policy.sharing.rows == "any" else 1e-6)
    assert gap(scores(policy, fanned, [3, 0]), fanned.rollout_logp[[3, 0]]) <= 1e-6

    monkeypatch.setattr(policy.keeper, "skip", False)  # as where denoisers leave something behind
    again = policy.rollout(case.prompts, group_size=2, plan=plan, seed=SEED)
    assert gap(scores(policy, again), again.rollout_logp) <= 1e-6
    apart = policy.rollout(case.prompts, group_size=2, plan=Plan(STEPS, (0, 1, 2), (1, 2)), seed=SEED)
    assert gap(again.rollout_logp, fanned.rollout_logp) <= 1e-5
    for step, streams in fanned.replay.drawn.items():
        for stream, drawn in streams.items():
            assert gap(drawn, again.replay.drawn[step][stream]) <= 1e-4
    for stream, state in fanned.replay.enter[1].items():
        assert len(state) * 2 == len(apart.replay.enter[1][stream])
    assert gap(pictures(fanned)[0::2], pictures(fanned)[1::2]) > 1e-3  # and goes on apart


@pytest.mark.parametrize("case", OVERWRITING, indirect=True)
def test_what_the_pipeline_overwrites_is_not_scored(case: Case) -> None:
    rollout, trajectory = case.rollout, case.rollout.replay
    assert {step: list(streams) for step, streams in trajectory.keep.items()} == {0: [0], 1: [0], 2: [0]}
    for step in SDE.trained:
        kept = trajectory.keep[step][0].expand_as(trajectory.drawn[step][0])
        assert 0.4 <= float(kept.float().mean()) <= 0.6
        assert torch.equal(with_drawn(case, trajectory, step, ~kept), rollout.rollout_logp)
        changed = with_drawn(case, trajectory, step, kept)
        assert gap(changed[:, step], rollout.rollout_logp[:, step]) > 1e-3


def with_drawn(case: Case, trajectory: Trajectory, step: int, where: Tensor) -> Tensor:
    """The scores of the rollout as if it had drawn other values at some elements of a step."""
    drawn = trajectory.drawn[step][0]
    trajectory.drawn[step][0] = drawn + where.float()
    try:
        return scores(case.policy, case.rollout)
    finally:
        trajectory.drawn[step][0] = drawn


@pytest.mark.parametrize("case", sorted(set(families.NAMES) - set(OVERWRITING)), indirect=True)
def test_nothing_is_masked_where_nothing_is_overwritten(case: Case) -> None:
    assert not case.rollout.replay.keep


@every_family
def test_spread_encodings_are_those_of_repeated_prompts(case: Case, monkeypatch: pytest.MonkeyPatch) -> None:
    policy = case.policy
    policy.prepare(case.prompts[0], SDE)
    encoder, calls = policy.pipe.encode_prompt, []

    def encode(*args: Any, **kwargs: Any) -> Any:
        given = [list(a) if isinstance(a, list) else a for a in args]
        named = {k: list(v) if isinstance(v, list) else v for k, v in kwargs.items()}
        calls.append((given, named, encoder(*args, **kwargs)))
        return calls[-1][2]

    monkeypatch.setitem(policy.pipe.__dict__, "encode_prompt", encode)
    order = [0, 1, 1, 0, 1][: 5 if len(case.prompts) > 1 else 1]
    policy.rollout([case.prompts[i] for i in order], plan=Plan(STEPS, (), ()), seed=SEED)
    assert calls
    for args, kwargs, found in calls:
        with torch.no_grad():
            expected = type(policy.source).encode_prompt(policy.source, *args, **kwargs)
        same_structure(found, expected)


def same_structure(found: Any, expected: Any) -> None:
    """Tensors within 1e-5 of each other, in equal tuples and lists."""
    if isinstance(expected, Tensor):
        assert gap(found, expected) <= 1e-5
    elif isinstance(expected, list | tuple):
        assert len(found) == len(expected)
        for a, b in zip(found, expected, strict=True):
            same_structure(a, b)
    else:
        assert found == expected
