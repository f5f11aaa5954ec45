"""What can be said of a key of a recipe or of a part: read off the schema, the signatures and the docstrings.

`flowrl explain`, the completion of keys on a command line and the schema for editors all read what is here.
"""

import re
from collections.abc import Iterator
from typing import Literal, get_args, get_origin

from pydantic import BaseModel
from pydantic.fields import FieldInfo

from flowrl import names
from flowrl.parts import KINDS
from flowrl.recipe import annotations
from flowrl.recipe.errors import model_of, show
from flowrl.recipe.presets import DENOISING, LANGUAGE, PRESETS, texts
from flowrl.recipe.schema import Recipe
from flowrl.recipe.sections import keys
from flowrl.signatures import NO_DEFAULT, Entry, Parameter
from flowrl.untyped import JSON

Lines = list[tuple[str, str]]  # (what is said, in words)


def fields(model: type[BaseModel] = Recipe, place: str = "") -> Iterator[tuple[str, FieldInfo, type[BaseModel]]]:
    """(dotted key, field, section) of every key; a name that the recipe chooses, such as a reward's, is NAME."""
    for name, field in model.model_fields.items():
        at = f"{place}.{name}" if place else name
        yield at, field, model
        inner = model_of(field.annotation)
        if inner is not None:
            yield from fields(inner, f"{at}.NAME" if get_origin(field.annotation) is dict else at)


def parts() -> dict[str, dict[str, Entry]]:
    """kind -> name -> entry of every part that ships."""
    return {kind: names.shipped(kind) for kind in KINDS}


def explain(key: str) -> Lines:
    """Everything known about a key (`train.lr`), a part (`window.frozen`), or a preset (`preset.guard`).

    Raises UserError for anything else.
    """
    head, _, name = key.partition(".")
    if head == "preset" and name in PRESETS:
        return _preset(name)
    if head in KINDS and name in names.shipped(head):
        return _part(head, names.shipped(head)[name])
    known = {at: (field, model) for at, field, model in fields()}
    generic = re.sub(r"^(rewards|views)\.[^.]+", r"\1.NAME", key)
    entries = known.get(key) or known.get(generic)
    if entries is None:
        listed = [*known, *(f"{kind}.{name}" for kind, entries in parts().items() for name in entries)]
        listed += [f"preset.{name}" for name in PRESETS]
        accepted = "a key such as train.lr, a part such as step.flow_sde or window.frozen, or preset.NAME"
        raise names.UserError(f"{key!r} is not a key of a recipe; accepted: {accepted}{names.hint(key, listed)}")
    return _key(generic if key not in known else key, *entries)


def _key(key: str, field: FieldInfo, model: type[BaseModel]) -> Lines:
    name = key.rpartition(".")[2]
    kind = getattr(model, "part", None)
    lines: Lines = [("accepts", field.description or "a mapping")]
    lines += [("default", "it must be given" if field.is_required() else _default(field))]
    section = model_of(field.annotation)
    text = _first_paragraph(section.__doc__) if section else ""
    text = text or describe_word(name, model.__doc__ or "").removeprefix(f"{name}: ")
    lines += [("means", text)] if text else []
    lines += [("its keys", ", ".join(section.model_fields))] if section else []
    if kind is not None and name != "kind":
        for entry in names.shipped(kind).values():
            lines += [(f"in {entry.name}", _argument(p, entry)) for p in keys(kind, entry) if p.name == name]
    if kind is not None and name == "kind":
        lines += [(entry.name, entry.summary) for entry in names.shipped(kind).values()]
    named = {"sampler.step": "step", "rewards.NAME.use": "reward", "environment.tools.use": "tool"}
    if (kind := named.get(key)) is not None:
        lines += [(entry.name, entry.summary) for entry in names.shipped(kind).values()]
    lines += [(f"preset {preset}", text) for preset, text in _presets_of(key)]
    return lines


def _first_paragraph(doc: str | None) -> str:
    return " ".join((doc or "").partition("\n\n")[0].split())


def _default(field: FieldInfo) -> str:
    if field.default_factory is not None:
        return "its own keys' defaults"
    return "null" if field.default is None else str(show(field.default)).strip("'")


def describe_word(name: str, doc: str) -> str:
    """What a docstring says of one of its words: what stands behind `name:`, or else the sentences that use it."""
    text = " ".join(doc.split())
    begin = re.search(rf"(?:^|(?<=[.;:] ))(?:\w+, )*{name}(?:, \w+)*(?: \w+)?: ", text)
    if begin is None:
        used = rf"(?<![\w.]){name}(?![\w.])"
        return " ".join(sentence for sentence in re.split(r"(?<=\.) ", text) if re.search(used, sentence))
    end = re.search(r"[.;] (?!null:)(?=[a-z]\w*(?:, \w+)*(?: \w+)?: )", text[begin.end() :])
    return text[begin.start() : begin.end() + end.start() + 1 if end else len(text)].rstrip(";")


