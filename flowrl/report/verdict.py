"""What the run shows, in one sentence and one table, and no more than it shows.

A change counts where it is larger than two standard errors of the paired differences: both evaluations draw the same
prompts from the same noise, so that the difference of a prompt says more than the difference of two means.
"""

from dataclasses import dataclass
from math import hypot

from flowrl.report import evaluations
from flowrl.report.numerals import Mean, decimals, duration, plain, with_error
from flowrl.report.read import Evaluated, RunData

SHOWN_FROM = 2.0  # standard errors


@dataclass(frozen=True)
class Row:
    """A reward before and after, over all held-out prompts or those of a kind. The numbers are as they are shown."""

    name: str
    trained: bool
    kind: str | None
    before: str
    after: str
    change: str
    direction: str  # up, down, same (inside the error bars) or unknown
    number: int


@dataclass(frozen=True)
class Verdict:
    """headline: the sentence. state: one that says how far the run is. warning: what speaks against the headline."""

    headline: str
    state: str
    warning: str
    direction: str
    rows: list[Row]
    span: tuple[int, int] | None  # the iterations that are compared


def verdict(data: RunData) -> Verdict:
    """What the run shows of its trained reward and of its witnesses."""
    rows = _rows(data)
    headline, direction = _headline(data, rows)
    return Verdict(headline, _state(data), _warning(data, rows), direction, rows, _span(data))


def _span(data: RunData) -> tuple[int, int] | None:
    """The iterations of the first and the last evaluation."""
    at = [e.iteration for e in data.evaluations] if _ends(data) else [row["iteration"] for row in data.heldout]
    return (at[0], at[-1]) if len(at) > 1 else None


def _ends(data: RunData) -> tuple[Evaluated, Evaluated] | None:
    """The first and the last evaluation that kept its scores."""
    return (data.evaluations[0], data.evaluations[-1]) if len(data.evaluations) > 1 else None


def _rows(data: RunData) -> list[Row]:
    """A row a reward, its kinds below it, from the evaluations' files; without those, from metrics.jsonl."""
    weights, ends = data.weights, _ends(data)
    if ends is None:
        return [_row_of_means(data, name) for name in data.rewards if data.points(f"{name}/mean", "heldout")]
    rows = []
    named = {name: {name: 1.0} for name in data.rewards}
    if sum(1 for weight in weights.values() if weight) > 1:
        named = {"total": weights, **named}
    kinds = sorted({p["kind"] for p in ends[1].prompts if p["kind"] is not None})
    for name, mix in named.items():
        for kind in [None, *kinds]:
            trained = name == "total" or weights.get(name, 1.0) != 0
            if (row := _row(name, trained, kind, ends, mix)) is not None:
                rows.append(row)
    return rows


def _row(
    name: str, trained: bool, kind: str | None, ends: tuple[Evaluated, Evaluated], mix: dict[str, float]
) -> Row | None:
    before, after = (_of_kind(e, kind) for e in ends)
    old, new = evaluations.mean_total(before, mix), evaluations.mean_total(after, mix)
    if old is None or new is None:
        return None
    change = evaluations.paired_change(before, after, mix)
    if change is None:  # no prompt in common
        change = Mean(new.value - old.value, hypot(old.error, new.error), min(old.number, new.number))
    return _shown(name, trained, kind, old, new, change)


def _shown(name: str, trained: bool, kind: str | None, old: Mean, new: Mean, change: Mean) -> Row:
    places = decimals(old, new, change)
    before, after = with_error(old, places), with_error(new, places)
    text = with_error(change, places, signed=True)
    return Row(name, trained, kind, before, after, text, _direction(change), new.number)


def _of_kind(e: Evaluated, kind: str | None) -> Evaluated:
    if kind is None:
        return e
    at = [i for i, prompt in enumerate(e.prompts) if prompt["kind"] == kind]
    scores = {n: [v[i] for i in at if i < len(v)] for n, v in e.scores.items()}
    return Evaluated(e.iteration, [e.prompts[i] for i in at], scores, [], [])


