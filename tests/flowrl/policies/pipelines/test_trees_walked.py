"""Trees through a real pipeline, against walking every segment of every sample alone, step by step."""

from __future__ import annotations

from dataclasses import dataclass, replace

import pytest
import torch
from torch import Tensor

from flowrl.contracts import LogProbs, Rollout, View
from flowrl.core.backward import fill_reference
from flowrl.policies import adapters
from flowrl.policies.errors import PolicyError
from flowrl.policies.noise import Key, step_noise
from policies_support import PROMPTS, SEED, STEPS, FamilyPolicy, gap, pictures, scores, shake
from samplers.decisions import decisions, replay_forwards, stored_states
from samplers.plan import ROOT, OwnTable, Plan, Segment, Tree
from samplers.transitions import flow_sde


@dataclass(frozen=True)
class Grown:
    """A plan that is one given tree."""

    whole: Tree

    @property
    def num_steps(self) -> int:
        """Steps of the pipeline."""
        return self.whole.num_steps

    def tree(self, group: int) -> Tree:
        """The tree, whatever the group."""
        return self.whole


@dataclass(frozen=True)
class Every:
    """Own levels up to number `after`, then every second one."""

    after: int

    def num_steps(self, own: int) -> int:
        """Its steps."""
        return len(self._kept(own)) - 1

    def levels(self, own: Tensor) -> Tensor:
        """Its levels."""
        return own[self._kept(len(own) - 1)]

    def _kept(self, own: int) -> list[int]:
        return sorted({*range(self.after + 1), *range(self.after, own, 2), own})


def chain(parent: int, begin: int, end: int, member: int, **more: object) -> Segment:
    """A segment whose every step draws and is trained."""
    steps = tuple(range(begin, end))
    return Segment(parent, begin, end, steps, steps, member=member, **more)  # type: ignore[arg-type]


BRANCHES = Tree(
    STEPS,
    (
        chain(ROOT, 0, 2, 0, peers=0),
        chain(ROOT, 0, 2, 1, peers=0),
        *(chain(p, 2, 4, 2 + i, peers=1, correlation=0.5, scale=1.5) for i, p in enumerate((0, 0, 1, 1))),
    ),
)
PER_STEP = Tree(
    STEPS,
    (
        Segment(ROOT, 0, 1),
        *(Segment(ROOT, 0, 4, (0,), (0,), member=i, peers=0) for i in (0, 1)),
        Segment(0, 1, 2),
        *(Segment(0, 1, 4, (1,), (1,), member=i, peers=1) for i in (2, 3)),
        *(Segment(3, 2, 4, (2,), (2,), member=i, peers=2) for i in (4, 5)),
    ),
)
STRIDES = Tree(
    STEPS,
    (
        *(Segment(ROOT, 0, 1, (0,), (0,), member=i) for i in (0, 1)),
        *(Segment(i, 1, 4, view=0) for i in (0, 1)),
        *(Segment(i, 1, 3, table=1, view=1) for i in (0, 1)),
    ),
    tables=(OwnTable(), Every(1)),
)
LAST = Plan(STEPS, (3,), (3,), share_noise=True).tree(3)  # fans out at the very last step
TAIL = Plan(STEPS, (0, 1), (0, 1), tail=Every(2), solver="dpmpp_2m").tree(2)
SPLIT = Tree(STEPS, (chain(ROOT, 0, 1, 0), Segment(0, 1, 4), Segment(0, 1, 4, (2,), (2,), member=1)))
TREES = {"branches": BRANCHES, "per_step": PER_STEP, "strides": STRIDES, "last": LAST, "tail": TAIL, "split": SPLIT}


@pytest.fixture(scope="module")
def policy() -> FamilyPolicy:
    policy = FamilyPolicy("flux")
    adapters.add_lora(policy.modules, rank=2, alpha=4)
    shake(policy.modules)
    policy.prepare(PROMPTS[0], Grown(BRANCHES))
    return policy


