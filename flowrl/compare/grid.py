"""The runs of a comparison: every variant of a recipe with every seed, each in a folder of its own."""

import itertools
import json
import re
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import yaml

from flowrl.compare.forwards import affordable_iterations, planned_forwards
from flowrl.names import UserError
from flowrl.recipe import scalars
from flowrl.recipe.changes import changes
from flowrl.recipe.errors import show
from flowrl.recipe.load import dump, load, parse
from flowrl.recipe.schema import Recipe

BASE = "base"  # the name of a recipe without any variant
SCALES = {"s": 1, "": 1, "m": 60, "min": 60, "h": 3600, "k": 1e3, "M": 1e6}  # what stands behind a budget's number
UNLIMITED = 100_000  # iterations of a run that ends by time
# keys that may differ between runs of one variant, or between a run and the grid that resumes it
IGNORED_KEYS = ("output", "threads", "device", "track", "checkpoint", "eval.batch", "eval.grid")


@dataclass(frozen=True)
class Variant:
    """A name, and the `key=value` overrides that turn the recipe into this variant."""

    name: str
    overrides: tuple[str, ...] = ()


@dataclass(frozen=True)
class Cell:
    """One run of the grid. Its recipe is written to FOLDER.yaml beside its folder, its output to FOLDER.log."""

    variant: str
    seed: int
    recipe: Recipe
    folder: Path

    @property
    def file(self) -> Path:
        """The file of its recipe."""
        return self.folder.with_name(f"{self.folder.name}.yaml")

    @property
    def log(self) -> Path:
        """The file of its output."""
        return self.folder.with_name(f"{self.folder.name}.log")

    def __str__(self) -> str:
        return f"{self.variant}, seed {self.seed}"


@dataclass(frozen=True)
class Budget:
    """Seconds of training per run, or its forwards (compare/forwards.py), and the number of evaluations from its start
    to its end."""

    seconds: float | None = None
    forwards: float | None = None
    evaluations: int = 6


def parse_budget(text: str, evaluations: int = 6) -> Budget:
    """A budget of time (`90s`, `3m`, `1.5h`, a bare number of seconds) or of forwards (`66k`, `1.5M`, `900 forwards`).

    Raises UserError for anything else.
    """
    match = re.fullmatch(r"(\d+\.?\d*|\.\d+)\s*(s|m|min|h|k|M|)\s*(forwards)?", text.strip())
    value = float(match[1]) * SCALES[match[2]] if match else 0.0
    counted = match is not None and (match[3] is not None or match[2] in ("k", "M"))
    if match is None or not value or (counted and match[2] not in ("", "k", "M")):
        accepted = "a time > 0 such as 90s, 3m or 2h, or forwards of the model such as 66k or 1.5M"
        raise UserError(f"--budget: got {text!r}, accepted: {accepted}; correct it")
    return Budget(forwards=value, evaluations=evaluations) if counted else Budget(value, evaluations=evaluations)


def make_variants(vary: Sequence[str], file: Path | None = None) -> list[Variant]:
    """Every named variant of the file with every combination of the varied values; without either, the recipe itself.

    Raises UserError where two variants share a name or `vary` cannot be parsed.
    """
    axes = [_parse_axis(text) for text in vary]
    keys = [key for key, _ in axes]
    if twice := next((key for key in keys if keys.count(key) > 1), None):
        raise UserError(f"--vary: {twice} is given twice; list all its values at once, as {twice}=A,B")
    named = [Variant("")] if file is None else _read_variants(file)
    variants = []
    for variant in named:
        for values in itertools.product(*(values for _, values in axes)):
            chosen = list(zip(keys, values, strict=True))
            words = [variant.name, *(f"{_shortest_suffix(key, keys)}={value}" for key, value in chosen)]
            overrides = (*variant.overrides, *(f"{key}={value}" for key, value in chosen))
            variants.append(Variant(" ".join(filter(None, words)) or BASE, overrides))
    slugs = [slug(v.name) for v in variants]
    if twice := next((v.name for v, s in zip(variants, slugs, strict=True) if slugs.count(s) > 1), None):
        raise UserError(f"variant {twice!r}: another has the same name or folder; give each value or name once")
    return variants


def make_cells(
    recipe: str,
    overrides: Sequence[str],
    chosen: Sequence[Variant],
    *,
    seeds: int,
    output: Path,
    budget: Budget | None = None,
    threads: int | None = None,
) -> list[Cell]:
    """The checked runs of the grid, ordered by seed, so that after an early stop all variants have equal numbers.

    budget: of time: each run ends by it alone, unless an override sets train.iterations, and is evaluated at equal
    times. Of forwards: each has as many iterations as fit, and is evaluated after equal shares of them.
    Raises UserError, naming the variant, where a recipe cannot run or a folder holds another run.
    """
    cells = []
    for variant in chosen:
        given = [*overrides, *variant.overrides]
        try:
            whole = _within(budget, recipe, given)
        except UserError as error:
            raise UserError(f"variant {variant.name!r}: {error}") from None
        for seed in range(whole.seed, whole.seed + seeds):
            folder = output / slug(variant.name) / f"seed-{seed}"
            more = {"seed": seed, "output": str(folder), "threads": whole.threads or threads}
            cells.append(Cell(variant.name, seed, whole.model_copy(update=more), folder))
    for cell in cells:
        _refuse_another(cell)
    return sorted(cells, key=lambda cell: cell.seed)


