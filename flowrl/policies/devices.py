"""The device that a recipe names, if this machine has it."""

import torch

from flowrl.policies.errors import PolicyError

ACCELERATORS = ("cuda", "mps", "xpu", "npu")


def device_of(name: str, place: str = "device") -> torch.device:
    """The device of a recipe: "auto" is the first available of cuda, mps, xpu, npu and cpu.

    Raises PolicyError, which names the recipe's key `place`, for a device that this machine does not have.
    """
    there = {kind: _number(kind) for kind in ACCELERATORS} | {"cpu": 1}
    if name == "auto":
        return torch.device(next(kind for kind, number in there.items() if number))
    kind, _, index = name.partition(":")
    if int(index or 0) >= there[kind]:
        listed = [kind for kind, number in there.items() if number]
        listed[-1:-1] = [f"{kind}:{i}" for kind in listed if kind not in ("mps", "cpu") for i in range(there[kind])]
        raise PolicyError(f"{place}: {name} is not on this machine; accepted here: auto, {', '.join(listed)}")
    return torch.device(name)


def _number(kind: str) -> int:
    """How many accelerators of this kind torch finds; some kinds are known to it through a package of their maker."""
    if kind == "mps":
        return int(torch.backends.mps.is_available())
    module = getattr(torch, kind, None)
    return module.device_count() if module is not None and module.is_available() else 0


def device_type(name: str) -> str:
    """cpu, cuda, mps, xpu or npu of a device that a recipe names, whether or not this machine has it."""
    return device_of(name).type if name == "auto" else name.partition(":")[0]
