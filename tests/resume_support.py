"""Runs that are killed and gone on with, and the comparison with one that was not."""

import json
import multiprocessing
import os
import random
import resource
import signal
import sys
import time
from collections.abc import Callable
from multiprocessing import forkserver
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file

from cli_support import quiet
from flowrl.names import UserError
from flowrl.recipe.load import load
from flowrl.runs import checkpoints as state
from flowrl.runs.start import run

SERVER = multiprocessing.get_context("forkserver")
SERVER.set_forkserver_preload(["resume_support"])  # imports torch once, for all processes that come of it

QUICK = ["train.prompts=2", "train.group=4", "train.updates=2", "train.iterations=5", "eval.every=2", "eval.prompts=6"]
QUICK += ["eval.batch=6", "eval.grid=2", "eval.steps=3", "checkpoint.every=1", "sampler.steps=4", "train.micro_batch=4"]
# never ties, so that every update moves the weights; draws from the global generators as a user's reward may
QUICK += ["rewards.shapes={use: resume_support.noisy_size}"]

QUICK_TEXT = ["train.prompts=2", "train.group=4", "train.iterations=5", "eval.every=2", "eval.prompts=6", "eval.grid=2"]
QUICK_TEXT += ["checkpoint.every=1", "generation.max_new_tokens=16", "train.micro_batch=4", "train.ema=0.5"]
SHORT = {"tiny_flow_grpo": QUICK, "tiny_lm_grpo": QUICK_TEXT}


def noisy_size(samples: Any) -> torch.Tensor:
    """A reward with a say of the global generators, so that a resume that forgets them is found out."""
    noise = torch.rand(len(samples)) + random.random()
    return samples.images.flatten(1).mean(1) + 0.1 * noise


CALLS: list[int] = []


def leaving(samples: Any, way: str, calls: int) -> torch.Tensor:
    """A reward that ends the process once it was called so often."""
    CALLS.append(len(samples))
    if len(CALLS) > calls:
        os._exit(0) if way == "leave" else sys.exit(0)
    return samples.images.flatten(1).mean(1)


def train(recipe: str, overrides: list[str], folder: Path, resume: bool = False) -> None:
    run(load(recipe, [*overrides, f"output={folder}"]), quiet(), resume=folder if resume else None)


def begun(work: Callable[..., None], *args: Any) -> Any:
    """A process that does the work. It is forked off a clean server: this process's thread pools do not survive one."""
    _serve()
    process = SERVER.Process(target=_alone, args=(work, *args))
    process.start()
    return process


def _serve() -> None:
    """Starts the server, if it does not run, with this process's paths: else it would skip its preload in silence."""
    before = os.environ.get("PYTHONPATH")
    os.environ["PYTHONPATH"] = os.pathsep.join(path for path in sys.path if path)
    try:
        forkserver.ensure_running()
    finally:
        os.environ.pop("PYTHONPATH")
        os.environ |= {} if before is None else {"PYTHONPATH": before}


def ended(process: Any) -> int:
    """Its exit code: 0 for done, 1 for an exception, negative for a signal."""
    process.join()
    return process.exitcode


def killed(when: Callable[[], bool], number: int, work: Callable[..., None], *args: Any) -> int:
    """Starts the work and sends the signal as soon as `when` says so; the exit code."""
    process, start = begun(work, *args), time.monotonic()
    while process.is_alive() and time.monotonic() - start < 60 and not when():
        process.join(0.0005)
    if process.is_alive():
        os.kill(process.pid, number)
    return ended(process)


def within(limit: int, told: Path, work: Callable[..., None], *args: Any) -> None:
    """Does the work where no file may grow beyond `limit` bytes, and writes down the one line that it ends with."""
    resource.setrlimit(resource.RLIMIT_FSIZE, (limit, limit))
    try:
        work(*args)
    except (UserError, RuntimeError) as error:
        told.write_text(str(error))


def save(checkpoints: state.Checkpoints, iteration: int, values: dict[str, Any]) -> None:
    checkpoints.save(iteration, values)


def save_killed(number: int, checkpoints: state.Checkpoints, iteration: int, values: dict[str, Any]) -> None:
    """Saves, but kills its own process before the change number `number` (from 0) of names in a folder."""
    left = number

    def hook(event: str, args: Any) -> None:
        nonlocal left
        if event in ("os.rename", "os.remove", "os.rmdir"):
            if left == 0:
                os.kill(os.getpid(), signal.SIGKILL)
            left -= 1

    sys.addaudithook(hook)
    checkpoints.save(iteration, values)


def _alone(work: Callable[..., None], *args: Any) -> None:
    torch.set_num_threads(1)
    work(*args)


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
    for name in ("seconds", "spent", "files"):
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
    written = whole / "lora" if (whole / "lora").is_dir() else whole / "model"
    weights = sorted(p.relative_to(whole) for p in written.rglob("*.safetensors"))
    assert weights and all(same(load_file(folder / p), load_file(whole / p)) for p in weights)
    for path in (whole / "heldout").rglob("*.*"):
        assert (folder / path.relative_to(whole)).read_bytes() == path.read_bytes(), path


def goes_on(recipe: str, overrides: list[str], root: Path) -> tuple[Path, Path]:
    """(the folder of a run that is killed behind its second checkpoint and gone on with, that of the same run whole).

    They are the same, bit for bit. The recipe saves a checkpoint in each iteration.
    """
    whole, folder = root / "whole", root / "killed"
    train(recipe, overrides, whole)
    killed(lambda: len(state.Checkpoints(folder).all()) > 1, signal.SIGKILL, train, recipe, overrides, folder)
    train(recipe, overrides, folder, resume=True)
    assert_same_run(folder, whole)
    return folder, whole
