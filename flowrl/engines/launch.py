"""Starts the ranks of a run on this machine, by the launcher that torchrun itself is made of."""

import logging
import os
import sys
import uuid
from collections.abc import Sequence

from torch.distributed.elastic.multiprocessing import SignalException
from torch.distributed.elastic.multiprocessing.errors import ChildFailedError
from torch.distributed.launcher.api import LaunchConfig, elastic_launch

STOP = 24 * 3600  # seconds for ranks to finish their iteration, and save, where a signal asks for that; torch gives 30


def launch(number: int, arguments: Sequence[str]) -> dict[int, int]:
    """Runs `flowrl` with these arguments in so many processes; returns the exit codes of those that failed, by rank.

    The first that failed comes first; a code below 0 is that of a signal. They meet on the loopback address. None is
    started again: a run that has lost a rank resumes with --resume. Raises SystemExit where a signal ends this process.
    """
    os.environ.setdefault("TORCH_ELASTIC_SHUTDOWN_TIMEOUT", str(STOP))
    for name in logging.root.manager.loggerDict:
        if name.startswith("torch.distributed.elastic"):
            logging.getLogger(name).setLevel(logging.CRITICAL)  # a rank has said it, or who has called this says it
    config = LaunchConfig(
        min_nodes=1,
        max_nodes=1,
        nproc_per_node=number,
        run_id=uuid.uuid4().hex,
        rdzv_backend="c10d",
        rdzv_endpoint="127.0.0.1:0",
        max_restarts=0,
        monitor_interval=0.1,
        local_addr="127.0.0.1",
    )
    try:
        elastic_launch(config, sys.executable)("-m", "flowrl", *arguments)
    except ChildFailedError as error:
        return {rank: failure.exitcode for rank, failure in error.failures.items()}
    except SignalException as stop:
        raise SystemExit(128 + stop.sigval) from None
    return {}
