"""shapes-aesthetic: an aesthetic head of LAION's form, linear layers without activations, on shapes-clip.

It learns the rating of damage.py from renders, half of them damaged. Tensors are named as in LAION's
sac+logos+ava1-l14-linearMSE.pth: layers.0, 2, 4, 6 and 7.
"""

import random
from pathlib import Path

import torch
from safetensors.torch import load_file, save_file
from torch import Tensor, nn

from flowrl.untyped import Network
from flowrl.worlds.shapes.captions import Scene, draw, split
from flowrl.worlds.shapes.judges.clip import WIDTH, normalise
from flowrl.worlds.shapes.judges.damage import apply_damages, draw_severities, rating
from flowrl.worlds.shapes.judges.pool import PicturePool
from flowrl.worlds.shapes.pretrain import KIND_WEIGHTS
from flowrl.worlds.shapes.render import render
from flowrl.worlds.stage import Stage

WIDTHS = (WIDTH, 64, 32, 16, 8, 1)
PLACES = (0, 2, 4, 6, 7)  # dropout stands between
FILE = "head.safetensors"
STEPS = 3000


def make_head() -> nn.ModuleDict:
    """An untrained head; its caller seeds torch."""
    pairs = zip(PLACES, WIDTHS, WIDTHS[1:], strict=False)
    return nn.ModuleDict({"layers": nn.ModuleDict({str(k): nn.Linear(a, b) for k, a, b in pairs})})


def rate(head: nn.ModuleDict, embeddings: Tensor) -> Tensor:
    """Ratings [N] of embeddings [N, 96] of length 1."""
    x = embeddings
    for layer in head["layers"].values():  # pyright: ignore[reportAttributeAccessIssue, reportCallIssue]
        x = layer(x)
    return x[:, 0]


@torch.no_grad()
def embed_pictures(model: Network, images: Tensor) -> Tensor:
    """The embeddings [N, 96], of length 1, of pictures [N, 3, 32, 32]."""
    parts = [model.encode_image(normalise(x), normalize=True) for x in images.split(500)]
    return torch.cat(parts)


def spoilt_renders(scenes: list[Scene], seed: int) -> tuple[Tensor, Tensor]:
    """Renders of the scenes [N, 3, 32, 32], most of them damaged, and their ratings [N]."""
    rng = random.Random(seed)
    severities = draw_severities(len(scenes), rng)
    clean = torch.cat([render(scenes[i : i + 500], rng) for i in range(0, len(scenes), 500)])
    return apply_damages(clean, severities, torch.Generator().manual_seed(seed)), rating(severities)


def train(
    head: nn.ModuleDict, model: Network, pool: PicturePool, renders: int, path: Path, *, steps: int, seed: int
) -> None:
    """Fits the head on the pool's first `renders` pictures, each damaged once more; resumes from `path`."""
    rng = random.Random(seed)
    severities = draw_severities(renders, rng)
    images = pool.images[:renders].float() / 255
    generator = torch.Generator().manual_seed(seed)
    pairs = zip(images.split(500), severities.split(500), strict=True)
    known = embed_pictures(model, torch.cat([apply_damages(x, s, generator) for x, s in pairs]))
    wanted = rating(severities)
    stage = Stage("shapes-aesthetic", head, path, cycles=[(steps, 0.5)], lr=3e-3, average=0.99)

    def loss(step: int) -> Tensor:
        index = torch.randint(renders, (256,), generator=torch.Generator().manual_seed(seed * 1_000_003 + step))
        return (rate(head, known[index]) - wanted[index]).square().mean()

    stage.run(loss)
    stage.swap()


def exam(number: int, seed: int, *, seen: bool = False) -> tuple[Tensor, Tensor]:
    """Damaged renders [N, 3, 32, 32] of held-out scenes (or of training scenes), and their ratings [N]."""
    pool = split()[0 if seen else 1]
    weights = KIND_WEIGHTS if seen else {k: w for k, w in KIND_WEIGHTS.items() if k != "single"}
    return spoilt_renders(draw(pool, number, random.Random(seed), weights), seed)


def save(head: nn.ModuleDict, out: Path) -> None:
    """Writes the state dict in float16."""
    out.mkdir(parents=True, exist_ok=True)
    save_file({name: tensor.half().contiguous() for name, tensor in head.state_dict().items()}, out / FILE)


def load(folder: Path) -> nn.ModuleDict:
    """The saved head in float32."""
    head = make_head()
    head.load_state_dict({name: tensor.float() for name, tensor in load_file(folder / FILE).items()})
    return head.eval()
