"""Published numbers of rules on completions: R1-VL's steps, UI-R1's and GUI-R1's actions on screens."""

import ast
import re
from typing import Any

import pytest
import torch

import golden
from flowrl.contracts import Prompt, Samples
from reward_models.screens import screen_action, screen_coordinate, screen_format, screen_step
from reward_models.steps import key_steps, step_validity

Case = dict[str, Any]


def samples(texts: list[str], metas: list[dict[str, Any]]) -> Samples:
    prompts = [Prompt(str(i), str(i), meta=meta) for i, meta in enumerate(metas)]
    return Samples(prompts, torch.arange(len(texts)), texts=texts)


@pytest.mark.parametrize("case", golden.cases("direct/rewards_r1_vl.json"))
def test_steps_of_r1_vl(case: Case) -> None:
    x = case["inputs"]
    made = samples(x["completion"], [{"key_steps": steps} for steps in x["key_steps"]])
    got = {"key_step_fraction": key_steps(made), "validity": step_validity(made)}
    golden.check(got, case | {"atol": max(case["atol"], 1e-7)})  # the shares are float32, those stored are not


@pytest.mark.parametrize(
    "case", golden.cases("objectives/llm_reward.json", where=lambda c: c["method"] == "r1vl.step_rewards")
)
def test_steps_of_r1_vl_in_one_line_each(case: Case) -> None:
    x = case["inputs"]
    made = samples(x["completions"], [{"key_steps": steps["Steps"]} for steps in x["key_steps"]])
    golden.check({"step_rar_match": key_steps(made), "step_rvr": step_validity(made)}, case)


@pytest.mark.parametrize("case", golden.cases("direct/rewards_ui_r1.json"))
def test_actions_of_ui_r1(case: Case) -> None:
    x, metas = case["inputs"], []
    for solution, scale in zip(x["solution"], x["scale"], strict=True):
        found = re.search(r"<answer>(.*)</answer>", solution)
        right = ast.literal_eval(found[1] if found else solution)[0]
        metas.append({"action": right["action"], "box": right["coordinate"], "scale": scale})
    made = samples(x["completion"], metas)
    got = {"action": screen_action(made), "coord": screen_coordinate(made), "format": screen_format(made)}
    golden.check(got, case)


@pytest.mark.parametrize("case", golden.cases("direct/rewards_gui_r1.json"))
def test_actions_of_gui_r1(case: Case) -> None:
    golden.check({"accuracy": screen_step(samples(case["inputs"]["completion"], case["inputs"]["ground_truth"]))}, case)


def test_what_cannot_be_read_scores_nothing_and_a_missing_truth_is_told() -> None:
    bad = ["<answer>[{'action': 'click', 'coordinate': ['x', 2]}]</answer>", "<answer>__import__('os')</answer>", ""]
    metas = [{"action": "click", "box": [0, 0, 9, 9], "gt_bbox": [0, 0, 9, 9]}] * 3
    made = samples(bad, metas)
    assert screen_coordinate(made).tolist() == [0.0] * 3 and screen_step(made).tolist() == [0.0] * 3
    assert screen_action(made).tolist() == [1.0, 0.0, 0.0]
    with pytest.raises(ValueError, match="has no 'action', only answer"):
        screen_action(samples(["a"], [{"answer": 1}]))
    with pytest.raises(ValueError, match="has no list 'key_steps'"):
        key_steps(samples(["a"], [{"key_steps": "5"}]))
