"""Several samples of a prompt: pass@k by counting subsets, the majority's answer, and an evaluation that has both."""

from itertools import combinations

import pytest
import torch

from flowrl.contracts import Prompt, Samples
from flowrl.core.advantages.repeated import answer_of, majority, pass_at_k
from flowrl.core.evaluation import evaluate
from flowrl.recipe.load import load
from language_support import policy
from samplers.tokens import Generation

NAN = float("nan")


def test_pass_at_k_is_the_share_of_subsets_with_a_right_one():
    right = torch.tensor([[0, 0, 0, 0], [1, 0, 0, 0], [1, 1, 0, 1]]).bool()
    for k in (1, 2, 3, 4):
        subsets = list(combinations(range(4), k))
        wanted = [sum(bool(row[list(s)].any()) for s in subsets) / len(subsets) for row in right]
        torch.testing.assert_close(pass_at_k(right, k), torch.tensor(wanted, dtype=torch.float64))
    with pytest.raises(ValueError, match="k=5: accepted is 1 to 4"):
        pass_at_k(right, 5)


def test_the_majority_is_of_answers_in_one_spelling():
    said = ["<answer>1,000</answer>", "it is 7", r"so \\boxed{1000}", "none", "x", "y", "z", "", "3", "4", "4.", "3"]
    assert [answer_of(t) for t in said[:4]] == ["1000", "7", "1000", None]
    scores = torch.tensor([[1.0, 0.0, 1.0, 0.0], [1.0, 1.0, 1.0, 1.0], [0.0, 1.0, 1.0, NAN]])
    torch.testing.assert_close(majority(scores, said), torch.tensor([1.0, NAN, 0.0]), equal_nan=True)


def test_an_evaluation_scores_prompts_by_the_mean_of_their_samples():
    prompts = [Prompt("a", "1+1"), Prompt("b", "12*3"), Prompt("c", "9-4")]

    def score(samples: Samples) -> dict[str, torch.Tensor]:
        assert len(samples) % 4 == 0
        return {"even": (samples.lengths % 2 == 0).float(), "long": samples.lengths.float()}

    how = {"plan": Generation(6), "seed": 3, "batch": 2}
    found = evaluate(policy(), prompts, score, each=4, keep=2, **how)
    lengths = policy().rollout(prompts, group_size=4, plan=Generation(6), seed=3).samples.lengths.view(3, 4)
    even = lengths % 2 == 0
    torch.testing.assert_close(found.scores["long"], lengths.float().mean(1))
    torch.testing.assert_close(found.scores["even"], even.float().mean(1))
    assert found.statistics["even/pass@2"] == pytest.approx(float(pass_at_k(even, 2).mean()))
    assert found.statistics["even/pass@4"] == pytest.approx(float(even.any(1).float().mean()))
    assert "long/pass@2" not in found.statistics and "even/pass@1" not in found.statistics
    assert len(found.texts) == 2 and found.record()["scores"]["long"] == lengths.float().mean(1).tolist()


def test_greedy_completions_are_not_drawn_twice():
    with pytest.raises(ValueError, match="all completions of a prompt are the same"):
        load("tiny_lm_grpo", ["eval.samples=4"])
    assert load("tiny_lm_grpo", ["eval.samples=4", "eval.temperature=1.0"]).eval.samples == 4
