"""shapes-clip: a CLIP of open_clip that tells the shapes world's captions apart (arXiv:2103.00020).

In the contrastive loss of a batch, each picture's caption also competes with captions that the picture nearly shows.
Linear probes, which are not saved, read from the embedding what the picture holds and how damaged it is, so that heads
can, and from each patch which objects lie near it.
"""

import json
import random
from collections.abc import Callable, Sequence
from pathlib import Path

import open_clip
import torch
from open_clip.tokenizer import HFTokenizer
from safetensors.torch import save_file
from torch import Tensor, nn
from torch.nn import functional

from flowrl.untyped import JSON, Network, Tokenizer
from flowrl.worlds.shapes.captions import COLORS, SHAPES, Scene
from flowrl.worlds.shapes.judges.damage import rating
from flowrl.worlds.shapes.judges.lookalikes import contents, lookalikes, paraphrase
from flowrl.worlds.shapes.judges.pool import PicturePool, spoil
from flowrl.worlds.shapes.render import SIZE
from flowrl.worlds.shapes.tokenizers import MAX_LENGTH, clip_tokenizer
from flowrl.worlds.stage import Cycle, Stage

WEIGHTS = "open_clip_model.safetensors"
WIDTH, TOWER, PATCH = 96, 128, 8
MEAN, STD = (0.82, 0.80, 0.82), (0.28, 0.27, 0.28)  # of renders, about
BATCH, HARD = 48, 3
OBJECTS = [(color, shape) for color in COLORS for shape in SHAPES]


def model_config() -> dict[str, JSON]:
    """The architecture, in the format of open_clip's config files."""
    return {
        "embed_dim": WIDTH,
        "vision_cfg": {
            "image_size": SIZE,
            "patch_size": PATCH,
            "width": TOWER,
            "layers": 4,
            "head_width": 32,
            "mlp_ratio": 2.0,
        },
        "text_cfg": {
            "context_length": MAX_LENGTH,
            "vocab_size": len(clip_tokenizer()),
            "hf_tokenizer_name": "local",  # any: makes open_clip read the folder's own tokenizer
            "width": 64,
            "heads": 2,
            "layers": 2,
            "mlp_ratio": 2.0,
        },
    }


def make_model() -> Network:
    """An untrained CLIP; its caller seeds torch."""
    config = model_config()
    return open_clip.CLIP(config["embed_dim"], config["vision_cfg"], config["text_cfg"])


def save(model: Network, out: Path, config: dict[str, JSON] | None = None) -> None:
    """Writes a folder that open_clip reads by `local-dir:`, weights in float16. config: None is `model_config()`."""
    out.mkdir(parents=True, exist_ok=True)
    preprocess = {"mean": MEAN, "std": STD, "interpolation": "bicubic", "resize_mode": "squash"}
    config = {"model_cfg": config or model_config(), "preprocess_cfg": preprocess}
    (out / "open_clip_config.json").write_text(json.dumps(config, indent=2) + "\n", encoding="utf-8")
    save_file({k: v.half().contiguous() for k, v in model.state_dict().items()}, out / WEIGHTS)


def make_tokenizer(folder: Path) -> HFTokenizer:
    """The tokenizer in the folder, made if there is none. (Made again, it would number words differently.)"""
    if not (folder / "tokenizer.json").is_file():
        clip_tokenizer().save_pretrained(folder)
    return HFTokenizer(str(folder), context_length=MAX_LENGTH)


def load(folder: Path) -> tuple[Network, HFTokenizer]:
    """The saved model in float32 and its tokenizer."""
    return open_clip.create_model(f"local-dir:{folder}").eval(), make_tokenizer(folder)


def normalise(images: Tensor) -> Tensor:
    """The model's input [N, 3, 32, 32] of pictures [N, 3, 32, 32] in [0, 1]."""
    return (images - torch.tensor(MEAN)[:, None, None]) / torch.tensor(STD)[:, None, None]


class ModelWithProbes(nn.Module):
    """The model and its probes, as one module that a stage trains."""

    def __init__(self, model: Network):
        super().__init__()
        self.model = model
        self.probe = nn.Linear(WIDTH, len(OBJECTS) + 2)  # numbers of objects, their total, rating
        self.near = nn.Linear(TOWER, len(OBJECTS))
        model.visual.output_tokens = True


def train(
    model: Network,
    tokenizer: HFTokenizer,
    pool: PicturePool,
    path: Path,
    *,
    cycles: Sequence[Cycle],
    seed: int,
    lesson: "Callable[[PicturePool, int], Lesson] | None" = None,
    report: Callable[[int], str] | None = None,
) -> None:
    """Fits the model on the pool; resumes from `path`. lesson: draws each step's batch; None is `draw_lesson`."""
    both = ModelWithProbes(model)
    stage = Stage(path.stem, both, path, cycles=cycles, lr=2e-3, average=0.99)
    ids = CaptionTokens(tokenizer)

    def loss(step: int) -> Tensor:
        batch, images, severities = (lesson or draw_lesson)(pool, seed * 1_000_003 + step)
        embedding, patches = model.visual(normalise(images))
        seen = functional.normalize(embedding, dim=-1)
        read = functional.normalize(model.encode_text(ids(batch.captions)), dim=-1)
        logits = model.logit_scale.exp().clamp(max=50) * seen @ read.T
        dense = location_loss(both.near(patches), batch.scenes, pool.spots[batch.index])
        return (
            contrastive_loss(logits, batch)
            + probe_loss(both.probe(seen * WIDTH**0.5), batch.scenes, severities)
            + dense
        )

    stage.run(loss, report, every=500)
    stage.swap()
    model.visual.output_tokens = False
    model.eval()


