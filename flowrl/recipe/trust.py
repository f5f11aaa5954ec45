"""What in somebody else's recipe would run their code, or hand them a secret: it is asked about before it is done.

A recipe is code: a dotted path in it imports a module, and runs it. Who runs a recipe says by that that they trust it.
Who only looks at a run (`flowrl eval`, `sample`, `export`, `compare` of a run's folder) does not, and is asked with
`--trust`. A short name of flowrl's own needs no trust; weights and checkpoints never do, since none is unpickled.
"""

from collections.abc import Iterator, Sequence
from pathlib import Path

from flowrl import names
from flowrl.names import UserError
from flowrl.recipe.load import load, load_unchecked
from flowrl.recipe.schema import Recipe
from flowrl.recipe.sections import own_parts

OURS = ("flowrl", "samplers", "reward_models")
FILE = "recipe.yaml"
PROGRAMS = ("command", "interpreter", "program")  # arguments of tools that are started


def load_run(run: Path, overrides: Sequence[str] = (), *, trust: bool = False) -> Recipe:
    """The checked recipe of a run's folder, after the overrides, which are the user's own words.

    Raises UserError where the folder's recipe names what needs trust and that is not given; nothing is imported then.
    """
    if not trust:
        refuse_untrusted(run, overrides)
    return load(str(run / FILE), overrides)


def refuse_untrusted(run: Path, overrides: Sequence[str] = ()) -> None:
    """Raises UserError where a run's recipe, with what the overrides leave of it, names what needs trust."""
    theirs = set(foreign(load_unchecked(run / FILE)))
    left = [part for part in foreign(load_unchecked(run / FILE, overrides)) if part in theirs]
    if left:
        place, what = left[0]
        more = f" and {len(left) - 1} more" if len(left) > 1 else ""
        raise UserError(
            f"{run / FILE}: {place} {what}{more}; add --trust if the run is yours or you have read what it names"
        )


def foreign(recipe: Recipe) -> Iterator[tuple[str, str]]:
    """(place, what it does) of all in a recipe that reaches beyond flowrl: modules, and secrets of the environment."""
    dotted = [(f"rewards.{name}.use", spec.use) for name, spec in recipe.rewards.items()]
    dotted += [("sampler.step", recipe.sampler.step)]
    dotted += [(f"{place}.kind", own.kind) for place, own in own_parts(recipe)]
    if (environment := recipe.environment) is not None:
        dotted += [(f"environment.tools.{i}.use", spec.use) for i, spec in enumerate(environment.tools)]
        own = (("environment.use", environment.use), ("environment.agent", environment.agent))
        dotted += [(place, name) for place, name in own if name is not None]
    dotted += [("track.with", name) for name in recipe.track.wanted]
    for place, name in dotted:
        if names.is_dotted(name) and name.replace(":", ".").partition(".")[0] not in OURS:
            yield place, f"names {name!r}, whose module would be imported and run"
    yield from _of_tools(recipe)
    engine = recipe.rollout.engine
    if engine is not None and engine.token_env is not None:
        yield "rollout.engine.token_env", f"sends the variable {engine.token_env!r} to where the recipe says"
    for name, spec in recipe.rewards.items():
        for argument, value in spec.args.items():
            if argument.endswith("_env") and value is not None:
                yield f"rewards.{name}.args.{argument}", f"sends the variable {value!r} to where the recipe says"


def _of_tools(recipe: Recipe) -> Iterator[tuple[str, str]]:
    """What tools, environments and agents that ship would do on a recipe's word."""
    given = recipe.environment
    if given is None:
        return
    all_args = [(f"environment.tools.{i}.args", spec.args) for i, spec in enumerate(given.tools)]
    for place, args in [*all_args, ("environment.args", given.args)]:
        for argument, value in args.items():
            if argument.endswith("_env") and value is not None:
                yield f"{place}.{argument}", f"sends the variable {value!r} to where the recipe says"
            elif argument in PROGRAMS and value is not None:
                yield f"{place}.{argument}", f"starts the program {value!r}"
        if args.get("sandbox") == "e2b" and any(args.get(name) is not None for name in ("api", "host")):
            yield f"{place}.sandbox", "sends the key of E2B to where the recipe says"
    if given.agent == "verifiers":
        yield "environment.agent", f"runs the taskset {given.args.get('taskset')!r}, whose module would be imported"
    if given.use == "gymnasium" and ":" in str(given.args.get("id")):
        yield "environment.args.id", f"names {given.args['id']!r}, whose module would be imported and run"
