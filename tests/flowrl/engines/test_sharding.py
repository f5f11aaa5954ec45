"""Ranks that hold parts of the weights do what one process does. Several launches of minutes: run by hand."""

import shutil

import pytest
from safetensors.torch import load_file

from ranks_support import compare, distance, done, job, lines, weights

pytestmark = pytest.mark.dist
PARTS = "parallel.kind=fsdp"
RUNS = ["noised", "steps", "tokens", "tree", "critic", "copy", "teacher", "debate"]
FOLLOWS = 1e-5  # of metrics: how far samples have moved away from the first ones follows the weights
SHARDED = ["noised", "tokens", "critic", "copy"]
LONGER = "train.iterations=3"


@pytest.fixture(scope="module")
def runs(tmp_path_factory):
    """Runs of one process, and of two ranks with parts: gathered before sampling, and block by block."""
    folder = tmp_path_factory.mktemp("parts")
    jobs = [job(1, folder / "1", RUNS, LONGER), job(2, folder / "whole", RUNS, LONGER, PARTS)]
    jobs += [job(2, folder / "sharded", SHARDED, LONGER, PARTS, "parallel.sampling=sharded")]
    jobs += [job(2, folder / "kept", ["steps"], LONGER, PARTS, "parallel.reshard=false")]
    done(folder, jobs)
    return folder


@pytest.mark.parametrize("name", RUNS)
def test_gathered_before_sampling(name, runs):
    compare(runs / "1" / name, runs / "whole" / name, FOLLOWS)


@pytest.mark.parametrize("name", SHARDED)
def test_block_by_block(name, runs):
    compare(runs / "1" / name, runs / "sharded" / name, FOLLOWS)


def test_parted_behind_the_backward(runs):
    compare(runs / "1" / "steps", runs / "kept" / "steps", FOLLOWS)


@pytest.mark.parametrize("name", ["steps", "tokens"])
def test_all_weights_learn(name, tmp_path):
    """A reference and an average are copies in parts then."""
    more = ["lora=null", "full=true", "objective.kl=0.04", "train.ema=0.9", "train.lr=1e-5"]
    done(tmp_path, [job(1, tmp_path / "1", [name], *more), job(2, tmp_path / "2", [name], PARTS, *more)])
    alone, parted = tmp_path / "1" / name, tmp_path / "2" / name
    for before, after in zip(lines(alone), lines(parted), strict=True):
        numbers = [key for key in before if isinstance(before[key], float) and not key.startswith("time_")]
        assert all(after[key] == pytest.approx(before[key], abs=1e-5, rel=1e-5) for key in numbers)
    l2, largest = distance(model_of(alone), model_of(parted))
    assert l2 < 1e-4, (l2, largest)


def model_of(folder):
    """All weights that a run wrote; also the names tell of those that two layers share."""
    files = sorted((folder / "model").rglob("*.safetensors"))
    return {name: value for file in files for name, value in load_file(file).items()}


@pytest.mark.parametrize(
    ("before", "after"),
    [
        ((2, PARTS), (2, "parallel.kind=replicate")),
        ((2, "parallel.kind=replicate"), (2, PARTS)),
        ((2, PARTS), (1, PARTS)),
    ],
)
def test_a_run_goes_on_in_another_way(before, after, tmp_path):
    """Its weights are those of a run that went on as it began, to rounding."""
    (number, how), (other, way) = before, after
    done(tmp_path, [job(number, tmp_path / "a", ["noised"], how, "train.iterations=1", "checkpoint.every=1")])
    shutil.copytree(tmp_path / "a", tmp_path / "b")
    jobs = [
        job(number, tmp_path / "a", ["noised"], how, resume=True),
        job(other, tmp_path / "b", ["noised"], way, resume=True),
    ]
    done(tmp_path, jobs)
    l2, largest = distance(weights(tmp_path / "a" / "noised"), weights(tmp_path / "b" / "noised"))
    assert l2 < 1e-4, (l2, largest)
