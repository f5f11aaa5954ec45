"""Which charts the page has, and what they are drawn from. A metric that no chart names gets its own chart."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import NamedTuple

from flowrl.report.evaluations import mean_total, means_by_kind
from flowrl.report.figures import Chart, ChartCurve, ChartEvent, ChartFrame, draw, stack
from flowrl.report.glossary import METRICS, meaning
from flowrl.report.numerals import format_duration
from flowrl.report.read import Points, RunData, finite_or_none

TRAIN, HELDOUT, WITNESS = 1, 2, 4  # colours
PHASES = {"time_rollout": ("rollout", 1), "time_score": ("scoring", 5), "time_train": ("training", 3)}
EVALUATION = ("evaluation", 2)
MOST_EVENTS = 60
SIGNS = {  # of hacking: label, colour
    "hack/witness_fall": ("witness falls", 4),
    "hack/witness_lost": ("witness below its start", 6),
    "hack/drift": ("samples drift", 2),
    "hack/diversity_loss": ("diversity falls", 3),
    "hack/kl": ("divergence", 5),
    "hack/reward_rise": ("trained reward rises", 1),
}


class Panel(NamedTuple):
    """A chart of training metrics, (metric, label) each. dull: left out if all values are 0."""

    title: str
    metrics: tuple[tuple[str, str], ...]
    log: bool = False
    zero: bool = True
    dull: bool = False


LEARNING = (
    Panel("Clipped decisions", (("clip_frac", "clipped"), ("outside_frac", "outside"), ("dual_frac", "dual clip"))),
    Panel("Divergence", (("kl", "from the reference"), ("approx_kl", "from the sampler")), log=True),
    Panel("Largest |log ratio|", (("abs_log_ratio_max", "iteration"), ("replay_gap_max", "first update")), log=True),
    Panel("Gradient norm", (("grad_norm", "gradient norm"),), log=True),
    Panel("Learning rate", (("lr", "learning rate"),)),
    Panel("Loss", (("loss", "loss"),), zero=False),
    Panel("Prompts whose samples score alike", (("groups/zero_variance", "share"),)),
    Panel("Mean |advantage|", (("adv/abs_mean", "mean"),)),
    Panel("Samples trained on", (("active_rows", "share"),)),
    Panel("Skipped updates", (("nonfinite_updates", "not finite"), ("empty_updates", "empty")), dull=True),
)


@dataclass(frozen=True)
class TimeShare:
    """A phase's share of the run's time."""

    label: str
    colour: int
    percent: float
    text: str


@dataclass(frozen=True)
class KindCharts:
    """A reward's charts, one for each kind of prompt."""

    reward: str
    witness: bool
    charts: list[Chart]


def chart_frame(data: RunData) -> ChartFrame:
    """The x axis of all charts, with marks for alarms and resumes."""
    alarms = [ChartEvent(a["iteration"], "alarm", f"alarm: {a.get('name', '?')}") for a in data.alarms]
    resumes = [
        ChartEvent(
            int(finite_or_none(s.get("from_iteration")) or 0), "resume", f"resumed, {s.get('time', 'time unknown')}"
        )
        for s in data.resumes
    ]
    return ChartFrame(data.last, [*alarms[:MOST_EVENTS], *resumes[:MOST_EVENTS]])


def reward_charts(data: RunData, frame: ChartFrame) -> list[Chart]:
    """One chart per reward: training samples, and held-out means with standard errors; trained rewards first."""
    names = data.rewards
    if sum(1 for w in data.weights.values() if w) > 1:
        names = ["total", *names]
    charts = []
    for name in names:
        heldout, errors = _heldout_points(data, name)
        curves = [
            ChartCurve("train", data.points(f"reward/{name}/mean"), TRAIN),
            ChartCurve("held-out", heldout, HELDOUT, dots=True, errors=errors),
        ]
        title = "Weighted sum of the trained rewards" if name == "total" else name
        witness = data.weights.get(name, 1.0) == 0 and name != "total"
        hint = "reward: mean over training samples of an iteration; held-out mean with its standard error"
        charts.append(draw(frame, title, curves, hint=hint, badge="witness, not trained" if witness else ""))
    return [c for c in charts if c is not None]


def kind_charts(data: RunData, frame: ChartFrame, most: int = 12) -> list[KindCharts]:
    """For each reward one chart per kind of prompt: held-out means over the evaluations, on one scale."""
    by_kind, rows = means_by_kind(data), []
    for name in data.rewards if len(by_kind) > 1 else ():
        courses = {kind: means[name] for kind, means in list(by_kind.items())[:most] if name in means}
        ends = [m.value + side * m.error for means in courses.values() for _, m in means for side in (-1, 1)]
        witness = data.weights.get(name, 1.0) == 0
        charts = []
        for kind, means in courses.items():
            points, errors = [(i, m.value) for i, m in means], [m.error for _, m in means]
            curve = ChartCurve(name, points, WITNESS if witness else HELDOUT, dots=True, hollow=witness, errors=errors)
            hint = f"{name} on the {means[-1][1].number} held-out prompts of this kind"
            charts.append(draw(frame, kind, [curve], hint=hint, also=ends))
        rows.append(KindCharts(name, witness, [c for c in charts if c is not None]))
    return rows


