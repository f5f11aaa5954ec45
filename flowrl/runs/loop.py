"""The loop of a run: iterations, evaluations and checkpoints between them, and responses to alarms.

Between two iterations a run consists of its state (runs/run_state.py), its weights and its learner: a checkpoint holds
all of it, so that a killed run resumes bit for bit.
"""

import time
from collections.abc import Sequence
from dataclasses import dataclass, replace

import torch

from flowrl.build import (
    Inputs,
    build_advantage,
    build_budget,
    build_explore,
    build_objective,
    build_watch,
    observed,
)
from flowrl.contracts import ALONE, Policy, Ranks
from flowrl.core.evaluation import Evaluation
from flowrl.core.expansion import Expansion
from flowrl.core.iterate import Iteration, iterate
from flowrl.core.learning.learner import Learner
from flowrl.core.learning.shrinking import MicroBatch
from flowrl.core.objectives.entropy import EntropyControl
from flowrl.core.ranks import agreed
from flowrl.core.values import Critic
from flowrl.kinds import kind_of
from flowrl.planning.costs import baseline_plan, plan_for
from flowrl.planning.duration import seconds_left
from flowrl.reading.inputs import unread_columns
from flowrl.recipe.schema import Recipe
from flowrl.runs import checkpoints
from flowrl.runs import resume as resuming
from flowrl.runs.ahead import training_ahead
from flowrl.runs.alarm_response import AlarmError, most_severe, roll_back_to, rollback_message
from flowrl.runs.beside import beside, terms_of
from flowrl.runs.closing import closing
from flowrl.runs.console import Console, Progress
from flowrl.runs.folder import RunFolder
from flowrl.runs.from_files import given_samples
from flowrl.runs.heldout import evaluate_heldout, evaluation_is_due, judged_mean, kl_to_base, paired_rises, times_due
from flowrl.runs.out_of_memory import tell_remedy
from flowrl.runs.phasing import Draws, begin_phase, phase_metrics
from flowrl.runs.run_state import GlobalGenerators, RunState
from flowrl.runs.saving import Saving
from flowrl.runs.settings import phase_totals, resample_of, settings_of
from flowrl.runs.shares import write_weights
from flowrl.runs.stopping import Stopped, Stopping
from flowrl.runs.together import check_stop, measured
from flowrl.timing import phases
from flowrl.untyped import JSON
from flowrl.watch.alarms import Alarm
from flowrl.watch.sample_statistics import sample_statistics


