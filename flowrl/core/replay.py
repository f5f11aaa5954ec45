"""Samples of earlier iterations that are trained again: a store of them, and how they are drawn."""

import heapq
from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor

from flowrl.contracts import Rollout
from flowrl.core.selection import without_rows

RESAMPLINGS = ("pow", "max_min", "max_random")


def resampling_weights(scores: Tensor, kind: str = "pow", power: float = 2.0) -> Tensor:
    """What each sample of a batch weighs when the batch is drawn anew from itself, with replacement: float64 [B].

    pow: |score| ** power. max_min: 1 for those of the highest and of the lowest score, 0 for others. max_random: 0.4
    for those of the highest, 0.1 for others. 1e-8 is added to each. PF-PPO (arXiv:2409.06957), as in verl.
    Raises ValueError for another kind.
    """
    x = scores.detach().to("cpu", torch.float64)
    if kind == "pow":
        weight = x.abs() ** power
    elif kind == "max_min":
        weight = ((x == x.max()) | (x == x.min())).double()
    elif kind == "max_random":
        weight = torch.where(x == x.max(), 0.4, 0.1).double()
    else:
        raise ValueError(f"kind={kind!r}: choose one of {', '.join(RESAMPLINGS)}")
    return weight + 1e-8


def drawn_counts(weights: Tensor, number: int, generator: torch.Generator) -> Tensor:
    """How often each of B comes among so many draws with replacement, by these weights [B]: int64 [B]."""
    chosen = torch.multinomial(weights.double(), number, replacement=True, generator=generator)
    return torch.bincount(chosen, minlength=len(weights))


def resampled(
    rollout: Rollout, adv: Tensor, scores: Tensor, kind: str, power: float, generator: torch.Generator
) -> tuple[Rollout, Tensor]:
    """The rollout with as many rows as can be scored drawn anew from these, and their advantages, 0 for the others.

    scores [R], NaN where there is none. It has `counts`; rows that are not drawn are masked.
    Raises ValueError where rows are not samples.
    """
    if rollout.credit is not None:
        raise ValueError("only rows that are samples can be drawn anew: set train.resample=null")
    known = ~scores.isnan().cpu()
    counts = torch.zeros(len(known), dtype=torch.int64)
    if known.any():
        weights = resampling_weights(scores.cpu()[known], kind, power)
        counts[known] = drawn_counts(weights, int(known.sum()), generator)
    rollout, adv = without_rows(rollout, adv, counts == 0)
    return replace(rollout, counts=counts), adv


def best_kept(scores: Sequence[float], size: int) -> list[int]:
    """The positions of the `size` best scores, in order: what a store of that size holds after all were offered.

    Of equal scores the earlier stay. A replay of groups by their score (TRL's GRPO with a replay buffer).
    """
    heap: list[tuple[float, int]] = []
    for i, score in enumerate(scores):
        entry = (score, -i)
        if len(heap) < size:
            heapq.heappush(heap, entry)
        elif entry > heap[0]:
            heapq.heapreplace(heap, entry)
    return sorted(-i for _, i in heap)


def draw_shares(values: Tensor) -> Tensor:
    """The chance of each of a store's samples, by the magnitude of its value, float64 [B]: the selective sample buffer
    of Skywork R1V2 draws by |advantage| (arXiv:2504.16656, section 3.3), TRL's replay buffer by score.

    Where all are 0, all alike.
    """
    x = values.detach().to("cpu", torch.float64).abs()
    return x / x.sum() if x.sum() > 0 else torch.full_like(x, 1 / max(len(x), 1))


class SampleStore:
    """Samples with an advantage, of the last iterations, drawn in proportion to its magnitude or all alike.

    size: at most so many; of more, the newest stay, or those of the largest magnitude (keep: largest; TRL's replay
    buffer). age: how many iterations back they may come from. by: advantage (Skywork
    R1V2) or uniform. It is part of a run's checkpoint; a draw depends on what is held, the seed and the iteration.
    """

    def __init__(self, size: int, age: int, by: str = "advantage", keep: str = "newest"):
        self.size, self.age, self.by, self.keep = size, age, by, keep
        self.held: list[dict[str, Any]] = []

    def add(self, samples: Sequence[Mapping[str, Any]], adv: Tensor, iteration: int) -> None:
        """Keeps the samples [B], plain values by name, whose advantage [B] is not 0."""
        for sample, value in zip(samples, adv.tolist(), strict=True):
            if value:
                self.held.append({**sample, "adv": value, "at": iteration})
        held = [sample for sample in self.held if iteration - sample["at"] < self.age]
        if self.keep == "largest":
            held = [held[i] for i in best_kept([abs(sample["adv"]) for sample in held], self.size)]
        self.held = held[-self.size :]

    def draw(self, number: int, seed: int, iteration: int) -> list[dict[str, Any]]:
        """So many different samples, or all that are held."""
        if not self.held or number < 1:
            return []
        values = torch.tensor([sample["adv"] for sample in self.held])
        shares = draw_shares(values if self.by == "advantage" else torch.ones_like(values))
        generator = torch.Generator().manual_seed((seed * 1_000_003 + iteration) % 2**63)
        chosen = torch.multinomial(shares, min(number, len(self.held)), generator=generator)
        return [self.held[i] for i in chosen.tolist()]

    def state_dict(self) -> dict[str, Any]:
        """What is held."""
        return {"held": [dict(sample) for sample in self.held]}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Restores what `state_dict` gave."""
        self.held = [dict(sample) for sample in state["held"]]
