"""Numbers of a recipe that change during a run, linear between points.

    objective: {kl: {0: 0.0, 50: 0.04}}                                    by iterations done, from 0
    train: {lr: {by: updates, points: {0: 1.0e-5, 200: 3.0e-4}}}           by optimizer steps taken
    ... {points: {0: 0, 10: 0.9, 90: 0.05}, shape: [linear, cosine]}       not linear: see curve_shapes.py

Before the first point a curve has the first value, after the last point the last. Its value depends on these two counts
alone, so that a resumed run has the same numbers. Keys that accept a curve are marked in the schema
(`key(..., curve=True)`); each value must be one that the key accepts as a constant.
"""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any, Literal, TypeVar, get_origin

from pydantic import BaseModel, PrivateAttr, SerializerFunctionWrapHandler, ValidationError, model_serializer
from pydantic.fields import FieldInfo

from flowrl.recipe.base import Strict
from flowrl.recipe.base import key as recipe_key
from flowrl.recipe.curve_shapes import SHAPES, share
from flowrl.recipe.errors import RecipeError, model_of, show, translate, wrong_value
from flowrl.recipe.keys.phases import Phase, phase_at, starts
from flowrl.recipe.sections import names_own
from flowrl.untyped import JSON

Value = float | list[float]
R = TypeVar("R", bound="Curved")
OWN = ("objective", "advantage")  # where a part is the user's own, these follow curves: they are read every iteration
WORDS = {"by", "points", "shape", "coef", "mid"}
WRITTEN = "a curve such as {0: 0.1, 50: 0.2}, or {by: updates, points: {0: 0.1, 50: 0.2}}"


@dataclass(frozen=True)
class Curve:
    """Values at rising counts of iterations or updates (optimizer steps). Lists are read number by number.

    shapes: of each way from a point to the next, or one for all; coef, mid: their numbers (curve_shapes.py).
    """

    points: tuple[tuple[int, Value], ...]
    by: Literal["iterations", "updates"] = "iterations"
    shapes: tuple[str, ...] = ("linear",)
    coef: float | None = None
    mid: float = 0.5

    def at(self, iteration: int, updates: int) -> Value:
        """The value after so many iterations and optimizer steps."""
        count, before = iteration if self.by == "iterations" else updates, self.points[0]
        for number, after in enumerate(self.points):
            shape = self.shapes[(number - 1) % len(self.shapes)]
            last = shape == "sigmoid" and number == len(self.points) - 1  # it ends beside its last point
            if count < after[0] or last:
                if after is before:
                    return before[1]
                gone, length = min(count, after[0]) - before[0], after[0] - before[0]
                return _between(before[1], after[1], share(shape, gone, length, self.coef, self.mid))
            before = after
        return before[1]

    def numbers(self, key: str, iteration: int, updates: int) -> Iterator[tuple[str, float]]:
        """(key, present value); for a list, one pair per element."""
        value = self.at(iteration, updates)
        if isinstance(value, list):
            yield from ((f"{key}/{i}", number) for i, number in enumerate(value))
        else:
            yield key, value

    def written(self) -> dict[JSON, JSON]:
        """The mapping that a recipe contains for this curve."""
        points = dict(self.points)
        if self.shapes == ("linear",):
            return points if self.by == "iterations" else {"by": self.by, "points": points}
        shape = self.shapes[0] if len(self.shapes) == 1 else list(self.shapes)
        numbers = ({} if self.coef is None else {"coef": self.coef}) | ({} if self.mid == 0.5 else {"mid": self.mid})
        return {"by": self.by, "points": points, "shape": shape, **numbers}

    def words(self) -> str:
        """The points in words, as a dry run shows them."""
        one = "iteration" if self.by == "iterations" else "update"
        told = " -> ".join(f"{_number(value)} at {one} {count}" for count, value in self.points)
        return told if self.shapes == ("linear",) else f"{told} ({', '.join(self.shapes)})"


def is_curve_mapping(value: Mapping[JSON, JSON]) -> bool:
    """Whether a mapping is what `Curve.written` gives."""
    return all(isinstance(name, int) for name in value) or {"by", "points"} <= value.keys() <= WORDS


def _between(a: Value, b: Value, share: float) -> Value:
    if isinstance(a, list) and isinstance(b, list):
        return [x + (y - x) * share for x, y in zip(a, b, strict=True)]
    assert not isinstance(a, list) and not isinstance(b, list)
    return a + (b - a) * share


def _number(value: Value) -> str:
    return f"[{', '.join(f'{x:g}' for x in value)}]" if isinstance(value, list) else f"{value:g}"


