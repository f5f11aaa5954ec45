"""What a piece of code may use in a sandbox, what came of it, and what goes wrong with a sandbox itself."""

from collections.abc import Mapping
from dataclasses import dataclass, field

MIB = 2**20


class SandboxError(RuntimeError):
    """The sandbox failed, not the code in it: nothing is known of what the code would have done."""


class NoSandboxError(SandboxError):
    """There is no such sandbox on this machine; the text says what to do."""


@dataclass(frozen=True)
class Limits:
    """Of one run: seconds of wall clock, memory in MiB, processes, output in characters, files in MiB.

    memory: of all processes together where the sandbox can count them so, and of each alone. output: of standard
    output, and as much of standard error. files: of all that the folder holds, and of each.
    """

    seconds: float = 10.0
    memory: int = 1024
    processes: int = 32
    output: int = 4000
    files: int = 16

    def __post_init__(self) -> None:
        for name, least in {"seconds": 0, "memory": 63, "processes": 0, "output": 0, "files": 0}.items():
            value = getattr(self, name)
            if isinstance(value, bool) or not isinstance(value, int | float) or not value > least:
                raise ValueError(f"{name}={value!r}; accepted: a number above {least}")


@dataclass(frozen=True)
class Ran:
    """What came of a piece of code.

    status: done; failed, where an exception or an exit code ended it; time or killed, where a limit did. out, err: what
    it printed, of the first the beginning, of the second the end. cut: how many bytes are missing there. files: what it
    left or changed in the folder, by path. lost: names of files that were more than the limit lets it keep.
    """

    status: str
    out: str = ""
    err: str = ""
    cut: int = 0
    files: Mapping[str, bytes] = field(default_factory=dict)
    lost: tuple[str, ...] = ()
