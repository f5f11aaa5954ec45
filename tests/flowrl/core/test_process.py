"""Rewards of steps: where they sit, how they are normalised, and what a token gets of them."""

import math
from typing import Any

import pytest
import torch

from flowrl.contracts import Prompt, Rollout, Samples, Steps
from flowrl.core.advantages.decisions import DecisionCredit
from flowrl.core.advantages.process import at_end, normalised_steps, place, raw_steps

# two characters a token; the third row has a hole, the fourth ends at once, the last two are another group
MASK = torch.tensor(
    [[1, 1, 1, 1, 1], [1, 1, 1, 0, 0], [1, 0, 1, 1, 1], [1, 0, 0, 0, 0], [1, 1, 1, 1, 1], [1, 1, 0, 0, 0]]
)
MASK = MASK.bool()
ENDS = torch.arange(2.0, 12.0, 2.0).expand(6, 5).clone()
ENDS[1, 3:], ENDS[3, 1:], ENDS[5, 2:] = 6.0, 2.0, 4.0
GROUP = torch.tensor([4, 4, 4, 4, 7, 7])
STEPS: list[Steps] = [((3, 1.0), (8, 0.0)), ((6, 0.5),), ((2, 1.0), (4, 0.0), (9, 1.0)), (), ((5, 1.0),), ((4, 0.0),)]
GRPO: dict[str, Any] = {"baseline": "group", "scale": "group", "eps": 1e-4, "unbiased": True}
NONE = torch.zeros(6, dtype=torch.bool)


def rollout(rows: list[int] | None = None, steps: list[Steps] | None = None) -> Rollout:
    rows = list(range(6)) if rows is None else rows
    samples = Samples([Prompt(str(i), "p") for i in rows], GROUP[rows], texts=["x" * 10] * len(rows))
    samples.steps["steps"] = [(steps or STEPS)[i] for i in rows]
    return Rollout(samples, torch.zeros(len(rows), 5), MASK[rows], None, step_stats={"end": ENDS[rows]})


def total(steps: list[Steps]) -> torch.Tensor:
    return torch.tensor([sum(value for _, value in of) for of in steps])


def process(of: Rollout, rows: torch.Tensor, **more: Any) -> torch.Tensor:
    how = GRPO | {"weights": {"steps": 1.0}, "unscored": torch.zeros(len(rows), dtype=torch.bool)} | more
    placed = normalised_steps({"steps": rows}, of, of.samples.group, **how)
    return DecisionCredit("step")(torch.zeros(len(rows)), of, placed=placed, unscored=how["unscored"])


def test_a_step_sits_at_the_token_that_says_its_last_character() -> None:
    placed = place(STEPS, ENDS, MASK)
    assert placed.row.tolist() == [0, 0, 1, 2, 2, 2, 4, 5]
    # the step that ends in the third row's hole sits at the decision before it
    assert placed.column.tolist() == [1, 3, 2, 0, 0, 4, 2, 1]
    assert len(place([((2, 1.0),)], ENDS[:1], torch.tensor([[0, 1, 1, 1, 1]])).row) == 0
    assert at_end(torch.arange(6.0), MASK).column.tolist() == [4, 2, 4, 0, 4, 1]


def test_a_token_gets_the_sum_of_the_normalised_steps_from_it_on() -> None:
    """DeepSeekMath, section 4.1.3, worked out by hand for the group of four; the fourth has no step."""
    values = [1.0, 0.0, 0.5, 1.0, 0.0, 1.0]
    mean = sum(values) / 6
    std = math.sqrt(sum((v - mean) ** 2 for v in values) / 5) + 1e-4
    r = {v: (v - mean) / std for v in (1.0, 0.0, 0.5)}
    adv = process(rollout(), total(STEPS))
    third = [2 * r[1.0] + r[0.0], 0, r[1.0], r[1.0], r[1.0]]  # 0: the hole, which is passed over
    torch.testing.assert_close(adv[2], torch.tensor(third))
    torch.testing.assert_close(adv[0], torch.tensor([r[1.0] + r[0.0]] * 2 + [r[0.0]] * 2 + [0.0]))
    torch.testing.assert_close(adv[1], torch.tensor([r[0.5]] * 3 + [0.0] * 2))
    assert (adv[3] == 0).all() and (adv[~MASK] == 0).all()
    torch.testing.assert_close(process(rollout([4, 5]), total(STEPS)[4:]), adv[4:])  # a group is its own
    torch.testing.assert_close(process(rollout([2, 0, 3, 1]), total(STEPS)[[2, 0, 3, 1]]), adv[[2, 0, 3, 1]])


