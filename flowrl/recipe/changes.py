"""The changes between the recipe a run began with and the one it resumes with, and which changes are refused."""

from collections.abc import Iterator, Mapping

from flowrl.recipe.curves import is_curve_mapping
from flowrl.recipe.errors import RecipeError, show
from flowrl.recipe.keys.parallel import ParallelKeys
from flowrl.recipe.schema import Recipe
from flowrl.untyped import JSON

# Keys that determine the weights in a checkpoint.
FIXED = ("model", "full", "freeze", "lora", "generation.chat_template", "generation.system")
FIXED += ("generation.chat_arguments", "generation.processor")
# not reported: they have no effect once a run has begun
FREE = ("lora.init", "output", *(f"parallel.{name}" for name in ParallelKeys.model_fields))


def changes(before: Recipe, now: Recipe) -> dict[str, list[JSON]]:
    """Dotted key -> [value before, value now] of everything that differs."""
    old, new = dict(flatten(before.model_dump())), dict(flatten(now.model_dump()))
    names = [name for name in {**old, **new} if name not in FREE]
    return {name: [old.get(name), new.get(name)] for name in names if old.get(name) != new.get(name)}


def refuse_changes(changed: Mapping[str, list[JSON]], now: Recipe, done: int) -> None:
    """Raises RecipeError if a run with `done` iterations cannot resume with these changes."""
    for name, (old, new) in changed.items():
        if any(name == fixed or name.startswith(f"{fixed}.") for fixed in FIXED):
            problem = f"got {show(new)}, but the resumed run began with {show(old)}"
            raise RecipeError(name, problem, "take that value, or start a new run without --resume")
    before = {name.split(".")[1]: old for name, (old, _) in changed.items() if _is_reward(name)}
    for name, old in before.items():
        here = name in now.rewards
        if here != (old is not None):
            problem = f"{'not in' if here else 'missing, but in'} the resumed run, whose scores continue"
            remedy = "remove it" if here else "add it again (weight: 0 makes it a witness)"
            raise RecipeError(f"rewards.{name}", problem, f"{remedy}, or start a new run without --resume")
    if now.train.iterations < done:
        problem = f"got {now.train.iterations}, but the resumed run has already done {done}"
        raise RecipeError("train.iterations", problem, f"accepted: {done} or more")


def _is_reward(name: str) -> bool:
    """Whether a dotted key is the `use` of a reward, which every reward has."""
    return name.startswith("rewards.") and name.endswith(".use") and name.count(".") == 2


def flatten(value: JSON, path: str = "") -> Iterator[tuple[str, JSON]]:
    """(dotted key, value) of the leaves; lists are leaves, and so are empty mappings and curves."""
    if isinstance(value, Mapping) and value and not is_curve_mapping(value):
        for name, inner in value.items():
            yield from flatten(inner, f"{path}.{name}" if path else name)
    else:
        yield path, value
