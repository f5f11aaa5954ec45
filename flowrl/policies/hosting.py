"""Modules whose frozen weights rest in host memory, and are on a device only while they are used.

What is frozen never changes, so that nothing is ever copied back: a module leaves the device by being pointed at the
host's weights again. On a GPU these are pinned, which is what lets them travel at the speed of the bus. Weights that
learn stay on the device all the time.
"""

import weakref

import torch
from torch import Tensor, nn

_HOSTED: "weakref.WeakKeyDictionary[nn.Module, Hosted]" = weakref.WeakKeyDictionary()


class Hosted:
    """A module, its frozen weights in host memory, and whether they are on the device now.

    The module is left as it was given, until the first `park` or `fetch`.
    """

    def __init__(self, module: nn.Module, device: torch.device):
        self.module, self.device = weakref.ref(module), device
        self.on_device: bool | None = None  # None: wherever it was loaded
        self._host: list[tuple[Tensor, Tensor]] | None = None  # what of the module is frozen, its weights in the host
        self._apart: list[Hosted] = []

    def fetch(self) -> None:
        """Brings the weights to the device."""
        if self.on_device:
            return
        if self._host is None and not self._apart:
            self._module().to(self.device)
        else:
            for own, host in self._resting():
                own.data = host.to(self.device, non_blocking=True)
        self.on_device = True

    def park(self) -> None:
        """Frees the device's copies of frozen weights; those that learn stay there."""
        if self.on_device is False:
            return
        for own, host in self._resting():
            own.data = host
        self.on_device = False

    def leave_out(self, parts: "list[Hosted]") -> None:
        """Lets parts of the module come and go by themselves."""
        self._apart, self._host = parts, None

    def _resting(self) -> list[tuple[Tensor, Tensor]]:
        if self._host is None:
            self._host = [(own, self._to_host(own)) for own in self._frozen()]
            self._learning_to_device()
        return self._host

    @property
    def is_plain(self) -> bool:
        """Whether all weights are ordinary tensors, which can be pointed elsewhere; those of quantised models may not
        be."""
        return all(type(p.data) is Tensor for p in self._module().parameters())

    def _module(self) -> nn.Module:
        module = self.module()
        assert module is not None, "the pipeline holds its modules for as long as it is called"
        return module

    def _frozen(self) -> list[Tensor]:
        module = self._module()
        learning = {id(p) for p in module.parameters() if p.requires_grad}
        learning |= {id(own) for part in self._apart for own in part._frozen()}
        whole: dict[int, Tensor] = {id(t): t for t in (*module.parameters(), *module.buffers())}
        return [tensor for key, tensor in whole.items() if key not in learning]

    def _learning_to_device(self) -> None:
        for parameter in self._module().parameters():
            if parameter.requires_grad:
                parameter.data = parameter.data.to(self.device)

    def _to_host(self, tensor: Tensor) -> Tensor:
        host = tensor.detach().cpu()
        return host.pin_memory() if self.device.type == "cuda" else host


def hosted(module: nn.Module, device: torch.device) -> Hosted:
    """The one that keeps a module's weights for this device: the same for all who call the module."""
    known = _HOSTED.get(module)
    if known is None or known.device != device:
        known = _HOSTED[module] = Hosted(module, device)
    return known
