"""Every preset of tokens trains the arithmetic model for three iterations through the one loop."""

import json
import shutil
from pathlib import Path

import pytest

from cli_support import quiet
from flowrl.recipe.load import load
from flowrl.recipe.presets import LANGUAGE
from flowrl.runs.start import run

SMALL = ["train.prompts=2", "train.group=4", "train.updates=2", "train.iterations=3", "train.micro_batch=null"]
SMALL += ["train.rollout_batch=null", "eval.at_start=false", "eval.at_end=false", "eval.every=null", "device=cpu"]
SMALL += ["generation.max_new_tokens=12"]
LENGTH = "rewards={short: {use: overlong, args: {limit: 12, margin: 12}}}"  # differs where lengths do

# what the published lengths and texts are on completions of twelve tokens
ANSWER = '"<answer>{answer}</answer>"'
IN_PARTS = {
    "treepo": ["generation.tree={kind: treepo, segment: 4}", "train.refill=1"],
    "tree_grpo": ["generation.tree={kind: tree_grpo, split: ';'}", "train.group=6"],
    "deepsearch": ["generation.tree={kind: deepsearch, segment: 4, width: 3, right: -0.5}"],
    "vineppo": ["generation.again={kind: values, split: ';', continuations: 2}"],
    "vapo": ["objective.right={least: -0.9}"],  # all but the longest are right
    "prorl": [
        "phases=[{iterations: 2}, {iterations: 1, reset: [reference, optimizer]}]",
        "objective.kl=0.001",
        "train.refill=1",
    ],
    "skywork_ssb": ["train.store={draw: 3}", "objective.kl=0.001"],
    "gflow": ["objective.loss.mapping=exp", "train.micro_batch=3"],  # of rewards below 0
    "gflow_subtb": ["objective.loss.mapping=exp", "train.micro_batch=3", "critic.lr=1.0e-3"],
    "gflow_db": ["objective.loss.mapping=exp", "objective.loss.prior=none"],
    "ghpo": ["generation.again={kind: hints, right: -0.2}"],
    "edge": [f"generation.again={{kind: corrections, text: '4+', tokens: 8, right: -0.4, answer: {ANSWER}}}"],
}

STEPS = "rewards={steps: {use: worked_steps}, exact: {use: exact_match, weight: 0.5}}"
OF_STEPS = {preset: [STEPS, "generation.max_new_tokens=20"] for preset in ("grpo_process", "psgpo")}


def trained(folder: Path, preset: str, *more: str) -> list[dict[str, float]]:
    run(load("tiny_lm_grpo", [f"output={folder}", *SMALL, LENGTH, f"objective={{preset: {preset}}}", *more]), quiet())
    rows = [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]
    return [row for row in rows if row["kind"] == "train"]


OF_TEXTS = [preset for preset in LANGUAGE if "views" not in LANGUAGE[preset]]  # others: test_seeing_recipes.py


@pytest.mark.parametrize("preset", OF_TEXTS)
def test_every_preset_of_tokens_runs_three_iterations(preset: str, tmp_path: Path):
    more = []
    if preset == "pass_k":  # right is what is above 0.5, here more than ten tokens
        more = [LENGTH.replace("12", "20").replace("overlong,", "overlong, weight: -1,")]
        more += ["advantage.k=2", "generation.max_new_tokens=20", "train.group=8"]
    more += IN_PARTS.get(preset, []) + OF_STEPS.get(preset, [])
    if preset == "chord":
        shown = tmp_path / "shown.jsonl"
        shown.write_text("".join(json.dumps({"prompt": f"{i}+2", "completion": f"{i + 2}"}) + "\n" for i in range(4)))
        more.append(f"objective.expert={{source: {shown}, prompts: 3}}")
    if preset == "prorl":
        more.append("train.iterations=null")
    if LANGUAGE[preset].get("critic", {}).get("warmup"):
        more += ["critic={warmup: 1}"]
    metrics = trained(tmp_path / "run", preset, *more)
    assert [m["iteration"] for m in metrics] == [1, 2, 3]
    learning = metrics[1:] if more[-1:] == ["critic={warmup: 1}"] else metrics  # at first the critic alone
    assert all(m["nonfinite_updates"] == 0 for m in learning)
    compared = preset not in (
        "dpo",
        "mpo",
        "gflow",
        "gflow_subtb",
        "gflow_db",
    )  # whose losses read no ratio to who sampled
    assert all(("replay_gap_max" in m) == compared and m.get("replay_gap_max", 0.0) < 5e-5 for m in learning)
    for values in metrics if "critic" in LANGUAGE[preset] else ():
        assert values["value/grad_norm"] > 0 and values["value/explained_variance"] < 1
    assert max(m["grad_norm"] for m in learning) > 0
    beside = {"vapo": ("right/likelihood", 2), "chord": ("expert/likelihood", 3), "skywork_ssb": ("store/kl", 2)}
    name, times = beside.get(preset, ("right/loss", 0))
    assert sum(name in m for m in metrics) == times


