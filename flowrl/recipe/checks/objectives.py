"""What a recipe may say of a loss that reads more of a decision than its log-probability, and of selected rows."""

from collections.abc import Iterator

from flowrl.recipe.checks.correction import check_correction
from flowrl.recipe.checks.credit import check_step_credit
from flowrl.recipe.errors import RecipeError, show
from flowrl.recipe.keys.reference import place_of
from flowrl.recipe.schema import ObjectiveKeys, Recipe
from flowrl.recipe.sections import Own

# Keys of denoising steps, and the value that leaves each out.
OF_STEPS = {"weight": "none", "ratio": "plain", "kl_mask": None, "guidance_gradient": "both"}

OF_BOTH = ("inverse_entropy",)  # values of these keys that tokens have too
CLIPPED = ("ppo", "is_clip", "log_clip_then_mean", "inverse")  # gates that read the clip
# The gate that reads a key, of those that few read; their names are those of flowrl/core/objectives/gates.py.
OF_GATES = {
    "dual": ("ppo", "inverse"),
    "kl_mask": ("ppo",),
    "tau_pos": ("sigmoid",),
    "tau_neg": ("sigmoid",),
    "k_pos": ("gamma",),
    "lambda_pos": ("gamma",),
    "k_neg": ("gamma",),
    "lambda_neg": ("gamma",),
}


def check_gate(recipe: Recipe) -> Iterator[RecipeError]:
    """Keys of another gate than the recipe's."""
    objective = recipe.objective
    if isinstance(objective, Own):
        return
    yield from check_correction(recipe)
    if objective.kl_kind != "jsd" and objective.kl_mix != ObjectiveKeys.model_fields["kl_mix"].default:
        problem = f"got {objective.kl_mix:g}, which kl_kind {objective.kl_kind!r} does not read; jsd does"
        yield RecipeError("objective.kl_mix", problem, "set objective.kl_mix=0.5, or objective.kl_kind=jsd")
    if objective.covariance is not None and objective.covariance.kind == "kl" and objective.gate != "ratio":
        problem = f"got kind 'kl', whose loss is not clipped, but objective.gate is {objective.gate!r}"
        yield RecipeError("objective.covariance.kind", problem, "set objective.gate=ratio, or kind clip")
    for name, gates in OF_GATES.items():
        default = ObjectiveKeys.model_fields[name].default
        if objective.gate not in gates and (value := getattr(objective, name)) != default:
            problem = f"got {show(value)}, which gate {objective.gate!r} does not read; {' and '.join(gates)} "
            problem += "does" if len(gates) == 1 else "do"
            remedy = f"set objective.{name}={'null' if default is None else default}, or objective.gate={gates[0]}"
            yield RecipeError(f"objective.{name}", problem, remedy)
    if objective.gate == "log_clip_then_mean" and objective.level != "token":
        problem = f"got {objective.level!r}, but gate 'log_clip_then_mean' already takes the mean of a row"
        yield RecipeError("objective.level", problem, "set objective.level=token")


def check_step_objective(recipe: Recipe) -> Iterator[RecipeError]:
    """Everything about objective.weight and what is of tokens that cannot work where decisions are steps."""
    yield from _weights(recipe)
    yield from check_step_credit(recipe)
    if recipe.advantage.baseline == "given":
        problem = "got 'given', the reward of a greedy completion, but the decisions here are denoising steps"
        yield RecipeError("advantage.baseline", problem, "set advantage.baseline=group")
    yield from _of_tokens(recipe)


def check_token_objective(recipe: Recipe) -> Iterator[RecipeError]:
    """Everything about objective.weight, ratio, kl_mask and kl_kind that cannot work where decisions are tokens."""
    objective = recipe.objective
    for name, off in OF_STEPS.items():
        if (value := getattr(objective, name)) != off and value not in OF_BOTH:
            problem = f"got {show(value)}, which is about denoising steps, but `generation` makes tokens"
            yield RecipeError(f"objective.{name}", problem, f"set objective.{name}={'null' if off is None else off}")
    for number, one in enumerate(recipe.references):
        if one.pipeline is not None:
            place = place_of(recipe.reference, number, "pipeline")
            problem = "got a mapping, but the call of a language model has no arguments"
            yield RecipeError(place, problem, f"set {place}=null")
        if one.steps > 1:
            place = place_of(recipe.reference, number, "steps")
            yield RecipeError(place, f"got {one.steps}, but tokens have no steps between them", f"set {place}=1")
    if isinstance(recipe.reference, list) or recipe.reference.when is not None:
        problem = "got references by prompt, but a language model has one for all"
        yield RecipeError("reference", problem, "give a mapping without when")
    if objective.kl > 0 and objective.kl_kind == "exact_dt":
        problem = "got 'exact_dt', exact times the length of a denoising step, but `generation` makes tokens"
        yield RecipeError("objective.kl_kind", problem, "accepted: exact, k1, k2, k3, abs, forward or jsd")


