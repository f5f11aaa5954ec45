"""Advantages of trees of tokens and of valued steps, computed by hand."""

import pytest
import torch

from flowrl.contracts import Rollout, Samples
from flowrl.core.advantages.trees import tree_advantages

NODES = torch.tensor(
    [[1, 1, 2, 2], [1, 1, 3, 0], [1, 1, 4, 4], [5, 5, 6, 6], [5, 5, 7, 0], [8, 0, 0, 0]]
    + [[1, 2, 2, 2], [3, 3, 0, 0]] * 3
).float()
GROUP = torch.tensor([0] * 6 + [1] * 6)


def rollout(**stats: torch.Tensor) -> Rollout:
    mask = NODES != 0
    samples = Samples([], GROUP, texts=[""] * 12, lengths=mask.sum(1))
    return Rollout(samples, torch.zeros(mask.shape), mask, None, step_stats={"node": NODES, **stats})


def test_prefixes_are_compared_at_every_depth_that_leaves_share():
    total = torch.tensor([1.0, 0, 1, 0, 0, 1, 2, 2, 2, 2, 2, 2])
    adv = tree_advantages("prefix", total, rollout(), scale="none", lengths=None, clip=None)
    assert adv[:2].tolist() == pytest.approx([(0.5 + 1 / 3) / 2, (-0.5 - 2 / 3) / 2])
    assert adv[3].item() == pytest.approx((-0.5 + 0) / 2) and adv[5].item() == pytest.approx(0.5)
    assert (adv[6:] == 0).all()  # a group without spread
    unknown = total.where(torch.arange(12) != 2, torch.nan)
    without = tree_advantages("prefix", unknown, rollout(), scale="none", clip=None)
    assert without[2] == 0 and without[0].item() == pytest.approx((0.6 + 0.5) / 2)


def test_trees_are_compared_within_and_among_each_other():
    tree = torch.tensor([1.0, 1, 1, 2, 2, 2] * 2)[:, None].expand(12, 4)
    total = torch.tensor([1.0, 0, 1, 0, 0, 1, 3, 1, 2, 2, 5, 2])
    adv = tree_advantages("trees", total, rollout(tree=tree), scale="group", eps=0.0, unbiased=True, clip=None)
    for rows, row in ((slice(0, 3), 1), (slice(9, 12), 10)):
        inside, whole = total[rows], total[row // 6 * 6 : row // 6 * 6 + 6]
        wanted = (total[row] - inside.mean()) / inside.std() + (total[row] - whole.mean()) / whole.std()
        assert adv[row].item() == pytest.approx(float(wanted), rel=1e-5)


def test_values_change_from_step_to_step_and_end_with_the_outcome():
    value = torch.where(NODES == 0, torch.nan, 0.25 + NODES / 10)
    value[0, 2:] = torch.nan  # not valued: what came of it
    total = torch.arange(12).float()
    adv = tree_advantages("values", total, rollout(value=value), scale="none", clip=None)
    assert adv[0].tolist() == pytest.approx([0 - 0.35, 0 - 0.35, 0, 0])
    assert adv[3].tolist() == pytest.approx([0.1, 0.1, 3 - 0.85, 3 - 0.85])
    assert adv[5].tolist() == pytest.approx([5 - 1.05, 0, 0, 0])
    white = tree_advantages("values", total, rollout(value=value), scale="whiten", clip=None)
    inside = white[NODES != 0]
    assert float(inside.mean()) == pytest.approx(0, abs=1e-6) and float(inside.std()) == pytest.approx(1, rel=1e-5)
    assert (white[NODES == 0] == 0).all()


def test_segments_are_worth_what_the_search_found_less_the_mean_outcome():
    value = NODES / 4
    adv = tree_advantages("nodes", torch.zeros(12), rollout(value=value), scale="none", clip=0.5, factor=0.5)
    last = torch.tensor([2.0, 3, 4, 6, 7, 8]) / 4
    wanted = 0.5 * (value[3] - last.mean())
    torch.testing.assert_close(adv[3], wanted.clamp(-0.5, 0.5))


def test_a_rollout_without_what_is_read_is_one_line():
    with pytest.raises(ValueError, match="advantage.credit=trees needs the tree of each decision"):
        tree_advantages("trees", torch.zeros(12), rollout(), scale="none")
