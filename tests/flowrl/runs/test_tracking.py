"""Trackers: what they are told, that none is there unless asked for, and that their failures do not end a run."""

import importlib.util
import json
import socket
import sys
from pathlib import Path

import pytest
import torch
from accelerate.tracking import LOGGER_TYPE_TO_CLASS

from cli_support import quiet
from flowrl.core.evaluation import Evaluation
from flowrl.names import UserError
from flowrl.recipe.checks.trackers import TRACKERS
from flowrl.recipe.errors import RecipeError
from flowrl.recipe.load import dump, load
from flowrl.runs import tracking
from flowrl.runs.folder import RunFolder
from flowrl.runs.start import run

TINY = ["train.prompts=2", "train.group=2", "train.updates=1", "train.iterations=2", "eval.every=null"]
TINY += ["eval.prompts=3", "eval.grid=2", "eval.steps=2", "sampler.steps=2", "sampler.window.size=1", "device=cpu"]

DIARY = """
from accelerate.tracking import GeneralTracker

told = []

class Diary(GeneralTracker):
    name = "diary"
    requires_logging_directory = False

    def __init__(self, project, mood="fine"):
        super().__init__()
        told.append(("init", project, mood))

    @property
    def tracker(self):
        return self

    def start(self):
        told.append(("start",))

    def store_init_configuration(self, values):
        told.append(("config", values))

    def log(self, values, step=None):
        told.append(("log", step, values))

    def log_images(self, values, step=None):
        told.append(("images", step, {k: [p.size for p in v] for k, v in values.items()}))

    def finish(self):
        told.append(("finish",))

class Torn(Diary):
    def log(self, values, step=None):
        raise OSError("the page is gone")

class Shut(Diary):
    def start(self):
        raise OSError("no\\npen")

class Stranger:
    def __init__(self, project):
        pass
"""


