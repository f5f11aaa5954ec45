"""Reads a recipe: YAML file, `key=value` overrides, preset, checks."""

import copy
from collections.abc import Sequence
from pathlib import Path
from typing import get_args, get_origin

import yaml
from pydantic import BaseModel, ValidationError
from pydantic.fields import FieldInfo

from flowrl import names
from flowrl.kinds import kind_of
from flowrl.recipe import scalars
from flowrl.recipe.changes import changes
from flowrl.recipe.checks.guide import guided
from flowrl.recipe.checks.places import check_places
from flowrl.recipe.checks.recipe import check
from flowrl.recipe.checks.reference import resolved
from flowrl.recipe.curves import replace_value, split_curves
from flowrl.recipe.errors import RecipeError, first_of, model_of, show, translate, unknown_key
from flowrl.recipe.keys.phases import refuse_fixed
from flowrl.recipe.presets import PRESETS
from flowrl.recipe.schema import Recipe
from flowrl.recipe.sections import names_own
from flowrl.untyped import JSON


def load(path_or_name: str, overrides: Sequence[str] = ()) -> Recipe:
    """The checked recipe in a file, or with a short name of recipes/, after the overrides.

    An override is `dotted.key=value`, the value YAML; a mapping replaces the whole mapping, null removes. Relative
    prompt files are looked for in the current directory, then beside the recipe. Raises RecipeError, always one line.
    """
    recipe = load_unchecked(_find(path_or_name), overrides)
    if errors := list(check(recipe)):
        raise first_of(errors)
    return recipe


def load_unchecked(path: Path, overrides: Sequence[str] = ()) -> Recipe:
    """The recipe in a file after the overrides, its keys and types checked, but nothing that it names: no module of a
    user's own is imported. Raises RecipeError."""
    values = parse(path)
    for override in overrides:
        _override(values, override)
    return _validate(values, path.stem, path.parent)


def build(values: dict[str, JSON], *, name: str = "recipe", beside: Path | None = None) -> Recipe:
    """The checked recipe of a mapping. name gives the default run folder, beside a folder to find prompt files in."""
    recipe = _validate(values, name, beside)
    if errors := list(check(recipe)):
        raise first_of(errors)
    return recipe


def _validate(values: dict[str, JSON], name: str, beside: Path | None) -> Recipe:
    given, values = values, with_preset(values)
    if values.get("output") is None:
        values = values | {"output": f"runs/{name}"}
    values, curves = split_curves(values, Recipe)
    try:
        recipe = Recipe.model_validate(values)
    except ValidationError as error:
        raise translate(error, Recipe) from None
    recipe = recipe.with_curves(curves)
    if errors := list(check_places(recipe)):
        raise first_of(errors)
    recipe = _resolve(recipe, beside)
    return _with_phases(recipe, given, name, beside) if recipe.phases else recipe


def _with_phases(recipe: Recipe, values: dict[str, JSON], name: str, beside: Path | None) -> Recipe:
    """The recipe with the recipes of its phases. Raises RecipeError for an override that is wrong, or cannot change."""
    total, parts = sum(phase.iterations for phase in recipe.phases), []
    train = values.get("train")
    if not isinstance(train, dict) or train.get("iterations") is None:
        recipe = replace_value(recipe, "train.iterations", total)
    elif recipe.train.iterations > total:
        problem = f"got {recipe.train.iterations}, but the phases are {total} iterations long"
        raise RecipeError("train.iterations", problem, "leave it out, or change phases")
    plain = {place: value for place, value in values.items() if place != "phases"}
    for number, phase in enumerate(recipe.phases):
        own = copy.deepcopy(plain)
        if "objective.preset" in phase.overrides:
            own = _without_preset(own, recipe)
        try:
            for dotted, value in phase.overrides.items():
                _set(own, dotted, value)
            part = _validate(own, name, beside)
        except RecipeError as error:
            raise RecipeError(f"phases.{number}.overrides.{error.place}", error.problem, error.remedy) from None
        part = replace_value(part, "train.iterations", recipe.train.iterations)
        before = replace_value(recipe, "phases", [])
        if errors := list(refuse_fixed(changes(before, part), number)):
            raise errors[0]
        parts.append(part)
    return recipe.with_parts(parts)


