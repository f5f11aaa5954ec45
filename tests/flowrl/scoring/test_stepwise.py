"""Rewards that give values of steps: what the scorer makes of them, and what they need of a recipe."""

import math
from dataclasses import replace
from pathlib import Path

import pytest
import torch

from flowrl.build import build_scorer
from flowrl.contracts import Prompt, Samples, StepScores
from flowrl.core.refill import join_samples
from flowrl.names import UserError
from flowrl.recipe.load import load
from flowrl.scoring.cache import ScoreCache
from flowrl.scoring.scorer import RewardError, Scorer
from reward_models.working import worked_steps
from scoring_support import runner

TEXTS = ["ab;c;", "d", "e;ff;g;h;", "", "bad;"]


def samples() -> Samples:
    return Samples([Prompt(str(i), "p") for i in range(5)], torch.tensor([0, 0, 1, 1, 1]), texts=TEXTS)


def semicolons(samples: Samples) -> StepScores:
    """Each part before a semicolon is worth its length; a bad one has no score."""
    found: list[list[tuple[int, float]] | None] = []
    for text in samples.texts or ():
        ends = [i + 1 for i, c in enumerate(text) if c == ";"]
        starts = [0, *ends]
        parts = [(e, float(e - s - 1)) for s, e in zip(starts, ends, strict=False)]
        found.append(None if text.startswith("bad") else parts)
    return StepScores(found)


class Semicolons:
    def __call__(self, samples: Samples) -> "StepScores":
        return semicolons(samples)


@pytest.mark.parametrize("batch", [None, 1, 2])
@pytest.mark.parametrize(("how", "third"), [("sum", 5.0), ("mean", 1.25)])
def test_the_score_is_the_sum_or_mean_of_the_steps(how: str, third: float, batch: int | None) -> None:
    of, one = samples(), runner(Semicolons() if how == "mean" else semicolons)
    one = replace(one, spec=one.spec.model_copy(update={"steps": how}))
    scores = Scorer({"s": one}, batch=batch)(of)["s"]
    assert scores[2] == third and scores[1] == scores[3] == 0 and scores[4].isnan()
    assert of.steps == {"s": [((3, 2.0), (5, 1.0)), (), ((2, 1.0), (5, 2.0), (7, 1.0), (9, 1.0)), (), ()]}
    assert of[[2, 0]].steps["s"] == [of.steps["s"][2], of.steps["s"][0]]
    assert join_samples([of[[4]], of[[2]]]).steps["s"] == [(), of.steps["s"][2]]


@pytest.mark.parametrize("how", ["sum", "mean"])
def test_steps_come_from_a_cache_and_from_its_file_as_they_were_given(how: str, tmp_path: Path) -> None:
    asked: list[list[str]] = []

    class Counted:
        def __call__(self, samples: Samples) -> StepScores:
            asked.append(list(samples.texts or ()))
            return semicolons(samples)

    def scorer(file: Path | None) -> Scorer:
        one = runner(Counted())
        spec = one.spec.model_copy(update={"steps": how})
        return Scorer({"s": replace(one, spec=spec, cache=ScoreCache("counted", {}, file))})

    plain, first, again, other = samples(), samples(), samples(), samples()
    wanted = Scorer({"s": replace(runner(semicolons), spec=runner(semicolons).spec.model_copy(update={"steps": how}))})
    expected, kept = wanted(plain)["s"], scorer(tmp_path / "steps.db")
    for of, judge in ((first, kept), (again, kept), (other, scorer(tmp_path / "steps.db"))):
        assert torch.equal(judge(of)["s"].nan_to_num(nan=-9), expected.nan_to_num(nan=-9))
        assert of.steps == plain.steps
    assert asked == [TEXTS, ["bad;"], ["bad;"]]  # what could not be scored is asked about again


def test_steps_are_kept_of_samples_that_are_scored_while_the_next_are_drawn() -> None:
    of, one = samples(), runner(semicolons)
    scorer = Scorer({"s": replace(one, spec=one.spec.model_copy(update={"overlap": True}))})
    for part in ([0, 1], [2, 3, 4]):
        scorer.take(of[part])
    scorer(of)
    assert of.steps["s"][2][1] == (5, 2.0) and of.steps["s"][0][1] == (5, 1.0)


