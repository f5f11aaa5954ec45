"""What a run knows of itself is saved and restored field by field, through a checkpoint on disk."""

from dataclasses import dataclass, fields
from pathlib import Path
from typing import Any

import pytest

from flowrl.runs import checkpoints
from flowrl.runs.run_state import RunState
from resume_support import same

# Keys of a mark, beside the positions of files and the digests of prompts: checkpoints on disk have them.
KEYS = {"iteration", "evaluated", "best", "seconds", "spent", "rolled_back", "cursor", "random"}


class Counter:
    def __init__(self) -> None:
        self.count = 0

    def state_dict(self) -> dict[str, Any]:
        return {"count": self.count}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        self.count = state["count"]


def parts() -> dict[str, Counter]:
    return {"cursor": Counter(), "random": Counter()}


def through_disk(state: RunState, folder: Path) -> dict[str, Any]:
    saved = checkpoints.Checkpoints(folder).save(state.iteration, {"mark": state.state_dict()})
    return checkpoints.load(saved, "mark")


def test_every_field_and_part_comes_back(tmp_path: Path):
    told = {"alarm": "hacking", "at": 7, "to": 2, "what": "seen"}
    state = RunState(parts(), 7, (0, 4), (4, 0.5), 100.0, (6.5, 1), told)
    state.parts["random"].count = 3  # pyright: ignore[reportAttributeAccessIssue]
    saved = through_disk(state, tmp_path)
    assert saved.keys() == KEYS
    back = RunState(parts())
    back.load_state_dict(saved)
    for field in fields(RunState):
        if field.name not in ("parts", "seconds", "_started"):
            assert getattr(back, field.name) == getattr(state, field.name), field.name
    assert same(back.parts["random"].state_dict(), {"count": 3}) and not back.parts["cursor"].state_dict()["count"]
    assert back.seconds == pytest.approx(100.0, abs=5) and back.elapsed >= back.seconds >= 100.0


def test_a_checkpoint_from_before_a_field_keeps_its_default(tmp_path: Path):
    @dataclass
    class Later(RunState):
        restarts: int = 5

    saved = through_disk(RunState(parts(), 2), tmp_path)
    del saved["spent"], saved["rolled_back"]
    state = Later(parts())
    state.load_state_dict(saved)
    assert (state.iteration, state.spent, state.rolled_back, state.restarts) == (2, (0.0, 0), None, 5)
    state.restarts = 6  # the one line of the class is all that it takes
    again = Later(parts())
    again.load_state_dict(state.state_dict())
    assert again.restarts == 6
