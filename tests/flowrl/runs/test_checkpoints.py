"""Checkpoints on disk: the round trip, damage, pruning, and a disk that is full."""

import math
import pickle
import random
import signal
from pathlib import Path
from typing import Any

import numpy
import pytest
import torch

from flowrl.runs import checkpoints as state
from flowrl.runs.checkpoints import Checkpoints, StateError, find_damage, load
from resume_support import begun, ended, same, save, save_killed, within

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
    with pytest.raises(TypeError, match="state/deep/0: a checkpoint cannot hold a set"):
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
    files = {"tensors": "state.safetensors", "record": "state.json", "digests": "state.sha256"}
    what, _, name = how.partition(" ")
    file = path / files[name]
    content = file.read_bytes()
    if what == "cut":
        file.write_bytes(content[: len(content) // 2])
    else:
        file.unlink()


@pytest.mark.parametrize(
    "how", [f"{what} {name}" for what in ("cut", "lose") for name in ("tensors", "record", "digests")]
)
def test_a_damaged_checkpoint_is_recognised_and_the_one_before_it_used(how: str, kept: Checkpoints):
    kept.save(1, STATE)
    spoil(kept.save(2, STATE).path, how)
    found, complaints = kept.newest()
    assert found is not None and found.iteration == 1
    assert len(complaints) == 1 and "00002 is damaged" in complaints[0]
    with pytest.raises(StateError, match="00002"):
        kept.find("last")


def flipped(content: bytes, position: int, bit: int) -> bytes:
    return content[:position] + bytes([content[position] ^ 1 << bit]) + content[position + 1 :]


def test_no_bit_of_a_checkpoint_can_turn_unnoticed(kept: Checkpoints):
    """Random bits of every file, and of each letter of the digests the one that makes it a capital."""
    checkpoint, rng = kept.save(12, STATE), random.Random(0)
    for file in sorted(checkpoint.path.iterdir()):
        content = file.read_bytes()
        bits = rng.sample([(i, bit) for i in range(len(content)) for bit in range(8)], 40)
        for position, bit in bits + [(i, 5) for i in range(len(content)) if file.suffix == ".sha256"]:
            file.write_bytes(flipped(content, position, bit))
            assert find_damage(checkpoint), (file.name, position, bit)
        file.write_bytes(content)
    assert find_damage(checkpoint) is None and same(load(checkpoint), STATE)


def test_no_bit_of_a_mark_can_name_another_checkpoint(kept: Checkpoints):
    for i in range(1, 5):
        kept.save(i, STATE)
        kept.mark("best", 1)
    mark = kept.folder / "best"
    content = mark.read_bytes()
    for position in range(len(content)):
        for bit in range(8):
            mark.write_bytes(flipped(content, position, bit))
            assert kept.marked("best") is None, (position, bit)
    mark.write_bytes(content)
    assert kept.marked("best") == 1


def test_a_checkpoint_under_another_number_is_none(kept: Checkpoints):
    path = kept.save(1, STATE).path
    path.rename(path.with_name("00002"))
    assert kept.newest()[0] is None


def test_nothing_is_lost_whenever_a_process_is_killed(tmp_path: Path):
    """keep=1, and the only checkpoint is written again, or the next one: SIGKILL before each change of the folder."""
    seen, number = set(), 0
    for iteration in (1, 2):
        for number in range(100):
            kept = Checkpoints(tmp_path / f"{iteration}-{number}", keep=1)
            kept.save(1, {"value": "before", "tensor": torch.zeros(2)})
            after = {"value": "after", "tensor": torch.ones(2)}
            code = ended(begun(save_killed, number, kept, iteration, after))
            found, complaints = kept.newest()
            assert found is not None and not complaints, (iteration, number)
            seen.add((found.iteration, load(found)["value"]))
            kept.save(iteration, after)
            assert sorted(p.name for p in kept.folder.iterdir()) == [f"{iteration:05d}"]
            if code == 0:
                break
            assert code == -signal.SIGKILL
        assert number > 4
    assert seen == {(1, "before"), (1, "after"), (2, "after")}


def test_a_checkpoint_of_an_earlier_version_is_refused_unread(kept: Checkpoints, tmp_path: Path):
    """It was a pickle: of a foreign run, reading it ran what it said."""
    folder = kept.folder / "00003"
    folder.mkdir(parents=True)
    (folder / "state.json").write_text('{"iteration": 3, "files": {}, "state": {"dict": []}}')
    (folder / ".metadata").write_bytes(pickle.dumps(Opened(tmp_path / "ran")))
    with pytest.raises(StateError, match="an earlier flowrl wrote it"):
        load(kept.find("last"))
    assert not (tmp_path / "ran").exists()


class Opened:
    """Creates a file when it is unpickled."""

    def __init__(self, path: Path):
        self.path = path

    def __reduce__(self) -> Any:
        return Path.touch, (self.path,)


def test_tensors_that_share_memory_are_kept_each(kept: Checkpoints):
    whole = torch.arange(6.0)
    state = {"a": whole, "b": whole[2:4], "c": whole.view(2, 3).T, "d": [whole, whole]}
    assert same(load(kept.save(1, state)), state)


def test_a_half_written_checkpoint_is_no_checkpoint(kept: Checkpoints):
    whole = kept.save(1, STATE)
    whole.path.rename(kept.folder / "00002.tmp")
    assert kept.all() == [] and kept.newest() == (None, [])
    kept.save(2, STATE)  # in its place
    assert [c.iteration for c in kept.all()] == [2] and find_damage(kept.all()[0]) is None


def test_a_full_disk_is_one_line_and_leaves_what_was_there(kept: Checkpoints, tmp_path: Path):
    """A limit on the size of files stands in for the disk: the system refuses the write just so."""
    kept.save(1, STATE)
    assert ended(begun(within, 20_000, tmp_path / "told", save, kept, 2, {"big": torch.zeros(100_000)})) == 0
    (line,) = (tmp_path / "told").read_text().splitlines()
    assert "00002 cannot be written" in line and "00001 is intact" in line and "MiB free" in line and "--resume" in line
    assert [p.name for p in kept.folder.iterdir()] == ["00001"] and same(load(kept.find("last")), STATE)


def test_generators_go_on_where_they_were(tmp_path):
    def draw() -> list[float]:
        return [random.random(), random.gauss(0, 1), float(numpy.random.standard_normal()), float(torch.rand(()))]

    before = load(Checkpoints(tmp_path).save(1, {"now": state.random_state()}))["now"]
    first = draw()
    draw()
    state.restore_random_state(before)
    assert draw() == first
