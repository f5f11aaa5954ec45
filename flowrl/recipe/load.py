"""Reads a recipe: YAML file, `key=value` overrides, preset, checks."""

import re
from collections.abc import Sequence
from pathlib import Path
from typing import Any, get_origin

import yaml
from pydantic import BaseModel, ValidationError

from flowrl import names
from flowrl.recipe.checks import check
from flowrl.recipe.errors import RecipeError, first_of, model_of, show, translate, unknown_key
from flowrl.recipe.language import DENOISING, refuse_denoising
from flowrl.recipe.noise import with_noise
from flowrl.recipe.presets import with_preset
from flowrl.recipe.schema import Recipe


class _Loader(yaml.SafeLoader):
    """YAML with the numbers of YAML 1.2 (1e-4 is a float) and without repeated keys."""

    def construct_mapping(self, node: yaml.MappingNode, deep: bool = False) -> dict:
        """A mapping whose keys are distinct strings."""
        seen: set[str] = set()
        for name, _ in node.value:
            if not isinstance(name, yaml.ScalarNode) or name.value in seen:
                problem = f"key {getattr(name, 'value', '?')!r} is given twice or is no plain name"
                raise yaml.constructor.ConstructorError(None, None, problem, name.start_mark)
            seen.add(name.value)
        return super().construct_mapping(node, deep)


_FLOAT = re.compile(r"^[-+]?(\d+(\.\d*)?|\.\d+)([eE][-+]?\d+)?$|^[-+]?\.(inf|Inf|INF)$|^\.(nan|NaN|NAN)$")
_WORDS = re.compile(r"^(true|True|TRUE|false|False|FALSE)$")
_Loader.yaml_implicit_resolvers = {
    first: [(tag, pattern) for tag, pattern in pairs if tag.rpartition(":")[2] not in ("float", "bool", "timestamp")]
    for first, pairs in yaml.SafeLoader.yaml_implicit_resolvers.items()
}
_Loader.add_implicit_resolver("tag:yaml.org,2002:bool", _WORDS, list("tTfF"))  # yes, no, on and off stay words
_Loader.add_implicit_resolver("tag:yaml.org,2002:float", _FLOAT, list("-+0123456789."))


def load(path_or_name: str, overrides: Sequence[str] = ()) -> Recipe:
    """The checked recipe in a file, or of a short name of recipes/, after the overrides.

    An override is `dotted.key=value`, the value YAML; a mapping replaces the whole mapping, null unsets. Relative
    prompt files are looked for in the current directory, then beside the recipe. Raises RecipeError, always one line.
    """
    path = _find(path_or_name)
    values = parse(path)
    for override in overrides:
        _override(values, override)
    return build(values, name=path.stem, beside=path.parent)


def build(values: dict[str, Any], *, name: str = "recipe", beside: Path | None = None) -> Recipe:
    """The checked recipe of a mapping. name gives the default run folder, beside a folder to find prompt files in."""
    values = with_noise(with_preset(values))
    refuse_denoising(values)
    if values.get("output") is None:
        values = values | {"output": f"runs/{name}"}
    try:
        recipe = Recipe.model_validate(values)
    except ValidationError as error:
        raise translate(error, Recipe) from None
    recipe = _resolve(recipe, beside)
    if errors := list(check(recipe)):
        raise first_of(errors)
    return recipe


def dump(recipe: Recipe) -> str:
    """Every effective value as YAML, which `load` reads back to an equal recipe."""
    unread: set[str] = set(DENOISING) if recipe.generation is not None else set()
    return yaml.safe_dump(recipe.model_dump(exclude=unread), sort_keys=False, width=120, allow_unicode=True)


def _find(path_or_name: str) -> Path:
    known = names.recipes()
    if path_or_name in known:
        return known[path_or_name]
    path = Path(path_or_name).expanduser()
    if path.is_file():
        return path
    meant = names.closest(path.stem, known)
    remedy = f"did you mean {meant!r}?" if meant else "give the path of a YAML file"
    raise RecipeError("recipe", f"got {path_or_name!r}, accepted: a file or one of {', '.join(known)}", remedy)


def parse(path: Path) -> dict[str, Any]:
    """The mapping in a YAML file, read as recipes are. Raises RecipeError, with file and line, for anything else."""
    try:
        values = yaml.load(path.read_text(encoding="utf-8"), _Loader)
    except (yaml.YAMLError, UnicodeDecodeError) as error:
        raise RecipeError(_where(path, error), _yaml_problem(error), "write it as YAML, `key: value` a line") from None
    if not isinstance(values, dict):
        raise RecipeError(str(path), f"got {show(values)}, accepted: a mapping of keys", "write `key: value` a line")
    return values


def _where(path: Path, error: Exception) -> str:
    mark = getattr(error, "problem_mark", None)
    return f"{path}:{mark.line + 1}" if mark else str(path)


def _yaml_problem(error: Exception) -> str:
    return str(getattr(error, "problem", None) or error).split("\n")[0]


def _override(values: dict[str, Any], override: str) -> None:
    """Sets one dotted key in place."""
    dotted, equals, text = override.partition("=")
    parts = dotted.strip().split(".")
    if not equals or not all(parts):
        problem = f"got {override!r}, accepted: dotted.key=value"
        raise RecipeError("override", problem, "write it like train.lr=1e-4")
    try:
        value = yaml.load(text, _Loader)
    except yaml.YAMLError as error:
        problem = f"got {text!r}, which is no YAML ({_yaml_problem(error)})"
        raise RecipeError(dotted, problem, "quote it") from None
    place = values
    for depth, name in enumerate(parts[:-1]):
        if place.get(name) is None:
            place[name] = {}
        if not isinstance(place[name], dict):
            parent = ".".join(parts[: depth + 1])
            raise RecipeError(dotted, f"{parent} is {show(place[name])}, no mapping", f"set {parent}={{...}}")
        place = place[name]
    if value is None:
        place.pop(parts[-1], None)
        _refuse_unknown(parts)
    else:
        place[parts[-1]] = value


def _refuse_unknown(parts: list[str]) -> None:
    """A misspelt key=null would otherwise pass in silence."""
    owner: type[BaseModel] | None = Recipe
    names_next = False  # the next part is a reward's own name, not a key
    for depth, name in enumerate(parts):
        if owner is None:
            return
        if names_next:
            names_next = False
            continue
        field = owner.model_fields.get(name)
        if field is None:
            raise unknown_key(".".join(parts[: depth + 1]), list(owner.model_fields))
        owner, names_next = model_of(field.annotation), get_origin(field.annotation) is dict


def _resolve(recipe: Recipe, beside: Path | None) -> Recipe:
    """Prompt files as absolute paths, so that the dumped recipe means the same from every directory."""
    fields = {}
    for name in ("train", "heldout"):
        source = getattr(recipe.prompts, name)
        if source is not None and source not in names.WORLD_PROMPTS:
            spots = [Path(source).expanduser(), *([beside / source] if beside else [])]
            found = next((spot for spot in spots if spot.exists()), None)
            fields[name] = str(found.resolve()) if found else source
    return recipe.model_copy(update={"prompts": recipe.prompts.model_copy(update=fields)})