@pytest.fixture
def told(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> list:
    """What the trackers of a user's module `diary` in the current directory were told, in order."""
    (tmp_path / "diary.py").write_text(DIARY)
    monkeypatch.chdir(tmp_path)
    monkeypatch.syspath_prepend(tmp_path)
    monkeypatch.delitem(sys.modules, "diary", raising=False)
    import diary  # pyright: ignore[reportMissingImports]

    return diary.told


def recipe(*overrides: str):
    return load("tiny_flow_grpo", [*TINY, *overrides])


# ------------------------------------------------------------------------ a run


def test_a_run_by_default_imports_no_tracker_and_opens_no_connection(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    def refuse(*_, **__):
        raise AssertionError("a connection was opened")

    for name in [m for m in sys.modules if m.split(".")[0] in {t.module for t in TRACKERS.values()}]:
        monkeypatch.delitem(sys.modules, name)
    for method in ("connect", "connect_ex"):
        monkeypatch.setattr(socket.socket, method, refuse)
    monkeypatch.setattr(socket, "getaddrinfo", refuse)
    run(recipe(f"output={tmp_path / 'run'}", "train.iterations=1"), quiet())
    assert not {t.module for t in TRACKERS.values()} & set(sys.modules)
    with pytest.raises(AssertionError, match="connection"):  # the watch works
        socket.create_connection(("localhost", 9))


def test_a_tracker_is_told_what_the_run_writes(told: list, tmp_path: Path):
    asked = ["track.with=[diary.Diary]", "track.project=shapes", "track.args={diary.Diary: {mood: high}}"]
    recipe_ = recipe(f"output={tmp_path / 'run'}", *asked)
    run(recipe_, quiet())
    kinds = [entry[0] for entry in told]
    assert told[0] == ("init", "shapes", "high") and kinds[1:3] == ["start", "config"] and kinds[-1] == "finish"
    assert kinds.count("finish") == 1
    config = told[2][1]
    assert config["train.lr"] == recipe_.train.lr and config["rewards.strict.use"] == "shapes_strict"
    written = [json.loads(line) for line in (tmp_path / "run" / "metrics.jsonl").read_text().splitlines()]
    logged = [entry for entry in told if entry[0] == "log"]
    assert [(m["iteration"], m["kind"]) for m in written] == [
        (0, "heldout"),
        (1, "train"),
        (2, "train"),
        (2, "heldout"),
    ]
    for line, (_, step, values) in zip(written, logged, strict=True):
        kind, iteration = line.pop("kind"), line.pop("iteration")
        assert step == iteration
        assert values == {f"{kind}/{name}": value for name, value in line.items() if value is not None}
    pictures = [entry for entry in told if entry[0] == "images"]
    assert pictures == [("images", step, {"heldout": [(32, 32)] * 2}) for step in (0, 2)]


def test_a_tracker_that_fails_is_left_out_and_the_others_go_on(told: list, tmp_path: Path):
    folder = RunFolder(tmp_path / "run")
    folder.rewind({}, 0, [])
    folder.tracking = tracking.start_trackers(recipe("track.with=[diary.Torn, diary.Diary]"), folder.path)
    with pytest.warns(UserWarning, match="diary.Torn.*OSError: the page is gone"):
        folder.log(1, {"loss": 0.5, "kl": float("nan")})
    folder.log(2, {"loss": 0.25})
    scores = {"strict": torch.tensor([1.0])}
    folder.evaluated(2, "after", Evaluation([], scores, torch.zeros(1, 3, 8, 8)))
    folder.close()
    assert [e for e in told if e[0] in ("log", "images", "finish")] == [
        ("log", 1, {"train/loss": 0.5}),
        ("log", 2, {"train/loss": 0.25}),
        ("images", 2, {"heldout": [(8, 8)]}),
        ("finish",),
    ]


def test_a_tracker_that_cannot_start_is_one_line_before_the_model_is_loaded(told: list, tmp_path: Path, monkeypatch):
    monkeypatch.setattr("diffusers.DiffusionPipeline.from_pretrained", lambda *_, **__: pytest.fail("weights loaded"))
    asked = recipe(f"output={tmp_path / 'run'}", "track.with=[diary.Diary, diary.Shut]")
    with pytest.raises(UserError) as caught:
        run(asked, quiet())
    text = str(caught.value)
    assert text.startswith("track.with: 'diary.Shut'") and "OSError: no pen" in text and "\n" not in text
    assert told[-1] == ("finish",)  # the one that had started
    with pytest.raises(UserError, match="GeneralTracker"):
        tracking.start_trackers(recipe("track.with=[diary.Stranger]"), tmp_path)
    with pytest.raises(UserError, match="mode"):
        tracking.start_trackers(recipe("track.with=[diary.Diary]", "track.args={diary.Diary: {mode: 1}}"), tmp_path)


# ------------------------------------------------------------------------ the recipe


@pytest.mark.parametrize("name", sorted(TRACKERS))
def test_what_is_not_installed_is_said_with_the_command_that_installs_it(name: str, monkeypatch: pytest.MonkeyPatch):
    find = importlib.util.find_spec
    monkeypatch.setattr(importlib.util, "find_spec", lambda m, *a: None if m == TRACKERS[name].module else find(m, *a))
    with pytest.raises(RecipeError) as caught:
        recipe(f"track.with=[{name}]")
    assert caught.value.place == "track.with" and f"pip install {TRACKERS[name].package}" in str(caught.value)


@pytest.mark.parametrize(
    ("override", "place", "parts"),
    [
        ("track.with=[wandbb]", "track.with", ["'wandbb'", "did you mean 'wandb'"]),
        ("track.with=[tensorboard]", "track.with", ["every run writes"]),
        ("track.with=wandb", "track.with", ["a list of trackers"]),
        ("track.wiht=[wandb]", "track.wiht", ["did you mean 'with'"]),
        ("track.with=[nowhere.Tracker]", "track.with", ["nowhere"]),
        ("track.args={wandb: {mode: offline}}", "track.args.wandb", ["track.with"]),
        ("track.project=3", "track.project", ["a name"]),
    ],
)
def test_a_mistake_in_track_is_named(override: str, place: str, parts: list[str]):
    with pytest.raises(RecipeError) as caught:
        recipe(override)
    assert caught.value.place == place and all(part in str(caught.value) for part in parts)


def test_a_tracked_recipe_is_read_back_equal(told: list, tmp_path: Path):
    asked = recipe("track.with=[diary.Diary]", "track.name=mine")
    (tmp_path / "again.yaml").write_text(dump(asked))
    again = load(str(tmp_path / "again.yaml"))
    assert again.track == asked.track and again.track.wanted == ["diary.Diary"]


def test_the_names_are_those_of_accelerate():
    assert set(TRACKERS) == set(LOGGER_TYPE_TO_CLASS) - {"tensorboard"}


def test_a_recipe_is_flattened_to_plain_values():
    assert tracking.flat_config({"a": {"b": [1, 2], "c": {}}, "d": None}) == {"a.b": "[1, 2]", "a.c": "{}", "d": None}


# ------------------------------------------------------------------------ the real ones, where they are installed


def tracked(name: str, folder: Path, **args: object) -> None:
    """Two steps of numbers and pictures in a tracker, which is not left out."""
    found = tracking.start_trackers(
        recipe(f"track.with=[{name}]", f"track.args={json.dumps({name: args})}", "track.name=hello"), folder
    )
    for step in range(2):
        found.log(step, {"train/loss": 0.5 + step, "train/kl": float("nan")})
        found.images(step, "heldout", torch.rand(2, 3, 32, 32))
    assert list(found.trackers) == [name]
    found.finish()


@pytest.mark.filterwarnings("default")  # mlflow's own
def test_mlflow_keeps_numbers_pictures_and_the_recipe(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    mlflow = pytest.importorskip("mlflow")
    monkeypatch.chdir(tmp_path)
    mlflow.set_tracking_uri(f"sqlite:///{tmp_path / 'mlflow.db'}")
    tracked("mlflow", tmp_path)
    (found,) = mlflow.search_runs(search_all_experiments=True, output_format="list")
    assert found.info.run_name == "hello" and found.info.status == "FINISHED"
    assert found.data.metrics == {"train/loss": 1.5} and found.data.params["lora.rank"] == "16"
    assert len(list(tmp_path.rglob("*.png"))) == 4


def test_wandb_keeps_numbers_and_pictures_offline(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    wandb = pytest.importorskip("wandb")
    monkeypatch.chdir(tmp_path)
    tracked("wandb", tmp_path, mode="offline")
    wandb.teardown()  # its own process writes the file out
    assert len(list(tmp_path.rglob("media/images/*.png"))) == 4
    (log,) = tmp_path.rglob("run-*.wandb")
    assert b"train/loss" in log.read_bytes() and b"hello" in log.read_bytes()


def test_swanlab_keeps_numbers_and_pictures_offline(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    pytest.importorskip("swanlab")
    monkeypatch.chdir(tmp_path)
    tracked("swanlab", tmp_path, mode="offline")
    assert len(list(tmp_path.rglob("media/image/*.png"))) == 4
    assert "lora.rank" in next(tmp_path.rglob("config.yaml")).read_text()
