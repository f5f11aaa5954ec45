"""What a pipeline returned, as samples and the credit that their rewards give to rows."""

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from flowrl.contracts import Credit, Prompt, Samples
from flowrl.policies.errors import PolicyError
from samplers.plan import Tree
from samplers.trees import credit_weights, peers


def pictures_of(output: Any, pipeline: str) -> Tensor:
    """Images [B, 3, H, W] or video [B, T, 3, H, W], float32, of what a pipeline returned for output_type="pt".

    Raises PolicyError, naming the pipeline, for anything else.
    """
    first = output[0] if isinstance(output, tuple) else next(iter(output.values()))
    if not isinstance(first, Tensor):
        first = torch.as_tensor(first)
    if first.dim() not in (4, 5):
        raise PolicyError(
            f"{pipeline} returned {tuple(first.shape)} for output_type='pt'; images [B, 3, H, W] or video "
            "[B, T, 3, H, W] were expected"
        )
    return first.float()


def samples_of(prompts: Sequence[Prompt], each: int, output: Tensor) -> Samples:
    """`each` samples of each prompt, from their pictures or videos, prompt by prompt."""
    of = [p for p in prompts for _ in range(each)]
    group = torch.arange(len(prompts)).repeat_interleave(each)
    return Samples(of, group, video=output) if output.dim() == 5 else Samples(of, group, images=output)


def credit_of(tree: Tree, behave: Tensor) -> Credit | None:
    """How rewards reach the rows of a tree; None where row i leads to sample i alone and all rows are peers."""
    rows = set(tree.rows)  # on the way to each sample, where it is straight, there is one
    straight = [[row] for row in tree.rows] == [[i for i in tree.path(leaf) if i in rows] for leaf in tree.leaves]
    alike = len({tree.segments[i].peers for i in tree.rows}) == len({tree.segments[i].view for i in tree.leaves}) == 1
    if not tree.rows or (straight and alike):
        return None
    edges = None
    if tree.credit == "path_probability":
        begin = [tree.segments[i].begin for i in tree.rows]
        column = torch.tensor([tree.trained.index(at) if at in tree.trained else 0 for at in begin])
        drawn = torch.tensor([at in tree.trained for at in begin])
        each = behave.unflatten(0, (-1, len(tree.rows)))
        edges = each.gather(2, column[None, :, None].expand(len(each), -1, 1))[..., 0] * drawn
    return Credit(credit_weights(tree, edges), peers(tree), tree.by_row)
