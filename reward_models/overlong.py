"""DAPO's soft punishment of completions that come near their length limit (arXiv:2503.14476, eq. 13)."""

import torch
from torch import Tensor

from flowrl.contracts import Samples


def soft_punishment(lengths: Tensor, *, limit: int, margin: int) -> Tensor:
    """0 up to limit - margin, then linear to -1 at the limit and beyond, float32 of the shape of lengths.

    The paper's limit is 20480 tokens and its margin 4096. Raises ValueError where margin is not in [1, limit].
    """
    if not 1 <= margin <= limit:
        raise ValueError(f"margin={margin}: accepted is 1 to the limit, {limit}")
    return ((limit - margin - lengths.float()) / margin).clamp(-1.0, 0.0)


def overlong(samples: Samples, *, limit: int, margin: int) -> Tensor:
    """0 for a completion that ends `margin` tokens before the limit, falling to -1 where it reaches it; float32 [B].

    limit is generation.max_new_tokens, or less. It is added to a task's reward by its weight.
    """
    if samples.lengths is None:
        raise ValueError("the overlong reward reads how many tokens were drawn; this model does not say")
    return soft_punishment(samples.lengths, limit=limit, margin=margin).to(torch.float32)