def split_curves(
    values: Mapping[str, JSON], model: type[BaseModel], place: str = ""
) -> tuple[dict[str, JSON], dict[str, Curve]]:
    """(the values of a recipe, with the first value of each curve in its place; the curves by dotted key).

    Raises RecipeError for a mapping that is no curve, at a key that takes one.
    """
    plain, curves = dict(values), {}
    for name, field in model.model_fields.items():
        value, key = values.get(name), f"{place}{name}"
        if not isinstance(value, Mapping):
            continue
        if key in OWN and names_own(value):
            inner_curves = {
                inner: _read(f"{key}.{inner}", v, "a number") for inner, v in value.items() if _looks_like(v)
            }
            plain[name] = {**value} | {inner: curve.points[0][1] for inner, curve in inner_curves.items()}
            curves |= {f"{key}.{inner}": curve for inner, curve in inner_curves.items()}
        elif takes_curve(field):
            curves[key] = _read(key, value, field.description or "")
            plain[name] = curves[key].points[0][1]
        elif (section := model_of(field.annotation)) is None:
            continue
        elif get_origin(field.annotation) is dict:  # sections under names that the recipe chose
            parts = {inner: split_curves(v, section, f"{key}.{inner}.") for inner, v in value.items() if _is_section(v)}
            plain[name] = {**value} | {inner: part for inner, (part, _) in parts.items()}
            curves |= {place: curve for _, found in parts.values() for place, curve in found.items()}
        else:
            plain[name], inner_curves = split_curves(value, section, f"{key}.")
            curves |= inner_curves
    return plain, curves


def check_points(recipe: BaseModel, curves: Mapping[str, Curve]) -> dict[str, Curve]:
    """The curves with every value as its key reads a constant. Raises RecipeError for a value that the key refuses."""
    checked = {}
    for key, curve in curves.items():
        *sections, name = key.split(".")
        section = recipe
        for part in sections:
            section = section[part] if isinstance(section, Mapping) else getattr(section, part)
        points = []
        for count, value in curve.points:
            try:
                valid = type(section).model_validate({**dict(section), name: value})
            except ValidationError as error:
                refused = translate(error, type(section))
                raise RecipeError(f"{key}.{count}", refused.problem, f"change {key}.{count}") from None
            value = getattr(valid, name)
            points.append((count, value if isinstance(value, list) else float(value)))
        checked[key] = replace(curve, points=tuple(points))
    return checked


def _is_section(value: JSON) -> bool:
    """Whether a value is written as a section, whose keys are texts."""
    return isinstance(value, Mapping) and all(isinstance(name, str) for name in value)


def _looks_like(value: JSON) -> bool:
    """Whether a value is written as a curve, where no annotation tells what it is to be."""
    counts = isinstance(value, Mapping) and value and all(str(name).isdigit() for name in value)
    return bool(counts) or (isinstance(value, Mapping) and {"by", "points"} <= value.keys() <= WORDS)


def takes_curve(field: FieldInfo) -> bool:
    """Whether the value of a key may change during a run."""
    extra = field.json_schema_extra
    return isinstance(extra, dict) and bool(extra.get("curve"))


def _read(place: str, value: Mapping[str, JSON], accepted: str) -> Curve:
    whole = f"{accepted}, or {WRITTEN}"
    by, points = ("iterations", value) if "points" not in value else (value.get("by", "iterations"), value["points"])
    if by not in ("iterations", "updates") or ("points" in value and not set(value) <= WORDS):
        raise wrong_value(place, value, whole)
    if not isinstance(points, Mapping) or len(points) < 2:
        raise RecipeError(place, f"got {show(value)}, accepted: {whole}", "give it at least two points")
    read = [(_count(place, count, whole), number) for count, number in points.items()]
    counts, numbers = [count for count, _ in read], [number for _, number in read]
    for a, b in zip(counts, counts[1:], strict=False):
        if b <= a:
            raise RecipeError(place, f"got a point at {b} after one at {a}", f"write the points of {place} in order")
    for number in numbers:
        if not _is_value(number):
            raise RecipeError(place, f"got the point {show(number)}, which is not a number", f"accepted: {whole}")
        if _length(number) != _length(numbers[0]):
            raise RecipeError(place, f"got the points {show(numbers)}", "give them all as numbers, or as equal lists")
    shapes, coef, mid = value.get("shape", "linear"), value.get("coef"), value.get("mid", 0.5)
    shapes = shapes if isinstance(shapes, list) else [shapes]
    if not shapes or not set(map(str, shapes)) <= set(SHAPES) or len(shapes) not in (1, len(read) - 1):
        accepted = f"one of {', '.join(SHAPES)}, or a list of them, one for each way from a point to the next"
        raise RecipeError(f"{place}.shape", f"got {show(value.get('shape'))}", f"accepted: {accepted}")
    for name, number in (("coef", 1.0 if coef is None else coef), ("mid", mid)):
        if isinstance(number, bool) or not isinstance(number, int | float) or number <= 0:
            raise RecipeError(
                f"{place}.{name}", f"got {show(number)}, accepted: a number > 0", f"change {place}.{name}"
            )
    return Curve(tuple(read), by, tuple(shapes), None if coef is None else float(coef), float(mid))


