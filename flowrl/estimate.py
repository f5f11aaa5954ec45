"""How long a recipe takes, from its arithmetic and the seconds that a denoiser row-forward takes."""

from dataclasses import dataclass

from flowrl.planning import arithmetic, eval_plan
from flowrl.recipe.schema import Recipe


@dataclass(frozen=True)
class Pace:
    """Seconds of one row: a forward without gradient, one with its backward, and the scoring of a sample."""

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
        """All of them."""
        return self.rollout + self.scoring + self.training + self.evaluation


def duration(recipe: Recipe, pace: Pace, num_heldout: int) -> Duration:
    """The seconds of a run at this pace: iterations, with the divergence's forwards where it is paid, and evaluations.

    Windows that move are counted as they move. Loading, decoding and saving are not in it.
    """
    iterations = recipe.train.iterations
    shown = [arithmetic(recipe, i) for i in range(min(iterations, 1000))]
    share = iterations / len(shown)
    rollout = sum(a.rollout_forwards for a in shown) * share * pace.forward
    training = sum(a.train_forwards for a in shown) * share * pace.training
    training += sum(a.reference_forwards for a in shown) * share * pace.forward
    each = num_heldout * (eval_plan(recipe).num_steps * pace.forward + pace.scoring)
    rows = recipe.train.prompts * recipe.train.group
    return Duration(rollout, iterations * rows * pace.scoring, training, evaluations(recipe) * each)


def evaluations(recipe: Recipe) -> int:
    """How many evaluations a run makes."""
    evaluation, iterations = recipe.eval, recipe.train.iterations
    if recipe.prompts.heldout is None:
        return 0
    between = (iterations - 1) // evaluation.every if evaluation.every else 0
    return between + evaluation.at_start + evaluation.at_end


def spoken(seconds: float) -> str:
    """Seconds as a person says them: 43 s, 12 min, 3.4 h, 2.1 days."""
    for limit, size, unit in ((100, 1, "s"), (5400, 60, "min"), (48 * 3600, 3600, "h")):
        if seconds < limit:
            value = seconds / size
            return f"{value:.0f} {unit}" if value >= 10 or unit == "s" else f"{value:.1f} {unit}"
    return f"{seconds / 86400:.1f} days"
