"""Ranks that are killed, stopped, or resumed with another number of them: the run is the one that nothing disturbed.

Run by hand (`pytest -m dist tests/flowrl/engines/test_ended_ranks.py`): minutes.
"""

import json
import random
import shutil
import signal

import pytest
import torch

from ranks_support import PHASES, distance, done, job, lines, weights
from resume_support import assert_same_run

pytestmark = pytest.mark.dist
BLOWS = 30
KILLED = ("train.iterations=24", "train.prompts=3", "train.refill=0", "checkpoint.every=1", "eval.every=1")
KILLED += ("rewards.own={use: ranks_support.noisy, weight: 0.1}",)


def blows(seed: int) -> list[dict[str, object]]:
    """Thirty moments in random order, each phase as often as the others, on either rank."""
    draw = random.Random(seed)
    phases = [name for name in PHASES for _ in range(-(-BLOWS // len(PHASES)))]
    draw.shuffle(phases)
    return [
        {
            "signal": int(signal.SIGKILL),
            "rank": draw.randrange(2),
            "phase": phase,
            "entry": draw.randint(1, 2),
            "delay": draw.random() * {"rollout": 0.05, "update": 0.05, "checkpoint": 0.005, "evaluation": 0.05}[phase],
        }
        for phase in phases[:BLOWS]
    ]


def test_thirty_kills_of_a_rank_at_random_moments_change_nothing(tmp_path):
    whole, cut = tmp_path / "whole", tmp_path / "cut"
    jobs = [job(2, whole, ["tokens"], *KILLED)]
    jobs += [job(2, cut, ["tokens"], *KILLED, resume=True, blow=blow) for blow in blows(0)]
    jobs += [job(2, cut, ["tokens"], *KILLED, resume=True)]
    done(tmp_path, jobs, 6000)
    struck = [json.loads(line) for line in (cut / "blows.txt").read_text().splitlines()]
    assert len(struck) == BLOWS
    assert_same_run(cut / "tokens", whole / "tokens")


PARTS = ("parallel.kind=fsdp", "train.iterations=3", "checkpoint.every=1", "train.prompts=4")
PARTS += ("eval.at_start=false", "eval.at_end=false", "eval.every=null")


def test_a_killed_rank_that_holds_parts_costs_nothing_but_time(tmp_path):
    """In a rollout, an update and a checkpoint; a critic's parts are read again too."""
    whole, jobs = tmp_path / "whole", []
    jobs.append(job(2, whole, ["critic"], *PARTS))
    phases = ("rollout", "update", "checkpoint")
    for rank, phase in zip((1, 0, 1), phases, strict=True):
        cut = tmp_path / phase
        blow = {"signal": int(signal.SIGKILL), "rank": rank, "phase": phase, "entry": 2, "delay": 0.002}
        jobs += [job(2, cut, ["critic"], *PARTS, blow=blow), job(2, cut, ["critic"], *PARTS, resume=True)]
    done(tmp_path, jobs)
    for phase in phases:
        assert len((tmp_path / phase / "blows.txt").read_text().splitlines()) == 1
        assert_same_run(tmp_path / phase / "critic", whole / "critic")


IN_THIRD = {"signal": int(signal.SIGKILL), "rank": 1, "phase": "rollout", "entry": 3, "delay": 0.01}


def test_completions_that_wait_go_on_behind_a_kill_and_with_another_number_of_ranks(tmp_path):
    whole, cut, same = tmp_path / "2", tmp_path / "cut", ["train.schedule=constant", "eval.at_end=false"]
    short, long = ["train.iterations=2", *same], ["train.iterations=4", *same]
    jobs = [job(2, whole, ["partial"], *short), job(2, cut, ["partial"], *long, blow=IN_THIRD)]
    done(tmp_path, jobs)
    for number in (1, 3):
        shutil.copytree(whole, tmp_path / str(number))
    jobs = [job(number, tmp_path / str(number), ["partial"], *long, resume=True) for number in (1, 2, 3)]
    done(tmp_path, [*jobs, job(2, cut, ["partial"], *long, resume=True)])
    assert len((cut / "blows.txt").read_text().splitlines()) == 1
    assert_same_run(cut / "partial", whole / "partial")
    assert max(line.get("partial/waiting", 0) for line in lines(whole / "partial")) > 2
    for number in (1, 3):
        before, after = lines(whole / "partial"), lines(tmp_path / str(number) / "partial")
        names = [name for name in before[-1] if name.startswith(("partial/", "reward/"))]
        assert all(
            a[n] == pytest.approx(b[n], abs=1e-6) for a, b in zip(before, after, strict=True) for n in a if n in names
        )
        relative, largest = distance(weights(whole / "partial"), weights(tmp_path / str(number) / "partial"))
        assert relative < 1e-5, (number, relative, largest)


@pytest.mark.parametrize("number", [int(signal.SIGINT), int(signal.SIGTERM)])
def test_a_signal_to_one_rank_ends_all_with_everything_saved(number, tmp_path):
    whole, cut = tmp_path / "whole", tmp_path / "cut"
    more = ["train.iterations=4", "checkpoint.every=null"]
    blow = {"signal": number, "rank": 1, "phase": "rollout", "entry": 2, "delay": 0.0}
    jobs = [job(2, whole, ["tokens"], *more), job(2, cut, ["tokens"], *more, blow=blow)]
    jobs += [job(2, cut, ["tokens"], *more, resume=True)]
    done(tmp_path, jobs)
    for rank in (0, 1):
        assert (cut / f"tokens-{rank}.txt").read_text() == f"Stopped: {signal.Signals(number).name}"
    assert_same_run(cut / "tokens", whole / "tokens")


@pytest.fixture(scope="module")
def saved(tmp_path_factory):
    """Runs of one and of two ranks, saved after two iterations, which other numbers of ranks end."""
    folder = tmp_path_factory.mktemp("resumed")
    short, more = ["train.schedule=constant", "train.iterations=2"], ["train.schedule=constant", "train.iterations=3"]
    jobs = [job(number, folder / f"{number}", ["steps", "tokens"], *short) for number in (1, 2)]
    done(folder, jobs)
    jobs = []
    for before, after in ((1, 1), (2, 2), (2, 1), (1, 2), (2, 3)):
        shutil.copytree(folder / f"{before}", folder / f"{before}-{after}")
        jobs.append(job(after, folder / f"{before}-{after}", ["steps", "tokens"], *more, resume=True))
    done(folder, jobs)
    return folder


@pytest.mark.parametrize("name", ["steps", "tokens"])
@pytest.mark.parametrize(("before", "after"), [(2, 1), (1, 2), (2, 3)])
def test_another_number_of_ranks_goes_on_from_the_same_weights(before, after, name, saved):
    """An iteration later weights differ by rounding alone, as metrics do."""
    same, other = saved / f"{before}-{before}" / name, saved / f"{before}-{after}" / name
    assert all(torch.equal(value, weights(same)[key]) for key, value in weights(same).items())
    relative, largest = distance(weights(same), weights(other))
    print(before, after, name, relative, largest)
    assert relative < 2e-6
    kept = [[line["kind"] for line in lines(folder)] for folder in (same, other)]
    assert kept[0] == kept[1]