def _count(place: str, count: JSON, accepted: str) -> int:
    if isinstance(count, str) and count.isascii() and count.isdigit() and len(count) < 10:
        return int(count)
    if isinstance(count, int) and not isinstance(count, bool) and count >= 0:
        return count
    raise RecipeError(place, f"got a point at {show(count)}, accepted: whole numbers >= 0", f"write {accepted}")


def _is_value(number: JSON) -> bool:
    parts = number if isinstance(number, list) and number else [number]
    return all(isinstance(part, int | float) and not isinstance(part, bool) for part in parts)


def _length(number: Value) -> int | None:
    return len(number) if isinstance(number, list) else None


def replace_value(model: BaseModel | Mapping[str, Any], key: str, value: Any) -> Any:
    """A copy of a section with the value of a dotted key replaced."""
    name, _, rest = key.partition(".")
    if isinstance(model, Mapping):
        return {**model, name: replace_value(model[name], rest, value) if rest else value}
    return model.model_copy(update={name: replace_value(getattr(model, name), rest, value) if rest else value})


class Curved(Strict):
    """A recipe some of whose values follow curves, or differ from phase to phase (recipe/keys/phases.py).

    It holds the first value of each curve, and what stands outside of all phases; `at` gives the others.
    """

    phases: list[Phase] = recipe_key([], "a list of {iterations, overrides, reset}")
    _curves: dict[str, Curve] = PrivateAttr(default_factory=dict)
    _parts: tuple[Any, ...] = PrivateAttr(default=())  # the recipe of each phase

    @property
    def updates_per_iteration(self) -> int:
        """Optimizer steps of an iteration."""
        raise NotImplementedError

    @property
    def curves(self) -> dict[str, Curve]:
        """The curves of values that change during the run, by dotted key."""
        return self._curves

    @property
    def changes(self) -> bool:
        """Whether any value changes during the run."""
        return bool(self._curves or self._parts)

    def parts(self: R) -> list[R]:
        """The recipe of each phase; itself without phases."""
        return list(self._parts) or [self]

    def with_parts(self: R, parts: Sequence[R]) -> R:
        """A copy whose phases have these recipes."""
        copy = self.model_copy()
        copy._parts = tuple(parts)
        return copy

    def updates_by(self, iteration: int) -> int:
        """Optimizer steps that so many iterations make, phase by phase."""
        if not self._parts:
            return iteration * self.updates_per_iteration
        ends = [*starts(self.phases)[1:], max(iteration, 0)]
        each = zip(self._parts, starts(self.phases), ends, strict=True)
        return sum(max(min(iteration, end) - start, 0) * part.updates_per_iteration for part, start, end in each)

    def with_curves(self: R, curves: Mapping[str, Curve]) -> R:
        """A copy whose values follow these curves. Raises RecipeError for a point that its key does not accept."""
        copy = self.model_copy()
        copy._curves = check_points(self, curves)
        return copy

    def at(self: R, iteration: int, updates: int | None = None) -> R:
        """The recipe with the constants that its curves have after so many iterations and optimizer steps.

        updates None: as many as these iterations make. With phases these are the constants of its phase.
        """
        if self._parts:
            number = phase_at(self.phases, iteration)
            return self._parts[number].at(iteration, self.updates_by(iteration) if updates is None else updates)
        if not self._curves:
            return self
        done = iteration * self.updates_per_iteration if updates is None else updates
        recipe = self
        for dotted, curve in self._curves.items():
            recipe = replace_value(recipe, dotted, curve.at(iteration, done))
        recipe._curves = {}
        return recipe

    def stages(self: R) -> list[R]:
        """The recipe with its constants at each point of its curves, in the order of the run; itself without curves.

        With phases, those of each phase.
        """
        if self._parts:
            return [stage for part in self._parts for stage in part.stages()]
        each, counts = self.updates_per_iteration, {(0, 0)}
        for curve in self._curves.values():
            steps = [count * each if curve.by == "iterations" else count for count, _ in curve.points]
            counts |= {(number // each, number) for number in steps}
        return [self.at(*count) for count in sorted(counts)]

    @model_serializer(mode="wrap")
    def _with_curves_written(self, handler: SerializerFunctionWrapHandler) -> dict[str, JSON]:
        """Every value, curves as a recipe writes them."""
        values = handler(self)
        for dotted, curve in self._curves.items():
            *sections, name = dotted.split(".")
            place = values
            for section in sections:
                place = place.get(section, {})
            if name in place:
                place[name] = curve.written()
        return values