def learning_charts(data: RunData, frame: ChartFrame) -> list[Chart]:
    """Ratio, clipping, divergence, gradients, learning rate, groups, spread of the rewards."""
    ratio = [(i, None if v is None else v - 1) for i, v in data.points("ratio")]
    charts = [
        draw(frame, "Mean ratio \N{MINUS SIGN} 1", [ChartCurve("ratio \N{MINUS SIGN} 1", ratio)], hint=METRICS["ratio"])
    ]
    charts += [_draw_panel(data, frame, panel) for panel in LEARNING]
    for what, title in (("std", "Spread of the reward"), ("nan", "Samples without a score")):
        charts.append(_draw_panel(data, frame, _panel_by_reward(data, what, title)))
    return [c for c in charts if c is not None]


def hacking_charts(data: RunData, frame: ChartFrame) -> list[Chart]:
    """The hack index, and its signs in units of their limits."""
    index = ChartCurve("hack index", data.points("hack_index", "heldout"), HELDOUT, dots=True)
    signs = [ChartCurve(label, data.points(n, "heldout"), colour, dots=True) for n, (label, colour) in SIGNS.items()]
    charts = [
        draw(frame, "Hack index", [index], hint=METRICS["hack_index"], zero=True, also=[1.0]),
        draw(frame, "Signs of hacking, in units of their limits", signs, hint=METRICS["hack/*"], also=[0.0, 1.0]),
    ]
    charts.append(
        draw(frame, "Divergence from the base", [_heldout_curve(data, "kl_to_base")], hint=METRICS["kl_to_base"])
    )
    return [c for c in charts if c is not None]


def _heldout_curve(data: RunData, metric: str) -> ChartCurve:
    return ChartCurve("held-out", data.points(metric, "heldout"), HELDOUT, dots=True)


def sample_charts(data: RunData, frame: ChartFrame) -> list[Chart]:
    """Statistics of the samples, in training and held out."""
    names = dict.fromkeys(n for kind in ("train", "heldout") for n in data.names(kind) if n.startswith("samples/"))
    charts = []
    for name in names:
        curves = [
            ChartCurve("train", data.points(name), TRAIN),
            _heldout_curve(data, name),
        ]
        title = name.removeprefix("samples/").replace("_", " ").replace("/", ", ")
        charts.append(draw(frame, title, curves, hint=meaning(name)))
    return [c for c in charts if c is not None]


def other_charts(data: RunData, frame: ChartFrame) -> list[Chart]:
    """Every training metric that no other chart shows."""
    named = {m for panel in LEARNING for m, _ in panel.metrics} | {"ratio", "log_ratio"} | set(PHASES)
    rest = [n for n in data.names() if n not in named and not n.startswith(("reward/", "samples/"))]
    charts = [draw(frame, n, [ChartCurve(n, data.points(n))], hint=meaning(n), log=True) for n in rest]
    return [c for c in charts if c is not None]


def time_chart(data: RunData, frame: ChartFrame) -> Chart | None:
    """Seconds by phase of each iteration."""
    phases = [p for p in PHASES if data.points(p)]
    rows = [row for row in data.train if all(p in row for p in phases)]
    curves = [
        ChartCurve(PHASES[p][0], [(r["iteration"], finite_or_none(r[p])) for r in rows], PHASES[p][1]) for p in phases
    ]
    return stack(frame, "Seconds per iteration", curves, hint="time by phase")


def time_shares(data: RunData) -> list[TimeShare]:
    """How the run's time divides among the phases and the evaluations."""
    spent = [(*PHASES[p], sum(v or 0.0 for _, v in data.points(p))) for p in PHASES]
    spent.append((*EVALUATION, sum(v or 0.0 for _, v in data.points("time_eval", "heldout"))))
    known = sum(seconds for *_, seconds in spent)
    if not data.resumes:  # the seconds of a resumed run may be those of its last part
        spent.append(("rest", 6, max(0.0, data.seconds - known)))
    whole = sum(seconds for *_, seconds in spent)
    return [
        TimeShare(label, c, s / whole * 100, format_duration(s))
        for label, c, s in spent
        if whole and s / whole >= 0.001
    ]


def _heldout_points(data: RunData, name: str) -> tuple[Points, list[float | None]]:
    """Held-out means of a reward and their errors; those of "total" from the scores of each evaluation."""
    if name == "total":
        means = [(e.iteration, m) for e in data.evaluations if (m := mean_total(e, data.weights)) is not None]
        return [(i, m.value) for i, m in means], [m.error for _, m in means]
    errors = dict(data.points(f"{name}/error", "heldout"))
    heldout = data.points(f"{name}/mean", "heldout")
    return heldout, [errors.get(i) for i, _ in heldout]


def _draw_panel(data: RunData, frame: ChartFrame, panel: Panel) -> Chart | None:
    series = [(m, label, data.points(m)) for m, label in panel.metrics]
    series = [s for s in series if s[2] and (not _all_zero(s[2]) or s[0] == panel.metrics[0][0])]
    if panel.dull and all(_all_zero(points) for *_, points in series):
        return None
    curves = [ChartCurve(label, points, colour) for colour, (_, label, points) in enumerate(series, 1)]
    hint = "; ".join(f"{label}: {text}" if len(series) > 1 else text for m, label, _ in series if (text := meaning(m)))
    return draw(frame, panel.title, curves, hint=hint, log=panel.log, zero=panel.zero)


def _all_zero(points: Sequence[tuple[int, float | None]]) -> bool:
    return not any(value for _, value in points)


def _panel_by_reward(data: RunData, what: str, title: str) -> Panel:
    names = [n for n in data.rewards if data.points(f"reward/{n}/{what}")][:6]
    return Panel(title, tuple((f"reward/{n}/{what}", n) for n in names), dull=what == "nan")
