"""Runs that remember their prompts: choices and budgets through the whole loop, shown in the report, and resumed."""

import json
import shutil
from pathlib import Path

import pytest

from cli_support import quiet
from flowrl.core.iterate import iterate
from flowrl.planning.dry_run import describe
from flowrl.recipe.errors import RecipeError
from flowrl.recipe.load import load
from flowrl.report.page import render
from flowrl.report.read import read_run
from flowrl.runs import loop
from flowrl.runs.start import run
from resume_support import assert_same_run

SMALL = ["train.prompts=4", "train.group=3", "train.updates=2", "train.iterations=3", "train.micro_batch=null"]
SMALL += ["train.rollout_batch=null", "eval.at_start=false", "eval.at_end=false", "eval.every=null", "device=cpu"]
SMALL += ["generation.max_new_tokens=6", "prompts.limit=8", "threads=1"]
EVEN = "rewards={even: {use: test_memory_runs.even}}"  # of half the prompts all samples are right


def even(samples):
    """1 for prompts that end in an even digit, else a number that differs from sample to sample."""
    import torch

    right = [1.0 if int(p.text[-1]) % 2 == 0 else (len(t) % 5) / 10 for p, t in zip(samples.prompts, samples.texts)]  # noqa: B905
    return torch.tensor(right)


def rows(folder: Path) -> list[dict]:
    return [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]


@pytest.mark.parametrize("name", ["drop_solved", "skip", "curriculum"])  # all of them: test_choices.py
def test_every_choice_trains_three_iterations(name: str, tmp_path: Path) -> None:
    recipe = load("tiny_lm_grpo", [*SMALL, EVEN, f"prompts.choose={name}", f"output={tmp_path / 'run'}"])
    assert f"chosen by {name}" in describe(recipe)
    run(recipe, quiet())
    metrics = rows(tmp_path / "run")
    assert [m["iteration"] for m in metrics] == [1, 2, 3] and max(m["grad_norm"] for m in metrics) > 0
    assert metrics[0]["prompts/seen"] <= 0.5 and "prompts/brought_back" in metrics[2]
    if name == "drop_solved":
        passed = sum(m.get("prompts/passed_over/solved", 0) for m in metrics)
        page = " ".join(render(read_run(tmp_path / "run")).split())
        assert passed > 0 and "Prompts skipped" in page and f"{passed:.0f} (solved {passed:.0f})" in page


def test_a_budget_and_a_choice_resume_bit_for_bit(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    drawn = []

    def noted(*args, **options):
        result = iterate(*args, **options)
        drawn.append(result.metrics.get("budget/samples", 0))
        return result

    monkeypatch.setattr(loop, "iterate", noted)
    more = ["train.budget={kind: equal_treatment, limit: 7}", "prompts.choose={kind: skip, target_easy: 0.1}"]
    more += ["train.iterations=4", "checkpoint={every: 1, keep: 9}", EVEN]

    def go(folder: Path, resume: bool = False) -> None:
        run(load("tiny_lm_grpo", [*SMALL, *more, f"output={folder}"]), quiet(), resume=folder if resume else None)

    whole, cut = tmp_path / "whole", tmp_path / "cut"
    go(whole)
    assert sum(drawn) > 0 and {m["choose/p_easy"] for m in rows(whole)} != {0.5}
    shutil.copytree(whole, cut)
    for later in ("00003", "00004"):
        shutil.rmtree(cut / "checkpoints" / later)
    (cut / "summary.json").unlink()
    go(cut, resume=True)
    assert drawn[4:] == drawn[2:4]
    assert_same_run(cut, whole)


def test_a_store_trains_earlier_samples_again_and_resumes_bit_for_bit(tmp_path: Path) -> None:
    more = ["train.store={draw: 4, age: 2}", "train.iterations=4", "checkpoint={every: 1, keep: 9}", EVEN]
    whole, cut = tmp_path / "whole", tmp_path / "cut"
    run(load("tiny_lm_grpo", [*SMALL, *more, f"output={whole}"]), quiet())
    metrics = rows(whole)
    assert "store/loss" not in metrics[0] and all(m["store/abs_log_ratio_max"] > 0 for m in metrics[1:])
    shutil.copytree(whole, cut)
    for later in ("00003", "00004"):
        shutil.rmtree(cut / "checkpoints" / later)
    (cut / "summary.json").unlink()
    run(load("tiny_lm_grpo", [*SMALL, *more, f"output={cut}"]), quiet(), resume=cut)
    assert_same_run(cut, whole)


@pytest.mark.parametrize(
    ("given", "said"),
    [
        ("prompts.choose={kind: skip, solved: 1.0}", "prompts.choose.solved: got 1.0, but kind 'skip' reads only"),
        ("prompts.choose={kind: tiers, shares: [1, 2]}", "prompts.choose.shares: got [1.0, 2.0], accepted: 3 numbers"),
        ("prompts.remember=exct", "prompts.remember: got 'exct', accepted: a reward of the recipe: exact, format"),
        ("train.budget={limit: 12}", "train.budget.limit: got 12, accepted: above train.group = 12"),
        ("train.budget={limit: 12.5}", "train.budget.limit: got 12.5, accepted: a whole number"),
        ("prompts={train: arithmetic/train, balance: kind, choose: tiers}", "prompts.balance: got 'kind', but with"),
    ],
)
def test_what_does_not_go_together_is_one_line(given: str, said: str) -> None:
    with pytest.raises(RecipeError) as caught:
        load("tiny_lm_grpo", [given])
    assert said in str(caught.value) and "\n" not in str(caught.value)


def test_a_budget_refuses_what_needs_equal_groups() -> None:
    for other in ("train.refill=1", "advantage.baseline=pass_at_k"):
        with pytest.raises(RecipeError, match="groups of unequal size do not go with"):
            load("tiny_lm_grpo", ["train.budget={limit: 32}", other])
