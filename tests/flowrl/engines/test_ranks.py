"""Several processes that train together do what one does."""

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
import torch

from flowrl.core.ranks import shares, weighed_means
from flowrl.runs.checkpoints import Checkpoints, load
from ranks_support import BESIDE, RUNS, compare, done, end, environment, job, lines, started, weights

SHORT = ["noised", "tokens", "alone"]  # in the default tests
LONG = [name for name in RUNS if name not in BESIDE]


@pytest.fixture(scope="module")
def short(tmp_path_factory):
    """The folder of runs of one process, 1, and of two, 2; those that a failure ends are in jobs of their own."""
    folder = tmp_path_factory.mktemp("ranks")
    jobs = [job(number, folder / str(number), SHORT) for number in (1, 2)]
    jobs += [job(2, folder / "parts", ["tokens"], "parallel.kind=fsdp")]
    jobs += [job(2, folder / "2", [name]) for name in ("failing", "losing")]
    done(folder, jobs)
    return folder


@pytest.mark.parametrize("name", SHORT)
def test_two_ranks_do_what_one_process_does(name, short):
    compare(short / "1" / name, short / "2" / name)
    told = [line for line in lines(short / "2" / name) if "ranks/bytes" in line]
    assert len(told) == 2 and all(0 < line["ranks/bytes"] < 10_000 for line in told)
    even = {"noised": 4 / 3, "alone": 2.0}.get(name)  # 3 prompts and 1 prompt on two ranks
    assert even is None or all(line["ranks/balance"] == pytest.approx(even) for line in told)


def test_two_ranks_that_hold_parts_of_the_weights_do_what_one_process_does(short):
    """test_sharding.py has more of them."""
    compare(short / "1" / "tokens", short / "parts" / "tokens")
    there = Checkpoints(short / "parts" / "tokens").find("last")
    assert len(list((there.path / "shards").glob("*.safetensors"))) == 2
    final = load(there)["parameters"]  # as one process reads it
    assert final and all(
        torch.equal(value, mine) for value, mine in pairs_of(final, weights(short / "parts" / "tokens"))
    )


def pairs_of(saved, written):
    """Trained weights of a checkpoint beside those of the adapter's file, whose names are peft's."""
    by_end = {name.removeprefix("base_model.model."): value for name, value in written.items()}
    return [(value, by_end[name.removeprefix("model.").replace(".default", "")]) for name, value in saved.items()]


def test_a_failure_on_one_rank_ends_both_and_is_named(short):
    own, other = ((short / "2" / f"failing-{rank}.txt").read_text() for rank in (1, 0))
    assert own.startswith("RewardError") and "asked the process to end" in own
    assert other.startswith("RankError: rank 1: RewardError") and len(other.splitlines()) == 1
    told = [line for line in (short / "log.txt").read_text().splitlines() if "asked the process to end" in line]
    assert len(told) == 1 and told[0].startswith("flowrl: rank 1: ")  # the user is told once
    assert (short / "2" / "failing" / "checkpoints" / "00000").is_dir()  # nothing of the iterations before is lost


def test_failure_limits_are_judged_on_the_samples_of_all_ranks(short):
    """Rank 1 loses all of its samples, a third of an iteration's: too many are lost in the second, on both alike."""
    told = [(short / "2" / f"losing-{rank}.txt").read_text() for rank in (0, 1)]
    assert told[0] == told[1] and "8 of the latest 30 samples" in told[0] and "no answer from the server" in told[0]
    assert (short / "log.txt").read_text().count("8 of the latest 30 samples") == 1
    assert len([line for line in lines(short / "2" / "losing") if "ranks/bytes" in line]) == 1


def test_equal_prompts_stay_on_one_rank_and_in_order():
    assert shares(["a", "b", "a", "c", "b"], 2) == [[0, 2, 3], [1, 4]]
    assert shares(["a", "b"], 3) == [[0], [1], []]
    assert shares(["a"], 1) == [[0]]


