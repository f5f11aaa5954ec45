"""Runs on a device that is not the CPU give the numbers of the CPU: nothing lies in the wrong place.

The device is one of tests/second_device.py, so that these tests need no GPU, and tell nothing of kernels, precision or
speed.
"""

import json
import os
import re
import subprocess
import sys
from importlib.util import find_spec
from pathlib import Path

import pytest
import torch

import families
from flowrl.planning.sizes.memory import sizes
from flowrl.policies.devices import device_of
from flowrl.policies.errors import PolicyError
from flowrl.recipe.load import load
from flowrl.runs.start import run
from second_device import NAME
from seeing_tables import TORCHAUDIO

TESTS = Path(__file__).parents[2]
SHORT = ["train.iterations=1", "prompts.heldout=null", "eval={at_start: false, at_end: false, every: null}"]
SHORT += ["threads=1", "train.prompts=2", "train.group=2", "train.updates=1"]
STEPS = [*SHORT, "sampler.steps=3", "sampler.window={kind: all}"]
NOISED = [*SHORT, "sampler.steps=2"]
RUNS = {
    "quickstart": [*NOISED, "train.keep=null", "offload=true"],
    "tiny_lm_grpo": [*SHORT, "generation.max_new_tokens=12"],
}
LONG = {
    "tiny_flow_grpo": [*STEPS, "full=true", "lora=null", "objective.kl=0.1", "train.ema=0.9", "train.ema_in_host=true"],
    "tiny_clip": [*STEPS, "block_offload=true", "train.gradient_checkpointing=true"],
    "tiny_multi": [*STEPS, "train.offload_activations=true", "rollout.merge=true"],
    "tiny_draft": [*SHORT, "sampler.steps=4", "train.group=1"],
    "tiny_srpo": [*SHORT, "sampler.steps=4", "train.group=1"],
    "tiny_dpo": [*NOISED, "train.pairs=1"],
    "tiny_guidance_distill": [*SHORT, "sampler.steps=3", "train.group=1"],
    "tiny_vlm_grpo": SHORT,
    "tiny_tools": SHORT,
    "tiny_papo": SHORT,
    "tiny_debate": [v for v in SHORT if not v.startswith("train.group")],
    "tiny_lm_grpo": [*SHORT, "objective.preset=ppo"],
}
UNABLE = {"ltx2", "longcat_audio"}  # a tensor is given other memory, and parts of weights are exchanged: not shown
UNLIKE = ("seconds", "time", "memory", "tokens_per", "per_second")  # what a machine does, not what a run computes


def on_the_device(arguments: list[str]) -> list[str]:
    """The lines that tests/on_second_device.py prints."""
    command = [sys.executable, str(TESTS / "on_second_device.py"), *arguments]
    paths = os.pathsep.join([str(TESTS), str(TESTS.parent)])
    done = subprocess.run(command, env=os.environ | {"PYTHONPATH": paths}, capture_output=True, text=True)
    assert done.returncode == 0, done.stdout[-2000:] + done.stderr[-4000:]
    return done.stdout.splitlines()


def metrics(folder: Path) -> list[dict[str, float]]:
    """The numbers of every iteration that do not depend on the machine."""
    rows = [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]
    return [
        {k: v for k, v in row.items() if isinstance(v, int | float) and not any(u in k for u in UNLIKE)} for row in rows
    ]


def compare(runs: dict[str, list[str]], folder: Path) -> None:
    """Runs each recipe here and there."""
    words: list[str] = []
    for name, changes in runs.items():
        words += ["run", name, *changes, f"device={NAME}", f"output={folder / name / 'there'}", "+"]
    moves = json.loads(on_the_device(words[:-1])[-1])
    assert moves["to the device"] and moves["to the host"]
    for name, changes in runs.items():
        run(load(name, [*changes, "device=cpu", f"output={folder / name / 'here'}"]))
        here, there = (metrics(folder / name / place) for place in ("here", "there"))
        assert len(here) == len(there) >= 1
        for a, b in zip(here, there, strict=True):
            assert b == pytest.approx(a, rel=1e-3, abs=2e-4), name


def test_runs_on_a_device_have_the_numbers_of_the_cpu(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    compare(RUNS, tmp_path)


@pytest.mark.slow
@pytest.mark.parametrize("name", LONG)
def test_every_kind_of_run_does(name: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    compare({name: LONG[name]}, tmp_path)


@pytest.mark.slow
def test_encoding_ahead_brings_the_encoders_less_often(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """Of four iterations, one in two: two journeys of the encoders less, by bytes, and the same numbers.

    The denoiser stays: its weights there are not torch's own tensors, and may not be pointed elsewhere.
    """
    crossed = {}
    for number in (1, 2):
        changes = [*RUNS["quickstart"], "train.iterations=4", f"encode_ahead={number}", f"device={NAME}"]
        said = on_the_device(["run", "quickstart", *changes, f"output={tmp_path / str(number)}"])
        crossed[number] = json.loads(said[-1])["bytes to the device"]
    assert metrics(tmp_path / "1") == metrics(tmp_path / "2")
    plan = sizes(load("quickstart", RUNS["quickstart"]), [])
    assert plan is not None
    encoders = 4 * sum(number for name, number in plan.parameters.items() if "text" in name)
    assert crossed[1] - crossed[2] == pytest.approx(2 * encoders, rel=1e-3)


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="no GPU")
@pytest.mark.parametrize(("name", "changes"), [*RUNS.items(), *LONG.items()])
def test_a_gpu_has_the_rewards_of_the_cpu(
    name: str, changes: list[str], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    for device in ("cpu", "cuda"):
        run(load(name, [*changes, f"device={device}", f"output={tmp_path / device}"]))
    here, there = (metrics(tmp_path / device)[0] for device in ("cpu", "cuda"))
    rewards = [key for key in here if key.startswith("reward/") and key.endswith("/mean")]
    assert rewards
    for key in rewards:
        assert there[key] == pytest.approx(here[key], rel=2e-2, abs=2e-2)
    assert there.get("replay_gap_max", 0.0) <= 1e-4


@pytest.mark.slow
@pytest.mark.parametrize("place", ["apart", "together"])
def test_every_family_draws_and_replays_there(place: str) -> None:
    names = [name for name in families.NAMES if name not in UNABLE]
    lines = list(map(json.loads, on_the_device(["families", place, *names])))
    assert [line.pop("name") for line in lines] == names
    assert max(max(line.values()) for line in lines) <= 1e-4


@pytest.mark.slow
def test_every_type_that_sees_or_hears_does() -> None:
    page = (TESTS.parent / "docs" / "seeing.md").read_text()
    names = re.findall(r"^\| `(\w+)` \| exact", page, re.MULTILINE)
    names = [name for name in names if name not in TORCHAUDIO or find_spec("torchaudio")]
    lines = list(map(json.loads, on_the_device(["seeing", *names])))
    assert [line.pop("name") for line in lines] == names
    assert max(max(line.values()) for line in lines) <= 1e-4


def test_a_device_that_torch_does_not_find_is_refused() -> None:
    with pytest.raises(PolicyError, match=r"npu is not on this machine; accepted here: auto, .*cpu"):
        device_of("npu")
