"""Rewards with weights: their modules move between devices as one."""

from typing import TypeVar

import torch
from torch import nn

Moved = TypeVar("Moved", bound="Model")


class Model:
    """A reward with weights. Its torch modules are attributes, frozen and in eval mode; the scorer moves them."""

    device = torch.device("cpu")

    def to(self: Moved, device: str | torch.device) -> Moved:
        """This reward with all its modules on the device."""
        self.device = torch.device(device)
        for module in self.torch_modules():
            module.to(self.device)
        return self

    def torch_modules(self) -> list[nn.Module]:
        """The modules that are attributes of this reward."""
        return [value for value in vars(self).values() if isinstance(value, nn.Module)]

    def freeze(self: Moved) -> Moved:
        """This reward with every parameter fixed and every module in eval mode."""
        for module in self.torch_modules():
            module.eval().requires_grad_(False)
        return self
