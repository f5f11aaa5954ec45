"""Kept scores belong to the code, weights and pictures that they were computed from; what was refused is not kept."""

import importlib
import os
import sqlite3
import sys
import warnings

import pytest
import torch

from flowrl.contracts import Prompt, Samples
from flowrl.recipe.keys.rewards import RewardSpec
from flowrl.scoring import code as score_code
from flowrl.scoring.cache import ScoreCache
from flowrl.scoring.scorer import RewardError, Scorer, load
from reward_models.jpeg import jpeg_compressibility
from reward_models.shapes import shapes_strict
from scoring_support import runner


def samples(n=3):
    images = torch.linspace(0, 1, n).view(n, 1, 1, 1).expand(n, 3, 4, 4).clone()
    return Samples([Prompt(str(i), str(i)) for i in range(n)], torch.arange(n), images=images)


@pytest.fixture
def written(tmp_path, monkeypatch):
    """Writes user's modules; a reward named there is loaded anew, with a cache in a file."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.syspath_prepend(str(tmp_path))
    monkeypatch.setattr(sys, "dont_write_bytecode", True)

    def write(**sources):
        for name, source in sources.items():
            (tmp_path / f"{name}.py").write_text(source)
        for name in ("user_reward", "user_helper"):
            sys.modules.pop(name, None)
        importlib.invalidate_caches()

    def score(**args):
        spec = RewardSpec(use="user_reward.mine", cache="scores.db", args=args)
        return Scorer(load({"x": spec}))(samples())["x"]

    yield write, score
    write()


FUNCTION = """
import torch
{top}
def mine(samples, *, weights=None, files=()):
    {late}
    return torch.full((len(samples),), {value})
"""
CLASS = """
import torch
class mine:
    def __call__(self, samples):
        return torch.full((len(samples),), {value})
"""


@pytest.mark.parametrize("source", [FUNCTION, CLASS], ids=["function", "class"])
def test_a_reward_whose_code_is_changed_is_asked_again(written, source):
    write, score = written
    for value in (1.0, 2.0):
        write(user_reward=source.format(top="", late="", value=value))
        assert score().tolist() == 3 * [value]


@pytest.mark.parametrize("how", ["top", "late"])
def test_so_is_one_whose_helper_is_changed(written, how):
    write, score = written
    lines = {"top": "", "late": ""} | {how: "from user_helper import VALUE"}
    write(user_reward=FUNCTION.format(**lines, value="VALUE"))
    for value in (1.0, 2.0):
        write(user_helper=f"VALUE = {value}")
        assert score().tolist() == 3 * [value]


def test_so_is_one_whose_files_have_other_content(written, tmp_path):
    write, score = written
    (tmp_path / "deep" / "er").mkdir(parents=True)
    place = tmp_path / "deep" / "er" / "weights"
    write(user_reward=FUNCTION.format(top="", late="", value="float(open('deep/er/weights').read())"))
    for args in ({"files": [{"at": "deep"}]}, {"weights": "deep"}, {"files": ["deep/er/weights", "x" * 5000]}):
        for value in (1.0, 2.0):
            place.write_text(str(value))

            os.utime(place, (0, 0))  # the same size and time of change
            assert score(**args).tolist() == 3 * [value]


def test_the_same_code_finds_its_scores_again(written):
    write, score = written
    noted = "open('calls', 'a').write('.')"
    write(user_reward=FUNCTION.format(top="", late=noted, value="1.0"))
    for _ in range(2):
        assert score().tolist() == 3 * [1.0]
        write()
    assert open("calls").read() == "."


def test_what_was_refused_or_came_late_is_not_kept(tmp_path):
    values = [
        torch.tensor([1.0, torch.inf, 2.0]),
        torch.tensor([3.0, 1e300, 2.0], dtype=torch.float64),
        torch.tensor([4.0, 5.0, 6.0, 7.0]),
        torch.tensor([8.0, torch.nan, 9.0]),
        torch.tensor([0.1, 0.2, 0.3]),
    ]
    left = list(values)
    cache = ScoreCache("x", {}, tmp_path / "scores.db")
    scorer = Scorer({"x": runner(lambda s: left.pop(0)[: len(s) + 1], cache=cache, required=False)})
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        for _ in range(3):
            assert scorer(samples())["x"].isnan().all()
    kept = sqlite3.connect(tmp_path / "scores.db")
    assert kept.execute("SELECT count(*) FROM scores").fetchone() == (0,)
    assert scorer(samples())["x"].nan_to_num(-1).tolist() == [8.0, -1.0, 9.0]
    left[0] = left[0][:1]
    torch.testing.assert_close(scorer(samples())["x"], torch.tensor([8.0, 0.1, 9.0]))
    assert kept.execute("SELECT count(*) FROM scores").fetchone() == (3,)


def test_a_damaged_score_in_a_file_is_asked_for_again(tmp_path):
    def scorer():
        cache = ScoreCache("x", {}, tmp_path / "scores.db")
        return Scorer({"x": runner(lambda s: torch.ones(len(s)), cache=cache)})

    scorer()(samples())
    for damaged in (b"", b"12345", b"\0\0\x80\x7f", "text", 7):  # the third is infinite
        with sqlite3.connect(tmp_path / "scores.db") as file:
            file.execute("UPDATE scores SET score = ?", (damaged,))
        assert scorer()(samples())["x"].tolist() == [1.0, 1.0, 1.0]


def test_code_that_cannot_be_read_takes_no_cache():
    assert score_code.digest(len) is None
    spec = RewardSpec(use="jpeg_compressibility", cache=True)
    assert isinstance(load({"x": spec})["x"].cache, ScoreCache)
    assert len({score_code.digest(thing) for thing in (jpeg_compressibility, shapes_strict)}) == 2


def test_a_reward_without_source_is_refused(monkeypatch):
    monkeypatch.setattr(score_code, "digest", lambda _: None)
    with pytest.raises(RewardError, match="no source that can be read: remove rewards.x.cache"):
        load({"x": RewardSpec(use="jpeg_compressibility", cache=True)})


@pytest.mark.parametrize("when", ["read", "write"])
def test_a_file_that_fails_during_a_run_is_told_once_and_the_run_goes_on(when, tmp_path):
    cache, asked = ScoreCache("mine", {}, tmp_path / "scores.db"), []

    def score(some):
        asked.append(len(some))
        return torch.ones(len(some))

    cache.keep(cache(score, samples()))
    other = sqlite3.connect(tmp_path / "scores.db")
    if when == "read":
        other.execute("DROP TABLE scores")
    else:
        other.execute("CREATE TRIGGER full BEFORE INSERT ON scores BEGIN SELECT RAISE(ABORT, 'disk is full'); END")
    other.commit()
    with pytest.warns(UserWarning, match="in memory only") as told:
        for n in (5, 7, 5):
            found = cache(score, samples(n))
            cache.keep(found)
            assert found.scores.tolist() == n * [1.0]
    assert len(told) == 1 and "\n" not in str(told[0].message)
    assert asked == [3, 4, 6]  # the first is known by then, and at last all, from memory
