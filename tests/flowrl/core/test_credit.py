"""How rewards of samples become advantages of rows: weighted means, peers, views, samples that could not be scored."""

import math
from typing import Any

import pytest
import torch
from torch import Tensor

from flowrl.contracts import Credit
from flowrl.core.advantages.combined import advantages
from flowrl.core.advantages.rows import row_advantages
from samplers.trees import Branching, credit_weights, peers

EXACT: dict[str, Any] = {"weights": {"r": 1.0}, "eps": 0.0}
NAN = math.nan


def one_hot(leaf: int, number: int) -> list[float]:
    return [float(i == leaf) for i in range(number)]


# A tree that parts in two, twice: rows are its two halves (peers 0) and its four leaves (peers 1).
HALVES = [[0.5, 0.5, 0.0, 0.0], [0.0, 0.0, 0.5, 0.5]]
FOUR = torch.tensor(HALVES + [one_hot(i, 4) for i in range(4)])[None, None]
DEPTHS = torch.tensor([0, 0, 1, 1, 1, 1])


def rows(reward: list[float], credit: Credit | None, group: list[int] | None = None, **options: Any) -> Tensor:
    labels = torch.zeros(len(reward), dtype=torch.int64) if group is None else torch.tensor(group)
    return row_advantages({"r": torch.tensor(reward)}, labels, credit, **(EXACT | options))


def z(values: list[float]) -> list[float]:
    """Each value less their mean, in population stds."""
    mean = sum(values) / len(values)
    std = math.sqrt(sum((v - mean) ** 2 for v in values) / len(values))
    return [(v - mean) / std for v in values]


def test_rows_are_compared_with_those_of_their_depth():
    found = rows([1.0, 3.0, 4.0, 8.0], Credit(FOUR, DEPTHS))
    torch.testing.assert_close(found, torch.tensor(z([2.0, 6.0]) + z([1.0, 3.0, 4.0, 8.0])))


def test_rows_take_the_mean_of_advantages_where_samples_are_compared():
    found = rows([1.0, 3.0, 4.0, 8.0], Credit(FOUR, DEPTHS, by_row=False))
    a, b, c, d = z([1.0, 3.0, 4.0, 8.0])
    torch.testing.assert_close(found, torch.tensor([(a + b) / 2, (c + d) / 2, a, b, c, d]))


def test_every_prompt_is_compared_with_itself_whatever_its_label():
    first, second = [1.0, 3.0, 4.0, 8.0], [9.0, 2.0, 5.0, 5.0]
    alone = torch.cat([rows(first, Credit(FOUR, DEPTHS)), rows(second, Credit(FOUR, DEPTHS))])
    for labels in ([7] * 4 + [3] * 4, [0] * 4 + [1] * 4):
        assert torch.equal(rows(first + second, Credit(FOUR, DEPTHS), labels), alone)


def test_weights_may_differ_from_prompt_to_prompt():
    weights = torch.cat([FOUR, FOUR.flip(-1)])
    found = rows([1.0, 3.0, 4.0, 8.0] * 2, Credit(weights, DEPTHS), [0] * 4 + [1] * 4)
    assert torch.equal(found[6:8], found[:2].flip(0)) and torch.equal(found[8:], found[2:6].flip(0))


def test_advantages_of_views_add_up_and_are_limited_afterwards():
    # Two rows that each end in two samples, one a view.
    views = torch.tensor([[one_hot(0, 4), one_hot(2, 4)], [one_hot(1, 4), one_hot(3, 4)]])[None]
    credit = Credit(views, torch.tensor([0, 0]))
    assert rows([1.0, 10.0, 2.0, 30.0], credit).tolist() == [-2.0, 2.0]
    assert rows([1.0, 30.0, 2.0, 10.0], credit).tolist() == [0.0, 0.0]  # each view has its own scale
    assert rows([1.0, 10.0, 2.0, 30.0], credit, clip=1.5).tolist() == [-1.5, 1.5]


@pytest.mark.parametrize("by_row", [True, False])
def test_a_lonely_row_has_no_advantage(by_row: bool):
    weights = torch.cat([torch.full((1, 1, 1, 4), 0.25), FOUR], 2)
    credit = Credit(weights, torch.tensor([0, 1, 1, 2, 2, 2, 2]), by_row)
    found = rows([1.0, 3.0, 5.0, 8.0], credit)
    assert found[0].abs() < 1e-7 and (found[1:] != 0).all()
    assert not by_row or found[0] == 0


def test_a_lonely_row_has_none_of_its_bare_reward_either():
    """singleton: raw is about groups of which one sample was scored, not about a trunk that has no siblings."""
    weights = torch.cat([torch.full((1, 1, 1, 4), 0.25), FOUR], 2)
    credit = Credit(weights, torch.tensor([0, 1, 1, 2, 2, 2, 2]))
    assert rows([1.0, 3.0, 4.0, 8.0], credit, singleton="raw")[0] == 0


