"""A sandbox of one conversation: code runs in it, files stay in it from one run to the next.

What is kept between runs is kept here, as bytes, and sent along with the next piece of code: a run in the sandbox is a
function of code and files, on whatever machine it happens.
"""

import base64
import json
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import PurePosixPath
from typing import Protocol

from flowrl.environments.tools.parts.sandbox.inside import READY
from flowrl.environments.tools.parts.sandbox.limits import MIB, Limits, NoSandboxError, Ran, SandboxError


class Machine(Protocol):
    """Where the program inside a sandbox runs."""

    name: str

    def check(self) -> None:
        """Raises NoSandboxError, with what to do, where it cannot run."""
        ...

    def task(self) -> dict[str, object]:
        """What the program inside has to know: `folder` and `user`."""
        ...

    def run(self, task: bytes, limits: Limits) -> bytes:
        """What the program inside writes. Raises SandboxError where the machine fails."""
        ...


class Sandbox:
    """exec, write and close: see the module. files: what is in it, by path."""

    def __init__(self, machine: Machine, limits: Limits | None = None):
        self.machine, self.limits = machine, limits or Limits()
        self.files: dict[str, bytes] = {}

    def write(self, path: str, content: bytes) -> None:
        """Puts a file where the next code runs. Raises ValueError for a path out of there."""
        parts = PurePosixPath(path).parts
        if not parts or path.startswith("/") or ".." in parts:
            raise ValueError(f"{path!r} does not lie in the folder of the sandbox; accepted: a relative path")
        self.files[path] = content

    def exec(
        self, code: str, before: Sequence[str] = (), settings: Mapping[str, str] | None = None, keep: bool = True
    ) -> Ran:
        """Runs Python as a program of its own. Raises SandboxError where the sandbox fails, never for the code.

        before: pieces that run first in the same program, without their output; each has a time like the code's.
        settings: environment variables. keep: whether the files that it leaves are there for the next code.
        """
        limits = replace(self.limits, seconds=self.limits.seconds * (1 + len(before)))
        task: dict[str, object] = {"code": code, "before": list(before), "settings": dict(settings or {})}
        task |= {"files": {p: base64.b64encode(c).decode() for p, c in self.files.items()}}
        task |= {"seconds": limits.seconds, "memory": int(limits.memory), "processes": int(limits.processes)}
        task |= {"output": int(limits.output), "keep": int(limits.files * MIB)} | self.machine.task()
        told = self.machine.run(json.dumps(task).encode(), limits)
        head, _, answer = told.partition(b"\n")
        if head.decode(errors="replace").strip() != READY:
            said = told.strip()[-300:].decode(errors="replace")
            raise SandboxError(f"the sandbox {self.machine.name} did not start the code: {said or 'it said nothing'}")
        ran = read(answer)
        if keep:
            self.files |= ran.files
        return ran

    def close(self) -> None:
        """Forgets the files, and ends what a machine far away holds for it."""
        self.files = {}
        end = getattr(self.machine, "close", None)
        if end is not None:
            end()


def check_runs(machine: Machine, where: str) -> None:
    """Tries a machine. Raises NoSandboxError where it does not run Python."""
    try:
        ran = Sandbox(machine).exec("print(6 * 7)")
    except (SandboxError, ValueError) as error:
        raise NoSandboxError(f"{machine.name}{where} does not run code: {error}") from error
    if (ran.status, ran.out) != ("done", "42\n"):
        raise NoSandboxError(f"{machine.name}{where} does not run Python as it should: {ran}")


def read(answer: bytes) -> Ran:
    """What came of code, of the line that the program inside wrote. One that cannot be read is the code's doing."""
    try:
        told = json.loads(answer)
        files = {str(p): base64.b64decode(c, validate=True) for p, c in told["files"].items()}
        safe = {p: c for p, c in files.items() if ".." not in PurePosixPath(p).parts and not p.startswith("/")}
        lost = tuple(map(str, told["lost"]))
        return Ran(str(told["status"]), str(told["out"]), str(told["err"]), int(told["cut"]), safe, lost)
    except (ValueError, KeyError, TypeError, AttributeError, RecursionError):
        return Ran("killed")
