"""The keys of credit of single decisions, and of a critic; and what of them cannot work."""

from collections.abc import Iterator
from typing import TYPE_CHECKING, Annotated, Literal

from pydantic import BeforeValidator

from flowrl.recipe.base import Strict, key
from flowrl.recipe.errors import RecipeError, show

if TYPE_CHECKING:
    from flowrl.recipe.generation import GenerationKeys
    from flowrl.recipe.schema import Recipe

# kind of credit -> the keys that it reads
CREDIT_KEYS: dict[str, tuple[str, ...]] = {
    "broadcast": (),
    "reward_to_go": ("gamma", "holes"),
    "gae": ("gamma", "lam", "lam_critic", "alpha"),
    "two_level": ("gamma", "lam", "turn_gamma"),
    "optimal_token": ("gamma",),
    "step": (),
    "flow": ("lam",),
    "prefix": (),
    "trees": (),
    "values": (),
    "nodes": (),
}
OF_TREES = ("prefix", "trees", "values", "nodes")  # kinds that recipe/begun.py checks
# what compares single steps as well as whole samples (core/process.py)
STEP_BASELINES = ("group", "batch", "none", "leave_one_out")
STEP_SCALES = ("group", "batch", "batch_centered", "nonzero", "rms_group", "rms_batch", "whiten", "none")
OF_VALUES = ("gae", "two_level", "flow")  # kinds that read a critic


class CreditKeys(Strict):
    """How the reward of a sample reaches its decisions, after `baseline` and `scale`; `whiten` then is over decisions.

    broadcast: all get the same. reward_to_go: each the rewards that follow it, discounted by gamma, which with a
    divergence in the reward (objective.kl_in) differ between decisions (REINFORCE++). gae: generalised advantage
    estimation with the values of a `critic` (PPO); lam, and lam_critic for what the critic is fitted to (VC-PPO; null:
    lam); alpha: in place of lam, 1 - 1 / (alpha l) for a row of l decisions (VAPO: 0.05). two_level: over turns with
    turn_gamma, then within them (StarPO). optimal_token: of language models, returns less the baseline of least
    variance at each position of a group's rows. step: of language models, rewards of steps normalised over all steps of
    a group, of which a token gets the sum of those from it on; what values whole answers is one step, at the end (GRPO
    with process supervision). The others take rewards of steps as they are. Rewards pass through what the model did not
    say; holes: restart begins anew there, as verl's REINFORCE++ did. Of trees of tokens: prefix, less the means of all
    that share a prefix (TreePO), or trees, within the tree and within the prompt (Tree-GRPO). values: the change of a
    step's value (VinePPO), nodes: the value of a segment that a search found (DeepSearch). flow: of objective.loss of
    kind sub_balance, how the logarithm of a text's flow, given by a `critic`, grows by a token; lam: as of gae, of what
    the critic is fitted to.
    """

    kind: Literal[
        "broadcast",
        "reward_to_go",
        "gae",
        "two_level",
        "optimal_token",
        "step",
        "flow",
        "prefix",
        "trees",
        "values",
        "nodes",
    ] = key(
        "broadcast",
        "broadcast, reward_to_go, gae, two_level, optimal_token, step, flow, prefix, trees, values or nodes",
    )
    gamma: float = key(1.0, "a number in (0, 1]", gt=0, le=1)
    lam: float = key(1.0, "a number in [0, 1]", ge=0, le=1)
    lam_critic: float | None = key(None, "a number in [0, 1] or null", ge=0, le=1)
    alpha: float | None = key(None, "a number > 0 or null", gt=0)
    turn_gamma: float = key(0.95, "a number in (0, 1]", gt=0, le=1)
    holes: Literal["skip", "restart"] = key("skip", "skip or restart")


Credit = Annotated[CreditKeys, BeforeValidator(lambda v: {"kind": v} if isinstance(v, str) else v)]


class CriticKeys(Strict):
    """What expects the return of each token, for advantage.credit of kind gae, two_level or flow; a second model.

    use: copy, a copy of `model` whose weights all learn; model, so one from `path`, with the same tokens, such as a
    reward model's; lora, a frozen copy with adapters of this rank. Each has a linear head that begins at 0. lr, clip
    (of values around those of the rollout; null: none), epochs, updates (null: those of train) and max_grad_norm are
    its own; optimizer, adam_epsilon, betas, weight_decay, schedule and the steps of warmup are those of train. warmup:
    iterations at the run's beginning that fit the critic alone (value pretraining of VC-PPO).
    """

    use: Literal["copy", "model", "lora"] = key("copy", "copy, model or lora")
    path: str | None = key(None, "a hub id or a folder, or null", min_length=1)
    rank: int = key(32, "a whole number >= 1", ge=1)
    lr: float = key(1e-5, "a number > 0", gt=0)
    clip: float | None = key(0.5, "a number > 0 or null", gt=0)
    epochs: int | None = key(None, "a whole number >= 1 or null", ge=1)
    updates: int | None = key(None, "a whole number >= 1 or null", ge=1)
    warmup: int = key(0, "a whole number >= 0", ge=0)
    max_grad_norm: float | None = key(1.0, "a number > 0 or null", gt=0)


def check_credit(recipe: "Recipe") -> Iterator[RecipeError]:
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


def _of_decisions(recipe: "Recipe", kind: str) -> Iterator[RecipeError]:
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


def _of_steps(recipe: "Recipe") -> Iterator[RecipeError]:
    """Keys that compare whole samples, beside credit of steps."""
    given, why = recipe.advantage, "which is about whole samples, beside credit 'step'"
    for name, accepted in {"baseline": STEP_BASELINES, "scale": STEP_SCALES}.items():
        if (value := getattr(given, name)) not in accepted:
            yield RecipeError(f"advantage.{name}", f"got {value!r}, {why}", f"accepted: {', '.join(accepted)}")
    for name, off in {"standardise": False, "groups": 1.0}.items():
        if (value := getattr(given, name)) != off:
            yield RecipeError(f"advantage.{name}", f"got {show(value)}, {why}", f"remove advantage.{name}")


def check_token_credit(recipe: "Recipe", given: "GenerationKeys") -> Iterator[RecipeError]:
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


def check_step_credit(recipe: "Recipe") -> Iterator[RecipeError]:
    """Credit and a critic that only tokens have."""
    kind = recipe.advantage.credit.kind
    if kind not in ("broadcast", "reward_to_go"):
        problem = f"got {kind!r}, which is about tokens, but the decisions here are denoising steps"
        yield RecipeError("advantage.credit.kind", problem, "accepted: broadcast or reward_to_go")
    if recipe.critic is not None:
        yield RecipeError("critic", "given, but only language models have one", "set critic=null")


def _critic(recipe: "Recipe", kind: str) -> Iterator[RecipeError]:
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


def _kl_in_reward(recipe: "Recipe", kind: str) -> Iterator[RecipeError]:
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
