"""Runs that are killed and gone on with, and the comparison with one that was not."""

import json
import os
import random
import signal
import time
import traceback
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from rich.console import Console as RichConsole
from safetensors.torch import load_file

from flowrl import state
from flowrl.console import Console
from flowrl.recipe.load import load
from flowrl.run import run

QUICK = ["train.prompts=2", "train.group=4", "train.updates=2", "train.iterations=5", "eval.every=2", "eval.prompts=6"]
QUICK += ["eval.batch=6", "eval.grid=2", "eval.steps=3", "checkpoint.every=1", "sampler.steps=4", "train.micro_batch=4"]
# never ties, so that every update moves the weights; draws from the global generators as a user's reward may
QUICK += ["rewards.shapes={use: resume_support.noisy_size}"]


QUICK_TEXT = ["train.prompts=2", "train.group=4", "train.iterations=5", "eval.every=2", "eval.prompts=6", "eval.grid=2"]
QUICK_TEXT += ["checkpoint.every=1", "generation.max_new_tokens=16", "train.micro_batch=4", "train.ema=0.5"]
SHORT = {"quickstart": QUICK, "tiny_lm_grpo": QUICK_TEXT}


def noisy_size(samples: Any) -> torch.Tensor:
    """A reward with a say of the global generators, so that a resume that forgets them is found out."""
    noise = torch.rand(len(samples)) + random.random()
    return samples.images.flatten(1).mean(1) + 0.1 * noise


def train(recipe: str, overrides: list[str], folder: Path, *, resume: bool = False) -> None:
    console = Console(RichConsole(quiet=True))
    run(load(recipe, [*overrides, f"output={folder}"]), console, resume=folder if resume else None)


def forked(work: Callable[[], None]) -> int:
    """The process id of a child that does the work and ends: 0 for done, 1 for an exception."""
    child = os.fork()
    if child == 0:
        try:
            work()
            os._exit(0)
        except BaseException:
            traceback.print_exc()
            os._exit(1)
    return child


def ended(child: int) -> int:
    """Its exit code, negative for a signal."""
    return os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])


def killed(
    work: Callable[[], None], when: Callable[[], bool], *, number: int = signal.SIGKILL, limit: float = 60
) -> int:
    """Starts the work and sends the signal as soon as `when` says so; the exit code."""
    child, start = forked(work), time.monotonic()
    while time.monotonic() - start < limit and not when():
        if os.waitpid(child, os.WNOHANG)[0]:
            return 0
        time.sleep(0.0005)
    os.kill(child, number)
    return ended(child)


def after(seconds: float) -> Callable[[], bool]:
    end = time.monotonic() + seconds
    return lambda: time.monotonic() > end


def metrics(folder: Path) -> list[dict[str, Any]]:
    """The lines of metrics.jsonl without what a clock says."""
    lines = [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]
    return [{k: v for k, v in line.items() if not k.startswith("time_")} for line in lines]


def final_state(folder: Path) -> dict[str, Any]:
    """Weights, moments, averages and all else of the last checkpoint, but clocks and the sizes of files with them."""
    saved = state.load(state.Checkpoints(folder).find("last"))
    for name in ("seconds", "files"):
        saved["mark"].pop(name)
    return saved


def same(a: Any, b: Any) -> bool:
    """Equal, tensors bit for bit."""
    if isinstance(a, torch.Tensor):
        return a.dtype == b.dtype and torch.equal(a, b)
    if isinstance(a, dict):
        return a.keys() == b.keys() and all(same(a[k], b[k]) for k in a)
    if isinstance(a, list):
        return len(a) == len(b) and all(map(same, a, b))
    return a == b


def assert_same_run(folder: Path, whole: Path) -> None:
    """The run in `folder` is the uninterrupted one, bit for bit."""
    assert metrics(folder) == metrics(whole)
    assert same(final_state(folder), final_state(whole))
    weights = sorted(p.relative_to(whole) for p in (whole / "lora").glob("*.safetensors"))
    assert weights and all(same(load_file(folder / p), load_file(whole / p)) for p in weights)
    for path in (whole / "heldout").rglob("*.*"):
        assert (folder / path.relative_to(whole)).read_bytes() == path.read_bytes(), path
