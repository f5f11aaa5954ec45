"""A critic in the loop: its loss, what it is fitted to, and that how rows are cut changes nothing."""

from collections.abc import Callable, Iterator
from dataclasses import replace
from typing import Any

import pytest
import torch
from torch import Tensor, nn

import golden
from flowrl.contracts import Batch, LogProbs, Prompt, Rollout, Samples, Valued, View
from flowrl.core.advantages.decisions import DecisionCredit, KlReward, kl_as_reward
from flowrl.core.engine import LocalEngine
from flowrl.core.iterate import iterate
from flowrl.core.learning.learner import Learner
from flowrl.core.objectives.aggregate import reduce_metrics, weights
from flowrl.core.objectives.grpo import ClippedObjective
from flowrl.core.objectives.value import ValueObjective
from flowrl.core.refill import JoinedPolicy, join_rollouts
from flowrl.core.update import Settings, update
from flowrl.core.values import Critic, value_metrics

ROWS, LENGTH = 6, 5
MASK = torch.ones(ROWS, LENGTH).bool()
MASK[2, 3:] = MASK[3, 1:3] = MASK[5, 1:] = False  # short rows, and the fourth has a hole


class Rows:
    """Rows that are there: their log-probs, or values, are parameters of their own."""

    whole_rows = True

    def __init__(self, seed: int) -> None:
        draw = torch.Generator().manual_seed(seed)
        self.own = nn.Linear(LENGTH, LENGTH)
        nn.init.normal_(self.own.weight, generator=draw)
        nn.init.zeros_(self.own.bias)
        self.inputs = torch.randn(ROWS, LENGTH, generator=draw)
        self.modules: dict[str, nn.Module] = {"own": self.own}
        self.number = 0

    def rollout(self, prompts: list[Prompt], **_: Any) -> Rollout:
        group = torch.arange(ROWS) // 3
        samples = Samples([prompts[g] for g in group], group, texts=[str(i) for i in range(ROWS)])
        return Rollout(samples, self.numbers(torch.arange(ROWS)).detach(), MASK.clone(), None)

    def numbers(self, rows: Tensor) -> Tensor:
        return -self.own(self.inputs[rows]).square()

    def look(self, rollout: Rollout, rows: Tensor, view: View, visit: Callable, **_: Any) -> None:
        self.number += len(rows)
        columns = torch.arange(LENGTH)
        numbers = self.numbers(rows) + (0.3 if view.weights == "reference" else 0.0)
        visit(Valued(rows, columns, numbers) if view.states == "valued" else LogProbs(rows, columns, numbers))

    def trainable(self) -> Iterator[nn.Parameter]:
        return self.own.parameters()


PROMPTS = [Prompt("a", "one"), Prompt("b", "two")]
REWARDS = torch.tensor([1.0, 0.0, 0.5, torch.nan, 2.0, 1.0])
CREDIT = DecisionCredit("gae", gamma=0.9, lam=0.8, lam_critic=1.0, whitened=True)


def advantage(rewards: dict[str, Tensor], rollout: Rollout) -> tuple[Tensor, dict[str, float]]:
    outcome = rewards["r"].nan_to_num()
    return CREDIT(outcome, rollout, unscored=rewards["r"].isnan(), kl=KlReward(0.1)), {}


def iterated(settings: Settings, **critic: Any) -> tuple[Rows, Rows, dict[str, float], Critic]:
    policy, values = Rows(0), Rows(1)
    learner = Learner(policy.trainable(), lr=0.01, weight_decay=0.0)
    given = Critic(values, Learner(values.trainable(), lr=0.02, weight_decay=0.0), ValueObjective(0.2), **critic)
    common: dict[str, Any] = dict(plan=None, seed=0, first=0, advantage=advantage, critic=given)
    common |= {"score": lambda samples: {"r": REWARDS}, "objective": ClippedObjective(0.2, 0.2)}
    result = iterate(policy, learner, PROMPTS, settings=replace(settings, kl_in_reward=True), **common)
    return policy, values, result.metrics, given


@pytest.mark.parametrize("micro_batch", [1, 2, 4])
def test_micro_batches_change_neither_policy_nor_critic(micro_batch: int) -> None:
    whole, own, metrics, _ = iterated(Settings(3), updates=2)
    policy, values, found, _ = iterated(Settings(3, micro_batch=micro_batch), updates=2)
    for one, other in ((whole, policy), (own, values)):
        torch.testing.assert_close(other.own.weight, one.own.weight, rtol=1e-6, atol=1e-6)
    assert found["value/loss"] == pytest.approx(metrics["value/loss"], rel=1e-5)


