"""Ranks over torch.distributed: the processes that torchrun, or `flowrl run --ranks`, has started for one run.

What is gathered is pickled and travels over gloo, gradients over NCCL where they are on a GPU. Nothing waits inside the
library: every operation is polled, so that a rank that hangs or has gone ends the run of the others with one line, and
signals are still heard.
"""

import contextlib
import io
import os
import pickle
import time
from collections.abc import Iterator, Sequence
from datetime import timedelta
from typing import Any, TypeVar

import torch
from torch import Tensor
from torch import distributed as dist

from flowrl.engines.board import Board, RankError, Tell
from flowrl.names import UserError

T = TypeVar("T")
WAIT = 600.0  # seconds for the slowest rank, where the recipe does not say
ASK = 0.2  # seconds of waiting after which one asks whether another rank has failed, and says that one waits
NAPS = (1e-4, 5e-3)  # seconds between two looks at an operation, the first and the longest


class _Small(pickle.Pickler):
    """Writes a tensor as its bytes, which are a tenth of what pickle makes of a small one."""

    def reducer_override(self, obj: Any) -> Any:
        """See `pickle.Pickler`."""
        if not isinstance(obj, Tensor) or obj.layout is not torch.strided or obj.is_nested or obj.is_quantized:
            return NotImplemented
        plain = obj.detach().cpu().contiguous()
        return _tensor, (plain.reshape(-1).view(torch.uint8).numpy().tobytes(), plain.dtype, tuple(plain.shape))


def _tensor(data: bytes, dtype: torch.dtype, shape: tuple[int, ...]) -> Tensor:
    """What `_Small` wrote."""
    return torch.frombuffer(bytearray(data), dtype=dtype).reshape(shape) if data else torch.empty(shape, dtype=dtype)


def _small(value: object) -> bytes:
    data = io.BytesIO()
    _Small(data, protocol=pickle.HIGHEST_PROTOCOL).dump(value)
    return data.getvalue()


class ProcessRanks:
    """The ranks of this run. wait: seconds that a rank waits for the slowest one. Raises UserError where they cannot
    find each other."""

    def __init__(self, wait: float = WAIT):
        self.wait, self.gathered = wait, 0
        try:
            self.rank, self.size = int(os.environ["RANK"]), int(os.environ["WORLD_SIZE"])
            backend = "cpu:gloo,cuda:nccl" if torch.cuda.is_available() else "gloo"
            timeout = timedelta(seconds=max(wait, 60.0))
            store, _, _ = next(dist.rendezvous("env://", self.rank, self.size, timeout=timeout))
            group = dist.PrefixStore("group", store)
            dist.init_process_group(backend, store=group, rank=self.rank, world_size=self.size, timeout=timeout)
        except (KeyError, ValueError, RuntimeError) as error:
            reason = " ".join(str(error).split())[:200]
            raise UserError(
                f"this is one of several processes, but they cannot be joined ({reason}); start them with `flowrl run "
                "RECIPE --ranks N` or `torchrun --nproc-per-node N -m flowrl run RECIPE`"
            ) from error
        self._board = Board(dist.PrefixStore("flowrl", store), self.rank, self.size)
        self._number = 0  # of operations that were waited for
        self.patience = wait  # seconds for the others to hear that this rank has failed, and to save

    def gather(self, value: T) -> list[T]:
        """See `Ranks`."""
        return [self._opened(i, data) for i, data in enumerate(self._gather(_small((True, value))))]

    def agree(self, number: int) -> list[int]:
        """The number that each rank gives, in one operation."""
        numbers = torch.zeros(self.size, dtype=torch.int64)
        numbers[self.rank] = number
        self._finish(dist.all_reduce(numbers, async_op=True))
        return numbers.tolist()

    def total(self, values: Sequence[Tensor]) -> None:
        """See `Ranks`. Tensors of one type and device travel together."""
        kinds: dict[tuple[torch.dtype, torch.device], list[Tensor]] = {}
        for value in values:
            kinds.setdefault((value.dtype, value.device), []).append(value)
        for same in kinds.values():
            flat = torch.cat([value.detach().flatten() for value in same])
            self._finish(dist.all_reduce(flat, async_op=True))
            for value, part in zip(same, flat.split([value.numel() for value in same]), strict=True):
                value.detach().copy_(part.view_as(value))

    @contextlib.contextmanager
    def together(self, tell: Tell = lambda error: 1) -> Iterator[None]:
        """Within, an error of this rank is told to the others, which wait for it somewhere.

        tell: tells the user, and gives the exit code; it is called on the first rank that fails alone. An error that is
        told so has the code in `reported`, on every rank.
        """
        with self._board.guarded(self.wait):
            try:
                yield
            except BaseException as error:
                self._board.fail(error, tell, self.patience)
                raise  # the group is left as it is: to end it would wait for an operation that hangs
        with contextlib.suppress(Exception):
            dist.destroy_process_group()

    def _opened(self, rank: int, data: bytes) -> Any:
        well, value = pickle.loads(data)
        if not well:
            raise RankError(f"rank {rank}: {value}")
        return value

    def _gather(self, data: bytes) -> list[bytes]:
        sizes = torch.zeros(self.size, dtype=torch.int64)
        sizes[self.rank] = len(data)
        self._finish(dist.all_reduce(sizes, async_op=True))
        self.gathered += int(sizes.sum())
        padded = torch.zeros(int(sizes.max()), dtype=torch.uint8)
        padded[: len(data)] = torch.frombuffer(bytearray(data), dtype=torch.uint8)
        parts = [torch.empty_like(padded) for _ in range(self.size)]
        self._finish(dist.all_gather(parts, padded, async_op=True))
        return [part[:number].numpy().tobytes() for part, number in zip(parts, sizes.tolist(), strict=True)]

    def _finish(self, work: Any) -> None:
        """Waits for an operation. Raises RankError where it fails, or takes longer than ranks are waited for."""
        start, nap, asked = time.monotonic(), NAPS[0], 0.0
        self._number += 1
        while not work.is_completed():
            waited = time.monotonic() - start
            if waited > asked + ASK:
                asked = waited
                self._board.listen()
                self._board.waits(self._number)
            if waited > self.wait:
                raise self._board.hangs(self._number, self.wait)
            time.sleep(nap)
            nap = min(2 * nap, NAPS[1])
        try:
            work.wait()
        except RuntimeError as error:
            self._board.listen()
            reason = " ".join(str(error).split())[:200]
            raise self._board.gone(reason) from error
