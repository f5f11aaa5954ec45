"""Checkpoint files of rewards: read without running any code in them, with one clear line if something is wrong."""

import re
from collections.abc import Callable, Iterable, Mapping
from pathlib import Path
from typing import TypeVar

import torch
from torch import Tensor, nn

LoadedT = TypeVar("LoadedT")


def state_dict(path: str | Path, what: str) -> dict[str, Tensor]:
    """The tensors, of whatever shape, of a .safetensors file or of one by torch.save (.pt, .pth, .bin), on the CPU.

    A dict under the key state_dict or model is unpacked, and `module.` removed from the names. Raises ValueError,
    naming `what` the file is meant to be, if it is missing, damaged, or holds anything but named tensors.
    """
    file = Path(path).expanduser()
    if not file.is_file():
        raise ValueError(f"{what}: no file at {str(path)!r}; give the path of the downloaded checkpoint")
    try:
        if file.suffix == ".safetensors":
            from safetensors.torch import load_file

            content = load_file(file)
        else:
            content = torch.load(file, map_location="cpu", weights_only=True)
    except Exception as error:
        raise ValueError(f"{what}: {str(path)!r} cannot be read ({_reason(error)}); download it anew") from error
    for inner in ("state_dict", "model"):
        if isinstance(content, Mapping) and isinstance(content.get(inner), Mapping):
            content = content[inner]
    if not isinstance(content, Mapping) or not content or not all(isinstance(v, Tensor) for v in content.values()):
        raise ValueError(
            f"{what}: {str(path)!r} holds no named tensors; accepted is a state dict, plain or safetensors"
        )
    return {str(name).removeprefix("module."): value for name, value in content.items()}


def renamed(name: str, patterns: Iterable[tuple[str, str]]) -> str:
    """The name with the first of the patterns (regular expression, replacement) that it has replaced."""
    for pattern, ours in patterns:
        name, changed = re.subn(pattern, ours, name)
        if changed:
            break
    return name


def fill(module: nn.Module, tensors: Mapping[str, Tensor], what: str) -> None:
    """Loads the tensors into the module, each of the same shape there.

    Raises ValueError, in one line, if names or shapes differ.
    """
    module.load_state_dict(matching_tensors(module.state_dict(), tensors, what), strict=False)


def matching_tensors(
    wanted: Mapping[str, Tensor], tensors: Mapping[str, Tensor], what: str, *, ignore: Iterable[str] = ()
) -> dict[str, Tensor]:
    """Those of the tensors that have the name and the same shape as a wanted one. Raises ValueError, as fill."""
    ignored = tuple(ignore)
    fit = {name: t for name, t in tensors.items() if name in wanted and wanted[name].shape == t.shape}
    missing = [name for name in wanted if name not in tensors and not name.startswith(ignored)]
    extra = [name for name in tensors if name not in wanted and not name.startswith(ignored)]
    wrong = [name for name in tensors if name in wanted and name not in fit]
    if missing or extra or wrong:
        faults = {"missing": missing, "unknown": extra, "of another shape": wrong}
        said = ", ".join(f"{len(names)} {fault} ({names[0]})" for fault, names in faults.items() if names)
        raise ValueError(f"{what}: the checkpoint does not fit, tensors are {said}; is it the file of another model?")
    return fit


def load_pretrained(load: Callable[..., LoadedT], name: str, what: str, **options: object) -> LoadedT:
    """`load(name, **options)`, a from_pretrained, of a folder or a model of the hub.

    Raises ValueError, in one line, if it is neither or its files do not fit.
    """
    path = Path(name).expanduser()
    try:
        return load(str(path) if path.exists() else name, **options)
    except Exception as error:
        kind = "the folder" if path.exists() else "no folder here, and from the hub"
        raise ValueError(f"{what}: {name!r} ({kind}) cannot be loaded: {_reason(error)}") from error


def _reason(error: Exception) -> str:
    text = " ".join(str(error).split())
    return f"{type(error).__name__}: {text[:300]}"
