"""The loop on a policy of tokens: it learns, and how rows are cut, ordered or skipped changes nothing."""

from collections.abc import Callable, Iterator, Sequence
from dataclasses import replace

import pytest
import torch
from torch import Tensor, nn

from flowrl.contracts import LogProbs, Prompt, Rollout, Samples, View
from flowrl.core.advantages.combined import advantages
from flowrl.core.iterate import iterate
from flowrl.core.learning.learner import Learner
from flowrl.core.objectives.grpo import ClippedObjective
from flowrl.core.selection import without_silent
from flowrl.core.update import Settings, update

LENGTH, WORDS = 5, 7


class Tokens:
    """A policy of tokens: independent categorical draws from one table of logits; sequences end at word 0."""

    whole_rows = True

    def __init__(self, seed: int = 0) -> None:
        generator = torch.Generator().manual_seed(seed)
        self.table = nn.Parameter(0.1 * torch.randn(LENGTH, WORDS, generator=generator))
        self.first_table = self.table.detach().clone()
        self.blocks: list[int] = []

    def rollout(
        self, prompts: Sequence[Prompt], *, group_size: int, plan: object, seed: int, first: int = 0, **_: object
    ) -> Rollout:
        generator = torch.Generator().manual_seed(seed * 1009 + first)
        rows = len(prompts) * group_size
        probs = self.table.detach().softmax(-1).expand(rows, LENGTH, WORDS).reshape(-1, WORDS)
        words = torch.multinomial(probs, 1, generator=generator).reshape(rows, LENGTH)
        ended = ((words == 0).cumsum(1) - (words == 0).int()) > 0
        group = torch.arange(len(prompts)).repeat_interleave(group_size)
        texts = [" ".join(map(str, w.tolist())) for w in words]
        samples = Samples([prompts[g] for g in group], group, texts=texts)
        return Rollout(samples, self._logp(self.table.detach(), words), ~ended, words)

    def _logp(self, table: Tensor, words: Tensor) -> Tensor:
        return table.log_softmax(-1).expand(len(words), -1, -1).gather(2, words[..., None])[..., 0]

    def look(self, rollout: Rollout, rows: Tensor, view: View, visit: Callable, **_: object) -> None:
        words = rollout.replay[rows]
        if view.weights == "reference":
            visit(LogProbs(rows, torch.arange(LENGTH), self._logp(self.first_table, words)))
            return
        self.blocks.append(len(rows))
        log_p, log_q = self.table.log_softmax(-1), self.first_table.log_softmax(-1)
        kl = (log_p.exp() * (log_p - log_q)).sum(-1).expand(len(rows), -1) if view.exact_kl else None
        visit(LogProbs(rows, torch.arange(LENGTH), self._logp(self.table, words), kl))

    def trainable(self) -> Iterator[nn.Parameter]:
        yield self.table


PROMPTS = [Prompt(f"p{i}", "count threes") for i in range(4)]
OBJECTIVE = ClippedObjective(0.2, 0.2, aggregate="seq_mean_mean")


def threes(samples: Samples) -> dict[str, Tensor]:
    return {"threes": torch.tensor([float(t.split().count("3")) for t in samples.texts])}


def normalised(rewards: dict[str, Tensor], rollout: Rollout) -> tuple[Tensor, dict[str, float]]:
    reward = next(iter(rewards.values()))
    return advantages(rewards, rollout.samples.group, weights={"threes": 1.0}), {"reward": float(reward.mean())}


def after_update(objective: ClippedObjective, settings: Settings, adv: Tensor | None = None) -> tuple[Tensor, dict]:
    """The table after one update from a fixed rollout, and the metrics."""
    policy = Tokens()
    learner = Learner(policy.trainable(), lr=0.05, weight_decay=0.0)
    rollout = policy.rollout(PROMPTS, group_size=6, plan=None, seed=3)
    adv = torch.linspace(-1, 1, 24) if adv is None else adv
    metrics = update(policy, learner, rollout, adv, objective, settings)
    return policy.table.detach(), metrics


def test_the_loop_trains_tokens():
    policy = Tokens()
    learner = Learner(policy.trainable(), lr=0.1)
    rewards = []
    for i in range(25):
        result = iterate(
            policy,
            learner,
            PROMPTS,
            plan=None,
            seed=0,
            first=i * 8,
            score=threes,
            advantage=normalised,
            objective=OBJECTIVE,
            settings=Settings(group=8, updates=2),
        )
        rewards.append(result.metrics["reward"])
    assert sum(rewards[-5:]) / 5 > sum(rewards[:5]) / 5 + 1.0
    assert {"time_rollout", "time_score", "time_train", "grad_norm", "clip_frac"} <= set(result.metrics)