def write_recipe(cell: Cell) -> None:
    """Writes a run's recipe to the file that the run reads."""
    cell.file.parent.mkdir(parents=True, exist_ok=True)
    cell.file.write_text(dump(cell.recipe), encoding="utf-8")


def differing_keys(before: Recipe, now: Recipe) -> dict[str, list[object]]:
    """Dotted key -> [before, now] of every difference that makes two runs distinct, the seed included."""
    changed = changes(before, now).items()
    return {key: pair for key, pair in changed if not any(key == i or key.startswith(f"{i}.") for i in IGNORED_KEYS)}


def slug(name: str) -> str:
    """A variant's name as the name of a folder."""
    return re.sub(r"[^\w.=+-]+", "_", name).strip("._") or BASE


def _within(budget: Budget | None, recipe: str, given: Sequence[str]) -> Recipe:
    """The recipe with these overrides, as long as its budget lasts."""
    if budget is None:
        return load(recipe, given)
    limited = any(override.partition("=")[0].strip() == "train.iterations" for override in given)
    shares = max(1, budget.evaluations - 1)
    if budget.forwards is None:
        timed = [f"train.seconds={budget.seconds}"] + ([] if limited else [f"train.iterations={UNLIMITED}"])
        whole = load(recipe, [*timed, *given])
        timing = {"every": None, "every_seconds": (budget.seconds or 0.0) / shares}
        return whole.model_copy(update={"eval": whole.eval.model_copy(update=timing)})
    if limited:
        raise UserError("--budget: counts forwards, which sets train.iterations; leave that out, or give a time")
    whole = load(recipe, given)
    number = affordable_iterations(whole, budget.forwards)
    if not number:
        one = planned_forwards(whole, 0)
        raise UserError(f"--budget: got {budget.forwards:,.0f} forwards, but an iteration takes {one:,.0f}; give more")
    return load(recipe, [*given, f"train.iterations={number}", f"eval.every={max(1, round(number / shares))}"])


def _refuse_another(cell: Cell) -> None:
    file = cell.folder / "recipe.yaml"
    if not file.is_file():
        return
    for key, (old, new) in differing_keys(load(str(file)), cell.recipe).items():
        raise UserError(
            f"{cell.folder}: holds a run with {key} {show(old)}, but the grid needs {show(new)}; "
            "name another folder with --output, or remove this one"
        )


def _parse_axis(text: str) -> tuple[str, list[str]]:
    """(key, values as written) of KEY=V1,V2; commas inside brackets, braces and quotes do not split."""
    key, equals, values = text.partition("=")
    accepted = "accepted: KEY=VALUE,VALUE with YAML values, such as sampler.window.size=2,4"
    try:
        node: Any = yaml.compose(f"[{values}]", Loader=scalars.Loader)
        parsed = [f"[{values}]"[n.start_mark.index : n.end_mark.index].strip() for n in node.value]
    except yaml.YAMLError:
        parsed = []
    if not equals or not key.strip() or not parsed or not all(parsed):
        raise UserError(f"--vary: got {text!r}, {accepted}")
    if twice := next((value for value in parsed if parsed.count(value) > 1), None):
        raise UserError(f"--vary: {key.strip()} has the value {twice} twice; give it once")
    return key.strip(), parsed


def _shortest_suffix(key: str, keys: Sequence[str]) -> str:
    """The shortest suffix of a dotted key that no other key shares."""
    parts = key.split(".")
    ends = (".".join(parts[-i:]) for i in range(1, len(parts) + 1))
    return next(e for e in ends if sum(k == e or k.endswith(f".{e}") for k in keys) == 1)


def _read_variants(file: Path) -> list[Variant]:
    """The variants of a file: names mapped to {key: value} or to a list of `key=value`; null is the recipe itself."""
    if not file.is_file():
        raise UserError(f"--variants: {file} is not a file, accepted: a YAML file of names and their recipe values")
    variants = []
    for name, values in parse(file).items():
        if isinstance(values, dict):
            overrides = tuple(f"{key}={json.dumps(value)}" for key, value in values.items())
        elif values is None or (isinstance(values, list) and all(isinstance(v, str) for v in values)):
            overrides = tuple(values or ())
        else:
            accepted = "a mapping of recipe keys, a list of key=value, or null"
            raise UserError(f"{file}: {name}: got {show(values)}, accepted: {accepted}; correct it")
        variants.append(Variant(name, overrides))
    if not variants:
        raise UserError(f"{file}: names no variant; write one per line, as `name: {{key: value}}`")
    return variants
