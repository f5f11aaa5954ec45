"""Phases of one run: parts of it, one after the other, that differ in some values of the recipe.

    phases:
      - {iterations: 100}
      - {iterations: 200, overrides: {objective.kl: 0.01, train.lr: 1.0e-5}, reset: [reference, optimizer]}

Each phase has the recipe's own values but for its overrides, which are written like those of a command line. Where it
names another objective.preset, values that are those of the recipe's own preset, or the usual ones, follow it. Counts
of curves are those of the whole run.
"""

from collections.abc import Iterator, Mapping, Sequence
from typing import Literal

from flowrl.recipe.base import Strict, key
from flowrl.recipe.errors import RecipeError, show
from flowrl.untyped import JSON

# What a run looks up in every iteration. All else is built once.
MAY_CHANGE = ("objective", "advantage", "prompts", "views", "sampler.noise", "sampler.window", "sampler.levels")
MAY_CHANGE += ("generation.max_new_tokens", "generation.temperature", "generation.top_k", "generation.top_p")
MAY_CHANGE += ("generation.min_p", "generation.repetition_penalty")
TRAIN = ("prompts", "group", "epochs", "updates", "update_by", "micro_batch", "refill", "keep", "keep_by", "budget")
TRAIN += ("skip_truncated", "drop_silent", "lr", "max_grad_norm", "old", "sample_old", "pairs", "source", "store")
MAY_CHANGE += tuple(f"train.{name}" for name in TRAIN)
STAYS = ("objective.ratio", "objective.kl_mask", "objective.entropy_share", "objective.guidance_gradient")
STAYS += ("prompts.heldout", "prompts.source", "advantage.credit.kind", "objective.expert.source")
STAYS += ("objective.pairs.source",)
STORED = ("train.store.size", "train.store.age", "train.store.by")  # stay where a phase has a store at all


class Phase(Strict):
    """A part of a run.

    iterations: how long it is. overrides: dotted keys and their values, of what may change during a run. reset: what
    begins anew with it: reference, which becomes the model as it is then; optimizer, its moments; average and old, the
    averaged and the older weights.
    """

    iterations: int = key(..., "a whole number >= 1", ge=1)
    overrides: dict[str, JSON] = key({}, "dotted keys and their values")
    reset: list[Literal["reference", "optimizer", "average", "old"]] = key(
        [], "a list of reference, optimizer, average and old"
    )

    def words(self, first: int) -> str:
        """The phase in words; first: the number of its first iteration, from 1."""
        told = [f"{name} {value}" for name, value in self.overrides.items()]
        told += [f"new {', '.join(self.reset)}"] if self.reset else []
        return f"iterations {first} to {first + self.iterations - 1}: {'; '.join(told) or 'the recipe as it is'}"


def starts(phases: Sequence[Phase]) -> list[int]:
    """The iterations done before each phase."""
    return [sum(phase.iterations for phase in phases[:i]) for i in range(len(phases))]


def phase_at(phases: Sequence[Phase], iteration: int) -> int:
    """The phase of an iteration, both counted from 0; the last one also after its end."""
    return max(i for i, start in enumerate(starts(phases)) if start <= max(iteration, 0))


def refuse_fixed(changed: Mapping[str, list[JSON]], number: int) -> Iterator[RecipeError]:
    """Errors of a phase, counted from 0, that changes what a run builds once. changed: dotted key -> [before, now]."""
    for name, (before, now) in changed.items():
        allowed = any(name == may or name.startswith(f"{may}.") for may in MAY_CHANGE)
        if not allowed or name in STAYS or (name in STORED and None not in (before, now)):
            listed = "objective, advantage, prompts, train, generation, views and sampler.noise, window and levels"
            problem = f"got {show(now)}, but the recipe has {show(before)}, which stays during a run"
            yield RecipeError(f"phases.{number}.overrides.{name}", problem, f"remove it; accepted: keys of {listed}")
            return
