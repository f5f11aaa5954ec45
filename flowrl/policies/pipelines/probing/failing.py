"""What a pipeline raises while it is probed, as one line: its class, the exception, and where it was raised.

Pipelines fail in as many ways as there are pipelines: a component that is None, a scheduler of another kind, arguments
that do not fit together. None of it may reach the user as a bare traceback; all of it stays chained to the line.
"""

import contextlib
import traceback
from collections.abc import Iterator
from pathlib import Path

import torch

from flowrl.names import ROOT, UserError
from flowrl.policies.errors import PolicyError

OWN = tuple(str(ROOT / package) for package in ("flowrl", "samplers"))
PASSED_ON = (UserError, MemoryError, torch.OutOfMemoryError)  # have a line of their own


@contextlib.contextmanager
def in_one_line(pipeline: str) -> Iterator[None]:
    """Raises PolicyError, from the exception itself, for whatever is raised within while `pipeline` is probed."""
    try:
        yield
    except PASSED_ON:
        raise
    except Exception as error:
        text = " ".join(str(error).split())[:200] or "no text"
        place = traceback.extract_tb(error.__traceback__)[-1]
        where, own = Path(place.filename), place.filename.startswith(OWN)
        where = where.relative_to(ROOT).as_posix() if own else "/".join(where.parts[-2:])
        remedy = "check the arguments under `pipeline` and the prompt's files; it fails in this call, before training"
        if own:
            remedy = "flowrl itself fails on it: please report this line, with the traceback that --traceback shows"
        raise PolicyError(
            f"{pipeline} cannot be sampled: {type(error).__name__}: {text} ({where}:{place.lineno}); {remedy}"
        ) from error
