"""What a person sees of a run: a progress display with the rates and remaining times of its phases, and a summary."""

import re
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, contextmanager
from pathlib import Path

from rich import progress as bars
from rich.console import Console as RichConsole
from rich.markup import escape
from rich.table import Table

from flowrl.contracts import Policy
from flowrl.core.evaluation import Evaluation, Mean
from flowrl.recipe.schema import Recipe
from flowrl.terminal import duration_text, output_console
from flowrl.timing import phases
from flowrl.untyped import JSON

_MEAN = re.compile(r"reward/[^/]+/mean")  # the metric of a reward's mean
_PHASES = {"rollout": "rollout", "values": "values", "score": "scoring", "train": "training"}


class _Rate(bars.ProgressColumn):
    """Steps per second, in the unit of the task."""

    def render(self, task: bars.Task) -> str:
        speed = task.finished_speed or task.speed
        return "" if not speed else f"{speed:,.1f} {task.fields['unit']}/s"


class Progress:
    """The display while iterations run: the whole run, and the current phase."""

    def __init__(self, display: bars.Progress, iterations: int, done: int, unit: str):
        self._display, self._unit, self._iterations = display, unit, iterations
        self.forwards: Counter[str] = Counter()  # steps of each phase, until they are cleared
        self._name = ""
        self._whole = display.add_task("iterations", total=iterations, completed=done, unit="it", note="")
        self._phase = display.add_task("", total=None, unit=unit, note="", visible=False)

    def phase(self, name: str, total: int) -> None:
        """A phase of `total` steps begins."""
        unit = "rewards" if name == "score" else self._unit
        self._name = name
        self._display.reset(
            self._phase, description=f"  {_PHASES[name]}", total=total, visible=True, unit=unit, note=""
        )

    def advance(self, number: int) -> None:
        """Counts `number` more steps of the phase."""
        self.forwards[self._name] += number
        self._display.advance(self._phase, number)

    def iteration_done(self, number: int, metrics: dict[str, float], left: float) -> None:
        """An iteration has ended; shows its mean rewards, and prints a line to a log. left: remaining seconds."""
        means = {name.split("/")[1]: value for name, value in metrics.items() if _MEAN.fullmatch(name)}
        note = "  ".join(f"{name} {value:.3f}" for name, value in means.items())
        self._display.update(self._whole, completed=number, note=note)
        if not self._display.console.is_terminal:
            seconds = sum(phases(metrics))
            line = (
                f"iteration {number} of {self._iterations}  {note}  ({seconds:.1f} s, about {duration_text(left)} left)"
            )
            self._display.console.print(line, highlight=False, soft_wrap=True)


class Console:
    """Prints a run; see the module's docstring."""

    def __init__(self, console: RichConsole | None = None):
        self.rich = console or output_console()

    def started(self, recipe: Recipe, policy: Policy, folder: Path) -> None:
        """The first line: what is trained, on which device, and where it is written."""
        number = sum(p.numel() for p in policy.trainable())
        total = sum(p.numel() for m in policy.modules.values() for p in m.parameters())
        what = "all weights" if recipe.lora is None else f"LoRA rank {recipe.lora.rank}"
        self.rich.print(
            f"[bold]{escape(recipe.model)}[/] on {policy.device}: {what}, {number:,} of {total:,} parameters trained; "
            f"writing to [bold]{escape(str(folder))}[/]",
            soft_wrap=True,
        )

    def note(self, line: str) -> None:
        """One highlighted line."""
        self.rich.print(f"[yellow]{escape(line)}[/]", highlight=False, soft_wrap=True)

    def resumed(self, iteration: int, total: int, changed: Mapping[str, Sequence[JSON]]) -> None:
        """Where a run resumes, and what has changed in its recipe."""
        self.rich.print(f"resuming after iteration {iteration} of {total}", highlight=False)
        for name, (old, new) in changed.items():
            self.note(f"changed since the run began: {name}: {old} -> {new}")

    def stopping(self, name: str) -> None:
        """A signal was received."""
        self.note(
            f"{name}: saving a checkpoint after this iteration at the latest; send the signal again to end at once"
        )

    def working(self, what: str) -> AbstractContextManager:
        """A spinner during work of unknown length."""
        return self.rich.status(escape(what))

    @contextmanager
    def progress(self, iterations: int, done: int = 0, unit: str = "rows") -> Iterator[Progress]:
        """The display of the iterations, `done` of which are done; rollout and training are counted in `unit`."""
        columns = (
            bars.TextColumn("{task.description}"),
            bars.BarColumn(bar_width=24),
            bars.MofNCompleteColumn(),
            _Rate(),
            bars.TimeRemainingColumn(compact=True),
            bars.TextColumn("{task.fields[note]}"),
        )
        with bars.Progress(*columns, console=self.rich, transient=True) as display:
            yield Progress(display, iterations, done, unit)

    def evaluated(self, iteration: int, result: Evaluation) -> None:
        """One line of held-out means."""
        scores = "  ".join(f"{name} {mean}" for name, mean in result.means_with_total().items())
        self.rich.print(
            f"held out, iteration {iteration}: {scores}  (n = {len(result.prompts)})", highlight=False, soft_wrap=True
        )

    def finished(self, evaluations: dict[int, Evaluation], folder: Path, weights: Path, seconds: float) -> None:
        """The closing table, before and after, and where to find the results."""
        if len(evaluations) > 1:
            self.rich.print(_before_after(evaluations))
        self.rich.print(f"{seconds:.0f} s. Weights: {escape(str(weights))}", highlight=False, soft_wrap=True)
        self.rich.print(f"Report: {escape(str(folder / 'report.html'))}", highlight=False, soft_wrap=True)


def _before_after(evaluations: dict[int, Evaluation]) -> Table:
    first, last = evaluations[min(evaluations)], evaluations[max(evaluations)]
    table = Table(title=f"held out: before and after {max(evaluations)} iterations, {len(first.prompts)} prompts")
    for column in ("reward", "before", "after", "change"):
        table.add_column(column, justify="left" if column == "reward" else "right")
    for name, before, after in _pairs(first, last):
        table.add_row(escape(name), str(before), str(after), f"{after.value - before.value:+.3f}")
    return table


def _pairs(first: Evaluation, last: Evaluation) -> Iterator[tuple[str, Mean, Mean]]:
    """(name, before, after) of each reward, and of each kind of prompt if prompts have kinds."""
    before, after = first.means_with_total(), last.means_with_total()
    kinds_before, kinds_after = first.by("kind"), last.by("kind")
    for name in before:
        yield name, before[name], after[name]
        for kind, of in kinds_before.get(name, {}).items():
            if of.number or kinds_after[name][kind].number:  # a reward may skip a kind
                yield f"  {kind}", of, kinds_after[name][kind]
