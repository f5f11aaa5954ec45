"""What a run prints where nobody watches: a log has every iteration, whole lines, and the time that is left."""

import io
from pathlib import Path

from rich.console import Console as RichConsole

from flowrl.recipe.load import load
from flowrl.runs.console import Console
from flowrl.terminal import LOG_WIDTH, output_console

NAMES = [f"reward/a_rather_long_name_{i}/mean" for i in range(4)]


def test_a_log_gets_a_whole_line_an_iteration_with_the_time_left():
    file = io.StringIO()
    metrics = {name: 0.123456 for name in NAMES} | {"time_rollout": 2.0, "time_train": 1.5}
    with Console(RichConsole(file=file, width=80)).progress(120) as progress:
        for number in (1, 2, 3):
            progress.iteration_done(number, metrics, left=(120 - number) * 3.5)
    lines = file.getvalue().strip().splitlines()
    assert [line.split("  ")[0] for line in lines] == [f"iteration {i} of 120" for i in (1, 2, 3)]
    assert all("a_rather_long_name_3 0.123" in line and line.endswith(" left)") for line in lines)
    assert "(3.5 s, about 6.8 min left)" in lines[2]


def test_a_terminal_gets_the_bar_alone():
    file = io.StringIO()
    with Console(RichConsole(file=file, force_terminal=True, width=80)).progress(5) as progress:
        progress.iteration_done(1, {NAMES[0]: 0.5}, left=3.0)
    assert "iteration 1 of 5" not in file.getvalue()


def test_a_log_is_not_cut_at_eighty_columns(monkeypatch, tmp_path: Path):
    monkeypatch.delenv("COLUMNS", raising=False)
    with (tmp_path / "log").open("w") as file:
        assert output_console(file=file).width == LOG_WIDTH
        monkeypatch.setenv("COLUMNS", "100")
        assert output_console(file=file).width == 100


def test_a_run_knows_how_long_the_rest_takes():
    from flowrl.planning.duration import seconds_left

    assert seconds_left(load("tiny_flow_grpo", ["train.iterations=80"]), 20, 30.0) == 90.0
    assert seconds_left(load("tiny_flow_grpo", ["train.iterations=80", "train.seconds=50"]), 20, 30.0) == 20.0
