"""How long a recipe takes, from its arithmetic and the seconds of a denoiser row-forward."""

import json
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from flowrl.kinds import kind_of
from flowrl.names import UserError
from flowrl.planning.costs import arithmetic
from flowrl.recipe.load import load
from flowrl.recipe.schema import Recipe
from flowrl.terminal import duration_text
from flowrl.untyped import JSON


@dataclass(frozen=True)
class Pace:
    """Seconds per row: of a forward without gradient, of a forward and backward, and of scoring a sample."""

    forward: float
    training: float
    scoring: float = 0.0


@dataclass(frozen=True)
class Duration:
    """Seconds of a whole run, by phase."""

    rollout: float
    scoring: float
    training: float
    evaluation: float

    @property
    def total(self) -> float:
        """Seconds of all phases."""
        return self.rollout + self.scoring + self.training + self.evaluation


def duration(recipe: Recipe, pace: Pace, num_heldout: int) -> Duration:
    """The seconds of a run at this pace: iterations, with the forwards of a divergence if it is used, and evaluations.

    Moving windows are followed, and completions count as if each took all its tokens. train.seconds may end a run
    before its iterations do. Loading, decoding and saving are not included.
    """
    iterations = recipe.train.iterations
    shown = [arithmetic(recipe, i) for i in range(min(iterations, 1000))]
    share = iterations / len(shown)
    rollout = sum(a.drawing_forwards for a in shown) * share * pace.forward
    training = sum(a.train_forwards for a in shown) * share * pace.training
    training += sum(a.unlearned_forwards for a in shown) * share * pace.forward
    sample = kind_of(recipe).planning.eval_forwards(recipe) * pace.forward + pace.scoring
    each = num_heldout * recipe.eval.samples * sample
    scoring = sum(a.samples for a in shown) * share * pace.scoring
    whole = rollout + scoring + training
    limit = recipe.train.seconds if recipe.train.seconds is not None else whole
    part = min(1.0, limit / whole) if whole else 1.0
    between = recipe.eval.every_seconds
    timed = 0 if between is None or recipe.prompts.heldout is None else int(part * whole / between)
    evaluated = (count_evaluations(recipe, part) + timed) * each
    return Duration(rollout * part, scoring * part, training * part, evaluated)


def assumed_pace(recipe: Recipe, forward: float) -> Pace:
    """The pace at `forward` seconds per row-forward. A backward takes as long as its forward with LoRA, whose frozen
    weights need no gradient, and twice as long without; recomputing activations takes one more forward."""
    training = 2 if recipe.lora is not None else 3
    return Pace(forward, forward * (training + recipe.train.gradient_checkpointing))


def measured_pace(folder: Path) -> Pace:
    """The pace of an earlier run, from its metrics.jsonl, without its first iteration, a warm-up.

    Raises UserError if the folder holds no finished iteration.
    """
    metrics, recipe = folder / "metrics.jsonl", folder / "recipe.yaml"
    if not metrics.is_file() or not recipe.is_file():
        raise UserError(f"--time-from: {folder} is not a run's folder (recipe.yaml, metrics.jsonl); give one")
    lines = [json.loads(line) for line in metrics.read_text(encoding="utf-8").splitlines() if line.strip()]
    trained = [m for m in lines if m.get("kind") == "train" and m.get("time_rollout")]
    if not trained:
        raise UserError(f"--time-from: {metrics} has no iteration yet; give a run with finished iterations")
    return _pace(load(str(recipe)), trained[1:] or trained)


def _pace(recipe: Recipe, lines: Sequence[dict[str, JSON]]) -> Pace:
    """Seconds per row, from sums over iterations."""
    each = [arithmetic(recipe, int(m["iteration"]) - 1) for m in lines]
    forward = sum(m["time_rollout"] for m in lines) / sum(a.drawing_forwards for a in each)
    reference = sum(a.reference_forwards for a in each)
    trained = sum(a.train_forwards * (m.get("active_rows") or 0.0) for a, m in zip(each, lines, strict=True))
    training = max(sum(m["time_train"] for m in lines) - reference * forward, 0.0)
    rows = sum(a.samples for a in each)
    return Pace(forward, training / trained if trained else 0.0, sum(m["time_score"] for m in lines) / rows)


def time_text(recipe: Recipe, pace: Pace, num_heldout: int | None) -> str:
    """The lines of --dry-run about time. num_heldout: None if the held-out prompts cannot be counted here."""
    known = recipe.eval.prompts or 0 if num_heldout is None else num_heldout
    time = duration(recipe, pace, known)
    parts = {"rollout": time.rollout, "scoring": time.scoring, "training": time.training, "evaluation": time.evaluation}
    listed = ", ".join(f"{name} {duration_text(seconds)}" for name, seconds in parts.items() if seconds)
    uncounted = "" if known or recipe.prompts.heldout is None else "; evaluations not included"
    return (
        f"time        about {duration_text(time.total)} ({time.total / 3600:.2f} h): {listed}{uncounted}\n"
        f"            at {pace.forward:.3g} s per row-forward, {pace.training:.3g} s with its backward"
    )


def count_evaluations(recipe: Recipe, part: float = 1.0) -> int:
    """The number of evaluations in this part of a run's iterations, without those of eval.every_seconds."""
    evaluation, iterations = recipe.eval, max(1, round(recipe.train.iterations * part))
    if recipe.prompts.heldout is None:
        return 0
    between = (iterations - 1) // evaluation.every if evaluation.every else 0
    return between + evaluation.at_start + evaluation.at_end


def seconds_left(recipe: Recipe, done: int, spent: float) -> float:
    """About how many seconds the remaining iterations take, at the mean pace of those done."""
    left = (recipe.train.iterations - done) * spent / done
    return left if recipe.train.seconds is None else max(0.0, min(left, recipe.train.seconds - spent))
