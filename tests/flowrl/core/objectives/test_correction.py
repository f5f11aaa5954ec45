"""Corrections, covariances and entropy beside published numbers: what is declared, who picks, what is controlled."""

from typing import get_args

import pytest
import torch

from flowrl.contracts import Batch, LogProbs, Rollout, Samples
from flowrl.core.objectives import correction, covariance
from flowrl.core.objectives.correction import Correction, Rejection
from flowrl.core.objectives.covariance import Covariance
from flowrl.core.objectives.entropy import EntropyControl
from flowrl.core.objectives.grpo import ClippedObjective
from flowrl.recipe.keys.correction import CorrectionKeys, CovarianceKeys, RejectionKeys, RolloutKeys
from samplers.tokens import PRECISIONS

MASK = torch.tensor([[1, 1, 1, 0], [1, 1, 1, 1], [1, 0, 1, 1], [0, 0, 0, 0]]).bool()
GAP = torch.tensor([[0.1, -0.2, 1.2, 9.0], [0.0, 0.3, -2.0, 0.1], [0.4, 9.0, 0.5, 0.6], [9.0, 9.0, 9.0, 9.0]])


def test_recipes_know_the_same_names():
    def choices(model, name):
        return tuple(c for arg in get_args(model.model_fields[name].annotation) for c in (get_args(arg) or (arg,)))

    assert choices(CorrectionKeys, "kind") == tuple(correction.KINDS)
    assert set(choices(CorrectionKeys, "level")) - {type(None)} == set(correction.LEVELS)
    assert choices(RejectionKeys, "level") == ("token", "seq_sum", "seq_mean", "seq_max")
    assert set(choices(RejectionKeys, "level")) == set(correction.REJECT_LEVELS)
    assert choices(RejectionKeys, "by") == correction.ESTIMATES
    assert choices(CovarianceKeys, "kind") == covariance.KINDS
    assert set(choices(RolloutKeys, "dtype")) - {type(None)} == set(PRECISIONS)


@pytest.mark.parametrize("kind", correction.KINDS)
def test_a_weight_keeps_the_divisor_and_a_mask_shrinks_it(kind: str):
    weight, kept, metrics = Correction(kind)(GAP, torch.zeros_like(GAP), MASK)
    assert torch.equal(kept, MASK) is (correction.KINDS[kind].outside != "mask")
    assert not (kept & ~MASK).any() and (weight[~MASK] == 0).all() and weight.isfinite().all()
    limited = {"none": 0, "tis": 1, "icepop": 1, "mis": 2, "seq_mask": 0}
    if kind in limited:
        assert float(metrics["correction/limited"]) == pytest.approx(limited[kind] / MASK.sum().item())
    if kind == "seq_tis":  # of the third row, whose hole counts nowhere
        assert weight[2].tolist() == [2.0, 0.0, 2.0, 2.0]
    if kind == "mis":
        assert not kept[0, 2] and not kept[1, 2] and kept[2].tolist() == MASK[2].tolist()


def test_a_rejection_that_keeps_the_divisor_is_a_weight():
    given = dict(by="k3", level="seq_mean", high=0.2)
    shrinks = Correction("none", reject=(Rejection(**given),))(GAP, torch.zeros_like(GAP), MASK)
    keeps = Correction("none", reject=(Rejection(**given, keeps=True),))(GAP, torch.zeros_like(GAP), MASK)
    assert torch.equal(keeps.mask, MASK) and torch.equal(keeps.weight.bool(), shrinks.mask)
    assert shrinks.mask.any(1).tolist() == [False, False, True, False]


@pytest.mark.parametrize(
    "wrong",
    [
        lambda: Correction("truncated"),
        lambda: Correction("tis", level="seq_max"),
        lambda: Rejection("k4", "token", 1.0),
        lambda: Rejection("k1", "seq_max", 2.0),
        lambda: Rejection("k2", "token", 2.0, low=0.5),
        lambda: Covariance("mask"),
    ],
)
def test_what_does_not_exist_is_refused(wrong):
    with pytest.raises(ValueError):
        wrong()


def seen_of(logp: torch.Tensor) -> LogProbs:
    return LogProbs(torch.arange(len(logp)), torch.arange(logp.shape[1]), logp)


def test_the_ratio_is_to_who_trains_unless_that_is_passed_by():
    """A third log-prob changes where the clip begins, not who is weighed."""
    old, sampled = torch.full((3, 4), -1.0), torch.full((3, 4), -1.5)
    batch = Batch(sampled, torch.ones(3), MASK[:3], old_logp=old)
    logp = torch.full((3, 4), -0.95)
    inside = ClippedObjective(0.2, 0.2, correction=Correction("tis"))(seen_of(logp), batch)[1]
    passed = ClippedObjective(0.2, 0.2, correction=Correction("none", bypass=True))(seen_of(logp), batch)[1]
    assert inside["clip_frac"][2].tolist() == [0, 0, 0, 0] and passed["clip_frac"][2].tolist() == [1, 0, 1, 1]
    with pytest.raises(ValueError, match="old_logp is not filled in"):
        samples = Samples([], torch.zeros(0, dtype=torch.int64))
        ClippedObjective(0.2, 0.2, correction=Correction()).weigh(Rollout(samples, old, MASK[:3], None), torch.ones(3))


def test_clip_cov_draws_among_candidates_by_their_content():
    cov = torch.linspace(0.5, 6.0, 40).reshape(4, 10)
    mask = torch.ones(4, 10, dtype=torch.bool)
    kind = Covariance("clip", share=0.1)
    picked = kind.picked(cov, mask)
    assert picked.sum() == 4 and ((cov[picked] > 1) & (cov[picked] < 5)).all()
    assert torch.equal(picked, kind.picked(cov.clone(), mask))
    others = [kind.picked(cov + shift, mask) for shift in (0.01, 0.02, 0.03)]
    assert any(not torch.equal(picked, other) for other in others)
    assert not kind.picked(cov, mask, clipped=mask).any()
    assert Covariance("kl", share=1e-6).picked(cov, mask).nonzero().tolist() == [[3, 9]]


def test_the_coefficient_of_entropy_moves_towards_its_target():
    control = EntropyControl(target=0.2, step=0.25, start=0.1)
    assert control.now == 0.0  # nothing is known yet
    seen = []
    for entropy in (0.5, 0.1, 0.1, 0.1, 0.1, 0.1, float("nan"), 0.3):
        control.observe(entropy)
        seen.append((round(control.coefficient, 3), round(control.now, 3)))
    assert seen == [(0.0, 0.0), (0.25, 0.25), (0.5, 0.5), (0.75, 0.75), (1.0, 1.0), (1.0, 1.0), (1.0, 1.0), (0.75, 0.0)]
    again = EntropyControl(target=0.2, step=0.25)
    again.load_state_dict(control.state_dict())
    assert (again.coefficient, again.entropy) == (0.75, 0.3)
    assert EntropyControl.of(ClippedObjective(0.2, 0.2)) is None
    assert EntropyControl(0.2, start=0.4).applied(ClippedObjective(0.2, 0.2, entropy=0.9)).entropy == 0.0
