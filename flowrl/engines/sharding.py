"""Weights shared out among ranks: FSDP2 of torch (`fully_shard`) on a model's repeated blocks, and on what is left.

Every rank holds an equal part of every weight, of its gradient, of the optimizer's moments and of the copies. A block's
weights are gathered when it is called and sharded again behind it; gradients are summed as they come. Who calls when is
agreed in rounds.py, so that policies, objectives and the loop are those of one process.
"""

import contextlib
import dataclasses
import warnings
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, TypeVar, cast

import torch
from torch import Tensor, nn
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.fsdp import CPUOffloadPolicy, FSDPModule, MixedPrecisionPolicy, OffloadPolicy, fully_shard
from torch.distributed.tensor import DTensor

from flowrl.engines.board import LAST
from flowrl.engines.ranks import ProcessRanks
from flowrl.engines.rounds import Rounds, Weights
from flowrl.names import UserError
from flowrl.recipe.keys.parallel import ParallelKeys
from flowrl.untyped import Network

T = TypeVar("T")


class ShardedRanks:
    """Ranks that hold parts of the weights; whatever they tell each other waits until all have walked along.

    See `Ranks` in core/ranks.py.
    """

    def __init__(self, ranks: ProcessRanks, rounds: Rounds):
        self.rank, self.size = ranks.rank, ranks.size
        self.rounds, self._ranks = rounds, ranks

    @property
    def gathered(self) -> int:
        """See `Ranks`."""
        return self._ranks.gathered

    def gather(self, value: T) -> list[T]:
        """See `Ranks`."""
        self.rounds.rest()
        return self._ranks.gather(value)

    def total(self, values: Sequence[Tensor]) -> None:
        """See `Ranks`."""
        self.rounds.rest()
        self._ranks.total(values)

    def follow(self, copies: Weights) -> None:
        """From here on calls may be made under these copies of the weights."""
        self.rounds.weights = copies

    def write(self, folder: Path, tensors: Mapping[str, Tensor]) -> None:
        """Writes the parts of all ranks to a new folder; all call it. Raises OSError."""
        from flowrl.engines.shard_files import write_shards  # torch.distributed.checkpoint is loaded where it is used

        if self.rank == 0:
            folder.mkdir()
        self.gather(None)
        write_shards(folder, tensors)

    @contextlib.contextmanager
    def whole(self, modules: Mapping[str, nn.Module]) -> Iterator[None]:
        """Within, on rank 0, `state_dict` of the modules has whole tensors on the CPU, for a writer of files.

        All ranks have to enter it.
        """
        self.rounds.rest()
        hooks = [_whole_state(module, self.rank == 0) for module in modules.values()]
        try:
            yield
        finally:
            for hook in hooks:
                hook.remove()


class _Sharded:
    """A module under FSDP2, whose weights are gathered and sharded as a whole."""

    def __init__(self, module: nn.Module, reshard: bool):
        self._module, self._reshard = module, reshard
        self._parts: list[FSDPModule] = [part for part in module.modules() if isinstance(part, FSDPModule)]
        self._trained = {name for name, parameter in module.named_parameters() if parameter.requires_grad}

    def gather(self) -> None:
        """See `rounds.Sharded`."""
        for part in self._parts:
            part.set_reshard_after_forward(False, recurse=False)
            part.unshard()

    def shard(self) -> None:
        """See `rounds.Sharded`."""
        self._flag()
        for part in self._parts:
            part.reshard()
            part.set_reshard_after_forward(self._reshard, recurse=False)
        self._flag()

    def close(self) -> None:
        """See `rounds.Sharded`. FSDP2 takes a call within a backward for one that computes activations again, and keeps
        its weights."""
        if self._reshard:
            for part in self._parts:
                part.reshard()

    def _flag(self) -> None:
        """What learns is told to: adapters that were off meanwhile told it to only one of parts and whole weights."""
        for name, parameter in self._module.named_parameters():
            if parameter.requires_grad != (name in self._trained):
                parameter.requires_grad_(name in self._trained)