@pytest.mark.parametrize(
    ("steps", "said"),
    [
        ([[(6, 1.0)]], "steps that end at .6. of a text of 5 characters"),
        ([[(0, 1.0)]], "steps that end at .0."),
        ([[(3, 1.0), (2, 1.0)]], "accepted: ends from 1 to its length, in order"),
        ([[], []], "the steps of 2 samples; accepted: those of 1"),
        ([[(5, math.inf)]], "an infinite score"),
    ],
)
def test_what_are_no_steps_of_a_text_is_refused(steps: list, said: str) -> None:
    def wrong(samples: Samples) -> StepScores:
        return StepScores(steps)

    with pytest.raises(RewardError, match=said):
        Scorer({"s": runner(wrong)})(samples()[[0]])


def test_a_reward_says_by_its_annotation_that_it_gives_steps() -> None:
    def undeclared(samples):
        return semicolons(samples)

    with pytest.raises(RewardError, match="returned a StepScores"):
        Scorer({"s": runner(undeclared)})(samples())


def test_steps_of_the_working_are_right_at_their_place_alone() -> None:
    texts = [
        "7+5=12;4+8+1=13;3+2+1=6;<answer>632</answer>",
        "7+5=12;7+5=12;<answer>632</answer>x",
        "<answer>522</answer>",
    ]
    texts += ["632", "9-5=4;2-1=1;1-0=1;<answer>114"]
    prompts = ["347+285"] * 4 + ["129-15"]
    of = Samples([Prompt(str(i), p) for i, p in enumerate(prompts)], torch.zeros(5, dtype=torch.int64), texts=texts)
    steps = worked_steps(of, right=1.0, wrong=-1.0).steps
    assert steps[0] == [(7, 1.0), (16, 1.0), (24, 1.0), (44, 1.0)]
    assert steps[1] == [(7, 1.0), (14, -1.0), (34, 1.0)] and steps[2] == [(20, -1.0)] and steps[3] == []
    assert [v for _, v in steps[4]] == [1.0, 1.0, -1.0]
    assert worked_steps(of, answer=False).steps[2] == []
    with pytest.raises(ValueError, match="is no problem such as 347"):
        worked_steps(Samples([Prompt("a", "how many?")], torch.zeros(1, dtype=torch.int64), texts=["x"]))


STEP = "rewards={s: {use: worked_steps}}"


@pytest.mark.parametrize(
    ("keys", "said"),
    [
        (["objective.preset=grpo_process"], "no reward that counts gives values of steps"),
        (
            ["objective.preset=grpo_process", "rewards={s: {use: worked_steps, shape: {kind: stop_properly}}}"],
            "rewards.s.shape: given",
        ),
        ([STEP, "advantage={credit: {kind: reward_to_go}}"], "rewards.s: gives values of steps, which"),
        ([STEP, "objective.preset=grpo_process", "advantage.groups=0.5"], "advantage.groups: got 0.5, which is about"),
        (
            [STEP, "objective.preset=grpo_process", "advantage.baseline=pass_at_k"],
            "advantage.baseline: got 'pass_at_k'",
        ),
        ([STEP, "objective={preset: grpo_process, kl: 0.1, kl_in: reward}"], "objective.kl_in: got 'reward', but"),
        (
            [STEP, "objective.preset=grpo_process", "generation.tree={kind: treepo, segment: 4}"],
            "remove generation.tree and again",
        ),
    ],
)
def test_what_does_not_fit_is_refused_before_weights_load(keys: list[str], said: str) -> None:
    with pytest.raises((UserError, RewardError), match=said):
        build_scorer(load("tiny_lm_grpo", keys))


def test_credit_of_whole_answers_takes_the_sums() -> None:
    assert build_scorer(load("tiny_lm_grpo", [STEP])).rewards["s"].process
