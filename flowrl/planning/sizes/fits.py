"""Which graphics cards a recipe fits, by the estimate of its memory, and the keys that would make it fit others."""

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from typing import Any

from flowrl.contracts import Prompt
from flowrl.kinds import kind_of
from flowrl.planning.costs import arithmetic
from flowrl.planning.sizes.memory import Phase, Sizes
from flowrl.planning.sizes.rewards import weights_of
from flowrl.planning.sizes.shared import shares_out
from flowrl.policies.devices import device_type
from flowrl.recipe.checks.computing import adapters_as_model
from flowrl.recipe.checks.merging import merges
from flowrl.recipe.checks.shards import check_parallel
from flowrl.recipe.keys.fitting import QuantizeKeys
from flowrl.recipe.schema import Recipe

# GB by name -> MiB that the driver reports of such a card: RTX 4090, RTX 5090, L40S, H100, H200
CARDS = {24: 24564, 32: 32607, 48: 46068, 80: 81559, 141: 143771}
CONTEXT = 600  # MiB that the driver and the libraries' kernels take
ROWS = ("train.micro_batch", "train.rollout_batch")  # keys of which activations are a multiple
SCORED = 16  # samples of a call of a reward that would have all of them at once
SLACK = 0.05  # share that the allocator loses in pieces


def room(card: int) -> int:
    """Bytes that a run can have of a card."""
    return round((CARDS[card] - CONTEXT) * 2**20 * (1 - SLACK))


@dataclass(frozen=True)
class Change:
    """A key and the value it would get, and the recipe with it."""

    key: str
    value: str
    make: Callable[[Recipe], Recipe]

    def __str__(self) -> str:
        return f"{self.key}={self.value}"


def peak(sizes: Sizes | None) -> int | None:
    """Bytes of the phase that needs most; None where a training step's are not known."""
    if sizes is None or sizes.phases[-1].activations is None:
        return None
    return max(phase.total for phase in sizes.phases)


def fitting(
    recipe: Recipe, prompts: Sequence[Prompt], *, quantised: bool = False
) -> list[tuple[int, list[Change] | None]] | None:
    """(card, the changes that make the recipe fit it, None where there are none) for each card, the largest first.

    No changes where it fits as it is. None where the memory of a training step is not known. Changes are tried from the
    gentlest on, and those that are not needed are taken back; a micro-batch is as large as fits. quantised: by fewer
    bits instead of blocks that come one by one.
    """
    seen: dict[str, Sizes | None] = {}

    def needs(changes: Sequence[Change]) -> int | None:
        return peak(_with(recipe, prompts, changes, seen))

    if needs([]) is None:
        return None
    return [
        (card, _found(list(_accepted(recipe, quantised)), needs, room(card))) for card in sorted(CARDS, reverse=True)
    ]


def _found(changes: list[Change], needs: Callable[[Sequence[Change]], int | None], limit: int) -> list[Change] | None:
    taken: list[Change] = []
    for change in [None, *changes]:
        taken = taken if change is None else [*(one for one in taken if one.key != change.key), change]
        if (needs(taken) or 0) <= limit:
            break
    else:
        return None
    for change in reversed(taken[:-1]):
        fewer = [one for one in taken if one is not change]
        if (needs(fewer) or 0) <= limit:
            taken = fewer
    for number, change in enumerate(taken):  # the largest of its values that fits
        larger = ([*taken[:number], one, *taken[number + 1 :]] for one in changes if one.key == change.key)
        taken = next(whole for whole in larger if (needs(whole) or 0) <= limit)
    return taken


