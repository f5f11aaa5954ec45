"""The prompts that a run will draw next, for who can do something for them before they are drawn."""

from collections.abc import Iterable, Iterator, Sequence
from contextlib import AbstractContextManager
from itertools import chain
from typing import Any

from flowrl.contracts import ALONE, Coming, Policy, Prompt, Ranks
from flowrl.core.expansion import Expansion
from flowrl.core.ranks import shares
from flowrl.kinds import kind_of
from flowrl.recipe.schema import Recipe
from flowrl.runs.phasing import Draws


def training_ahead(
    recipe: Recipe, policy: Policy, draws: Draws, expansion: Expansion | None = None, ranks: Ranks = ALONE
) -> AbstractContextManager[None]:
    """Within, the policy knows what this rank will draw in `encode_ahead` iterations, the present one among them."""

    def number(prompts: int) -> int:
        return prompts if expansion is None else expansion.number(prompts)

    def coming(_: Sequence[Prompt]) -> Iterator[Prompt]:
        for draw in draws.coming(recipe.encode_ahead, number):
            mine = shares([prompt.id for prompt in draw], ranks.size, recipe.train.pool)[ranks.rank]
            yield from (draw[i] for i in mine)

    return _looking(recipe, policy, coming)


def batches_ahead(
    recipe: Recipe, policy: Policy, prompts: Sequence[Prompt], batch: int, ranks: Ranks = ALONE
) -> AbstractContextManager[None]:
    """Within, the policy knows the next `encode_ahead` - 1 batches of these prompts that this rank draws."""
    batches = [prompts[start : start + batch] for start in range(0, len(prompts), batch)][ranks.rank :: ranks.size]
    place = {own[0].id: i for i, own in enumerate(batches)}

    def coming(now: Sequence[Prompt]) -> Iterable[Prompt]:
        at = place.get(now[0].id)
        return () if at is None else chain.from_iterable(batches[at + 1 : at + recipe.encode_ahead])

    return _looking(recipe, policy, coming)


def _looking(recipe: Recipe, policy: Any, coming: Coming) -> AbstractContextManager[None]:
    return kind_of(recipe).building.looking_ahead(policy, coming)
