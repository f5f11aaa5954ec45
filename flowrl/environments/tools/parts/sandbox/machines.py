"""Sandboxes on this machine: bubblewrap, and docker by its command line. The code never runs in this process.

Both run `inside.py` with its task on standard input, without network, with nothing of this machine's files to write on,
and kill everything that was started when the time is over.
"""

import functools
import itertools
import os
import shutil
import stat
import subprocess
import sys
import time
import uuid
from collections.abc import Sequence
from pathlib import Path
from threading import Thread
from typing import IO, Any

import psutil

from flowrl.environments.tools.parts.sandbox.box import check_runs
from flowrl.environments.tools.parts.sandbox.limits import MIB, Limits, NoSandboxError, SandboxError

PROGRAM = Path(__file__).with_name("inside.py")
FOLDER = "/box"
GRACE = 5.0  # seconds beyond the code's own for a start, and for sending files
POLL = 0.1  # seconds between looks at the memory
USERS, FIRST_USER = 4000, 61200  # numbers that systems keep free for services without a name
SEEN = ("lib", "lib32", "lib64", "bin", "sbin")  # links into usr on today's systems, folders on older ones
SETTINGS = ("etc/ld.so.cache", "etc/alternatives", "etc/localtime", "etc/fonts", "etc/mime.types")
_users = itertools.count(os.getpid())


class Bubblewrap:
    """bubblewrap (`bwrap`): namespaces of its own for processes, network and files; only a small tmpfs is writable.

    python: the interpreter; null takes that of flowrl, with its packages. It and the system's libraries can be read, no
    other file of this machine.
    """

    name = "bubblewrap"

    def __init__(self, python: str | None = None):
        self.python = python or sys.executable

    def check(self) -> None:
        """Raises NoSandboxError where bubblewrap is missing or may not start."""
        if shutil.which("bwrap") is None:
            raise NoSandboxError("bubblewrap is not installed: apt-get install bubblewrap (or dnf, pacman ...)")
        if shutil.which(self.python) is None:
            raise NoSandboxError(f"there is no interpreter {self.python!r}; name one, or leave it out")
        check_runs(self, "")

    def task(self) -> dict[str, object]:
        """What the program inside has to know of this sandbox."""
        return {"folder": FOLDER, "user": _other_user() if os.geteuid() == 0 and not self._open else None}

    def run(self, task: bytes, limits: Limits) -> bytes:
        """What the program inside writes. Raises SandboxError where it does not start."""
        size = str(int(limits.files * MIB * 2) + len(task))
        command = ["bwrap", "--unshare-ipc", "--unshare-pid", "--unshare-net", "--unshare-uts", "--unshare-cgroup-try"]
        root = os.geteuid() == 0
        if root and not self._open:  # only root can show the interpreter; the code gets a user of its own within
            command += ["--cap-drop", "ALL", "--cap-add", "CAP_SETUID", "--cap-add", "CAP_SETGID"]
        else:
            command += ["--unshare-user", "--disable-userns", "--cap-drop", "ALL"]
        command += ["--die-with-parent", "--new-session", "--clearenv", "--hostname", "box", *self._seen]
        command += ["--proc", "/proc", "--dev", "/dev"]
        for folder in (FOLDER, str(Path("/", "tmp")), "/dev/shm"):
            command += ["--perms", "1777", "--size", size, "--tmpfs", folder]
        command += ["--remount-ro", "/dev", "--remount-ro", "/", "--chdir", FOLDER]
        for name, value in environment(os.path.dirname(self.python)).items():
            command += ["--setenv", name, value]
        command += ["--", self.python, "-I", "-c", PROGRAM.read_text(encoding="utf-8")]
        return contained(command, task, limits, user=_other_user() if root and self._open else None)

    @functools.cached_property
    def _open(self) -> bool:
        """Whether any user may read the interpreter."""
        found = [Path(prefix) for prefix in self._prefixes]
        return all(place.stat().st_mode & stat.S_IXOTH for prefix in found for place in (prefix, *prefix.parents))

    @functools.cached_property
    def _seen(self) -> list[str]:
        """The arguments that show libraries and interpreter, to be read only."""
        above = {str(p) for prefix in self._prefixes for p in Path(prefix).parents} - {"/"} | {"/etc"}
        shown = [word for folder in sorted(above) for word in ("--perms", "0755", "--dir", folder)]
        shown += ["--ro-bind", "/usr", "/usr"]
        for name in SEEN:
            path = Path("/", name)
            if path.is_symlink():
                shown += ["--symlink", os.readlink(path), str(path)]
            else:
                shown += ["--ro-bind-try", str(path), str(path)]
        for name in SETTINGS:
            shown += ["--ro-bind-try", f"/{name}", f"/{name}"]
        for prefix in self._prefixes:
            shown += ["--ro-bind", prefix, prefix]
        return shown

    @functools.cached_property
    def _prefixes(self) -> list[str]:
        """The folders of the interpreter that do not lie in /usr: its environment, and what that was made from."""
        if self.python == sys.executable:
            found = [sys.prefix, sys.base_prefix]
        else:
            asked = "import sys; print(sys.prefix); print(sys.base_prefix)"
            found = subprocess.check_output([self.python, "-I", "-c", asked], text=True, timeout=20).split("\n")[:2]
        return [prefix for prefix in dict.fromkeys(found) if not prefix.startswith("/usr/") and prefix != "/usr"]


