"""The device that a recipe names, if this machine has it."""

import torch

from flowrl.policies.errors import PolicyError


def device_of(name: str, place: str = "device") -> torch.device:
    """The device of a recipe: "auto" is the first available of cuda, mps and cpu.

    Raises PolicyError, which names the recipe's key `place`, for a device that this machine does not have.
    """
    gpus = torch.cuda.device_count() if torch.cuda.is_available() else 0
    there = {"cuda": gpus, "mps": int(torch.backends.mps.is_available()), "cpu": 1}
    if name == "auto":
        return torch.device(next(kind for kind, number in there.items() if number))
    device = torch.device(name)
    if (device.index or 0) >= there[device.type]:
        listed = [*(["cuda"] if gpus else []), *(f"cuda:{i}" for i in range(gpus))]
        listed += [kind for kind in ("mps", "cpu") if there[kind]]
        raise PolicyError(f"{place}: {name} is not on this machine; accepted here: auto, {', '.join(listed)}")
    return device


def device_type(name: str) -> str:
    """cpu, cuda or mps of a device that a recipe names, whether or not this machine has it."""
    return device_of(name).type if name == "auto" else name.partition(":")[0]
