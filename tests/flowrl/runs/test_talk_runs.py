"""Runs whose model talks to an environment: what they leave, how failures count, and one that is killed in a tool."""

import json
import signal
from pathlib import Path

import pytest
import torch

from cli_support import call
from flowrl.build import build_policy
from flowrl.contracts import Prompt
from flowrl.core.advantages.returns import turn_ends
from flowrl.exports import language
from flowrl.planning.dry_run import describe
from flowrl.policies.loading import load_language
from flowrl.recipe.errors import RecipeError
from flowrl.recipe.load import load
from resume_support import assert_same_run, begun, ended, metrics, train
from talk_support import saved

SMALL = ["train.prompts=2", "train.group=4", "train.updates=2", "train.iterations=3", "train.micro_batch=3"]
SMALL += ["generation.max_new_tokens=120", "eval.prompts=6", "eval.grid=6", "eval.temperature=1", "eval.every=null"]
SMALL += ["checkpoint.every=1"]
SMALL += ["rewards={used: {use: used_tool}, short: {use: overlong, args: {limit: 60, margin: 60}}}", "threads=1"]


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return saved(tmp_path_factory.mktemp("model"))


def test_a_run_that_is_killed_inside_a_tool_goes_on_bit_for_bit(model: Path, tmp_path: Path):
    def given(name: str, last: int) -> list[str]:
        args = f"{{path: {tmp_path / name}, last: {last}}}"
        tools = f"environment={{tools: [{{use: talk_support.Counted, args: {args}}}, talk_support.sulk], turns: 3}}"
        return [*SMALL, f"model={model}", tools, "environment.workers=1"]

    whole, folder = tmp_path / "whole", tmp_path / "killed"
    train("tiny_lm_grpo", given("first", 10**9), whole)
    calls = (tmp_path / "first").stat().st_size
    assert calls > 6
    process = begun(train, "tiny_lm_grpo", given("second", calls * 2 // 3), folder)
    assert ended(process) == -signal.SIGKILL and not (folder / "summary.json").exists()
    train("tiny_lm_grpo", given("second", calls * 2 // 3), folder, resume=True)
    assert_same_run(folder, whole)
    lines = [line for line in metrics(whole) if line["kind"] == "train"]
    assert all(line["replay_gap_max"] < 1e-4 and line["talk/calls"] > 0 for line in lines)
    assert all(sum(v for k, v in line.items() if k.startswith("talk/end_")) == pytest.approx(1) for line in lines)
    assert any(line["grad_norm"] > 0 for line in lines)
    heldout = json.loads((whole / "heldout" / "00003.json").read_text())
    assert "talk/turns" in [line for line in metrics(whole) if line["kind"] == "heldout"][-1]
    assert any("<tool_call>" in text and "\n[" in text for text in heldout["texts"])


def test_samples_of_a_failed_environment_are_no_scores(model: Path, tmp_path: Path):
    more = ["environment={use: talk_support.Failing, turns: 2}", f"model={model}", "train.iterations=1", "full=true"]
    more += ["lora=null", "rewards={turns: {use: outcome, args: {name: turns}, failure_limit: 0.9}}"]
    with pytest.warns(UserWarning, match="samples are not scored: the environment failed: OSError"):
        train("tiny_lm_grpo", [*SMALL, *more], tmp_path / "out")
    (line,) = [line for line in metrics(tmp_path / "out") if line["kind"] == "train"]
    assert line["talk/end_failed"] == pytest.approx(line["reward/turns/nan"]) and 0 < line["talk/end_failed"] < 1


def test_bi_level_credit_reads_the_turns(model: Path, tmp_path: Path):
    more = [
        "environment={tools: [calculator, talk_support.add], turns: 3}",
        f"model={model}",
        "critic={use: lora, rank: 2}",
    ]
    more += ["advantage={baseline: none, scale: whiten, clip: null, credit: two_level}", "train.iterations=1"]
    train("tiny_lm_grpo", [*SMALL, *more], tmp_path / "out")
    turn, mask = torch.tensor([[1, 1, 1, 2, 2, 2, 0]]), torch.tensor([[1, 1, 0, 1, 0, 1, 0]]).bool()
    assert turn_ends(turn, mask).tolist() == [[False, True, False, False, False, True, False]]


def test_what_is_drawn_alone_is_the_models_own(model: Path):
    """Checks and exports compare first turns with transformers' own, which is told of the same tools."""
    how = [f"model={model}", "environment={tools: [calculator, talk_support.add], turns: 3}"]
    recipe = load("tiny_lm_grpo", [*SMALL, *how])
    prompts = [Prompt("a", "12+345"), Prompt("b", "7*8")]
    own = language.complete_greedily(recipe, *load_language(str(model), torch.float32), None, prompts)
    for drawn, other in zip(language.draw(build_policy(recipe), recipe, prompts), own, strict=True):
        assert torch.equal(drawn[0], other[0]) and (drawn[1] - other[1]).abs().max() < 1e-4


REFUSED = {
    "environment.tools": ["environment={turns: 2}"],
    "environment.tools.0.use": ["environment.tools=[calculater]"],
    "environment.tools.1.use": ["environment.tools=[calculator, subprocess.Popen]"],
    "environment.tools.0.args.expression": ["environment.tools=[{use: calculator, args: {expression: 1}}]"],
    "environment.use": ["environment={use: talk_support.PLAN}"],
    "environment.frame": ["environment.frame=no text"],
    "environment.faults": ["environment.faults=[Error]"],
    "environment.turns": ["environment.turns=0"],
    "environment.batch": ["environment.batch=4"],
    "generation.again.kind": ["generation.again={kind: corrections}"],
    "generation.partial": ["generation.partial=8"],
    "generation.force": ["environment={agent: engines_support.solve}", "generation.force={text: so, left: 4}"],
    "advantage.early": ["environment=null", "advantage.early={delta: -2, limit: 0.7}"],
    "rollout.engine": ["environment={agent: engines_support.solve}", "rollout.engine={use: vllm, url: http://a:1}"],
    "rollout.dtype": ["environment={agent: engines_support.solve}", "rollout.dtype=bfloat16"],
}


@pytest.mark.parametrize("place", REFUSED)
def test_what_does_not_fit_is_refused_in_one_line(place: str):
    with pytest.raises(RecipeError) as refused:
        load("tiny_lm_grpo", ["environment={tools: [calculator]}", *REFUSED[place]])
    assert refused.value.place == place and "\n" not in str(refused.value)


def test_a_denoiser_talks_to_nobody():
    with pytest.raises(RecipeError, match="environment: given"):
        load("quickstart", ["environment={tools: [calculator]}"])


def test_the_plan_says_what_the_model_talks_to_and_refuses_what_is_lacking(
    capsys, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
):
    text = describe(load("tiny_lm_grpo", ["environment={tools: [calculator], turns: 3, tell: none}"]))
    assert "tools calculator; up to 3 turns of the model" in text
    lacking = "environment={use: talk_support.Lacking, turns: 3}"
    code, out, _ = call(capsys, monkeypatch, "run", "tiny_lm_grpo", lacking, "--dry-run")
    assert code == 0 and "no table: bring one" in next(line for line in out.splitlines() if line.startswith("missing"))
    code, _, error = call(capsys, monkeypatch, "run", "tiny_lm_grpo", lacking, f"output={tmp_path}/out")
    assert code == 2 and "no table: bring one" in error and len(error.strip().splitlines()) == 1


def test_a_model_that_would_not_hear_of_its_tools_is_refused(capsys, monkeypatch: pytest.MonkeyPatch, tmp_path: Path):
    how = ["environment={tools: [calculator]}", f"output={tmp_path}/out"]
    code, _, error = call(capsys, monkeypatch, "run", "tiny_lm_grpo", *how)
    assert (
        code == 2 and "environment.tell: the model's chat template does not tell it of its tools (calculator)" in error
    )


def test_the_tiny_calculator_goes_on_behind_its_sums(tmp_path: Path):
    more = ["train.prompts=4", "train.updates=1", "train.iterations=1", "eval.prompts=4", "eval.temperature=1"]
    more += ["advantage.early={delta: -2.0, limit: 0.7}"]
    train("tiny_calculator", more, tmp_path / "out")
    (line,) = [line for line in metrics(tmp_path / "out") if line["kind"] == "train"]
    assert line["talk/calls"] > 0.3 and line["talk/end_answer"] > 0.9 and line["replay_gap_max"] < 1e-4
    texts = json.loads((tmp_path / "out" / "heldout" / "00001.json").read_text())["texts"]
    assert any("=\n[calculator] " in text for text in texts)
