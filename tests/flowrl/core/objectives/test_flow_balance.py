"""Balance of single steps and of stretches of texts, with flows of their own: values, gradients, minima, refusals."""

import math
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from torch import Tensor

from flowrl.build import build_advantage, build_objective
from flowrl.core.advantages import returns
from flowrl.core.objectives.balance import SubTrajectoryBalance, stretch_imbalance
from flowrl.core.update import Settings
from flowrl.recipe.checks.process import check_process
from flowrl.recipe.errors import RecipeError
from flowrl.recipe.load import load
from language_support import PLAN, PROMPTS, gradient_of, policy

# the second row is short, the third has holes, the last says nothing
MASK = torch.tensor([[1, 1, 1, 1, 1, 1], [1, 1, 0, 0, 0, 0], [0, 1, 0, 1, 1, 0], [0] * 6]).bool()


def by_pairs(steps: list[float], lam: float) -> float:
    """The mean over all stretches, one by one; a stretch of one step weighs 1."""
    total = weight = 0.0
    for i in range(len(steps)):
        for j in range(i, len(steps)):
            w = lam ** (j - i)
            total, weight = total + w * sum(steps[i : j + 1]) ** 2, weight + w
    return total / weight


@pytest.mark.parametrize("lam", [0.0, 0.3, 1.0])
def test_stretches_are_those_of_a_row_without_its_holes(lam: float) -> None:
    steps = torch.randn(MASK.shape, generator=torch.Generator().manual_seed(1), dtype=torch.float64)
    found = stretch_imbalance(steps, MASK, lam)
    for row in range(3):
        assert float(found[row]) == pytest.approx(by_pairs(steps[row][MASK[row]].tolist(), lam), rel=1e-9)
    assert float(found[3]) == 0 and float(stretch_imbalance(torch.zeros(4, 6), MASK, lam).max()) == 0


def test_the_growth_of_flows_by_hand() -> None:
    """The third row: log R = -2 at its last decision, log F 0.5, 1 and 3 before each, log p -0.1, -0.2 and -0.4."""
    values, logp = torch.full(MASK.shape, 9.0), torch.full(MASK.shape, 7.0)
    own = MASK[2].nonzero()[:, 0]
    values[2, own], logp[2, own] = torch.tensor([0.5, 1.0, 3.0]), torch.tensor([-0.1, -0.2, -0.4])
    rewards = returns.at_last(torch.full((4,), -2.0), MASK)
    growth, whole = returns.flow(rewards, MASK, values, logp)
    torch.testing.assert_close(growth[2, own], torch.tensor([0.5, 2.0, -5.0], dtype=torch.float64))
    torch.testing.assert_close(whole[2, own], torch.tensor([-1.3, -1.4, -1.6], dtype=torch.float64))
    single = returns.flow(rewards, MASK, values, logp, 0.0).returns
    torch.testing.assert_close(single[2, own], torch.tensor([1.1, 3.2, -1.6], dtype=torch.float64))
    assert (growth[~MASK] == 0).all() and (whole[~MASK] == 0).all()


# texts of up to three tokens of 0 and 1, each with its reward: a text that begins with 1 may end at once
LEAVES = {"00": 0.5, "010": 2.0, "011": 0.25, "1": 1.0}
NODES = ["", "0", "01"]


class Tree:
    """A policy over LEAVES and its log-flows, both tables."""

    def __init__(self) -> None:
        self.logits = torch.zeros(3, 2, dtype=torch.float64, requires_grad=True)
        self.flow = torch.zeros(3, dtype=torch.float64, requires_grad=True)
        self.mask = torch.tensor([[k < len(leaf) for k in range(3)] for leaf in LEAVES])
        self.node = torch.tensor([[NODES.index(leaf[:k]) if k < len(leaf) else 0 for k in range(3)] for leaf in LEAVES])
        self.token = torch.tensor([[int(leaf[k]) if k < len(leaf) else 0 for k in range(3)] for leaf in LEAVES])
        self.log_reward = returns.at_last(torch.tensor(list(LEAVES.values()), dtype=torch.float64).log(), self.mask)

    def logp(self) -> Tensor:
        return self.logits.log_softmax(1)[self.node, self.token].where(self.mask, 0.0)

    def steps(self) -> Tensor:
        values = self.flow[self.node].where(self.mask, 0.0)
        behind = torch.cat([values[:, 1:], torch.zeros(4, 1)], 1)
        return self.logp() - (behind + self.log_reward - values)

    def of_texts(self) -> Tensor:
        return self.logp().sum(1).exp().detach()