def _without_preset(values: dict[str, JSON], recipe: Recipe) -> dict[str, JSON]:
    """The values less those that the recipe's preset gives, or that nothing has said, so that another can take their
    place: whether a file names them, as that of a run's folder does, makes no difference."""
    needed = ("model", "prompts", "rewards", "generation", "lora", "full")
    bare = {name: values[name] for name in needed if name in values}
    preset = getattr(recipe.objective, "preset", None)
    if preset is None:
        return values
    usual = Recipe.model_validate(split_curves(with_preset(bare | {"objective": {"preset": preset}}), Recipe)[0])
    said_of = usual.model_dump()
    for section in {name for of in kind_of(values).presets.values() for name in of} - set(bare):
        own, said = values.get(section), said_of[section]
        if own is None and said is None:
            values.pop(section, None)
        if isinstance(own, dict) and said is not None and not names_own(own):
            values[section] = {k: v for k, v in own.items() if k == "preset" or k not in said or said[k] != v}
    return values


# mappings of which a recipe may change a part of a preset's
TERMS = ("right", "expert", "pairs", "store", "perception")


def with_preset(values: dict[str, JSON]) -> dict[str, JSON]:
    """A recipe's values laid over those of the preset they name, with what its kind of model fills in.

    An unknown preset is left for `check` to refuse. Raises RecipeError for a preset that has no values for this kind of
    model, and for sections that it does not read.
    """
    kind, objective = kind_of(values), values.get("objective")
    name = objective.get("preset", "grpo") if isinstance(objective, dict) and not names_own(objective) else "grpo"
    merged = dict(values)
    if isinstance(name, str) and name in PRESETS:
        if name not in kind.presets:
            problem = f"got {name!r}, which has no values for a model whose decisions are {kind.words.decisions}"
            raise RecipeError(
                "objective.preset", problem, f"accepted: {names.some(name, kind.presets, 'flowrl list presets')}"
            )
        for section, below in kind.presets[name].items():
            own = values.get(section)
            if section in values and own is None and _may_be_null(Recipe.model_fields.get(section)):
                continue  # critic=null takes away what the preset has there
            if section == "views" and isinstance(own, dict):
                merged[section] = _named_over(below, own)
            elif not names_own(own):
                merged[section] = _laid_over(below, own)
    return kind.completed(merged)


def _named_over(below: dict[str, JSON], own: dict[str, JSON]) -> dict[str, JSON]:
    """Sections under names that a recipe chooses, over those of a preset of the same names."""
    both = {name: below[name] | v for name, v in own.items() if isinstance(v, dict) and name in below}
    return {**below, **own, **both}


def _laid_over(below: dict[str, JSON], own: JSON) -> JSON:
    """A section's own values over those of a preset; so too within terms, and its loss if of the same kind."""
    if not isinstance(own, dict):
        return below if own is None else own
    merged, loss, of_preset = {**below, **own}, own.get("loss"), below.get("loss")
    if isinstance(loss, dict) and of_preset is not None and loss.get("kind", of_preset["kind"]) == of_preset["kind"]:
        merged["loss"] = {**of_preset, **loss}
    for name in TERMS:
        if isinstance(own.get(name), dict) and name in below:
            merged[name] = {**below[name], **own[name]}
    return merged


def dump(recipe: Recipe) -> str:
    """Every effective value as YAML, which `load` reads back to an equal recipe."""
    return scalars.write(recipe.model_dump(exclude=set(kind_of(recipe).unread)))


def _find(path_or_name: str) -> Path:
    known = names.recipes()
    if path_or_name in known:
        return known[path_or_name]
    path = Path(path_or_name).expanduser()
    if path.is_file():
        return path
    if path.is_dir():
        problem = f"got {path_or_name!r}, a folder without the recipe.yaml of a run"
        raise RecipeError(
            "recipe", problem, "give the folder of a run, a recipe file, or the name of a recipe that ships"
        )
    meant = names.closest(path.stem, known)
    remedy = f"did you mean {meant!r}?" if meant else "give the path of a YAML file"
    listed = names.some(path.stem, known, "flowrl list recipes")
    raise RecipeError("recipe", f"got {path_or_name!r}, accepted: a file or one of {listed}", remedy)