def test_equal_rewards_leave_no_advantage():
    assert not rows([0.3] * 4, Credit(FOUR, DEPTHS)).any()
    assert not rows([0.1, 0.3, 0.3, 0.1], Credit(FOUR, DEPTHS))[:2].any()  # the halves tie, the leaves do not


def test_a_sample_without_a_score_leaves_the_means_above_it():
    found = rows([1.0, NAN, 4.0, 8.0], Credit(FOUR, DEPTHS))
    leaves = z([1.0, 4.0, 8.0])
    torch.testing.assert_close(found, torch.tensor([*z([1.0, 6.0]), leaves[0], 0.0, *leaves[1:]]))


def test_a_row_without_any_score_is_compared_with_nobody():
    found = rows([NAN, NAN, 4.0, 8.0], Credit(FOUR, DEPTHS))
    assert found.tolist() == [0.0, 0.0, 0.0, 0.0, -1.0, 1.0]


def test_a_sample_without_a_score_leaves_the_mean_of_advantages():
    found = rows([1.0, NAN, 4.0, 8.0], Credit(FOUR, DEPTHS, by_row=False))
    a, c, d = z([1.0, 4.0, 8.0])
    torch.testing.assert_close(found, torch.tensor([a, (c + d) / 2, a, 0.0, c, d]))


@pytest.mark.parametrize("by_row", [True, False])
@pytest.mark.parametrize("combine", ["sum", "per_reward"])
def test_a_sample_that_one_reward_could_not_score_leaves_them_all(by_row: bool, combine: str):
    """As it does where rows are samples; a witness that could not be scored costs nothing."""
    labels, credit = torch.zeros(4, dtype=torch.int64), Credit(FOUR, DEPTHS, by_row)
    rewards = {"a": torch.tensor([1.0, 3.0, 4.0, 8.0]), "b": torch.tensor([2.0, NAN, 7.0, 1.0])}
    both = {name: value.where(~rewards["b"].isnan(), NAN) for name, value in rewards.items()}
    options: dict[str, Any] = {"weights": {"a": 1.0, "b": 0.5}, "combine": combine}
    assert torch.equal(
        row_advantages(rewards, labels, credit, **options), row_advantages(both, labels, credit, **options)
    )
    options["weights"] = {"a": 1.0, "b": 0.0}
    seen = rewards | {"b": torch.ones(4)}
    assert torch.equal(
        row_advantages(rewards, labels, credit, **options), row_advantages(seen, labels, credit, **options)
    )


@pytest.mark.parametrize("by_row", [True, False])
@pytest.mark.parametrize("scale", ["group", "batch", "whiten", "none"])
def test_rows_that_are_samples_get_what_samples_get(by_row: bool, scale: str):
    rewards = torch.randn(8, generator=torch.Generator().manual_seed(0))
    labels = torch.tensor([5] * 4 + [2] * 4)
    credit = Credit(torch.eye(4)[None, None], torch.zeros(4, dtype=torch.int64), by_row)
    want = advantages({"r": rewards}, labels, scale=scale, **EXACT)
    torch.testing.assert_close(row_advantages({"r": rewards}, labels, credit, scale=scale, **EXACT), want)
    assert torch.equal(row_advantages({"r": rewards}, labels, None, scale=scale, **EXACT), want)


def test_a_batch_scale_is_one_depths_own():
    """Means over many leaves spread less: their std is not mixed with that of leaves."""
    reward = [1.0, 3.0, 4.0, 8.0, 0.0, 2.0, 9.0, 5.0]
    found = rows(reward, Credit(FOUR, DEPTHS), [0] * 4 + [1] * 4, scale="batch").unflatten(0, (2, 6))
    halves = torch.tensor([2.0, 6.0, 1.0, 7.0], dtype=torch.float64).unflatten(0, (2, 2))
    want = (halves - halves.mean(1, keepdim=True)) / halves.std(correction=0)
    torch.testing.assert_close(found[:, :2], want.float())


def test_the_credit_of_a_branching_tree():
    tree = Branching(6, (0, 2), (2, 2), (0, 1, 2, 3), (0, 1, 2, 3)).tree(4)
    credit = Credit(credit_weights(tree), peers(tree), tree.by_row)
    found = rows([1.0, 3.0, 4.0, 8.0], credit)
    depth = {q: found[credit.peers == q] for q in credit.peers.unique().tolist()}
    torch.testing.assert_close(depth[1], torch.tensor(z([2.0, 6.0])))
    torch.testing.assert_close(depth[2], torch.tensor(z([1.0, 3.0, 4.0, 8.0])))


def test_samples_that_are_not_laid_out_prompt_by_prompt_are_refused():
    with pytest.raises(ValueError, match="prompt by prompt"):
        rows([1.0, 3.0, 4.0, 8.0] * 2, Credit(FOUR, DEPTHS), [0, 1] * 4)
    with pytest.raises(ValueError, match="6 samples.*4"):
        rows([1.0] * 6, Credit(FOUR, DEPTHS), [0] * 6)
