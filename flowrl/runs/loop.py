"""The loop of a run: iterations, evaluations and checkpoints between them, and what an alarm makes it do.

Between two iterations a run is nothing but its mark (`Run._mark`), its weights and its learner: that is what a
checkpoint holds, and why a run that is killed goes on bit for bit.
"""

import contextlib
import time
from collections.abc import Sequence
from dataclasses import asdict, dataclass, field
from typing import Any

from flowrl.build import AnyPolicy, Inputs, build_advantage, build_watch, width_pruning
from flowrl.core.evaluation import Evaluation
from flowrl.core.iterate import Iteration, Settings, iterate
from flowrl.core.learner import Learner
from flowrl.core.objectives.grpo import ClippedObjective
from flowrl.planning.costs import arithmetic, plan_for
from flowrl.planning.duration import seconds_left
from flowrl.policies import adapters
from flowrl.reading.inputs import prompt_cursor, unread_columns
from flowrl.recipe.schema import Recipe
from flowrl.report import page as report
from flowrl.runs import checkpoints
from flowrl.runs import resume as resuming
from flowrl.runs.alarm_response import Alarmed, Diverged, go_back, most_severe, refuse_nonfinite, rollback_message
from flowrl.runs.console import Console, Progress
from flowrl.runs.folder import RunFolder
from flowrl.runs.heldout import evaluate_heldout, is_due, kl_to_base, standing
from flowrl.runs.stopping import Stopped, Stopping
from flowrl.watch.alarms import Alarm
from flowrl.watch.sample_statistics import sample_statistics

TREE_MEMBERS = 2**20  # noise numbers between two draws of trees, which may differ in size from iteration to iteration
SETTINGS_KEYS = {"group", "epochs", "updates", "update_by", "micro_batch"}  # keys of train
SETTINGS_KEYS |= {"refill", "keep", "skip_truncated", "drop_silent"}


