"""Answers read from texts: what counts as right, as well formed, and as a mistake of the user's."""

import math

import pytest
import torch

from flowrl import names
from flowrl.contracts import Prompt, Samples
from flowrl.recipe.schema import RewardSpec
from flowrl.scoring.scorer import RewardError, Scorer, load
from reward_models.answers import answer_format, exact_match, math_answer
from reward_models.parts.texts import truth


def samples(*texts: str, answer="632", **meta) -> Samples:
    prompts = [Prompt(str(i), "347+285", meta={"answer": answer} | meta) for i in range(len(texts))]
    return Samples(prompts, torch.arange(len(texts)), texts=texts)


@pytest.mark.parametrize(
    ("text", "answer", "right"),
    [
        ("<answer>632</answer>", "632", True),
        ("7+5=12;<answer> 632\n</answer>", 632, True),
        ("<answer>0632</answer>", "632", True),
        ("<answer>1,632</answer>", "1632", True),
        ("<answer>1 632.0</answer>", "1632", True),
        ("<answer>$18</answer>", "It is 9 * 2 #### 18", True),
        ("<answer>-5</answer>", "-5", True),
        ("<answer>0.50</answer>", 0.5, True),
        ("<answer>1</answer> no: <answer>632</answer>", "632", True),
        ("<answer>632</answer> no: <answer>1</answer>", "632", False),
        ("<answer>63</answer>", "632", False),
        ("<answer>6 3 3</answer>", "632", False),
        ("<answer></answer>", "632", False),
        ("<answer>632", "632", False),
        ("632", "632", False),
        ("<answer>Paris</answer>", "paris", True),
        ("<answer>nan</answer>", "nan", True),
        ("<answer>infinity</answer>", "1e999999", False),
    ],
)
def test_exact_match(text, answer, right):
    assert exact_match(samples(text, answer=answer)).tolist() == [float(right)]


def test_a_pattern_of_ones_own():
    found = exact_match(samples("so #### 632", "#### 7 then #### 632", "632"), pattern=r"####\s*(\S+)")
    assert found.tolist() == [1.0, 1.0, 0.0]
    assert exact_match(samples("it is 17 or 632"), pattern=r"\d+").tolist() == [1.0]
    assert exact_match(samples("<x>632</x>", solution="632", answer=None), tag="x", key="solution").tolist() == [1.0]
    with pytest.raises(ValueError, match="not a regular expression"):
        exact_match(samples("1"), pattern="(")


@pytest.mark.parametrize(
    ("text", "good"),
    [
        ("<answer>1</answer>", True),
        ("7+5=12;<answer>1</answer>\n", True),
        ("<answer>1</answer>1", False),
        ("<answer>1</answer><answer>1</answer>", False),
        ("</answer>1<answer>", False),
        ("<answer><answer>1</answer>", False),
        ("<answer> </answer>", False),
        ("<answer>1", False),
        ("1", False),
        ("", False),
    ],
)
def test_format(text, good):
    assert answer_format(samples(text)).tolist() == [float(good)]


def test_mathematics_is_compared_by_value():
    texts = [r"thus \boxed{\frac{1}{2}}", "<answer>0.5</answer>", r"<answer>\frac{2}{4}</answer>", "<answer>2</answer>"]
    assert math_answer(samples(*texts, "no idea", answer="1/2")).tolist() == [1.0, 1.0, 1.0, 0.0, 0.0]
    assert math_answer(samples("The answer is 72.", "It is 71", answer="48+24 #### 72")).tolist() == [1.0, 0.0]
    assert math.isnan(math_answer(samples("<answer>1</answer>", answer="?")).item())


@pytest.mark.parametrize("reward", ["exact_match", "math_answer"])
def test_a_prompt_without_ground_truth_stops_the_run(reward):
    scorer = Scorer(load({"right": RewardSpec(use=reward)}))
    nothing = Samples([Prompt("a", "1+1", meta={"kind": "add"})], torch.zeros(1), texts=["2"])
    with pytest.raises(RewardError, match="'right'.*has no 'answer', only kind"):
        scorer(nothing)


@pytest.mark.parametrize("reward", ["exact_match", "math_answer", "answer_format"])
def test_pictures_have_no_answer(reward):
    assert reward in names.rewards()
    scorer = Scorer(load({"right": RewardSpec(use=reward)}))
    pictures = Samples([Prompt("a", "1+1", meta={"answer": 2})], torch.zeros(1), images=torch.zeros(1, 3, 4, 4))
    with pytest.raises(RewardError, match=f"{reward} scores texts; this model gives none"):
        scorer(pictures)


@pytest.mark.parametrize("value", [None, True, "", " ", [1]])
def test_ground_truth_is_a_text_or_a_number(value):
    with pytest.raises(ValueError, match="has no 'answer'"):
        truth(Prompt("a", "x", meta={"answer": value}))
