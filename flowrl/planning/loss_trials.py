"""Trial calls of the user's own parts of learning, on three rows of two decisions each.

All functions raise RecipeError, one line that names the part, what it returned and what is accepted.
"""

import torch
from torch import Tensor

from flowrl.contracts import Batch, LogProbs, Prompt, Rollout, Samples, View
from flowrl.core.objectives.given import GivenObjective
from flowrl.planning.trials import describe_value, refusal, report_errors
from flowrl.recipe.making import build_part
from flowrl.recipe.schema import Recipe
from flowrl.recipe.sections import Own

ROWS, DECISIONS = 3, 2


def try_losses(recipe: Recipe) -> None:
    """Tries the objective, advantage, learning-rate schedule and watch rules of a recipe that are the user's own."""
    if isinstance(recipe.advantage, Own):
        try_advantage(recipe, recipe.advantage)
    if isinstance(recipe.objective, Own):
        try_objective(recipe.objective)
    if isinstance(recipe.train.schedule, Own):
        try_lr_schedule(recipe.train.schedule)
    for rule in recipe.watch.rules:
        try_rule(rule)


class _AnyMetrics(dict):
    """Metrics of every name, each 0.5."""

    def __missing__(self, name: str) -> float:
        return 0.5

    def get(self, name: str, default: float | None = None) -> float:
        """0.5, as if the iteration had the metric."""
        return 0.5


def try_rule(own: Own) -> None:
    """Tries a rule of alarms: it returns a text if something is wrong, or None."""
    with report_errors("watch.rules", own.kind):
        result = build_part("rule", own)(_AnyMetrics())
    if result is not None and not isinstance(result, str):
        raise refusal("watch.rules", own.kind, describe_value(result), "a text if something is wrong, or None")


def try_lr_schedule(own: Own) -> None:
    """Tries a learning-rate schedule: it returns a factor >= 0 at the beginning, the middle and the end."""
    for left in (1.0, 0.5, 0.0):
        with report_errors("train.schedule", own.kind):
            factor = build_part("lr_schedule", own)(left)
        if not isinstance(factor, int | float) or not 0 <= factor < float("inf"):
            wanted = "a factor of train.lr, a number >= 0, for the remaining share of the run"
            raise refusal("train.schedule", own.kind, describe_value(factor), wanted)


def _numbers(seed: int) -> Tensor:
    """Small random numbers, float32 [ROWS, DECISIONS]."""
    return torch.randn(ROWS, DECISIONS, generator=torch.Generator().manual_seed(seed)) / 10


def _step_stats() -> dict[str, Tensor]:
    return {"std": _numbers(1).abs() + 0.1, "dt": -_numbers(2).abs() - 0.1, "entropy": _numbers(3).abs()}


def try_advantage(recipe: Recipe, own: Own) -> None:
    """Tries an advantage: it returns finite numbers per row, [R], or per decision, [R, K]."""
    place = "advantage.kind"
    prompts = [Prompt("tried", "tried")] * ROWS
    samples = Samples(prompts, torch.zeros(ROWS, dtype=torch.int64), images=torch.zeros(ROWS, 3, 2, 2))
    mask = torch.ones(ROWS, DECISIONS, dtype=torch.bool)
    rollout = Rollout(samples, _numbers(0), mask, None, step_stats=_step_stats())
    rewards = {name: torch.tensor([0.0, 1.0, 0.5]) for name in recipe.rewards}
    run = {
        "weights": {name: spec.weight for name, spec in recipe.rewards.items()},
        "asked": {},
        "lengths": None,
        "given": None,
    }
    with report_errors(place, own.kind):
        result = build_part("advantage", own, run)(rewards, rollout)
    wanted = f"finite numbers, one per row, [{ROWS}], or one per decision, [{ROWS}, {DECISIONS}]"
    shapes = ((ROWS,), (ROWS, DECISIONS))
    if not isinstance(result, Tensor) or result.shape not in shapes or not bool(result.isfinite().all()):
        raise refusal(place, own.kind, describe_value(result), wanted)


def try_objective(own: Own) -> None:
    """Tries an objective: it returns a finite loss per decision, with gradient to the log-probs, and metrics."""
    place = "objective.kind"
    with report_errors(place, own.kind):
        objective = GivenObjective(build_part("objective", own))
    view = objective.view
    if not isinstance(view, View) or objective.together not in ("decision", "row"):
        raise refusal(place, own.kind, f"view {view}, together {objective.together!r}", "a View, decision or row")
    logp = _numbers(4).requires_grad_()
    mask = torch.tensor([[True, True], [True, True], [True, False]])
    kl, centred = _numbers(5).abs() if view.exact_kl else None, _numbers(6) if view.centred else None
    seen = LogProbs(torch.arange(ROWS), torch.arange(DECISIONS), logp, kl=kl, centred=centred)
    reference = _numbers(7) if "reference" in objective.needs else None
    batch = Batch(_numbers(8), torch.tensor([1.0, -0.5, 0.25]), mask, reference, _step_stats())
    with report_errors(place, own.kind):
        loss, metrics = objective(seen, batch)
        weights, factors = objective.weights(mask), objective.step_weights(mask, _step_stats())
    if not bool(loss.isfinite().all()):
        raise refusal(place, own.kind, "a loss that is not finite", "finite numbers, [r, k]")
    if not loss.requires_grad:
        raise refusal(place, own.kind, "a loss without gradient", "one through which the gradient reaches seen.logp")
    for name, value in {"weights": weights, "step_weights": factors, **metrics}.items():
        if value is not None and not (value.ndim == 0 and name.endswith("_max")) and value.shape != mask.shape:
            raise refusal(
                place, own.kind, f"{name} of {describe_value(value)}", "metrics [r, k], or 0-d ones named *_max"
            )
