"""Which values a scan looks at: `key=a:b:n` or `key=v1,v2,...` among the overrides, and the checked recipe of each."""

import re
from collections.abc import Sequence
from dataclasses import dataclass

from flowrl.names import UserError
from flowrl.recipe.errors import RecipeError
from flowrl.recipe.load import load
from flowrl.recipe.schema import Recipe

SECTIONS = ("sampler", "generation", "pipeline")  # of a recipe, that say how samples are drawn
MOST = 50  # values
_NUMBER = r"[-+]?(?:\d+\.?\d*|\.\d+)(?:[eE][-+]?\d+)?"
_RANGE = re.compile(rf"({_NUMBER}):({_NUMBER}):(\d+)")
_WRITTEN = "KEY=FIRST:LAST:NUMBER or KEY=VALUE,VALUE,..., such as sampler.noise=0.1:1.2:6"


@dataclass(frozen=True)
class Choice:
    """A value as it was written or worked out, and the recipe that has it."""

    label: str
    recipe: Recipe


def choices(recipe: str, overrides: Sequence[str], more: Sequence[str] = ()) -> tuple[str, list[Choice]]:
    """(scanned key, a checked recipe for each of its values) from what stands on the command line.

    Exactly one override has several values. more: overrides that the user's own stand above. Raises UserError, or
    RecipeError for the first value that the recipe's checks refuse.
    """
    key, texts, others = _scanned(overrides)
    if key.split(".")[0] not in SECTIONS:
        accepted = ", ".join(f"{name}.*" for name in SECTIONS)
        raise RecipeError(key, f"changes nothing in how samples are drawn; accepted: {accepted}", "scan one of these")
    base = ["track=null", *more, *others]
    return key, [Choice(text, load(recipe, [*base, f"{key}={text}"])) for text in texts]


def _scanned(overrides: Sequence[str]) -> tuple[str, list[str], list[str]]:
    """(key, its values, the other overrides)."""
    found = [(key, texts, o) for o in overrides for key, texts in [_expanded(o)] if len(texts) > 1]
    if len(found) != 1:
        got = "no key" if not found else f"{len(found)} keys ({', '.join(key for key, *_ in found)})"
        raise UserError(f"KEY=VALUES: got {got} with several values, accepted: exactly one; write {_WRITTEN}")
    ((key, texts, override),) = found
    repeated = next((text for i, text in enumerate(texts) if text in texts[:i]), None)
    if repeated is not None:
        raise UserError(f"{key}: got {repeated} twice; name values that differ")
    if len(texts) > MOST:
        raise UserError(f"{key}: got {len(texts)} values, accepted: 2 to {MOST}; scan fewer")
    return key, texts, [o for o in overrides if o != override]


def _expanded(override: str) -> tuple[str, list[str]]:
    """The key of an override and the values it names: one, or those of a range or a list."""
    key, _, text = override.partition("=")
    key, text = key.strip(), text.strip()
    if match := _RANGE.fullmatch(text):
        return key, span(*match.groups())
    return key, [part.strip() for part in _split(text)]


def span(first: str, last: str, number: str) -> list[str]:
    """`number` evenly spaced values from first to last, both included, six digits each; whole where all of them are."""
    count = int(number)
    if not 2 <= count <= MOST:
        raise UserError(f"{first}:{last}:{number}: got {number} values, accepted: 2 to {MOST}; write {_WRITTEN}")
    low, high = float(first), float(last)
    values = [low + (high - low) * i / (count - 1) for i in range(count)]
    if all(abs(v - round(v)) < 1e-9 * max(1.0, abs(v)) for v in values) and not {*".eE"} & {*first, *last}:
        return [str(round(v)) for v in values]
    return [f"{v:.6g}" for v in values]


def _split(text: str) -> list[str]:
    """A list at its commas, but for those within brackets or quotes."""
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
