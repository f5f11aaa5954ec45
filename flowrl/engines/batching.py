"""Requests that wait at the same time, drawn in one batch.

No request waits for others to come: whoever finds the model free draws for all that are there, and who comes meanwhile
is drawn next.
"""

import threading
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

import torch
from torch import Tensor

from flowrl.policies.language.drawing.decoding import draw_on
from flowrl.policies.language.drawing.reading import read
from flowrl.policies.language.drawing.stopping import Stop
from flowrl.policies.language.media.inputs import EMPTY, Inputs
from flowrl.untyped import LanguageModel
from samplers.tokens import Generation

Rows = list[tuple[list[int], list[float]]]  # ids and log-probs of each completion


@dataclass
class Request:
    """Completions that are asked for: uniforms float64 [n, K] decide the draws of n completions of K tokens at most.

    model: the name of the weights; media: what stands among the ids. rows, version: the answer; error: why there is
    none.
    """

    ids: Sequence[int]
    uniforms: Tensor
    plan: Generation
    stop: Stop
    model: str
    media: Inputs | None = None
    rows: Rows = field(default_factory=list)
    version: str = ""
    error: BaseException | None = None
    done: bool = False

    @property
    def fits(self) -> tuple[Any, ...]:
        """What requests of one batch have in common."""
        return self.model, replace(self.plan, max_new_tokens=1), tuple(self.stop), tuple(self.stop.texts)


class Batches:
    """Draws requests, at most `most` completions at once unless one asks for more. draw: fills in the answers of some.

    lock: held while the model is in use.
    """

    def __init__(self, most: int, lock: threading.Lock, draw: Callable[[Sequence[Request]], None]):
        self.most, self.lock, self.draw = most, lock, draw
        self.waiting: list[Request] = []
        self._door = threading.Lock()

    def answer(self, request: Request) -> Request:
        """The request with its answer. Raises what its drawing raised."""
        with self._door:
            self.waiting.append(request)
        while not request.done:
            with self.lock:
                if not request.done:
                    self._next()
        if request.error is not None:
            raise request.error
        return request

    def _next(self) -> None:
        """Draws the request that has waited longest, with those that fit beside it."""
        with self._door:
            first, number, taken = self.waiting[0], 0, list[Request]()
            for one in self.waiting:
                if one.fits == first.fits and (not taken or number + len(one.uniforms) <= self.most):
                    taken.append(one)
                    number += len(one.uniforms)
            self.waiting = [one for one in self.waiting if not any(one is other for other in taken)]
        try:
            self.draw(taken)
        except BaseException as error:
            for one in taken:
                one.error = error
            if not isinstance(error, Exception):
                raise
        finally:
            for one in taken:
                one.done = True


def draw_together(
    model: LanguageModel, requests: Sequence[Request], *, pad: int, barred: Sequence[int], seeing: bool
) -> None:
    """Fills in the rows of requests that fit together, in one batch, each up to its own limit. seeing: the model reads
    pictures."""
    contexts = [list(one.ids) for one in requests]
    owners = [i for i, one in enumerate(requests) for _ in one.uniforms]
    until = torch.tensor([one.uniforms.shape[1] for one in requests])[owners]
    uniforms = torch.zeros(len(owners), int(until.max()), dtype=torch.float64)
    for row, one in zip(uniforms, (u for request in requests for u in request.uniforms), strict=True):
        row[: len(one)] = one
    media = [one.media or EMPTY for one in requests] if seeing else None
    reading = read(model, contexts, pad=pad, inputs=media)
    reading.select(torch.tensor(owners, device=model.device))
    plan = replace(requests[0].plan, max_new_tokens=uniforms.shape[1])
    begin, options = torch.zeros(len(owners), dtype=torch.int64), {"pad": pad, "barred": barred}
    tokens, logp, length = draw_on(model, reading, uniforms, begin, until, plan, stop=requests[0].stop, **options)
    for owner, ids, values, number in zip(owners, tokens, logp, length.tolist(), strict=True):
        requests[owner].rows.append((ids[:number].tolist(), values[:number].tolist()))