class ContrastiveBatch:
    """Pictures and captions of one contrastive loss.

    index: of the pictures, int64 [B]. scenes: theirs. captions: first the positives, in the order of `owner` (int64,
    the picture of each), then the negatives. open: which are compared, bool [B, captions], the positives included.
    """

    def __init__(self, index: Tensor, scenes: list[Scene | None], right: list[tuple[int, Scene]], wrong: list):
        self.index, self.scenes = index, scenes
        self.owner = torch.tensor([i for i, _ in right])
        texts = [*(s for _, s in right), *(s for _, s in wrong)]
        self.captions = [s.caption for s in texts]
        held = [None if s is None else contents(s) for s in scenes]
        said = [contents(s) for s in texts]
        self.open = torch.tensor([[a != b for b in said] for a in held])
        for j, (i, _) in enumerate([*right, *wrong]):
            self.open[i, j] = True


Lesson = tuple[ContrastiveBatch, Tensor, Tensor]


def draw_lesson(pool: PicturePool, seed: int) -> Lesson:
    """A batch, its pictures [B, 3, 32, 32] in [0, 1], half of them spoilt, and the severities [B, 5] of that."""
    batch = draw(pool, seed)
    return batch, *spoil(pool.images[batch.index], seed)


def draw(pool: PicturePool, seed: int) -> ContrastiveBatch:
    """Pictures drawn evenly, with the renders of what they were asked for, and captions right and wrong for each."""
    rng = random.Random(seed)
    index = [rng.randrange(len(pool)) for _ in range(BATCH)]
    index = list(dict.fromkeys(i for one in index for i in (one, int(pool.twin[one])) if i >= 0))[:BATCH]
    scenes = [pool.scenes[i] for i in index]
    right = [(k, paraphrase(s, rng)) for k, s in enumerate(scenes) if s is not None]
    wrong = [(k, w) for k, s in right for w in lookalikes(s, HARD, rng, seen=True)]
    wrong += [(k, w) for k, i in enumerate(index) if (w := pool.asked[i]) is not None]
    return ContrastiveBatch(torch.tensor(index), scenes, right, wrong)


def contrastive_loss(logits: Tensor, batch: ContrastiveBatch) -> Tensor:
    """Mean of both cross entropies of logits [B, captions], over what is compared."""
    masked = logits.masked_fill(~batch.open, -1e4)
    place = torch.arange(len(batch.owner))
    of_texts = functional.cross_entropy(masked[batch.owner], place)
    return (of_texts + functional.cross_entropy(masked[:, : len(place)].T, batch.owner)) / 2


def probe_loss(read: Tensor, scenes: list[Scene | None], severities: Tensor) -> Tensor:
    """Squared error of what the probes read [B, 20]: numbers of objects (of known scenes), their total, the rating."""
    known = torch.tensor([s is not None for s in scenes])
    rows = [[float(s.objects.count(o)) for o in OBJECTS] + [len(s.objects)] for s in scenes if s is not None]
    counts = (read[known, :-1] - torch.tensor(rows)).square()
    beauty = (read[:, -1] - (rating(severities) - 7) / 3).square()
    return 2 * counts[:, :-1].sum(1).mean() + 0.2 * counts[:, -1].mean() + 0.3 * beauty.mean()


def location_loss(read: Tensor, scenes: list[Scene | None], spots: Tensor) -> Tensor:
    """Squared error of what probes read of each patch [B, P, 18]: how near each object is, of pictures whose are known.

    An object at distance d pixels from the middle of a patch is there by exp(-(d / 5)^2 / 2).
    """
    side = SIZE // PATCH
    middle = (torch.arange(side) + 0.5) * PATCH
    places = torch.stack(torch.meshgrid(middle, middle, indexing="xy"), -1).view(-1, 2)
    distance = (places[None, :, None] - spots[:, None]).norm(dim=-1)  # [B, P, 4]
    there = torch.exp(-0.5 * (distance / 5).square()).nan_to_num(0)
    target = torch.zeros_like(read)
    for b, scene in enumerate(scenes):
        for k, obj in enumerate(scene.objects if scene is not None else ()):
            target[b, :, OBJECTS.index(obj)] += there[b, :, k]
    known = ~spots.isnan().any(-1).any(-1)
    return 2 * (read[known] - target[known]).square().sum(-1).mean()


class CaptionTokens:
    """Token ids of captions, cached."""

    def __init__(self, tokenizer: HFTokenizer):
        self.tokenizer = tokenizer
        self.known: dict[str, Tensor] = {}

    def __call__(self, captions: list[str]) -> Tensor:
        """int64 [N, 16]."""
        new = [c for c in dict.fromkeys(captions) if c not in self.known]
        if new:
            self.known.update(zip(new, self.tokenizer(new), strict=True))
        return torch.stack([self.known[c] for c in captions])


@torch.no_grad()
def scores(model: Network, tokenizer: Tokenizer, images: Tensor, captions: list[str]) -> Tensor:
    """Cosine of each picture [N, 3, 32, 32] with its caption, float32 [N]."""
    parts = []
    for start in range(0, len(captions), 200):
        part = slice(start, start + 200)
        seen = model.encode_image(normalise(images[part]), normalize=True)
        parts.append((seen * model.encode_text(tokenizer(captions[part]), normalize=True)).sum(-1))
    return torch.cat(parts)