def test_prompts_that_are_compared_stay_on_one_rank():
    assert shares(["a", "b", "c", "d", "e", "f"], 2, 2) == [[0, 1, 4, 5], [2, 3]]
    assert shares(["a", "b", "c", "d", "a", "e"], 2, 2) == [[0, 1, 4, 5], [2, 3]]
    assert shares(["a", "b", "c", "d", "d", "e", "f", "a"], 3, 2) == [[0, 1, 6, 7], [2, 3, 4, 5], []]


def test_means_of_ranks_weigh_by_what_they_are_of():
    assert weighed_means([({"a": 1.0, "b": 5.0}, 3), ({"a": 4.0}, 1), ({}, 0)]) == {"a": 1.75, "b": 5.0}


# ---------------------------------------------------------------------- run by hand


@pytest.fixture(scope="module")
def long(tmp_path_factory):
    """Ten iterations of every run over one, two and three ranks, in one launch."""
    folder = tmp_path_factory.mktemp("ranks")
    more = ["train.iterations=10"]
    jobs = [job(number, folder / str(number), [name], *more) for number in (1, 2, 3) for name in LONG]
    done(folder, jobs, 7000)
    return folder


@pytest.mark.dist
@pytest.mark.parametrize("number", [2, 3])
@pytest.mark.parametrize("name", LONG)
def test_any_run_is_that_of_one_process(name, number, long):
    compare(long / "1" / name, long / str(number) / name, within=1e-4)  # ten iterations of Adam divide roundings


@pytest.mark.dist
def test_bookkeeping_of_the_quickstart_is_small(tmp_path):
    """At most 5 % of the CPU time of iterations, and of what the pixels weigh 1 % is told."""
    done(tmp_path, [job(2, tmp_path, ["quickstart"], "train.iterations=3", measure=True)])
    spent = [json.loads((tmp_path / f"measured-{rank}.json").read_text()) for rank in (0, 1)]
    share = sum(one["ranks"] for one in spent) / sum(one["iterations"] for one in spent)
    told = [line["ranks/bytes"] / (16 * 12 * 3 * 32 * 32 * 4) for line in lines(tmp_path / "quickstart")]
    print(f"CPU {share:.4f}, bytes of pixels {max(told):.4f}, {spent}")
    assert share < 0.05 and max(told) < 0.01


@pytest.mark.dist
@pytest.mark.parametrize("kind", ["replicate", "fsdp"])
def test_a_rank_that_hangs_ends_the_run_and_does_not_outlive_it(kind, tmp_path):
    process = started(tmp_path, [job(2, tmp_path, ["hanging"], f"parallel.kind={kind}", "checkpoint.every=1")])
    try:
        assert process.wait(150) == 1  # of the 600 s that its reward takes; one rank has been killed
        told = (tmp_path / "hanging-0.txt").read_text()
        assert told.startswith("RankError: rank 1 hangs") and "parallel.wait" in told
        assert not (tmp_path / "hanging-1.txt").exists()
        assert (tmp_path / "log.txt").read_text().count("rank 1 hangs") == 1
        assert (tmp_path / "hanging" / "checkpoints" / "00000").is_dir()
    finally:
        end(process)


@pytest.mark.dist
@pytest.mark.parametrize("kind", ["replicate", "fsdp"])
def test_an_error_in_the_middle_of_a_model_ends_all_and_is_told_once(kind, tmp_path):
    """Ranks that hold parts wait for that block meanwhile, where they cannot hear of anything."""
    done(tmp_path, [job(2, tmp_path, ["breaking"], f"parallel.kind={kind}")], 150)
    told = [line for line in (tmp_path / "log.txt").read_text().splitlines() if line.startswith("flowrl:")]
    assert len(told) == 1 and told[0].startswith("flowrl: rank 1: ArithmeticError: a block is broken")
    assert (tmp_path / "breaking-1.txt").read_text() == "ArithmeticError: a block is broken"
    assert (tmp_path / "breaking-0.txt").exists()


