"""Published numbers of rules on completions: steps, actions on screens, types of answers, form, regions."""

import ast
import re
from typing import Any

import pytest
import torch

import golden
from flowrl.contracts import Prompt, Samples
from reward_models.answers import boxed, boxed_answer, numbers_equal, numeric_answer
from reward_models.regions import pixel_iou, point_exploration, region_iou
from reward_models.screens import screen_action, screen_coordinate, screen_format, screen_step
from reward_models.steps import key_steps, step_validity
from reward_models.typed_answers import typed_answer, word_error_rate
from reward_models.writing import (
    language_share,
    loops,
    mixes_languages,
    no_loop,
    one_language,
    repetition,
    repetition_penalty,
    think_format,
)

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


def of(method: str) -> list:
    return golden.cases("objectives/llm_reward.json", where=lambda case: case["method"].startswith(method))


@pytest.mark.parametrize("case", [*golden.cases("direct/rewards_video_r1.json"), *of("video_r1.rule_reward")])
def test_types_of_answers_of_video_r1(case: Case) -> None:
    x, kind = case["inputs"], case["params"]["problem_type"]
    solutions = x.get("solution") or x["solutions"]
    made = samples(x.get("completion") or x["completions"], [{"answer": s, "problem_type": kind} for s in solutions])
    golden.check({"accuracy": typed_answer(made), "format": think_format(made)}, case)


@pytest.mark.parametrize("case", golden.cases("direct/rewards_glm_text.json"))
def test_checks_of_glm_on_texts(case: Case) -> None:
    texts = case["inputs"]["text"]
    assert [boxed(text) for text in texts] == case["outputs"]["boxed"]
    assert [mixes_languages(text) for text in texts] == case["outputs"]["mixing"]
    assert [loops(text) for text in texts] == case["outputs"]["repeat"]
    made = samples(texts, [{}] * len(texts))
    assert no_loop(made).tolist() == [1.0 - r for r in case["outputs"]["repeat"]]
    assert one_language(made).tolist() == [1.0 - m for m in case["outputs"]["mixing"]]


@pytest.mark.parametrize("case", of("reward.repetition"))
def test_repetition_of_trl(case: Case) -> None:
    how = case["params"]["ngram_size"], case["params"]["max_penalty"]
    got = [repetition_penalty(ids, *how) for ids in case["inputs"]["completion_ids"]]
    golden.check({"reward": torch.tensor(got)}, case)
    words = [" ".join(map(str, ids)) for ids in case["inputs"]["completion_ids"]]
    made = samples(words, [{}] * len(words))
    golden.check({"reward": repetition(made, size=how[0], worst=how[1])}, case)


@pytest.mark.parametrize("case", of("reward.format"))
def test_forms_of_thought(case: Case) -> None:
    made = samples(case["inputs"]["completions"], [{}] * len(case["inputs"]["completions"]))
    whole = think_format(made)
    got = {"trl_think": think_format(made, form="any"), "swift_think_answer": whole, "video_r1": whole}
    golden.check(got, case)


@pytest.mark.parametrize("case", of("reward.iou_vlm_r1"))
def test_overlap_of_vlm_r1(case: Case) -> None:
    a, b = case["inputs"]["box_a"], case["inputs"]["box_b"]
    golden.check({"iou_inclusive": torch.tensor([pixel_iou(x, y) for x, y in zip(a, b, strict=True)])}, case)
    said = [f"<answer>{box}</answer>" for box in a]
    golden.check({"iou_inclusive": region_iou(samples(said, [{"box": box} for box in b]))}, case)


@pytest.mark.parametrize("case", of("reward.click_point_in_box"))
def test_exploration_of_infigui_g1(case: Case) -> None:
    x, how = case["inputs"], {"form": case["params"]["fmt_ratio"], "hit": case["params"]["acc_ratio"]}
    got = point_exploration(samples(x["completions"], [{"box": box} for box in x["boxes"]]), **how)
    wanted = [result["score"] for result in case["outputs"]["results"]]
    torch.testing.assert_close(got, torch.tensor(wanted), atol=case["atol"], rtol=case["rtol"])


@pytest.mark.parametrize("case", of("reward.numeric_exact"))
def test_numbers_of_vlm_r1(case: Case) -> None:
    x = case["inputs"]
    pairs = list(zip(x["completions"], x["solutions"], strict=True))
    assert [numbers_equal(*pair) for pair in pairs] == case["outputs"]["reward"]
    made = samples(x["completions"], [{"answer": s} for s in x["solutions"]])
    assert numeric_answer(made).tolist() == [score or 0.0 for score in case["outputs"]["reward"]]


def test_rules_on_texts_by_hand() -> None:
    assert word_error_rate("a b c".split(), "a x c d".split()) == 0.5 and word_error_rate(["a"], []) == 1.0
    texts = ["", "<answer>nan</answer>", "<answer>inf</answer>", "<answer>7</answer>"]
    metas = [{"answer": "7", "problem_type": "regression"}] * 4
    assert typed_answer(samples(texts, metas)).tolist() == pytest.approx([0, 0, 0, 1])
    with pytest.raises(ValueError, match="problem_type='maths' in its meta; accepted: multiple choice, numerical"):
        typed_answer(samples(["a"], [{"answer": "a", "problem_type": "maths"}]))
    boxes = [r"\boxed{3}", r"\boxed{3} then \boxed{4}", "3", r"\boxed{3.0} \boxed{3}"]
    assert boxed_answer(samples(boxes, [{"answer": "3"}] * 4)).tolist() == [1.0, 0.0, 0.0, 1.0]
    assert torch.isnan(numeric_answer(samples(["5"], [{"answer": "five"}]))).all()
    assert language_share(samples(["one two 三", "四", "12"], [{}] * 3)).tolist() == pytest.approx([2 / 3, 0, 1])
    assert repetition(samples(["aaaa"], [{}]), size=2, units="characters").tolist() == pytest.approx([-2 / 3])
    box = [{"box": [0, 0, 10, 10]}] * 3
    said = ["<answer>[0, 0, 10, 10]</answer>", "<answer>none</answer>", "[0, 0, 10, 10]"]
    assert region_iou(samples(said, box), least=0.5).tolist() == [1.0, 0.0, 0.0]
    with pytest.raises(ValueError, match="accepted are four numbers"):
        region_iou(samples(["a"], [{"box": [1, 2]}]))


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
