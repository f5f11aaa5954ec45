"""The pictures that judges are trained and tested on: renders, spoilt renders, and what shapes-flux draws.

A render shows its scene. What the generator draws is looked at by the checker: where every object is clear and the
composition is one that training may show, the picture gets the caption of what it does show; a caption that it was
asked for and failed is its hardest wrong one, and a render of that caption goes into the pool beside it.
"""

import random
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from flowrl.worlds.shapes.captions import Scene, draw, split
from flowrl.worlds.shapes.checker import detect, score
from flowrl.worlds.shapes.judges.damage import damaged, draw_severities
from flowrl.worlds.shapes.judges.lookalikes import is_held_out, scene_of
from flowrl.worlds.shapes.model import CALL
from flowrl.worlds.shapes.pretrain import KIND_WEIGHTS
from flowrl.worlds.shapes.render import MAX_OBJECTS, layout, render

STEPS = (4, 6, 10)  # of the generator, in turn: the fewer, the worse
CHUNK = 100


@dataclass(frozen=True)
class Pool:
    """images uint8 [N, 3, 32, 32]. scenes: what each shows, None where it can not be said. asked: what it was drawn
    for and does not show. twin int64 [N]: the place of a render of what was asked, -1 where there is none. spots
    float32 [N, 4, 2]: centres (x, y) of the objects, in the scene's order, infinite where there is none; NaN where
    unknown."""

    images: Tensor
    scenes: list[Scene | None]
    asked: list[Scene | None]
    twin: Tensor
    spots: Tensor

    def __len__(self) -> int:
        return len(self.scenes)


def training_pool(pipe: Any, path: Path, *, renders: int, drawn: int, seed: int) -> Pool:
    """Renders of training scenes, a third of them as the generator's autoencoder returns them, and pictures drawn.

    Kept in the file `path`, from which it is read the next time.
    """
    if path.exists():
        held = torch.load(path, weights_only=True)
        scenes, asked = ([m and Scene.from_meta(m) for m in held[name]] for name in ("scenes", "asked"))
        return Pool(held["images"], scenes, asked, held["twin"], held["spots"])
    rng, (train, _) = random.Random(seed), split()
    scenes: list[Scene | None] = [*draw(train, renders, rng, KIND_WEIGHTS)]
    truth, spots = rendered([s for s in scenes if s is not None], rng)
    images = [through(pipe.vae, truth[: renders // 3]), truth[renders // 3 :]]
    wanted = draw(train, drawn, rng, KIND_WEIGHTS)
    pictures = sample(pipe, wanted, seed)
    shown = [described(p) for p in _channels_last(pictures)]
    right = [bool(score(p, s)[0]) for p, s in zip(_channels_last(pictures), wanted, strict=True)]
    missed = [s for s, r in zip(wanted, right, strict=True) if not r]
    place = iter(range(renders + drawn, renders + drawn + len(missed)))
    twin = [-1] * renders + [-1 if r else next(place) for r in right] + [-1] * len(missed)
    told = [
        s if r else (None if t is None or is_held_out(t) else t) for s, r, t in zip(wanted, right, shown, strict=True)
    ]
    repaired, of_repaired = rendered(missed, rng)
    pool = Pool(
        images=(torch.cat([*images, pictures, repaired]) * 255).round().byte(),
        scenes=[*scenes, *told, *missed],
        asked=[None] * renders + [None if r else s for s, r in zip(wanted, right, strict=True)] + [None] * len(missed),
        twin=torch.tensor(twin),
        spots=torch.cat([spots, torch.full((drawn, MAX_OBJECTS, 2), torch.nan), of_repaired]),
    )
    metas = {name: [s and s.meta() for s in getattr(pool, name)] for name in ("scenes", "asked")}
    torch.save({"images": pool.images, "twin": pool.twin, "spots": pool.spots} | metas, path)
    return pool


def rendered(scenes: list[Scene], rng: random.Random) -> tuple[Tensor, Tensor]:
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
def sample(pipe: Any, scenes: list[Scene], seed: int) -> Tensor:
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
def through(vae: Any, images: Tensor) -> Tensor:
    """The pictures as the autoencoder returns them: with the softness of all that the generator draws."""
    parts = [vae.decode(vae.encode(x * 2 - 1).latent_dist.mode()).sample / 2 + 0.5 for x in images.split(500)]
    return torch.cat(parts).clamp(0, 1)


def described(image: Any) -> Scene | None:
    """What a picture [H, W, 3] shows, without relations; None where an object is unclear or the world has no words."""
    objects = sorted(((f.color, f.shape) for f in detect(image)), key=str)
    kinds = sorted(set(objects), key=lambda o: (-objects.count(o), o))
    counts = [objects.count(kind) for kind in kinds]
    clear = all(shape != "?" for _, shape in objects) and len({c for c, _ in kinds}) == len(kinds)
    if not clear or not 1 <= len(kinds) <= 2 or sum(counts) > 4 or counts[1:] not in ([], [1]):
        return None
    return scene_of(dict(zip(kinds, counts, strict=True)), None)


def spoilt(images: Tensor, seed: int, share: float = 0.5) -> tuple[Tensor, Tensor]:
    """Float pictures of uint8 ones, that share of them damaged, and their severities [N, 5]."""
    rng, generator = random.Random(seed), torch.Generator().manual_seed(seed)
    severities = draw_severities(len(images), rng)
    severities[torch.rand(len(images), generator=generator) >= share] = 0
    x = images.float() / 255
    hurt = severities.any(1)
    if hurt.any():
        x[hurt] = damaged(x[hurt], severities[hurt], generator)
    return x, severities


def _channels_last(pictures: Tensor) -> Any:
    return pictures.permute(0, 2, 3, 1).numpy()
