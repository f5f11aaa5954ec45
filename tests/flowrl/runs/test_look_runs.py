"""The recipes of the world shapes-look: a few iterations of each, and what whole runs of them show."""

import json
from pathlib import Path

import pytest
from PIL import Image

from cli_support import quiet
from flowrl.contracts import Call, Said
from flowrl.environments.building import build_environment
from flowrl.reading import prompts
from flowrl.recipe.load import load
from flowrl.runs.start import run
from flowrl.worlds.shapes_look.files import picture_of
from flowrl.worlds.shapes_look.scenes import questions
from flowrl.worlds.shapes_look.zoom import quadrant_of

RECIPES = ("tiny_vlm_grpo", "tiny_tools", "tiny_tools_cost")
BESIDE = {"tiny_papo": "perception", "tiny_noisy": "views/noisy/gap"}  # recipe beside changed pictures -> a metric
SMALL = ["train.prompts=2", "train.group=6", "train.updates=1", "train.iterations=2", "threads=1", "prompts.limit=12"]
SMALL += ["prompts.heldout=null", "eval={every: null, at_start: false, at_end: false}", "checkpoint.every=null"]


def metrics_of(folder: Path, kind: str = "train") -> list[dict]:
    lines = [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]
    return [line for line in lines if line["kind"] == kind]


def right_by_kind(folder: Path) -> list[dict[str, float]]:
    """Of each evaluation, the share of right answers about small and about large objects."""
    found = []
    for file in sorted((folder / "heldout").glob("*.json")):
        record = json.loads(file.read_text())
        kinds = [prompt["kind"] for prompt in record["prompts"]]
        scores = {
            kind: [s for s, k in zip(record["scores"]["right"], kinds, strict=True) if k == kind] for kind in kinds
        }
        found.append({kind: sum(values) / len(values) for kind, values in scores.items()})
    return found


@pytest.mark.parametrize("name", RECIPES)
def test_it_runs(name, tmp_path):
    run(load(name, [*SMALL, f"output={tmp_path / 'run'}"]), quiet())
    first, second = metrics_of(tmp_path / "run")
    assert max(first["replay_gap_max"], second["replay_gap_max"]) < 1e-4 and second["grad_norm"] > 0
    assert ("talk/calls" in first) == (name != "tiny_vlm_grpo")
    if name == "tiny_tools":
        assert first["talk/calls"] > 0 and first["reward/tool/mean"] <= first["reward/right/mean"]


@pytest.mark.slow
@pytest.mark.parametrize("name", BESIDE)
def test_it_runs_beside_changed_pictures(name, tmp_path):
    run(load(name, [*SMALL, "train.group=8", f"output={tmp_path / 'run'}"]), quiet())
    first, second = metrics_of(tmp_path / "run")
    assert max(first["replay_gap_max"], second["replay_gap_max"]) < 1e-4 and first["grad_norm"] > 0
    assert first[BESIDE[name]] > 0.01 and second[BESIDE[name]] > 0.01


@pytest.mark.slow
def test_conversations_are_looked_at_once_more_beside_masked_pictures(tmp_path):
    given = ["views={masked: {kind: mask_patches, share: 0.6}}", "objective.perception={view: masked, coef: 0.1}"]
    run(load("tiny_tools", [*SMALL, *given, f"output={tmp_path / 'run'}"]), quiet())
    for one in metrics_of(tmp_path / "run"):
        assert one["replay_gap_max"] < 1e-4 and one["talk/calls"] > 0 and one["perception"] > 1e-3


@pytest.mark.slow
def test_conversations_are_drawn_beside_noisy_pictures_and_looked_at_once_more(tmp_path):
    noisy = "noisy: {kind: diffuse, step: {points: {0: 800, 2: 200}, by: iterations}, draws: 2}"
    given = [f"views={{{noisy}, masked: {{kind: mask_patches, share: 0.6}}}}"]
    given += ["objective.perception={view: masked, coef: 0.1}", "train.micro_batch=5"]
    run(load("tiny_tools", [*SMALL, *given, f"output={tmp_path / 'run'}"]), quiet())
    first, second = metrics_of(tmp_path / "run")
    for one in (first, second):
        assert one["replay_gap_max"] < 1e-4 and one["talk/calls"] > 0 and one["perception"] > 1e-3
    assert first["views/noisy/gap"] > 0.01 and second["views/noisy/gap"] > 0.01


@pytest.mark.slow
def test_views_of_no_weight_leave_a_run_with_tools_as_it_is_bit_for_bit(tmp_path):
    view = "views={{same: {{kind: mask_patches, share: 0.0{}}}}}"
    second = [view.format(""), "objective.perception={view: same, coef: 0.0}"]
    given = {"plain": [], "clean": [view.format(", draws: 2")], "second": second}
    given["drawn"] = [view.format(", draws: 2, scored: drawn")]
    weights = {}
    for name, more in given.items():
        run(load("tiny_tools", [*SMALL, *more, f"output={tmp_path / name}"]), quiet())
        weights[name] = (tmp_path / name / "lora" / "adapter_model.safetensors").read_bytes()
    assert metrics_of(tmp_path / "plain")[0]["grad_norm"] > 0
    assert len(set(weights.values())) == 1


def test_the_tool_that_ships_shows_what_the_documents_showed():
    recipe = load("tiny_tools")
    prompt, question = prompts.load("shapes-look/train")[2], questions("train")[2]
    episode = build_environment(recipe.environment).start(prompt, seed=0)
    picture = picture_of(question)
    for quadrant in question.asked.quadrants:
        picture = quadrant_of(picture, quadrant)
        (shown,) = episode.step(Said("", (Call("quadrant", {"quadrant": quadrant}),)))
        assert isinstance(shown.pictures[0], Image.Image) and shown.text == ""
        assert shown.pictures[0].convert("RGB").tobytes() == picture.tobytes()
    (third,) = episode.step(Said("", (Call("quadrant", {"quadrant": "top-left"}),)))
    assert third.error is not None and not third.pictures


@pytest.mark.slow
def test_small_objects_need_the_tool(tmp_path):
    found = {}
    for name in ("tiny_vlm_grpo", "tiny_tools"):
        run(load(name, ["threads=1", f"output={tmp_path / name}"]), quiet())
        found[name] = right_by_kind(tmp_path / name)
    assert found["tiny_tools"][-1]["small"] >= 0.7
    assert found["tiny_tools"][-1]["large"] >= found["tiny_tools"][0]["large"] - 0.05
    assert found["tiny_vlm_grpo"][-1]["small"] <= 0.25


@pytest.mark.slow
def test_a_cost_ends_the_calls_and_the_alarm_says_so(tmp_path):
    run(load("tiny_tools_cost", ["threads=1", f"output={tmp_path / 'run'}"]), quiet())
    calls = [line["talk/calls"] for line in metrics_of(tmp_path / "run")]
    assert calls[-1] < calls[0] / 4
    rung = [json.loads(line)["name"] for line in (tmp_path / "run" / "alarms.jsonl").read_text().splitlines()]
    assert "calls" in rung
