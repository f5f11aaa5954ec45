"""Servers of rewards as a user starts them, for tests: processes on loopback, with rewards that can be held."""

import json
import os
import queue
import subprocess
import sys
import threading
import time
import urllib.error
import urllib.request
from collections.abc import Callable
from pathlib import Path
from typing import Any, TypeVar

import torch
import yaml

from flowrl.contracts import Prompt, Samples

ROOT = Path(__file__).resolve().parents[1]
TOKEN = "a-token-for-tests-only"
PATIENCE = 60.0  # seconds after which a test that waits has failed
Found = TypeVar("Found")

# what a user might write; `held` reads a named pipe where the meta names one, and so waits for the test
REWARDS = '''
import os

def red(samples):
    """Mean of the red channel; notes each call."""
    import torch  # late: the server's own process reads this file, too
    with open("calls.txt", "a") as file:
        file.write("".join(f"{p.id} {os.getpid()}\\n" for p in samples.prompts))
    for prompt in samples.prompts:
        if "gate" in prompt.meta:
            open(prompt.meta["gate"]).read()
        if prompt.meta.get("fail"):
            raise RuntimeError("asked to fail")
        if prompt.meta.get("die"):
            os._exit(3)
    print("rewards may print")
    score = samples.images[:, 0].mean((1, 2)).float()
    return torch.where(torch.tensor([bool(p.meta.get("nan")) for p in samples.prompts]), torch.nan, score)

class above:
    """How much redder than its group a picture is."""
    groupwise = True

    def __call__(self, samples):
        import torch
        score = samples.images[:, 0].mean((1, 2)).float()
        mean = torch.stack([score[samples.group == g].mean() for g in samples.group])
        return score - mean

def length(samples):
    """Characters of a text."""
    import torch
    return torch.tensor([float(len(text)) for text in samples.texts])
'''


def until(look: Callable[[], Found | None], what: str) -> Found:
    """What `look` returns once it is true. Fails after PATIENCE seconds."""
    end = time.monotonic() + PATIENCE
    while time.monotonic() < end:
        if found := look():
            return found
        threading.Event().wait(0.01)
    raise AssertionError(f"{what}: not within {PATIENCE:g} s")


class Running:
    """A server that runs. `url` is where."""

    def __init__(self, folder: Path, rewards: dict[str, Any], **serve: Any):
        folder.mkdir(parents=True, exist_ok=True)
        self.folder = folder
        (folder / "served.py").write_text(REWARDS)
        config = {"rewards": rewards, "serve": {"port": 0, "device": "cpu"} | serve}
        (folder / "serve.yaml").write_text(yaml.safe_dump(config))
        path = os.pathsep.join([str(ROOT), os.environ.get("PYTHONPATH", "")])
        environment = os.environ | {"PYTHONPATH": path, "OMP_NUM_THREADS": "1", "SERVE_TOKEN": TOKEN}
        command = [sys.executable, "-m", "flowrl.cli", "serve-rewards", "serve.yaml"]
        self.errors = (folder / "errors.txt").open("w")
        self.process = subprocess.Popen(
            command, cwd=folder, env=environment, stdout=subprocess.PIPE, stderr=self.errors, text=True
        )
        self._lines: queue.Queue[str] = queue.Queue()
        threading.Thread(target=self._listen, daemon=True).start()
        self.said = self._lines.get(timeout=PATIENCE)
        assert self.said.startswith("serving "), (folder / "errors.txt").read_text()
        self.url = self.said.split(" at ")[1].split()[0]

    def _listen(self) -> None:
        assert self.process.stdout is not None
        for line in self.process.stdout:
            self._lines.put(line)
        self._lines.put("")

    def ask(
        self, path: str, body: bytes | None = None, token: str | None = TOKEN, **headers: str
    ) -> tuple[int, dict[str, Any], dict[str, str]]:
        """(status, answer, headers) by another client than ours."""
        given = {name.replace("_", "-"): value for name, value in headers.items()}
        given |= {"Authorization": f"Bearer {token}"} if token else {}
        request = urllib.request.Request(self.url + path, data=body, headers=given)
        try:
            with urllib.request.urlopen(request, timeout=PATIENCE) as answer:
                return answer.status, json.loads(answer.read()), dict(answer.headers)
        except urllib.error.HTTPError as error:
            return error.code, json.loads(error.read()), dict(error.headers)

    def health(self) -> dict[str, Any]:
        return self.ask("/health", token=None)[1]

    def calls(self) -> list[str]:
        """The ids of all prompts that `red` was called with."""
        return [line.split()[0] for line in self._notes()]

    def last_called(self) -> int:
        """The process that `red` was called in last."""
        return int(self._notes()[-1].split()[1])

    def _notes(self) -> list[str]:
        file = self.folder / "calls.txt"
        return file.read_text().splitlines() if file.exists() else []

    def complaints(self) -> str:
        return (self.folder / "errors.txt").read_text()

    def stop(self) -> int:
        """Asks it to end; its exit code."""
        self.process.terminate()
        try:
            return self.process.wait(PATIENCE)
        finally:
            self.process.kill()
            self.errors.close()


class Gate:
    """A named pipe: a reward that reads it waits until the test opens it."""

    def __init__(self, path: Path):
        self.path = path
        os.mkfifo(path)

    def reached(self) -> int:
        """A descriptor, once a reward is waiting; closing it lets the reward go on."""
        return until(self._open, "no reward came to the gate")

    def _open(self) -> int | None:
        try:
            return os.open(self.path, os.O_WRONLY | os.O_NONBLOCK)
        except OSError:
            return None


def pictures(number: int, *, size: int = 8, first: int = 0, groups: int = 0, **meta: Any) -> Samples:
    """Pictures of 8 bit, each another red, with ids from `first` on."""
    levels = torch.arange(first, first + number) * 37 % 256
    images = (torch.ones(number, 3, size, size) * levels.view(-1, 1, 1, 1)) / 255
    prompts = [Prompt(str(first + i), f"picture {first + i}", meta=meta) for i in range(number)]
    group = torch.arange(number) // groups if groups else torch.arange(number)
    return Samples(prompts, group, images=images)


def reds(samples: Samples) -> torch.Tensor:
    assert samples.images is not None
    return samples.images[:, 0].mean((1, 2))