def _row_of_means(data: RunData, name: str) -> Row:
    """A row of the first and the last line of metrics.jsonl; their difference is that of two independent means."""
    values = [(v, e) for (_, v), (_, e) in zip(_held(data, name, "mean"), _held(data, name, "error"), strict=False)]
    known = [Mean(v, e or 0.0, 0) for v, e in values if v is not None]
    trained = data.weights.get(name, 1.0) != 0
    if len(known) < 2:
        only = with_error(known[0], decimals(known[0])) if known else "not scored"
        return Row(name, trained, None, only, "", "", "unknown", 0)
    change = Mean(known[-1].value - known[0].value, hypot(known[0].error, known[-1].error), 0)
    return _shown(name, trained, None, known[0], known[-1], change)


def _held(data: RunData, name: str, what: str) -> list[tuple[int, float | None]]:
    return data.points(f"{name}/{what}", "heldout")


def _direction(change: Mean) -> str:
    if change.number == 1:
        return "unknown"
    if abs(change.value) <= SHOWN_FROM * change.error or change.value == 0:
        return "same"
    return "up" if change.value > 0 else "down"


def _headline(data: RunData, rows: list[Row]) -> tuple[str, str]:
    row = next((r for r in rows if r.trained and r.kind is None), None)
    if row is None or not row.change:
        return _without_comparison(data, row), "unknown"
    name = "The held-out weighted sum of the trained rewards" if row.name == "total" else f"Held-out {row.name}"
    prompts = f" on {row.number:,} prompts" if row.number else ""
    verb = {"up": "rose", "down": "fell"}.get(row.direction, "went")
    text = f"{name} {verb} from {row.before} to {row.after}{prompts}"
    if (span := _span(data)) and (span[0] > 0 or not data.finished):
        text += f" between iterations {span[0]:,} and {span[1]:,}"
    if row.direction == "same":
        text += f": a change of {row.change}, inside the error bars, so no change is shown."
    elif row.direction == "unknown":
        text += ": one prompt says nothing of the error, so no change is shown."
    else:
        text += f", a change of {row.change}."
    return text.replace(" ±", "\N{NO-BREAK SPACE}±"), row.direction


def _without_comparison(data: RunData, row: Row | None) -> str:
    if row is not None:
        return (
            f"Held-out {row.name} is {row.before} in the only evaluation so far; there is nothing to compare it with."
        )
    points = [v for _, v in data.points("reward/total/mean") if v is not None]
    if not points:
        return "Nothing has been measured yet."
    part = max(1, len(points) // 10)
    early, late = sum(points[:part]) / part, sum(points[-part:]) / part
    spans = "iteration" if part == 1 else f"{part} iterations"
    return (
        f"No held-out evaluation was made. The mean reward of training samples was {plain(early, 3)} in the first "
        f"{spans} and {plain(late, 3)} in the last; this says nothing about other prompts."
    )


def _state(data: RunData) -> str:
    took = duration(data.seconds)
    if back := data.rolled_back:
        of = f" of {data.planned:,}" if data.planned else ""
        return (
            f"The alarm {back['alarm']} ended the run after {data.last:,}{of} iterations, in {took}: its weights are "
            f"those of iteration {back['to']}, not of the last evaluation."
        )
    if data.finished:
        return f"{data.last:,} iterations in {took}."
    if data.planned and data.last >= data.planned:
        return f"All {data.last:,} iterations are done, after {took}; the run itself has not ended."
    of = f" of {data.planned:,}" if data.planned else ""
    evaluated = [row["iteration"] for row in data.heldout]
    held = f"; the last evaluation is that of iteration {evaluated[-1]:,}" if evaluated else ""
    return f"Not finished: iteration {data.last:,}{of} after {took}{held}."


def _warning(data: RunData, rows: list[Row]) -> str:
    """What reward hacking looks like: the trained reward rose, and a witness fell or the alarm rang."""
    whole = [row for row in rows if row.kind is None]
    rose = any(row.trained and row.direction == "up" for row in whole)
    fell = (
        [f"{row.name} ({row.change})" for row in whole if not row.trained and row.direction == "down"] if rose else []
    )
    rung = [alarm for alarm in data.alarms if alarm.get("name") == "hacking"]
    if not fell and not rung:
        return ""
    text = f"The learned reward rises while the witness falls: {', '.join(fell)}. " if fell else ""
    if rung:
        text += f"The alarm hacking rang at iteration {rung[-1]['iteration']}: {rung[-1].get('what', '')}. "
    return f"{text}Look at the samples before you trust the reward."