def test_a_group_whose_steps_are_equal_and_one_without_any_teach_nothing() -> None:
    same: list[Steps] = [tuple((end, 1.0) for end, _ in of) for of in STEPS[:4]] + [(), ()]
    assert (process(rollout(steps=same), total(same)) == 0).all()


def test_a_sample_that_could_not_be_scored_leaves_the_statistics() -> None:
    lost = torch.tensor([False, False, True, False, False, False])
    steps = [STEPS[0], STEPS[1], (), *STEPS[3:]]
    adv = process(rollout(steps=steps), total(steps).masked_fill(lost, torch.nan), unscored=lost)
    alone = process(rollout([0, 1, 3]), total(STEPS)[[0, 1, 3]])
    assert (adv[2] == 0).all()
    torch.testing.assert_close(adv[[0, 1, 3]], alone)


@pytest.mark.parametrize("combine", ["per_reward", "sum"])
def test_the_score_of_a_whole_answer_is_one_step_at_its_end(combine: str) -> None:
    of, right = rollout(), torch.tensor([1.0, 0.0, 1.0, 0.0, 1.0, 0.0])
    how = GRPO | {"unscored": NONE, "combine": combine}
    rewards = {"steps": total(STEPS), "right": right}
    found = normalised_steps(rewards, of, GROUP, weights={"steps": 3.0, "right": -1.0}, **how)
    if combine == "sum":
        weighted = [tuple((e, 3 * v) for e, v in s) + ((10, -r),) for s, r in zip(STEPS, right.tolist(), strict=True)]
        alone = normalised_steps(
            {"steps": total(weighted)}, rollout(steps=weighted), GROUP, weights={"steps": 1.0}, **how
        )
        torch.testing.assert_close(found, alone)
    else:
        each = [normalised_steps({n: rewards[n]}, of, GROUP, weights={n: 1.0}, **how) for n in rewards]
        torch.testing.assert_close(found, 0.75 * each[0] - 0.25 * each[1])


def test_a_reward_that_is_not_asked_adds_nothing_and_takes_no_part() -> None:
    asked = {"steps": torch.tensor([True] * 4 + [False] * 2)}
    adv = process(rollout(), total(STEPS), asked=asked)
    assert (adv[4:] == 0).all() and (adv[0, 0] != 0)


@pytest.mark.parametrize("kind", ["reward_to_go", "gae", "two_level"])
def test_other_credit_takes_rewards_of_steps_as_they_are(kind: str) -> None:
    """With a value of 0, a discount of 1 and lambda 1 each token gets what follows it; turns are one here."""
    of = rollout()
    of.value = torch.zeros(6, 5)
    placed = raw_steps({"steps": total(STEPS), "w": torch.full((6,), 9.0)}, {"steps": 2.0, "w": 0.0}, of)
    adv = DecisionCredit(kind, turn_gamma=1.0)(torch.ones(6), of, placed=placed)
    torch.testing.assert_close(adv[2], torch.tensor([5.0, 0.0, 3.0, 3.0, 3.0]))
    torch.testing.assert_close(adv[0], torch.tensor([3.0, 3.0, 1.0, 1.0, 1.0]))
    assert adv[3].tolist() == [1.0, 0.0, 0.0, 0.0, 0.0] and of.returns is not None


def test_steps_of_what_is_no_text_are_refused() -> None:
    of = rollout()
    of.step_stats = {}
    with pytest.raises(ValueError, match="'steps' gives values of steps of texts"):
        raw_steps({"steps": total(STEPS)}, {"steps": 1.0}, of)
