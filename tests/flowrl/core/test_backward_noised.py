"""The loss of noised samples has the gradient of the hand-written sum, whatever the micro-batches."""

from collections.abc import Iterator
from dataclasses import replace
from typing import cast

import pytest
import torch
from torch import Tensor, nn

from flowrl.contracts import Batch, Field, Policy, Rollout, Samples, View, Visit
from flowrl.core.backward import StepLoss
from flowrl.core.backward_noised import backward_noised
from flowrl.core.learning.learner import Learner
from flowrl.core.objectives.aggregate import weights
from flowrl.core.objectives.noised import (
    AWMObjective,
    CRDObjective,
    DGPOObjective,
    FlowRWRObjective,
    NFTObjective,
    NoisedObjective,
    SFTObjective,
)
from flowrl.core.objectives.paired import FlowDPOObjective, RPOObjective
from flowrl.core.pairs import companions
from flowrl.core.update import Settings, update

ROWS, LEVELS = 6, (0.3, 0.8)
ADV = torch.tensor([1.0, -2.0, 0.5, 0.0, -1.0, 2.0])
GIVEN = torch.tensor([1.0, 0.0, 0.0, 1.0, 1.0, 0.0])  # of groups of three
OBJECTIVES = {"nft": NFTObjective(beta=0.5), "nft_kl": NFTObjective(kl=0.3), "binary": NFTObjective(adv_mode="binary")}
OTHERS = {
    "awm": AWMObjective(kl=0.2, pull=0.5),
    "awm_clip": AWMObjective(weighting="uniform", clip=0.05, pull=0.0),
    "dgpo": DGPOObjective(kl=0.1, beta=3.0, clip=0.3, size=3),
    "dgpo_old": DGPOObjective(beta=3.0, against="old", size=3),
    "crd": CRDObjective(kl=0.2, temperature=0.5, match="bce", adaptive_kl=True),
    "dpo": FlowDPOObjective(beta=2.0),
    "dpo_old": FlowDPOObjective(beta=2.0, against="old", epsilon=True, kl=0.1),
    "rpo": RPOObjective(beta=2.0, sft=0.5, epsilon=True, kl=0.1),
    "rwr": FlowRWRObjective(temperature=0.7),
}


class Linear:
    """A model whose velocity is x times a matrix; rows come in blocks of `width`, last level first."""

    whole_rows = False

    def __init__(self, width: int = ROWS):
        generator = torch.Generator().manual_seed(0)

        def drawn(*shape: int) -> Tensor:
            return torch.randn(*shape, generator=generator, dtype=torch.float64)

        self.width, self.x0, self.noise = width, drawn(ROWS, 3), drawn(ROWS, 2, 3)
        self.theta = nn.Parameter(drawn(3, 3))
        self.other = {"old": self.theta.detach() + 0.1 * drawn(3, 3), "reference": drawn(3, 3)}
        self.asked: list[str] = []

    def field(self, rows: Tensor, column: int, matrix: Tensor) -> Field:
        s, noise, x0 = LEVELS[column], self.noise[rows, column], self.x0[rows]
        x = (1 - s) * x0 + s * noise
        return Field(rows, torch.tensor([column]), s, x, x @ matrix, x0, noise - x0)

    def look(self, rollout: Rollout, rows: Tensor, view: View, visit: Visit, **_: object) -> None:
        assert view.states == "noised"
        self.asked.append(view.weights)
        for column in reversed(range(len(LEVELS))):
            for part in rows.split(self.width):
                visit(self.field(part, column, self.other.get(view.weights, self.theta)))

    def trainable(self) -> Iterator[nn.Parameter]:
        yield self.theta