class Alone:
    """Every segment of a tree walked on its own with velocities asked for one by one, prompt by prompt."""

    def __init__(self, policy: FamilyPolicy, tree: Tree):
        self.policy, self.tree = policy, tree
        rollout = policy.rollout(PROMPTS, plan=Plan(STEPS, (), ()), seed=SEED)
        assert len(rollout.samples) == len(PROMPTS)
        self.own = policy.pipe.scheduler.sigmas.float().cpu()

    def state(self, prompt: int, segment: int, step: int, logp: dict[int, Tensor] | None = None) -> Tensor:
        """The state after a step of a segment, and by step the log-probs of its draws."""
        own, x = self.tree.segments[segment], None
        before: tuple[Tensor, float] | None = None
        for i in self.tree.path(segment):
            s = self.tree.segments[i]
            levels = self.tree.tables[s.table].levels(self.own).tolist()
            for at in range(s.begin, min(s.end, step + 1)):
                given = self.start(prompt, self.tree.segments[self.tree.path(i)[0]].start) if x is None else x
                v = self.velocity(prompt, given, at, levels[at], self.tree.segments[self.tree.path(i)[0]].start)
                x0 = given - levels[at] * v
                if at in s.stochastic:
                    law = flow_sde(given, v, levels[at], levels[at + 1], noise=0.7, s_cap=float(self.own[1]))
                    std = law.std * (s.scale if at == s.begin else 1)
                    x = law.mean + std * self.noise(prompt, i, at, x0.shape[1:])
                    if logp is not None and i == segment and own is s:
                        normal = torch.distributions.Normal(law.mean, std.expand_as(law.mean))
                        logp[at] = normal.log_prob(x).mean()
                elif s.solver == "euler" or before is None or levels[at + 1] == 0:
                    x = given + v * (levels[at + 1] - levels[at])
                else:
                    x = second_order(given, x0, levels[at], levels[at + 1], before)
                before = (x0, levels[at])
        assert x is not None
        return x

    def start(self, prompt: int, member: int) -> Tensor:
        """The initial state as the pipeline draws it."""
        key = Key(SEED, PROMPTS[prompt].id, member)
        self.policy.run(look := First(), [PROMPTS[prompt]], [key], steps=STEPS)
        return look.x

    def velocity(self, prompt: int, x: Tensor, at: int, level: float, member: int) -> Tensor:
        """v at a level, by a call of the denoiser as an own pass whose table has this level at this place."""
        look = At(x, at, level)
        self.policy.run(look, [PROMPTS[prompt]], [Key(SEED, PROMPTS[prompt].id, member)], steps=STEPS)
        return look.v

    def noise(self, prompt: int, segment: int, at: int, shape: torch.Size) -> Tensor:
        """The draw of a segment, with what it shares with its siblings."""
        s, name = self.tree.segments[segment], PROMPTS[prompt].id

        def drawn(member: int, use: str) -> Tensor:
            return step_noise([Key(SEED, name, member)], at, 0, shape, torch.device("cpu"), use=use)

        own = drawn(s.member, "step")
        if not s.correlation or at != s.begin:
            return own
        siblings = [t for t in self.tree.segments if (t.parent, t.begin) == (s.parent, s.begin)]
        common = drawn(siblings[0].member, "siblings")
        return s.correlation**0.5 * common + (1 - s.correlation) ** 0.5 * own


def second_order(x: Tensor, x0: Tensor, s: float, t: float, before: tuple[Tensor, float]) -> Tensor:
    """DPM-Solver++(2M), midpoint, written out."""

    def half_log_snr(level: float) -> float:
        return float(torch.tensor((1 - level) / level, dtype=torch.float64).log())

    h = half_log_snr(t) - half_log_snr(s)
    last = half_log_snr(s) - half_log_snr(before[1])
    slope = (x0 - before[0]) * (h / last)
    return (t / s) * x - (1 - t) * float(torch.tensor(-h).exp() - 1) * (x0 + 0.5 * slope)


class First:
    """A walk that keeps the first state and leaves."""

    rows, table = 1, OwnTable()

    def is_real(self, iteration: int) -> bool:
        return True

    def skipped_state(self, iteration: int, stream: int) -> Tensor:
        raise AssertionError("nothing is skipped")

    def step(self, step: object) -> Tensor:
        from flowrl.policies.pipelines.steps.intercepted import EndOfWalk

        self.x = step.x  # type: ignore[attr-defined]
        raise EndOfWalk


