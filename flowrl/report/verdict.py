"""What the run shows, in one sentence and one table, claiming no more than the data support.

A change counts if it is larger than two standard errors of the paired differences: both evaluations use the same
prompts and the same noise, so differences prompt by prompt say more than the difference of two means.
"""

from dataclasses import dataclass
from math import hypot

from flowrl.report import evaluations
from flowrl.report.numerals import MeanWithError, decimals_for, format_duration, format_number, format_with_error
from flowrl.report.read import EvaluationRecord, RunData

MIN_STANDARD_ERRORS = 2.0  # of a change that counts


@dataclass(frozen=True)
class RewardRow:
    """A reward before and after, over all held-out prompts or those of one kind; numbers as displayed."""

    name: str
    trained: bool
    kind: str | None
    before: str
    after: str
    change: str
    direction: str  # up, down, same (inside the error bars) or unknown
    number: int


@dataclass(frozen=True)
class RunVerdict:
    """headline: one sentence. state: how far the run has got. warning: evidence against the headline."""

    headline: str
    state: str
    warning: str
    direction: str
    rows: list[RewardRow]
    span: tuple[int, int] | None  # the iterations that are compared


def verdict(data: RunData) -> RunVerdict:
    """What the run shows of its trained reward and of its witnesses."""
    rows = _rows(data)
    headline, direction = _headline(data, rows)
    return RunVerdict(headline, _state(data), _warning(data, rows), direction, rows, _span(data))


def _span(data: RunData) -> tuple[int, int] | None:
    """The iterations of the first and the last evaluation."""
    at = (
        [e.iteration for e in data.evaluations] if _first_and_last(data) else [row["iteration"] for row in data.heldout]
    )
    return (at[0], at[-1]) if len(at) > 1 else None


def _first_and_last(data: RunData) -> tuple[EvaluationRecord, EvaluationRecord] | None:
    """The first and the last evaluation that kept its scores."""
    return (data.evaluations[0], data.evaluations[-1]) if len(data.evaluations) > 1 else None


def _rows(data: RunData) -> list[RewardRow]:
    """One row per reward, its kinds below it, from the evaluations' files; without those, from metrics.jsonl."""
    weights, first_and_last = data.weights, _first_and_last(data)
    if first_and_last is None:
        return [_row_from_metrics(data, name) for name in data.rewards if data.points(f"{name}/mean", "heldout")]
    rows = []
    named = {name: {name: 1.0} for name in data.rewards}
    if sum(1 for weight in weights.values() if weight) > 1:
        named = {"total": weights, **named}
    kinds = sorted({p["kind"] for p in first_and_last[1].prompts if p["kind"] is not None})
    for name, mix in named.items():
        for kind in [None, *kinds]:
            trained = name == "total" or weights.get(name, 1.0) != 0
            if (row := _row(name, trained, kind, first_and_last, mix)) is not None:
                rows.append(row)
    return rows


def _row(
    name: str, trained: bool, kind: str | None, ends: tuple[EvaluationRecord, EvaluationRecord], mix: dict[str, float]
) -> RewardRow | None:
    before, after = (_only_kind(e, kind) for e in ends)
    old, new = evaluations.mean_total(before, mix), evaluations.mean_total(after, mix)
    if old is None or new is None:
        return None
    change = evaluations.paired_change(before, after, mix)
    if change is None:  # no prompt in common
        change = MeanWithError(new.value - old.value, hypot(old.error, new.error), min(old.number, new.number))
    return _format_row(name, trained, kind, old, new, change)


def _format_row(
    name: str, trained: bool, kind: str | None, old: MeanWithError, new: MeanWithError, change: MeanWithError
) -> RewardRow:
    places = decimals_for(old, new, change)
    before, after = format_with_error(old, places), format_with_error(new, places)
    text = format_with_error(change, places, signed=True)
    return RewardRow(name, trained, kind, before, after, text, _direction(change), new.number)


def _only_kind(e: EvaluationRecord, kind: str | None) -> EvaluationRecord:
    if kind is None:
        return e
    at = [i for i, prompt in enumerate(e.prompts) if prompt["kind"] == kind]
    scores = {n: [v[i] for i in at if i < len(v)] for n, v in e.scores.items()}
    return EvaluationRecord(e.iteration, [e.prompts[i] for i in at], scores, [], [])


def _row_from_metrics(data: RunData, name: str) -> RewardRow:
    """A row from the first and the last evaluation in metrics.jsonl, whose means are treated as independent."""
    values = [
        (v, e)
        for (_, v), (_, e) in zip(
            _heldout_points(data, name, "mean"), _heldout_points(data, name, "error"), strict=False
        )
    ]
    known = [MeanWithError(v, e or 0.0, 0) for v, e in values if v is not None]
    trained = data.weights.get(name, 1.0) != 0
    if len(known) < 2:
        only = format_with_error(known[0], decimals_for(known[0])) if known else "not scored"
        return RewardRow(name, trained, None, only, "", "", "unknown", 0)
    change = MeanWithError(known[-1].value - known[0].value, hypot(known[0].error, known[-1].error), 0)
    return _format_row(name, trained, None, known[0], known[-1], change)


def _heldout_points(data: RunData, name: str, what: str) -> list[tuple[int, float | None]]:
    return data.points(f"{name}/{what}", "heldout")


def _direction(change: MeanWithError) -> str:
    if change.number == 1:
        return "unknown"
    if abs(change.value) <= MIN_STANDARD_ERRORS * change.error or change.value == 0:
        return "same"
    return "up" if change.value > 0 else "down"


def _headline(data: RunData, rows: list[RewardRow]) -> tuple[str, str]:
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
        text += ": one prompt gives no standard error, so no change is shown."
    else:
        text += f", a change of {row.change}."
    return text.replace(" ±", "\N{NO-BREAK SPACE}±"), row.direction


def _without_comparison(data: RunData, row: RewardRow | None) -> str:
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
        "No held-out evaluation was made. The mean reward of training samples was "
        f"{format_number(early, 3)} in the first {spans} and {format_number(late, 3)} in the last; this says nothing "
        "about other prompts."
    )


def _state(data: RunData) -> str:
    took = format_duration(data.seconds)
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
    last = f"; the last evaluation is that of iteration {evaluated[-1]:,}" if evaluated else ""
    return f"Not finished: iteration {data.last:,}{of} after {took}{last}."


def _warning(data: RunData, rows: list[RewardRow]) -> str:
    """Signs of reward hacking: the trained reward rose while a witness fell, or the alarm was raised."""
    overall = [row for row in rows if row.kind is None]
    rose = any(row.trained and row.direction == "up" for row in overall)
    fell = (
        [f"{row.name} ({row.change})" for row in overall if not row.trained and row.direction == "down"] if rose else []
    )
    hacking_alarms = [alarm for alarm in data.alarms if alarm.get("name") == "hacking"]
    if not fell and not hacking_alarms:
        return ""
    text = f"The trained reward rises while the witness falls: {', '.join(fell)}. " if fell else ""
    if hacking_alarms:
        last = hacking_alarms[-1]
        text += f"The alarm hacking was raised at iteration {last['iteration']}: {last.get('what', '')}. "
    return f"{text}Look at the samples before you trust the reward."