WANTED = torch.tensor(list(LEAVES.values()), dtype=torch.float64) / 3.75


@pytest.mark.parametrize("lam", [0.0, 0.7, 1.0])
def test_the_loss_is_0_at_the_sampler_in_proportion_to_rewards_and_its_minimum_is_that(lam: float) -> None:
    tree = Tree()
    with torch.no_grad():  # the flow of a prefix is what its texts add up to
        below = [sum(r for leaf, r in LEAVES.items() if leaf.startswith(node)) for node in NODES]
        tree.flow.copy_(torch.tensor(below).log())
        for i, node in enumerate(NODES):
            parts = [sum(r for leaf, r in LEAVES.items() if leaf.startswith(node + t)) for t in "01"]
            tree.logits[i] = torch.tensor(parts).log()
    assert float(stretch_imbalance(tree.steps().detach(), tree.mask, lam).max()) < 1e-12
    tree = Tree()
    optimizer = torch.optim.LBFGS([tree.logits, tree.flow], max_iter=300, tolerance_grad=1e-12, tolerance_change=0)

    def closure() -> Tensor:
        optimizer.zero_grad()
        value = stretch_imbalance(tree.steps(), tree.mask, lam).mean()
        value.backward()
        return value

    optimizer.step(closure)
    torch.testing.assert_close(tree.of_texts(), WANTED, atol=1e-4, rtol=0)
    torch.testing.assert_close(tree.flow.detach(), torch.tensor(below, dtype=torch.float64).log(), atol=1e-3, rtol=0)


@pytest.mark.parametrize("lam", [0.0, 1.0])
def test_policy_and_flows_that_learn_in_turns_get_there_too(lam: float) -> None:
    """As in a run: flows move towards what credit `flow` gives, log-probs by the gradient at flows that stand still."""
    tree, rows = Tree(), torch.full((4, 1), 0.25, dtype=torch.float64)
    tables = tree.logits, tree.flow
    for _ in range(600):
        values = tree.flow.detach()[tree.node]
        growth, targets = returns.flow(tree.log_reward, tree.mask, values, tree.logp().detach(), lam)
        loss = stretch_imbalance(tree.logp() - growth, tree.mask, lam) @ rows[:, 0]
        fit = ((tree.flow[tree.node] - targets).square() * tree.mask * rows).sum()
        for table, slope in zip(tables, torch.autograd.grad(loss + fit, tables), strict=True):
            with torch.no_grad():
                table -= 0.2 * slope
    torch.testing.assert_close(tree.of_texts(), WANTED, atol=1e-3, rtol=0)
    assert float(tree.flow[0].detach()) == pytest.approx(math.log(3.75), abs=1e-2)


REWARDS = torch.tensor([1.2, 0.0, 0.2, 0.0, torch.nan, 1.0, 0.0, 0.0, 0.0, 1.2, 0.2, 1.0])


def drawn(subject: Any, objective: SubTrajectoryBalance) -> tuple[Any, Tensor]:
    """Twelve rows, four of each prompt, with a hole in the third row, and how their flows grow."""
    rollout = subject.rollout(PROMPTS, group_size=4, plan=PLAN, seed=0)
    assert rollout.samples.lengths[2] > 4 and len(set(rollout.samples.lengths.tolist())) > 3
    rollout.mask[2, 2] = False
    values = torch.randn(rollout.mask.shape, generator=torch.Generator().manual_seed(5))
    if objective.prior == "reference":  # that of `gradient_of`
        rollout.reference = rollout.rollout_logp - 0.1 * (1 + torch.arange(12.0))[:, None]
    at_end = returns.at_last(objective.log_reward(REWARDS.nan_to_num()), rollout.mask)
    growth = returns.flow(at_end, rollout.mask, values, rollout.rollout_logp).adv.float()
    return rollout, growth.masked_fill(REWARDS.isnan()[:, None], torch.nan)