def test_a_critic_is_fitted_to_the_rows_that_could_be_scored() -> None:
    policy, values = Rows(0), Rows(1)
    rollout = policy.rollout(PROMPTS)
    with torch.no_grad():
        rollout.reference = rollout.rollout_logp + 0.3
        rollout.value = values.numbers(torch.arange(ROWS)).where(MASK, 0.0)
    adv, _ = advantage({"r": REWARDS}, rollout)
    assert rollout.returns is not None and rollout.returns[3, MASK[3]].isnan().all() and (adv[3] == 0).all()
    assert rollout.returns[[0, 1, 2, 4, 5]].isfinite().all() and adv[2, :3].abs().min() > 0
    # the third row by hand: lambda 1, each of its three decisions pays a tenth of log p - log p_ref = -0.3
    paid = 0.03
    want = [paid + 0.9 * (paid + 0.9 * (0.5 + paid)), paid + 0.9 * (0.5 + paid), 0.5 + paid]
    torch.testing.assert_close(rollout.returns[2, :3], torch.tensor(want))
    known = MASK & ~rollout.returns.isnan()
    assert float(adv[known].mean()) == pytest.approx(0.0, abs=1e-6) and float(adv[known].var()) == pytest.approx(
        1, abs=1e-4
    )
    left = rollout.returns[known] - rollout.value[known]
    explained = 1 - left.var(correction=0) / rollout.returns[known].var(correction=0)
    assert value_metrics(rollout)["value/explained_variance"] == pytest.approx(float(explained), abs=1e-5)


def test_a_critic_learns_what_comes() -> None:
    """Beside a policy that stands still: warming leaves its weights alone."""
    policy, values, learner = Rows(0), Rows(1), None
    before = policy.own.weight.detach().clone()
    critic = Critic(values, Learner(values.trainable(), lr=0.05, weight_decay=0.0), ValueObjective(None), 40, warmup=9)
    learner = Learner(policy.trainable(), lr=0.1)
    rewards = torch.tensor([-1.0, -3.0, -0.5, torch.nan, -2.0, -1.0])
    common: dict[str, Any] = dict(plan=None, seed=0, first=0, critic=critic, settings=Settings(3))
    common |= {"score": lambda samples: {"r": rewards}, "objective": ClippedObjective(0.2, 0.2)}
    common["advantage"] = lambda r, rollout: (
        DecisionCredit("gae")(r["r"].nan_to_num(), rollout, unscored=r["r"].isnan()),
        {},
    )
    found = [iterate(policy, learner, PROMPTS, **common).metrics for _ in range(4)]
    assert torch.equal(policy.own.weight, before) and found[0]["active_rows"] == 0
    errors = [m["value/explained_variance"] for m in found]
    assert errors[-1] > 0.8 > errors[0]


def test_values_of_joined_rollouts_are_those_of_their_pieces() -> None:
    policy, values = Rows(0), Rows(1)
    engine = LocalEngine(policy, None, 0, 3, lambda s: {"r": REWARDS}, advantage, None)  # type: ignore[arg-type]
    assert engine.fill is None
    critic = Critic(values, Learner(values.trainable(), lr=0.02), ValueObjective(0.2))
    rollouts = [policy.rollout(PROMPTS), policy.rollout(PROMPTS)]
    for rollout in rollouts:
        critic.fill(values, rollout, 2)
    joined = join_rollouts(rollouts, [torch.tensor([1]), torch.tensor([0, 1])])
    assert joined.value is not None and rollouts[0].value is not None
    torch.testing.assert_close(joined.value[:3], rollouts[0].value[3:])
    joined.returns = torch.zeros_like(joined.value)
    again = torch.zeros_like(joined.value)
    critic.fill(JoinedPolicy(values), joined, None)  # type: ignore[arg-type]
    torch.testing.assert_close(joined.value, torch.cat([rollouts[0].value[3:], rollouts[0].value]))
    metrics = update(JoinedPolicy(values), critic.learner, joined, again.sum(1), critic.objective, Settings(3))
    assert metrics["grad_norm"] > 0


def test_a_divergence_of_whole_rows_is_a_reward_of_its_own() -> None:
    rollout = Rows(0).rollout(PROMPTS)
    rollout.reference = rollout.rollout_logp + 0.5
    total, weight = kl_as_reward(KlReward(0.2), rollout)
    torch.testing.assert_close(total, -0.5 * MASK.sum(1).float())
    assert weight == -0.2
    with pytest.raises(ValueError, match="reference"):
        KlReward(0.2).of(replace(rollout, reference=None))


@pytest.mark.parametrize(
    "case", golden.cases("objectives/llm_value_entropy.json", where=lambda c: golden.kind(c) == "verl.value_loss")
)
def test_published_value_losses(case: dict[str, Any]) -> None:
    modes = {
        "token-mean": "decision_mean",
        "seq-mean-token-mean": "seq_mean_mean",
        "seq-mean-token-sum": "seq_mean_sum",
    }
    x = {name: golden.tensor(value, torch.float64) for name, value in case["inputs"].items()}
    mask = x["response_mask"].bool()
    objective = ValueObjective(case["params"]["cliprange_value"], modes[case["params"]["loss_agg_mode"]])
    leaf = x["vpreds"].float().requires_grad_()
    seen = Valued(torch.arange(len(mask)), torch.arange(mask.shape[1]), leaf)
    logp = torch.zeros(mask.shape)
    batch = Batch(logp, logp[:, 0], mask, value=x["values"].float(), returns=x["returns"].float())
    loss, metrics = objective(seen, batch)
    total = (loss * objective.weights(mask)).sum()
    total.backward()
    found = {"loss": total, "vf_clipfrac": reduce_metrics(metrics, weights(mask))["clip_frac"], "grad": leaf.grad}
    golden.check(found, case)
