"""A run whose reward can be gamed, saturation, beside a witness, the checker of shapes: warned of, stopped, or ended
with the weights of the best witness."""

import io
import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from rich.console import Console as RichConsole
from safetensors.torch import load_file

from flowrl.recipe.load import load
from flowrl.runs import checkpoints as state
from flowrl.runs.alarm_response import AlarmError
from flowrl.runs.console import Console
from flowrl.runs.start import run
from resume_support import assert_same_run, metrics, same, train

GAMED = ["rewards.shapes={use: saturation}", "rewards.strict={use: shapes, weight: 0, args: {strict: 0.5}}"]
GAMED += ["train.prompts=4", "train.group=6", "train.updates=2", "train.iterations=6", "train.lr=0.03"]
GAMED += ["train.schedule=constant", "train.warmup=4", "sampler.steps=4", "eval.steps=3", "eval.every=1"]
GAMED += ["eval.prompts=40", "eval.grid=2", "checkpoint.every=1", "checkpoint.keep=9", "watch.kl_to_base=0.01"]
BEST, RINGS = 1, 5  # iterations of the best witness, and of the alarm


def alarms(folder: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in (folder / "alarms.jsonl").read_text().splitlines()]


def weights(folder: Path) -> dict[str, Any]:
    """The LoRA that a run ended with, by the names that its parameters have in a checkpoint."""
    (file,) = (folder / "lora").glob("*.safetensors")
    return {name.replace(".weight", ".default.weight"): value for name, value in load_file(file).items()}


def saved(folder: Path, which: str) -> dict[str, Any]:
    return state.load(state.Checkpoints(folder).find(which))


def averaged(checkpoint: dict[str, Any]) -> dict[str, Any]:
    """The moving averages, which are what is evaluated and what a run ends with."""
    return dict(zip(checkpoint["parameters"], checkpoint["learner"]["copies"]["average"], strict=True))