def gradient(
    policy: Linear, objective: NoisedObjective, micro: int | None, mask: Tensor, unmoved: frozenset[str] = frozenset()
) -> tuple[Tensor, dict[str, Tensor]]:
    samples = Samples([], torch.arange(ROWS) // 3, texts=[""] * ROWS)
    stats = {"given": GIVEN[:, None].expand(ROWS, 2)}
    rollout = Rollout(samples, torch.zeros(ROWS, 2), mask, None, step_stats=stats)
    friends = companions(rollout, ADV, objective.together, 1)
    rows, labels = mask.any(1).nonzero()[:, 0], None
    if friends is not None:
        rows, labels, mask = friends.order, friends.labels, mask & friends.used[:, None]
    loss = StepLoss(
        replace(rollout, mask=mask), ADV, objective, objective.weights(mask), weights(mask), labels, unmoved
    )
    backward_noised(cast(Policy, policy), rows, loss, micro)
    assert policy.theta.grad is not None
    return policy.theta.grad, loss.total


def by_hand(policy: Linear, objective: NFTObjective, mask: Tensor) -> Tensor:
    total = torch.zeros((), dtype=torch.float64)
    for row in range(ROWS):
        for column in range(2):
            if not mask[row, column]:
                continue
            f = policy.field(torch.tensor([row]), column, policy.theta)
            adv = ADV[row].double().clamp(-5, 5)
            adv = adv.sign() if objective.adv_mode == "binary" else adv
            r = adv / 10 + 0.5
            now, old = f.x - f.level * f.v, f.x - f.level * (f.x @ policy.other["old"])
            for sign, share in ((1, r), (-1, 1 - r)):
                gap = (1 - sign * objective.beta) * old + sign * objective.beta * now - f.x0
                total = total + share * gap.square().mean() / gap.abs().mean().detach() * 5 / objective.beta
            total = total + objective.kl * (f.v - f.x @ policy.other["reference"]).square().mean()
    return torch.autograd.grad(total / mask.sum(), policy.theta)[0]


@pytest.mark.parametrize("name", OBJECTIVES)
@pytest.mark.parametrize(("width", "micro"), [(ROWS, ROWS), (2, 4), (ROWS, 1)])
@pytest.mark.parametrize("third", [False, True], ids=["all", "third"])
def test_the_gradient_is_that_of_the_sum(name: str, width: int, micro: int, third: bool) -> None:
    mask = (torch.arange(ROWS) == 2)[:, None].expand(ROWS, 2) if third else torch.ones(ROWS, 2, dtype=torch.bool)
    policy, objective = Linear(width), OBJECTIVES[name]
    found, metrics = gradient(policy, objective, micro, mask)
    torch.testing.assert_close(found, by_hand(policy, objective, mask), rtol=1e-6, atol=1e-7)
    assert set(policy.asked) == {"current", *objective.needs} - {"every_row"}
    gap = policy.x0.new_zeros(())
    for column in range(2):
        x = policy.field(torch.arange(ROWS), column, policy.theta).x[mask[:, column]]
        gap = gap + (x @ (policy.theta - policy.other["old"])).square().mean() / 2
    torch.testing.assert_close(metrics["old_distance"].double(), gap.detach(), rtol=1e-5, atol=0.0)


def test_other_weights_are_asked_about_before_a_graph_is_made() -> None:
    policy = Linear()
    gradient(policy, replace(OBJECTIVES["nft_kl"]), ROWS, torch.ones(ROWS, 2, dtype=torch.bool))
    assert policy.asked == ["old", "reference", "current"]


@pytest.mark.parametrize("name", OTHERS)
@pytest.mark.parametrize(("width", "micro"), [(1, None), (2, 4), (ROWS, 1), (ROWS, 2), (3, 3)])
def test_no_cut_changes_loss_or_gradient(name: str, width: int, micro: int | None) -> None:
    mask = torch.ones(ROWS, 2, dtype=torch.bool)
    wanted, whole = gradient(Linear(), OTHERS[name], None, mask)
    found, metrics = gradient(Linear(width), OTHERS[name], micro, mask)
    assert float(wanted.abs().max()) > 1e-3
    torch.testing.assert_close(found, wanted, rtol=1e-6, atol=1e-8)
    assert metrics.keys() == whole.keys()
    for key, value in whole.items():
        torch.testing.assert_close(metrics[key], value, rtol=1e-5, atol=1e-7)


def test_a_pair_is_the_best_and_the_worst_of_its_group() -> None:
    policy, beta = Linear(), 2.0
    found, metrics = gradient(policy, FlowDPOObjective(beta=beta), None, torch.ones(ROWS, 2, dtype=torch.bool))
    total = torch.zeros((), dtype=torch.float64)
    for better, worse in ((0, 1), (5, 4)):  # by ADV, in groups of three
        for column in range(2):
            gains = []
            for row in (better, worse):
                f = policy.field(torch.tensor([row]), column, policy.theta)
                reference = (f.x @ policy.other["reference"] - f.target).square().mean()
                gains.append(reference - (f.v - f.target).square().mean())
            total = total - nn.functional.logsigmoid(beta / 2 * (gains[0] - gains[1])) / 4
    torch.testing.assert_close(found, torch.autograd.grad(total, policy.theta)[0], rtol=1e-6, atol=1e-9)
    torch.testing.assert_close(metrics["loss"].double(), total.detach(), rtol=1e-6, atol=0.0)


def test_a_given_sample_is_compared_with_a_drawn_one() -> None:
    """By a label from their advantages; in the second group two are given, and one of them finds no other."""
    policy, whole = Linear(), torch.ones(ROWS, 2, dtype=torch.bool)
    found, metrics = gradient(policy, RPOObjective(beta=0.5, sft=0.3), None, whole)
    total = torch.zeros((), dtype=torch.float64)
    for given, drawn in ((0, 1), (3, 5)):
        for column in range(2):
            gains, errors = [], []
            for row in (given, drawn):
                f = policy.field(torch.tensor([row]), column, policy.theta)
                errors.append((f.v - f.target).square().mean())
                gains.append((f.x @ policy.other["reference"] - f.target).square().mean() - errors[-1])
            margin, label = 0.5 * (gains[0] - gains[1]), torch.sigmoid(ADV[given] - ADV[drawn]).double()
            chosen = label * nn.functional.logsigmoid(margin) + (1 - label) * nn.functional.logsigmoid(-margin)
            total = total + (0.3 * errors[0] - chosen) / 4
    torch.testing.assert_close(found, torch.autograd.grad(total, policy.theta)[0], rtol=1e-5, atol=1e-8)
    torch.testing.assert_close(metrics["loss"].double(), total.detach(), rtol=1e-6, atol=0.0)
    nothing = Rollout(Samples([], torch.zeros(2), texts=[""] * 2), torch.zeros(2, 1), torch.ones(2, 1) > 0, None)
    with pytest.raises(ValueError, match=r"set train\.source to a share"):
        companions(nothing, torch.zeros(2), "given", 1)


def test_weights_that_have_not_moved_are_not_looked_at() -> None:
    mask = torch.ones(ROWS, 2, dtype=torch.bool)
    looked, spared = Linear(), Linear()
    for policy in (looked, spared):
        policy.other["old"] = policy.theta.detach()
    wanted, _ = gradient(looked, OBJECTIVES["nft"], 4, mask)
    found, _ = gradient(spared, OBJECTIVES["nft"], 4, mask, frozenset(["old"]))
    torch.testing.assert_close(found, wanted, rtol=1e-12, atol=0.0)
    assert "old" in looked.asked and set(spared.asked) == {"current"}


def test_without_a_clip_and_a_pull_the_loss_has_no_bound() -> None:
    with pytest.raises(ValueError, match="without a bound"):
        AWMObjective(clip=None, pull=0.0)


class Partly(Linear):
    """The same model on states of which a pipeline overwrites four of seven elements, those first or those last."""

    def field(self, rows: Tensor, column: int, matrix: Tensor) -> Field:
        found = super().field(rows, column, matrix)

        def padded(part: Tensor) -> Tensor:
            rest = part.new_zeros(len(part), 4)
            sides = torch.cat([part, rest], 1), torch.cat([rest, part], 1)
            return torch.where((rows % 2 == 0)[:, None], *sides)

        parts = {name: padded(getattr(found, name)) for name in ("x", "v", "x0", "target")}
        return replace(found, share=torch.full((len(rows),), 3 / 7, dtype=torch.float64), **parts)


@pytest.mark.parametrize("name", [*OBJECTIVES, *OTHERS])
@pytest.mark.parametrize("micro", [2, None])
def test_elements_that_a_pipeline_overwrites_do_not_count(name: str, micro: int | None) -> None:
    objective, mask = (OBJECTIVES | OTHERS)[name], torch.ones(ROWS, 2, dtype=torch.bool)
    (whole, told), (partly, also) = (gradient(model(4), objective, micro, mask) for model in (Linear, Partly))
    assert whole.abs().max() > 1e-3 and (whole - partly).abs().max() <= 1e-6 * whole.abs().max()
    assert all(abs(float(also[key] - value)) <= 1e-6 * (1 + abs(float(value))) for key, value in told.items())


def test_rows_of_unequal_parts_have_errors_of_their_own_elements() -> None:
    x = torch.tensor([[1.0, 2.0], [3.0, 0.0], [0.0, 4.0]])
    zero, rows = torch.zeros(3, 2), torch.arange(3)
    seen = Field(rows, torch.tensor([0]), 0.5, x, x, zero, zero, share=torch.tensor([1.0, 0.5, 0.5]))
    loss, _ = SFTObjective()(seen, Batch(torch.ones(3, 1), torch.ones(3, 1, dtype=torch.bool), zero[:, :1]))
    assert loss[:, 0].tolist() == [2.5, 9.0, 16.0]


SILENT = {"nft": True, "awm": True, "awm_clip": False, "crd": True, "rwr": True, "dgpo_old": False, "sft": False}
LOSSES = OTHERS | OBJECTIVES | {"sft": SFTObjective()}


@pytest.mark.parametrize("name", SILENT)
def test_rows_without_an_advantage_are_looked_at_where_they_have_a_loss(name: str) -> None:
    """Of two groups the second is trained, whose rows but one have no advantage, or none of them has."""
    objective, mask = LOSSES[name], torch.zeros(ROWS, 2, dtype=torch.bool)
    mask[3:] = True
    rollout = Rollout(Samples([], torch.arange(ROWS) // 3, texts=[""] * ROWS), torch.zeros(ROWS, 2), mask, None)
    for third, moved in ((0.0, 0), (2.0, 3 if objective.together == "group" else 1)):
        policy, adv = Linear(), torch.zeros(ROWS)
        adv[5] = third
        learner, before = Learner(policy.trainable(), lr=1e-3, weight_decay=0.0), policy.theta.detach().clone()
        metrics = update(cast(Policy, policy), learner, rollout, adv, objective, Settings(3))
        assert metrics["active_rows"] == pytest.approx((3 if SILENT[name] else moved) / ROWS)
        assert torch.equal(policy.theta, before) == (not SILENT[name] and not moved)


def test_finetuning_takes_samples_above_a_score_and_weighs_them_if_asked() -> None:
    mask, rows = torch.ones(ROWS, 2, dtype=torch.bool), torch.arange(ROWS)
    for objective, weight in (
        (SFTObjective(), ADV.clamp(min=0)),
        (SFTObjective(least=0.5), torch.tensor([1.0, 0, 0, 0, 0, 2.0])),
        (SFTObjective(least=-1.5, weighted=False), torch.tensor([1.0, 0, 1, 1, 1, 1])),
    ):
        policy, total = Linear(), torch.zeros((), dtype=torch.float64)
        for column in range(2):
            f = policy.field(rows, column, policy.theta)
            total = total + ((f.v - f.target).square().mean(1) * weight).sum() / (2 * ROWS)
        wanted = torch.autograd.grad(total, policy.theta)[0]
        torch.testing.assert_close(gradient(policy, objective, 4, mask)[0], wanted, rtol=1e-6, atol=1e-8)