class At:
    """A walk that looks at one given state at one iteration, whose level it sets."""

    rows = 1

    def __init__(self, x: Tensor, at: int, level: float):
        self.x, self.at = x, at
        self.table = Moved(at, level)

    def is_real(self, iteration: int) -> bool:
        return iteration == self.at

    def skipped_state(self, iteration: int, stream: int) -> Tensor:
        return self.x

    def step(self, step: object) -> Tensor:
        from flowrl.policies.pipelines.steps.intercepted import EndOfWalk

        self.v = step.v  # type: ignore[attr-defined]
        raise EndOfWalk


@dataclass(frozen=True)
class Moved:
    """The own table with one level replaced."""

    at: int
    level: float

    def num_steps(self, own: int) -> int:
        return own

    def levels(self, own: Tensor) -> Tensor:
        moved = own.clone()
        moved[self.at] = self.level
        return moved


@pytest.mark.parametrize("max_rows", [None, 3, 1])
@pytest.mark.parametrize("name", TREES)
def test_a_tree_is_its_segments_walked_alone(policy: FamilyPolicy, name: str, max_rows: int | None) -> None:
    tree = TREES[name]
    policy.max_rows = max_rows
    rollout = policy.rollout(PROMPTS, plan=Grown(tree), seed=SEED)
    policy.max_rows = None
    alone = Alone(policy, tree)
    rows, leaves = len(tree.rows), len(tree.leaves)
    assert rollout.rollout_logp.shape == (len(PROMPTS) * rows, len(tree.trained))
    assert rollout.samples.group.tolist() == [p for p in range(len(PROMPTS)) for _ in range(leaves)]
    for p in range(len(PROMPTS)):
        for j, segment in enumerate(tree.rows):
            expected: dict[int, Tensor] = {}
            alone.state(p, segment, STEPS, expected)
            found = rollout.rollout_logp[p * rows + j]
            for column, step in enumerate(tree.trained):
                trained = step in tree.segments[segment].trained
                assert bool(rollout.mask[p * rows + j, column]) == trained
                assert float(found[column]) == pytest.approx(float(expected[step]) if trained else 0.0, abs=2e-5)
        finished = torch.cat([alone.state(p, leaf, STEPS) for leaf in tree.leaves])
        shown = policy.decode([PROMPTS[p]] * leaves, finished, plan=Grown(tree), seed=SEED)
        assert gap(shown.detach(), pictures(rollout)[p * leaves : (p + 1) * leaves]) <= 1e-4


@pytest.mark.parametrize("max_rows", [None, 3])
@pytest.mark.parametrize("name", TREES)
def test_a_replay_is_its_rollout(policy: FamilyPolicy, name: str, max_rows: int | None) -> None:
    policy.max_rows = max_rows
    rollout = policy.rollout(PROMPTS, plan=Grown(TREES[name]), seed=SEED)
    policy.max_rows = None
    found = replayed(policy, rollout)
    if max_rows is None:
        assert torch.equal(found, rollout.rollout_logp), "at equal batch shapes the ratio is exactly 1"
    assert gap(found, rollout.rollout_logp) <= 1e-5
    for rows in ([0], [len(rollout.rollout_logp) - 1, 1]):
        assert gap(replayed(policy, rollout, rows)[rows], rollout.rollout_logp[rows]) <= 1e-5


def replayed(policy: FamilyPolicy, rollout: Rollout, rows: list[int] | None = None) -> Tensor:
    """Log-probs of the decisions that rows have, 0 elsewhere."""
    found = torch.zeros_like(rollout.rollout_logp)

    def visit(score: LogProbs) -> None:
        assert rollout.mask[score.rows[:, None], score.columns[None]].all()
        found[score.rows[:, None], score.columns[None]] = score.logp.detach().to(found)

    policy.look(rollout, torch.arange(len(found)) if rows is None else torch.tensor(rows), View(), visit)
    return found


