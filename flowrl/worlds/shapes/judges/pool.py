"""The pictures that judges are trained and tested on: renders, damaged renders, and what shapes-flux draws.

A render shows its scene. Generated pictures are read by the checker: if every object is clear and the composition is
allowed in training, the picture gets the caption of what it does show; a caption that it was asked for and failed is
its hardest negative, and a render of that caption joins the pool as its twin.
"""

import random
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from flowrl.untyped import Network, Pipeline
from flowrl.worlds.shapes.captions import Scene, draw, split
from flowrl.worlds.shapes.checker import detect, score
from flowrl.worlds.shapes.judges.damage import DAMAGES, apply_damages, draw_severities
from flowrl.worlds.shapes.judges.lookalikes import is_held_out, scene_of
from flowrl.worlds.shapes.model import CALL
from flowrl.worlds.shapes.pretrain import KIND_WEIGHTS
from flowrl.worlds.shapes.render import MAX_OBJECTS, layout, render

STEPS = (4, 6, 10)  # of the generator, in turn: the fewer, the worse
CHUNK = 100


@dataclass(frozen=True)
class PicturePool:
    """Training pictures with what is known about them.

    images: uint8 [N, 3, 32, 32]. scenes: what each shows, None if unknown. asked: what it was drawn for and does not
    show. twin: int64 [N], the position of a render of what was asked, -1 for none. spots: float32 [N, 4, 2], centres
    (x, y) of the objects in the scene's order, infinite for absent objects, NaN for unknown ones.
    """

    images: Tensor
    scenes: list[Scene | None]
    asked: list[Scene | None]
    twin: Tensor
    spots: Tensor

    def __len__(self) -> int:
        return len(self.scenes)


def training_pool(pipe: Pipeline, path: Path, *, renders: int, drawn: int, seed: int) -> PicturePool:
    """Renders of training scenes, a third of them as the generator's autoencoder returns them, and generated pictures.

    Saved to the file `path`, from which it is read the next time.
    """
    if path.exists():
        held = torch.load(path, weights_only=True)
        scenes, asked = ([m and Scene.from_meta(m) for m in held[name]] for name in ("scenes", "asked"))
        return PicturePool(held["images"], scenes, asked, held["twin"], held["spots"])
    rng, (train, _) = random.Random(seed), split()
    scenes: list[Scene | None] = [*draw(train, renders, rng, KIND_WEIGHTS)]
    truth, spots = render_with_centres([s for s in scenes if s is not None], rng)
    images = [reconstruct(pipe.vae, truth[: renders // 3]), truth[renders // 3 :]]
    wanted = draw(train, drawn, rng, KIND_WEIGHTS)
    pictures = sample(pipe, wanted, seed)
    shown = [describe_scene(p) for p in _channels_last(pictures)]
    right = [bool(score(p, s)[0]) for p, s in zip(_channels_last(pictures), wanted, strict=True)]
    missed = [s for s, r in zip(wanted, right, strict=True) if not r]
    place = iter(range(renders + drawn, renders + drawn + len(missed)))
    twin = [-1] * renders + [-1 if r else next(place) for r in right] + [-1] * len(missed)
    captioned = [
        s if r else (None if t is None or is_held_out(t) else t) for s, r, t in zip(wanted, right, shown, strict=True)
    ]
    repaired, of_repaired = render_with_centres(missed, rng)
    pool = PicturePool(
        images=(torch.cat([*images, pictures, repaired]) * 255).round().byte(),
        scenes=[*scenes, *captioned, *missed],
        asked=[None] * renders + [None if r else s for s, r in zip(wanted, right, strict=True)] + [None] * len(missed),
        twin=torch.tensor(twin),
        spots=torch.cat([spots, torch.full((drawn, MAX_OBJECTS, 2), torch.nan), of_repaired]),
    )
    metas = {name: [s and s.meta() for s in getattr(pool, name)] for name in ("scenes", "asked")}
    torch.save({"images": pool.images, "twin": pool.twin, "spots": pool.spots} | metas, path)
    return pool


def render_with_centres(scenes: list[Scene], rng: random.Random) -> tuple[Tensor, Tensor]:
    """Pictures [N, 3, 32, 32] of the scenes and the centres of their objects [N, 4, 2], as in Pool."""
    images, spots = [], []
    for start in range(0, len(scenes), 500):
        again = random.Random()
        again.setstate(rng.getstate())  # the layout is the first that a render draws
        center = layout(scenes[start : start + 500], again)[1]
        spots.append(center.where(center > -50, torch.inf))
        images.append(render(scenes[start : start + 500], rng))
    return torch.cat(images), torch.cat(spots)


@torch.no_grad()
def sample(pipe: Pipeline, scenes: list[Scene], seed: int) -> Tensor:
    """One picture [N, 3, 32, 32] for each scene, by 4, 6 and 10 Euler steps in turn."""
    pictures = []
    for k, start in enumerate(range(0, len(scenes), CHUNK)):
        captions = [s.caption for s in scenes[start : start + CHUNK]]
        generator = torch.Generator().manual_seed(seed * 1_000_003 + start)
        steps = STEPS[k % len(STEPS)]
        drawn = pipe(prompt=captions, num_inference_steps=steps, generator=generator, output_type="pt", **CALL)
        pictures.append(drawn.images.float())
    return torch.cat(pictures)


@torch.no_grad()
def reconstruct(vae: Network, images: Tensor) -> Tensor:
    """The pictures [N, 3, H, W] as the autoencoder returns them: as soft as everything that the generator draws."""
    parts = [vae.decode(vae.encode(x * 2 - 1).latent_dist.mode()).sample / 2 + 0.5 for x in images.split(500)]
    return torch.cat(parts).clamp(0, 1)


def describe_scene(image: np.ndarray) -> Scene | None:
    """What a picture [H, W, 3] shows, without relations; None if an object is unclear or no caption describes it."""
    objects = sorted(((f.color, f.shape) for f in detect(image)), key=str)
    kinds = sorted(set(objects), key=lambda o: (-objects.count(o), o))
    counts = [objects.count(kind) for kind in kinds]
    clear = all(shape != "?" for _, shape in objects) and len({c for c, _ in kinds}) == len(kinds)
    if not clear or not 1 <= len(kinds) <= 2 or sum(counts) > 4 or counts[1:] not in ([], [1]):
        return None
    return scene_of(dict(zip(kinds, counts, strict=True)), None)


def spoil(images: Tensor, seed: int, share: float = 0.5, kinds: Sequence[str] = DAMAGES) -> tuple[Tensor, Tensor]:
    """The uint8 pictures [N, 3, H, W] as floats in [0, 1], a share of them damaged, and their severities [N, 5].

    kinds: of DAMAGES; any other has the severity 0.
    """
    rng, generator = random.Random(seed), torch.Generator().manual_seed(seed)
    severities = draw_severities(len(images), rng) * torch.tensor([float(kind in kinds) for kind in DAMAGES])
    severities[torch.rand(len(images), generator=generator) >= share] = 0
    x = images.float() / 255
    hurt = severities.any(1)
    if hurt.any():
        x[hurt] = apply_damages(x[hurt], severities[hurt], generator)
    return x, severities


def _channels_last(pictures: Tensor) -> np.ndarray:
    return pictures.permute(0, 2, 3, 1).numpy()