@dataclass
class Run:
    """A run in progress, on each of its ranks."""

    recipe: Recipe
    inputs: Inputs
    policy: Policy
    learner: Learner
    folder: RunFolder
    console: Console
    critic: Critic | None = None
    ranks: Ranks = ALONE

    def __post_init__(self) -> None:
        train, heldout, scorer = self.inputs.train, self.inputs.heldout, self.inputs.scorer
        self.draws, self.watch = Draws(self.recipe, self.inputs.by_phase), build_watch(self.recipe)
        parts = {"cursor": self.draws, "scorer": scorer, "watch": self.watch, "random": GlobalGenerators()}
        self.unfinished, self.beside = kind_of(self.recipe).building.unfinished(self.recipe, train), beside(self.recipe)
        self.entropy = EntropyControl.of(self.recipe.objective)
        self.expansion = Expansion.of(self.recipe.train.expand)
        self.shrinking = MicroBatch() if self.recipe.train.micro_batch == "auto" else None
        own = {"unfinished": self.unfinished, "entropy": self.entropy, "store": self.beside.store}
        own |= {"expansion": self.expansion, "micro_batch": self.shrinking}
        self.state = RunState(parts | {name: part for name, part in own.items() if part is not None})
        prompts = resuming.prompt_digests(resuming.all_prompts(train, self.inputs.by_phase), heldout)
        self.saving = Saving(
            self.recipe, self.policy, self.learner, self.folder, self.state, prompts, self.critic, self.ranks
        )
        self.stopping = Stopping(self.console.stopping)
        self.objective = build_objective(self.recipe)
        self.evaluations: dict[int, Evaluation] = {}
        self._unanswered: list[Alarm] = []

    # ------------------------------------------------------------------ the loop

    def train(self) -> dict[str, JSON]:
        """Runs the remaining iterations and evaluations; returns the summary, which is also written.

        Raises Stopped after SIGINT or SIGTERM and AlarmError if an alarm ends the run, with everything saved, and
        DivergedError if weights are not finite. An error in a reward or other user code loses the current iteration.
        """
        own = self.recipe
        display = self.console.progress(own.train.iterations, self.state.iteration, kind_of(own).words.unit)
        ahead = training_ahead(own, self.policy, self.draws, self.expansion, self.ranks)
        with self.stopping.listening(), display as progress, ahead:
            try:
                while True:
                    self._between()
                    check_stop(self.stopping, self.ranks)
                    if self._ended:
                        break
                    self._step(progress)
            except (Stopped, RuntimeError, SystemExit) as error:
                self.saving.save_unmoved(error)
                tell_remedy(error, self.recipe, self.inputs.train)
                raise
        return self._finish()

    def restore(self, checkpoint: checkpoints.Checkpoint, *, changed: bool = False) -> None:
        """Resumes from a checkpoint: weights, learner, and the folder truncated to its state at that time.

        changed: whether the recipe has changed; only then does a run that an alarm has ended resume.
        """
        state = self.state
        self.saving.restore(checkpoint)
        self.saving.forget_after(state.iteration, self._marks())
        state.rolled_back = None if changed else state.rolled_back
        self.evaluations = self.folder.earlier(state.evaluated, self.console.note)
        state.evaluated = tuple(self.evaluations)
        self.saving.mark()

    @property
    def _ended(self) -> bool:
        return self.state.ended(self.recipe.train)

    def _between(self) -> None:
        """What is due between two iterations: a response to alarms, an evaluation, a checkpoint."""
        self.saving.mark()
        self._respond_to_alarms()
        if self._evaluation_is_due() and self.state.iteration not in self.state.evaluated:
            self._evaluate()
            self.saving.mark()
            self._respond_to_alarms()
            self.folder.report()
        every = self.recipe.checkpoint.every
        if self._ended or (every and self.state.iteration % every == 0):
            self.saving.save()
        for name, iteration in self._marks().items():
            self.saving.keep(name, iteration)

    def _marks(self) -> dict[str, int | None]:
        """The iterations of the best held-out reward and, if a run may have to return to it, of the best witness."""
        marks: dict[str, int | None] = {"best": None if self.state.best is None else self.state.best[0]}
        return marks | ({"witness": self.watch.trusted} if self.watch.hack_action == "rollback" else {})

    def _step(self, progress: Progress) -> None:
        state, seconds = self.state, self.recipe.train.seconds
        if seconds is not None:
            self.learner.share = state.spent[0] / seconds
        result = self._iterate(state.iteration, progress)
        state.iteration += 1
        took = sum(phases(result.metrics))
        state.spent = state.spent[0] + took, state.spent[1]
        if state.iteration == 1 and (line := unread_columns(self.recipe, self.inputs.train)):
            self.console.note(line)
        self.folder.log(state.iteration, result.metrics)
        self._raise_alarms(self.watch.after_iteration(state.iteration, result.metrics))
        left = seconds_left(self.recipe, state.iteration, state.spent[0])
        progress.iteration_done(state.iteration, result.metrics, left)

    def _constants(self, iteration: int) -> Recipe:
        """The recipe with the present values of its curves, which objective, learner, policy and watch follow."""
        recipe = self.recipe
        now = recipe.at(iteration, self.learner.steps)
        if recipe.changes:
            self.learner.max_grad_norm = now.train.max_grad_norm
            self.objective = build_objective(now)
            self.learner.base_lr = lambda steps: recipe.at(iteration, steps).train.lr
            self.watch.history.clip = now.objective.clip_range
            kind_of(recipe).building.retune(self.policy, now)
        return now

    def _iterate(self, iteration: int, progress: Progress) -> Iteration:
        phase = begin_phase(self.recipe, iteration, self.learner)
        recipe, steps = self._constants(iteration), self.learner.steps
        cursor = self.draws.of(self.recipe, iteration)
        scored, told = recipe.scores_train, self.ranks.gathered
        totals = phase_totals(recipe, iteration, len(self.inputs.scorer.rewards))
        progress.forwards.clear()

        def tick(number: int) -> None:
            progress.advance(number)
            self._stop_if_unmoved()

        learning = [self.policy] if self.critic is None else [self.policy, self.critic.looks]
        train, settings = recipe.train, settings_of(recipe, iteration, self.shrinking, learning)
        objective = self.objective if self.entropy is None else self.entropy.applied(self.objective)
        result = iterate(
            self.policy,
            self.learner,
            cursor.take(train.drawn if self.expansion is None else self.expansion.number(train.drawn)),
            plan=plan_for(recipe, iteration),
            seed=recipe.seed,
            first=iteration * (1 + train.refill) * settings.stride,
            score=lambda samples: self.inputs.scorer(samples, progress=lambda _: tick(1)) if scored else {},
            advantage=build_advantage(recipe, self.inputs.scorer),
            objective=objective,
            settings=settings,
            enter=lambda name: progress.phase(name, totals[name]),
            more=cursor.take,
            progress=tick,
            finished=self.inputs.scorer.take
            if self.inputs.scorer.overlaps and scored and not train.reads_files
            else None,
            reward_of=self.inputs.scorer.with_gradient,
            samples_of=given_samples(recipe),
            baseline_plan=baseline_plan(recipe, iteration),
            budget=build_budget(recipe, self.inputs.scorer),
            explore=build_explore(recipe, self.inputs.scorer, self.unfinished, self.ranks),
            together=kind_of(recipe).draws_together(recipe),
            critic=self.critic,
            resample=resample_of(recipe, self.inputs.scorer, iteration),
            terms=terms_of(recipe, self.policy, self.inputs.scorer, self.beside, objective, iteration, self.ranks),
            ranks=self.ranks,
            settle=self.inputs.scorer.judge.settle,
        )
        result.metrics |= cursor.observe(observed(recipe, self.inputs.scorer, result.rewards, result.samples))
        if self.expansion is not None:
            result.metrics |= self.expansion.observe(result.metrics)
        if self.entropy is not None:
            result.metrics["entropy_coef"] = self.entropy.now
            self.entropy.observe(result.metrics.get("entropy", float("nan")))
        if train.old is not None:
            self.learner.keep_old(self.recipe.at(iteration + 1, self.learner.steps).train.old or 0.0)
        result.metrics = measured(result, progress.forwards, self.ranks, told)
        result.metrics |= phase_metrics(self.recipe, phase, iteration, steps)
        return result

    def _stop_if_unmoved(self) -> None:
        """Stops if the weights are still those of the mark; later, finishing the iteration is worth the wait, as it is
        for the others where there are several ranks."""
        if self.saving.unmoved and self.ranks.size == 1:
            self.stopping.check()

    # ------------------------------------------------------------------ evaluation

    def _evaluation_is_due(self) -> bool:
        state, able = self.state, bool(self.inputs.heldout) and self.state.rolled_back is None
        return able and evaluation_is_due(self.recipe, state.iteration, self._ended, state.spent)

    def _evaluate(self) -> None:
        """Evaluates the averaged weights on held-out prompts; logs, shows and stores the scores."""
        recipe, state, iteration = self.recipe, self.state, self.state.iteration
        check = (lambda _: self.stopping.check()) if self.ranks.size == 1 else None  # ranks stop together
        working = self.console.working(f"evaluating {len(self.inputs.heldout)} held-out prompts")
        with torch.no_grad(), self.learner.using_average(), working:
            start, show = time.perf_counter(), {"keep": recipe.eval.grid, "statistics": sample_statistics}
            given = recipe, self.policy, self.inputs.heldout
            result = evaluate_heldout(*given, self.inputs.scorer, progress=check, ranks=self.ranks, **show)
            metrics = result.metrics() | kl_to_base(*given, progress=check)
            seconds = time.perf_counter() - start
        rises = paired_rises(result, self.evaluations, self.inputs.scorer.weights)
        self.evaluations[iteration] = replace(result, talks=None)  # the pictures in them may be large
        state.evaluated, passed = (*state.evaluated, iteration), times_due(recipe, state.spent[0])
        state.spent = state.spent[0], passed
        metrics |= self.watch.hack_metrics(metrics, rises)
        self.folder.log(iteration, metrics | {"time_eval": seconds}, kind="heldout")
        name = "before" if iteration == 0 else "after" if self._ended else f"iteration_{iteration:05d}"
        self.folder.evaluated(iteration, name, result)
        self.console.evaluated(iteration, result)
        value = judged_mean(recipe, result, self.inputs.scorer.weights)
        if value > (float("-inf") if state.best is None else state.best[1]):
            state.best = iteration, value
        self._raise_alarms(self.watch.after_evaluation(iteration, metrics, rises))

    # ------------------------------------------------------------------ alarms

    def _raise_alarms(self, alarms: Sequence[Alarm]) -> None:
        """Shows and records alarms; `_respond_to_alarms` acts on them."""
        for alarm in alarms:
            self.console.note(alarm.describe())
            self.folder.alarm(alarm.record())
        self._unanswered += alarms

    def _respond_to_alarms(self) -> None:
        """Takes the action of the most severe alarm. Raises AlarmError if that is to stop."""
        alarm, self._unanswered = most_severe(self._unanswered), []
        if alarm is None:
            return
        agreed(None, self.ranks)  # rank 0 has written what the others may read now
        saving, iteration = self.saving, self.state.iteration
        wanted, left = ("best", iteration) if alarm.to is None else ("witness", None)
        if alarm.to == iteration:
            saving.keep(wanted, self._marks().get(wanted))
            agreed(None, self.ranks)
        if alarm.action == "stop" or saving.checkpoints.marked(wanted) is None:
            saving.save_unmoved()
            self.folder.report()
            raise AlarmError.from_alarm(alarm)
        there = saving.checkpoints.find(wanted)
        roll_back_to(there, self.policy, self.learner, self.watch, left, self.critic, self.ranks)
        if left is not None:
            self.learner.lower(self.recipe.watch.lower)
            self.console.note(
                f"rolled back to iteration {there.iteration}; the learning rate is now {self.learner.lr:.2e}"
            )
        else:
            self._end_with(there.iteration, alarm)
        saving.mark()

    def _end_with(self, iteration: int, alarm: Alarm) -> None:
        """Ends the run with the weights of an earlier iteration, which are already restored."""
        state = self.state
        state.rolled_back = {"alarm": alarm.name, "at": state.iteration, "to": iteration, "what": alarm.what}
        if state.best is not None and state.best[0] == state.iteration != iteration:  # the evaluated weights are gone
            kept = self.saving.checkpoints.marked("best")
            known = None if kept is None else self.evaluations.get(kept)
            state.best = None
            if kept is not None and known is not None:
                state.best = kept, judged_mean(self.recipe, known, self.inputs.scorer.weights)
        self.saving.forget()
        self.console.note(rollback_message(iteration, self.watch))

    def _finish(self) -> dict[str, JSON]:
        state, weights = self.state, self.folder.path / ("lora" if self.recipe.lora is not None else "model")
        write_weights(self.policy, self.learner, self.ranks, weights)
        summary, shown = closing(state, self.evaluations)
        self.folder.summary(summary)
        self.folder.report()
        self.console.finished(shown, self.folder.path, weights, summary["seconds"])
        return summary
