"""The proof that log-probs are still those of who trains once adapters moved, where these round in another way."""

from flowrl.checking.proofs.bench import Bench, ReplayEvidence
from flowrl.checking.proofs.proof import ProofError
from flowrl.recipe.checks.computing import adapters_as_model
from flowrl.recipe.checks.merging import merges

SHARE = 0.1  # of the clip range: what rounding may take of it without deciding what is clipped


def computed_otherwise(bench: Bench) -> bool:
    """Whether log-probs of a rollout are read that merged weights gave, or adapters in fewer bits."""
    recipe, device = bench.recipe, bench.device.type
    rounds = merges(recipe, device) or adapters_as_model(recipe, device) or (recipe.dtype.tf32 and device == "cuda")
    return rounds and recipe.objective.loss is None


def ratio(bench: Bench) -> str:
    """A new rollout after the first update, as a run draws it, is replayed by the adapters. Returns the largest gap.

    Before the first update adapters add nothing, and the ratio says nothing about them. Up to a tenth of the clip range
    is accepted; more where a correction takes the log-probs again (objective.correction).
    """
    evidence, recipe = ReplayEvidence(), bench.recipe
    bench.replay_into(evidence, bench.draw_rollout(bench.drawn_prompts, bench.group, bench.plans[0]))
    worst, accepted = max(evidence.gap.values(), default=0.0), SHARE * min(recipe.objective.clip_range)
    said = f"|log ratio| at most {worst:.2g}"
    corrected = recipe.objective.correction is not None and not recipe.objective.correction.bypass
    if not corrected and not worst <= accepted:
        raise ProofError(
            f"|log ratio| up to {worst:.2g} (accepted {accepted:.2g})",
            "merged weights, or products in fewer bits, round by too much for this clip range",
            "set rollout.merge=false, dtype.adapters=float32 and dtype.tf32=false, or widen objective.clip",
        )
    return f"{said}, corrected for" if corrected else f"{said}, a tenth of the clip range is {accepted:.2g}"