@pytest.fixture(scope="module")
def warned(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("hacked") / "warned"
    train("tiny_flow_grpo", [*GAMED, "watch.on_hack=warn"], folder)
    return folder


@pytest.fixture(scope="module")
def cut(warned: Path) -> Callable[[str], Path]:
    """Makes a copy of the run as it was before the alarm."""

    def copy(name: str) -> Path:
        folder = warned.with_name(name)
        shutil.copytree(warned, folder)
        shutil.rmtree(folder / "lora")
        (folder / "summary.json").unlink()
        for checkpoint in state.Checkpoints(folder).all():
            if checkpoint.iteration >= RINGS:
                shutil.rmtree(checkpoint.path)
        return folder

    return copy


@pytest.fixture(scope="module")
def ended(cut: Callable[[str], Path]) -> Path:
    folder = cut("ended")
    train("tiny_flow_grpo", [*GAMED, "watch.on_hack=rollback", "checkpoint.keep=1"], folder, resume=True)
    return folder


def test_a_reward_that_is_gamed_is_warned_of(warned: Path):
    (alarm,) = (a for a in alarms(warned) if a["name"] == "hacking")
    assert (alarm["iteration"], alarm["since"], alarm["action"]) == (RINGS, BEST, "warn") and "to" not in alarm
    assert alarm["what"].startswith("held-out witness strict 0.5") and "the trained reward rose 0.1" in alarm["what"]
    rows = {m["iteration"]: m for m in metrics(warned) if m["kind"] == "heldout"}
    assert max(rows, key=lambda i: rows[i]["strict/mean"]) == BEST and list(rows) == list(range(7))
    index = {i: row["hack_index"] for i, row in rows.items()}
    assert index[0] == 0 and all(index[i] < 0.5 for i in range(RINGS)) and index[RINGS] > 0.5
    last = rows[RINGS]
    assert last["hack/witness_fall"] > 1 and last["hack/kl"] == pytest.approx(last["kl_to_base"] / 0.01)
    assert rows[0]["kl_to_base"] == 0 < rows[1]["kl_to_base"] < rows[4]["kl_to_base"]
    assert "rolled_back" not in json.loads((warned / "summary.json").read_text())


def test_a_gamed_run_is_stopped(cut: Callable[[str], Path], warned: Path):
    folder = cut("stopped")
    with pytest.raises(AlarmError, match="stopped by the alarm hacking: held-out witness strict"):
        train("tiny_flow_grpo", [*GAMED, "watch.on_hack=stop"], folder, resume=True)
    assert same(saved(folder, "last")["parameters"], saved(warned, str(RINGS))["parameters"])
    assert alarms(folder)[-1]["action"] == "stop" and not (folder / "lora").exists()


def test_a_rollback_ends_with_the_weights_of_the_best_witness(ended: Path, warned: Path):
    best, gamed = (saved(warned, str(i)) for i in (BEST, RINGS))
    assert weights(ended) and same(weights(ended), averaged(best))
    assert not same(weights(ended), averaged(gamed))
    last = saved(ended, "last")
    assert last["mark"]["iteration"] == RINGS and same(last["parameters"], best["parameters"])
    assert same(last["learner"]["moments"], best["learner"]["moments"])
    assert last["learner"]["factor"] == 1 and last["learner"]["steps"] == gamed["learner"]["steps"]


def test_a_rollback_is_told_everywhere(ended: Path):
    alarm = alarms(ended)[-1]
    assert (alarm["name"], alarm["iteration"], alarm["action"], alarm["to"]) == ("hacking", RINGS, "rollback", BEST)
    summary = json.loads((ended / "summary.json").read_text())
    told = {"alarm": "hacking", "at": RINGS, "to": BEST, "what": alarm["what"]}
    assert summary["rolled_back"] == told and summary["iterations"] == RINGS
    words = " ".join((ended / "report.html").read_text(encoding="utf-8").split())
    assert f"its weights are those of iteration {BEST}" in words and "Hack index" in words
    assert "The trained reward rises while the witness falls: strict" in words


def test_the_best_witness_is_never_pruned(ended: Path):
    checkpoints = state.Checkpoints(ended)
    kept = {checkpoints.find(which).iteration for which in ("best", "witness", "last")}
    assert kept == {c.iteration for c in checkpoints.all()} and checkpoints.find("witness").iteration == BEST
    rows = {
        m["iteration"]: m["shapes/mean"] for m in metrics(ended) if m["kind"] == "heldout" and m["iteration"] < RINGS
    }
    assert checkpoints.find("best").iteration == max(rows, key=rows.__getitem__)  # the gamed one has no weights left


def heard(folder: Path, *changes: str) -> str:
    """What a resumed run prints."""
    text = io.StringIO()
    recipe = load("tiny_flow_grpo", [*GAMED, "checkpoint.keep=1", *changes, f"output={folder}"])
    run(recipe, Console(RichConsole(file=text, width=200)), resume=folder)
    return text.getvalue()


def test_what_an_alarm_has_ended_goes_on_by_explicit_wish_alone(ended: Path, tmp_path: Path):
    folder = tmp_path / "run"
    shutil.copytree(ended, folder)
    words = heard(folder, "watch.on_hack=rollback")
    assert (
        "the alarm hacking ended it with the weights of iteration 1; to continue from them, change the recipe" in words
    )
    assert metrics(folder) == metrics(ended)
    words = heard(folder, "watch.on_hack=warn")
    assert "resuming after iteration 5 of 6" in words and "watch.on_hack: rollback -> warn" in words
    assert metrics(folder)[: len(metrics(ended))] == metrics(ended) and metrics(folder)[-1]["iteration"] == 6
    summary = json.loads((folder / "summary.json").read_text())
    assert summary["iterations"] == 6 and "rolled_back" not in summary
    scores = [m["strict/mean"] for m in metrics(folder) if m["kind"] == "heldout"]
    assert scores[6] > 2 * scores[5]  # from the weights of the best witness, not from the gamed ones


def test_a_kill_before_the_end_of_a_rollback_ends_alike(ended: Path, tmp_path: Path):
    folder = tmp_path / "run"
    shutil.copytree(ended, folder)
    (folder / "summary.json").unlink()
    shutil.rmtree(folder / "lora")
    words = heard(folder, "watch.on_hack=rollback")
    assert "resuming after iteration 5 of 6" in words
    assert_same_run(folder, ended)
    assert json.loads((folder / "summary.json").read_text())["rolled_back"]["to"] == BEST


def test_without_its_checkpoint_a_rollback_is_a_stop(cut: Callable[[str], Path]):
    folder = cut("pruned")
    shutil.rmtree(folder / "checkpoints" / f"{BEST:05d}")
    with pytest.raises(AlarmError, match=r"\(no checkpoint of iteration 1 was kept to return to\)"):
        train("tiny_flow_grpo", [*GAMED, "watch.on_hack=rollback"], folder, resume=True)
