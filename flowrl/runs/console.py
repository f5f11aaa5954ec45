"""What a person sees of a run: one progress display with the phases' rates and times left, and tables at its ends."""

import re
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

from rich import progress as bars
from rich.console import Console as RichConsole
from rich.markup import escape
from rich.table import Table

from flowrl.core.evaluation import Evaluation, Mean
from flowrl.recipe.schema import Recipe
from flowrl.terminal import duration_text, output_console

if TYPE_CHECKING:
    from flowrl.policies.language.policy import LanguagePolicy
    from flowrl.policies.pipelines.policy import PipelinePolicy

_MEAN = re.compile(r"reward/[^/]+/mean")  # the metric of a reward's mean
_PHASES = {"rollout": "rollout", "score": "scoring", "train": "training"}


class _Rate(bars.ProgressColumn):
    """Steps a second, in the unit of the task."""

    def render(self, task: bars.Task) -> str:
        speed = task.finished_speed or task.speed
        return "" if not speed else f"{speed:,.1f} {task.fields['unit']}/s"


class Progress:
    """The display while iterations run: the run as a whole, and the phase under way."""

    def __init__(self, display: bars.Progress, iterations: int, done: int, unit: str):
        self._display, self._unit, self._iterations = display, unit, iterations
        self.forwards: Counter[str] = Counter()  # steps that each phase has taken, until somebody clears it
        self._name = ""
        self._whole = display.add_task("iterations", total=iterations, completed=done, unit="it", note="")
        self._phase = display.add_task("", total=None, unit=unit, note="", visible=False)

    def phase(self, name: str, total: int) -> None:
        """A phase begins, of `total` steps."""
        unit = "rewards" if name == "score" else self._unit
        self._name = name
        self._display.reset(
            self._phase, description=f"  {_PHASES[name]}", total=total, visible=True, unit=unit, note=""
        )

    def advance(self, number: int) -> None:
        """So many more steps of the phase are done."""
        self.forwards[self._name] += number
        self._display.advance(self._phase, number)

    def iteration_done(self, number: int, metrics: dict[str, float], left: float) -> None:
        """An iteration has ended; its mean rewards stay visible, and a log gets a line. left: seconds, about."""
        means = {name.split("/")[1]: value for name, value in metrics.items() if _MEAN.fullmatch(name)}
        note = "  ".join(f"{name} {value:.3f}" for name, value in means.items())
        self._display.update(self._whole, completed=number, note=note)
        if not self._display.console.is_terminal:
            seconds = sum(value for name, value in metrics.items() if name.startswith("time_"))
            line = (
                f"iteration {number} of {self._iterations}  {note}  ({seconds:.1f} s, about {duration_text(left)} left)"
            )
            self._display.console.print(line, highlight=False, soft_wrap=True)


class Console:
    """Prints a run; see the module's docstring."""

    def __init__(self, console: RichConsole | None = None):
        self.rich = console or output_console()

    def started(self, recipe: Recipe, policy: "PipelinePolicy | LanguagePolicy", folder: Path) -> None:
        """The first lines: what is trained, where, and where to."""
        number = sum(p.numel() for p in policy.trainable())
        total = sum(p.numel() for m in policy.modules.values() for p in m.parameters())
        what = "all weights" if recipe.lora is None else f"LoRA rank {recipe.lora.rank}"
        self.rich.print(
            f"[bold]{escape(recipe.model)}[/] on {policy.device}: {what}, {number:,} of {total:,} parameters learn; "
            f"writing to [bold]{escape(str(folder))}[/]",
            soft_wrap=True,
        )

    def note(self, line: str) -> None:
        """One line that should not be missed."""
        self.rich.print(f"[yellow]{escape(line)}[/]", highlight=False, soft_wrap=True)

    def resumed(self, iteration: int, total: int, changed: Mapping[str, Sequence[Any]]) -> None:
        """From where a run goes on, and what its recipe says otherwise than before."""
        self.rich.print(f"going on after iteration {iteration} of {total}", highlight=False)
        for name, (old, new) in changed.items():
            self.note(f"changed since it began: {name}: {old} -> {new}")

    def stopping(self, name: str) -> None:
        """A signal has come."""
        self.note(f"{name}: saving a checkpoint, at the latest when this iteration is done; again to end at once")

    def working(self, what: str) -> AbstractContextManager:
        """A spinner while something takes its time."""
        return self.rich.status(escape(what))

    @contextmanager
    def progress(self, iterations: int, done: int = 0, unit: str = "rows") -> Iterator[Progress]:
        """The display of the iterations, of which some are done; rollout and training count in `unit`."""
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
        scores = "  ".join(f"{name} {mean}" for name, mean in result.shown().items())
        self.rich.print(
            f"held out, iteration {iteration}: {scores}  (n = {len(result.prompts)})", highlight=False, soft_wrap=True
        )

    def finished(self, evaluations: dict[int, Evaluation], folder: Path, weights: Path, seconds: float) -> None:
        """The closing table, before and after, and where everything is."""
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
    """(name, before, after) of each reward, and of each by kind where prompts say theirs."""
    before, after = first.shown(), last.shown()
    kinds_before, kinds_after = first.by("kind"), last.by("kind")
    for name in before:
        yield name, before[name], after[name]
        for kind, of in kinds_before.get(name, {}).items():
            if of.number or kinds_after[name][kind].number:  # a reward may not be asked about a kind
                yield f"  {kind}", of, kinds_after[name][kind]