@pytest.mark.parametrize("aggregate", ["decision_mean", "seq_mean_mean", "seq_mean_sum"])
@pytest.mark.parametrize("kl", [0.0, 0.1])
def test_micro_batches_change_nothing(aggregate: str, kl: float):
    objective = replace(OBJECTIVE, aggregate=aggregate, kl=kl)
    whole, metrics = after_update(objective, Settings(6))
    for micro in (1, 5, 7):
        table, parts = after_update(objective, Settings(6, micro_batch=micro))
        torch.testing.assert_close(table, whole, atol=1e-6, rtol=0)
        for name in ("loss", "ratio", "clip_frac", "grad_norm"):
            assert parts[name] == pytest.approx(metrics[name], abs=1e-6)


def test_an_emphasis_on_decisions_reaches_the_gradient_of_every_update():
    _, plain = after_update(OBJECTIVE, Settings(6, updates=2))
    _, doubled = after_update(replace(OBJECTIVE, weight=(2.0,) * LENGTH), Settings(6, updates=2))
    assert doubled["grad_norm"] == pytest.approx(2 * plain["grad_norm"], rel=1e-5)


def test_rows_without_advantage_are_skipped_and_change_nothing():
    adv = torch.linspace(-1, 1, 24).where(torch.arange(24) % 3 == 0, 0.0)
    table, metrics = after_update(OBJECTIVE, Settings(6), adv)

    class NeverSkips(ClippedObjective):
        needs = frozenset({"reference"})  # rows are then replayed whatever their advantage

    full, _ = after_update(NeverSkips(0.2, 0.2, aggregate="seq_mean_mean"), Settings(6), adv)
    torch.testing.assert_close(table, full, atol=1e-6, rtol=0)
    assert metrics["active_rows"] == pytest.approx(8 / 24)
    assert metrics["ratio"] == pytest.approx(1.0, abs=1e-6)


def test_an_update_without_any_advantage_moves_nothing():
    table, metrics = after_update(OBJECTIVE, Settings(6), torch.zeros(24))
    assert torch.equal(table, Tokens().table.detach())
    assert metrics["empty_updates"] == 1 and metrics["active_rows"] == 0


def test_a_divergence_pulls_back_to_the_reference():
    free, _ = after_update(OBJECTIVE, Settings(6, epochs=20))
    for kind in ("exact", "k3"):
        held, metrics = after_update(replace(OBJECTIVE, kl=5.0, kl_kind=kind), Settings(6, epochs=20))
        assert (held - Tokens().table).norm() < 0.7 * (free - Tokens().table).norm()
        assert metrics["kl"] > 0


def test_epochs_and_updates_count_optimizer_steps():
    policy = Tokens()
    learner = Learner(policy.trainable(), lr=0.01)
    rollout = policy.rollout(PROMPTS, group_size=6, plan=None, seed=3)
    update(
        policy, learner, rollout, torch.linspace(-1, 1, 24), OBJECTIVE, Settings(6, epochs=2, updates=4, micro_batch=4)
    )
    assert learner.steps == 8
    assert policy.blocks == [4, 2] * 8


def test_a_gradient_that_is_not_finite_moves_nothing():
    policy = Tokens()
    learner = Learner(policy.trainable(), lr=0.05)
    rollout = policy.rollout(PROMPTS, group_size=6, plan=None, seed=3)
    adv = torch.full((24,), float("inf"))
    metrics = update(policy, learner, rollout, adv, replace(OBJECTIVE, clip_low=1.0, clip_high=9.0), Settings(6))
    assert metrics["nonfinite_updates"] == 1 and learner.steps == 0
    assert torch.equal(policy.table.detach(), Tokens().table.detach())


