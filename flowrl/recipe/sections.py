"""Sections of a recipe whose keys are the arguments of a part: they are written once, beside the code that uses them.

`kind` names the part: a short name of one that ships, whose arguments, limits and defaults are read off its source, or
a dotted path to one of the user's, whose arguments are known once its module is imported.
"""

from collections.abc import Iterator, Mapping
from dataclasses import replace
from typing import Annotated, Any, ClassVar, Literal

from pydantic import BeforeValidator, ConfigDict, SerializeAsAny, WrapValidator, create_model

from flowrl import names
from flowrl.parts import BASES, KINDS
from flowrl.recipe import annotations
from flowrl.recipe.base import Strict, key
from flowrl.recipe.calls import is_finite
from flowrl.recipe.errors import RecipeError, wrong_value
from flowrl.signatures import NO_DEFAULT, Entry, Parameter
from flowrl.untyped import JSON


class Own(Strict):
    """A part of the user's own: `kind` is the dotted path to it, all other keys are its arguments.

    part: the kind of part, of parts.KINDS. What others ask of a section whose kind ships is answered as it is where
    nothing is given: beside.
    """

    model_config = ConfigDict(extra="allow")
    part: ClassVar[str] = ""
    beside: ClassVar[Mapping[str, JSON]] = {}
    kind: str = key(..., "a dotted path", min_length=1)

    @property
    def args(self) -> dict[str, JSON]:
        """The arguments that the recipe gives."""
        return {name: value for name, value in (self.model_extra or {}).items() if value is not None}

    def __str__(self) -> str:
        return f"{self.kind}({', '.join(f'{name}={value}' for name, value in self.args.items())})"

    def __getattr__(self, name: str) -> JSON:
        try:
            return super().__getattr__(name)  # pyright: ignore[reportAttributeAccessIssue]
        except AttributeError:
            if name in type(self).beside:
                return type(self).beside[name]
            raise


def keys(kind: str, entry: Entry) -> tuple[Parameter, ...]:
    """The arguments of a part that a recipe may set: those that a run, or a model that calls it, does not give it."""
    if KINDS[kind].typed and not entry.is_class:
        return ()
    return tuple(p for p in entry.signature.parameters if p.name not in KINDS[kind].given)


def key_table(kind: str) -> dict[str, dict[str, bool]]:
    """What each kind of a section reads; True marks what it cannot do without."""
    shipped = names.shipped(kind)
    return {name: {p.name: p.default is NO_DEFAULT for p in keys(kind, entry)} for name, entry in shipped.items()}


def choices_of(kind: str) -> str:
    """What a key that names a part of a kind accepts, in words."""
    *others, last = names.shipped(kind)
    return f"{', '.join(others)} or {last}, or a dotted path" if others else f"{last} or a dotted path"


def keys_of(kind: str, default: Any = ...) -> Any:
    """The base of a section: `kind`, and every key of the parts that ship, null where it is not given.

    Keys of the same name have the same annotation wherever they stand. Raises ValueError where one has two.
    """
    shipped = names.shipped(kind)
    fields: dict[str, Any] = {"kind": (Literal[tuple(shipped)], key(default, choices_of(kind)))}
    seen: dict[str, str] = {}
    for name, entry in shipped.items():
        for parameter in keys(kind, entry):
            text = parameter.annotation
            if seen.setdefault(parameter.name, text) != text:
                raise ValueError(f"{kind} {name}: {parameter.name} is {text}, elsewhere {seen[parameter.name]}")
            fields[parameter.name] = (annotations.as_type(text) | None, key(None, annotations.words(text)))
    made: Any = create_model(f"{kind.title()}Keys", __base__=Strict, **fields)
    made.part = kind
    return made


def arguments_of(kind: str, name: str) -> Any:
    """The base of a section without `kind`: the arguments of the one part that ships, with their defaults.

    Its numbers may change during a run (recipe/curves.py), but for whole ones.
    """
    fields: dict[str, Any] = {}
    for parameter in keys(kind, names.shipped(kind)[name]):
        text = parameter.type
        changes = "float" in text and "tuple" not in text
        field = key(parameter.default, annotations.words(text), curve=changes)
        fields[parameter.name] = (annotations.as_type(text), field)
    made: Any = create_model(f"{kind.title()}Keys", __base__=Strict, **fields)
    made.part = kind
    return made


def defaults_of(section: type[Strict]) -> dict[str, JSON]:
    """The default of every key of a section."""
    return {name: field.default for name, field in section.model_fields.items()}


