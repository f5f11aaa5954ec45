"""Time and memory of a recipe on the command line, and the arithmetic of time."""

import json
from pathlib import Path
from typing import Any

import pytest

from cli_support import call
from flowrl.names import UserError
from flowrl.planning.costs import arithmetic
from flowrl.planning.duration import Pace, assumed_pace, count_evaluations, duration, measured_pace
from flowrl.recipe.load import dump, load
from flowrl.terminal import duration_text

BASE = str(Path(__file__).parents[2] / "recipes" / "quickstart.yaml")


def command(capsys, monkeypatch, *arguments: str) -> tuple[int, str, str]:
    return call(capsys, monkeypatch, "run", *arguments)


def test_seconds_are_those_of_all_forwards():
    recipe = load(BASE, ["sampler.window={kind: all}", "objective.kl=0.1", "train.epochs=2", "eval.steps=5"])
    each = arithmetic(recipe)
    time = duration(recipe, Pace(forward=0.5, training=2.0, scoring=0.25), num_heldout=10)
    assert time.rollout == pytest.approx(60 * each.rollout_forwards * 0.5)
    assert time.training == pytest.approx(60 * (each.train_forwards * 2.0 + each.reference_forwards * 0.5))
    assert time.scoring == 60 * 192 * 0.25
    assert time.evaluation == 4 * 10 * (5 * 0.5 + 0.25)  # at the start, after 20 and 40 iterations, at the end
    assert time.total == pytest.approx(time.rollout + time.training + time.scoring + time.evaluation)


def test_long_runs_are_counted_from_a_thousand_iterations():
    window = "sampler.window={kind: random_window, size: 2, low: 0, high: 4}"
    short, long = (load(BASE, [window, f"train.iterations={n}"]) for n in (1000, 3000))
    pace = Pace(1.0, 1.0)
    assert duration(long, pace, 0).rollout == pytest.approx(3 * duration(short, pace, 0).rollout)


@pytest.mark.parametrize(
    ("changed", "number"),
    [
        ({"every": None}, 2),
        ({"every": None, "at_start": False, "at_end": False}, 0),
        ({"every": 60}, 2),
        ({"every": 59}, 3),
        ({"every": 1, "at_start": False}, 60),
    ],
)
def test_evaluations_are_counted(changed: dict[str, Any], number: int):
    recipe = load(BASE)
    assert count_evaluations(recipe.model_copy(update={"eval": recipe.eval.model_copy(update=changed)})) == number
    assert count_evaluations(load(BASE, ["prompts.heldout=null"])) == 0


def test_the_pace_of_a_run_is_what_its_recipe_took(tmp_path: Path):
    recipe = load(BASE, ["sampler.window={kind: all}", "objective.kl=0.1", f"output={tmp_path}"])
    each = arithmetic(recipe)
    times = {
        "time_rollout": 0.01 * each.rollout_forwards,
        "time_train": 0.03 * each.train_forwards * 0.5 + 0.01 * each.reference_forwards,
        "time_score": 192 * 0.002,
        "active_rows": 0.5,
    }
    lines = [{"iteration": 1, "kind": "train", **{name: 99.0 for name in times}}]
    lines += [{"iteration": i, "kind": "train", **times} for i in (2, 3)]
    lines += [{"iteration": 3, "kind": "heldout", "time_eval": 5.0}]
    (tmp_path / "recipe.yaml").write_text(dump(recipe))
    (tmp_path / "metrics.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
    pace = measured_pace(tmp_path)
    assert (pace.forward, pace.training, pace.scoring) == pytest.approx((0.01, 0.03, 0.002))


def test_an_assumed_pace_counts_the_backward():
    assert assumed_pace(load(BASE), 2.0) == Pace(2.0, 4.0)
    assert assumed_pace(load(BASE, ["lora=null", "full=true"]), 2.0) == Pace(2.0, 6.0)
    assert assumed_pace(load(BASE, ["train.gradient_checkpointing=true"]), 2.0) == Pace(2.0, 6.0)


def test_a_folder_without_iterations_is_one_line(tmp_path: Path):
    with pytest.raises(UserError, match="--time-from: .* is not a run's folder"):
        measured_pace(tmp_path)
    (tmp_path / "recipe.yaml").write_text(dump(load(BASE)))
    (tmp_path / "metrics.jsonl").write_text('{"iteration": 0, "kind": "heldout"}\n')
    with pytest.raises(UserError, match="no iteration yet"):
        measured_pace(tmp_path)


def test_seconds_as_a_person_says_them():
    assert [duration_text(s) for s in (3.4, 99.0, 150.0, 5000.0, 5500.0, 36000.0, 200000.0)] == [
        "3 s",
        "99 s",
        "2.5 min",
        "83 min",
        "1.5 h",
        "10 h",
        "2.3 days",
    ]


def test_the_dry_run_tells_parameters_memory_and_time(capsys, monkeypatch):
    code, out, err = command(capsys, monkeypatch, BASE, "--dry-run", "--seconds-per-forward", "0.001")
    assert code == 0, err
    assert "parameters  90,112 trained; 2.21 M in total" in out and "transformer 1.80 M" in out
    rows = {line.split()[0]: line.split()[1:] for line in out.splitlines() if line.startswith(" " * 12)}
    assert rows["rollout"][:2] == ["8.8", "MiB"] and rows["training"][:2] == ["8.8", "MiB"]
    total = duration(load(BASE), Pace(0.001, 0.002), 320).total
    assert f"time        about {duration_text(total)}" in out


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["--seconds-per-forward", "1"], "--dry-run"),
        (["--dry-run", "--seconds-per-forward", "0"], "accepted: a number > 0"),
        (["--dry-run", "--seconds-per-forward", "1", "--time-from", "nowhere"], "give one"),
        (["--dry-run", "--time-from", "nowhere"], "nowhere is not a run's folder"),
    ],
)
def test_a_wrong_option_is_one_line(arguments: list[str], words: str, capsys, monkeypatch):
    code, _, err = command(capsys, monkeypatch, BASE, *arguments)
    assert code == 2 and words in err and len(err.strip().splitlines()) == 1
