"""Gradients of rewards over parts of a walk, against the graph of what each paper writes down, sample by sample."""

from collections.abc import Callable
from dataclasses import replace

import pytest
import torch
from torch import Tensor

from flowrl.contracts import Field, Finished, Prompt, Rollout, Samples, View
from flowrl.core.backward import StepLoss
from flowrl.core.backward_pull import backward_pull
from flowrl.core.objectives.aggregate import weights
from flowrl.core.objectives.pulled import DraftObjective, MatchObjective, PulledObjective, ReFLObjective
from flowrl.core.selection import rank_shares
from flowrl.policies.pipelines.looks.levels import Asking, look_at
from policies_support import PROMPTS, SEED, FamilyPolicy
from samplers.plan import Plan
from samplers.visits import Column, Visited

STEPS = 5
UNEQUAL = [PROMPTS[0], Prompt("long", "a much longer text about three dogs beside a red cat")]
WHOLE = tuple(Visited(step) for step in range(STEPS))


@pytest.fixture(scope="module")
def flux() -> FamilyPolicy:
    return FamilyPolicy("flux")


@pytest.fixture(scope="module")
def walk(flux: FamilyPolicy) -> "Walk":
    return Walk(flux)


def reward_of(samples: Samples, texts: object = None) -> Tensor:
    """A reward that differs between samples and pixels."""
    assert samples.images is not None
    x = samples.images.flatten(1)
    return (x * torch.linspace(-1, 1, x.shape[1])).sum(1) + x.square().sum(1)


def rolled(policy: FamilyPolicy, columns: tuple[Column, ...]) -> Rollout:
    prompts = UNEQUAL[: policy.family.max_rows or 2]
    return policy.rollout(prompts, group_size=2, plan=Plan(STEPS, (), (), levels=columns), seed=SEED)


