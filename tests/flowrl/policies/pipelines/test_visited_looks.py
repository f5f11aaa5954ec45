"""Looks at states of a walk, and at samples with its noise put in again; gradients of rewards through them."""

from dataclasses import replace

import pytest
import torch
from torch import Tensor

from flowrl.contracts import Field, Finished, Prompt, Rollout, Samples, View
from flowrl.core.backward import StepLoss
from flowrl.core.backward_pull import backward_pull
from flowrl.core.objectives.aggregate import weights
from flowrl.core.objectives.pulled import DraftObjective, PulledObjective, ReFLObjective, SRPOObjective
from flowrl.policies import adapters
from flowrl.policies.errors import PolicyError
from flowrl.policies.pipelines.looks.levels import Asking, look_at
from policies_support import PROMPTS, SEED, STEPS, FamilyPolicy, gap, pictures
from samplers.plan import Plan
from samplers.visits import Column, Injected, Visited

WALK = tuple(Visited(step) for step in range(STEPS))
UNEQUAL = [PROMPTS[0], Prompt("long", "a much longer text about three dogs beside a red cat")]


@pytest.fixture(scope="module")
def flux() -> FamilyPolicy:
    return FamilyPolicy("flux")


def rolled(policy: FamilyPolicy, columns: tuple[Column, ...], group: int = 2) -> Rollout:
    prompts = UNEQUAL[: policy.family.max_rows or 2]
    return policy.rollout(prompts, group_size=group, plan=Plan(STEPS, (), (), levels=columns), seed=SEED)


def fields(policy: FamilyPolicy, rollout: Rollout, rows: list[int], view: View) -> list[Field]:
    found: list[Field] = []
    with torch.no_grad():
        policy.look(rollout, torch.tensor(rows), view, found.append)
    return found


def reward_of(samples: Samples, texts: object = None) -> Tensor:
    """A reward that differs between samples and pixels."""
    assert samples.images is not None
    x = samples.images.flatten(1)
    return (x * torch.linspace(-1, 1, x.shape[1])).sum(1) + x.square().sum(1)


@pytest.mark.parametrize("name", ["flux", "sd15"])
def test_a_step_from_a_visited_state_leads_to_the_next(name: str, flux: FamilyPolicy) -> None:
    policy = flux if name == "flux" else FamilyPolicy(name)
    rollout = rolled(policy, WALK[1:])
    rows = list(range(len(rollout.mask)))[2:]
    after = {}
    for f in fields(policy, rollout, rows, View("walked")):
        assert f.rows.tolist() == rows or len(f.rows) == 1
        for row, state in zip(f.rows.tolist(), f.carry * f.x + f.gain * f.v, strict=True):
            after[row, f.columns.item()] = state
        assert gap(f.clean(f.target), f.x0) <= 1e-4
    for (row, column), state in after.items():
        last = column == len(WALK) - 2
        wanted = rollout.replay.clean[0][row] if last else rollout.replay.walked[column + 1][0][row]
        assert gap(state, wanted) <= 2e-4 * float(wanted.abs().max())


def test_a_finished_sample_is_shown_as_the_rollout_shows_it(flux: FamilyPolicy) -> None:
    rollout, found = rolled(flux, WALK[-1:]), []
    flux.look(rollout, torch.tensor([2, 3]), View("finished"), found.append)
    for seen in found:
        assert isinstance(seen, Finished)
        shown = seen.show(seen.x0)
        assert [p.id for p in shown.prompts] == ["long"] * len(seen.rows) and shown.group.tolist() == [1] * len(
            seen.rows
        )
        assert gap(shown.images, pictures(rollout)[seen.rows]) <= 1e-5


def test_injected_noise_is_that_of_the_walk_and_is_taken_out_again(flux: FamilyPolicy) -> None:
    rollout = rolled(flux, (Injected(0.9, 0.8), Injected(0.8, 0.9), Visited(0)))
    start = rollout.replay.walked[2][0]
    for f in fields(flux, rollout, [0, 2, 3], View("injected")):
        if f.columns.item() == 2:
            continue
        noise = start[f.rows]
        assert gap(f.x, f.level * noise + (1 - f.level) * f.x0) <= 1e-6
        by_hand = (f.x + (f.to - f.level) * f.v - f.to * noise) / (1 - f.to)
        assert gap(f.recovered, by_hand) <= 1e-4 and gap(f.recovered, f.x0) > 1e-3


