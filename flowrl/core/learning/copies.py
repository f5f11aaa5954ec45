"""Named copies of weights: the moving average, the reference of a full training, and any other that is looked at."""

import contextlib
from collections.abc import Collection, Iterator, Mapping, Sequence

import torch
from torch import Tensor, nn

from flowrl.core.learning.shards import is_shard, local


class Copies:
    """Copies of some parameters, by name, each on the parameters' own devices, but for those `in_host`."""

    def __init__(self, parameters: Sequence[nn.Parameter], in_host: Collection[str] = ()):
        self._parameters, self._in_host = parameters, in_host
        self._copies: dict[str, list[Tensor]] = {}
        self._used: list[str] = []  # the copies that the parameters hold, the last one uppermost

    def __contains__(self, name: str) -> bool:
        return name in self._copies

    def __getitem__(self, name: str) -> list[Tensor]:
        return self._copies[name]

    @torch.no_grad()
    def keep(self, name: str, decay: float = 0.0) -> None:
        """Moves a copy to decay * copy + (1 - decay) * parameters; a new one starts at the parameters."""
        if name not in self:
            place = torch.device("cpu") if name in self._in_host else None
            self._copies[name] = [
                p.detach().clone() if is_shard(p) else p.detach().to(place or p.device, copy=True)
                for p in self._parameters
            ]
            return
        for copy, parameter in zip(self[name], self._parameters, strict=True):
            if decay:
                local(copy).lerp_(local(parameter).to(copy.device), 1 - decay)
            else:
                local(copy).copy_(local(parameter))

    @contextlib.contextmanager
    def using(self, name: str) -> Iterator[None]:
        """Within, the parameters hold a copy; no values are copied, but of one in host memory to the device, and where
        ranks share out the parameters.

        Raises RuntimeError if gradient is recorded, and KeyError for an unknown copy. A graph refers to its parameters
        instead of keeping their values: one made within would silently be differentiated at the weights that are there
        afterwards.
        """
        if torch.is_grad_enabled():
            raise RuntimeError(
                f"the copy {name!r} of the weights is used while gradient is recorded, which would be taken at other "
                "weights: use it under torch.no_grad()"
            )
        held = [p.data for p in self._parameters]
        self._exchange(name)
        _point(self._parameters, [c.to(p.device) for c, p in zip(self[name], self._parameters, strict=True)])
        self._used.append(name)
        try:
            yield
        finally:
            self._used.pop()
            _point(self._parameters, held)
            self._exchange(name)

    @property
    def used(self) -> str | None:
        """The copy that the parameters hold now; None where they hold what is trained."""
        return self._used[-1] if self._used else None

    @contextlib.contextmanager
    def shown(self, name: str | None) -> Iterator[None]:
        """Within, shards hold this copy (None: what is trained), whatever they hold outside.

        For a rank that walks along while another one uses that copy.
        """
        before = list(self._used)
        for one in reversed(before):
            self._exchange(one)
        if name is not None:
            self._exchange(name)
        try:
            yield
        finally:
            if name is not None:
                self._exchange(name)
            for one in before:
                self._exchange(one)

    @torch.no_grad()
    def _exchange(self, name: str) -> None:
        """Exchanges the values of a copy and of the parameters, where a rank holds a part of these.

        What gathers the parts knows where they lie, so that they cannot be pointed elsewhere.
        """
        for copy, parameter in zip(self[name], self._parameters, strict=True):
            if is_shard(parameter):
                mine, other = local(parameter), local(copy)
                held = mine.clone()
                mine.copy_(other)
                other.copy_(held)

    def state_dict(self) -> dict[str, list[Tensor]]:
        """All copies by name, each of the same shape as its parameter."""
        return dict(self._copies)

    @torch.no_grad()
    def load_state_dict(self, state: Mapping[str, Sequence[Tensor]]) -> None:
        """Restores the values, of the same shape, of the copies kept here; one missing in the state stays as it is."""
        for name in self._copies.keys() & state.keys():
            for copy, saved in zip(self[name], state[name], strict=True):
                copy.copy_(saved)


def _point(parameters: Sequence[nn.Parameter], values: Sequence[Tensor]) -> None:
    for parameter, value in zip(parameters, values, strict=True):
        if not is_shard(parameter):
            parameter.data = value