class Walk:
    """The whole walk of every sample, whose velocities can be asked for with gradient."""

    def __init__(self, policy: FamilyPolicy):
        self.policy, self.rollout = policy, rolled(policy, WHOLE)
        found: list[Field] = []
        with torch.no_grad():
            for row in range(len(self.rollout.mask)):
                policy.look(self.rollout, torch.tensor([row]), View("walked"), found.append)
        self.at = {(int(f.rows), int(f.columns)): f for f in found}
        self.clean = self.rollout.replay.clean[0]

    def state(self, row: int, step: int) -> Tensor:
        return self.clean[row : row + 1] if step == STEPS else self.at[row, step].x

    def unit(self, row: int, step: int) -> float:
        last = self.at[row, STEPS - 1]
        return last.carry * last.unit if step == STEPS else self.at[row, step].unit

    def velocity(self, row: int, step: int, x: Tensor) -> Tensor:
        trajectory, f = self.rollout.replay, self.at[row, step]
        starts = [trajectory.start(row // 2, trajectory.tree.leaves[row % 2])]
        asking = Asking(torch.zeros(STEPS + 1))
        return look_at(self.policy, asking, {0: x}, [trajectory.prompts[row // 2]], starts, f.level).velocity[0]

    def moved(self, row: int, step: int, to: int, x: Tensor, v: Tensor) -> Tensor:
        """Where a velocity at the beginning of a step leads to the beginning of another: DDIM's formula, or Euler's."""
        f, level = self.at[row, step], self.at[row, to].level if to < STEPS else self.at[row, STEPS - 1].to
        carry = self.unit(row, to) / f.unit
        return carry * x + (level - carry * f.level) * v

    def shown(self, row: int, x: Tensor) -> Samples:
        show = self.at[row, 0].show
        assert show is not None
        return show(x)


def gradient(policy: FamilyPolicy, loss: Tensor) -> list[Tensor]:
    found = torch.autograd.grad(loss, list(policy.trainable()), allow_unused=True)
    return [torch.zeros_like(p) if g is None else g for g, p in zip(found, policy.trainable(), strict=True)]


def followed(
    policy: FamilyPolicy, columns: tuple[Column, ...], objective: PulledObjective, parts: list[list[int]]
) -> list[Tensor]:
    """What the loop's own path adds to the parameters, for these rows."""
    rollout, rows = rolled(policy, columns), torch.tensor(sum(parts, []))
    mask = torch.zeros_like(rollout.mask)
    mask[rows] = True
    rollout, adv = replace(rollout, mask=mask), reward_of(rollout.samples)
    adv = rank_shares(adv, rows) if "rank" in objective.needs else adv
    loss = StepLoss(rollout, adv, objective, objective.weights(mask), weights(mask), reward_of=reward_of)
    for parameter in policy.trainable():
        parameter.grad = None
    for part in parts:
        backward_pull(policy, torch.tensor(part), loss)
    return [torch.zeros_like(p) if p.grad is None else p.grad.clone() for p in policy.trainable()]


def difference(found: list[Tensor], wanted: list[Tensor]) -> float:
    gaps = sum(float((a - b).square().sum()) for a, b in zip(found, wanted, strict=True))
    size = sum(float(b.square().sum()) for b in wanted)
    assert size > 1e-12
    return (gaps / size) ** 0.5


def partly(x: Tensor, share: float) -> Tensor:
    """x, with a share of its gradient."""
    return share * x + (1 - share) * x.detach()


def composed(walk: Walk, row: int, first: int, last: int, x: Tensor, active: dict[int, Tensor]) -> Tensor:
    """Euler's sum of an interval, with velocities of its own where there are any."""
    for step in range(first, last):
        f = walk.at[row, step]
        x = f.carry * x + f.gain * active.get(step, f.v.detach())
    return x


def sparse(walk: Walk, row: int, *, steps: tuple[int, ...] = (0, 3), whole: bool = True) -> Tensor:
    lengths = [abs(walk.at[row, i].to - walk.at[row, i].level) for i in range(STEPS)]
    factor = sum(lengths[0:4]) / sum(lengths[i] for i in steps) if whole else 1.0
    active = {i: partly(walk.velocity(row, i, walk.state(row, i).detach()), factor) for i in steps}
    return -reward_of(walk.shown(row, composed(walk, row, 0, STEPS, walk.state(row, 0), active)))


def bridge(walk: Walk, row: int) -> Tensor:
    steps, middle, through = (0, 1, 3, 4), 3, 0.3
    lengths = [abs(walk.at[row, i].to - walk.at[row, i].level) for i in range(STEPS)]
    factor = sum(lengths) / sum(lengths[i] for i in steps)
    active = {i: partly(walk.velocity(row, i, walk.state(row, i)), factor) for i in steps if i < middle}
    reached = composed(walk, row, 0, middle, walk.state(row, 0), active)
    reached = reached + (walk.state(row, middle) - reached).detach()
    active[middle] = partly(walk.velocity(row, middle, partly(reached, through)), factor)
    active[4] = partly(walk.velocity(row, 4, walk.state(row, 4)), factor)
    return -reward_of(walk.shown(row, composed(walk, row, middle, STEPS, reached, active)))


def leaps(walk: Walk, row: int) -> Tensor:
    begin, middle, through, tau = 1, 3, 0.3, 0.02
    x, y, clean = (walk.state(row, i) for i in (begin, middle, STEPS))
    landed = walk.moved(row, begin, middle, x, walk.velocity(row, begin, x))
    first = (landed - y).abs().mean().detach().clamp(min=tau)
    landed = landed + (y - landed).detach()
    end = walk.moved(row, middle, STEPS, landed, walk.velocity(row, middle, partly(landed, through)))
    second = (end - clean).abs().mean().detach().clamp(min=tau)
    end = end + (clean - end).detach()
    return -reward_of(walk.shown(row, end)) / (first + second)


def spaced(walk: Walk, row: int, *, last: int, steps: tuple[int, ...]) -> Tensor:
    x = walk.state(row, 0)
    for step in range(last):
        v = walk.velocity(row, step, x.detach()) if step in steps else walk.at[row, step].v.detach()
        x = walk.moved(row, step, step + 1, x, v)
    v = walk.velocity(row, last, x.detach()) if last in steps else walk.at[row, last].v.detach()
    f = walk.at[row, last]
    return -reward_of(walk.shown(row, (x - f.level * v) / f.unit))


def over(*steps: int, last: int = STEPS) -> tuple[Visited, ...]:
    return tuple(Visited(step, over=(0, last)) for step in steps)


BRIDGE = tuple(Visited(i, through=0.3 if i == 3 else 0.0, over=(0, STEPS)) for i in (0, 1, 3, 4))
LEAPS = (Visited(1, to=3, through=0.0), Visited(3, to=STEPS, through=0.3))
TUNED = tuple(Visited(i, to=STEPS if i == 3 else None, through=0.0, judged=3) for i in (1, 3))
EARLY = tuple(Visited(i, through=0.0, judged=3) for i in (0, 2))
METHODS: dict[str, tuple[tuple[Column, ...], PulledObjective, Callable[[Walk, int], Tensor]]] = {
    "sparse": (over(0, 3, last=4), DraftObjective(nested=False), sparse),
    "bridge": (BRIDGE, DraftObjective(), bridge),
    "leapalign": (LEAPS, DraftObjective(tau=0.02), leaps),
    "drtune": (TUNED, DraftObjective(nested=False), lambda w, r: spaced(w, r, last=3, steps=(1, 3))),
    "drtune_early": (EARLY, DraftObjective(nested=False), lambda w, r: spaced(w, r, last=3, steps=(0, 2))),
}


@pytest.mark.parametrize("name", METHODS)
def test_a_part_of_the_walk_is_gone_back_as_published(name: str, flux: FamilyPolicy, walk: Walk) -> None:
    columns, objective, by_hand = METHODS[name]
    wanted = gradient(flux, by_hand(walk, 2).sum())
    assert difference(followed(flux, columns, objective, [[2]]), wanted) <= 1e-5
    both = gradient(flux, (by_hand(walk, 1) + by_hand(walk, 2)).sum() / 2)
    assert difference(both, wanted) > 1e-2
    for parts in ([[1, 2]], [[1], [2]]):
        assert difference(followed(flux, columns, objective, parts), both) <= 1e-5


def test_where_signal_shrinks_steps_between_are_carried_over() -> None:
    policy = FamilyPolicy("sd15")
    walk = Walk(policy)
    row = len(walk.rollout.mask) - 1
    wanted = gradient(policy, sparse(walk, row, steps=(1, 3), whole=False).sum())
    columns = (Visited(1), Visited(3))
    assert difference(followed(policy, columns, DraftObjective(nested=False), [[row]]), wanted) <= 1e-5
    leaping = (Visited(1, to=3, through=0.0), Visited(3, to=STEPS, through=0.3))
    wanted = gradient(policy, leaps(walk, row).sum())
    assert difference(followed(policy, leaping, DraftObjective(tau=0.02), [[row]]), wanted) <= 1e-5


def test_the_last_step_again_has_fresh_noise_and_counts_as_much_as_the_walk(flux: FamilyPolicy, walk: Walk) -> None:
    columns, found = (Visited(STEPS - 1), STEPS - 1, STEPS - 1), []
    with torch.no_grad():
        flux.look(rolled(flux, columns), torch.tensor([1, 2, 3]), View("walked"), found.append)
    states = {(row, int(f.columns)): f.x[i : i + 1] for f in found for i, row in enumerate(f.rows.tolist())}
    level, total = walk.at[2, STEPS - 1].level, torch.zeros(())
    noise = [(states[2, k] - (1 - level) * walk.clean[2:3]) / level for k in (1, 2)]
    assert all(0.7 < float(e.std()) < 1.3 for e in noise) and float((noise[0] - noise[1]).std()) > 1
    assert float((states[2, 1] - states[3, 1]).std()) > level
    for k in range(3):
        x = states[2, k]
        total = total - reward_of(walk.shown(2, x - level * walk.velocity(2, STEPS - 1, x))).sum() / 3
    wanted = gradient(flux, total)
    assert difference(followed(flux, columns, ReFLObjective(), [[2]]), wanted) <= 1e-5
    split, whole = (followed(flux, columns, ReFLObjective(), parts) for parts in ([[1], [2, 3]], [[1, 2, 3]]))
    assert difference(split, whole) <= 1e-5


def test_a_batch_is_matched_with_good_rewards_by_rank(flux: FamilyPolicy, walk: Walk) -> None:
    rewards = reward_of(walk.rollout.samples)
    low, high = float(rewards.min()), float(rewards.max())
    objective = MatchObjective(target=[high + 100, low - 50, high - 30], scale=0.5, nested=False)
    sorted_target, total = [low - 50, high - 30, high + 100], torch.zeros(())
    for row in range(4):
        rank = int((rewards < rewards[row]).sum())
        place = (rank + 0.5) / 4 * 3 - 0.5  # where its share lies among the three values
        place = min(max(place, 0.0), 2.0)
        near = sorted_target[int(place)]
        goal = near + (sorted_target[min(int(place) + 1, 2)] - near) * (place - int(place))
        v = walk.velocity(row, STEPS - 1, walk.state(row, STEPS - 1))
        end = walk.moved(row, STEPS - 1, STEPS, walk.state(row, STEPS - 1), v)
        total = total + 0.5 * (reward_of(walk.shown(row, end)) - goal).square().sum() / 4
    wanted = gradient(flux, total)
    for parts in ([[0, 1, 2, 3]], [[0], [1, 2], [3]]):
        assert difference(followed(flux, (Visited(STEPS - 1),), objective, parts), wanted) <= 1e-5


def test_an_estimate_on_the_way_is_what_rewards_see(flux: FamilyPolicy, walk: Walk) -> None:
    found: list[Finished] = []
    flux.look(rolled(flux, TUNED), torch.tensor([2]), View("finished"), found.append)
    f = walk.at[2, 3]
    torch.testing.assert_close(found[0].x0, f.clean(f.v), atol=1e-5, rtol=1e-5)
    assert float((found[0].x0 - walk.clean[2:3]).abs().mean()) > 1e-3


def test_a_floor_of_leaps_needs_leaps(flux: FamilyPolicy) -> None:
    with pytest.raises(ValueError, match="set tau=null"):
        followed(flux, WHOLE[-1:], DraftObjective(tau=0.1), [[2]])