@pytest.mark.parametrize("name", TREES)
def test_nothing_is_computed_twice(policy: FamilyPolicy, name: str) -> None:
    """Real denoiser rows are those that the tree promises: in the rollout, and in training for each micro-batch."""
    tree, real = TREES[name], []
    denoiser = policy.modules["transformer"]
    hook = denoiser.register_forward_pre_hook(
        lambda _, args, kwargs: real.append(len(kwargs.get("hidden_states", args[0] if args else None))),
        with_kwargs=True,
    )
    try:
        rollout = policy.rollout(PROMPTS, plan=Grown(tree), seed=SEED)
        assert sum(real) == len(PROMPTS) * sum(len(front.units) for front in tree.fronts)
        for updates, micro in ((1, None), (1, 2), (2, 1), (2, 3)):
            real.clear()
            size = len(rollout.rollout_logp) // updates
            for block in torch.arange(len(rollout.rollout_logp)).split(size):
                for part in block.split(micro or size):
                    policy.look(rollout, part, View(), lambda _: None)
            assert sum(real) == replay_forwards(tree, len(PROMPTS), updates, micro)
    finally:
        hook.remove()


@pytest.mark.parametrize("name", TREES)
def test_stored_latents_are_those_that_were_counted(policy: FamilyPolicy, name: str) -> None:
    tree = TREES[name]
    trajectory = policy.rollout(PROMPTS, plan=Grown(tree), seed=SEED).replay
    tensors = [
        x for part in (trajectory.enter, trajectory.drawn) for streams in part.values() for x in streams.values()
    ]
    held = {x.untyped_storage().data_ptr(): x.untyped_storage().nbytes() for x in tensors}
    each = tensors[0][0].numel() * tensors[0].element_size()
    assert sum(held.values()) == len(PROMPTS) * stored_states(tree)[0] * each


@pytest.mark.parametrize("name", TREES)
def test_the_reference_and_the_divergence_of_trees(policy: FamilyPolicy, name: str) -> None:
    rollout = policy.rollout(PROMPTS, plan=Grown(TREES[name]), seed=SEED)
    rows = torch.arange(len(rollout.rollout_logp))
    for part in (rows[:2], rows[2:]):
        fill_reference(policy, rollout, part, View(exact_kl=True))
    untrained = FamilyPolicy("flux")
    untrained.prepare(PROMPTS[0], Grown(TREES[name]))
    assert rollout.reference is not None
    assert gap(replayed(untrained, rollout), rollout.reference) <= 1e-5
    found: list[float] = []
    policy.look(rollout, rows, View(exact_kl=True), lambda seen: found.extend(seen.kl.flatten().tolist()))  # type: ignore[union-attr]
    assert len(found) == int(rollout.mask.sum()) and min(found) > 0


@pytest.mark.parametrize("name", TREES)
def test_the_centred_log_ratio_is_zero_at_the_policy_that_drew(name: str) -> None:
    """And elsewhere: log-ratio plus half the squared distance of the means, exactly (GRPO-Guard's RatioNorm)."""
    policy = FamilyPolicy("flux", keep_means=True)
    adapters.add_lora(policy.modules, rank=2, alpha=4)
    rollout = policy.rollout(PROMPTS, plan=Grown(TREES[name]), seed=SEED)
    rows = torch.arange(len(rollout.rollout_logp))
    same: list[Tensor] = []
    policy.look(rollout, rows, View(centred=True), lambda seen: same.append(seen.centred.detach()))  # type: ignore[union-attr]
    assert all(not bool(c.any()) for c in same)

    old = {at: streams[0].clone() for at, streams in rollout.replay.mean.items()}
    shake(policy.modules)
    moved = replace(rollout)
    fill_reference(policy, moved, rows, View(exact_kl=True))  # the adapters off: the policy that drew
    found: list[tuple[LogProbs, Tensor]] = []
    policy.look(moved, rows, View(centred=True, exact_kl=True), lambda s: found.append((s, s.kl.detach())))  # type: ignore[union-attr]
    for score, kl in found:
        drawn = moved.rollout_logp[score.rows[:, None], score.columns[None]]
        assert score.centred is not None and score.centred.requires_grad
        assert torch.allclose(score.centred.detach(), score.logp.detach() - drawn + kl, atol=2e-6)
    layout = decisions(TREES[name])
    assert all(len(mean) == len(PROMPTS) * len(layout[at].units) for at, mean in old.items())


