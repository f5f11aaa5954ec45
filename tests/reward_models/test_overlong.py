"""The soft punishment of overlong completions: published numbers, and what it refuses."""

import pytest
import torch

import golden
from flowrl import names
from flowrl.contracts import Prompt, Samples
from reward_models.overlong import overlong, soft_punishment

CASES = golden.cases("objectives/llm_reward.json", where=lambda case: case["method"] == "reward.soft_overlong")


@pytest.mark.parametrize("case", CASES)
def test_published_numbers(case):
    lengths, params = torch.tensor(case["inputs"]["length"]), case["params"]
    got = soft_punishment(lengths, limit=params["max_len"], margin=params["cache"])
    golden.check({"trl": got, "openrlhf": got}, case, skip=("swift", "verl"))
    within = lengths <= params["max_len"]  # where a limit ends them, all four agree
    for name in ("swift", "verl"):
        torch.testing.assert_close(got[within], torch.tensor(case["outputs"][name])[within])


def test_it_is_a_reward_that_a_recipe_can_name():
    assert names.find("overlong", names.rewards()).needs == ("limit", "margin")
    samples = Samples([Prompt("a", "a")] * 3, torch.zeros(3).long(), texts=["x"] * 3, lengths=torch.tensor([6, 9, 10]))
    assert overlong(samples, limit=10, margin=4).tolist() == [0.0, -0.75, -1.0]
    assert overlong(samples[[2, 0]], limit=10, margin=4).tolist() == [-1.0, 0.0]


def test_it_says_what_it_lacks():
    samples = Samples([Prompt("a", "a")], torch.zeros(1).long(), images=torch.zeros(1, 3, 4, 4))
    with pytest.raises(ValueError, match="how many tokens"):
        overlong(samples, limit=10, margin=4)
    with pytest.raises(ValueError, match="accepted is 1 to the limit, 10"):
        soft_punishment(torch.tensor([3]), limit=10, margin=11)
