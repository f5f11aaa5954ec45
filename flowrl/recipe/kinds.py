"""Sections of a recipe whose `kind` decides which of their other keys are read."""

from collections.abc import Iterator, Mapping

from flowrl.recipe.base import Strict
from flowrl.recipe.errors import RecipeError, show


def check_keys(place: str, part: Strict, kind: str, keys: Mapping[str, bool]) -> Iterator[RecipeError]:
    """The first key of a section that its kind does not read, or needs and does not have. keys: what the kind reads,
    True where it cannot do without."""
    for name, field in type(part).model_fields.items():
        value = getattr(part, name)
        if name not in ("kind", *keys) and value is not None:
            problem = f"got {show(value)}, but kind {kind!r} reads only {', '.join(keys) or 'kind'}"
            yield RecipeError(f"{place}.{name}", problem, f"set {place}.{name}=null or another {place}.kind")
            return
        if keys.get(name) and value is None:
            problem = f"missing, kind {kind!r} needs it"
            yield RecipeError(f"{place}.{name}", problem, f"set {place}.{name}=VALUE, {field.description}")
            return