def test_means_that_were_not_kept_are_asked_for(policy: FamilyPolicy) -> None:
    rollout = policy.rollout(PROMPTS, plan=Grown(BRANCHES), seed=SEED)
    with pytest.raises(PolicyError, match="keep_means"):
        policy.look(rollout, torch.arange(2), View(centred=True), lambda _: None)


def test_traits_are_std_and_length_of_every_decision(policy: FamilyPolicy) -> None:
    rollout = policy.rollout(PROMPTS, plan=Grown(BRANCHES), seed=SEED)
    sigmas = policy.pipe.scheduler.sigmas.tolist()
    x = torch.zeros(1, 2)
    for j, segment in enumerate(BRANCHES.rows):
        for k, step in enumerate(BRANCHES.trained):
            own = BRANCHES.segments[segment]
            if step not in own.trained:
                assert float(rollout.step_stats["std"][j, k]) == float(rollout.step_stats["dt"][j, k]) == 0.0
                continue
            law = flow_sde(x, x, sigmas[step], sigmas[step + 1], noise=0.7, s_cap=sigmas[1])
            factor = own.scale if step == own.begin else 1.0
            assert float(rollout.step_stats["std"][j, k]) == pytest.approx(float(law.std) * factor, rel=1e-6)
            assert float(rollout.step_stats["dt"][j, k]) == pytest.approx(sigmas[step + 1] - sigmas[step], rel=1e-5)


def test_credit_is_there_only_where_rows_are_not_samples(policy: FamilyPolicy) -> None:
    credits = {n: policy.rollout(PROMPTS, plan=Grown(t), seed=SEED).credit for n, t in TREES.items()}
    assert {name for name, credit in credits.items() if credit is None} == {"last", "tail"}
    branches, strides = credits["branches"], credits["strides"]
    assert branches is not None and strides is not None
    assert branches.weights[0, 0].tolist()[:2] == [[0.5, 0.5, 0, 0], [0, 0, 0.5, 0.5]]
    assert branches.peers.tolist() == [0, 0, 1, 1, 1, 1]
    assert strides.weights.shape == (1, 2, 2, 4) and strides.weights[0].sum(-1).tolist() == [[1, 1], [1, 1]]


@pytest.fixture(scope="module")
def other(request: pytest.FixtureRequest) -> FamilyPolicy:
    return FamilyPolicy(request.param)


@pytest.mark.parametrize("other", ["wan22", "ltx2", "sd3_inpaint", "mochi", "hunyuan_image"], indirect=True)
@pytest.mark.parametrize("name", ["branches", "per_step", "strides"])
def test_trees_of_other_families(other: FamilyPolicy, name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """Two denoisers, two streams, overwritten elements, inverted tables, calls whose rows depend on each other."""
    policy = other
    for skip in (True, False):
        rollout = policy.rollout(PROMPTS, plan=Grown(TREES[name]), seed=SEED)
        assert torch.equal(replayed(policy, rollout), rollout.rollout_logp)
        one = [len(rollout.rollout_logp) - 1]
        assert gap(replayed(policy, rollout, one)[one], rollout.rollout_logp[one]) <= 2e-5
        if skip:
            first = rollout
            monkeypatch.setattr(policy.keeper, "skip", False)  # as where a denoiser leaves something behind
    assert gap(first.rollout_logp, rollout.rollout_logp) <= 1e-5
    assert gap(pictures(first), pictures(rollout)) <= 1e-4


def test_a_straight_rollout_replays_row_by_row(policy: FamilyPolicy) -> None:
    rollout = policy.rollout(PROMPTS, group_size=2, plan=Plan(STEPS, (1, 2), (2,), share_noise=True), seed=SEED)
    assert gap(scores(policy, rollout), rollout.rollout_logp) == 0


def test_updates_by_step_replay_each_state_once() -> None:
    assert replay_forwards(PER_STEP, 2, 3, None, by_step=True) == 2 * 3
    assert replay_forwards(PER_STEP, 2, 3, 1, by_step=True) == 2 * 6
    assert replay_forwards(PER_STEP, 2, 1, None) == 2 * 3
