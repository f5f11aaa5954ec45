"""Whether a recipe fits its environment: what answers a language model between its turns."""

import builtins
from collections.abc import Iterator

from flowrl import names
from flowrl.recipe.errors import RecipeError, show, wrong_value
from flowrl.recipe.keys.begun import DrawAgain, TokenTree
from flowrl.recipe.keys.environment import EnvironmentKeys
from flowrl.recipe.keys.generation import GenerationKeys
from flowrl.recipe.schema import Recipe
from flowrl.recipe.sections import check_arguments, keys
from flowrl.untyped import JSON


def check_environment(recipe: Recipe, generation: GenerationKeys) -> Iterator[RecipeError]:
    """Everything about `environment` that cannot work with a language model. A user's own modules are imported."""
    given = recipe.environment
    early = getattr(recipe.advantage, "early", None)
    if early is not None and (given is None or given.agent is not None or recipe.advantage.credit.kind != "broadcast"):
        problem = "given, but it shifts the advantages of conversations with an environment, under credit broadcast"
        yield RecipeError("advantage.early", problem, "set advantage.early=null, or environment and credit=broadcast")
    if given is None:
        return
    if sum((bool(given.tools), given.use is not None, given.agent is not None)) != 1:
        named = [name for name in ("tools", "use", "agent") if getattr(given, name)]
        problem = f"got {' and '.join(named) or 'none of them'}, accepted: exactly one of tools, use and agent"
        yield RecipeError("environment.tools", problem, "name tools, or set environment.use to an environment")
    if given.frame is not None and given.frame.count("{text}") != 1:
        yield wrong_value("environment.frame", given.frame, "a text with {text} in it, once")
    for name in given.faults:
        found = getattr(builtins, name, None)
        if not (isinstance(found, type) and issubclass(found, Exception)):
            yield wrong_value("environment.faults", name, "names of built-in exceptions, such as ValueError")
    if given.batch > 1 and (given.agent is None or recipe.rollout.batch_invariant):
        why = "without environment.agent" if given.agent is None else "beside rollout.batch_invariant, with which"
        why += ", whose turns go in batches anyway" if given.agent is None else " each call is drawn alone"
        yield RecipeError("environment.batch", f"got {given.batch} {why}", "set environment.batch=1")
    yield from _beside(recipe, generation)
    for number, spec in enumerate(given.tools):
        yield from _named(f"environment.tools.{number}", "tool", spec.use, spec.args)
    for kind, name in (("environment", given.use), ("agent", given.agent)):
        if name is not None:
            yield from _named("environment", kind, name, given.args)
    if given.agent is not None:
        yield from _of_agents(recipe, given)


def _named(place: str, kind: str, use: str, args: dict[str, JSON]) -> Iterator[RecipeError]:
    try:
        entry = names.find(use, names.shipped(kind), kind)
    except names.UserError as error:
        yield RecipeError(f"{place}.{'agent' if kind == 'agent' else 'use'}", str(error), f"name another {kind}")
        return
    yield from check_arguments(f"{place}.args", args, entry, tuple(p.name for p in keys(kind, entry)))


def _beside(recipe: Recipe, generation: GenerationKeys) -> Iterator[RecipeError]:
    """Keys that draw completions in another way, or read what conversations do not have."""
    agent = recipe.environment is not None and recipe.environment.agent is not None
    for name in ("tree", "again", "force") if agent else ():
        if getattr(generation, name) is not None:
            problem = "given beside environment.agent, which asks for completions as it likes"
            yield RecipeError(f"generation.{name}", problem, f"set generation.{name}=null")
    if generation.partial is not None:
        problem = f"got {generation.partial}, but an environment does not live on to the next iteration"
        yield RecipeError("generation.partial", problem, "set generation.partial=null, or environment=null")
    for name in () if agent else ("tree", "again"):
        yield from _of_turns(name, getattr(generation, name))
    if recipe.roles is not None:
        problem = "given beside environment, but each of them says who answers whom"
        yield RecipeError("roles", problem, "set roles=null, or environment=null")
    for name in ("dtype", "engine") if agent else ():
        if (value := getattr(recipe.rollout, name)) is not None:
            got = value.use if name == "engine" else value
            problem = f"got {show(got)}, but an agent asks the model itself"
            yield RecipeError(f"rollout.{name}", problem, f"set rollout.{name}=null")
    if recipe.advantage.credit.kind == "optimal_token":
        problem = "got 'optimal_token', whose statistics are not kept of conversations"
        yield RecipeError("advantage.credit", problem, "set advantage.credit=reward_to_go")


def _of_turns(name: str, section: TokenTree | DrawAgain | None) -> Iterator[RecipeError]:
    """What of generation.tree and again cannot be drawn turn by turn."""
    if section is None:
        return
    kinds = ("tree_grpo", "deepsearch") if name == "tree" else ("hints", "values")
    place = f"generation.{name}"
    if section.kind not in kinds:
        problem = f"got {section.kind!r} beside environment, whose conversations are drawn turn by turn"
        yield RecipeError(f"{place}.kind", problem, f"accepted: {', '.join(kinds)}; or set {place}=null")
    for key_name in ("segment", "split"):
        if (value := getattr(section, key_name)) is not None:
            problem = f"got {show(value)}, but beside environment a step is a turn"
            yield RecipeError(f"{place}.{key_name}", problem, f"set {place}.{key_name}=null")


def _of_agents(recipe: Recipe, given: EnvironmentKeys) -> Iterator[RecipeError]:
    """What agents have no say in, and what reads rows as samples: an agent's sample may be several rows."""
    for name, off in (("calls", None), ("faults", []), ("role", None), ("frame", None), ("tell", "template")):
        if (value := getattr(given, name)) != off:
            problem = f"got {show(value)}, but an agent runs its own tools, and writes its own messages"
            yield RecipeError(f"environment.{name}", problem, f"remove environment.{name}")
    objective, train = recipe.objective, recipe.train
    of_rows = {
        "advantage.credit": recipe.advantage.credit.kind != "broadcast",
        "objective.aggregate": getattr(objective, "aggregate", None) == "constant",
        "objective.entropy_share": getattr(objective, "entropy_share", None) is not None,
        "objective.weight": getattr(objective, "weight", None) == "inverse_entropy",
        "objective.right": getattr(objective, "right", None) is not None,
        "critic": recipe.critic is not None,
        "train.keep": train.keep is not None,
        "train.skip_truncated": train.skip_truncated,
        "train.store": train.store is not None,
    }
    for place, given_too in of_rows.items():
        if given_too:
            problem = "given, and reads a sample as one row that the model drew; an agent's sample may be several"
            yield RecipeError(place, problem, f"leave {place} out")