def _argument(parameter: Parameter, entry: Entry) -> str:
    default = "must be given" if parameter.default is NO_DEFAULT else f"default {_value_text(parameter.default)}"
    words = annotations.words(parameter.annotation) if parameter.annotation else "anything"
    text = describe_word(parameter.name, entry.doc)
    return f"{words}; {default}" + (f". {text}" if text else "")


def _value_text(value: JSON) -> str:
    if isinstance(value, dict):
        return f"{{{', '.join(f'{name}: {_value_text(inner)}' for name, inner in value.items())}}}"
    return "null" if value is None else str(value).lower() if isinstance(value, bool) else str(value)


def _part(kind: str, entry: Entry) -> Lines:
    lines: Lines = [("is", " ".join(entry.doc.split()))]
    lines += [(p.name, _argument(p, entry)) for p in keys(kind, entry)]
    lines += [(f"fact {name}", _value_text(value)) for name, value in entry.facts.items()]
    return [*lines, ("source", f"{entry.module.replace('.', '/')}.py")]


def _preset(name: str) -> Lines:
    lines = [("is", texts()[name])]
    for of, table in (("of denoising steps", DENOISING), ("of tokens", LANGUAGE)):
        for section, values in table.get(name, {}).items():
            lines += [(f"{section}.{key}", f"{_value_text(value)} ({of})") for key, value in values.items()]
    return lines


def _presets_of(key: str) -> Iterator[tuple[str, str]]:
    """(preset, value) of every preset that sets a key."""
    section, _, name = key.partition(".")
    for of, table in (("denoising steps", DENOISING), ("tokens", LANGUAGE)):
        for preset, values in table.items():
            if name in values.get(section, {}):
                yield preset, f"{_value_text(values[section][name])}, for {of}"


# ------------------------------------------------------------------ completion


def completions(incomplete: str) -> list[str]:
    """What may stand in the place of an unfinished `KEY=VALUE`: keys, and behind the = the choices of a key."""
    key, equals, value = incomplete.partition("=")
    known = {at: (field, model) for at, field, model in fields()}
    if not equals:
        return [f"{at}=" for at, (field, _) in known.items() if at.startswith(key) and "NAME" not in at]
    if key not in known:
        return []
    return [f"{key}={choice}" for choice in _choices(key, *known[key]) if choice.startswith(value)]


def _choices(key: str, field: FieldInfo, model: type[BaseModel]) -> list[str]:
    if key == "sampler.step":
        return list(names.steps())
    if key == "objective.preset":
        return list(PRESETS)
    entries: list[str] = []
    pending = [field.annotation]
    while pending:
        annotation = pending.pop(0)
        if get_origin(annotation) is Literal:
            entries += map(str, get_args(annotation))
        elif annotation is bool:
            entries += ["true", "false"]
        else:
            pending += get_args(annotation)
    return entries


# ------------------------------------------------------------------ a schema for editors

_DOTTED = {"type": "string", "pattern": "[.:]", "description": "a dotted path to a part of your own"}


def json_schema() -> dict[str, JSON]:
    """A JSON schema (2020-12) of recipes, for editors: keys, types, limits, choices, and what the keys mean."""
    schema = Recipe.model_json_schema()
    for name, definition in schema.get("$defs", {}).items():
        choices = definition.get("properties", {}).get("kind", {}).get("enum")
        if choices:
            schema["$defs"][name] = _open(definition, choices)
    for definition in [schema, *schema["$defs"].values()]:
        for key, held in list(definition.get("properties", {}).items()):
            definition["properties"][key] = _widen(key, held)
    return {"$schema": "https://json-schema.org/draft/2020-12/schema", **schema, "title": "A recipe of flowrl"}


def _open(definition: dict[str, JSON], choices: list[str]) -> dict[str, JSON]:
    own = {"type": "object", "properties": {"kind": _DOTTED}, "required": ["kind"]}
    return {"anyOf": [definition, own, {"enum": choices}, _DOTTED]}


def _widen(key: str, held: dict[str, JSON]) -> dict[str, JSON]:
    """A key with what names in it may be, and points of a curve where it takes one."""
    if key == "solver":
        own = {"type": "object", "properties": {"kind": _DOTTED}, "required": ["kind"]}
        return {"anyOf": [held, _DOTTED, own]}
    if key in ("step", "use"):
        return held | {"anyOf": [{"enum": list(names.shipped("step" if key == "step" else "reward"))}, _DOTTED]}
    return {"anyOf": [held, {"type": "object"}]} if held.get("curve") else held
