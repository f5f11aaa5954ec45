"""What a part of the user's own gives back, tried on small numbers before a weight is loaded.

Raised everywhere: RecipeError, one line that names the part, what it gave and what its contract is.
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

ROWS = (3, 4, 2, 2)  # of the latents that a step is tried on


@contextlib.contextmanager
def trying(place: str, name: str) -> Iterator[None]:
    """Within, whatever a part raises is told in one line."""
    try:
        yield
    except RecipeError:
        raise
    except Exception as error:
        told = f"{type(error).__name__}: {' '.join(str(error).split())}"
        raise RecipeError(place, f"{name!r} failed when it was tried: {told}", "mend it, or name another") from error


def refuse(place: str, name: str, got: str, wanted: str) -> RecipeError:
    """The error for a part that gives back something else than its kind does."""
    return RecipeError(place, f"{name!r} gives {got}, accepted: {wanted}", "mend it, or name another")


def described(value: Any) -> str:
    """A value in a few words: the shape of a tensor, what is in a tuple, otherwise the value."""
    if isinstance(value, Tensor):
        return f"a tensor {list(value.shape)} of {str(value.dtype).removeprefix('torch.')}"
    if isinstance(value, tuple | list) and any(isinstance(part, Tensor | Gaussian) for part in value):
        return f"a {type(value).__name__} of {len(value)}"
    return f"a {type(value).__name__}" if isinstance(value, Gaussian | Tree) else show(value)


def try_step(recipe: Recipe) -> None:
    """A step of the user's own: a Gaussian over the next latent, whose gradient reaches the velocity."""
    name, place = recipe.sampler.step, "sampler.step"
    if not names.is_dotted(name):
        return
    step = step_of(recipe)
    generator = torch.Generator().manual_seed(0)
    x, v = (torch.randn(ROWS, generator=generator) for _ in range(2))
    v.requires_grad_()
    with trying(place, name):
        found = step(x, v, 0.8, 0.6, noise=recipe.sampler.noise, s_cap=0.9)
    wanted = f"a samplers.gaussian.Gaussian: mean like x, here {list(ROWS)}, std >= 0 broadcastable to it"
    if not isinstance(found, Gaussian):
        raise refuse(place, name, described(found), wanted)
    if not isinstance(found.mean, Tensor) or not isinstance(found.std, Tensor):
        raise refuse(place, name, "a Gaussian whose mean or std is no tensor", wanted)
    if found.mean.shape != x.shape or not _broadcasts(found.std, x):
        shapes = f"mean {list(found.mean.shape)} and std {list(found.std.shape)}"
        raise refuse(place, name, f"a Gaussian of {shapes}", wanted)
    if not bool(found.mean.isfinite().all() and found.std.isfinite().all() and (found.std >= 0).all()):
        raise refuse(place, name, "numbers that are not finite, or a negative std", wanted)
    if not found.mean.requires_grad:
        raise refuse(place, name, "a mean without gradient", "one through which the gradient reaches v")


def try_schedule(name: str, table: Table, steps: int) -> None:
    """A sigma table of the user's own, made of one of `steps` steps."""
    with trying("sampler.schedule.kind", name):
        table.levels(schedules.linear(steps))


def try_solver(place: str, name: str, solver: Any) -> None:
    """A solver of the user's own: the next latent, at a first step, at a later one, and at the last."""
    generator = torch.Generator().manual_seed(0)
    x, x0, before = (torch.randn(ROWS, generator=generator) for _ in range(3))
    for s, s_next, previous in ((1.0, 0.8, None), (0.8, 0.6, (before, 1.0)), (0.2, 0.0, (before, 0.5))):
        with trying(place, name):
            found = solver(x, x0, s, s_next, previous)
        if not isinstance(found, Tensor) or found.shape != x.shape or not bool(found.isfinite().all()):
            raise refuse(place, name, described(found), f"the next latent, finite numbers, here {list(ROWS)}")


def _broadcasts(part: Tensor, whole: Tensor) -> bool:
    try:
        return torch.broadcast_shapes(part.shape, whole.shape) == whole.shape
    except RuntimeError:
        return False


def window_of(place: str, name: str, found: Any, steps: int) -> tuple[tuple[int, ...], tuple[int, ...]]:
    """(steps that draw, steps that are trained) of what a window of the user's own gave for a walk of `steps`."""
    pair = (found.stochastic, found.trained) if isinstance(found, Roles) else (found, found)
    wanted = f"the steps that draw and are trained, one or more numbers that rise from 0 to {steps - 1}, or Roles"
    for part in pair:
        whole = isinstance(part, tuple | list | range) and all(type(step) is int for step in part)
        if not whole or not part or list(part) != sorted(set(part)) or not 0 <= part[0] <= part[-1] < steps:
            raise refuse(place, name, described(found), wanted)
    drawn, trained = (tuple(part) for part in pair)
    if not set(trained) <= set(drawn):
        raise refuse(place, name, described(found), "trained steps that are among those that draw")
    return drawn, trained


def tree_of(place: str, name: str, found: Any, walk: Walk) -> Any:
    """The plan of what a tree of the user's own gave."""
    if isinstance(found, Tree):
        if not found.rows:
            raise refuse(place, name, "a Tree without a trained step", "one of which some segment is trained")
        return Grown(walk.num_steps, walk.stochastic, found.trained, found)
    made = None
    if callable(getattr(found, "tree", None)):
        with trying(place, name):
            made = found.tree(walk.group)
    if not isinstance(made, Tree):
        raise refuse(place, name, described(found), "a samplers.plan.Tree, or a plan whose tree(group) gives one")
    return found
