"""Whether corrections, and what draws samples otherwise than it trains, fit the rest of a recipe."""

from collections.abc import Iterator

from flowrl.recipe.errors import RecipeError, show
from flowrl.recipe.keys.correction import CorrectionKeys, RolloutKeys
from flowrl.recipe.schema import Recipe


def check_correction(recipe: Recipe) -> Iterator[RecipeError]:
    """Bounds that no number lies between, and keys that the chosen kind does not read."""
    correction, covariance = recipe.objective.correction, recipe.objective.covariance
    if correction is not None:
        place = "objective.correction"
        if correction.kind == "none":
            for name in ("low", "high", "level"):
                if (value := getattr(correction, name)) is not None:
                    problem = f"got {show(value)}, but kind none weighs nothing"
                    yield RecipeError(f"{place}.{name}", problem, f"set {place}.{name}=null, or another {place}.kind")
        elif correction.bypass:
            problem = f"got true, which leaves nothing for kind {correction.kind!r} to weigh"
            yield RecipeError(f"{place}.bypass", problem, f"set {place}.bypass=false, or {place}.kind=none")
        if correction.low is not None and correction.high is not None and correction.low >= correction.high:
            problem = f"got low {correction.low:g} and high {correction.high:g}"
            yield RecipeError(f"{place}.low", problem, f"give a low below {place}.high")
        yield from _rejections(correction)
    if covariance is not None and covariance.low >= covariance.high:
        problem = f"got low {covariance.low:g} and high {covariance.high:g}"
        yield RecipeError("objective.covariance.low", problem, "give a low below objective.covariance.high")


def check_drawing(rollout: RolloutKeys, generation: object) -> Iterator[RecipeError]:
    """Completions that are drawn in more than one go (of the section `generation`): by the model itself, in batches."""
    gone_on = [name for name in ("tree", "again", "force", "partial") if getattr(generation, name, None) is not None]
    for name, off in (("dtype", None), ("batch_invariant", False)):
        if gone_on and (value := getattr(rollout, name)) != off:
            problem = (
                f"got {show(value)}, but with generation.{gone_on[0]} completions go on in batches of the model's own"
            )
            remedy = f"set rollout.{name}={'null' if off is None else 'false'}, or generation.{gone_on[0]}=null"
            yield RecipeError(f"rollout.{name}", problem, remedy)


def check_static(recipe: Recipe) -> Iterator[RecipeError]:
    """What a static cache does not go with."""
    rollout, agent = recipe.rollout, recipe.environment is not None and recipe.environment.agent is not None
    if rollout.cache != "static":
        return
    beside = {
        "rollout.engine": (rollout.engine, "a server draws, with a cache of its own"),
        "rollout.batch_invariant=true": (rollout.batch_invariant, "rows are to go through the model alone"),
        "rollout.dtype=int8": (rollout.dtype == "int8", "it rounds by the largest of a batch, ended rows among them"),
        "environment.agent": (agent, "its calls are answered in batches of their own"),
        "block_offload=true": (recipe.block_offload, "the weights come and go block by block"),
        "quantize": (recipe.quantize, "weights in few bits have not been tried with it"),
        "parallel.kind=fsdp": (recipe.parallel.kind == "fsdp", "a rank holds a part of the weights"),
    }
    for place, (there, why) in beside.items():
        if there:
            problem = f"got 'static' beside {place}, but {why}"
            yield RecipeError("rollout.cache", problem, f"set rollout.cache=true, or leave {place} out")


def _rejections(correction: CorrectionKeys) -> Iterator[RecipeError]:
    for i, rejection in enumerate(correction.reject):
        place = f"objective.correction.reject.{i}"
        if rejection.by != "k1" and rejection.low is not None:
            problem = f"got {rejection.low:g}, but {rejection.by} is never negative and has the bound high alone"
            yield RecipeError(f"{place}.low", problem, "remove it, or reject by k1")
        if rejection.by == "k1" and rejection.level == "seq_max":
            problem = "got 'seq_max', but k1 has two bounds"
            yield RecipeError(f"{place}.level", problem, "accepted with by k1: token, seq_sum or seq_mean")
        if rejection.by == "k1" and (rejection.low or 1 / rejection.high) >= rejection.high:
            problem = f"got high {rejection.high:g}" + (f" and low {rejection.low:g}" if rejection.low else "")
            yield RecipeError(f"{place}.high", problem, "give a high above low; without low, one above 1")
