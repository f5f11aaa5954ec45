"""What ranks tell each other, and how they hear of one that fails, hangs or is killed: forks of this process."""

import json
import os
import signal
import time
from collections.abc import Callable
from pathlib import Path

import pytest
import torch

from flowrl.core.learning.shrinking import MicroBatch
from flowrl.engines import board
from flowrl.engines.board import RankError
from flowrl.engines.ranks import ProcessRanks
from ranks_support import forked


def told(number: int, folder: Path, work: Callable[[ProcessRanks], object], wait: float = 20.0) -> list[object]:
    """What so many ranks come to: what the work of each gives, or its error; None of one that was killed."""

    def tell(error: BaseException) -> int:
        with (folder / "spoken.txt").open("a") as file:
            file.write(" ".join(str(error).split()) + "\n")
        return 7

    def rank() -> None:
        name = folder / f"{os.environ['RANK']}.json"
        try:
            ranks = ProcessRanks(wait)
            with ranks.together(tell):
                given = work(ranks)
        except (RankError, ValueError) as error:
            given = f"{type(error).__name__}: {error}"
            assert error.reported == 7  # pyright: ignore[reportAttributeAccessIssue]
        with name.with_suffix(".part").open("w") as file:
            json.dump(given, file)
        name.with_suffix(".part").rename(name)

    for child in forked(number, rank):
        os.waitpid(child, 0)
    files = [folder / f"{i}.json" for i in range(number)]
    return [json.loads(file.read_text()) if file.exists() else None for file in files]


def spoken(folder: Path) -> list[str]:
    """What users were told."""
    return (folder / "spoken.txt").read_text().splitlines()


def test_gathers_and_sums_are_those_of_all(tmp_path):
    def work(ranks: ProcessRanks) -> object:
        i = ranks.rank
        wide = torch.full((2, 3), i + 0.5, dtype=torch.bfloat16)[:, ::2]
        kinds = [torch.tensor(i), torch.zeros(0, 2), wide, torch.tensor([i == 1]), {"text": ["a"] * i, "none": None}]
        parts = ranks.gather(kinds)
        same = all(
            torch.equal(part[2], torch.full((2, 2), r + 0.5, dtype=torch.bfloat16)) and part[1].shape == (0, 2)
            for r, part in enumerate(parts)
        )
        sums = [torch.tensor([1.0, i]), torch.tensor([i], dtype=torch.int64)]
        ranks.total(sums)
        plain = [[int(part[0]), bool(part[3]), part[4]] for part in parts]
        return [same, plain, [value.tolist() for value in sums], ranks.gathered]

    first, second, third = told(3, tmp_path, work)
    plain = [[r, r == 1, {"text": ["a"] * r, "none": None}] for r in range(3)]
    assert first[:3] == [True, plain, [[3.0, 3.0], [3]]] == second[:3] == third[:3]
    assert 300 < first[3] == second[3] == third[3] < 3000


@pytest.mark.parametrize("operation", ["gather", "total"])
def test_the_error_of_a_rank_is_that_of_all_wherever_they_wait(operation, tmp_path):
    def work(ranks: ProcessRanks) -> object:
        if ranks.rank == 1:
            raise ValueError("the third\nrow is empty")
        return ranks.gather(1) if operation == "gather" else ranks.total([torch.zeros(7)])

    start = time.monotonic()
    first, own, third = told(3, tmp_path, work)
    assert first == third == "RankError: rank 1: ValueError: the third row is empty"
    assert own == "ValueError: the third\nrow is empty" and time.monotonic() - start < 30
    assert spoken(tmp_path) == ["the third row is empty"]


def test_of_ranks_that_fail_at_once_one_tells(tmp_path):
    def work(ranks: ProcessRanks) -> object:
        ranks.gather(1)
        raise ValueError("no such model")

    assert told(3, tmp_path, work) == ["ValueError: no such model"] * 3
    assert spoken(tmp_path) == ["no such model"]


