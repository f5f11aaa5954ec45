"""The files of a checkpoint: a state as JSON and safetensors, parts of shared-out weights beside them, and digests."""

import hashlib
import json
import os
from collections.abc import Callable, Iterable, Mapping
from pathlib import Path

from safetensors import safe_open
from safetensors.torch import save_file
from torch import Tensor

from flowrl.core.learning.shards import is_shard
from flowrl.untyped import Nest

RECORD, TENSORS, DIGESTS = "state.json", "state.safetensors", "state.sha256"
SHARDS = "shards"  # the folder of tensors of which every rank wrote its part
Like = Callable[[str], Tensor | None]
_TENSOR, _SHARD = "tensor:", "shard:"


def read(folder: Path, part: str | None = None, like: Like | None = None) -> Nest:
    """A saved state, or the part under one of its keys, with tensors on the CPU.

    like: gives, of a tensor's path in the state, one that ranks share out as it is to be; all of them read then.
    """
    layout = json.loads((folder / RECORD).read_text(encoding="utf-8"))["state"]
    layout = layout if part is None else dict(layout["dict"])[part]
    paths: list[str] = []
    _join(layout, str, paths.append)
    shards: Mapping[str, Tensor] = {}
    if paths or like is not None:
        from flowrl.engines.shard_files import read_shards, sharded_like

        shards = read_shards(folder / SHARDS, paths, like) if paths else {}
    with safe_open(folder / TENSORS, "pt") as tensors:

        def tensor(path: str) -> Tensor:
            value = tensors.get_tensor(path)
            return value if like is None else sharded_like(value, like(path))  # pyright: ignore[reportPossiblyUnbound]

        return _join(layout, tensor, lambda path: shards[path])


def shards_of(state: Nest, path: str = "") -> dict[str, Tensor]:
    """The tensors of a state of which this rank holds a part, by their paths."""
    if is_shard(state):
        return {path: state.detach()}  # pyright: ignore
    if not isinstance(state, Mapping | list | tuple):
        return {}
    inner = state.items() if isinstance(state, Mapping) else enumerate(state)
    found = (shards_of(value, f"{path}/{key}") for key, value in inner)
    return {name: value for one in found for name, value in one.items()}


def write(folder: Path, iteration: int, state: Mapping[str, Nest]) -> None:
    """Writes a checkpoint's files, and syncs them to disk."""
    if shards_of(state) and not (folder / SHARDS).is_dir():
        raise TypeError("ranks hold parts of this state: all of them write it, first to the folder shards")
    tensors: dict[str, Tensor] = {}
    layout = _split(state, "", tensors)
    save_file(tensors, folder / TENSORS)
    sync(folder / TENSORS)
    write_durably(folder / RECORD, json.dumps({"iteration": iteration, "state": layout}, allow_nan=True))
    write_durably(folder / DIGESTS, "".join(digests(folder)))
    sync(folder)


def names(folder: Path) -> list[str]:
    """The files that a checkpoint's digests are of."""
    parts = sorted(path.relative_to(folder).as_posix() for path in (folder / SHARDS).glob("*"))
    return [RECORD, TENSORS, *parts]


def digests(folder: Path) -> list[str]:
    """The lines of DIGESTS for a checkpoint's present files."""
    return [f"{_digest(folder / name)}  {name}\n" for name in names(folder)]


def write_durably(path: Path, text: str) -> None:
    """Writes a file, and syncs it to disk."""
    with path.open("w", encoding="utf-8") as file:
        file.write(text)
        file.flush()
        os.fsync(file.fileno())


def _split(value: Nest, path: str, tensors: dict[str, Tensor]) -> Nest:
    """The value as JSON, with its tensors moved to `tensors` under their paths. Mappings become lists of pairs."""
    if is_shard(value):
        return f"{_SHARD}{path}"
    if isinstance(value, Tensor):
        if path in tensors:
            raise TypeError(f"{path}: two tensors of a checkpoint have this path")
        tensors[path] = _unshared(value, tensors.values())
        return f"{_TENSOR}{path}"
    if isinstance(value, Mapping):
        parts = [[key, _split(item, f"{path}/{key}", tensors)] for key, item in value.items()]
        return {"dict": parts}
    if isinstance(value, list | tuple):
        return [_split(item, f"{path}/{i}", tensors) for i, item in enumerate(value)]
    if isinstance(value, str):
        return f"text:{value}"
    if value is None or isinstance(value, bool | int | float):
        return value
    raise TypeError(f"{path}: a checkpoint cannot hold a {type(value).__name__}")


def _unshared(value: Tensor, others: Iterable[Tensor]) -> Tensor:
    """The tensor as safetensors accepts it: contiguous, and sharing no storage with the others."""
    value = value.detach().contiguous()
    place = value.untyped_storage().data_ptr()
    shared = value.numel() and any(place == other.untyped_storage().data_ptr() for other in others)
    return value.clone() if shared else value


def _join(value: Nest, tensor: Callable[[str], Nest], shard: Callable[[str], Nest]) -> Nest:
    """The inverse of `_split`, with tuples as lists."""
    if isinstance(value, str):
        kind, _, rest = value.partition(":")
        return tensor(rest) if f"{kind}:" == _TENSOR else shard(rest) if f"{kind}:" == _SHARD else rest
    if isinstance(value, dict):
        return {key: _join(item, tensor, shard) for key, item in value["dict"]}
    return [_join(item, tensor, shard) for item in value] if isinstance(value, list) else value


def _digest(path: Path) -> str:
    with path.open("rb") as file:
        digest = hashlib.sha256()
        while block := file.read(1 << 20):
            digest.update(block)
    return digest.hexdigest()


def sync(path: Path) -> None:
    """Syncs a file, or the names in a folder, to disk; folders only on systems that can open them."""
    if os.name == "nt" and path.is_dir():
        return
    handle = os.open(path, os.O_RDWR if path.is_file() else os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)