class Docker:
    """A container of an image that has Python, by docker's command line, or that of podman.

    image: which is not pulled by a run: `docker pull` it before. command: `docker`, or `podman`.
    """

    name = "docker"

    def __init__(self, image: str = "python:3.11-slim", command: str = "docker"):
        self.image, self.command = image, command

    def check(self) -> None:
        """Raises NoSandboxError where docker is missing, does not answer, or has no such image."""
        if shutil.which(self.command) is None:
            raise NoSandboxError(f"{self.command} is not installed; install it, or choose another sandbox")
        asked = [self.command, "image", "inspect", "--format", "{{.Id}}", self.image]
        told = subprocess.run(asked, capture_output=True, text=True, check=False, timeout=60)
        if told.returncode:
            said = told.stderr.strip().replace("\n", " ")[-300:]
            raise NoSandboxError(
                f"{self.command} has no image {self.image!r}: {said}; {self.command} pull {self.image}"
            )

    def task(self) -> dict[str, object]:
        """What the program inside has to know of this sandbox."""
        return {"folder": FOLDER, "user": None}

    def run(self, task: bytes, limits: Limits) -> bytes:
        """What the program inside writes. Raises SandboxError where it does not start."""
        name, memory = f"flowrl-{uuid.uuid4().hex[:12]}", f"{int(limits.memory)}m"
        size = int(limits.files * MIB * 2) + len(task)
        command = [self.command, "run", "--rm", "--interactive", "--name", name, "--pull", "never", "--network", "none"]
        command += ["--memory", memory, "--memory-swap", memory, "--pids-limit", str(int(limits.processes) + 4)]
        command += ["--cpus", "1", "--read-only", "--cap-drop", "ALL", "--security-opt", "no-new-privileges"]
        command += ["--user", f"{FIRST_USER}:{FIRST_USER}", "--workdir", FOLDER]
        for folder in (FOLDER, str(Path("/", "tmp"))):
            command += ["--tmpfs", f"{folder}:rw,mode=1777,size={size}"]
        for variable, value in environment("").items():
            command += ["--env", f"{variable}={value}"]
        command += [self.image, "python3", "-I", "-c", PROGRAM.read_text(encoding="utf-8")]
        return contained(command, task, limits, [self.command, "kill", name])


def _other_user() -> int:
    """A user number that no other run has at the same time; root may give it away."""
    return FIRST_USER + next(_users) % USERS


def environment(programs: str) -> dict[str, str]:
    """The variables that the code sees: few, and none of this process's."""
    path = ":".join([*([programs] if programs else []), "/usr/local/bin", "/usr/bin", "/bin"])
    one = {f"{library}_NUM_THREADS": "1" for library in ("OMP", "OPENBLAS", "MKL")}  # threads count as processes
    return {"PATH": path, "HOME": FOLDER, "TMPDIR": FOLDER, "LANG": "C.UTF-8", "MPLBACKEND": "agg"} | one


def contained(
    command: Sequence[str], task: bytes, limits: Limits, kill: Sequence[str] = (), user: int | None = None
) -> bytes:
    """What a command writes, given a task, killed after its time, its memory or too much that it writes.

    kill: a command that ends what killing the first one does not. user: whom it runs as (None: this one). Raises
    SandboxError where it cannot be started.
    """
    try:
        pipes = {"stdin": subprocess.PIPE, "stdout": subprocess.PIPE, "stderr": subprocess.PIPE}
        whom: dict[str, Any] = {} if user is None else {"user": user, "group": user, "extra_groups": [], "cwd": "/"}
        process = subprocess.Popen(command, **pipes, **whom)
    except OSError as error:
        raise SandboxError(f"{command[0]} does not start: {error}") from error
    assert process.stdin and process.stdout and process.stderr
    most = int(limits.output * 16 + limits.files * MIB * 1.5 + 65536)  # JSON's escapes, base64, and names
    out, err = bytearray(), bytearray()
    threads = [
        Thread(target=_read, args=(process.stdout, out, most), daemon=True),
        Thread(target=_read, args=(process.stderr, err, 65536), daemon=True),
        Thread(target=_write, args=(process.stdin, task), daemon=True),
    ]
    for thread in threads:
        thread.start()
    deadline, watched = time.monotonic() + limits.seconds + GRACE, psutil.Process(process.pid)
    try:
        while time.monotonic() < deadline and len(out) <= most and _memory(watched) <= limits.memory * MIB:
            try:
                process.wait(POLL)
                break
            except subprocess.TimeoutExpired:
                pass
    finally:
        if process.poll() is None and kill:
            subprocess.run(kill, capture_output=True, check=False, timeout=60)
        process.kill()
        process.wait()
        for thread in threads:
            thread.join(GRACE)
    return bytes(out) if out else b"\n" + bytes(err[-2000:])


def _memory(process: psutil.Process) -> int:
    """Bytes that a process and all that come from it hold, without files that they only read."""
    total = 0
    try:
        for one in [process, *process.children(recursive=True)]:
            held = one.memory_info()
            total += held.rss - getattr(held, "shared", 0)
    except psutil.Error:  # one that has ended meanwhile
        return 0
    return total


def _read(source: IO[bytes], into: bytearray, most: int) -> None:
    """Reads to the end, and keeps up to one byte more than the most."""
    while piece := source.read1(65536):  # type: ignore[attr-defined]
        into += piece[: most + 1 - len(into)]


def _write(sink: IO[bytes], task: bytes) -> None:
    try:
        sink.write(task)
        sink.close()
    except OSError:  # it has ended before it read all
        pass
