"""The proof about a teacher: it can take up the student's states, and there is something to learn from it."""

from dataclasses import replace

import torch
from torch import Tensor

from flowrl.build import add_reference
from flowrl.checking.proofs.bench import Bench
from flowrl.checking.proofs.proof import ProofError
from flowrl.contracts import LogProbs, View
from flowrl.core.backward import fill_reference

TOLERANCE, TOLERANCE_HALF = 1e-3, 3e-2  # of the divergence of a row by itself, relative to the largest


def has_teacher(bench: Bench) -> bool:
    """Whether drawn steps are compared with another reference than the model as the run finds it."""
    recipe = bench.recipe
    drawn = recipe.objective.loss is None if hasattr(recipe.objective, "loss") else False
    others = [one for one in recipe.references if one.use != "base" or one.is_own_policy]
    known = all(one.use != "average" for one in recipe.references)  # a bench has no average
    return drawn and recipe.reads_reference and known and bool(others)


@torch.no_grad()
def teaches(bench: Bench) -> str:
    """The exact divergence from the teacher at the drawn steps, of all rows and of each by itself; returns its mean.

    Raises PolicyError for a teacher whose latents, levels or initial noise are others than the student's.
    """
    recipe, policy = bench.recipe, bench.policy
    add_reference(recipe, policy)
    policy.prepare(bench.drawn_prompts[0], bench.plans[0])
    rows = torch.arange(len(bench.rollout.rollout_logp))[: bench.rows_at_once]
    whole, alone = _divergence(bench, rows), torch.cat([_divergence(bench, row) for row in rows.split(1)])
    most, gap = float(whole.max()), float((whole - alone).abs().max())
    if not most > 0 and not recipe.scores_train:
        raise ProofError("the divergence is 0", "the teacher is the student", "give another reference, or a reward")
    accepted = TOLERANCE if recipe.dtype.model == "float32" else TOLERANCE_HALF
    if not gap <= accepted * max(most, 1e-6):
        raise ProofError(
            f"a row by itself diverges by {gap:.2g} more or less (accepted {accepted:g} of {most:.2g})",
            "the result of the student or the teacher for a row depends on the others in its call",
            "set train.micro_batch=1, so that every row has its own call",
        )
    teachers = "; ".join(map(str, recipe.references))
    by_step = ", ".join(f"{float(value):.2g}" for value in whole.mean(0))
    return f"{float(whole.mean()):.3g} away from {teachers} (by step {by_step}); a row by itself {gap:.1g}"


def _divergence(bench: Bench, rows: Tensor) -> Tensor:
    """The exact divergence [r, K] of these rows, 0 where a row draws no noise."""
    rollout = replace(bench.rollout, reference=None)
    found, view = torch.zeros(rollout.rollout_logp.shape), View(exact_kl=True)

    def visit(seen: LogProbs) -> None:
        if seen.kl is not None:
            found[seen.rows[:, None], seen.columns[None]] = seen.kl.float().cpu()

    fill_reference(bench.policy, rollout, rows, view)
    bench.policy.look(rollout, rows, view, visit)
    return found[rows]
