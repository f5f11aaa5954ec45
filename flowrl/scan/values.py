"""The values that a scan tries: `key=a:b:n` or `key=v1,v2,...` among the overrides, and the checked recipe of each."""

import re
from collections.abc import Sequence
from dataclasses import dataclass

from flowrl.names import UserError
from flowrl.recipe.errors import RecipeError
from flowrl.recipe.load import load
from flowrl.recipe.schema import Recipe

SECTIONS = ("sampler", "generation", "pipeline")  # of a recipe, which determine how samples are drawn
MAX_VALUES = 50  # values
_NUMBER = r"[-+]?(?:\d+\.?\d*|\.\d+)(?:[eE][-+]?\d+)?"
_RANGE = re.compile(rf"({_NUMBER}):({_NUMBER}):(\d+)")
_SYNTAX = "KEY=FIRST:LAST:NUMBER or KEY=VALUE,VALUE,..., such as sampler.noise=0.1:1.2:6"


@dataclass(frozen=True)
class ScannedValue:
    """A value as it was written or computed, and the recipe with it."""

    label: str
    recipe: Recipe


def scanned_values(recipe: str, overrides: Sequence[str], more: Sequence[str] = ()) -> tuple[str, list[ScannedValue]]:
    """(scanned key, a checked recipe for each of its values) from the overrides on the command line.

    Exactly one override has several values. more: overrides that come before the user's own. Raises UserError, or
    RecipeError for the first value that the recipe's checks refuse.
    """
    key, texts, others = _find_scanned_key(overrides)
    if key.split(".")[0] not in SECTIONS:
        accepted = ", ".join(f"{name}.*" for name in SECTIONS)
        raise RecipeError(key, f"does not affect how samples are drawn; accepted: {accepted}", "scan one of these")
    base = ["track=null", *more, *others]
    return key, [ScannedValue(text, load(recipe, [*base, f"{key}={text}"])) for text in texts]


def _find_scanned_key(overrides: Sequence[str]) -> tuple[str, list[str], list[str]]:
    """(key, its values, the other overrides)."""
    scanned = [(key, texts, o) for o in overrides for key, texts in [_expand(o)] if len(texts) > 1]
    if len(scanned) != 1:
        got = "no key" if not scanned else f"{len(scanned)} keys ({', '.join(key for key, *_ in scanned)})"
        raise UserError(f"KEY=VALUES: got {got} with several values, accepted: exactly one; write {_SYNTAX}")
    ((key, texts, override),) = scanned
    repeated = next((text for i, text in enumerate(texts) if text in texts[:i]), None)
    if repeated is not None:
        raise UserError(f"{key}: got {repeated} twice; give each value once")
    if len(texts) > MAX_VALUES:
        raise UserError(f"{key}: got {len(texts)} values, accepted: 2 to {MAX_VALUES}; scan fewer")
    return key, texts, [o for o in overrides if o != override]


def _expand(override: str) -> tuple[str, list[str]]:
    """The key of an override and the values it names: one, or those of a range or a list."""
    key, _, text = override.partition("=")
    key, text = key.strip(), text.strip()
    if match := _RANGE.fullmatch(text):
        return key, expand_range(*match.groups())
    return key, [part.strip() for part in _split_list(text)]


def expand_range(first: str, last: str, number: str) -> list[str]:
    """`number` evenly spaced values from first to last, both included, with six digits; integers if all of them are."""
    count = int(number)
    if not 2 <= count <= MAX_VALUES:
        raise UserError(f"{first}:{last}:{number}: got {number} values, accepted: 2 to {MAX_VALUES}; write {_SYNTAX}")
    low, high = float(first), float(last)
    values = [low + (high - low) * i / (count - 1) for i in range(count)]
    if all(abs(v - round(v)) < 1e-9 * max(1.0, abs(v)) for v in values) and not {*".eE"} & {*first, *last}:
        return [str(round(v)) for v in values]
    return [f"{v:.6g}" for v in values]


def _split_list(text: str) -> list[str]:
    """A list split at its commas, except those inside brackets or quotes."""
    parts, depth, quote = [""], 0, ""
    for letter in text:
        if quote:
            quote = "" if letter == quote else quote
        elif letter in "\"'":
            quote = letter
        depth += (not quote and letter in "[{(") - (not quote and letter in "]})")
        if letter == "," and not depth and not quote:
            parts.append("")
        else:
            parts[-1] += letter
    return parts
