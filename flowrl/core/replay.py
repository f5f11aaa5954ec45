"""Which samples that are kept are trained again, and how often: weights of a draw from a store, as functions."""

import heapq
from collections.abc import Sequence

import torch
from torch import Tensor

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
