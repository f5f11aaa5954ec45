"""Word problems: the shipped files are what the module makes, answers are right, no held-out numbers are trained."""

import json
import re
from pathlib import Path

import torch

from flowrl.contracts import Prompt, Samples
from flowrl.recipe.load import load
from flowrl.worlds.arithmetic.stories import NUM_HELDOUT, NUM_TRAIN, main, stories
from reward_models.answers import exact_match

SHIPPED = Path(__file__).parents[3] / "recipes" / "prompts"


def numbers(problem: dict[str, str]) -> tuple[int, int, int]:
    """a, b and the answer, where one form of the products says b first."""
    a, b = (int(number) for number in re.findall(r"\d+", problem["prompt"]))
    return (b, a, int(problem["answer"])) if "on each of" in problem["prompt"] else (a, b, int(problem["answer"]))


def test_the_shipped_files_are_what_the_module_makes(tmp_path: Path) -> None:
    main(tmp_path)
    for name in ("stories_train.jsonl", "stories_heldout.jsonl"):
        assert (tmp_path / name).read_bytes() == (SHIPPED / name).read_bytes()


def test_answers_are_right_and_numbers_apart() -> None:
    train, heldout = stories()
    assert len(train) == NUM_TRAIN and len(heldout) == NUM_HELDOUT
    for problem in train + heldout:
        a, b, answer = numbers(problem)
        assert answer in (a + b, a - b, a * b) and answer > 0
    assert not set(map(numbers, heldout)) & set(map(numbers, train))


def test_the_reward_reads_the_last_number() -> None:
    args = load("smollm2_grpo").rewards["right"].args
    texts = ["7 + 5 = 12.", "12 apples, so 13", "The answer is 1,012", "no number", "-12", "12.0"]
    prompts = [Prompt(str(i), "q", meta={"answer": "1012" if i == 2 else "12"}) for i in range(6)]
    score = exact_match(Samples(prompts, torch.arange(6), texts=texts), **args)
    assert score.tolist() == [1, 0, 1, 0, 0, 1]
    line = json.loads((SHIPPED / "stories_heldout.jsonl").read_text().splitlines()[0])
    assert set(line) == {"prompt", "answer"}
