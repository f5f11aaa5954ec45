"""Whether a recipe's choice of prompts, and its samples beyond a group's, go with what else it says."""

from collections.abc import Iterator

from flowrl.names import hint
from flowrl.recipe.errors import RecipeError, show, wrong_value
from flowrl.recipe.kinds import check_keys
from flowrl.recipe.schema import Recipe
from flowrl.recipe.sections import Own, key_table

CHOICE_KEYS = key_table("choice")
FORGETFUL = ("shuffle", "curriculum")  # choices that read no rewards


def check_choice(recipe: Recipe) -> Iterator[RecipeError]:
    """Everything about `prompts.choose` and `prompts.remember` that cannot work."""
    choose, name = recipe.prompts.choose, recipe.prompts.remember
    if name is not None and name not in recipe.rewards:
        listed = ", ".join(recipe.rewards)
        problem = f"got {show(name)}, accepted: a reward of the recipe: {listed}{hint(name, list(recipe.rewards))}"
        yield RecipeError("prompts.remember", problem, "correct it, or set prompts.remember=null")
    if choose.kind == "shuffle":
        yield from check_keys("prompts.choose", choose, "shuffle", CHOICE_KEYS["shuffle"])
        return
    if recipe.prompts.balance is not None:
        problem = f"got {show(recipe.prompts.balance)}, but with prompts.choose each prompt has its own chance"
        yield RecipeError("prompts.balance", problem, "set prompts.balance=null, or prompts.choose=shuffle")
    by_meta = choose.kind == "pass_rate" and choose.key is not None
    if not isinstance(choose, Own) and choose.kind not in FORGETFUL and not by_meta:
        if recipe.train.source != "rollouts" or not recipe.scores_train:
            problem = f"got {choose.kind!r}, which goes by rewards of training samples, and none is computed here"
            yield RecipeError("prompts.choose.kind", problem, "accepted: shuffle or curriculum")
    if isinstance(choose, Own):
        return
    yield from check_keys("prompts.choose", choose, choose.kind, CHOICE_KEYS[choose.kind])
    if choose.kind == "tiers":
        yield from _tiers(choose.bounds, choose.shares)


def _tiers(bounds: list[float] | None, shares: list[float] | None) -> Iterator[RecipeError]:
    bounds, shares = [0.1, 0.9] if bounds is None else bounds, [0.25, 1.0, 0.1] if shares is None else shares
    if not bounds or bounds != sorted(set(bounds)):
        yield wrong_value("prompts.choose.bounds", bounds, "a list of mean rewards that rise, such as [0.1, 0.9]")
    elif len(shares) != len(bounds) + 1 or min(shares) < 0 or max(shares) == 0:
        accepted = f"{len(bounds) + 1} numbers >= 0, one for each tier between the bounds, of which one is above 0"
        yield wrong_value("prompts.choose.shares", shares, accepted)


def check_budget(recipe: Recipe) -> Iterator[RecipeError]:
    """Everything about `train.budget` that cannot work."""
    train, budget = recipe.train, recipe.train.budget
    if budget is None:
        return
    if budget.limit <= train.group:
        problem = f"got {budget.limit}, accepted: above train.group = {train.group}"
        yield RecipeError("train.budget.limit", problem, "raise it, or set train.budget=null")
    loss = None if isinstance(recipe.objective, Own) else recipe.objective.loss
    others = {
        "train.refill": bool(train.refill),
        "sampler.tree": recipe.sampler.tree is not None,
        "train.source": train.source != "rollouts",
        "objective.loss.kind": loss is not None and loss.kind in ("dgpo", "crd"),
        "advantage.baseline": recipe.advantage.baseline in ("pass_at_k", "given"),
    }
    for place, clashes in others.items():
        if clashes:
            got = "a mapping, but groups of unequal size do not go with"
            yield RecipeError(
                "train.budget", f"got {got} {place} as it is", f"set train.budget=null, or change {place}"
            )
            return
    if not recipe.scores_train:
        yield RecipeError("train.budget", "got a mapping, but no reward is computed here", "set train.budget=null")
