"""Rewards as they count: gates, rewards that are asked about some prompts only, and what training makes of them."""

import pytest
import torch

from flowrl.contracts import Credit, Prompt
from flowrl.core.advantages.combined import advantage_metrics, advantages
from flowrl.core.advantages.rows import row_advantages
from flowrl.names import UserError
from flowrl.recipe.keys.rewards import Gate, RewardSpec
from flowrl.scoring.gates import check_prompts, counted_rewards

NAN = float("nan")
GROUP = torch.tensor([0, 0, 0, 1, 1, 1])
KINDS = ["count", "count", "count", "pair", "pair", "pair"]
PROMPTS = [Prompt(str(i), f"text {i}", meta={"kind": kind}) for i, kind in enumerate(KINDS)]


def specs(**rewards):
    return {name: RewardSpec(use="shapes", **keys) for name, keys in rewards.items()}


def test_a_gate_that_stays_shut_pays_the_lowest_of_the_group():
    scores = {
        "look": torch.tensor([5.0, 6.0, 7.0, 8.0, NAN, 9.0]),
        "right": torch.tensor([1.0, 0.0, 0.5, 0.0, 1.0, NAN]),
    }
    gate = Gate(by="right", least=0.5)
    found = counted_rewards(specs(look={"gate": gate}, right={"weight": 0.0}), scores, PROMPTS, GROUP)
    torch.testing.assert_close(found.rewards["look"], torch.tensor([5.0, 5.0, 7.0, 8.0, NAN, NAN]), equal_nan=True)
    assert torch.equal(found.rewards["right"][:5], scores["right"][:5]) and scores["look"][1] == 6.0
    fixed = counted_rewards(
        specs(look={"gate": Gate(by="right", least=0.5, otherwise=-2.0)}, right={}), scores, PROMPTS, GROUP
    )
    torch.testing.assert_close(fixed.total, torch.tensor([6.0, -2.0, 7.5, -2.0, NAN, NAN]), equal_nan=True)


def test_a_reward_counts_only_where_it_is_asked():
    scores = {"a": torch.tensor([1.0, 2.0, 3.0, NAN, NAN, NAN]), "b": torch.tensor([10.0, 30.0, 20.0, 3.0, 1.0, 2.0])}
    found = counted_rewards(specs(a={"when": {"kind": ["count", "other"]}}, b={"weight": 2.0}), scores, PROMPTS, GROUP)
    assert found.total.tolist() == [21.0, 62.0, 43.0, 6.0, 2.0, 4.0]
    options = {"weights": found.weights, "asked": found.asked, "eps": 0.0, "clip": None}
    adv = advantages(found.rewards, GROUP, **options)
    unit = torch.tensor([-1.0, 0.0, 1.0]) * 1.5**0.5
    first = (unit + 2 * unit[[0, 2, 1]]) / 3
    torch.testing.assert_close(adv, torch.cat([first, 2 * unit[[2, 0, 1]] / 3]))
    # over the whole batch, samples that it was not asked about are not in its mean either
    batch = advantages(
        {"a": found.rewards["a"]}, GROUP, weights={"a": 1.0}, asked=found.asked, baseline="batch", eps=0.0
    )
    torch.testing.assert_close(batch, torch.cat([unit, torch.zeros(3)]))
    metrics = advantage_metrics(found.rewards, GROUP, adv, weights=found.weights, asked=found.asked)
    assert metrics["reward/a/nan"] == 0.0 and metrics["reward/a/mean"] == 2.0


def test_a_sample_without_a_score_leaves_its_group_and_no_other_reward_stands_in():
    scores = {"a": torch.tensor([1.0, NAN, 3.0, 1.0, 2.0, 3.0]), "b": torch.tensor([1.0, 50.0, 2.0, 3.0, 1.0, 2.0])}
    adv = advantages(scores, GROUP, weights={"a": 1.0, "b": 1.0}, eps=0.0)
    assert adv[1] == 0 and adv[:3].tolist() == [-1.0, 0.0, 1.0]


def test_rows_of_trees_are_compared_where_the_reward_is_asked():
    """Rows that are samples have the advantages of samples, as the identity of credit, view by view."""
    scores = {"a": torch.tensor([1.0, 2.0, 3.0, NAN, NAN, NAN]), "b": torch.tensor([1.0, 3.0, 2.0, 3.0, 1.0, 2.0])}
    how = {"weights": {"a": 1.0, "b": 1.0}, "asked": {"a": torch.tensor([True] * 3 + [False] * 3)}}
    plain = row_advantages(scores, GROUP, None, **how)
    for by_row in (True, False):
        credit = Credit(torch.eye(3)[None, None], torch.zeros(3, dtype=torch.int64), by_row)
        torch.testing.assert_close(row_advantages(scores, GROUP, credit, **how), plain)
    assert (plain[3:] != 0).any()


def test_a_prompt_that_no_trained_reward_is_asked_about_is_refused():
    check_prompts(specs(a={"when": {"kind": "count"}}, b={"when": {"kind": "pair"}}), PROMPTS, "mine.jsonl")
    with pytest.raises(UserError, match="none of a is asked about the prompt 'text 3' of mine.jsonl, .*kind='pair'"):
        check_prompts(specs(a={"when": {"kind": "count"}}, b={"weight": 0.0}), PROMPTS, "mine.jsonl")
