"""Credit of decisions: holes in the mask, lengths, turns, and baselines of single positions."""

from collections.abc import Callable

import pytest
import torch
from torch import Tensor

from flowrl.core.advantages.returns import (
    Estimate,
    at_last,
    gae,
    lambda_by_length,
    optimal_token,
    prefix_average,
    reward_to_go,
    turn_ends,
    two_level,
)

# the third row has holes, the first ends early, the last says nothing
MASK = torch.tensor([[1, 1, 1, 0, 0, 0, 0], [1, 1, 1, 1, 1, 1, 1], [1, 1, 0, 0, 1, 0, 1], [0] * 7]).bool()


def numbers(seed: int) -> Tensor:
    return torch.randn(MASK.shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def compact(values: Tensor, row: int) -> Tensor:
    return values[row : row + 1, MASK[row]]


ESTIMATES: dict[str, Callable[[Tensor, Tensor, Tensor, Tensor], Tensor | Estimate]] = {
    "reward_to_go": lambda r, m, v, e: reward_to_go(r, m, gamma=0.9),
    "gae": lambda r, m, v, e: gae(r, m, v, gamma=0.9, lam=0.8, lam_critic=0.95),
    "two_level": lambda r, m, v, e: two_level(r, m, v, e, gamma=0.9, lam=0.8, turn_gamma=0.7),
}


@pytest.mark.parametrize("name", list(ESTIMATES))
def test_a_row_with_holes_is_the_row_without_them(name: str) -> None:
    """What stands in holes is never read: a tool's answer brings nothing and has no value."""
    rewards, values = numbers(0), numbers(1)
    ends = torch.zeros_like(MASK)
    ends[:, 1] = ends[:, 4] = ends[:, 6] = True
    found = ESTIMATES[name](rewards.where(MASK, 0.0), MASK, values.where(MASK, 99.0), ends)
    for row in (0, 1, 2):
        whole = torch.ones_like(compact(rewards, row)).bool()
        alone = ESTIMATES[name](*(compact(x, row) for x in (rewards,)), whole, compact(values, row), compact(ends, row))
        for got, want in zip(
            found if isinstance(found, Estimate) else [found],
            alone if isinstance(alone, Estimate) else [alone],
            strict=True,
        ):
            torch.testing.assert_close(compact(got, row), want)
            assert (got[~MASK] == 0).all()


def test_an_outcome_reaches_every_decision_through_a_hole() -> None:
    """The second turn's reward belongs to the first turn too; the published restart cuts it off (verl issue 7278)."""
    rewards = at_last(torch.tensor([1.0, 2.0, 3.0, 4.0]), MASK)
    assert rewards.sum(1).tolist() == [1.0, 2.0, 3.0, 0.0] and rewards[2, 6] == 3 and rewards[0, 2] == 1
    assert reward_to_go(rewards, MASK)[2].tolist() == [3.0, 3.0, 0.0, 0.0, 3.0, 0.0, 3.0]
    assert reward_to_go(rewards, MASK, restart=True)[2].tolist() == [0.0, 0.0, 0.0, 0.0, 0.0, 0.0, 3.0]


def test_gae_of_one_is_the_return_less_the_value() -> None:
    rewards, values = numbers(2).where(MASK, 0.0), numbers(3)
    found = gae(rewards, MASK, values)
    torch.testing.assert_close(found.returns, reward_to_go(rewards, MASK))
    torch.testing.assert_close(found.adv, (found.returns - values).where(MASK, 0.0))


def test_lambda_grows_with_the_length() -> None:
    """VAPO: none at all for rows of 1 / alpha decisions or fewer."""
    torch.testing.assert_close(lambda_by_length(MASK, 0.25), torch.tensor([0.0, 3 / 7, 0.0, 0.0]).double())
    own = lambda_by_length(MASK, 0.5)
    found, one = gae(numbers(4), MASK, numbers(5), lam=own), gae(numbers(4), MASK, numbers(5), lam=float(own[1]))
    torch.testing.assert_close(found.adv[1], one.adv[1])
    assert not torch.allclose(found.adv[0], one.adv[0])


def test_turns_end_where_the_next_decision_is_of_another() -> None:
    turn = torch.tensor([[0, 0, 0, 0, 0, 0, 0], [0, 0, 1, 1, 1, 2, 2], [0, 0, 1, 1, 1, 2, 2], [0] * 7])
    ends = turn_ends(turn, MASK)
    assert [row.nonzero()[:, 0].tolist() for row in ends] == [[2], [1, 4, 6], [1, 4, 6], []]


def test_one_turn_is_plain_gae() -> None:
    rewards, values = at_last(torch.tensor([1.0, -2.0, 0.5, 0.0]), MASK), numbers(6)
    found = two_level(rewards, MASK, values, turn_ends(torch.zeros(MASK.shape), MASK), lam=0.9)
    torch.testing.assert_close(found.adv, gae(rewards, MASK, values, lam=0.9).adv)


def test_the_optimal_baseline_compares_equal_positions() -> None:
    """By hand for two rows of unequal lengths; the row that goes on alone keeps its return."""
    mask = torch.tensor([[1, 1, 0, 0], [1, 0, 1, 1], [1, 1, 1, 1]]).bool()
    returns = torch.tensor([[1.0, 1.0, 0, 0], [3.0, 0, 3.0, 3.0], [5.0, 5.0, 5.0, 5.0]])
    logp, squares = torch.full((3, 4), 0.5).log(), torch.full((3, 4), 0.4)
    squares[1] = 0.9
    found = optimal_token(returns, mask, torch.tensor([2, 2, 0]), logp, squares)
    energy = torch.tensor([[0.4, 0.8], [0.9, 1.8]])
    base = (energy * torch.tensor([[1.0], [3.0]])).sum(0) / energy.sum(0)
    want = [[1 - base[0], 1 - base[1], 0, 0], [3 - base[0], 0, 3 - base[1], 3], [5, 5, 5, 5]]
    torch.testing.assert_close(found, torch.tensor(want).double(), atol=1e-6, rtol=0)


def test_prefixes_are_averaged_over_the_depths() -> None:
    paths = [["a", "0", "x"], ["a", "0", "y"], ["a", "1", "z"]]
    found = prefix_average(torch.tensor([1.0, 0.0, 0.5]), paths)
    torch.testing.assert_close(found, torch.tensor([0.5, -0.5, 0.0]).double())
    weighted = prefix_average(torch.tensor([1.0, 0.0, 0.2]), paths, by_size=True)
    torch.testing.assert_close(weighted[0], torch.tensor((3 * 0.6 + 2 * 0.5) / 5).double())
