"""What one of several ranks holds of the memory of a recipe."""

from collections.abc import Sequence
from dataclasses import replace
from typing import TYPE_CHECKING

from flowrl.recipe.schema import Recipe

if TYPE_CHECKING:
    from flowrl.planning.sizes.memory import Phase


def shares_out(recipe: Recipe) -> int:
    """Among how many ranks the weights are shared out; 1 where they are not, or it is not said."""
    return (recipe.parallel.ranks or 1) if recipe.parallel.kind == "fsdp" else 1


def of_a_rank(recipe: Recipe, phases: Sequence["Phase"], shared: int, beside: int = 0) -> list["Phase"]:
    """The phases of one rank; shared: bytes of the weights that ranks share out, which are among those of each phase;
    beside: those of another model among them, a critic or a reference.

    A rank has the trajectories of its prompts. Where the weights are shared out, it has its part of them, of the
    optimizer's state and of the gradients, and beside that all weights of one model while it samples, if they are
    gathered for that. The block that is gathered otherwise is not counted.
    """
    prompts, ranks = recipe.train.drawn, recipe.parallel.ranks or 1
    phases = [replace(phase, trajectory=phase.trajectory * -(-prompts // ranks) // prompts) for phase in phases]
    number = shares_out(recipe)
    if number == 1:
        return phases
    own, largest = -(-shared // number), max(beside, shared - beside)
    whole = recipe.parallel.sampling == "whole"
    return [
        replace(
            phase,
            weights=phase.weights + own - shared + (largest if whole and phase.name == "rollout" else 0),
            optimizer=-(-phase.optimizer // number),
        )
        for phase in phases
    ]


def told(recipe: Recipe) -> list[str]:
    """What the dry run says of this."""
    if recipe.parallel.kind != "fsdp":
        return []
    number = shares_out(recipe)
    if number == 1:
        return [
            "ranks share out the weights, gradients, moments and copies: parallel.ranks shows what one of them holds"
        ]
    gathered = (
        "all of them are gathered while it samples" if recipe.parallel.sampling == "whole" else "none is gathered"
    )
    return [
        f"of each of {number} ranks: it holds 1/{number} of weights, gradients, moments and copies; {gathered}, and "
        "otherwise a block at a time, which is not in it"
    ]
