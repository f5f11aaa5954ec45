"""How often encoders come to the device where they rest in host memory, what that moves, and what it leaves there."""

from collections.abc import Sequence
from dataclasses import asdict

from flowrl.contracts import Prompt
from flowrl.planning.remembered import look_up
from flowrl.planning.sizes.memory import Sizes, configs_of, size_query
from flowrl.planning.sizes.units import size_text
from flowrl.policies.pipelines.encoding.prompt_cache import CACHE_BYTES
from flowrl.recipe.schema import Recipe
from flowrl.untyped import JSON


def encoded_bytes(recipe: Recipe, prompts: Sequence[Prompt]) -> int:
    """What is remembered of the longest prompt, in bytes; 0 where that is not known, or nothing is."""
    query = size_query(recipe, prompts)

    def measured() -> JSON:
        from flowrl.planning.sizes.measure import measure_encoded

        return measure_encoded(query)

    return look_up("encoded", [asdict(query), configs_of(recipe.model)], measured)


def lines(recipe: Recipe, estimate: Sizes, prompts: Sequence[Prompt]) -> list[str]:
    """What the dry run says; nothing of encoders that stay, or where texts are not remembered."""
    if recipe.encode_ahead > 1 and not recipe.offload:
        return ["encoders    stay: without offload, encode_ahead has no effect"]
    moved = next((phase.moved for phase in estimate.phases if phase.moved), 0)
    if not moved or not (each := encoded_bytes(recipe, prompts)):
        return []
    drawn = -(-recipe.train.drawn // (recipe.parallel.ranks or 1))
    wanted, room = recipe.encode_ahead, CACHE_BYTES // each
    ahead, batches = (max(1, min(wanted, room // number)) for number in (drawn, recipe.eval.batch))
    kept = min(ahead * drawn, room)
    often = f"once in {ahead} iterations" if ahead > 1 else "once an iteration"
    less = "" if ahead == wanted or room < drawn else f", as {wanted} find no room"
    found = f"for {kept} prompts{less}: {size_text(moved)} to the device each time"
    found += f", {size_text(moved / ahead)} an iteration" if ahead > 1 else ""
    if room < drawn:
        found = f"and again within it, as its {drawn} prompts find no room: {size_text(moved)} to the device each time"
    told = [
        f"encoders    come {often}, {found}",
        f"{'':<12}what they give takes {size_text(each)} of host memory a prompt, at most {size_text(CACHE_BYTES)}; "
        f"{'once in ' + str(batches) + ' batches' if batches > 1 else 'once a batch'} of an evaluation",
    ]
    known = len({prompt.text for prompt in prompts})
    if known and known * each <= CACHE_BYTES:
        told.append(f"{'':<12}they stay away once all {known} training prompts are encoded")
    return told