def test_updates_by_step_are_those_of_the_rows_of_each_step():
    """Two optimizer steps on the rows of columns 0 and 1, then 2 and 3, are two updates on these rows alone."""
    tables = []
    for by_step in (True, False):
        policy = Tokens()
        rollout = policy.rollout(PROMPTS, group_size=6, plan=None, seed=3)
        own = torch.arange(24) % 4
        rollout.mask = own[:, None] == torch.arange(LENGTH)  # each row has one decision
        adv, learner = torch.linspace(-1, 1, 24), Learner(policy.trainable(), lr=0.05)
        if by_step:
            metrics = update(policy, learner, rollout, adv, OBJECTIVE, Settings(6, updates=2, update_by="steps"))
            assert policy.blocks == [12, 12] and metrics["empty_updates"] == 0
        else:
            for part in (own < 2, own >= 2):
                masked = replace(rollout, mask=rollout.mask & part[:, None])
                update(policy, learner, masked, adv.where(part, 0.0), OBJECTIVE, Settings(6))
        tables.append(policy.table.detach())
    torch.testing.assert_close(tables[0], tables[1], atol=1e-6, rtol=0)


@pytest.mark.parametrize("kl", [0.0, 0.1])
def test_silent_rows_are_dropped_before_the_loss_is_divided(kl: float):
    """Two updates of what is left are those of a rollout that never had the silent rows."""
    objective, silent = replace(OBJECTIVE, kl=kl), torch.arange(24) % 3 == 1
    adv = torch.linspace(-1, 1, 24).masked_fill(silent, 0.0)
    tables, metrics = [], []
    for dropped in (True, False):
        policy = Tokens()
        rollout = policy.rollout(PROMPTS, group_size=6, plan=None, seed=3)
        learner, left = Learner(policy.trainable(), lr=0.05, weight_decay=0.0), ~silent
        if dropped:
            rollout, own = without_silent(rollout, adv), Settings(6, updates=2, drop_silent=True)
            metrics.append(update(policy, learner, rollout, adv, objective, own))
        else:
            rollout = replace(
                rollout, rollout_logp=rollout.rollout_logp[left], mask=rollout.mask[left], replay=rollout.replay[left]
            )
            metrics.append(update(policy, learner, rollout, adv[left], objective, Settings(6, updates=2)))
        tables.append(policy.table.detach())
    torch.testing.assert_close(tables[0], tables[1], atol=1e-6, rtol=0)
    for name in ("loss", "ratio", "grad_norm"):
        assert metrics[0][name] == pytest.approx(metrics[1][name], abs=1e-6)


def test_an_iteration_drops_silent_rows_where_it_is_asked_to():
    """Half of the groups are silent: without them a mean is twice as large, and they pay no divergence."""

    def halves(rewards: dict[str, Tensor], rollout: Rollout) -> tuple[Tensor, dict[str, float]]:
        return torch.linspace(-1, 1, len(rollout.samples)).where(rollout.samples.group % 2 == 0, 0.0), {}

    found = {}
    for drop in (True, False):
        policy = Tokens()
        found[drop] = iterate(
            policy,
            Learner(policy.trainable(), lr=0.1),
            PROMPTS,
            plan=None,
            seed=0,
            first=0,
            score=threes,
            advantage=halves,
            objective=replace(OBJECTIVE, kl=0.1),
            settings=Settings(group=8, drop_silent=drop),
        ).metrics
    assert found[True]["active_rows"] == 0.5 and found[False]["active_rows"] == 1.0
    assert found[True]["grad_norm"] == pytest.approx(2 * found[False]["grad_norm"], rel=1e-4)


def test_a_greedy_sample_of_each_prompt_gives_the_baseline() -> None:
    """It is drawn by its own plan, scored last, and its reward is that of every member of the group."""
    plans, policy = [], Tokens()

    def rollout(prompts: Sequence[Prompt], *, plan: object, **more: int) -> Rollout:
        plans.append((plan, more["group_size"]))
        return Tokens.rollout(policy, prompts, plan=plan, **more)

    def advantage(rewards: dict[str, Tensor], drawn: Rollout) -> tuple[Tensor, dict[str, float]]:
        assert drawn.baseline is not None
        greedy = threes(Tokens.rollout(policy, PROMPTS, group_size=1, plan="greedy", seed=5, first=6).samples)["threes"]
        torch.testing.assert_close(drawn.baseline["threes"], greedy.repeat_interleave(3))
        options = dict(weights={"threes": 1.0}, baseline="given", scale="none", clip=None, given=drawn.baseline)
        return advantages(rewards, drawn.samples.group, **options), {}

    policy.rollout = rollout  # type: ignore[method-assign]
    learner = Learner(policy.trainable(), lr=0.01)
    common = dict(plan="drawn", seed=5, first=6, score=threes, advantage=advantage, objective=OBJECTIVE)
    iterate(policy, learner, PROMPTS, settings=Settings(3), baseline_plan="greedy", **common)
    assert plans == [("drawn", 3), ("greedy", 1)]
