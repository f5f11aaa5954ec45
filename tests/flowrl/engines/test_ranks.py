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
from safetensors.torch import load_file

from flowrl.core.ranks import shares
from flowrl.runs.start import run
from ranks_support import RUNS, recipe_of

ROOT = Path(__file__).resolve().parents[3]
WITHIN = 2e-6  # of metrics that are no log-ratio: float32 sums in another order
RATIOS = ("ratio", "replay_gap", "kl", "clip")  # what is rounding while the policy still is the one that sampled
APART = {"WORLD_SIZE", "RANK", "LOCAL_RANK", "MASTER_ADDR", "MASTER_PORT"}


def started(folder: Path, number: int, names: list[str], **more: str) -> subprocess.Popen:
    """The processes of so many ranks, which begin with a fresh environment."""
    environment = {name: value for name, value in os.environ.items() if name not in APART}
    paths = [str(ROOT), str(ROOT / "tests")]
    environment |= {"PYTHONPATH": os.pathsep.join(paths), "OMP_NUM_THREADS": "1"} | more
    launcher = ["-m", "torch.distributed.run", "--standalone", "--local-addr=127.0.0.1", f"--nproc-per-node={number}"]
    command = [sys.executable, *launcher, "-m", "ranks_support", str(folder), *names]
    with (folder / "log.txt").open("w") as log:
        return subprocess.Popen(command, stdout=log, stderr=subprocess.STDOUT, env=environment, cwd=folder)


def lines(folder: Path) -> list[dict[str, float]]:
    return [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]


def compare(one: Path, several: Path) -> None:
    """Asserts that a run over ranks is that of one process."""
    alone, together = lines(one), lines(several)
    assert len(alone) == len(together) > 1
    for before, after in zip(alone, together, strict=True):
        assert before.keys() == after.keys()
        for name in before.keys() - {key for key in before if key.startswith("time_")}:
            if name.startswith(("reward/", "heldout")) or not isinstance(before[name], float):
                assert before[name] == after[name], name
            else:
                within = 1e-4 if any(word in name for word in RATIOS) else WITHIN
                assert after[name] == pytest.approx(before[name], abs=within, rel=1e-5), name
    first = [json.loads((folder / "heldout" / "00000.json").read_text()) for folder in (one, several)]
    assert first[0] == first[1]
    for picture in (one / "heldout" / "00000").glob("*.png"):
        assert picture.read_bytes() == (several / "heldout" / "00000" / picture.name).read_bytes()
    weights = [load_file(next((folder / "lora").glob("*.safetensors"))) for folder in (one, several)]
    alike = [torch.cat([weights[i][name].flatten() for name in sorted(weights[0])]) for i in (0, 1)]
    assert (alike[0] - alike[1]).norm() / alike[0].norm() < 1e-4


@pytest.fixture(scope="module")
def pair(tmp_path_factory):
    """The folder of runs over two ranks, all in one launch, which the last of them ends with a failure."""
    folder = tmp_path_factory.mktemp("ranks")
    ended = started(folder, 2, ["noised", "tokens", "alone", "failing"]).wait(300)
    assert ended == 0 and not list(folder.glob("noised-*.txt")), (folder / "log.txt").read_text()
    return folder


@pytest.mark.parametrize("name", ["noised", "tokens", "alone"])
def test_two_ranks_do_what_one_process_does(name, pair, tmp_path):
    run(recipe_of(name, tmp_path))
    compare(tmp_path / name, pair / name)


def test_a_failure_on_one_rank_ends_both_and_is_named(pair):
    own, other = ((pair / f"failing-{rank}.txt").read_text() for rank in (1, 0))
    assert own.startswith("RewardError") and "asked the process to end" in own
    assert other.startswith("RankError: rank 1: RewardError") and len(other.splitlines()) == 1
    assert (pair / "failing" / "checkpoints" / "00000").is_dir()  # nothing of the iterations before is lost


def test_equal_prompts_stay_on_one_rank_and_in_order():
    assert shares(["a", "b", "a", "c", "b"], 2) == [[0, 2, 3], [1, 4]]
    assert shares(["a", "b"], 3) == [[0], [1], []]
    assert shares(["a"], 1) == [[0]]


@pytest.mark.dist
@pytest.mark.parametrize("number", [2, 3])
@pytest.mark.parametrize("name", [name for name in RUNS if name not in ("failing", "hanging")])
def test_any_run_is_that_of_one_process(name, number, tmp_path):
    (tmp_path / "one").mkdir()
    run(recipe_of(name, tmp_path / "one"))
    assert started(tmp_path, number, [name]).wait(600) == 0, (tmp_path / "log.txt").read_text()
    compare(tmp_path / "one" / name, tmp_path / name)


@pytest.mark.dist
def test_a_rank_that_hangs_ends_the_run(tmp_path):
    process = started(tmp_path, 2, ["hanging"])
    until = time.monotonic() + 120
    while not (told := tmp_path / "hanging-0.txt").exists() and time.monotonic() < until:
        time.sleep(0.2)
    process.send_signal(signal.SIGTERM)
    process.wait(60)
    assert "RankError" in told.read_text() and "parallel.wait" in told.read_text()
    assert (tmp_path / "hanging" / "checkpoints" / "00000").is_dir()


@pytest.mark.dist
@pytest.mark.parametrize("moment", range(6))
def test_a_killed_rank_costs_nothing_but_the_time_since_the_checkpoint(moment, tmp_path):
    more = ["train.iterations=6", "checkpoint.every=1", "output=run"]
    recipe, overrides = RUNS["tokens"]
    command = [sys.executable, "-m", "flowrl", "run", recipe, *overrides, *more, "threads=1", "--ranks", "2"]
    environment = {name: value for name, value in os.environ.items() if name not in APART}
    environment |= {"PYTHONPATH": os.pathsep.join([str(ROOT), str(ROOT / "tests")]), "OMP_NUM_THREADS": "1"}
    how = {"env": environment, "stdout": subprocess.DEVNULL, "stderr": subprocess.DEVNULL}
    (tmp_path / "whole").mkdir()
    subprocess.run(command, cwd=tmp_path / "whole", check=True, **how)
    process = subprocess.Popen(command, cwd=tmp_path, **how)
    metrics, until = tmp_path / "run" / "metrics.jsonl", time.monotonic() + 200
    while (not metrics.exists() or len(metrics.read_text().splitlines()) <= moment) and time.monotonic() < until:
        time.sleep(0.05)
    children = subprocess.run(["pgrep", "-P", str(process.pid)], capture_output=True, text=True, check=False).stdout
    os.kill(int(children.split()[moment % 2]), signal.SIGKILL)
    assert process.wait(120) != 0
    subprocess.run([*command, "--resume"], cwd=tmp_path, check=True, **how)
    resumed, whole = lines(tmp_path / "run"), lines(tmp_path / "whole" / "run")
    timeless = [
        [{k: v for k, v in line.items() if not k.startswith("time_")} for line in of] for of in (resumed, whole)
    ]
    assert timeless[0] == timeless[1]
    weights = [load_file(next((f / "run" / "lora").glob("*.safetensors"))) for f in (tmp_path, tmp_path / "whole")]
    assert all(torch.equal(value, weights[1][name]) for name, value in weights[0].items())
