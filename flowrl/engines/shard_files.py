"""Files of tensors of which every rank writes its part, by torch.distributed.checkpoint in its safetensors format.

Each file says in its header which part of which tensor it has, so that any number of ranks, or one process, reads them;
nothing is pickled.
"""

import warnings
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
import torch.distributed.checkpoint as dcp
from torch import Tensor
from torch.distributed.tensor import DTensor, distribute_tensor

Like = Callable[[str], Tensor | None]  # of a tensor's path: one that is sharded as it is to be


def write_shards(folder: Path, tensors: Mapping[str, Tensor]) -> None:
    """Writes tensors, each rank its part; all call it. Raises OSError where one of them cannot."""
    writer = dcp.HuggingFaceStorageWriter(str(folder), save_distributed=True)
    try:
        dcp.save(dict(tensors), storage_writer=writer)
    except dcp.api.CheckpointException as error:
        raise OSError(f"parts of the weights: {_reasons(error)}") from error


def read_shards(folder: Path, paths: Sequence[str], like: Like | None = None) -> dict[str, Tensor]:
    """The tensors of these paths, by path: whole ones on the CPU, or sharded as `like` says, for which all ranks call.

    Raises ValueError where files do not hold all of a tensor.
    """
    reader = dcp.HuggingFaceStorageReader(str(folder))
    known = reader.read_metadata().state_dict_metadata
    found: dict[str, Tensor] = {}
    for path in paths:
        entry: Any = known.get(path)
        there = 0 if entry is None else sum(chunk.sizes.numel() for chunk in entry.chunks)
        if entry is None or there != entry.size.numel():
            raise ValueError(f"{folder}: {path} is not whole: the part of a rank is missing")
        sharded = None if like is None else like(path)
        if isinstance(sharded, DTensor):
            found[path] = torch.empty_like(sharded, dtype=entry.properties.dtype)
        else:
            found[path] = torch.empty(entry.size, dtype=entry.properties.dtype)
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", message="torch.distributed is disabled")  # where one process reads: as meant
        dcp.load(found, storage_reader=reader, no_dist=like is None)
    return found


def sharded_like(value: Tensor, like: Tensor | None) -> Tensor:
    """This rank's part of a whole tensor, where one like it is sharded; no rank is asked."""
    if not isinstance(like, DTensor) or value.shape != like.shape:
        return value
    return distribute_tensor(value.to(like.device), like.device_mesh, like.placements, src_data_rank=None)


def _reasons(error: Any) -> str:
    """What failed on which rank, in one line."""
    found = {rank: failure[0] for rank, failure in error.failures.items()}
    return "; ".join(f"rank {rank}: {type(one).__name__}: {' '.join(str(one).split())}" for rank, one in found.items())[
        :300
    ]
