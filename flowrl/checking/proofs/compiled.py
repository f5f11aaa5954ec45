"""The proof about compiled networks: the numbers of those that are not, and nothing is compiled twice."""

import torch
from torch import Tensor

from flowrl.checking.proofs.bench import Bench, call_chunks
from flowrl.checking.proofs.proof import ProofError
from flowrl.contracts import Field, LogProbs
from flowrl.policies.compiling import Compiled, uncompiled

ACCEPTED = {"float32": 1e-3}  # of the largest value; in half precision kernels round less often, and the gap is told


def is_compiled(bench: Bench) -> bool:
    """Whether the recipe compiles its networks."""
    return bench.recipe.compile is not None


def same_numbers(bench: Bench) -> str:
    """A look through compiled networks gives what it gives without. Returns the gap, and what was compiled.

    Fails where a second look compiles anew: a run would go on doing so.
    """
    first = look_once(bench)
    before = Compiled.now()
    again = look_once(bench)
    anew = Compiled.now().since(before).graphs
    with uncompiled():
        plain = look_once(bench)
    gap = largest_gap(again, plain)
    said = f"within {gap:.2g} of the largest; {before.graphs} graphs, {before.breaks} graph breaks"
    accepted = ACCEPTED.get(bench.recipe.dtype.model)
    if accepted is not None and not gap <= accepted:
        raise ProofError(
            f"{said} (accepted {accepted:g})",
            "a kernel that torch makes for this network is wrong, or rounds where the network does not",
            "set compile.backend=aot_eager to tell the two apart, or compile=null",
        )
    if anew or not torch.isfinite(first).all():
        raise ProofError(
            f"{said}, {anew} of them anew for a look that was made before",
            "something in the network changes from call to call, which torch takes for a constant",
            "set compile=null",
        )
    return said


def largest_gap(found: Tensor, wanted: Tensor) -> float:
    """The largest difference between two looks, as a share of the largest value."""
    return float((found - wanted).abs().max() / wanted.abs().max().clamp(min=1e-12))


def look_once(bench: Bench) -> Tensor:
    """What one call looks at, with gradient, as float32 [N] on the CPU."""
    rollout, found = bench.rollout, list[Tensor]()
    part = next(iter(call_chunks(rollout, bench.rows_at_once)))

    def visit(seen: LogProbs | Field) -> None:
        value = seen.v if isinstance(seen, Field) else seen.logp
        found.append(value.detach().float().cpu().flatten())

    bench.policy.look(rollout, part, bench.view_of(rollout), visit)
    return torch.cat(found)
