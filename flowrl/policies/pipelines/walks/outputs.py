"""The samples of a rollout, and how their rewards are credited to rows."""

from collections.abc import Sequence

import torch
from torch import Tensor

from flowrl.contracts import Credit, Prompt, Samples
from flowrl.policies.pipelines.calls.layouts import Media
from samplers.plan import Tree
from samplers.trees import credit_weights, peers


def samples_of(prompts: Sequence[Prompt], each: int, media: Media, rate: int | None) -> Samples:
    """`each` samples per prompt, prompt by prompt, from their pictures, video and sound. rate: of the sound, in Hz."""
    of = [p for p in prompts for _ in range(each)]
    group = torch.arange(len(prompts)).repeat_interleave(each)
    return Samples(
        of,
        group,
        images=media.get("images"),
        video=media.get("video"),
        audio=media.get("audio"),
        sample_rate=rate if "audio" in media else None,
    )


def credit_of(tree: Tree, rollout_logp: Tensor) -> Credit | None:
    """How rewards reach the rows of a tree; None if row i leads to sample i alone and all rows are peers.

    rollout_logp: [R, K] of the rollout, for credit by path probability.
    """
    rows = set(tree.rows)  # of a straight walk, one lies on the way to each sample
    straight = [[row] for row in tree.rows] == [[i for i in tree.path(leaf) if i in rows] for leaf in tree.leaves]
    alike = len({tree.segments[i].peers for i in tree.rows}) == len({tree.segments[i].view for i in tree.leaves}) == 1
    if not tree.rows or (straight and alike):
        return None
    edges = None
    if tree.credit == "path_probability":
        begin = [tree.segments[i].begin for i in tree.rows]
        column = torch.tensor([tree.trained.index(at) if at in tree.trained else 0 for at in begin])
        drawn = torch.tensor([at in tree.trained for at in begin])
        each = rollout_logp.unflatten(0, (-1, len(tree.rows)))
        edges = each.gather(2, column[None, :, None].expand(len(each), -1, 1))[..., 0] * drawn
    return Credit(credit_weights(tree, edges), peers(tree), tree.by_row)
