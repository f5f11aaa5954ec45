"""One run, from a recipe to a folder with metrics, pictures and weights.

    load prompts and rewards --> load the pipeline, add adapters --> evaluate
        --> iterations, with evaluations between --> evaluate --> save

Everything that a user can get wrong is looked at before the weights are loaded, in that order.
"""

import contextlib
import time
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from torch import Tensor

from flowrl import prompts as prompt_files
from flowrl.advantages import advantage_metrics, advantages
from flowrl.build import Inputs, build_learner, build_objective, build_policy, read_inputs, set_up
from flowrl.console import Console, Progress
from flowrl.evaluate import Evaluation, evaluate
from flowrl.iterate import Iteration, Settings, iterate
from flowrl.learner import Learner
from flowrl.objectives.grpo import ClippedObjective
from flowrl.planning import arithmetic, eval_plan, plan_for
from flowrl.policies import adapters
from flowrl.policies.pipeline import PipelinePolicy
from flowrl.recipe.load import dump
from flowrl.recipe.schema import Recipe
from flowrl.rundir import RunFolder, fresh

EVAL_SEED = 2**32  # added to the run's: evaluation noise is never training noise


def evaluate_heldout(recipe: Recipe, policy: PipelinePolicy, inputs: Inputs, *, keep: int = 0) -> Evaluation:
    """Held-out scores under the policy's weights as they are, on the recipe's own evaluation noise."""
    return evaluate(
        policy,
        inputs.heldout,
        inputs.scorer,
        plan=eval_plan(recipe),
        seed=recipe.seed + EVAL_SEED,
        batch=recipe.eval.batch,
        keep=keep,
    )


@dataclass
class Run:
    """A run under way."""

    recipe: Recipe
    inputs: Inputs
    policy: PipelinePolicy
    learner: Learner
    objective: ClippedObjective
    folder: RunFolder
    console: Console

    def train(self) -> dict[str, Any]:
        """All iterations and evaluations; returns the summary that is also written."""
        recipe, started = self.recipe, time.perf_counter()
        cursor = prompt_files.Cursor(
            self.inputs.train, seed=recipe.seed, balance=recipe.prompts.balance, shuffle=recipe.prompts.shuffle
        )
        evaluations: dict[int, Evaluation] = {}
        if recipe.eval.at_start:
            self._evaluate(0, "before", evaluations)
        with self.console.progress(recipe.train.iterations) as progress:
            for iteration in range(recipe.train.iterations):
                result = self._iterate(iteration, cursor, progress)
                self.folder.log(iteration + 1, result.metrics)
                progress.iteration_done(iteration + 1, result.metrics, self._rewards_shown())
                done = iteration + 1
                if recipe.eval.every and done % recipe.eval.every == 0 and done < recipe.train.iterations:
                    self._evaluate(done, f"iteration_{done:05d}", evaluations)
        if recipe.eval.at_end:
            self._evaluate(recipe.train.iterations, "after", evaluations)
        return self._finish(evaluations, time.perf_counter() - started)

    def _iterate(self, iteration: int, cursor: prompt_files.Cursor, progress: Progress) -> Iteration:
        recipe = self.recipe
        sizes = arithmetic(recipe, iteration)
        totals = {"rollout": sizes.rollout_forwards, "score": len(self.inputs.scorer.rewards)}
        totals["train"] = sizes.train_forwards + sizes.reference_forwards + sizes.whole_row_forwards
        self.policy.tick = progress.advance
        train = recipe.train
        return iterate(
            self.policy,
            self.learner,
            cursor.take(train.prompts),
            plan=plan_for(recipe, iteration),
            seed=recipe.seed,
            first=iteration * (1 + train.refill) * train.group,
            score=lambda samples: self.inputs.scorer(samples, progress=lambda _: progress.advance(1)),
            advantage=self._advantage,
            objective=self.objective,
            settings=Settings(
                train.group, train.epochs, train.updates, train.micro_batch, train.refill, train.skip_truncated
            ),
            enter=lambda phase: progress.phase(phase, totals[phase]),
            more=cursor.take,
        )

    def _advantage(self, rewards: dict[str, Tensor], group: Tensor) -> tuple[Tensor, dict[str, float]]:
        weights = self.inputs.scorer.weights
        adv = advantages(rewards, group, weights=weights, **self.recipe.advantage.model_dump())
        return adv, advantage_metrics(rewards, group, adv, weights=weights)

    def _evaluate(self, iteration: int, name: str, evaluations: dict[int, Evaluation]) -> None:
        """Held-out scores with the averaged weights: logged, shown, kept."""
        if not self.inputs.heldout:
            return
        recipe = self.recipe
        self.policy.tick = None
        with self.learner.averaged(), self.console.working(f"evaluating {len(self.inputs.heldout)} held-out prompts"):
            start = time.perf_counter()
            result = evaluate_heldout(recipe, self.policy, self.inputs, keep=recipe.eval.grid)
            seconds = time.perf_counter() - start
        evaluations[iteration] = result
        metrics = {f"{reward}/mean": m.value for reward, m in result.means().items()}
        metrics |= {f"{reward}/error": m.error for reward, m in result.means().items()}
        self.folder.log(iteration, metrics | {"time_eval": seconds}, kind="heldout")
        self.folder.evaluated(iteration, name, result)
        self.console.evaluated(iteration, result)

    def _finish(self, evaluations: dict[int, Evaluation], seconds: float) -> dict[str, Any]:
        weights = self.folder.path / ("lora" if self.recipe.lora is not None else "model")
        with self.learner.averaged():
            adapters.save(self.policy.source, self.policy.modules, weights)
        heldout = {i: {n: asdict(m) for n, m in e.means().items()} for i, e in sorted(evaluations.items())}
        summary = {"iterations": self.recipe.train.iterations, "seconds": round(seconds, 1), "heldout": heldout}
        self.folder.summary(summary)
        self.console.finished(evaluations, self.folder.path, weights, seconds)
        return summary

    def _rewards_shown(self) -> list[str]:
        return [f"reward/{name}/mean" for name in self.inputs.scorer.rewards]


def run(recipe: Recipe, console: Console | None = None) -> dict[str, Any]:
    """Runs a recipe to its end; returns what summary.json says, with the folder under `folder`.

    Raises UserError, in one line, for anything that the recipe or its files get wrong.
    """
    console = console or Console()
    set_up(recipe)
    inputs = read_inputs(recipe)
    folder = RunFolder(fresh(Path(recipe.output or "runs/run")))
    with contextlib.closing(folder):
        folder.write("recipe.yaml", dump(recipe))
        with console.working(f"loading {recipe.model}"):
            policy = build_policy(recipe)
            policy.prepare(inputs.train[0], plan_for(recipe, 0))
            learner = build_learner(recipe, policy)
        console.started(recipe, policy, folder.path)
        summary = Run(recipe, inputs, policy, learner, build_objective(recipe), folder, console).train()
    return summary | {"folder": str(folder.path)}
