"""What the iterations of a run cost in forwards of the model: the unit of budgets and of comparisons at equal cost.

A forward of one row (of a language model: one token) counts 1 where it has no gradient: in rollouts, for a reference or
older weights. One with gradient counts 3, since the backward pass takes about twice what the forward takes.
"""

import itertools

from flowrl.planning.costs import arithmetic
from flowrl.recipe.schema import Recipe
from flowrl.recipe.trust import foreign

WITH_GRADIENT = 3


def measured_forwards(recipe: Recipe, iteration: int, rollout: float, train: float) -> float:
    """The forwards of an iteration, from 0, of which `rollout` and `train` were counted, the latter of every sort.

    Those with gradient are taken to be as large a part of `train` as in the plan; all of it, where a plan would have to
    import parts of somebody's own, since whoever compares finished runs need not trust them.
    """
    if any(not place.startswith(("rewards.", "track.")) for place, _ in foreign(recipe)):
        return rollout + WITH_GRADIENT * train
    cost = arithmetic(recipe, iteration)
    looked = cost.train_forwards + cost.reference_forwards + cost.whole_row_forwards
    share = cost.train_forwards / looked if looked else 0.0
    return rollout + train * (1 + (WITH_GRADIENT - 1) * share)


def planned_forwards(recipe: Recipe, iteration: int) -> float:
    """The forwards of an iteration, from 0, if every row that may be trained is."""
    cost = arithmetic(recipe, iteration)
    without = cost.drawing_forwards + cost.reference_forwards + cost.whole_row_forwards
    return without + WITH_GRADIENT * cost.train_forwards


def affordable_iterations(recipe: Recipe, forwards: float) -> int:
    """How many iterations a run may have, so that it takes at most so many forwards; 0 where one is too much."""
    spent = 0.0
    for iteration in itertools.count():
        spent += planned_forwards(recipe, iteration)
        if spent > forwards:
            return iteration
    raise AssertionError("unreachable")