def parse(path: Path) -> dict[str, JSON]:
    """The mapping in a YAML file, read as recipes are. Raises RecipeError, with file and line, for anything else."""
    try:
        values = scalars.read(path.read_text(encoding="utf-8"))
    except (yaml.YAMLError, UnicodeDecodeError, OSError) as error:
        raise RecipeError(
            _where(path, error), _yaml_problem(error), "write it as YAML, one `key: value` per line"
        ) from None
    if not isinstance(values, dict):
        raise RecipeError(
            str(path), f"got {show(values)}, accepted: a mapping of keys", "write one `key: value` per line"
        )
    return values


def _where(path: Path, error: Exception) -> str:
    mark = getattr(error, "problem_mark", None)
    return f"{path}:{mark.line + 1}" if mark else str(path)


def _yaml_problem(error: Exception) -> str:
    return str(getattr(error, "problem", None) or error).split("\n")[0]


def _override(values: dict[str, JSON], override: str) -> None:
    """Sets one dotted key in place."""
    dotted, equals, text = override.partition("=")
    dotted = dotted.strip()
    parts = dotted.split(".")
    if not equals or not all(parts):
        problem = f"got {show(override)}, accepted: dotted.key=value"
        raise RecipeError("override", problem, "write it like train.lr=1e-4")
    try:
        value = scalars.read(text)
    except yaml.YAMLError as error:
        problem = f"got {show(text)}, which is not valid YAML ({_yaml_problem(error)})"
        raise RecipeError(dotted, problem, "quote it") from None
    _set(values, dotted, value)


def _set(values: dict[str, JSON], dotted: str, value: JSON) -> None:
    """Sets a dotted key in place.

    null removes what is there, or where nothing is, what a preset has there; of a key that has another default than
    null, such as eval.every, it is the value.
    """
    parts, place = dotted.split("."), values
    for depth, name in enumerate(parts[:-1]):
        if place.get(name) is None:
            place[name] = {}
        if not isinstance(place[name], dict):
            parent = ".".join(parts[: depth + 1])
            raise RecipeError(dotted, f"{parent} is {show(place[name])}, not a mapping", f"set {parent}={{...}}")
        place = place[name]
    if value is not None:
        place[parts[-1]] = value
        return
    there, field = parts[-1] in place, _field(parts)
    if not there and field is None:  # a misspelt name=null would pass in silence
        raise unknown_key(dotted, list(place))
    place.pop(parts[-1], None)
    if field is not None and _may_be_null(field) and (not there or field.default is not None):
        place[parts[-1]] = None


def _may_be_null(field: FieldInfo | None) -> bool:
    return field is not None and type(None) in get_args(field.annotation)


def _field(parts: list[str]) -> FieldInfo | None:
    """The schema's field of a dotted key; None where the last part is a name that the recipe chose, such as a reward's.

    Raises RecipeError for a part that is neither.
    """
    owner: type[BaseModel] | None = Recipe
    named, field = False, None  # named: the next part is a name that the recipe chose
    for depth, name in enumerate(parts):
        if named or owner is None:
            named, field = False, None
            continue
        field = owner.model_fields.get(name)
        if field is None:
            raise unknown_key(".".join(parts[: depth + 1]), list(owner.model_fields))
        owner, named = model_of(field.annotation), get_origin(field.annotation) is dict
    return field


def _resolve(recipe: Recipe, beside: Path | None) -> Recipe:
    """Prompt files as absolute paths, so that the dumped recipe means the same from every directory."""
    fields = {}
    for name in ("train", "heldout"):
        source = getattr(recipe.prompts, name)
        if source is not None and source not in names.WORLD_PROMPTS:
            spots = [Path(source).expanduser(), *([beside / source] if beside else [])]
            existing = next((spot for spot in spots if spot.exists()), None)
            fields[name] = str(existing.resolve()) if existing else source
    return resolved(guided(recipe.model_copy(update={"prompts": recipe.prompts.model_copy(update=fields)})))
