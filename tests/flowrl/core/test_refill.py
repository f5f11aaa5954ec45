"""Dynamic sampling: silent groups are replaced, and what is learnt is what the kept ones alone would teach."""

import zlib
from collections.abc import Callable, Iterator, Sequence
from dataclasses import replace
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from flowrl.contracts import Credit, LogProbs, Prompt, Rollout, Samples, View
from flowrl.core.advantages.combined import advantages
from flowrl.core.advantages.rows import row_advantages
from flowrl.core.backward import fill_reference
from flowrl.core.engine import Advantage, Draw
from flowrl.core.iterate import Iteration, iterate
from flowrl.core.learning.learner import Learner
from flowrl.core.objectives.aggregate import weights
from flowrl.core.objectives.grpo import ClippedObjective
from flowrl.core.refill import JoinedPolicy, join_rollouts, whole_draw
from flowrl.core.update import Settings, update

GROUP = 3
OBJECTIVE = ClippedObjective(0.2, 0.2, aggregate="seq_mean_mean")


class Rolls:
    """Decisions of probability sigmoid(f . theta), f a function of prompt and sample; as wide as the longest sample."""

    whole_rows = True

    def __init__(self) -> None:
        self.theta = nn.Parameter(torch.tensor([0.3, -0.2, 0.5]))
        self.drawn: list[tuple[list[str], int]] = []
        self.gradient = torch.zeros(3)  # all that came; Adam's first step would show nothing but its signs
        self.theta.register_hook(self._add)

    def _add(self, gradient: Tensor) -> None:
        self.gradient += gradient

    def rollout(
        self, prompts: Sequence[Prompt], *, group_size: int, plan: object, seed: int, first: int = 0, **_: object
    ) -> Rollout:
        self.drawn.append(([p.id for p in prompts], first))
        owners = [p for p in prompts for _ in range(group_size)]
        lengths = torch.tensor([p.meta["length"] for p in owners])
        generators = [torch.Generator().manual_seed(zlib.crc32(p.id.encode()) + i) for i, p in enumerate(owners)]
        generators = [g.manual_seed(g.initial_seed() - i + i % group_size) for i, g in enumerate(generators)]
        features = torch.stack([torch.randn(9, 3, generator=g) for g in generators])[:, : int(lengths.max())]
        group = torch.arange(len(prompts)).repeat_interleave(group_size)
        texts = [f"{p.id} {i % group_size}" for i, p in enumerate(owners)]
        truncated = torch.tensor([p.meta.get("cut", False) for p in owners])
        samples = Samples(owners, group, texts=texts, lengths=lengths, truncated=truncated)
        logp = nn.functional.logsigmoid(features @ self.theta.detach())
        return Rollout(samples, logp, torch.arange(features.shape[1]) < lengths[:, None], features)

    def look(self, rollout: Rollout, rows: Tensor, view: View, visit: Callable, **_: object) -> None:
        columns = torch.arange(rollout.rollout_logp.shape[1])
        if view.weights == "reference":
            visit(LogProbs(rows, columns, rollout.rollout_logp[rows] + 0.1 * rows[:, None]))
            return
        logp = nn.functional.logsigmoid(rollout.replay[rows] @ self.theta)
        visit(LogProbs(rows, columns, logp, (logp + 1).square() if view.exact_kl else None))

    def trainable(self) -> Iterator[nn.Parameter]:
        yield self.theta


def prompt(name: str, length: int = 4, **meta: object) -> Prompt:
    return Prompt(name, name, meta={"length": length, **meta})


GOOD = [prompt(f"good{i}", 3 + i) for i in range(5)]
TIED = [prompt(f"tied{i}", 5, tied=True) for i in range(5)]


def score(samples: Samples) -> dict[str, Tensor]:
    assert samples.texts is not None
    values = [0.5 if p.meta.get("tied") else float(t[-1]) for p, t in zip(samples.prompts, samples.texts, strict=True)]
    return {"r": torch.tensor(values)}


def normalised(rewards: dict[str, Tensor], rollout: Rollout) -> tuple[Tensor, dict[str, float]]:
    adv = advantages(rewards, rollout.samples.group, weights={"r": 1.0}, scale="batch")
    return adv, {"reward": float(rewards["r"].mean())}


def trained(
    prompts: list[Prompt],
    spare: list[Prompt],
    settings: Settings,
    objective: ClippedObjective = OBJECTIVE,
    policy: Rolls | None = None,
    advantage: Advantage = normalised,
) -> tuple[Tensor, Iteration, Rolls]:
    """The gradient of an iteration whose further prompts are taken from `spare`."""
    policy, spare = policy or Rolls(), list(spare)
    result = iterate(
        policy,
        Learner(policy.trainable(), lr=0.1),
        prompts,
        plan=None,
        seed=0,
        first=6,
        score=score,
        advantage=advantage,
        objective=objective,
        settings=settings,
        more=lambda number: [spare.pop(0) for _ in range(number)],
    )
    return policy.gradient, result, policy