def _weights(recipe: Recipe) -> Iterator[RecipeError]:
    weight = recipe.objective.weight
    if isinstance(weight, str):
        return
    if not weight or min(weight) < 0 or max(weight) == 0:
        remedy = "none, noise, inverse_dt, or a list of numbers >= 0 of which one is above 0"
        yield RecipeError("objective.weight", f"got {show(weight)}", f"accepted: {remedy}")


def _of_tokens(recipe: Recipe) -> Iterator[RecipeError]:
    objective = recipe.objective
    steps = "but the decisions here are denoising steps"
    if (share := objective.entropy_share) is not None:
        problem = f"got {share:g}, a share of tokens by their entropy, {steps}"
        yield RecipeError("objective.entropy_share", problem, "set objective.entropy_share=null")
    for name, off in (("entropy", 0.0), ("entropy_target", None)):
        if (value := getattr(objective, name)) != off:
            problem = f"got {show(value)}, of the entropy of tokens, {steps}, whose entropy is that of their noise"
            yield RecipeError(f"objective.{name}", problem, f"set objective.{name}={'null' if off is None else 0}")
    if objective.weight == "inverse_entropy":
        problem = f"got 'inverse_entropy', of the entropy of tokens, {steps}"
        yield RecipeError("objective.weight", problem, "accepted: none, noise, inverse_dt, or a list of numbers")
    if objective.kl_kind in ("forward", "jsd"):
        problem = f"got {objective.kl_kind!r}, of distributions over a vocabulary, {steps}"
        yield RecipeError("objective.kl_kind", problem, "accepted: exact, exact_dt, k1, k2, k3 or abs")
    if recipe.rollout.dtype is not None:
        problem = f"got {recipe.rollout.dtype!r}, but a pipeline draws with the modules that train"
        yield RecipeError("rollout.dtype", problem, "set rollout.dtype=null, or dtype.model for both")
    if recipe.rollout.batch_invariant:
        problem = "got true, which is of language models"
        yield RecipeError("rollout.batch_invariant", problem, "set rollout.batch_invariant=false")
    if recipe.rollout.cache is not True:
        problem = f"got {show(recipe.rollout.cache)}, which is of language models"
        yield RecipeError("rollout.cache", problem, "set rollout.cache=true")
    if recipe.rollout.engine is not None:
        problem = f"got {recipe.rollout.engine.use!r}, a server of language models"
        yield RecipeError("rollout.engine", problem, "set rollout.engine=null")


def check_kl_mask(recipe: Recipe, unit_variance: bool) -> Iterator[RecipeError]:
    """A mask by the divergence where it cannot be read off. unit_variance: whether the step's score is no density."""
    if recipe.objective.kl_mask is None:
        return
    got = f"got {recipe.objective.kl_mask:g}, but the divergence is read off log-densities that are means over elements"
    if recipe.sampler.reduce != "mean":
        yield RecipeError("objective.kl_mask", f"{got}, and sampler.reduce is sum", "set sampler.reduce=mean")
    elif unit_variance:
        problem = f"{got}, which step {recipe.sampler.step!r} is not scored by"
        yield RecipeError("objective.kl_mask", problem, "set objective.kl_mask=null, or another sampler.step")


def check_keep(recipe: Recipe) -> Iterator[RecipeError]:
    """A number of kept rows that no group can be cut to."""
    keep, group, by = recipe.train.keep, recipe.train.group, recipe.train.keep_by
    if recipe.train.keep_fill and (keep is None or recipe.train.prompts * group % keep):
        whole = f"a divisor of train.prompts * train.group = {recipe.train.prompts * group}"
        problem = f"got true, and train.keep is {show(keep)}; accepted: {whole}"
        yield RecipeError("train.keep_fill", problem, "change train.keep, or set train.keep_fill=false")
    if keep is None:
        if by != "extremes":
            problem = f"got {by!r}, but train.keep does not say how many rows are kept"
            yield RecipeError("train.keep_by", problem, "set train.keep, or train.keep_by=extremes")
        return
    if by != "extremes":
        if keep >= group:
            problem = f"got {keep}, accepted: a whole number from 1 to {group - 1}, below train.group = {group}"
            yield RecipeError("train.keep", problem, "change it, or set train.keep=null to train all rows")
        return
    if keep % 2 or keep >= group:
        problem = (
            f"got {keep}, accepted: an even number from 2 to {2 * ((group - 1) // 2)}, below train.group = {group}"
        )
        remedy = "change it, or set train.keep=null to train all rows"
        yield RecipeError("train.keep", problem, remedy)
