"""The keys of `environment`: what answers a language model between its turns, and whether the recipe fits it."""

import builtins
from collections.abc import Iterator
from typing import TYPE_CHECKING, Annotated, Literal

from pydantic import BeforeValidator

from flowrl import names
from flowrl.recipe.base import Strict, key
from flowrl.recipe.errors import RecipeError, show, wrong_value
from flowrl.recipe.sections import check_arguments, keys
from flowrl.untyped import JSON

if TYPE_CHECKING:
    from flowrl.recipe.begun import DrawAgain, TokenTree
    from flowrl.recipe.generation import GenerationKeys
    from flowrl.recipe.schema import Recipe


class ToolSpec(Strict):
    """A tool: its short name (`flowrl list tools`) or a dotted path. args: of a class, given when it is made."""

    use: str = key(..., "the name of a tool or a dotted path", min_length=1)
    args: dict[str, JSON] = key({}, "a mapping of argument names to values")


Named = Annotated[ToolSpec, BeforeValidator(lambda value: {"use": value} if isinstance(value, str) else value)]


class EnvironmentKeys(Strict):
    """What a language model talks to: `tools`, or an environment of the user's own, `use`, with its `args`; or who asks
    it: a function of the user's own, `agent` (flowrl/engines/agents.py), with its `args`.

    turns: the most of the model in a conversation; generation.max_new_tokens limits what it draws and is shown in all
    of them together, turn_tokens what it draws in one (null: what is left). calls: of one turn, the most that are run
    (null: all). deadline: seconds that a call may take (null: any time); workers: conversations that are answered at
    once. faults: built-in exceptions, such as ValueError, of tools whose text is shown to the model; all others, but
    ModelsFault, leave the sample without a score.

    role: of messages that answer, where the chat template has both (null: tool where it is exact, else user). frame: a
    text with {text} in it that takes the place of the template. tell: how the model learns of its tools: by its chat
    template, or not at all (none), where it was trained on them or the prompts say it. Of an agent, a turn is a call of
    the model, and deadline is for all that it does. batch: of agents, the most calls at the same time that are drawn
    together; above 1 that is faster, and the last bits of a log-prob depend on who asks when: runs do not repeat.
    """

    tools: list[Named] = key([], "a list of tools: names, dotted paths, or mappings with use and args")
    use: str | None = key(None, "a dotted path to an environment, or null", min_length=1)
    args: dict[str, JSON] = key({}, "a mapping of argument names to values")
    agent: str | None = key(None, "a dotted path to a function (base_url, prompt), or null", min_length=1)
    turns: int = key(8, "a whole number >= 1", ge=1)
    turn_tokens: int | None = key(None, "a whole number >= 1 or null", ge=1)
    calls: int | None = key(None, "a whole number >= 1 or null", ge=1)
    deadline: float | None = key(60.0, "seconds > 0 or null", gt=0)
    workers: int = key(16, "a whole number >= 1", ge=1)
    batch: int = key(1, "a whole number >= 1", ge=1)
    faults: list[str] = key([], "a list of names of built-in exceptions")
    role: Literal["tool", "user"] | None = key(None, "tool, user or null")
    frame: str | None = key(None, "a text with {text} in it, or null", min_length=1)
    tell: Literal["template", "none"] = key("template", "template or none")


class EarlyCall(Strict):
    """Advantage shaping (arXiv:2508.19201, the first of two methods called ASPO): a right conversation's advantage A is
    shifted by delta (p - mean p) / mean L, at most by limit |A|.

    p: how many tokens the model had drawn when its first call was said, L: how many it drew, both of the right
    conversations of a prompt that call. delta: below 0 earlier calls are worth more. limit: a share of the advantage.
    right: the sum of rewards above which a conversation is right.
    """

    delta: float = key(..., "a number")
    limit: float = key(..., "a number in (0, 1]", gt=0, le=1)
    right: float = key(0.0, "a number")


def check_environment(recipe: "Recipe", generation: "GenerationKeys") -> Iterator[RecipeError]:
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


def _beside(recipe: "Recipe", generation: "GenerationKeys") -> Iterator[RecipeError]:
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


def _of_turns(name: str, section: "TokenTree | DrawAgain | None") -> Iterator[RecipeError]:
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


def _of_agents(recipe: "Recipe", given: EnvironmentKeys) -> Iterator[RecipeError]:
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
