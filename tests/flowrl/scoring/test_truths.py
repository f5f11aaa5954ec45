"""A data set that lacks what a reward has to know is refused in one line, before any model is loaded."""

import json
from functools import partial
from pathlib import Path

import pytest
import torch

from cli_support import quiet
from flowrl.contracts import NoTruth, Prompt
from flowrl.names import UserError
from flowrl.recipe.keys.rewards import RewardSpec
from flowrl.recipe.load import load
from flowrl.runs.start import run
from flowrl.scoring.runners import RewardRunner
from flowrl.scoring.scorer import Scorer
from flowrl.scoring.scorer import load as load_rewards
from flowrl.scoring.truths import FIRST, check_truths
from reward_models.answers import exact_match

JUDGE = {"base_url": "http://localhost:1/v1", "model": "m", "retries": 0}


def scorer(**specs: RewardSpec) -> Scorer:
    return Scorer(load_rewards(specs))


def prompt(number: int = 0, **meta) -> Prompt:
    return Prompt(str(number), f"task {number}", meta=meta)


@pytest.mark.parametrize(
    ("use", "args", "good", "bad", "says"),
    [
        ("exact_match", {}, {"answer": 3}, {"label": 3}, "has no 'answer', only label"),
        ("math_answer", {"key": "x"}, {"x": "3"}, {"answer": "3"}, "has no 'x', only answer"),
        ("close_number", {}, {"answer": "3"}, {}, "has no 'answer', only nothing"),
        ("text_similarity", {}, {"answer": "a"}, {"text": "a"}, "has no 'answer'"),
        ("named_choice", {}, {"answer": "B"}, {"answer": "liver"}, "is no option; accepted is a letter"),
        ("typed_answer", {}, {"answer": 1, "problem_type": "OCR"}, {"answer": 1}, "problem_type=None"),
        ("region_iou", {}, {"box": [0, 0, 1, 1]}, {"box": [0, 0, 1]}, "accepted are four numbers"),
        ("screen_coordinate", {}, {"box": [0, 0, 1, 1]}, {"box": None}, "of four numbers"),
        ("screen_step", {}, {"action": "click", "gt_bbox": [1, 2]}, {"action": "click"}, "has no 'gt_bbox'"),
        ("key_steps", {}, {"key_steps": []}, {"key_steps": "a"}, "has no list 'key_steps'"),
        ("text_spotting", {}, {"lines": []}, {"lines": [3]}, "accepted is a list of"),
        ("layout_misplaced", {}, {"objects": [{"id": "a", "size": [1, 1, 1], "places": [[0, 1] * 3]}]},
         {"objects": [{"id": "a", "size": [1, 1, 1]}]}, "has no 'room'"),
        ("server_text_judge", JUDGE | {"key": "answer"}, {"answer": "a"}, {"truth": "a"}, "has no 'answer'"),
        ("radiology_reasoning", JUDGE, {"findings": ["a"], "report": "b"}, {"findings": ["a"]}, "has no 'report'"),
    ],
)  # fmt: skip
def test_a_reward_names_the_column_that_it_needs(use: str, args: dict, good: dict, bad: dict, says: str):
    rewards = scorer(mine=RewardSpec(use=use, args=args))
    check_truths(rewards, [prompt(0, **good)], "a.jsonl")
    with pytest.raises(UserError, match=rf"rewards\.mine: of a\.jsonl, .*{says}") as refused:
        check_truths(rewards, [prompt(0, **good), prompt(1, **bad)], "a.jsonl")
    assert "\n" not in str(refused.value) and "task 1" in str(refused.value)


def test_only_prompts_that_a_required_reward_is_asked_about_are_tried():
    rows = [prompt(0, answer=1, kind="a"), prompt(1, kind="b")]
    check_truths(scorer(mine=RewardSpec(use="exact_match", when={"kind": "a"})), rows, "x")
    check_truths(scorer(mine=RewardSpec(use="exact_match", required=False)), rows, "x")
    with pytest.raises(UserError, match=r"rewards\.mine: of x, prompt 'task 1'"):
        check_truths(scorer(mine=RewardSpec(use="exact_match")), rows, "x")


def test_one_prompt_of_each_set_of_columns_is_tried_however_many_there_are():
    calls = []

    def counted(samples, **how):
        calls.append(samples.prompts[0].id)
        return exact_match(samples, **how)

    rewards = scorer(mine=RewardSpec(use="exact_match"))
    rewards.rewards["mine"] = RewardRunner(partial(counted), RewardSpec(use="exact_match"))
    rows = [prompt(i, answer=i) for i in range(FIRST + 50)]
    check_truths(rewards, rows, "x")
    assert len(calls) == FIRST
    with pytest.raises(UserError, match="task 99"):
        check_truths(rewards, [*rows, prompt(99, other=1)], "x")


def test_rewards_of_the_users_own_are_asked_by_their_method_alone():
    class Mine:
        def __call__(self, samples):
            raise AssertionError("not called for nothing")

        def check_prompt(self, one):
            if "mine" not in one.meta:
                raise NoTruth(f"prompt {one.text!r} has no mine")

    rewards = scorer(mine=RewardSpec(use="exact_match"))
    rewards.rewards["mine"] = RewardRunner(Mine(), RewardSpec(use="my.Mine"))
    check_truths(rewards, [prompt(0, mine=1)], "x")
    with pytest.raises(UserError, match="has no mine"):
        check_truths(rewards, [prompt(0)], "x")
    own = RewardRunner(partial(lambda samples: torch.full((1,), 1 / 0)), RewardSpec(use="my.own"))
    rewards.rewards["mine"] = own
    check_truths(rewards, [prompt(0)], "x")


def test_a_run_ends_before_its_model_is_loaded(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    file = tmp_path / "p.jsonl"
    file.write_text("".join(json.dumps({"prompt": f"{i}+1", "label": i}) + "\n" for i in range(20)))
    monkeypatch.setattr("flowrl.runs.start.build_policy", lambda recipe: pytest.fail("the model is loaded"))
    recipe = load("tiny_lm_grpo", [f"prompts={{train: {file}, heldout: null}}", f"output={tmp_path / 'run'}"])
    with pytest.raises(UserError, match=r"rewards\.exact: of .*p\.jsonl, prompt '0\+1' has no 'answer', only label"):
        run(recipe, quiet())
    assert not (tmp_path / "run").exists()
