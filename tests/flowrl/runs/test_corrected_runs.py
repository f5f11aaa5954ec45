"""Runs whose samples another precision draws, with corrections and a controlled entropy, through the one loop."""

import json
from pathlib import Path

import pytest

from cli_support import quiet
from flowrl.build import build_objective
from flowrl.core.objectives.correction import Correction, Rejection
from flowrl.planning.costs import arithmetic, eval_plan, plan_for
from flowrl.planning.dry_run import describe
from flowrl.recipe.errors import RecipeError
from flowrl.recipe.load import load
from flowrl.runs.start import run

SMALL = ["train.prompts=2", "train.group=4", "train.updates=2", "train.iterations=3", "device=cpu"]
SMALL += ["eval.at_start=false", "eval.at_end=false", "eval.every=null", "generation.max_new_tokens=12"]
SMALL += [
    "rewards={short: {use: overlong, args: {limit: 12, margin: 12}}}",
    "checkpoint.every=1",
    "train.schedule=constant",
]
INT8 = ["rollout.dtype=int8", "objective.correction={kind: tis, reject: [{by: k3, level: seq_mean, high: 0.5}]}"]
INT8 += ["objective.entropy_target=0.5", "objective.entropy=0.01", "objective.covariance={kind: clip, low: 0, high: 9}"]


def metrics(folder: Path) -> list[dict[str, float]]:
    rows = [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]
    return [{k: v for k, v in row.items() if not k.startswith("time")} for row in rows if row["kind"] == "train"]


def test_an_int8_rollout_is_corrected_and_resumes_as_it_was(tmp_path: Path):
    run(load("tiny_lm_grpo", [f"output={tmp_path / 'whole'}", *SMALL, *INT8]), quiet())
    whole = metrics(tmp_path / "whole")
    assert all(1e-4 < m["mismatch/mean_abs"] < 0.1 and m["mismatch/ess"] > 0.9 for m in whole)
    assert all("replay_gap_max" not in m and 0 <= m["correction/rejected"] < 1 for m in whole)
    assert whole[0]["entropy_coef"] == 0.0 and whole[2]["entropy_coef"] == pytest.approx(0.02)
    assert max(m["grad_norm"] for m in whole) > 0 and any(m["cov/picked"] > 0 for m in whole)
    short = [f"output={tmp_path / 'parts'}", *SMALL, *INT8]
    run(load("tiny_lm_grpo", [*short, "train.iterations=2"]), quiet())
    run(load("tiny_lm_grpo", short), quiet(), resume=tmp_path / "parts")
    assert metrics(tmp_path / "parts")[2] == whole[2]


def test_a_recipe_says_who_draws_and_what_is_done_about_it():
    recipe = load("tiny_lm_grpo", INT8)
    correction = build_objective(recipe).correction
    assert correction == Correction("tis", reject=(Rejection("k3", "seq_mean", 0.5),))
    assert (plan_for(recipe, 0).precision, eval_plan(recipe).precision) == ("int8", None)
    drawn = arithmetic(recipe).rollout_forwards
    assert arithmetic(recipe).corrected_forwards == drawn
    text = describe(recipe)
    assert "drawn by a copy of the model in int8" in text and f"before it {drawn}" in text
    assert "correction tis (reject k3 seq_mean)" in text
    passed = build_objective(load("tiny_lm_grpo", ["rollout.dtype=float16"]))
    assert passed.correction == Correction("none", bypass=True) and passed.needs == {"old_logp"}
    assert build_objective(load("tiny_lm_grpo", [])).correction is None


@pytest.mark.parametrize(
    ("recipe", "given", "words"),
    [
        (
            "tiny_lm_grpo",
            "objective.correction={kind: none, high: 2}",
            "objective.correction.high: got 2.0, but kind none",
        ),
        ("tiny_lm_grpo", "objective.correction={kind: tis, bypass: true}", "objective.correction.bypass: got true"),
        ("tiny_lm_grpo", "objective.correction={kind: icepop, low: 3, high: 2}", "give a low below"),
        ("tiny_lm_grpo", "objective.correction={reject: [{by: k2, high: 2, low: 1}]}", "reject.0.low: got 1"),
        ("tiny_lm_grpo", "objective.correction={reject: [{by: k1, high: 0.9}]}", "without low, one above 1"),
        ("tiny_lm_grpo", "objective.covariance={kind: kl}", "set objective.gate=ratio, or kind clip"),
        ("tiny_lm_grpo", "objective.kl_mix=0.3", "objective.kl_mix: got 0.3, which kl_kind 'k3' does not read"),
        ("tiny_lm_grpo", "rollout.dtype=int4", "accepted: bfloat16, float16, int8 or null"),
        ("quickstart", "rollout.dtype=float16", "a pipeline draws with the modules that train"),
        ("quickstart", "rollout.batch_invariant=true", "which is of language models"),
        ("quickstart", "objective.entropy=0.1", "whose entropy is that of their noise"),
        ("quickstart", "objective.weight=inverse_entropy", "accepted: none, noise, inverse_dt, or a list"),
        ("quickstart", "objective.kl_kind=jsd", "of distributions over a vocabulary"),
        ("nft_sd3", "objective.correction={kind: tis}", "objective.correction: got a mapping"),
    ],
)
def test_what_does_not_fit_is_one_line(recipe: str, given: str, words: str):
    with pytest.raises(RecipeError) as caught:
        load(recipe, [given])
    assert words in str(caught.value) and "\n" not in str(caught.value)
