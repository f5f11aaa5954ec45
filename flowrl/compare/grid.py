"""The runs of a comparison: every variant of a recipe with every seed, each with a folder of its own."""

import itertools
import json
import re
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import yaml

from flowrl.names import UserError
from flowrl.recipe import scalars
from flowrl.recipe.changes import changes
from flowrl.recipe.errors import RecipeError, show
from flowrl.recipe.load import dump, load, parse
from flowrl.recipe.schema import Recipe

BASE = "base"  # the name of a recipe without any variant
UNLIMITED = 100_000  # iterations of a run that ends by time
# what may differ between runs that are compared as one, or between a run and the grid that goes on with it
INDIFFERENT = ("output", "threads", "device", "track", "checkpoint", "eval.batch", "eval.grid")


@dataclass(frozen=True)
class Variant:
    """A name and the `key=value` overrides that make it of the recipe."""

    name: str
    overrides: tuple[str, ...] = ()


@dataclass(frozen=True)
class Cell:
    """One run of the grid. Its recipe stands beside its folder, as FOLDER.yaml, and what it prints in FOLDER.log."""

    variant: str
    seed: int
    recipe: Recipe
    folder: Path

    @property
    def file(self) -> Path:
        """The recipe that it is run with."""
        return self.folder.with_name(f"{self.folder.name}.yaml")

    @property
    def log(self) -> Path:
        """What it prints."""
        return self.folder.with_name(f"{self.folder.name}.log")

    def __str__(self) -> str:
        return f"{self.variant}, seed {self.seed}"


@dataclass(frozen=True)
class Budget:
    """Seconds of training that a run may take, and how many evaluations there are from its start to its end."""

    seconds: float
    evaluations: int = 6


def duration(text: str) -> float:
    """Seconds of `90s`, `3m`, `1.5h` or a bare number of seconds. Raises UserError for anything else."""
    found = re.fullmatch(r"(\d+\.?\d*|\.\d+)\s*(s|m|min|h|)", text.strip())
    value = float(found[1]) * {"s": 1, "": 1, "m": 60, "min": 60, "h": 3600}[found[2]] if found else 0.0
    if not value:
        raise UserError(f"--budget: got {text!r}, accepted: a time > 0 such as 90s, 3m or 2h; correct it")
    return value


def variants(vary: Sequence[str], file: Path | None = None) -> list[Variant]:
    """Every named variant of the file with every combination of the varied values; the recipe itself without either.

    Raises UserError where two variants have one name or nothing is varied as it must be.
    """
    axes = [_axis(text) for text in vary]
    keys = [key for key, _ in axes]
    if twice := next((key for key in keys if keys.count(key) > 1), None):
        raise UserError(f"--vary: {twice} is given twice; list all its values in one, as {twice}=A,B")
    named = [Variant("")] if file is None else _named(file)
    found = []
    for variant in named:
        for values in itertools.product(*(values for _, values in axes)):
            chosen = list(zip(keys, values, strict=True))
            words = [variant.name, *(f"{_short(key, keys)}={value}" for key, value in chosen)]
            overrides = (*variant.overrides, *(f"{key}={value}" for key, value in chosen))
            found.append(Variant(" ".join(filter(None, words)) or BASE, overrides))
    slugs = [slug(v.name) for v in found]
    if twice := next((v.name for v, s in zip(found, slugs, strict=True) if slugs.count(s) > 1), None):
        raise UserError(f"variant {twice!r}: another one has the same name or folder; give each value or name once")
    return found


