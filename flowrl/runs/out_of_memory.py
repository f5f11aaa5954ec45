"""What a run says after memory ran out: which keys free how much, by the estimate that --dry-run shows."""

from collections.abc import Iterator, Sequence

import torch

from flowrl.contracts import Prompt
from flowrl.kinds import kind_of
from flowrl.names import UserError
from flowrl.planning.sizes.units import size_text
from flowrl.recipe.schema import Recipe
from flowrl.untyped import JSON

MOST = 4  # of the keys that are told, those that free most


def tell_remedy(error: BaseException, recipe: Recipe, prompts: Sequence[Prompt]) -> None:
    """Gives an error of memory that ran out a `remedy`, in words, which the command shows; leaves others alone."""
    if not isinstance(error, torch.OutOfMemoryError):
        return
    freed = savings(recipe, prompts)
    if freed:
        listed = ", ".join(f"{key} frees {size_text(number)} of {phase}" for key, phase, number in freed[:MOST])
        error.remedy = f"by the estimate {listed}"  # pyright: ignore[reportAttributeAccessIssue]


def savings(recipe: Recipe, prompts: Sequence[Prompt]) -> list[tuple[str, str, int]]:
    """(key=value, phase, bytes) of the changes that lower what is needed most at once, the largest first.

    The phase is the one that needs most as the recipe stands. Empty where no estimate is to be had.
    """
    now = _needs(recipe, prompts)
    if not now:
        return []
    peak = max(now, key=lambda name: now[name])
    found = []
    for text, changed in _changes(recipe):
        then = _needs(changed, prompts)
        if then and (freed := now[peak] - max(then.values())) > 0:
            found.append((text, peak, freed))
    return sorted(found, key=lambda one: -one[2])


def _changes(recipe: Recipe) -> Iterator[tuple[str, Recipe]]:
    train = recipe.train
    rows = train.micro_rows or train.drawn * train.group // train.updates
    drawn = train.rollout_batch or train.drawn * train.group

    def trained(**values: JSON) -> Recipe:
        return recipe.model_copy(update={"train": train.model_copy(update=values)})

    if rows > 1:
        yield f"train.micro_batch={rows // 2}", trained(micro_batch=rows // 2)
    if drawn > 1:
        yield f"train.rollout_batch={max(1, drawn // 2)}", trained(rollout_batch=drawn // 2)
    if not train.gradient_checkpointing:
        yield "train.gradient_checkpointing=true", trained(gradient_checkpointing=True)
    if not recipe.offload and not kind_of(recipe).texts:
        yield "offload=true", recipe.model_copy(update={"offload": True})
    if recipe.dtype.model == "float32":
        half = recipe.dtype.model_copy(update={"model": "bfloat16"})
        yield "dtype.model=bfloat16", recipe.model_copy(update={"dtype": half})


def _needs(recipe: Recipe, prompts: Sequence[Prompt]) -> dict[str, int]:
    """Bytes of each phase; empty where they are not known."""
    try:
        sizes = kind_of(recipe).planning.sizes(recipe, prompts)
    except UserError:
        return {}
    return {} if sizes is None else {phase.name: phase.total for phase in sizes.phases}
