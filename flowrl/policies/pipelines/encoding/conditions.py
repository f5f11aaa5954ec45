"""What encoders make of the pictures, video and sound that a prompt comes with, remembered by content.

Every pass of a pipeline encodes them anew: each micro-batch, each iteration. An autoencoder's `encode` and a call of an
image encoder depend on nothing but what they are given, so that each distinct input is encoded once, a row at a time,
and its result kept in host memory. What is drawn from a distribution (a posterior's sample) is still drawn each time.

That rows may be encoded one by one is tried for each way of calling: where a call of several rows gives something else,
it is remembered as a whole.
"""

from collections.abc import Callable

import torch
from torch import Tensor

from flowrl.policies.pipelines.calls.structures import mapped, merged, tensors_of
from flowrl.policies.pipelines.encoding.content import content_key
from flowrl.policies.pipelines.encoding.joining import same
from flowrl.policies.pipelines.encoding.store import Store
from flowrl.untyped import Nest

CONDITION_BYTES = 2 * 1024**3


class Conditions:
    """Results by module, method and content, up to CONDITION_BYTES of them; the oldest are forgotten first.

    paused: while texts are encoded, which are remembered as a whole (prompt_cache.py). kept: results, each with the
    device that it belongs on.
    """

    def __init__(self) -> None:
        self.paused = False
        self.kept: Store[tuple[torch.device, Nest]] = Store()
        self._by_row: dict[tuple, bool] = {}  # way of calling -> whether rows are encoded one by one

    def __call__(self, name: str, call: Callable[..., Nest], args: tuple, kwargs: dict) -> Nest:
        """What `call` gives for these arguments. name: of the module and its method."""
        tensors = list(tensors_of((args, kwargs)))
        if self.paused or not tensors or any(t.requires_grad for t in tensors):
            return call(*args, **kwargs)
        if content_key(args) is None or content_key(kwargs) is None:
            return call(*args, **kwargs)
        rows = len(tensors[0]) if tensors[0].dim() else 1
        if rows > 1 and self._has_rows(name, call, args, kwargs, rows):
            each = [self._remembered(name, call, *_row((args, kwargs), i, rows)) for i in range(rows)]
            return merged(each)
        return self._remembered(name, call, args, kwargs)

    def _has_rows(self, name: str, call: Callable[..., Nest], args: tuple, kwargs: dict, rows: int) -> bool:
        """Whether rows alone give what they give together, tried once for each way of calling."""
        way = (name, *(tuple(t.shape[1:]) for t in tensors_of((args, kwargs))), *kwargs)
        if way not in self._by_row:
            each = [self._remembered(name, call, *_row((args, kwargs), i, rows)) for i in range(rows)]
            with torch.no_grad():
                whole = list(tensors_of(call(*args, **kwargs)))
            joined = list(tensors_of(merged(each)))
            self._by_row[way] = len(whole) == len(joined) and all(map(same, joined, whole))
        return self._by_row[way]

    def _remembered(self, name: str, call: Callable[..., Nest], args: tuple, kwargs: dict) -> Nest:
        key = (name, content_key(args), content_key(kwargs))
        if key not in self.kept:
            with torch.no_grad():
                result = call(*args, **kwargs)
            devices = {t.device for t in tensors_of(result)}
            if len(devices) != 1:
                return result
            (device,) = devices
            kept = mapped(result, lambda t: t.detach().cpu())
            size = sum(t.numel() * t.element_size() for t in tensors_of(result))
            self.kept.put(key, (device, kept), size, CONDITION_BYTES)
        else:
            device, kept = self.kept[key]
        return mapped(kept, lambda t: t.to(device, copy=True))  # its own: pipelines may write into it


def _row(given: tuple[tuple, dict], at: int, rows: int) -> tuple[tuple, dict]:
    """Arguments of one row: that of each tensor with as many entries as there are rows."""

    def part(value: Nest) -> Nest:
        return value[at : at + 1] if isinstance(value, Tensor) and value.shape[:1] == (rows,) else value

    args, kwargs = given
    return tuple(map(part, args)), {name: part(value) for name, value in kwargs.items()}
