"""The proof about noised samples: a look at one is the walk's own velocity, whoever is beside it.

That of the walk is made by the policy itself, before its first look (policies/pipelines/looks/levels.py).
"""

import torch
from torch import Tensor

from flowrl.checking.proofs.bench import Bench
from flowrl.checking.proofs.proof import ProofError
from flowrl.contracts import Field, View
from flowrl.policies.pipelines.looks.levels import LOOK_TOLERANCE, LOOK_TOLERANCE_HALF


def is_noised(bench: Bench) -> bool:
    """Whether the recipe's objective noises finished samples again."""
    return bench.recipe.objective.loss is not None


@torch.no_grad()
def look_at_noised(bench: Bench) -> str:
    """Looks at all rows together and at each by itself give the same velocities. Returns the largest gap.

    It is relative to the largest velocity. Raises PolicyError for a pipeline whose look is not its walk's velocity.
    """
    rollout = bench.rollout
    rows = torch.arange(len(rollout.rollout_logp))[: bench.rows_at_once]
    together, alone = _velocities(bench, rows), [_velocities(bench, row) for row in rows.split(1)]
    size = max(float(v.abs().max()) for v in together.values())
    gap = max(float((together[key] - v).abs().max()) for found in alone for key, v in found.items()) / size
    accepted = LOOK_TOLERANCE if bench.recipe.dtype.model == "float32" else LOOK_TOLERANCE_HALF
    if not gap <= accepted:
        raise ProofError(
            f"a row by itself has another velocity, by {gap:.2g} of its size (accepted {accepted:g})",
            "the pipeline's result for a row depends on the others in its call",
            "set train.micro_batch=1, so that every row has its own call",
        )
    return f"that of the walk at {len(rollout.replay.levels)} levels; a row by itself differs by at most {gap:.2g}"


def _velocities(bench: Bench, rows: Tensor) -> dict[tuple[int, int], Tensor]:
    """The velocity of each row at each level, by (row, level)."""
    found: dict[tuple[int, int], Tensor] = {}

    def visit(seen: Field) -> None:
        for row, v in zip(seen.rows.tolist(), seen.v, strict=True):
            found[row, int(seen.columns)] = v

    bench.policy.look(bench.rollout, rows, View("noised"), visit)
    return found