@pytest.mark.parametrize(
    "objective",
    [
        SubTrajectoryBalance(floor=0.01, temperature=0.5),
        SubTrajectoryBalance("exp", prior="reference", lam=0.8),
        SubTrajectoryBalance(lam=0.0),
    ],
    ids=["stretches", "weighted, prior", "steps"],
)
def test_the_gradient_is_that_of_each_row_alone_whatever_the_cut(objective: SubTrajectoryBalance) -> None:
    subject = policy()
    rollout, growth = drawn(subject, objective)
    found = {m: gradient_of(subject, rollout, growth, objective, Settings(4, micro_batch=m)) for m in (None, 1, 5)}
    whole, metrics = found[None]
    for micro in (1, 5):
        torch.testing.assert_close(found[micro][0], whole, rtol=1e-5, atol=1e-6 * float(whole.abs().max()))
    subject = policy()
    total = torch.zeros(())
    for i in [i for i in range(12) if i != 4]:  # one could not be scored
        seen: list[Tensor] = []
        subject.look(rollout, torch.tensor([i]), objective.view, lambda s, to=seen: to.append(s.logp[0]))
        own = rollout.mask[i, : len(seen[0])]
        ratio = seen[0] if rollout.reference is None else seen[0] - rollout.reference[i, : len(seen[0])]
        steps = (ratio - growth[i, : len(ratio)])[own]
        at = torch.cat([torch.zeros(1), steps.cumsum(0)])
        number = torch.arange(len(at))
        weight = objective.lam ** (number - number[:, None] - 1).clamp(min=0) * (number > number[:, None])
        total = total + ((at - at[:, None]).square() * weight).sum() / weight.sum() / 11
    total.backward()
    expected = torch.cat([p.grad.flatten() for p in subject.trainable()])
    torch.testing.assert_close(whole, expected, rtol=1e-4, atol=1e-5 * float(expected.abs().max()))
    assert metrics["loss"] == pytest.approx(float(total.detach()), rel=1e-4) and metrics["nonfinite_updates"] == 0


@pytest.mark.parametrize("prior", ["none", "reference"])
def test_rewards_reach_the_flows_of_a_recipe_as_logarithms(prior: str) -> None:
    recipe = load("tiny_lm_grpo", ["objective.preset=gflow_subtb", f"objective.loss.prior={prior}"])
    rollout = policy().rollout(PROMPTS, group_size=4, plan=PLAN, seed=0)
    rollout.value = torch.full(rollout.mask.shape, 0.3)
    rollout.reference = rollout.rollout_logp - 0.1
    scores = {"exact": REWARDS.clone(), "format": torch.ones(12)}
    adv, metrics = build_advantage(recipe, SimpleNamespace(specs=recipe.rewards))(scores, rollout)  # type: ignore
    trained, _ = build_objective(recipe).weigh(rollout, adv)
    assert (
        not trained.mask[4].any()
        and torch.equal(trained.mask[5], rollout.mask[5])
        and math.isfinite(metrics["adv/abs_mean"])
    )
    length = int(rollout.samples.lengths[2])  # reward 0.2 + 0.2
    log_reward = 2 * math.log(0.4)
    assert adv[2, : length - 1].tolist() == [0.0] * (length - 1)
    assert float(adv[2, length - 1]) == pytest.approx(log_reward - 0.3, rel=1e-5)
    paid = 0.1 * length if prior == "reference" else float(rollout.rollout_logp[2, :length].sum())
    assert rollout.returns is not None and float(rollout.returns[2, 0]) == pytest.approx(log_reward - paid, rel=1e-4)
    assert rollout.returns[4, rollout.mask[4]].isnan().all()


@pytest.mark.parametrize(
    ("more", "said"),
    [
        (
            ["advantage.credit=broadcast", "critic=null"],
            "advantage.credit.kind: got 'broadcast', but sub_balance reads",
        ),
        (["objective.loss=null"], "advantage.credit.kind: got 'flow', which objective.loss of kind sub_balance alone"),
        (["objective.loss.lam=2"], "objective.loss.lam: got 2, accepted: a number in [0, 1]"),
        (["objective.loss={kind: balance, lam: 0.5}"], "objective.loss.lam: got 0.5, but kind 'balance' reads only"),
        (
            ["advantage.credit={kind: flow, gamma: 0.9}"],
            "advantage.credit.gamma: got 0.9, which credit 'flow' does not",
        ),
        (["advantage.scale=whiten"], "advantage.scale: got 'whiten', but sub_balance reads"),
        (["train.keep=2"], "train.keep: got 2, but objective.loss 'sub_balance' takes whole texts"),
    ],
)
def test_what_does_not_go_with_flows_is_one_line(more: list[str], said: str) -> None:
    load("tiny_lm_grpo", ["objective.preset=gflow_db", "train.group=1"])  # nothing is compared
    with pytest.raises(RecipeError) as caught:
        load("tiny_lm_grpo", ["objective.preset=gflow_db", *more])
    assert said in str(caught.value) and "\n" not in str(caught.value)


def test_flows_have_no_rewards_of_steps() -> None:
    recipe = load("tiny_lm_grpo", ["objective.preset=gflow_db", "rewards.steps={use: worked_steps}"])
    with pytest.raises(RecipeError, match=r"rewards\.steps: gives values of steps, but flows"):
        check_process(recipe, ["steps"])
