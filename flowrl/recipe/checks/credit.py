"""Which credit of single decisions, and which critic, cannot work in a recipe."""

from collections.abc import Iterator

from flowrl.recipe.errors import RecipeError, show
from flowrl.recipe.keys.credit import CREDIT_KEYS, OF_TREES, CreditKeys
from flowrl.recipe.keys.generation import GenerationKeys
from flowrl.recipe.schema import Recipe

# what compares single steps as well as whole samples (core/advantages/process.py)
STEP_BASELINES = ("group", "batch", "none", "leave_one_out")


STEP_SCALES = ("group", "batch", "batch_centered", "nonzero", "rms_group", "rms_batch", "whiten", "none")


OF_VALUES = ("gae", "two_level", "flow")  # kinds that read a critic


def check_credit(recipe: Recipe) -> Iterator[RecipeError]:
    """Credit, critic and a divergence in the reward that do not fit each other or the recipe."""
    credit, critic = recipe.advantage.credit, recipe.critic
    kind = credit.kind
    defaults = {name: field.default for name, field in CreditKeys.model_fields.items() if name != "kind"}
    for name, default in defaults.items():
        if name not in CREDIT_KEYS[kind] and (value := getattr(credit, name)) != default:
            problem = f"got {show(value)}, which credit {kind!r} does not read"
            yield RecipeError(f"advantage.credit.{name}", problem, f"remove advantage.credit.{name}")
    if credit.alpha is not None and credit.lam != 1.0:
        problem = f"got {credit.alpha:g} beside lam {credit.lam:g}, in whose place it stands"
        yield RecipeError("advantage.credit.alpha", problem, "remove one of the two")
    if kind not in ("broadcast", *OF_TREES):
        yield from _of_decisions(recipe, kind)
    if kind == "step":
        yield from _of_steps(recipe)
    if kind in OF_VALUES and critic is None:
        problem = f"got {kind!r}, which reads the values of a critic, but there is none"
        yield RecipeError("advantage.credit.kind", problem, "set critic={}, or advantage.credit={kind: reward_to_go}")
    if critic is not None:
        yield from _critic(recipe, kind)
    yield from _kl_in_reward(recipe, kind)


def _of_decisions(recipe: Recipe, kind: str) -> Iterator[RecipeError]:
    """Credit of decisions where rows are not samples, or no decision is looked at."""
    place, remedy = "advantage.credit.kind", "set advantage.credit=broadcast"
    if recipe.sampler.tree is not None:
        yield RecipeError(place, f"got {kind!r}, but in a tree rows are no samples whose decisions follow", remedy)
    loss = recipe.objective.loss
    if kind == "flow" and (loss is None or not loss.reads_flows):
        problem = "got 'flow', which objective.loss of kind sub_balance alone reads"
        yield RecipeError(place, problem, remedy)
    elif loss is not None and kind != "flow":
        problem = f"got {kind!r}, but objective.loss looks at finished samples, not at decisions"
        yield RecipeError(place, problem, remedy)
    if recipe.advantage.scale == "whiten_by_length":
        problem = f"got 'whiten_by_length', which whitens samples, beside credit {kind!r}"
        yield RecipeError("advantage.scale", problem, "set advantage.scale=whiten, over decisions")


def _of_steps(recipe: Recipe) -> Iterator[RecipeError]:
    """Keys that compare whole samples, beside credit of steps."""
    given, why = recipe.advantage, "which is about whole samples, beside credit 'step'"
    for name, accepted in {"baseline": STEP_BASELINES, "scale": STEP_SCALES}.items():
        if (value := getattr(given, name)) not in accepted:
            yield RecipeError(f"advantage.{name}", f"got {value!r}, {why}", f"accepted: {', '.join(accepted)}")
    for name, off in {"standardise": False, "groups": 1.0}.items():
        if (value := getattr(given, name)) != off:
            yield RecipeError(f"advantage.{name}", f"got {show(value)}, {why}", f"remove advantage.{name}")


def check_token_credit(recipe: Recipe, given: GenerationKeys) -> Iterator[RecipeError]:
    """Credit of tokens that were drawn in parts."""
    kind = recipe.advantage.credit.kind
    if kind == "step" and (given.tree or given.again):
        problem = "got 'step', but rewards of steps are not kept of completions that are drawn in parts"
        remedy = "remove generation.tree and again, or set advantage.credit=broadcast"
        yield RecipeError("advantage.credit.kind", problem, remedy)
    if kind == "optimal_token" and (given.tree or given.again or given.force):
        problem = "got 'optimal_token', but of completions that are drawn in parts no probabilities are kept"
        remedy = "remove generation.tree, again and force, or set advantage.credit=broadcast"
        yield RecipeError("advantage.credit.kind", problem, remedy)


def check_step_credit(recipe: Recipe) -> Iterator[RecipeError]:
    """Credit and a critic that only tokens have."""
    kind = recipe.advantage.credit.kind
    if kind not in ("broadcast", "reward_to_go"):
        problem = f"got {kind!r}, which is about tokens, but the decisions here are denoising steps"
        yield RecipeError("advantage.credit.kind", problem, "accepted: broadcast or reward_to_go")
    if recipe.critic is not None:
        yield RecipeError("critic", "given, but only language models have one", "set critic=null")


def _critic(recipe: Recipe, kind: str) -> Iterator[RecipeError]:
    critic = recipe.critic
    assert critic is not None
    if kind not in OF_VALUES:
        problem = f"given, but advantage.credit of kind {kind!r} reads no values"
        yield RecipeError("critic", problem, "set critic=null, or advantage.credit={kind: gae}")
    if (critic.use == "model") != (critic.path is not None):
        problem = f"got {show(critic.path)} with critic.use {critic.use!r}"
        yield RecipeError("critic.path", problem, "a path goes with critic.use=model, and only there")
    if critic.warmup >= recipe.train.iterations:
        problem = f"got {critic.warmup}, accepted: below train.iterations = {recipe.train.iterations}"
        yield RecipeError("critic.warmup", problem, "lower it or raise train.iterations")


def _kl_in_reward(recipe: Recipe, kind: str) -> Iterator[RecipeError]:
    objective = recipe.objective
    if objective.kl_in == "loss" or objective.kl == 0:
        return
    if objective.kl_kind not in ("k1", "k2", "k3", "abs"):
        problem = f"got {objective.kl_kind!r}, but objective.kl_in is reward, whose divergence is of single decisions"
        yield RecipeError("objective.kl_kind", problem, "accepted: k1, k2, k3 or abs")
    if objective.loss is not None or recipe.sampler.tree is not None:
        problem = "got 'reward', but only of drawn decisions in rows that are samples a divergence can be a reward"
        yield RecipeError("objective.kl_in", problem, "set objective.kl_in=loss")
    if kind in OF_TREES:
        problem = f"got 'reward', but advantage.credit {kind!r} reads the outcomes of leaves alone"
        yield RecipeError("objective.kl_in", problem, "set objective.kl_in=loss")
    if kind == "step":
        problem = "got 'reward', but advantage.credit 'step' normalises rewards of steps, and tokens are none"
        yield RecipeError("objective.kl_in", problem, "set objective.kl_in=loss")
    if kind == "broadcast" and recipe.advantage.combine != "sum":
        problem = "got 'reward', but advantage.combine is per_reward, which would scale the divergence on its own"
        yield RecipeError("objective.kl_in", problem, "set advantage.combine=sum")
    if not recipe.scores_train:
        problem = "got 'reward', but no reward counts"
        yield RecipeError("objective.kl_in", problem, "set objective.kl_in=loss, or give a reward a weight")