def share_out(
    modules: Mapping[str, nn.Module],
    keys: ParallelKeys,
    ranks: ProcessRanks,
    device: str,
    beside: Sequence[Mapping[str, nn.Module]] = (),
) -> ShardedRanks:
    """Shares the weights of modules out among ranks, in place; adapters are to be in, and a learner not yet made.

    device: cpu or cuda. beside: the modules of other models that the run calls (a critic, a reference), whose blocks
    are all that they repeat; one that repeats none stays whole on every rank. Raises UserError for blocks that a module
    does not have.
    """
    ranks.patience = LAST  # none of them could save alone
    mesh = init_device_mesh(device, (ranks.size,))
    dtype = None if keys.mixed_precision is None else getattr(torch, keys.mixed_precision)
    mixed = MixedPrecisionPolicy(param_dtype=dtype, reduce_dtype=None if dtype is None else torch.float32)
    how: dict[str, Any] = {
        "mesh": mesh,
        "reshard_after_forward": keys.reshard,
        "mp_policy": mixed,
        "offload_policy": CPUOffloadPolicy(pin_memory=device != "cpu") if keys.offload else OffloadPolicy(),
    }
    sharded, models = [], []
    shared = [(0, module, repeated_blocks(name, module, keys.blocks)) for name, module in modules.items()]
    for number, model in enumerate(beside, 1):
        found = ((module, repeated_blocks(name, module, None)) for name, module in model.items())
        shared += [(number, module, blocks) for module, blocks in found if blocks]
    for model, module, blocks in shared:
        for block in blocks:
            fully_shard(block, **how)
        # who calls the model expects its own precision of what it gives
        own = None if dtype is None else next(module.parameters()).dtype
        fully_shard(module, **how | {"mp_policy": dataclasses.replace(mixed, output_dtype=own)})
        for before, part in zip([None, *blocks], [*blocks, module], strict=True):
            _as_sums(part, blocks[-1] if part is module and blocks else before or part)
        sharded.append(_Sharded(module, keys.reshard))
        models.append(model)
    # FSDP2 hooks a block's outputs, which a block that gives back views of one tensor is told of
    warnings.filterwarnings("ignore", message=".*pre-backward hook.*", category=UserWarning)
    rounds = Rounds(ranks, [module for _, module, _ in shared], sharded, whole=keys.sampling == "whole", models=models)
    return ShardedRanks(ranks, rounds)


def repeated_blocks(name: str, module: Network, named: Sequence[str] | None) -> list[nn.Module]:
    """The blocks that a model is made of, in their order: what its lists of modules hold, or those named.

    Of a language model those of its text decoder: what reads pictures is called as often as there are any, which
    differs between ranks. Raises UserError for a name that is no list of modules.
    """
    lists = {path: part for path, part in module.named_modules() if isinstance(part, nn.ModuleList)}
    if named is not None:
        if unknown := [path for path in named if path not in lists]:
            raise UserError(
                f"parallel.blocks: got {unknown[0]!r}, accepted of {name}: {', '.join(lists) or 'none'}; correct it or "
                "leave it out"
            )
        return [block for path in named for block in lists[path]]
    decoder = module.get_decoder() if hasattr(module, "get_decoder") else module
    own = [part for part in decoder.modules() if isinstance(part, nn.ModuleList)]
    inner = {id(part) for one in own for block in one for part in block.modules()}
    return [block for one in own if id(one) not in inner for block in one]


def _as_sums(part: nn.Module, next_back: nn.Module) -> None:
    """Gradients of a part are summed over ranks, also where one has none; behind its backward `next_back` is gathered.

    What FSDP2 would gather by itself follows what was called before, which differs between ranks.
    """
    assert isinstance(part, FSDPModule) and isinstance(next_back, FSDPModule)
    part.set_gradient_divide_factor(1.0)
    part.set_force_sum_reduction_for_comms(True)  # gloo has no other sum
    part.set_reduce_scatter_unused_params(True, recurse=False)
    part.set_modules_to_backward_prefetch([next_back])


def _whole_state(module: nn.Module, keep: bool) -> torch.utils.hooks.RemovableHandle:
    """Makes a module's state_dict whole on the ranks that keep it; of one with adapters, what learns alone.

    Weights that two layers share stay one tensor, which writers of files know by its storage.
    """
    adapted, found, gathered = getattr(module, "_hf_peft_config_loaded", False), {}, {}
    for name, parameter in module.named_parameters(remove_duplicate=False):
        if isinstance(parameter, DTensor) and (parameter.requires_grad or not adapted):
            if id(parameter) not in gathered:
                full = cast(DTensor, parameter.detach()).full_tensor()
                gathered[id(parameter)] = full.cpu() if keep else None
            found |= {name: gathered[id(parameter)]} if keep else {}

    def replace(module: nn.Module, state: dict[str, Tensor], prefix: str, metadata: object) -> None:
        state.update({prefix + name: value for name, value in found.items() if prefix + name in state})

    return module.register_state_dict_post_hook(replace)
