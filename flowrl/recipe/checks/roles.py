"""What a recipe with several roles shows, and what of it cannot work."""

from collections.abc import Iterator, Mapping

from flowrl.recipe.errors import RecipeError, show, wrong_value
from flowrl.recipe.keys.generation import GenerationKeys
from flowrl.recipe.keys.roles import Roles
from flowrl.recipe.schema import Recipe

QUESTION, SAID, TEXT = "{question}", "{said}", "{text}"


TAKEN = ("default", "reference")  # how adapters of a single policy are called


def contributions(recipe: Recipe) -> int:
    """Rows of a sample of train.group: what is said in a discussion, or one completion."""
    return 1 if recipe.roles is None else recipe.roles.contributions


def check_roles(recipe: Recipe, given: GenerationKeys) -> Iterator[RecipeError]:
    """Everything about roles that cannot work."""
    roles = recipe.roles
    if roles is None:
        return
    yield from _names(roles)
    yield from _texts(roles)
    if recipe.lora is None:
        problem = "given, but full: true trains one set of weights, and each role has adapters of its own"
        yield RecipeError("roles", problem, "set lora={rank: 32} and full=false")
    elif recipe.lora.begun is not None:
        problem = f"got {show(recipe.lora.init)} beside roles, whose adapters all begin as the unchanged model"
        yield RecipeError("lora.init", problem, "set lora.init=default")
    if roles.adapters == "rounds" and roles.rounds == 1:
        yield RecipeError("roles.adapters", "got 'rounds', but there is one round", "set roles.rounds=2 or more")
    if roles.share in ("team", "last") and roles.discount != 1.0:
        problem = f"got {roles.discount:g}, which share {roles.share!r} does not read"
        yield RecipeError("roles.discount", problem, "remove roles.discount")
    yield from _others(recipe, given)


def _names(roles: Roles) -> Iterator[RecipeError]:
    accepted = "two or more different words of letters, digits and _"
    if len(set(roles.names)) < len(roles.names) or not all(name.isidentifier() for name in roles.names):
        yield wrong_value("roles.names", roles.names, accepted)
    if taken := [name for name in roles.names if name.startswith(TAKEN)]:
        yield wrong_value("roles.names", roles.names, f"{accepted} that do not begin like {taken[0]!r}")


def _texts(roles: Roles) -> Iterator[RecipeError]:
    asked: Mapping[str, str] = roles.ask if isinstance(roles.ask, dict) else {"": roles.ask}
    for name, text in asked.items():
        place = f"roles.ask.{name}" if name else "roles.ask"
        if name and name not in roles.names:
            yield RecipeError(place, f"{name!r} does not speak", f"accepted: {', '.join(roles.names)}")
        if QUESTION not in text or SAID not in text:
            yield wrong_value(place, text, "a text with {question} and {said} in it")
    if TEXT not in roles.line:
        yield wrong_value("roles.line", roles.line, "a text with {text} in it")


def _others(recipe: Recipe, given: GenerationKeys) -> Iterator[RecipeError]:
    """Keys that do not go along with rows of several roles."""
    train, objective = recipe.train, recipe.objective
    beside = {f"generation.{name}": getattr(given, name) for name in ("tree", "again", "force", "partial")}
    beside |= {f"train.{name}": getattr(train, name) for name in ("budget", "store", "resample")}
    beside |= {"train.skip_truncated": train.skip_truncated or None}
    beside |= {"train.pool": train.pool if train.pool > 1 else None}
    beside |= {f"objective.{name}": getattr(objective, name, None) for name in ("loss", "right", "expert", "pairs")}
    rollout = recipe.rollout
    beside |= {"environment": recipe.environment, "rollout.engine": rollout.engine}
    beside |= {"rollout.dtype": rollout.dtype, "rollout.batch_invariant": rollout.batch_invariant or None}
    beside |= {"reference.use": "lora" if any(one.use == "lora" for one in recipe.references) else None}
    beside |= {"train.source": "files" if train.reads_files else None}
    for place, value in beside.items():
        if value is not None:
            problem = f"got {show(value)} beside roles, which hold discussions and train all that is said in them"
            yield RecipeError(place, problem, f"remove {place}, or set roles=null")
    credit = getattr(getattr(recipe.advantage, "credit", None), "kind", "broadcast")
    if credit not in ("broadcast", "reward_to_go", "gae"):
        problem = f"got {credit!r} beside roles, accepted: broadcast, reward_to_go or gae"
        yield RecipeError("advantage.credit.kind", problem, "set advantage.credit=broadcast")
    if getattr(recipe.advantage, "baseline", None) == "given":
        problem = "got 'given' beside roles, and a greedy completion is no discussion"
        yield RecipeError("advantage.baseline", problem, "set advantage.baseline=group")
