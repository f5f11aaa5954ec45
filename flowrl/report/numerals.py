"""Numbers formatted for people, and the few statistics that the page needs."""

import math
import statistics
from collections.abc import Sequence
from typing import NamedTuple

MINUS = "\N{MINUS SIGN}"


class MeanWithError(NamedTuple):
    """A mean, its standard error (0 for one value), and how many values it is of."""

    value: float
    error: float
    number: int


def mean(values: Sequence[float | None]) -> MeanWithError | None:
    """The mean of the known values with its standard error; None where none is known."""
    known = [v for v in values if v is not None]
    if not known:
        return None
    error = statistics.stdev(known) / math.sqrt(len(known)) if len(known) > 1 else 0.0
    return MeanWithError(statistics.fmean(known), error, len(known))


def decimals_for(*means: MeanWithError) -> int:
    """The decimals that show every error with two digits; at least 3 if all means are below 10, else 2."""
    errors = [m.error for m in means if m.error > 0]
    least = 3 if all(abs(m.value) < 10 for m in means) else 2
    return min(8, max([least, *(1 - math.floor(math.log10(e)) for e in errors)]))


def format_with_error(mean: MeanWithError, places: int, *, signed: bool = False) -> str:
    """`0.722 ± 0.021`; a line may break before the sign, not after it."""
    value = format_signed(mean.value, places) if signed else format_number(mean.value, places)
    return f"{value} ±\N{NO-BREAK SPACE}{mean.error:.{places}f}"


def format_number(value: float, places: int) -> str:
    """A number with a true minus sign and no negative zero."""
    text = f"{value:.{places}f}"
    return f"{MINUS}{text[1:]}" if text.startswith("-") and text.strip("-0.") else text.lstrip("-")


def format_signed(value: float, places: int) -> str:
    """A change, with its sign; none for zero."""
    text = format_number(value, places)
    return f"+{text}" if value > 0 and text.strip("0.") else text


def format_score(value: float | None) -> str:
    """A single score, three digits or so; a dash where it could not be scored."""
    if value is None:
        return "\N{EN DASH}"
    places = 2 if abs(value) < 100 else 0
    return format_number(value, places if abs(value) >= 0.01 or value == 0 else 4)


def format_compact(value: float) -> str:
    """Four significant digits, scientific where that is shorter."""
    return f"{value:.4g}".replace("e-0", "e-").replace("e+0", "e").replace("-", MINUS)


def format_duration(seconds: float) -> str:
    """`8.0 s`, `45 s`, `2 min 20 s`, `51 min`, `5 h 03 min`."""
    if seconds < 59.5:
        return f"{seconds:.1f} s" if seconds < 10 else f"{seconds:.0f} s"
    minutes, rest = divmod(round(seconds), 60)
    if minutes < 60:
        return f"{minutes} min" if minutes >= 10 else f"{minutes} min {rest:02d} s"
    return f"{minutes // 60} h {minutes % 60:02d} min"