def _with(recipe: Recipe, prompts: Sequence[Prompt], changes: Sequence[Change], seen: dict[str, Any]) -> Sizes | None:
    """The sizes of a changed recipe. Activations grow with the rows of a call beside what they all share, so that they
    are measured for as many rows as there are and for half of them."""
    kept, changed = recipe, recipe
    for change in changes:
        changed = change.make(changed)
        kept = kept if change.key in ROWS else change.make(kept)
    name = " ".join(str(one) for one in changes if one.key not in ROWS)

    def measured(which: str, one: Recipe) -> Sizes | None:
        if which not in seen:
            seen[which] = kind_of(recipe).planning.sizes(one, prompts)
        return seen[which]

    whole = measured(name, kept)
    if whole is None or not any(change.key in ROWS for change in changes):
        return whole
    fewer = _setting(ROWS[0], -(-_micro(kept) // 2)).make(kept)
    fewer = _setting(ROWS[1], -(-arithmetic(kept).rows_at_once // 2)).make(fewer)
    half = measured(f"half {name}", fewer)
    if half is None:
        return None

    def grown(phase: Phase, other: Phase) -> Phase:
        rows = _micro if phase.name == "training" else lambda one: arithmetic(one).rows_at_once
        most, least, asked = rows(kept), rows(fewer), rows(changed)
        if phase.activations is None or other.activations is None or most == least:
            return phase
        each = (phase.activations - other.activations) / (most - least)
        return replace(phase, activations=max(0, round(phase.activations - each * (most - asked))))

    return replace(whole, phases=[grown(*both) for both in zip(whole.phases, half.phases, strict=True)])


def _micro(recipe: Recipe) -> int:
    return recipe.train.micro_rows or arithmetic(recipe).rows_per_update


def _accepted(recipe: Recipe, quantised: bool) -> Iterator[Change]:
    """The changes that go with how the ranks of the recipe share out its weights."""
    for change in _changes(recipe, quantised):
        if next(check_parallel(change.make(recipe)), None) is None:
            yield change


def _changes(recipe: Recipe, quantised: bool = False) -> Iterator[Change]:
    """What could be changed, from what costs least; a key may come again with a smaller value."""
    keys = kind_of(recipe).saving
    in_blocks = "block_offload" in keys and not quantised
    may_quantise = recipe.lora is not None and recipe.quantize is None and not recipe.block_offload
    device, rounded = device_type(recipe.device), _setting("dtype.adapters", "model")
    if adapters_as_model(rounded.make(recipe), device) and not adapters_as_model(recipe, device):
        yield rounded
    if merges(recipe, device):
        yield _setting("rollout.merge", False)
    for name in _on_device(recipe):
        if recipe.rewards[name].batch is None:
            yield _setting(f"rewards.{name}.batch", SCORED)
        if not recipe.rewards[name].offload:
            yield _setting(f"rewards.{name}.offload", True)
    if "offload" in keys and not recipe.offload:
        yield _setting("offload", True)
    if shares_out(recipe) > 1 and recipe.parallel.sampling == "whole":
        yield _setting("parallel.sampling", "sharded")
    if "vae.batch" in keys and recipe.vae.batch is None:
        yield _setting("vae.batch", 1)
    if recipe.train.ema is not None and not recipe.train.ema_in_host:
        yield _setting("train.ema_in_host", True)
    if not recipe.train.gradient_checkpointing:
        yield _setting("train.gradient_checkpointing", True)
    if in_blocks and recipe.lora is not None and recipe.quantize is None and not recipe.block_offload:
        yield _in_blocks(recipe)
    elif "quantize" in keys and may_quantise and not in_blocks and not recipe.model.startswith("gguf:"):
        yield Change("quantize.weights", "int8", lambda one: one.model_copy(update={"quantize": _INT8}))
    for key, rows in (("micro_batch", _micro(recipe)), ("rollout_batch", arithmetic(recipe).rows_at_once)):
        while rows > 1:
            rows = -(-rows // 2)
            yield _setting(f"train.{key}", rows)
    for name in _on_device(recipe):
        yield _setting(f"rewards.{name}.device", "cpu")


_INT8 = QuantizeKeys(weights="int8")


def _in_blocks(recipe: Recipe) -> Change:
    """block_offload, with what it needs."""
    train = recipe.train
    needs = {"gradient_checkpointing": True, "recompute_every": 1}
    lacking = [f"train.{key}={str(value).lower()}" for key, value in needs.items() if getattr(train, key) != value]

    def make(one: Recipe) -> Recipe:
        return one.model_copy(update={"block_offload": True, "train": one.train.model_copy(update=needs)})

    return Change("block_offload", " ".join(["true", *lacking]), make)


def _on_device(recipe: Recipe) -> list[str]:
    """The rewards whose weights are known and go to the run's device."""
    weights = {name: weights_of(spec.use, spec.args) for name, spec in recipe.rewards.items() if spec.device is None}
    return [name for name, one in weights.items() if one is not None and one.size and one.place == "device"]


def _setting(place: str, value: object) -> Change:
    def make(recipe: Recipe) -> Recipe:
        return _set(recipe, place.split("."), value)

    return Change(place, str(value).lower(), make)


def _set(whole: Any, path: Sequence[str], value: object) -> Any:
    head, *rest = path
    if isinstance(whole, dict):
        return whole | {head: _set(whole[head], rest, value) if rest else value}
    inner = _set(getattr(whole, head), rest, value) if rest else value
    return whole.model_copy(update={head: inner})


def lines(recipe: Recipe, prompts: Sequence[Prompt]) -> list[str]:
    """What the dry run says about cards, one line for each that is reached by the same changes."""
    found = fitting(recipe, prompts)
    if found is None:
        return ["not known, since activations are not estimated"]
    told = _told(found, "with")
    if any(change.key == "block_offload" for _, changes in found for change in changes or []):
        others = fitting(recipe, prompts, quantised=True) or []
        told += _told([(card, one) for card, one in others if _quantises(one)], "or with")
    return told


def _quantises(changes: Sequence[Change] | None) -> bool:
    return any(change.key == "quantize.weights" for change in changes or [])


def _told(found: Sequence[tuple[int, Sequence[Change] | None]], how: str) -> list[str]:
    """A line for each of the changes, with the cards that they reach."""
    by_changes: dict[str | None, list[int]] = {}
    for card, changes in found:
        by_changes.setdefault(None if changes is None else " ".join(map(str, changes)), []).append(card)
    told = []
    for changes, cards in by_changes.items():
        which = f"{', '.join(map(str, sorted(cards)))} GB"
        words = {None: "too small with any of these keys", "": "as it is"}.get(changes, f"{how} {changes}")
        told.append(f"{which:<24}{words}")
    return told