def test_a_rank_that_hangs_is_named_and_ended_and_the_others_have_time_to_save(tmp_path, monkeypatch):
    monkeypatch.setattr(board, "LAST", 0.5)
    monkeypatch.setattr(board, "LOOK", 0.1)

    def work(ranks: ProcessRanks) -> object:
        ranks.patience = 20.0
        if ranks.rank == 2:
            time.sleep(60)
        try:
            return ranks.gather(1)
        except RankError:
            if ranks.rank == 0:
                time.sleep(2.5)  # longer than the one that hangs has
                (tmp_path / "saved").touch()
            raise

    start = time.monotonic()
    first, second, third = told(3, tmp_path, work, wait=1.5)
    assert third is None and time.monotonic() - start < 40
    texts = [f"rank 2 hangs, or is slower than the 2 s that rank {i} has waited (parallel.wait)" for i in (0, 1)]
    assert all(str(text).removeprefix("RankError: ") in texts for text in (first, second))
    assert spoken(tmp_path) in [[text] for text in texts]  # one of the two tells the user
    saved, left = ((tmp_path / name).stat().st_mtime for name in ("saved", "1.json"))
    assert left >= saved  # a launcher would have ended rank 0 behind the first that left


def test_ranks_whose_launcher_was_killed_are_asked_to_stop(tmp_path, monkeypatch):
    monkeypatch.setattr(board, "LOOK", 0.05)
    monkeypatch.setenv("TORCHELASTIC_RUN_ID", "one")

    def work(ranks: ProcessRanks) -> object:
        asked: list[int] = []
        signal.signal(signal.SIGTERM, lambda number, frame: asked.append(number))
        ranks.gather(1)
        (tmp_path / f"begun{ranks.rank}").touch()
        until = time.monotonic() + 20
        while not asked and time.monotonic() < until:
            time.sleep(0.01)
        return asked

    if (launcher := os.fork()) == 0:
        try:
            told(2, tmp_path, work)
        finally:
            os._exit(0)
    waited(lambda: all((tmp_path / f"begun{i}").exists() for i in (0, 1)))
    os.kill(launcher, signal.SIGKILL)
    os.waitpid(launcher, 0)
    waited(lambda: all((tmp_path / f"{i}.json").exists() for i in (0, 1)))
    assert [json.loads((tmp_path / f"{i}.json").read_text()) for i in (0, 1)] == [[signal.SIGTERM]] * 2


def waited(true: Callable[[], bool]) -> None:
    """Waits until it is true, for half a minute."""
    until = time.monotonic() + 30
    while not true() and time.monotonic() < until:
        time.sleep(0.02)


def test_a_rank_that_is_killed_ends_the_others(tmp_path):
    def work(ranks: ProcessRanks) -> object:
        ranks.gather(0)
        if ranks.rank == 1:
            os.kill(os.getpid(), signal.SIGKILL)
        return ranks.gather(1)

    first, gone, third = told(3, tmp_path, work)
    assert gone is None
    assert all(str(said).startswith("RankError: another rank has gone: it was killed") for said in (first, third))
    assert len(spoken(tmp_path)) == 1


@pytest.mark.parametrize("room", [1, 0])
def test_memory_that_runs_out_on_one_rank_halves_the_rows_of_all(room, tmp_path):
    """Rank 2 has room for one row; the others, with more rows, would have it for theirs."""

    def work(ranks: ProcessRanks) -> object:
        size, tried, undone = MicroBatch(), [], []
        own = (5, 3, 2)[ranks.rank]

        def gradient(rows: int | None) -> int:
            tried.append(rows)
            if ranks.rank == 2 and min(own, rows or own) > room:
                raise torch.OutOfMemoryError("tried to allocate more")
            return own

        try:
            found: object = size(gradient, own, lambda: undone.append(size.rows), ranks)
        except torch.OutOfMemoryError as error:
            found = str(error)
        return [found, tried, undone, size.rows]

    told_of = told(3, tmp_path, work)
    if room:
        assert told_of == [[own, [None, 2, 1], [None, 2], 1] for own in (5, 3, 2)]
    else:
        assert [one[0] for one in told_of] == ["rank 2: tried to allocate more"] * 3