def cells(
    recipe: str,
    overrides: Sequence[str],
    chosen: Sequence[Variant],
    *,
    seeds: int,
    output: Path,
    budget: Budget | None = None,
    threads: int | None = None,
) -> list[Cell]:
    """The checked runs of the grid, seed by seed, so that an early stop leaves all variants equally far.

    budget: each run ends by time alone, unless an override gives train.iterations, and is evaluated at equal times.
    Raises UserError, naming the variant, where a recipe cannot run or a folder holds another run.
    """
    found = []
    for variant in chosen:
        given = [*overrides, *variant.overrides]
        timed = [] if budget is None else _timed(budget, given)
        try:
            whole = load(recipe, [*timed, *given])
        except RecipeError as error:
            raise UserError(f"variant {variant.name!r}: {error}") from None
        if budget is not None:
            timing = {"every": None, "every_seconds": budget.seconds / max(1, budget.evaluations - 1)}
            whole = whole.model_copy(update={"eval": whole.eval.model_copy(update=timing)})
        for seed in range(whole.seed, whole.seed + seeds):
            folder = output / slug(variant.name) / f"seed-{seed}"
            more = {"seed": seed, "output": str(folder), "threads": whole.threads or threads}
            found.append(Cell(variant.name, seed, whole.model_copy(update=more), folder))
    for cell in found:
        _refuse_another(cell)
    return sorted(found, key=lambda cell: cell.seed)


def write(cell: Cell) -> None:
    """Puts a run's recipe where the run will be told to read it."""
    cell.file.parent.mkdir(parents=True, exist_ok=True)
    cell.file.write_text(dump(cell.recipe), encoding="utf-8")


def differing(before: Recipe, now: Recipe) -> dict[str, list[Any]]:
    """Dotted key -> [before, now] of all that makes two runs different ones, seeds included."""
    found = changes(before, now).items()
    return {key: pair for key, pair in found if not any(key == i or key.startswith(f"{i}.") for i in INDIFFERENT)}


def slug(name: str) -> str:
    """A variant's name as the name of a folder."""
    return re.sub(r"[^\w.=+-]+", "_", name).strip("._") or BASE


def _timed(budget: Budget, given: Iterable[str]) -> list[str]:
    limited = any(override.partition("=")[0].strip() == "train.iterations" for override in given)
    return [f"train.seconds={budget.seconds}"] + ([] if limited else [f"train.iterations={UNLIMITED}"])


def _refuse_another(cell: Cell) -> None:
    file = cell.folder / "recipe.yaml"
    if not file.is_file():
        return
    for key, (old, new) in differing(load(str(file)), cell.recipe).items():
        raise UserError(
            f"{cell.folder}: holds a run with {key} {show(old)}, and the grid wants {show(new)}; "
            "name another folder with --output, or remove this one"
        )


def _axis(text: str) -> tuple[str, list[str]]:
    """(key, values as they were written) of KEY=V1,V2; brackets, braces and quotes hold a value together."""
    key, equals, values = text.partition("=")
    accepted = "accepted: KEY=VALUE,VALUE with YAML values, such as sampler.window.size=2,4"
    try:
        node: Any = yaml.compose(f"[{values}]", Loader=scalars.Loader)
        found = [f"[{values}]"[n.start_mark.index : n.end_mark.index].strip() for n in node.value]
    except yaml.YAMLError:
        found = []
    if not equals or not key.strip() or not found or not all(found):
        raise UserError(f"--vary: got {text!r}, {accepted}")
    if twice := next((value for value in found if found.count(value) > 1), None):
        raise UserError(f"--vary: {key.strip()} has the value {twice} twice; give it once")
    return key.strip(), found


def _short(key: str, keys: Sequence[str]) -> str:
    """The shortest end of a dotted key that no other key has."""
    parts = key.split(".")
    ends = (".".join(parts[-i:]) for i in range(1, len(parts) + 1))
    return next(e for e in ends if sum(k == e or k.endswith(f".{e}") for k in keys) == 1)


def _named(file: Path) -> list[Variant]:
    """The variants of a file: names mapped to {key: value} or to a list of `key=value`; null is the recipe itself."""
    if not file.is_file():
        raise UserError(f"--variants: {file} is no file, accepted: a YAML file of names and their recipe values")
    found = []
    for name, values in parse(file).items():
        if isinstance(values, dict):
            overrides = tuple(f"{key}={json.dumps(value)}" for key, value in values.items())
        elif values is None or (isinstance(values, list) and all(isinstance(v, str) for v in values)):
            overrides = tuple(values or ())
        else:
            accepted = "a mapping of recipe keys, a list of key=value, or null"
            raise UserError(f"{file}: {name}: got {show(values)}, accepted: {accepted}; correct it")
        found.append(Variant(name, overrides))
    if not found:
        raise UserError(f"{file}: names no variant; write `name: {{key: value}}` a line")
    return found
