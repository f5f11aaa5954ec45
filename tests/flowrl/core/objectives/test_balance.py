"""The balance of flows: its value and gradient against computations of their own, and what does not go with it."""

from types import SimpleNamespace

import pytest
import torch

from flowrl.build import build_advantage
from flowrl.core.objectives.balance import TrajectoryBalance, trajectory_variance
from flowrl.core.update import Settings
from flowrl.recipe.errors import RecipeError
from flowrl.recipe.load import load
from language_support import PLAN, PROMPTS, alone, gradient_of, policy

GROUP = torch.tensor([4, 9, 4, 9, 4, 4])
REWARDS = torch.tensor([1.2, 0.0, 0.2, 0.0, torch.nan, 1.0, 0.0, 0.0, 0.0, 1.2, 0.2, 1.0])


def test_the_variance_is_that_of_all_pairs() -> None:
    """Half the mean squared difference of two rows of a group, drawn with replacement, is its variance."""
    torch.manual_seed(3)
    logp, log_reward = torch.randn(6, dtype=torch.float64), torch.randn(6, dtype=torch.float64)
    loss, log_z = trajectory_variance(logp, log_reward, GROUP)
    for label in (4, 9):
        rows = GROUP == label
        delta = (logp - log_reward)[rows]
        assert float(loss[rows].mean()) == pytest.approx(float((delta[:, None] - delta).square().mean()) / 2)
        assert log_z[rows].tolist() == pytest.approx([-float(delta.mean())] * int(rows.sum()))


def test_texts_end_up_as_likely_as_their_rewards() -> None:
    """Five texts, all of them drawn: the minimum is p = R^(1 / T) / Z, where log Z is what the rows say it is."""
    reward = torch.tensor([0.0, 0.2, 1.0, 1.2, 0.5], dtype=torch.float64)
    balance = TrajectoryBalance(floor=0.05, temperature=0.5)
    logits = torch.zeros(5, dtype=torch.float64, requires_grad=True)
    optimizer = torch.optim.LBFGS([logits], max_iter=200, tolerance_grad=1e-12, tolerance_change=0)

    def closure() -> torch.Tensor:
        optimizer.zero_grad()
        value = trajectory_variance(logits.log_softmax(0), balance.log_reward(reward), torch.zeros(5).long())[0].mean()
        value.backward()
        return value

    optimizer.step(closure)
    wanted = torch.tensor([0.05, 0.2, 1.0, 1.2, 0.5], dtype=torch.float64).square()
    torch.testing.assert_close(logits.detach().softmax(0), wanted / wanted.sum(), atol=1e-5, rtol=0)
    _, log_z = trajectory_variance(logits.log_softmax(0), balance.log_reward(reward), torch.zeros(5).long())
    assert float(log_z[2]) == pytest.approx(float(wanted.sum().log()), abs=1e-5)


def drawn(subject, seed: int = 0):
    return subject.rollout(PROMPTS, group_size=4, plan=PLAN, seed=seed)


def gradient(objective, micro: int | None, adv: torch.Tensor = REWARDS) -> tuple[torch.Tensor, dict]:
    subject = policy()
    return gradient_of(subject, drawn(subject), adv, objective, Settings(4, micro_batch=micro))


