"""Trial calls of the user's own parts on small numbers, before weights are loaded.

All functions raise RecipeError, one line that names the part, what it returned and what is accepted.
"""

import contextlib
from collections.abc import Iterator
from typing import Any

import torch
from torch import Tensor

from flowrl import names
from flowrl.recipe.errors import RecipeError, show
from flowrl.recipe.making import step_of
from flowrl.recipe.schema import Recipe
from samplers import schedules
from samplers.gaussian import Gaussian
from samplers.growth import Grown, Walk
from samplers.plan import Table, Tree
from samplers.windows import Roles

ROWS = (3, 4, 2, 2)  # shape of the latents for a trial


@contextlib.contextmanager
def report_errors(place: str, name: str) -> Iterator[None]:
    """Turns any exception of a part into one line."""
    try:
        yield
    except (RecipeError, MemoryError, torch.OutOfMemoryError):
        raise
    except Exception as error:
        text = f"{type(error).__name__}: {' '.join(str(error).split())}"
        raise RecipeError(place, f"{name!r} failed: {text}", "fix it, or name another") from error


class Guarded:
    """A part of the user's own whose failures during a run are one line; all else is the part's."""

    def __init__(self, place: str, name: str, part: Any):
        self._place, self._name, self._part = place, name, part

    def __call__(self, *args: Any) -> Any:
        """What the part returns. Raises RecipeError where it fails."""
        with report_errors(self._place, self._name):
            return self._part(*args)

    def __getattr__(self, name: str) -> Any:
        return getattr(self._part, name)


def refusal(place: str, name: str, got: str, wanted: str) -> RecipeError:
    """The error for a part that returns something its kind does not accept."""
    return RecipeError(place, f"{name!r} returns {got}, accepted: {wanted}", "fix it, or name another")


def describe_value(value: object) -> str:
    """A value in a few words: the shape of a tensor, the length of a tuple, otherwise the value."""
    if isinstance(value, Tensor):
        return f"a tensor {list(value.shape)} of {str(value.dtype).removeprefix('torch.')}"
    if isinstance(value, tuple | list) and any(isinstance(part, Tensor | Gaussian) for part in value):
        return f"a {type(value).__name__} of {len(value)}"
    return f"a {type(value).__name__}" if isinstance(value, Gaussian | Tree) else show(value)


def try_step(recipe: Recipe) -> None:
    """Tries the user's own step: it returns a Gaussian over the next latent, with gradient to the velocity."""
    name, place = recipe.sampler.step, "sampler.step"
    if not names.is_dotted(name):
        return
    step = step_of(recipe)
    generator = torch.Generator().manual_seed(0)
    x, v = (torch.randn(ROWS, generator=generator) for _ in range(2))
    v.requires_grad_()
    with report_errors(place, name):
        result = step(x, v, 0.8, 0.6, noise=recipe.sampler.noise, s_cap=0.9)
    wanted = f"a samplers.gaussian.Gaussian: mean like x, here {list(ROWS)}, std >= 0 broadcastable to it"
    if not isinstance(result, Gaussian):
        raise refusal(place, name, describe_value(result), wanted)
    if not isinstance(result.mean, Tensor) or not isinstance(result.std, Tensor):
        raise refusal(place, name, "a Gaussian whose mean or std is not a tensor", wanted)
    if result.mean.shape != x.shape or not _broadcasts(result.std, x):
        shapes = f"mean {list(result.mean.shape)} and std {list(result.std.shape)}"
        raise refusal(place, name, f"a Gaussian of {shapes}", wanted)
    if not bool(result.mean.isfinite().all() and result.std.isfinite().all() and (result.std >= 0).all()):
        raise refusal(place, name, "numbers that are not finite, or a negative std", wanted)
    if not result.mean.requires_grad:
        raise refusal(place, name, "a mean without gradient", "one through which the gradient reaches v")


def try_schedule(name: str, table: Table, steps: int) -> None:
    """Tries the user's own sigma table, on a linear one of `steps` steps."""
    with report_errors("sampler.schedule.kind", name):
        table.levels(schedules.linear(steps))


def try_solver(place: str, name: str, solver: Any) -> None:
    """Tries the user's own solver: it returns the next latent at a first, a later and a last step."""
    generator = torch.Generator().manual_seed(0)
    x, x0, before = (torch.randn(ROWS, generator=generator) for _ in range(3))
    for s, s_next, previous in ((1.0, 0.8, None), (0.8, 0.6, (before, 1.0)), (0.2, 0.0, (before, 0.5))):
        with report_errors(place, name):
            result = solver(x, x0, s, s_next, previous)
        if not isinstance(result, Tensor) or result.shape != x.shape or not bool(result.isfinite().all()):
            raise refusal(place, name, describe_value(result), f"the next latent, finite numbers, here {list(ROWS)}")


def _broadcasts(part: Tensor, whole: Tensor) -> bool:
    try:
        return torch.broadcast_shapes(part.shape, whole.shape) == whole.shape
    except RuntimeError:
        return False


def check_window(place: str, name: str, given: Any, steps: int) -> tuple[tuple[int, ...], tuple[int, ...]]:
    """(steps that draw, steps that are trained) from the result of the user's own window, for a walk of `steps`."""
    pair = (given.stochastic, given.trained) if isinstance(given, Roles) else (given, given)
    wanted = f"the steps that draw and are trained, one or more increasing numbers from 0 to {steps - 1}, or Roles"
    for part in pair:
        whole = isinstance(part, tuple | list | range) and all(type(step) is int for step in part)
        if not whole or not part or list(part) != sorted(set(part)) or not 0 <= part[0] <= part[-1] < steps:
            raise refusal(place, name, describe_value(given), wanted)
    drawn, trained = (tuple(part) for part in pair)
    if not set(trained) <= set(drawn):
        raise refusal(place, name, describe_value(given), "trained steps that are among those that draw")
    return drawn, trained


def check_tree(place: str, name: str, given: Any, walk: Walk) -> Any:
    """The plan from the result of the user's own tree."""
    if isinstance(given, Tree):
        if not given.rows:
            raise refusal(place, name, "a Tree without a trained step", "a Tree with a trained segment")
        return Grown(walk.num_steps, walk.stochastic, given.trained, given)
    built = None
    if callable(getattr(given, "tree", None)):
        with report_errors(place, name):
            built = given.tree(walk.group)
    if not isinstance(built, Tree):
        raise refusal(
            place, name, describe_value(given), "a samplers.plan.Tree, or a plan whose tree(group) returns one"
        )
    return given
