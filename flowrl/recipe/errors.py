"""RecipeError, and the translation of pydantic's errors into one."""

from collections.abc import Sequence
from typing import Any, get_args

from pydantic import BaseModel, ValidationError

from flowrl.names import UserError, closest, some
from flowrl.untyped import JSON


class RecipeError(UserError):
    """A recipe cannot run; one line: place (dotted key), value received, what is accepted, remedy.

    `place` is the dotted key, so that callers and tests need not parse the text.
    """

    def __init__(self, place: str, problem: str, remedy: str, *, more: int = 0):
        self.place, self.problem, self.remedy, self.more = place, problem, remedy, more
        tail = f" (and {more} more)" if more else ""
        joint = " " if problem.endswith("?") else "; "  # a problem may end with its own "did you mean"
        super().__init__(" ".join(f"{place}: {problem}{joint}{remedy}{tail}".split()))


def wrong_value(place: str, value: JSON, accepted: str, *, suggestion: str | None = None) -> RecipeError:
    """The error for a value outside what its key accepts."""
    meant = f"did you mean {suggestion!r}? " if suggestion else ""
    return RecipeError(place, f"got {show(value)}, accepted: {accepted}", f"{meant}change {place}")


def show(value: JSON | BaseModel, limit: int = 60) -> str:
    """A value as a recipe's author would write it, shortened."""
    plain = value.model_dump(exclude_defaults=True) if isinstance(value, BaseModel) else value
    text = " ".join(repr(plain).split())
    return text if len(text) <= limit else text[: limit - 1] + "…"


def first_of(errors: list[RecipeError]) -> RecipeError:
    """The first error, with the number of further ones."""
    head = errors[0]
    return RecipeError(head.place, head.problem, head.remedy, more=len(errors) - 1)


def translate(error: ValidationError, root: type[BaseModel]) -> RecipeError:
    """pydantic's errors as one RecipeError. A union reports once per member: each place counts once."""
    by_place: dict[str, RecipeError] = {}
    # A misspelt key also makes its right spelling missing: name the misspelling first.
    details = sorted(error.errors(), key=lambda d: d["type"] != "extra_forbidden")
    for detail in details:
        translated = _translate(detail, root)
        by_place.setdefault(translated.place, translated)
    return first_of(list(by_place.values()))


def _translate(detail: Any, root: type[BaseModel]) -> RecipeError:
    place, owner, accepted = _locate(detail["loc"], root)
    if detail["type"] == "extra_forbidden":
        return unknown_key(place, list(owner.model_fields), [] if "." in place else _keys_of_sections(place, root))
    if detail["type"] == "missing":
        return RecipeError(place, f"missing, accepted: {accepted}", f"add {place} to the recipe or set {place}=VALUE")
    if detail["type"] == "value_error":
        accepted = f"{accepted} ({detail['ctx']['error']})"
    suggestion = closest(detail["input"], _choices(accepted)) if isinstance(detail["input"], str) else None
    return wrong_value(place, detail["input"], accepted, suggestion=suggestion)


def _keys_of_sections(name: str, root: type[BaseModel]) -> list[str]:
    """The dotted keys of the root's sections that end with `name`: what `lr=1e-4` may have meant."""
    sections = ((at, model_of(field.annotation)) for at, field in root.model_fields.items())
    return [f"{at}.{name}" for at, section in sections if section is not None and name in section.model_fields]


def unknown_key(place: str, known: list[str], elsewhere: Sequence[str] = ()) -> RecipeError:
    """The error for a key that its mapping does not have; the last part of `place` is the key.

    elsewhere: keys of other mappings that have this name.
    """
    name = place.rpartition(".")[2]
    meant = elsewhere or [near for near in [closest(name, known)] if near]
    remedy = f"did you mean {' or '.join(map(repr, meant))}?" if meant else f"remove {place}"
    section = place.rpartition(".")[0]
    listed = some(name, known, f"flowrl explain {section}" if section else "docs/recipes.md") or "nothing"
    return RecipeError(place, f"unknown key {name!r}, accepted here: {listed}", remedy)


def _locate(loc: tuple[int | str, ...], root: type[BaseModel]) -> tuple[str, type[BaseModel], str]:
    """(dotted key, model that owns it, what it accepts). Parts that pydantic adds for unions are left out."""
    owner, path, accepted = root, [], "a mapping"
    for part in loc:
        field = owner.model_fields.get(str(part))
        if field is None:
            if path and accepted.startswith("names mapped"):
                path.append(str(part))  # a reward's own name
                accepted = "a mapping with a key `use`"
                continue
            if not path or accepted == "a mapping" or accepted.startswith("a mapping with"):
                path.append(str(part))
            break
        path.append(str(part))
        accepted = field.description or "a mapping"
        inner = model_of(field.annotation)
        owner = inner or owner
        if inner is None:
            break
    return ".".join(path), owner, accepted


def model_of(annotation: Any) -> type[BaseModel] | None:
    """The pydantic model inside an annotation such as `Lora | None` or `dict[str, RewardSpec]`."""
    if isinstance(annotation, type) and issubclass(annotation, BaseModel):
        return annotation
    return next((m for a in get_args(annotation) if (m := model_of(a)) is not None), None)


def _choices(accepted: str) -> list[str]:
    return accepted.replace(", or ", ", ").replace(" or ", ", ").replace(" | ", ", ").split(", ")