@pytest.mark.parametrize(
    "objective", [OBJECTIVE, ClippedObjective(0.2, 0.2, kl=0.3), ClippedObjective(0.1, 0.1, level="seq_sum")]
)
@pytest.mark.parametrize("micro", [None, 2])
def test_what_is_learnt_is_what_the_kept_groups_teach(objective: ClippedObjective, micro: int | None):
    spare = [TIED[2], GOOD[2], GOOD[3], GOOD[4]]
    first = [GOOD[0], TIED[0], GOOD[1], TIED[1]]
    gradient, result, policy = trained(first, spare, Settings(GROUP, micro_batch=micro, refill=4), objective)
    assert policy.drawn == [
        (["good0", "tied0", "good1", "tied1"], 6),
        (["tied2", "good2"], 6 + GROUP),  # noise of its own, even for a prompt that comes twice
        (["good3"], 6 + 2 * GROUP),
    ]
    wanted, alone, _ = trained(GOOD[:4], [], Settings(GROUP), objective)
    assert wanted.abs().min() > 1e-4
    torch.testing.assert_close(gradient, wanted, rtol=1e-5, atol=1e-7)
    assert result.metrics["loss"] == pytest.approx(alone.metrics["loss"], abs=1e-6)
    assert (result.metrics["groups/drawn"], result.metrics["groups/kept"]) == (7, 4)
    assert result.metrics["reward"] == pytest.approx((4 * 1.0 + 3 * 0.5) / 7)  # of all drawn, not of the chosen
    assert len(result.samples) == 7 * GROUP == len(result.rewards["r"])
    assert result.samples.group.tolist() == [i // GROUP for i in range(7 * GROUP)]


def test_a_refill_ends_after_its_number_and_trains_on_what_there_is():
    gradient, result, policy = trained([GOOD[0], TIED[0]], TIED[1:], Settings(GROUP, refill=2))
    assert [names for names, _ in policy.drawn] == [["good0", "tied0"], ["tied1"], ["tied2"]]
    torch.testing.assert_close(gradient, trained(GOOD[:1], [], Settings(GROUP))[0], rtol=1e-5, atol=1e-7)
    assert (result.metrics["groups/drawn"], result.metrics["groups/kept"]) == (4, 1)


def test_groups_that_all_say_nothing_train_nothing():
    gradient, result, _ = trained(TIED[:2], TIED[2:], Settings(GROUP, refill=1))
    assert not gradient.any() and result.metrics["empty_updates"] == 1


def test_without_refill_nothing_more_is_drawn():
    _, result, policy = trained([GOOD[0], TIED[0]], [], Settings(GROUP))
    assert len(policy.drawn) == 1 and "groups/drawn" not in result.metrics


def test_what_is_told_of_draws_counts_by_their_prompts():
    """A refill of one prompt says little about an iteration of four."""
    policy, draws = Rolls(), list[Draw]()
    for prompts, computed in ((GOOD[:3] + TIED[:1], 0.6), (GOOD[3:4], 1.0)):
        rollout = policy.rollout(prompts, group_size=GROUP, plan=None, seed=0)
        adv, metrics = normalised(rewards := score(rollout.samples), rollout)
        draws.append(Draw(rollout, rewards, adv, metrics | {"tree/computed": computed}))
    assert whole_draw(draws, normalised).metrics["tree/computed"] == pytest.approx((4 * 0.6 + 1.0) / 5)


def test_a_joined_rollout_is_scored_as_its_pieces_are():
    policy = Rolls()
    parts = [policy.rollout(p, group_size=GROUP, plan=None, seed=0) for p in (GOOD[:2], GOOD[4:])]
    chosen = [torch.tensor([1]), torch.tensor([0])]  # the second prompt of the first, and the only one of the second
    whole, replayer, found = join_rollouts(parts, chosen), JoinedPolicy(policy), torch.zeros(6, 7)

    def visit(given: LogProbs) -> None:
        found[given.rows[:, None], given.columns[None]] = given.logp.detach()

    replayer.look(whole, torch.arange(6), View(), visit)
    fill_reference(replayer, whole, torch.tensor([1, 3]), View(exact_kl=True))
    assert whole.rollout_logp.shape == (6, 7) and whole.mask.sum(1).tolist() == [4, 4, 4, 7, 7, 7]
    torch.testing.assert_close(found, whole.rollout_logp)
    assert torch.equal(whole.samples.group, torch.tensor([1, 1, 1, 2, 2, 2]))
    assert whole.samples.lengths is not None and whole.samples.lengths.tolist() == [4, 4, 4, 7, 7, 7]
    wanted = torch.zeros(6, 7)
    wanted[1, :4] = parts[0].rollout_logp[4] + 0.4
    wanted[3] = parts[1].rollout_logp[0]
    torch.testing.assert_close(whole.reference, wanted)


def test_truncated_samples_count_in_their_group_and_not_in_the_loss():
    """The gradient is that of the other rows, with the advantages of all and a denominator without the cut ones."""
    cut = prompt("cut", 4, cut=True)
    gradient, result, _ = trained([GOOD[0], cut], [], Settings(GROUP, skip_truncated=True))
    policy = Rolls()
    rollout = policy.rollout([GOOD[0], cut], group_size=GROUP, plan=None, seed=0)
    adv = normalised(score(rollout.samples), rollout)[0]
    rollout.mask[3:] = False
    update(policy, Learner(policy.trainable(), lr=0.1), rollout, adv, OBJECTIVE, Settings(GROUP))
    torch.testing.assert_close(gradient, policy.gradient, rtol=1e-6, atol=1e-7)
    assert result.metrics["active_rows"] == pytest.approx(2 / 6)  # the middle one of three has no advantage
    assert (gradient - trained([GOOD[0], cut], [], Settings(GROUP))[0]).norm() > 0.1 * gradient.norm()


# ---- advantages of decisions


class Forked(Rolls):
    """Three rows a prompt, of which two samples were made: a tree of a trunk and two branches."""

    def rollout(self, prompts: Sequence[Prompt], **options: Any) -> Rollout:
        rollout = super().rollout(prompts, **options)
        leaves = [i for i in range(len(rollout.samples)) if i % GROUP < 2]
        credit = Credit(torch.tensor([[1.0, 0.0], [0.0, 1.0], [0.5, 0.5]])[None, None], torch.tensor([0, 0, 1]), False)
        return replace(rollout, samples=rollout.samples[leaves], credit=credit)


def of_decisions(rewards: dict[str, Tensor], rollout: Rollout) -> tuple[Tensor, dict[str, float]]:
    """Early decisions count more, the second not at all, and padding holds what must not be read."""
    adv = row_advantages(rewards, rollout.samples.group, rollout.credit, weights={"r": 1.0})
    factor = torch.tensor([1.0, 0.0, 0.5, 0.25, 2.0, -1.0, 0.125])[: rollout.mask.shape[1]]
    return (adv[:, None] * factor).where(rollout.mask, torch.nan), {}


def third_alone(rewards: dict[str, Tensor], rollout: Rollout) -> tuple[Tensor, dict[str, float]]:
    """One decision of the third row."""
    adv = torch.zeros(rollout.mask.shape)
    adv[2, 2] = 1.5
    return adv, {}


@pytest.mark.parametrize("advantage", [of_decisions, third_alone])
@pytest.mark.parametrize("kind", [Rolls, Forked])
@pytest.mark.parametrize("micro", [None, 1, 2])
def test_the_gradient_of_advantages_of_decisions_is_the_sum_written_out(
    advantage: Advantage, kind: type[Rolls], micro: int | None
):
    found, result, _ = trained(GOOD[:3], [], Settings(GROUP, micro_batch=micro), OBJECTIVE, kind(), advantage)
    torch.testing.assert_close(found, written_out(kind(), GOOD[:3], advantage), rtol=1e-5, atol=1e-7)
    if advantage is third_alone:
        assert result.metrics["active_rows"] == pytest.approx(1 / 9) and result.metrics["grad_norm"] > 1e-3


def written_out(policy: Rolls, prompts: list[Prompt], advantage: Advantage) -> Tensor:
    """The gradient of -sum of weight * advantage * ratio over all trained decisions."""
    rollout = policy.rollout(prompts, group_size=GROUP, plan=None, seed=0)
    adv = advantage(score(rollout.samples), rollout)[0].where(rollout.mask, 0.0)
    ratio = (nn.functional.logsigmoid(rollout.replay @ policy.theta) - rollout.rollout_logp).exp()
    loss = -(weights(rollout.mask, OBJECTIVE.aggregate) * adv * ratio).sum()
    return torch.autograd.grad(loss, policy.theta)[0]


@pytest.mark.parametrize("kind", [Rolls, Forked])
def test_groups_are_kept_for_any_decision_that_has_an_advantage(kind: type[Rolls]):
    found, result, _ = trained(
        [GOOD[0], TIED[0], GOOD[1]], [TIED[1], GOOD[2]], Settings(GROUP, refill=2), OBJECTIVE, kind(), of_decisions
    )
    torch.testing.assert_close(found, written_out(kind(), GOOD[:3], of_decisions), rtol=1e-5, atol=1e-7)
    assert (result.metrics["groups/drawn"], result.metrics["groups/kept"]) == (5, 3)


def test_an_advantage_of_another_shape_is_refused():
    with pytest.raises(ValueError, match=r"shape \[3, 1\]; accepted: \[3\], one a row, or \[3, 3\], one a decision"):
        trained(GOOD[:1], [], Settings(GROUP), advantage=lambda rewards, rollout: (torch.ones(3, 1), {}))


def test_a_draw_without_any_advantage_and_with_truncated_samples_trains_nothing():
    settings = Settings(GROUP, refill=1, skip_truncated=True)
    gradient, result, _ = trained(TIED[:1], TIED[1:], settings)
    assert not gradient.any() and result.metrics["groups/kept"] == 0