SIX = ["train.iterations=6", "checkpoint.every=1", "output=run", "threads=1", "--ranks", "2"]
COMMAND = [sys.executable, "-m", "flowrl", "run", RUNS["tokens"][0], *RUNS["tokens"][1], *SIX]


def begun(folder: Path, *more: str) -> subprocess.Popen:
    """A run over two ranks, as a user starts it; what it tells of failures goes to folder/told.txt."""
    folder.mkdir(exist_ok=True)
    with (folder / "told.txt").open("a") as told:
        how = {"env": environment(), "stdout": subprocess.DEVNULL, "stderr": told, "start_new_session": True}
        return subprocess.Popen([*COMMAND, *more], cwd=folder, **how)


@pytest.fixture(scope="module")
def undisturbed(tmp_path_factory):
    """The run that no one kills."""
    folder = tmp_path_factory.mktemp("whole")
    process = begun(folder)
    try:
        assert process.wait(600) == 0
    finally:
        end(process)
    return folder / "run"


@pytest.mark.dist
@pytest.mark.parametrize("moment", [1, 4])
def test_a_killed_rank_costs_nothing_but_the_time_since_the_checkpoint(moment, undisturbed, tmp_path):
    """By the command line, as a user starts it; test_ended_ranks.py has more moments."""
    process = begun(tmp_path)
    try:
        metrics, until = tmp_path / "run" / "metrics.jsonl", time.monotonic() + 200
        while not metrics.exists() or len(metrics.read_text().splitlines()) <= moment:
            time.sleep(0.05)
            assert process.poll() is None and time.monotonic() < until, (tmp_path / "told.txt").read_text()
        children = subprocess.run(["pgrep", "-P", str(process.pid)], capture_output=True, text=True, check=False).stdout
        os.kill(int(children.split()[moment % 2]), signal.SIGKILL)
        assert process.wait(120) == 128 + signal.SIGKILL
    finally:
        end(process)
    told = [line for line in (tmp_path / "told.txt").read_text().splitlines() if line.startswith("flowrl: ")]
    assert len(told) == 1 and told[0].startswith(
        f"flowrl: rank {moment % 2} was killed by SIGKILL, and the run with it"
    )
    process = begun(tmp_path, "--resume")
    try:
        assert process.wait(600) == 0
    finally:
        end(process)
    resumed, whole = lines(tmp_path / "run"), lines(undisturbed)
    timeless = [
        [{k: v for k, v in line.items() if not k.startswith(("time_", "ranks/"))} for line in of]
        for of in (resumed, whole)
    ]
    assert timeless[0] == timeless[1]
    final = [weights(folder) for folder in (tmp_path / "run", undisturbed)]
    assert all(torch.equal(value, final[1][name]) for name, value in final[0].items())


@pytest.mark.dist
def test_ctrl_c_waits_for_the_iteration_however_long_it_takes(tmp_path):
    process = begun(tmp_path, "rewards.own={use: ranks_support.slow, time_limit: 60}", "checkpoint.every=null")
    try:
        metrics, until = tmp_path / "run" / "metrics.jsonl", time.monotonic() + 200
        while not (metrics.exists() and metrics.read_text()):
            time.sleep(0.05)  # the evaluation before training
            assert process.poll() is None and time.monotonic() < until, (tmp_path / "told.txt").read_text()
        time.sleep(2)
        process.send_signal(signal.SIGINT)
        assert process.wait(120) == 128 + signal.SIGINT
    finally:
        end(process)
    assert [line["iteration"] for line in lines(tmp_path / "run")] == [0, 1]
    assert (tmp_path / "run" / "checkpoints" / "00001").is_dir()
    assert (tmp_path / "told.txt").read_text().count("stopped by SIGINT") == 1