def test_rows_are_kept_by_magnitude_and_groups_by_spread(tmp_path: Path):
    more = ["train.keep=1", "train.keep_by=magnitude", "advantage.groups=0.5", "train.drop_silent=true"]
    for metrics in trained(tmp_path / "run", "grpo", *more, "train.updates=1"):
        assert metrics["active_rows"] <= 1 / 8 + 1e-6


def test_a_run_of_trees_resumes_bit_for_bit(tmp_path: Path):
    """From its second checkpoint; refills and what a tree does by chance included."""
    more = [*IN_PARTS["treepo"], "checkpoint.every=1", "checkpoint.keep=3", "train.group=3"]
    folder = tmp_path / "run"
    whole = trained(folder, "treepo", *more)
    shutil.rmtree(sorted(path for path in (folder / "checkpoints").iterdir() if path.is_dir())[-1])
    recipe = load("tiny_lm_grpo", [f"output={folder}", *SMALL, LENGTH, "objective={preset: treepo}", *more])
    run(recipe, quiet(), resume=folder)
    again = [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]
    again = [row for row in again if row["kind"] == "train"]
    assert [row["iteration"] for row in again] == [1, 2, 3]
    assert {k: v for k, v in again[2].items() if not k.startswith("time_")} == {
        k: v for k, v in whole[2].items() if not k.startswith("time_")
    }


def test_unfinished_completions_go_on_in_the_next_iteration_and_after_a_resume(tmp_path: Path):
    more = ["generation.partial=5", "checkpoint.every=1", "checkpoint.keep=4", "train.iterations=4"]
    more += ["generation.max_new_tokens=20"]
    folder = tmp_path / "run"
    whole = trained(folder, "grpo", *more)
    assert any(m["partial/waiting"] > 0 for m in whole) and any(m["partial/age"] > 0 for m in whole[1:])
    begun = sum(m["partial/groups"] for m in whole) + whole[-1]["partial/waiting"]
    assert begun == 4 * 2 and all(m["partial/groups"] >= 1 for m in whole)
    for _ in range(2):
        shutil.rmtree(sorted(path for path in (folder / "checkpoints").iterdir() if path.name.isdigit())[-1])
    recipe = load("tiny_lm_grpo", [f"output={folder}", *SMALL, LENGTH, "objective={preset: grpo}", *more])
    run(recipe, quiet(), resume=folder)
    again = [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]
    again = [row for row in again if row["kind"] == "train"]
    for before, after in zip(whole, again, strict=True):
        assert {k: v for k, v in before.items() if "time" not in k} == {
            k: v for k, v in after.items() if "time" not in k
        }


def test_the_baseline_of_least_variance_is_one_of_single_tokens(tmp_path: Path):
    more = ["advantage={baseline: none, scale: none, combine: sum, clip: null, credit: {kind: optimal_token}}"]
    for metrics in trained(tmp_path / "run", "grpo", *more):
        assert metrics["grad_norm"] > 0 and metrics["nonfinite_updates"] == 0


def test_rewards_of_steps_do_not_depend_on_how_updates_are_cut(tmp_path: Path):
    for preset in OF_STEPS:
        cut = ["train.iterations=1", "train.updates=1", *(["train.refill=1"] if preset == "grpo_process" else [])]
        rows = [
            trained(tmp_path / f"{preset}_{size}", preset, *OF_STEPS[preset], *cut, f"train.micro_batch={size}")[0]
            for size in ("null", 3)
        ]
        for name in ("grad_norm", "loss", "adv/abs_mean", "reward/steps/mean"):
            assert rows[1][name] == pytest.approx(rows[0][name], rel=1e-6, abs=1e-6)
