"""Several adapters on one model, one a role: who speaks is the one that is active."""

import contextlib
import copy
import warnings
from collections.abc import Iterator, Sequence

import torch
from peft import inject_adapter_in_model
from torch import nn

from flowrl.policies.adapters import ADAPTER, Modules, adapted_layers, trainable_by_name
from flowrl.policies.computing import follow
from flowrl.untyped import Network


def add_roles(modules: Modules, labels: Sequence[str], seed: int) -> None:
    """Adds an adapter like the first, which is there, for each of the other labels; all of them learn.

    They begin at other random factors, and as the unchanged model.
    """
    for module in modules.values():
        for number, label in enumerate(labels[1:], 1):
            config = copy.deepcopy(module.peft_config[ADAPTER])
            with torch.random.fork_rng(devices=[]), warnings.catch_warnings():
                torch.manual_seed(seed + number)
                warnings.filterwarnings("ignore", "Already found a `peft_config`")
                inject_adapter_in_model(config, module, label)
            for parameter in _parameters(module, label):
                parameter.data = parameter.data.to(next(_parameters(module, ADAPTER)).device).float()
        follow(module)
    for module in modules.values():
        _activate(module, ADAPTER, labels)


@contextlib.contextmanager
def speaking(modules: Modules, labels: Sequence[str], number: int) -> Iterator[None]:
    """Within, the adapter of the role of this number is active. Where there is one label, nothing changes.

    All keep their gradients, and go on learning afterwards.
    """
    if len(labels) < 2:
        yield
        return
    for module in modules.values():
        _activate(module, adapter_of(labels, number), labels)
    try:
        yield
    finally:
        for module in modules.values():
            _activate(module, ADAPTER, labels)


def adapter_of(labels: Sequence[str], number: int) -> str:
    """How the adapter of a role is called in its modules: the first as that of a single policy."""
    return labels[number] if number else ADAPTER


def parameters_by_role(modules: Modules, labels: Sequence[str]) -> list[list[nn.Parameter]]:
    """The parameters that learn, each role's own; those that all share, if any, come last.

    Of a critic, a head named head or head_1, ... is that of a role.
    """
    found: list[list[nn.Parameter]] = [[] for _ in range(len(labels) + 1)]
    for name, parameter in trainable_by_name(modules).items():
        parts = name.split(".")
        owner = [i for i in range(len(labels)) if adapter_of(labels, i) in parts or head_of(i) == parts[0]]
        found[owner[0] if owner else -1].append(parameter)
    return [part for part in found if part]


def head_of(number: int) -> str:
    """How a critic's head for a role is called."""
    return f"head_{number}" if number else "head"


def _activate(module: Network, adapter: str, labels: Sequence[str]) -> None:
    for layer in adapted_layers(module):
        layer.set_adapter(adapter)  # freezes the others
    for number in range(len(labels)):
        for parameter in _parameters(module, adapter_of(labels, number)):
            parameter.requires_grad_(True)


def _parameters(module: Network, adapter: str) -> Iterator[nn.Parameter]:
    return (p for name, p in module.named_parameters() if adapter in name.split("."))
