"""Stage 1: the image tower learns what is in each patch of 8 x 8 pixels of what it sees, from dense labels.

Which colours are there, which shape and size the object has that covers most of the patch, and where on the picture the
patch is. A shape is asked for where it can be told: of large objects on whole pictures, of small ones after two zooms.
The linear heads of this stage are not part of the model.
"""

import random
from pathlib import Path

import torch
from torch import Tensor, nn
from torch.nn import functional

from flowrl.untyped import Network
from flowrl.worlds.shapes_look.model import MEAN, SEEN, STD, TOWER
from flowrl.worlds.shapes_look.pool import Pool, paths_at, spoil
from flowrl.worlds.shapes_look.scenes import COLORS, SHAPES
from flowrl.worlds.stage import Cycle, Stage

BATCH = {0: 24, 1: 16, 2: 32}  # views of a step by level: whole pictures, quadrants, quadrants of quadrants
AIMED = 0.8  # share of the second zooms that show a small object
THERE = 0.8  # pixels of a view that an object must cover in a patch to be there
LR = 2e-3
PLACES = 0.3  # weight of the places' loss


class Heads(nn.Module):
    """Linear readers of a patch: colours that are there, shape, size, place."""

    def __init__(self) -> None:
        super().__init__()
        self.sizes = (len(COLORS), len(SHAPES), 2, SEEN)
        self.read = nn.Linear(TOWER, sum(self.sizes))

    def forward(self, features: Tensor) -> tuple[Tensor, ...]:
        """Logits [B, patches, N] of each of the four."""
        return self.read(features).split(self.sizes, -1)


def features_of(eye: Network, pixels: Tensor) -> Tensor:
    """What the language model is given of pictures [B, 3, 32, 32] in [0, 1]: float32 [B, 16, 96]."""
    seen = eye(pixel_values=(pixels - MEAN) / STD, output_hidden_states=True)
    return seen.hidden_states[-1][:, 1:]


def draw_batch(pool: Pool, rng: random.Random, batch: dict[int, int]) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """(pixels [B, 3, 32, 32], area [B, objects, 4, 4], scenes [B], level [B]) of random views, some mirrored."""
    views: list[tuple[Tensor, Tensor]] = []
    index, levels = [], []
    for level, number in batch.items():
        chosen: dict[tuple[str, ...], list[int]] = {}
        for _ in range(number):
            i = rng.randrange(len(pool))
            small = [o for o in pool.scenes[i] if o.size == "small"]
            aimed = level > 0 and small and rng.random() < AIMED
            path = rng.choice(small).quadrants[:level] if aimed else rng.choice(paths_at(level))
            chosen.setdefault(tuple(path), []).append(i)
        for path, scenes in chosen.items():
            views.append(pool.views(torch.tensor(scenes), path))
            index += scenes
            levels += [level] * len(scenes)
    pixels, area = (torch.cat([view[k] for view in views]) for k in (0, 1))
    mirrored = torch.tensor([rng.random() < 0.5 for _ in index])[:, None, None, None]
    pixels, area = (torch.where(mirrored, x.flip(-1), x) for x in (pixels, area))
    return pixels, area, torch.tensor(index), torch.tensor(levels)


def losses(heads: Heads, features: Tensor, pool: Pool, area: Tensor, index: Tensor, level: Tensor) -> dict[str, Tensor]:
    """The loss of each head, and `read`, the share of the readable shapes that is right; all 0-d."""
    color, shape, size, place = heads(features)
    area = area.flatten(2)  # [B, objects, patches]
    there = (area > THERE).float()
    colors = functional.one_hot(pool.color[index], len(COLORS)).float()  # [B, objects, colours]
    present = torch.einsum("bop,boc->bpc", there, colors).clamp(max=1)
    most, which = area.max(1)  # [B, patches]
    covered = most > THERE
    small = pool.small[index].gather(1, which)
    can_be_told = covered & torch.where(small.bool(), level[:, None] == 2, level[:, None] == 0)
    shapes = pool.shape[index].gather(1, which).masked_fill(~can_be_told, -100)
    places = torch.arange(SEEN).repeat(len(index))
    return {
        "color": functional.binary_cross_entropy_with_logits(color, present),
        "shape": functional.cross_entropy(shape.flatten(0, 1), shapes.flatten(), ignore_index=-100),
        "size": functional.cross_entropy(size.flatten(0, 1), small.masked_fill(~covered, -100).flatten()),
        "place": functional.cross_entropy(place.flatten(0, 1), places),
        "read": (shape.argmax(-1) == shapes)[can_be_told].float().mean(),
    }


def train(
    eye: Network,
    pool: Pool,
    path: Path,
    *,
    cycles: tuple[Cycle, ...],
    seed: int,
) -> Heads:
    """Fits the tower to the labels of the pool; resumes from `path`. Leaves the averaged weights in it, and gives the
    heads that read it."""
    heads = Heads()
    stage = Stage("image tower", nn.ModuleDict({"eye": eye, "heads": heads}), path, cycles=cycles, lr=LR, average=0.995)

    def loss(step: int) -> Tensor:
        rng = random.Random(f"{seed}/eye/{step}")
        pixels, area, index, level = draw_batch(pool, rng, BATCH)
        noisy = spoil(pixels, torch.Generator().manual_seed(rng.randrange(2**31)))
        found = losses(heads, features_of(eye, noisy), pool, area, index, level)
        return 2 * found["color"] + found["shape"] + found["size"] + PLACES * found["place"]

    stage.run(loss, lambda step: measure(eye, heads), every=400)
    stage.swap()
    return heads


@torch.no_grad()
def measure(eye: Network, heads: Heads) -> str:
    """The losses on scenes that were not trained on, in words."""
    pool = Pool("eye/unseen", 200)
    pixels, area, index, level = draw_batch(pool, random.Random(5), {0: 200, 1: 100, 2: 200})
    found = losses(heads, features_of(eye, pixels), pool, area, index, level)
    return "  ".join(f"{name} {value:.3f}" for name, value in found.items())
