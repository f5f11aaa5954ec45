"""Runs that learn from a reference alone: the shipped recipes on tiny models, and one that is killed and resumed."""

from pathlib import Path

import pytest

import families
from cli_support import quiet
from flowrl.recipe.errors import RecipeError
from flowrl.recipe.load import load
from flowrl.runs.start import run
from resume_support import goes_on, metrics

SMALL = ["train.prompts=2", "train.group=2", "train.updates=1", "train.iterations=3", "device=cpu", "threads=1"]
QUIET = ["eval.at_start=false", "eval.at_end=false", "eval.every=null", "checkpoint.every=null", "train.micro_batch=3"]


@pytest.fixture(scope="module")
def teacher(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The LoRA of a few large updates towards saturated pictures."""
    folder = tmp_path_factory.mktemp("teacher") / "run"
    reward = "rewards={size: {use: resume_support.noisy_size}}"
    run(load("tiny_flow_grpo", [*SMALL, *QUIET, reward, "train.lr=2.0e-2", f"output={folder}"]), quiet())
    return folder / "lora"


def trained(folder: Path) -> list[dict]:
    return [line for line in metrics(folder) if line["kind"] == "train"]


@pytest.mark.parametrize("name", ["tiny_distill", "tiny_few_step", "tiny_guidance_distill", "opd_sd35"])
def test_a_recipe_learns_from_its_reference_and_calls_no_reward(name: str, teacher: Path, tmp_path: Path):
    changes = [*SMALL, *QUIET, f"output={tmp_path / 'run'}"]
    if name in ("tiny_distill", "tiny_few_step"):
        changes.append(f"reference.path={teacher}")
    if name == "opd_sd35":
        families.get("sd3").build().save_pretrained(tmp_path / "sd3")
        size = "{height: 16, width: 16, guidance_scale: %s}"
        changes += [f"model={tmp_path / 'sd3'}", f"pipeline={size % 1.0}", "train.rollout_batch=null", "offload=false"]
        changes += [f"reference={{use: base, pipeline: {size % 4.5}}}", "dtype.model=float32"]
        changes += ["prompts={train: prompts/train.txt, heldout: null}", "train.ema_every=1", "eval.prompts=null"]
        changes += ["rewards={size: {use: resume_support.leaving, weight: 0.0, args: {way: leave, calls: 0}}}"]
    run(load(name, changes), quiet())
    lines = trained(tmp_path / "run")
    assert len(lines) == 3 and lines[0]["kl"] > 0
    for line in lines:
        assert line["grad_norm"] > 0 and line["active_rows"] == 1 and line["replay_gap_max"] <= 1e-6
        assert not any(metric.startswith(("reward/", "adv/")) for metric in line)


def test_tokens_are_learned_from_another_runs_adapters_and_no_reward_is_called(tmp_path: Path):
    short = [*SMALL, *QUIET, "generation.max_new_tokens=8", "train.lr=1e-2"]
    first = ["rewards={length: {use: overlong, args: {limit: 8, margin: 8}}}", "train.group=4"]
    run(load("tiny_lm_grpo", [*short, *first, f"output={tmp_path / 'teacher'}"]), quiet())
    path = f"reference.path={tmp_path / 'teacher' / 'lora'}"
    run(load("tiny_lm_distill", [*short, path, "train.iterations=6", f"output={tmp_path / 'run'}"]), quiet())
    lines = trained(tmp_path / "run")
    assert len(lines) == 6 and lines[0]["kl"] > 0 and lines[-1]["kl"] < lines[0]["kl"]
    for line in lines:
        assert line["grad_norm"] > 0 and line["active_rows"] == 1
        assert not any(metric.startswith(("reward/", "adv/")) for metric in line)


def test_a_run_with_two_teachers_of_which_one_takes_two_steps(teacher: Path, tmp_path: Path):
    two = f"{{use: lora, path: {teacher}, when: {{kind: [single, relation]}}}}, {{use: base, steps: 2}}"
    run(load("tiny_distill", [*SMALL, *QUIET, f"reference=[{two}]", f"output={tmp_path / 'run'}"]), quiet())
    lines = trained(tmp_path / "run")
    assert len(lines) == 3 and any(line["kl"] > 0 for line in lines)
    assert all(line["replay_gap_max"] <= 1e-6 for line in lines)
    again = load(str(tmp_path / "run" / "recipe.yaml"))
    assert [one.steps for one in again.references] == [1, 2]


def test_a_killed_run_reloads_its_teacher_and_goes_on_bit_for_bit(teacher: Path, tmp_path: Path):
    more = [*SMALL, f"reference.path={teacher}", "train.iterations=4", "checkpoint.every=1", "prompts.heldout=null"]
    more += ["train.ema=0.5"]
    goes_on("tiny_distill", more, tmp_path)


def test_a_teacher_that_is_not_there_is_refused_before_anything_is_loaded(tmp_path: Path):
    recipe = load("tiny_distill", [*SMALL, f"reference.path={tmp_path / 'nowhere'}", f"output={tmp_path / 'run'}"])
    with pytest.raises(RecipeError, match=r"reference\.path: got .*, where no adapters are"):
        run(recipe, quiet())
    assert not (tmp_path / "run").exists()