def given(section: Any) -> dict[str, JSON]:
    """The arguments that a recipe gives to the part of a section."""
    if isinstance(section, Own):
        return section.args
    read = key_table(section.part)[section.kind]
    return {name: value for name in read if (value := getattr(section, name)) is not None}


def open_to(section: type[Strict], own: type[Own]) -> Any:
    """The section as the type of a key, which takes a part of the user's own too; a text is short for {kind: text}."""

    def either(value: Any, handler: Any) -> Any:
        if isinstance(value, Own):
            return value
        value = {"kind": value} if isinstance(value, str) else value
        if names_own(value):
            return own.model_validate(value)
        named = value.get("kind") if isinstance(value, dict) else None
        if named is not None and "kind" not in section.model_fields:
            if named not in names.shipped(own.part):
                raise ValueError(f"kind: {choices_of(own.part)}{names.hint(str(named), names.shipped(own.part))}")
            value = {name: inner for name, inner in value.items() if name != "kind"}
        return handler(value)

    return SerializeAsAny[Annotated[section, WrapValidator(either)]]


def names_own(section: object) -> bool:
    """Whether the values of a section, which are not checked yet, name a part of the user's own."""
    named = section.get("kind") if isinstance(section, dict) else section
    return isinstance(named, str) and names.is_dotted(named)


def name_of(kind: str, own: type[Own]) -> Any:
    """The type of a key that names a part without keys of its own, or one of the user's own, whose keys stand beside
    its `kind`."""

    def either(value: Any, handler: Any) -> Any:
        if isinstance(value, Own):
            return value
        if names_own(value):
            return own.model_validate(value if isinstance(value, dict) else {"kind": value})
        named = value.get("kind") if isinstance(value, dict) else value
        return handler(named if isinstance(value, dict) and set(value) == {"kind"} else value)

    return SerializeAsAny[Annotated[Literal[tuple(names.shipped(kind))], WrapValidator(either)]]


def only_own(own: type[Own]) -> Any:
    """The type of a key that names a part of the user's own: a mapping with `kind`, or its dotted path alone."""
    return SerializeAsAny[Annotated[own, BeforeValidator(lambda v: {"kind": v} if isinstance(v, str) else v)]]


def own_parts(section: Strict, place: str = "") -> Iterator[tuple[str, Own]]:
    """(dotted key, part) of every part of the user's own in a recipe."""
    for name in type(section).model_fields:
        value, at = getattr(section, name), f"{place}.{name}" if place else name
        for inner in value if isinstance(value, list) else [value]:
            if isinstance(inner, Own):
                yield at, inner
            elif isinstance(inner, Strict):
                yield from own_parts(inner, at)


def check_own(place: str, own: Own) -> Iterator[RecipeError]:
    """What of a part of the user's own cannot work: its path, what it is, its arguments. Its module is imported."""
    try:
        entry = names.find(own.kind, {}, own.part)
    except names.UserError as error:
        yield RecipeError(f"{place}.kind", str(error), f"name another {own.part}")
        return
    if own.part in BASES:  # what it hands on to the class that it extends is the run's to give
        entry = replace(entry, signature=replace(entry.signature, any=False))
    yield from check_arguments(place, own.args, entry, tuple(p.name for p in keys(own.part, entry)))


def check_arguments(
    place: str, args: Mapping[str, JSON], entry: Entry, accepted: tuple[str, ...] | None = None
) -> Iterator[RecipeError]:
    """What of the arguments of a part does not fit its signature. accepted: those that a recipe may give."""
    accepted = entry.accepts if accepted is None or entry.accepts is None else accepted
    if accepted is not None:
        for name in [name for name in args if name not in accepted]:
            meant = names.closest(name, accepted)
            listed = ", ".join(accepted) or "nothing"
            remedy = f"did you mean {meant!r}?" if meant else f"remove {place}.{name}"
            yield RecipeError(f"{place}.{name}", f"{entry.name!r} takes no {name!r}, accepted: {listed}", remedy)
    for name, value in args.items():
        wrong = (
            annotations.accepted_if_misfit(entry.types.get(name, ""), value) if is_finite(value) else "finite numbers"
        )
        if wrong:
            yield wrong_value(f"{place}.{name}", value, wrong)
    for name in entry.needs:
        if name not in args and (accepted is None or name in accepted):
            yield RecipeError(f"{place}.{name}", f"missing, {entry.name!r} needs it", f"set {place}.{name}=VALUE")
