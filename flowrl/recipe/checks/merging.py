"""Whether adapters are merged into the weights while samples are drawn (rollout.merge).

A merged layer is one product in place of three. It rounds otherwise than the layer that trains: in float32 by about
1e-6 of a log-prob, in half precision by as much as a clip range.
"""

from collections.abc import Iterator

from flowrl.recipe.errors import RecipeError
from flowrl.recipe.schema import Recipe


def merges(recipe: Recipe, device: str) -> bool:
    """Whether a recipe's samples are drawn by merged weights on a device of this type, such as cpu or cuda.

    auto: on a GPU, where nothing is in the way, and the log-probs of the rollout are those of the weights that train
    within float32, or are taken again. On a CPU numbers stay what they are without.
    """
    asked = recipe.rollout.merge
    if asked is not True and (asked is False or device == "cpu"):
        return False
    return not any(True for part in recipe.parts() for _ in _obstacles(part, asked is True))


def check_merge(recipe: Recipe) -> Iterator[RecipeError]:
    """What adapters cannot be merged beside, where that is asked for."""
    if recipe.rollout.merge is True:
        for problem, remedy in _obstacles(recipe, True):
            also = f", or {remedy}" if remedy else ""
            yield RecipeError("rollout.merge", f"got true, but {problem}", f"set rollout.merge=auto{also}")
            return


def _obstacles(recipe: Recipe, asked: bool) -> Iterator[tuple[str, str]]:
    """Why adapters are not merged, each with what to do about it. asked: what is read of the rollout decides."""
    rollout, objective = recipe.rollout, recipe.objective
    if recipe.lora is None:
        yield "full: true has no adapters", "train a lora"
    if recipe.roles is not None:
        yield "each of roles speaks by adapters of its own, and weights hold those of one", ""
    if rollout.dtype is not None:
        yield f"the copy in {rollout.dtype} that draws (rollout.dtype) is merged by itself", "rollout.dtype=null"
    if rollout.engine is not None:
        yield "a server draws (rollout.engine)", "rollout.engine=null"
    if rollout.batch_invariant:
        yield "looks have to give the bits of the rollout (rollout.batch_invariant)", "rollout.batch_invariant=false"
    if recipe.quantize is not None:
        yield "few bits would round away what was learnt (quantize)", "remove quantize"
    if recipe.block_offload:
        yield "merged weights stay on the device, and blocks are to leave it (block_offload)", "block_offload=false"
    if recipe.parallel.kind == "fsdp":
        yield "ranks hold parts of the weights (parallel.kind=fsdp)", "parallel.kind=replicate"
    rounded = "TF32" if recipe.dtype.tf32 else recipe.dtype.model
    again = objective.correction is not None and not objective.correction.bypass
    if rounded != "float32" and not again and not (asked and objective.loss is not None):
        yield (
            f"in {rounded} it moves the log-probs of a rollout by as much as a clip range",
            "have them taken again (objective.correction={kind: none}), or dtype.model=float32 and dtype.tf32=false",
        )
