"""The class of a recipe's policy: the one that ships for its kind of model, or the user's own, which extends it."""

import functools
from collections.abc import Callable
from typing import TypeVar

from flowrl import names
from flowrl.recipe.errors import RecipeError
from flowrl.recipe.schema import Recipe

Shipped = TypeVar("Shipped")


def policy_class(recipe: Recipe, shipped: type[Shipped]) -> Callable[..., Shipped]:
    """What makes the policy. Raises RecipeError for a class that extends the policy of another kind of model."""
    own = recipe.policy
    if own is None:
        return shipped
    made = names.load(own.kind, {}, "policy")
    if not issubclass(made, shipped):
        problem = f"{own.kind!r} is no {shipped.__name__}, which this model is trained by"
        raise RecipeError("policy.kind", problem, f"extend {shipped.__module__}.{shipped.__name__}")
    return functools.partial(made, **own.args)
