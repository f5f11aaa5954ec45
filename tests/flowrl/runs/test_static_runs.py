"""Runs that draw with a static cache: the same twice, and one that is killed goes on bit for bit."""

import signal
from pathlib import Path

import pytest

from flowrl.policies.compiling import uncompiled
from flowrl.runs.checkpoints import Checkpoints
from resume_support import assert_same_run, begun, ended, metrics, train

STATIC = [
    "train.prompts=2",
    "train.group=4",
    "train.updates=2",
    "train.iterations=2",
    "train.micro_batch=4",
    "threads=1",
]
STATIC += ["generation.max_new_tokens=12", "checkpoint.every=1", "prompts.heldout=null"]
STATIC += [
    "rewards={short: {use: overlong, args: {limit: 12, margin: 12}}}",
    "train.rollout_batch=5",
    "rollout.cache=static",
]


def test_a_run_is_the_same_twice(tmp_path: Path) -> None:
    with uncompiled():
        for name in ("first", "second"):
            train("tiny_lm_grpo", STATIC, tmp_path / name)
    assert_same_run(tmp_path / "second", tmp_path / "first")
    assert all(line["replay_gap_max"] <= 1e-5 for line in metrics(tmp_path / "first") if line["kind"] == "train")


@pytest.mark.slow
def test_a_killed_run_goes_on_bit_for_bit_with_compiled_steps(tmp_path: Path) -> None:
    whole, folder, more = tmp_path / "whole", tmp_path / "killed", [*STATIC, "train.iterations=4"]
    train("tiny_lm_grpo", more, whole)
    process = begun(train, "tiny_lm_grpo", more, folder)  # which first compiles, for as long as that takes
    while process.is_alive() and len(Checkpoints(folder).all()) < 2:
        process.join(0.01)
    process.kill()
    assert ended(process) == -signal.SIGKILL
    train("tiny_lm_grpo", more, folder, resume=True)
    assert_same_run(folder, whole)
