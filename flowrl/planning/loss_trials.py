"""What the parts of learning that are the user's own give back, tried on three rows of two decisions each.

Raised everywhere: RecipeError, one line that names the part, what it gave and what its contract is.
"""

import torch
from torch import Tensor

from flowrl.contracts import Batch, LogProbs, Prompt, Rollout, Samples, View
from flowrl.core.objectives.given import GivenObjective
from flowrl.planning.trials import described, refuse, trying
from flowrl.recipe.making import made
from flowrl.recipe.schema import Recipe
from flowrl.recipe.sections import Own

ROWS, DECISIONS = 3, 2


def try_losses(recipe: Recipe) -> None:
    """Objective, advantage, learning-rate schedule and watch rules of a recipe, where they are the user's own."""
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
        """0.5, as an iteration would have the metric."""
        return 0.5


def try_rule(own: Own) -> None:
    """A rule of alarms: a text where something is wrong, or None."""
    with trying("watch.rules", own.kind):
        found = made("rule", own)(_AnyMetrics())
    if found is not None and not isinstance(found, str):
        raise refuse("watch.rules", own.kind, described(found), "a text where something is wrong, or None")


def try_lr_schedule(own: Own) -> None:
    """A schedule of the learning rate: a factor >= 0 at the beginning, the middle and the end."""
    for left in (1.0, 0.5, 0.0):
        with trying("train.schedule", own.kind):
            found = made("lr_schedule", own)(left)
        if not isinstance(found, int | float) or not 0 <= found < float("inf"):
            wanted = "a factor of train.lr, a number >= 0, for the share of the run that is left"
            raise refuse("train.schedule", own.kind, described(found), wanted)


def _numbers(seed: int) -> Tensor:
    """A few numbers of decisions, float32 [ROWS, DECISIONS]."""
    return torch.randn(ROWS, DECISIONS, generator=torch.Generator().manual_seed(seed)) / 10


def _step_stats() -> dict[str, Tensor]:
    return {"std": _numbers(1).abs() + 0.1, "dt": -_numbers(2).abs() - 0.1, "entropy": _numbers(3).abs()}


def try_advantage(recipe: Recipe, own: Own) -> None:
    """Finite advantages of rows, [R], or of their decisions, [R, K]."""
    place = "advantage.kind"
    prompts = [Prompt("tried", "tried")] * ROWS
    samples = Samples(prompts, torch.zeros(ROWS, dtype=torch.int64), images=torch.zeros(ROWS, 3, 2, 2))
    mask = torch.ones(ROWS, DECISIONS, dtype=torch.bool)
    rollout = Rollout(samples, _numbers(0), mask, None, step_stats=_step_stats())
    rewards = {name: torch.tensor([0.0, 1.0, 0.5]) for name in recipe.rewards}
    run = {"weights": {name: spec.weight for name, spec in recipe.rewards.items()}, "asked": {}}
    with trying(place, own.kind):
        found = made("advantage", own, run)(rewards, rollout)
    wanted = f"finite numbers, one a row, [{ROWS}], or one a decision, [{ROWS}, {DECISIONS}]"
    shapes = ((ROWS,), (ROWS, DECISIONS))
    if not isinstance(found, Tensor) or found.shape not in shapes or not bool(found.isfinite().all()):
        raise refuse(place, own.kind, described(found), wanted)


def try_objective(own: Own) -> None:
    """A finite loss of every decision, whose gradient reaches the log-probs, and its metrics."""
    place = "objective.kind"
    with trying(place, own.kind):
        objective = GivenObjective(made("objective", own))
    view = objective.view
    if not isinstance(view, View) or objective.together not in ("decision", "row"):
        raise refuse(place, own.kind, f"view {view}, together {objective.together!r}", "a View, decision or row")
    logp = _numbers(4).requires_grad_()
    mask = torch.tensor([[True, True], [True, True], [True, False]])
    kl, centred = _numbers(5).abs() if view.exact_kl else None, _numbers(6) if view.centred else None
    seen = LogProbs(torch.arange(ROWS), torch.arange(DECISIONS), logp, kl=kl, centred=centred)
    reference = _numbers(7) if "reference" in objective.needs else None
    batch = Batch(_numbers(8), torch.tensor([1.0, -0.5, 0.25]), mask, reference, _step_stats())
    with trying(place, own.kind):
        loss, metrics = objective(seen, batch)
        weights, factors = objective.weights(mask), objective.step_weights(mask, _step_stats())
    if not bool(loss.isfinite().all()):
        raise refuse(place, own.kind, "a loss that is not finite", "finite numbers, [r, k]")
    if not loss.requires_grad:
        raise refuse(place, own.kind, "a loss without gradient", "one through which the gradient reaches seen.logp")
    for name, value in {"weights": weights, "step_weights": factors, **metrics}.items():
        if value is not None and not (value.ndim == 0 and name.endswith("_max")) and value.shape != mask.shape:
            raise refuse(place, own.kind, f"{name} of {described(value)}", "metrics [r, k], or 0-d ones named *_max")
