"""Which rows are trained: against a sort by hand, by sets, and in the loop."""

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from flowrl.contracts import Credit, Rollout, Samples
from flowrl.core.selection import (
    WidthPruning,
    compared_rows,
    extremes,
    prune_width,
    selected_rows,
    without_silent,
)


def by_hand(values: list[float], compared: list[int], keep: int) -> list[bool]:
    kept = [False] * len(values)
    for label in set(compared):
        order = sorted((i for i, c in enumerate(compared) if c == label), key=lambda i: values[i])
        for i in order if len(order) <= keep else order[: keep // 2] + order[-(keep // 2) :]:
            kept[i] = True
    return kept


@settings(max_examples=200, deadline=None)
@given(st.data())
def test_the_ends_of_each_set(data: st.DataObject):
    rows = data.draw(st.integers(1, 24))
    values = data.draw(st.lists(st.sampled_from([-1.5, -1.0, 0.0, 0.5, 2.0]), min_size=rows, max_size=rows))
    compared = data.draw(st.lists(st.sampled_from([0, 3, 70]), min_size=rows, max_size=rows))
    keep = 2 * data.draw(st.integers(1, 5))
    kept = extremes(torch.tensor(values), torch.tensor(compared), keep)
    assert kept.tolist() == by_hand(values, compared, keep)  # sorted() is stable as well
    for label in set(compared):
        mine = torch.tensor(compared) == label
        assert kept[mine].sum() == min(keep, int(mine.sum()))


@pytest.mark.parametrize("keep", [0, 1, 3, -2])
def test_a_keep_without_two_halves_is_refused(keep: int):
    with pytest.raises(ValueError, match="an even number"):
        extremes(torch.zeros(4), torch.zeros(4, dtype=torch.int64), keep)


def rollout_of(prompts: int, samples: int, credit: Credit | None = None, rows: int | None = None) -> Rollout:
    number = prompts * (samples if rows is None else rows)
    group = torch.arange(prompts).repeat_interleave(samples) * 5 + 2
    mask = torch.ones(number, 3, dtype=torch.bool)
    mask[0, 1] = False
    return Rollout(Samples([], group, texts=[]), torch.zeros(number, 3), mask, None, credit=credit)


def test_rows_that_are_left_out_leave_mask_and_advantage():
    rollout, adv = rollout_of(2, 4), torch.tensor([1.0, 2.0, 3.0, 4.0, 8.0, 7.0, 6.0, 5.0])
    kept, left = selected_rows(rollout, adv, 2)
    assert left.tolist() == [1.0, 0.0, 0.0, 4.0, 8.0, 0.0, 0.0, 5.0]
    assert kept.mask.any(1).tolist() == [True, False, False, True] * 2
    assert kept.mask[0].tolist() == [True, False, True]  # what was masked stays so
    assert rollout.mask.sum() == 23 and adv[1] == 2.0  # nothing was changed in place


def test_edges_of_a_tree_are_compared_with_their_peers():
    """Two prompts of two edges at the first depth and four at the second: only a set of more than two is cut."""
    credit = Credit(torch.ones(1, 1, 6, 4), torch.tensor([0, 0, 1, 1, 1, 1]))
    rollout = rollout_of(2, 4, credit, rows=6)
    labels = compared_rows(rollout)
    assert labels.tolist() == [0, 0, 1, 1, 1, 1, 2, 2, 3, 3, 3, 3]
    adv = torch.tensor([0.5, -0.5, 3.0, 1.0, -1.0, -3.0] * 2)
    kept, left = selected_rows(rollout, adv, 2)
    assert left.tolist() == [0.5, -0.5, 3.0, 0.0, 0.0, -3.0] * 2
    assert kept.mask.any(1).tolist() == [True, True, True, False, False, True] * 2
    flat: Tensor = compared_rows(rollout_of(2, 3))
    assert flat.tolist() == [2, 2, 2, 7, 7, 7]


def test_rows_are_compared_by_the_sum_of_their_trained_decisions():
    """Of three decisions a row; the second of row 0 is masked, and its advantage is not read."""
    rollout = rollout_of(1, 4)
    adv = torch.tensor([[1.0, 99.0, 1.0], [3.0, -4.0, 0.0], [0.0, 0.0, 0.0], [1.0, -1.0, 0.5]])
    kept, left = selected_rows(rollout, adv, 2)
    assert kept.mask.any(1).tolist() == [True, True, False, False]
    assert torch.equal(left, adv.where(torch.tensor([True, True, False, False])[:, None], 0.0))
    adv[0], adv[3] = torch.tensor([0.0, 99.0, 0.0]), torch.tensor([1.0, -1.0, 0.0])
    assert without_silent(rollout, adv).mask.any(1).tolist() == [False, True, False, True]
    assert without_silent(rollout, adv[:, 0]).mask.any(1).tolist() == [False, True, False, True]


def test_a_width_pruning_compares_decisions_by_their_own_advantages():
    adv = torch.tensor([[1.0, 5.0, 3.0], [0.0, -2.0, 4.0]])
    pruning = WidthPruning(torch.ones(2, 3, dtype=torch.bool), "branches", 0.4)
    rollout = rollout_of(1, 2)
    rollout.mask[0, 1] = True
    assert prune_width(rollout, adv, pruning).mask.tolist() == [[False, True, False], [False, False, True]]
    assert prune_width(rollout, adv[:, 0], pruning).mask.tolist() == [[True, False, False]] * 2