@dataclass
class Run:
    """A run under way."""

    recipe: Recipe
    inputs: Inputs
    policy: AnyPolicy
    learner: Learner
    objective: ClippedObjective
    folder: RunFolder
    console: Console
    iteration: int = 0  # done so far
    evaluations: dict[int, Evaluation] = field(default_factory=dict)
    best: tuple[int, float] | None = None  # iteration and held-out reward
    seconds: float = 0.0  # spent before this process
    spent: float = 0.0  # seconds of all iterations: rollout, scoring and training
    rolled_back: dict[str, Any] | None = None  # what the alarm `hacking` ended the run for, and the iteration it is at

    def __post_init__(self) -> None:
        self.cursor = prompt_cursor(self.recipe, self.inputs.train)
        self.checkpoints = checkpoints.Checkpoints(self.folder.path, self.recipe.checkpoint.keep)
        self.stopping = Stopping(self.console.stopping)
        self._started = time.perf_counter()
        self.watch = build_watch(self.recipe)
        self._rung: list[Alarm] = []
        self._times = 0  # multiples of eval.every_seconds that an evaluation has answered
        self._saved: tuple[int, int] | None = None
        self._held: dict[str, Any] = {}

    # ------------------------------------------------------------------ the loop

    def train(self) -> dict[str, Any]:
        """All that is left of the iterations and evaluations; returns the summary that is also written.

        Raises Stopped after SIGINT or SIGTERM and Alarmed where an alarm says so, with everything saved, and Diverged
        where weights are not finite. What a reward or other code of a user's own raises costs the iteration under way.
        """
        unit = "rows" if self.recipe.generation is None else "tokens"
        display = self.console.progress(self.recipe.train.iterations, self.iteration, unit)
        with self.stopping.listening(), display as progress:
            try:
                while True:
                    self._between()
                    self.stopping.check()
                    if self._ended:
                        break
                    self._step(progress)
            except (Stopped, RuntimeError, SystemExit):
                self._save_what_is_done()
                raise
        return self._finish()

    def _between(self) -> None:
        """What is due between two iterations: an answer to alarms, an evaluation, a checkpoint."""
        self._mark()
        self._respond_to_alarms()
        if self._evaluation_is_due() and self.iteration not in self.evaluations:
            self._evaluate()
            self._mark()
            self._respond_to_alarms()
            report.write(self.folder.path)
        every = self.recipe.checkpoint.every
        if self._ended or (every and self.iteration % every == 0):
            self._save()
        self._keep(*checkpoints.MARKS)

    def _keep(self, *names: str) -> None:
        """Saves and marks what is best by one of these names, where that is the evaluation of now."""
        for name in names:
            if self._marks().get(name) == self.iteration and self._save():
                self.checkpoints.mark(name, self.iteration)

    def _marks(self) -> dict[str, int | None]:
        """Iterations of the best held-out reward and, where a run may have to return to it, of the best witness."""
        found: dict[str, int | None] = {"best": None if self.best is None else self.best[0]}
        return found | ({"witness": self.watch.trusted} if self.watch.hack_action == "rollback" else {})

    @property
    def _ended(self) -> bool:
        """Whether all iterations are done, all the time that they may take is spent, or an alarm has ended it."""
        train = self.recipe.train
        in_time = train.seconds is None or self.spent < train.seconds
        return self.rolled_back is not None or self.iteration >= train.iterations or not in_time

    def _step(self, progress: Progress) -> None:
        if self.recipe.train.seconds is not None:
            self.learner.share = self.spent / self.recipe.train.seconds
        result = self._iterate(self.iteration, progress)
        self.iteration += 1
        self.spent += sum(value for name, value in result.metrics.items() if name.startswith("time_"))
        if self.iteration == 1 and (line := unread_columns(self.recipe, self.inputs.train)):
            self.console.note(line)
        self.folder.log(self.iteration, result.metrics)
        self._raise_alarms(self.watch.after_iteration(self.iteration, result.metrics))
        left = seconds_left(self.recipe, self.iteration, self.spent)
        progress.iteration_done(self.iteration, result.metrics, left)

    def _iterate(self, iteration: int, progress: Progress) -> Iteration:
        recipe = self.recipe
        sizes = arithmetic(recipe, iteration)
        totals = {"rollout": sizes.rollout_forwards, "score": len(self.inputs.scorer.rewards)}
        totals["train"] = sizes.train_forwards + sizes.reference_forwards + sizes.whole_row_forwards
        progress.forwards.clear()

        def tick(number: int) -> None:
            progress.advance(number)
            self._stop_if_unmoved()

        self.policy.tick = tick
        self.policy.finished = self.inputs.scorer.take if self.inputs.scorer.overlaps else None
        train = recipe.train
        given = train.model_dump(include=SETTINGS_KEYS)
        members = None if recipe.generation or recipe.sampler.tree is None else TREE_MEMBERS
        result = iterate(
            self.policy,
            self.learner,
            self.cursor.take(train.prompts),
            plan=plan_for(recipe, iteration),
            seed=recipe.seed,
            first=iteration * (1 + train.refill) * (members or train.group),
            score=lambda samples: self.inputs.scorer(samples, progress=lambda _: tick(1)),
            advantage=build_advantage(recipe, self.inputs.scorer),
            objective=self.objective,
            settings=Settings(**given, members=members, width=width_pruning(recipe, iteration)),
            enter=lambda name: progress.phase(name, totals[name]),
            more=self.cursor.take,
        )
        result.metrics |= {f"forwards/{name}": float(progress.forwards[name]) for name in ("rollout", "train")}
        result.metrics |= sample_statistics(result.samples)
        return result

    # ------------------------------------------------------------------ evaluation

    def _evaluation_is_due(self) -> bool:
        if not self.inputs.heldout or self.rolled_back is not None:
            return False
        return is_due(self.recipe, self.iteration, self._ended, self._times_passed() > self._times)

    def _times_passed(self) -> int:
        """How many multiples of eval.every_seconds the iterations have passed."""
        every = self.recipe.eval.every_seconds
        return 0 if every is None else int(self.spent // every)

    def _evaluate(self) -> None:
        """Held-out scores with the averaged weights: logged, shown, kept."""
        recipe, iteration = self.recipe, self.iteration
        self.policy.tick = lambda _: self.stopping.check()
        with self.learner.averaged(), self.console.working(f"evaluating {len(self.inputs.heldout)} held-out prompts"):
            start = time.perf_counter()
            show = {"keep": recipe.eval.grid, "statistics": sample_statistics}
            result = evaluate_heldout(recipe, self.policy, self.inputs.heldout, self.inputs.scorer, **show)
            metrics = result.metrics() | kl_to_base(recipe, self.policy, self.inputs.heldout)
            seconds = time.perf_counter() - start
        self.evaluations[iteration] = result
        self._times = self._times_passed()
        metrics |= self.watch.hack_metrics(metrics)
        self.folder.log(iteration, metrics | {"time_eval": seconds}, kind="heldout")
        name = "before" if iteration == 0 else "after" if self._ended else f"iteration_{iteration:05d}"
        self.folder.evaluated(iteration, name, result)
        self.console.evaluated(iteration, result)
        value = standing(result, self.inputs.scorer.weights)
        if value > (float("-inf") if self.best is None else self.best[1]):
            self.best = iteration, value
        self._raise_alarms(self.watch.after_evaluation(iteration, metrics))

    # ------------------------------------------------------------------ alarms

    def _raise_alarms(self, alarms: Sequence[Alarm]) -> None:
        """Shows and keeps alarms; `_respond_to_alarms` acts on them."""
        for alarm in alarms:
            self.console.note(alarm.describe())
            self.folder.alarm(alarm.record())
        self._rung += alarms

    def _respond_to_alarms(self) -> None:
        """Does what the most severe alarm asks for. Raises Alarmed where that is to stop."""
        alarm, self._rung = most_severe(self._rung), []
        if alarm is None:
            return
        wanted, left = ("best", self.iteration) if alarm.to is None else ("witness", None)
        if alarm.to == self.iteration:
            self._keep(wanted)
        if alarm.action == "stop" or self.checkpoints.marked(wanted) is None:
            self._save_what_is_done()
            report.write(self.folder.path)
            raise Alarmed.by(alarm)
        there = self.checkpoints.find(wanted)
        go_back(there, self.policy, self.learner, self.watch, left)
        if left is not None:
            self.learner.lower(self.recipe.watch.lower)
            self.console.note(f"rolled back to iteration {there.iteration}; learning rate {self.learner.lr:.2e} now")
        else:
            self._end_with(there.iteration, alarm)
        self._mark()

    def _end_with(self, iteration: int, alarm: Alarm) -> None:
        """Ends the run with the weights of an earlier iteration, which it has taken up again."""
        self.rolled_back = {"alarm": alarm.name, "at": self.iteration, "to": iteration, "what": alarm.what}
        if self.best is not None and self.best[0] == self.iteration != iteration:  # what was evaluated now is gone
            kept = self.checkpoints.marked("best")
            known = self.evaluations.get(-1 if kept is None else kept)
            self.best = None if kept is None or known is None else (kept, standing(known, self.inputs.scorer.weights))
        self._saved = None
        self.console.note(rollback_message(iteration, self.watch))

    # ------------------------------------------------------------------ what a resume needs

    def _mark(self) -> None:
        """Notes everything but weights and learner, so that a stop in the middle of an iteration can go back to it."""
        self._held = {
            "iteration": self.iteration,
            "cursor": self.cursor.state_dict(),
            "files": self.folder.position(),
            "evaluated": sorted(self.evaluations),
            "prompts": resuming.digests(self.inputs.train, self.inputs.heldout),
            "best": self.best,
            "seconds": self.seconds + time.perf_counter() - self._started,
            "spent": [self.spent, self._times],
            "scorer": self.inputs.scorer.state_dict(),
            "watch": self.watch.state_dict(),
            "rolled_back": self.rolled_back,
            "random": checkpoints.random_state(),
        }
        self._moved_from = self.learner.steps

    def _stop_if_unmoved(self) -> None:
        """Stops where the weights still are those of the mark; later the iteration is worth more than a quick end."""
        if self.learner.steps == self._moved_from:
            self.stopping.check()

    def _save(self) -> bool:
        """A checkpoint of the mark, unless it is there. Not finite: Diverged, or False if an alarm rolls back."""
        key = (self._held["iteration"], len(self._held["evaluated"]))
        if self._saved == key:
            return True
        weights = {"parameters": adapters.named(self.policy.modules), "learner": self.learner.state_dict()}
        try:
            refuse_nonfinite(weights, self._held["iteration"], self.checkpoints, self.recipe)
        except Diverged:
            if self._ended or self.recipe.watch.on_alarm != "rollback":
                raise
            return False
        self.folder.sync()
        self.checkpoints.save(self._held["iteration"], {"mark": self._held, **weights})
        self._saved = key
        return True

    def _save_what_is_done(self) -> None:
        """Saves, where the weights still are those of the mark; what is not finite is left."""
        if self.learner.steps == self._moved_from:
            with contextlib.suppress(Diverged):
                self._save()

    def restore(self, checkpoint: checkpoints.Checkpoint, *, changed: bool = False) -> None:
        """Goes on from a checkpoint: weights, learner, and the folder cut back to where it stood.

        changed: whether the recipe is another; what an alarm has ended goes on only then.
        """
        saved = checkpoints.load(checkpoint)
        resuming.fill(adapters.named(self.policy.modules), saved["parameters"], checkpoint)
        self.learner.load_state_dict(saved["learner"])
        mark = saved["mark"]
        self.cursor.load_state_dict(mark["cursor"])
        self.iteration, self.seconds = mark["iteration"], mark["seconds"]
        self.spent, self._times = mark.get("spent", (0.0, 0))
        self.best = None if mark["best"] is None else (mark["best"][0], mark["best"][1])
        self.inputs.scorer.load_state_dict(mark["scorer"])
        self.folder.rewind(mark["files"], self.iteration, mark["evaluated"])
        self.watch.load_state_dict(mark["watch"])
        self.checkpoints.forget_after(self.iteration, self._marks())
        self.rolled_back = None if changed else mark.get("rolled_back")
        self.evaluations = self.folder.earlier(mark["evaluated"], self.console.note)
        checkpoints.restore_random_state(mark["random"])
        self._mark()
        self._saved = (self.iteration, len(self.evaluations))

    # ------------------------------------------------------------------ the end

    def _finish(self) -> dict[str, Any]:
        weights = self.folder.path / ("lora" if self.recipe.lora is not None else "model")
        with self.learner.averaged():
            adapters.save(self.policy.source, self.policy.modules, weights)
        seconds = self.seconds + time.perf_counter() - self._started
        heldout = {i: {n: asdict(m) for n, m in e.means().items()} for i, e in sorted(self.evaluations.items())}
        summary = {"iterations": self.iteration, "seconds": round(seconds, 1), "spent": self.spent, "heldout": heldout}
        summary |= {"rolled_back": self.rolled_back} if self.rolled_back else {}
        self.folder.summary(summary)
        report.write(self.folder.path)
        last = self.iteration if self.rolled_back is None else self.rolled_back["to"]
        shown = {i: evaluation for i, evaluation in self.evaluations.items() if i <= last}
        self.console.finished(shown, self.folder.path, weights, seconds)
        return summary
