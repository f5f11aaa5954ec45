"""Checkpoints on disk: the round trip, damage, pruning, and a disk that is full."""

import json
import math
import random
from pathlib import Path

import numpy
import pytest
import torch
from resume_support import begun, ended, same, save, within

from flowrl import state
from flowrl.state import Checkpoints, StateError, damage, load

STATE = {
    "tensors": {0: torch.arange(6.0).view(2, 3), 1: [torch.tensor(3), torch.ones(2, dtype=torch.bfloat16)]},
    "numbers": [1, 2.5, -math.inf, True, None],
    "texts": {"tensor:x": "tensor:y", "": "ü"},
    "empty": [{}, [], torch.zeros(0, 4)],
}


@pytest.fixture
def kept(tmp_path: Path) -> Checkpoints:
    return Checkpoints(tmp_path, keep=2)


def test_a_state_comes_back_as_it_was(kept: Checkpoints):
    assert same(load(kept.save(7, STATE)), STATE)


def test_what_has_no_place_in_a_checkpoint_is_a_bug(kept: Checkpoints):
    with pytest.raises(TypeError, match="state/deep/0: a set"):
        kept.save(1, {"state": {"deep": [{1, 2}]}})


def test_the_last_and_the_best_stay(kept: Checkpoints):
    for i in range(1, 6):
        kept.save(i, STATE)
        if i == 2:
            kept.mark("best", 2)
    assert [c.iteration for c in kept.all()] == [2, 4, 5]
    assert kept.find("best").iteration == 2 and kept.find("last").iteration == 5 and kept.find("00004").iteration == 4
    with pytest.raises(StateError, match="accepted: last, best, 2, 4, 5"):
        kept.find("3")
    kept.mark("best", 5)
    assert [c.iteration for c in kept.all()] == [4, 5]


def test_saving_again_replaces(kept: Checkpoints):
    kept.save(1, STATE)
    kept.save(1, {"other": 1})
    assert load(kept.find("last")) == {"other": 1}


def spoil(path: Path, how: str) -> None:
    files = {"tensors": path / "__0_0.distcp", "metadata": path / ".metadata", "record": path / "state.json"}
    what, _, name = how.partition(" ")
    file = files[name]
    content = file.read_bytes()
    if what == "cut":
        file.write_bytes(content[: len(content) // 2])
    elif what == "flip":
        middle = len(content) // 2
        file.write_bytes(content[:middle] + bytes([content[middle] ^ 1]) + content[middle + 1 :])
    else:
        file.unlink()


@pytest.mark.parametrize(
    "how", ["cut tensors", "flip tensors", "lose tensors", "flip metadata", "cut record", "lose record"]
)
def test_a_damaged_checkpoint_is_recognised_and_the_one_before_it_used(how: str, kept: Checkpoints):
    kept.save(1, STATE)
    spoil(kept.save(2, STATE).path, how)
    found, complaints = kept.newest()
    assert found is not None and found.iteration == 1
    assert len(complaints) == 1 and "00002 is damaged" in complaints[0]
    with pytest.raises(StateError, match="00002"):
        kept.find("last")


def test_a_half_written_checkpoint_is_no_checkpoint(kept: Checkpoints):
    whole = kept.save(1, STATE)
    whole.path.rename(kept.folder / "00002.tmp")
    assert kept.all() == [] and kept.newest() == (None, [])
    kept.save(2, STATE)  # in its place
    assert [c.iteration for c in kept.all()] == [2] and damage(kept.all()[0]) is None


def test_a_full_disk_is_one_line_and_leaves_what_was_there(kept: Checkpoints, tmp_path: Path):
    """A limit on the size of files stands in for the disk: the system refuses the write just so."""
    kept.save(1, STATE)
    assert ended(begun(within, 20_000, tmp_path / "told", save, kept, 2, {"big": torch.zeros(100_000)})) == 0
    (line,) = (tmp_path / "told").read_text().splitlines()
    assert "00002 cannot be written" in line and "00001 is whole" in line and "MiB free" in line and "--resume" in line
    assert [p.name for p in kept.folder.iterdir()] == ["00001"] and same(load(kept.find("last")), STATE)


def test_a_tensor_that_was_never_written_is_seen(kept: Checkpoints):
    record = kept.save(1, STATE).path / "state.json"
    values = json.loads(record.read_text())
    values["files"]["more.distcp"] = [10, "0"]
    record.write_text(json.dumps(values))
    assert "more.distcp" in (damage(kept.all()[0]) or "")


def test_generators_go_on_where_they_were():
    def draw() -> list[float]:
        return [random.random(), random.gauss(0, 1), float(numpy.random.standard_normal()), float(torch.rand(()))]

    before = state._joined(json.loads(json.dumps(state._split(state.random_state(), "", tensors := {}))), tensors)
    first = draw()
    draw()
    state.restore_random_state(before)
    assert draw() == first