def gradients(
    policy: FamilyPolicy, rollout: Rollout, objective: PulledObjective, parts: list[list[int]]
) -> tuple[list[Tensor], StepLoss]:
    mask = torch.zeros_like(rollout.mask)
    mask[sum(parts, [])] = True
    rollout = replace(rollout, mask=mask)
    adv = torch.zeros(len(mask))
    loss = StepLoss(rollout, adv, objective, objective.weights(mask), weights(mask), reward_of=reward_of)
    for parameter in policy.trainable():
        parameter.grad = None
    for part in parts:
        backward_pull(policy, torch.tensor(part), loss)
    return [torch.zeros_like(p) if p.grad is None else p.grad.clone() for p in policy.trainable()], loss


def difference(found: list[Tensor], wanted: list[Tensor]) -> float:
    """Relative, of the whole gradient."""
    gaps = sum(float((a - b).square().sum()) for a, b in zip(found, wanted, strict=True))
    return (gaps / sum(float(b.square().sum()) for b in wanted)) ** 0.5


def whole_graph(policy: FamilyPolicy, rollout: Rollout, rows: list[int], steps: int) -> list[Tensor]:
    """The gradient of the mean reward through the last steps of the walk, as one graph."""
    total = torch.zeros(())
    columns = list(range(STEPS - steps, STEPS))
    for row in rows:
        found: list[Field] = []
        policy.look(rollout, torch.tensor([row]), View("walked"), found.append)  # for levels, gains and the decoder
        by_column = {int(f.columns): f for f in found}
        x = by_column[columns[0]].x.detach()
        for k in columns:
            f = by_column[k]
            prompts = [rollout.replay.prompts[row // 2]]
            starts = [rollout.replay.start(row // 2, rollout.replay.tree.leaves[row % 2])]
            x = (
                f.carry * x
                + f.gain * look_at(policy, Asking(torch.zeros(STEPS + 1)), {0: x}, prompts, starts, f.level).velocity[0]
            )
        assert f.show is not None
        total = total - reward_of(f.show(x)).sum() / len(rows)
    wanted = torch.autograd.grad(total, list(policy.trainable()), allow_unused=True)
    return [torch.zeros_like(p) if g is None else g for g, p in zip(wanted, policy.trainable(), strict=True)]


@pytest.mark.parametrize("steps", [1, 3, STEPS])
def test_going_back_step_by_step_is_the_whole_graph(steps: int, flux: FamilyPolicy) -> None:
    rollout = rolled(flux, WALK)
    tail = rolled(flux, WALK[STEPS - steps :])
    found, _ = gradients(flux, tail, DraftObjective(), [[0, 2]])
    assert difference(found, whole_graph(flux, rollout, [0, 2], steps)) <= 1e-6
    alone, _ = gradients(flux, tail, DraftObjective(), [[2]])
    assert difference(alone, whole_graph(flux, rollout, [2], steps)) <= 1e-6
    if steps > 1:
        straight, _ = gradients(flux, tail, DraftObjective(nested=False), [[0, 2]])
        assert difference(straight, found) > 1e-3


OBJECTIVES = {
    "draft": (DraftObjective(threshold=1e3, scale=2.0), WALK[1:]),
    "sparse": (DraftObjective(nested=False), (WALK[0], WALK[2])),
    "refl": (ReFLObjective(threshold=1e3), WALK[2:3]),
    "srpo": (
        SRPOObjective(threshold=None, table=(0.9, 0.8, 11), positive=["bright"], negative=["dark", "old"]),
        (Injected(0.9, 0.8), Injected(0.8, 0.9)),
    ),
}


@pytest.mark.parametrize("name", OBJECTIVES)
def test_no_cut_changes_the_gradient(name: str, flux: FamilyPolicy) -> None:
    objective, columns = OBJECTIVES[name]
    rollout = rolled(flux, columns)
    wanted, whole = gradients(flux, rollout, objective, [[0, 1, 2, 3]])
    found, cut = gradients(flux, rollout, objective, [[0], [1, 2], [3]])
    assert sum(float(g.abs().sum()) for g in wanted) > 1e-6
    assert difference(found, wanted) <= 1e-5
    for key, value in whole.total.items():
        torch.testing.assert_close(cut.total[key], value, rtol=1e-4, atol=1e-5)


def test_the_gradient_is_what_a_small_step_gains(flux: FamilyPolicy) -> None:
    rollout = rolled(flux, WALK)
    found, _ = gradients(flux, rollout, DraftObjective(), [[0, 2]])
    norm, eps = sum(float(g.square().sum()) for g in found) ** 0.5, 3e-3
    ends = []
    for sign in (1, -1):
        with torch.no_grad():
            for parameter, g in zip(flux.trainable(), found, strict=True):
                parameter.sub_(g, alpha=sign * eps / norm)
            ends.append(float(reward_of(rolled(flux, WALK).samples)[[0, 2]].double().mean()))
            for parameter, g in zip(flux.trainable(), found, strict=True):
                parameter.add_(g, alpha=sign * eps / norm)
    assert (ends[0] - ends[1]) / (2 * eps) == pytest.approx(norm, rel=0.01)


@pytest.fixture(scope="module")
def moved() -> FamilyPolicy:
    """A policy whose adapters have moved it away from the reference."""
    policy, generator = FamilyPolicy("flux"), torch.Generator().manual_seed(1)
    adapters.add_lora(policy.modules, rank=2, alpha=4)
    with torch.no_grad():
        for parameter in policy.trainable():
            parameter.add_(0.1 * torch.randn(parameter.shape, generator=generator))
    return policy


def distance(policy: FamilyPolicy, rollout: Rollout, rows: list[int]) -> Tensor:
    """The mean over rows of the sum over columns of the mean squared difference from the reference's velocity."""
    held: dict[tuple[int, int], Tensor] = {}
    for f in fields(policy, rollout, rows, View("walked", weights="reference")):
        held.update(zip([(row, f.columns.item()) for row in f.rows.tolist()], f.v, strict=True))
    found: list[Field] = []
    policy.look(rollout, torch.tensor(rows), View("walked"), found.append)
    total = torch.zeros(())
    for f in found:
        for row, v in zip(f.rows.tolist(), f.v, strict=True):
            total = total + (v - held[row, f.columns.item()]).square().mean() / len(rows)
    return total


@pytest.mark.parametrize("name", ["sparse", "refl"])
def test_the_divergence_is_that_of_the_velocities_where_it_looks(name: str, moved: FamilyPolicy) -> None:
    policy = moved
    objective, columns = OBJECTIVES[name]
    rollout = rolled(policy, columns)
    plain, _ = gradients(policy, rollout, objective, [[0, 2, 3]])
    held, loss = gradients(policy, rollout, replace(objective, kl=3.0), [[0, 2, 3]])
    total = distance(policy, rollout, [0, 2, 3])
    wanted, total = torch.autograd.grad(3.0 * total, list(policy.trainable())), float(total.detach())
    assert difference([a - b for a, b in zip(held, plain, strict=True)], list(wanted)) <= 1e-4
    assert float(loss.total["kl"]) == pytest.approx(total / len(columns), rel=1e-4) and total > 1e-4
    cut, _ = gradients(policy, rollout, replace(objective, kl=3.0), [[0], [2, 3]])
    assert difference(cut, held) <= 1e-5


def test_the_divergence_goes_back_through_the_walk_too(moved: FamilyPolicy) -> None:
    policy = moved
    found, _ = gradients(policy, rolled(policy, WALK), DraftObjective(kl=3.0), [[0, 2]])
    norm, eps, ends = sum(float(g.square().sum()) for g in found) ** 0.5, 3e-3, []
    for sign in (1, -1):
        with torch.no_grad():
            for parameter, g in zip(policy.trainable(), found, strict=True):
                parameter.add_(g, alpha=sign * eps / norm)
            there = rolled(policy, WALK)
            ends.append(
                3.0 * float(distance(policy, there, [0, 2]).detach()) - float(reward_of(there.samples)[[0, 2]].mean())
            )
            for parameter, g in zip(policy.trainable(), found, strict=True):
                parameter.sub_(g, alpha=sign * eps / norm)
    assert (ends[0] - ends[1]) / (2 * eps) == pytest.approx(norm, rel=0.02)


def test_several_latents_are_refused() -> None:
    policy = FamilyPolicy("ltx2")
    rollout = policy.rollout(PROMPTS[:1], group_size=1, plan=Plan(STEPS, (), (), levels=WALK[-1:]), seed=SEED)
    with pytest.raises(PolicyError, match="steps 2 latents at once"):
        policy.look(rollout, torch.arange(1), View("walked"), lambda _: None)


def test_an_injection_needs_the_path_of_a_flow() -> None:
    with pytest.raises(PolicyError, match="this objective is not defined"):
        FamilyPolicy("sd15").rollout(
            PROMPTS[:1], group_size=1, plan=Plan(STEPS, (), (), levels=(Injected(0.9, 0.8),)), seed=SEED
        )