@pytest.mark.parametrize(
    "objective",
    [TrajectoryBalance(floor=0.01, temperature=0.5), TrajectoryBalance("exp", temperature=2.0, prior="reference")],
    ids=["plain", "exp, prior"],
)
def test_the_gradient_is_reinforce_s_whatever_the_cut(objective: TrajectoryBalance) -> None:
    subject = policy()
    rollout = drawn(subject)
    held = rollout.replay
    lengths = rollout.samples.lengths.tolist()
    assert len(set(lengths[:4])) > 1  # rows of a group differ in length
    likely = []
    for i, length in enumerate(lengths):  # token by token, without padding
        tokens = held.tokens[i, :length].tolist()
        logits = alone(subject.model, held.prompts[i], tokens)
        likely.append(float(logits.log_softmax(-1).gather(1, torch.tensor(tokens)[:, None]).sum()))
    delta = []
    for i, reward in enumerate(REWARDS.tolist()):
        log = reward / 2.0 if objective.mapping == "exp" else float(torch.tensor(max(reward, 0.01)).log()) / 0.5
        prior = 0.0 if objective.prior == "none" else likely[i] - 0.1 * (1 + i) * lengths[i]
        delta.append(likely[i] - prior - log)
    advantage, value = torch.zeros(12), 0.0
    for rows in ([0, 1, 2, 3], [5, 6, 7], [8, 9, 10, 11]):  # one could not be scored
        mean = sum(delta[i] for i in rows) / len(rows)
        for i in rows:
            advantage[i] = -2 * (delta[i] - mean)
            value += (delta[i] - mean) ** 2 / 11
    whole, metrics = gradient(objective, None)
    assert metrics["loss"] == pytest.approx(value, rel=1e-4) and metrics["nonfinite_updates"] == 0
    for micro in (1, 5):  # groups of four and of three are not cut
        torch.testing.assert_close(
            gradient(objective, micro)[0], whole, rtol=1e-5, atol=1e-6 * float(whole.abs().max())
        )
    subject = policy()
    rollout = drawn(subject)
    total = 0.0
    for i in range(12):
        seen: list[torch.Tensor] = []
        if i != 4:
            subject.look(
                rollout,
                torch.tensor([i]),
                objective.view,
                lambda s, i=i, to=seen: to.append(s.logp.where(rollout.mask[i : i + 1, s.columns], 0.0).sum()),
            )
            total = total - advantage[i] * sum(seen) / 11
    total.backward()
    expected = torch.cat([p.grad.flatten() for p in subject.trainable()])
    torch.testing.assert_close(whole, expected, rtol=1e-4, atol=1e-5 * float(expected.abs().max()))


def test_a_prompt_whose_texts_are_all_wrong_still_spreads_them() -> None:
    grads = [gradient(TrajectoryBalance(), None, torch.zeros(12))[0], gradient(TrajectoryBalance(), 4)[0]]
    assert all(float(g.norm()) > 0 for g in grads)


def test_what_could_not_be_scored_is_not_a_reward_of_0() -> None:
    recipe = load("tiny_lm_grpo", ["objective.preset=gflow"])
    rollout = drawn(policy())
    scores = {"exact": REWARDS.clone(), "format": torch.ones(12)}
    adv, _ = build_advantage(recipe, SimpleNamespace(specs=recipe.rewards))(scores, rollout)
    assert adv[4].isnan() and adv[3] == pytest.approx(0.2) and adv[0] == pytest.approx(1.4)
    trained, _ = TrajectoryBalance().weigh(rollout, adv)
    assert not trained.mask[4].any() and torch.equal(trained.mask[5], rollout.mask[5])


@pytest.mark.parametrize(
    ("more", "said"),
    [
        (["advantage.baseline=group"], "advantage.baseline: got 'group', but balance reads the weighted sum of the"),
        (["advantage.clip=5"], "advantage.clip: got 5.0, but balance reads"),
        (["train.drop_silent=true"], "train.drop_silent: got true, but balance has a loss of every text"),
        (["train.source=files"], "train.source: got 'files', but balance is of texts that are drawn"),
        (["train.keep=2"], "train.keep: got 2, but objective.loss 'balance' takes whole texts"),
        (["objective.loss={kind: balance, beta: 0.1}"], "objective.loss.beta: got 0.1, but kind 'balance' reads only"),
        (["train.group=1"], "train.group: got 1, but balance compares the texts of a prompt"),
    ],
)
def test_what_does_not_go_with_it_is_one_line(more: list[str], said: str) -> None:
    with pytest.raises(RecipeError) as caught:
        load("tiny_lm_grpo", ["objective.preset=gflow", *more])
    assert said in str(caught.value) and "\n" not in str(caught.value)


def test_denoising_steps_have_none() -> None:
    with pytest.raises(RecipeError, match="got 'balance', which is about texts"):
        load("quickstart", ["objective.loss={kind: balance}"])
