"""Floating-point operations of an iteration by phase, and what they would take cards at a share of their peak."""

from collections.abc import Sequence
from dataclasses import asdict, dataclass, replace

from flowrl.contracts import Prompt
from flowrl.planning.costs import arithmetic
from flowrl.planning.remembered import look_up
from flowrl.planning.sizes.memory import configs_of, size_query
from flowrl.planning.sizes.query import SizeQuery
from flowrl.planning.sizes.scoring import scoring, told
from flowrl.recipe.schema import Recipe
from flowrl.terminal import duration_text
from flowrl.untyped import JSON

# Dense products in bfloat16, sums in float32, in 1e12 FLOP/s, of the cards of fits.py. RTX 4090, RTX 5090: appendices
# of NVIDIA's Ada and RTX Blackwell architecture papers; L40S, H100 SXM, H200 SXM: their data sheets, halves of what
# these give with sparsity
PEAKS = {24: 165.2, 32: 209.5, 48: 362.0, 80: 989.4, 141: 989.4}
SHARE = 0.4  # of it: what a training run of large products may reach; an assumption


@dataclass(frozen=True)
class Flops:
    """Operations of an iteration by phase, a multiply and an add being two; left_out: what is not among them. bound:
    phases whose time is that of memory, so that operations say nothing about it. ranks: who share them out."""

    phases: dict[str, int]
    left_out: str
    bound: tuple[str, ...] = ()
    ranks: int = 1

    @property
    def total(self) -> int:
        """Those of all phases."""
        return sum(self.phases.values())

    def seconds(self, card: int) -> float:
        """Of an iteration on such a card, or on as many as there are ranks: an estimate, without what is bound."""
        timed = sum(number for name, number in self.phases.items() if name not in self.bound)
        return timed / self.ranks / (PEAKS[card] * 1e12 * SHARE)


def denoising(recipe: Recipe, prompts: Sequence[Prompt]) -> Flops | None:
    """Those of a denoiser's recipe; None where no config of its model is at hand, or its calls are not known.

    Calls are counted one by one on the meta device, each times the number that the plan has of them: the denoiser's of
    one row, guidance included, without gradient and with it, the backward pass and blocks that are computed again
    included; what encodes a prompt; the decoder; the networks of rewards (scoring.py). Prompts
    count as if none of them was remembered.
    """
    configs = configs_of(recipe.model)
    if configs is None:
        return None
    query, costs = size_query(recipe, prompts), arithmetic(recipe)
    drawn = _call(recipe, query, configs)
    looked = drawn
    if recipe.sampler.look:
        looked = _call(recipe, replace(query, pipeline=recipe.pipeline | recipe.sampler.look), configs)
    if drawn is None or looked is None:
        return None
    scored = scoring(recipe, query.text)
    decoded = drawn["decoding"] * (costs.samples + 2 * costs.decodes)
    phases = {
        "encoding": drawn["encoding"] * recipe.train.drawn,
        "rollout": drawn["forward"] * costs.rollout_forwards,
        "decoding": decoded,
        "scoring": scored.flops,
        "training": looked["training"] * costs.train_forwards
        + looked["forward"] * costs.unlearned_forwards
        + scored.gradients,
    }
    return Flops({name: n for name, n in phases.items() if n}, told(scored), ranks=recipe.parallel.ranks or 1)


def _call(recipe: Recipe, query: SizeQuery, configs: JSON) -> dict[str, int] | None:
    """See `measure_flops`."""
    train = recipe.train
    again = train.recompute_every if train.gradient_checkpointing else 0

    def measured() -> JSON:
        from flowrl.planning.sizes.measure import measure_flops

        return measure_flops(query, again, tiling=recipe.vae.tiling)

    return look_up("flops", [asdict(query), again, recipe.vae.tiling, configs], measured)


def lines(found: Flops | None) -> list[str]:
    """What the dry run says about them."""
    if found is None:
        return []
    listed = ", ".join(f"{name} {_text(number)}" for name, number in found.phases.items())
    by_time: dict[str, list[str]] = {}
    for card in PEAKS:
        seconds = found.seconds(card)
        by_time.setdefault(duration_text(seconds) if seconds >= 1 else "less than 1 s", []).append(str(card))
    times = "; ".join(f"{', '.join(cards)} GB {time}" for time, cards in by_time.items())
    whose = f", each of {found.ranks} ranks its part" if found.ranks > 1 else ""
    without = f"; not in it: {found.left_out}" if found.left_out else ""
    bound = f"; without {' and '.join(found.bound)}, which memory bounds" if found.bound else ""
    return [
        f"compute     {_text(found.total)} an iteration: {listed}{without}",
        f"            at {SHARE:.0%} of a card's dense bfloat16 peak, an ESTIMATE{whose}: {times}{bound}",
    ]


def _text(number: float) -> str:
    """Operations with their scale."""
    for size, unit in ((1e18, "EFLOP"), (1e15, "PFLOP"), (1e12, "TFLOP"), (1e9, "GFLOP")):
        if number >= size:
            return f"{number / size:.3g} {unit}"
    return f"{number / 1e6:.3g} MFLOP"
