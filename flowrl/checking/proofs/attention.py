"""The proof about chosen attention kernels: they are called, and give the numbers of the model's own."""

from contextlib import nullcontext

import torch

from flowrl.checking.proofs.bench import Bench
from flowrl.checking.proofs.compiled import largest_gap, look_once
from flowrl.checking.proofs.proof import ProofError
from flowrl.policies.attending import as_loaded, counted
from flowrl.policies.compiling import uncompiled

ACCEPTED = {"float32": 1e-3}  # of the largest value
ACCEPTED_HALF = 0.1  # of rounding in every layer; a mask that a kernel reads otherwise changes more


def is_chosen(bench: Bench) -> bool:
    """Whether the recipe chooses how its networks attend."""
    return bench.recipe.attention is not None


def same_numbers(bench: Bench) -> str:
    """A look by the chosen kernels gives what it gives by the model's own. Returns the gap, and how often each ran."""
    assert bench.recipe.attention is not None
    backend, modules = bench.recipe.attention.backend, list(bench.policy.modules.values())
    with nullcontext() if bench.recipe.compile is None else uncompiled():
        with counted(modules, backend) as calls:
            chosen = look_once(bench)
        with as_loaded(modules):
            own = look_once(bench)
    gap = largest_gap(chosen, own)
    counts = f"{calls.chosen} calls" if backend != "eager" else "by plain operations"
    said = f"{counts}, {calls.others} past it; within {gap:.2g} of the largest"
    if backend == "eager" and calls.others or backend != "eager" and not calls.chosen:
        raise ProofError(said, f"{backend} has no effect: the network attends by itself", "set attention=null")
    accepted = ACCEPTED.get(bench.recipe.dtype.model, ACCEPTED_HALF)
    if not (gap <= accepted and torch.isfinite(chosen).all()):
        raise ProofError(
            f"{said} (accepted {accepted:g})",
            f"{backend} is wrong for this network, or reads its mask otherwise than the kernels that it came with",
            "set attention=null, or another attention.backend",
        )
    return said
