"""shapes-style-clip: a CLIP of the shapes world that also understands words of style before a caption, "dark. a red
circle". `flowrl world build shapes-style` makes it.

It is the first half of shapes-clip's image tower with the whole of its text tower, trained on in the same way. A
picture is given a style by a program; its caption then competes with the same caption behind other words of style. A
caption without a word of style is right whatever the style, and a picture without a style is none of the four.
"""

import random
import shutil
from dataclasses import dataclass
from pathlib import Path

import open_clip
import torch
from diffusers import DiffusionPipeline
from open_clip.tokenizer import HFTokenizer
from torch import Tensor

from flowrl.untyped import JSON, Network, Pipeline
from flowrl.worlds.shapes.captions import Scene
from flowrl.worlds.shapes.judges import clip, exam
from flowrl.worlds.shapes.judges.lookalikes import contents, lookalikes, paraphrase
from flowrl.worlds.shapes.judges.pool import PicturePool, spoil, training_pool
from flowrl.worlds.shapes.tokenizers import clip_tokenizer

STYLES: dict[str, tuple[float, float]] = {  # the range of strengths, of `apply_style`
    "light": (0.3, 0.8),
    "dark": (0.45, 0.85),
    "saturated": (1.3, 2.2),
    "pale": (0.2, 0.75),
}
OPPOSITE = {"light": "dark", "dark": "light", "saturated": "pale", "pale": "saturated"}
LAYERS, LENGTH = 2, 20  # of the image tower; tokens of a text
ASSETS = Path(__file__).parents[1] / "assets"
NAME = "shapes-style-clip"
RENDERS, DRAWN, STEPS = 6_000, 1_500, 600
STYLED, WORDED = 0.8, 0.75  # shares of pictures that have a style, and of their captions that say so
WRONG_WORDS, WRONG_SCENES = 2, 2  # captions that each picture nearly fits
SEED = 1


def apply_style(images: Tensor, style: str, strength: Tensor) -> Tensor:
    """The pictures [N, 3, H, W] in [0, 1] in a style of STYLES; strength: float32 [N].

    light: what is missing to white is multiplied by the strength; dark: the picture is. saturated and pale multiply
    what a pixel's channels differ from their mean. A strength of 1 changes nothing.
    """
    f = strength[:, None, None, None]
    if style in ("light", "dark"):
        return 1 - (1 - images) * f if style == "light" else images * f
    gray = images.mean(1, keepdim=True)
    return (gray + (images - gray) * f).clamp(0, 1)


def draw_styles(images: Tensor, rng: random.Random, share: float = STYLED) -> tuple[Tensor, list[str | None]]:
    """The pictures [N, 3, H, W], a share of them in a style of some strength, drawn evenly; and the styles."""
    styles = [rng.choice(list(STYLES)) if rng.random() < share else None for _ in images]
    styled = [
        x[None] if s is None else apply_style(x[None], s, torch.tensor([rng.uniform(*STYLES[s])]))
        for x, s in zip(images, styles, strict=True)
    ]
    return torch.cat(styled), styles


def say(word: str | None, caption: str) -> str:
    """The caption behind a word of style, as SRPO puts control words; without one, as it is."""
    return caption if word is None else f"{word}. {caption}"


class StyledBatch(clip.ContrastiveBatch):
    """Pictures of some styles and captions with words of style: see `clip.ContrastiveBatch`.

    right, wrong: pairs of a picture's position and (word, scene). A caption is compared with every picture that shows
    something else, or has another style than the word says.
    """

    def __init__(self, index: Tensor, scenes: list[Scene | None], styles: list[str | None], right: list, wrong: list):
        super().__init__(index, scenes, [(i, s) for i, (_, s) in right], [(i, s) for i, (_, s) in wrong])
        said = [text for _, text in (*right, *wrong)]
        self.captions = [say(word, scene.caption) for word, scene in said]
        held = [None if s is None else contents(s) for s in scenes]
        words = [[word is not None and word != style for word, _ in said] for style in styles]
        shown = [contents(scene) for _, scene in said]
        self.open = torch.tensor(words) | torch.tensor([[a != b for b in shown] for a in held])
        for j, (i, _) in enumerate((*right, *wrong)):
            self.open[i, j] = True


def draw_lesson(pool: PicturePool, seed: int) -> clip.Lesson:
    """What `clip.draw_lesson` draws, in styles; pictures are spoilt by noise, blur and bent silhouettes alone."""
    rng = random.Random(seed)
    known = [i for i in (rng.randrange(len(pool)) for _ in range(2 * clip.BATCH)) if pool.scenes[i] is not None]
    index = torch.tensor(known[: clip.BATCH])
    spoilt, severities = spoil(pool.images[index], seed, kinds=("noise", "blur", "warp"))
    images, styles = draw_styles(spoilt, rng)
    scenes = [pool.scenes[i] for i in index.tolist()]
    right, wrong = [], []
    for k, (scene, style) in enumerate(zip(scenes, styles, strict=True)):
        assert scene is not None
        word = style if rng.random() < WORDED else None
        right.append((k, (word, paraphrase(scene, rng))))
        others = [w for w in STYLES if w not in (style, OPPOSITE.get(style or ""))]
        words = [OPPOSITE[style], rng.choice(others)] if style else rng.sample(others, WRONG_WORDS)
        wrong += [(k, (w, scene)) for w in words]
        wrong += [(k, (word, other)) for other in lookalikes(scene, WRONG_SCENES, rng, seen=True)]
    return StyledBatch(index, scenes, styles, right, wrong), images, severities


def model_config() -> dict[str, JSON]:
    """The architecture, in the format of open_clip's config files."""
    config = clip.model_config()
    return config | {
        "vision_cfg": config["vision_cfg"] | {"layers": LAYERS},
        "text_cfg": config["text_cfg"] | {"context_length": LENGTH},
    }


def make_model(begin: Network) -> Network:
    """A model with the weights of shapes-clip as far as it has them; the last positions of a text begin at 0."""
    config = model_config()
    model = open_clip.CLIP(config["embed_dim"], config["vision_cfg"], config["text_cfg"])
    held = begin.state_dict()
    longer = torch.zeros(LENGTH, held["positional_embedding"].shape[1])
    longer[: len(held["positional_embedding"])] = held["positional_embedding"]
    held["positional_embedding"] = longer
    model.load_state_dict({name: held[name] for name in model.state_dict()})
    return model


def make_tokenizer(folder: Path) -> HFTokenizer:
    """The tokenizer in the folder; if there is none, that of shapes-clip for longer texts."""
    if not (folder / "tokenizer.json").is_file():
        folder.mkdir(parents=True, exist_ok=True)
        tokenizer = type(clip_tokenizer()).from_pretrained(ASSETS / "shapes-clip", model_max_length=LENGTH)
        tokenizer.save_pretrained(folder)
    return HFTokenizer(str(folder), context_length=LENGTH)


def load(folder: Path) -> tuple[Network, HFTokenizer]:
    """The saved model in float32 and its tokenizer."""
    return open_clip.create_model(f"local-dir:{folder}").eval(), make_tokenizer(folder)


@dataclass(frozen=True)
class Results:
    """What the card quotes, of pictures in a style drawn evenly.

    renders, drawn: how often the right word of style is above the other three, on renders of held-out scenes and on
    what shapes-flux drew for them, drawn by half the strength as well (faint). of: renders, by style. scene: how often
    the right caption is above four lookalikes behind the same word.
    """

    renders: float
    of: dict[str, float]
    drawn: float
    faint: float
    scene: float

    def __str__(self) -> str:
        return f"{NAME} picks the style {self.renders:.3f}, of drawn pictures {self.drawn:.3f}, scene {self.scene:.3f}"


def build(out: Path, *, steps: int = STEPS, keep: bool = False) -> Results:
    """Trains the model from the shapes-clip that ships and saves it in `out` with its card; returns its accuracy.

    If interrupted, it resumes when called again with the same folder. `keep` leaves the checkpoints.
    """
    work = out / ".build"
    work.mkdir(parents=True, exist_ok=True)
    pipe = DiffusionPipeline.from_pretrained(ASSETS / "shapes-flux", dtype=torch.float32)
    pipe.set_progress_bar_config(disable=True)
    pool = training_pool(pipe, work / "pool.pt", renders=RENDERS, drawn=DRAWN, seed=SEED)
    tokenizer = make_tokenizer(out)
    torch.manual_seed(SEED)
    model = make_model(clip.load(ASSETS / "shapes-clip")[0])
    clip.train(model, tokenizer, pool, work / "clip.pt", cycles=[(steps, 0.4)], seed=SEED + 1, lesson=draw_lesson)
    clip.save(model, out, model_config())
    results = measure(out, exam.renders(), pipe)
    (out / "README.md").write_text(card(out, results, steps), encoding="utf-8")
    if not keep:
        shutil.rmtree(work)
    return results


@torch.no_grad()
def measure(folder: Path, renders: list[exam.Question], pipe: Pipeline | None, seed: int = 41) -> Results:
    """Accuracy on held-out scenes; without a pipe, on renders alone (drawn and faint are NaN)."""
    model, tokenizer = load(folder)
    rng = random.Random(seed)
    images, styles = draw_styles(torch.stack([q.image for q in renders]), rng, share=1)
    captions = [q.scene.caption for q in renders]
    picked = picks_style(model, tokenizer, images, captions, styles)
    of = {w: picked[[s == w for s in styles]].mean().item() for w in STYLES}
    right = clip.scores(model, tokenizer, images, [say(w, c) for w, c in zip(styles, captions, strict=True)])
    place = [i for i, q in enumerate(renders) for _ in q.wrong]
    texts = [say(w, s.caption) for q, w in zip(renders, styles, strict=True) for s in q.wrong]
    wrong = clip.scores(model, tokenizer, images[place], texts).split([len(q.wrong) for q in renders])
    scene, drawn, faint = exam.ranks_right_first(right, list(wrong)).mean().item(), float("nan"), float("nan")
    if pipe is not None:
        made = exam.generate_exam(pipe)
        captions = [s.caption for s in made.scenes]
        images, styles = draw_styles(made.images, rng, share=1)
        drawn = picks_style(model, tokenizer, images, captions, styles).mean().item()
        images = made.images.lerp(images, 0.5)
        faint = picks_style(model, tokenizer, images, captions, styles).mean().item()
    return Results(picked.mean().item(), of, drawn, faint, scene)


def picks_style(
    model: Network, tokenizer: HFTokenizer, images: Tensor, captions: list[str], styles: list[str | None]
) -> Tensor:
    """1 where the word of the picture's style before its caption scores above the other three, float32 [N]."""
    each = [clip.scores(model, tokenizer, images, [say(word, c) for c in captions]) for word in STYLES]
    return torch.tensor([float(list(STYLES)[i] == s) for i, s in zip(torch.stack(each).argmax(0), styles, strict=True)])


def card(folder: Path, results: Results, steps: int) -> str:
    """The model card."""
    model, _ = load(folder)
    of, names = ", ".join(f"{results.of[word]:.3f}" for word in STYLES), ", ".join(STYLES)
    parameters = sum(p.numel() for p in model.parameters())
    return f"""# {NAME}

A CLIP of {parameters:,} parameters for pictures of coloured shapes at 32 x 32 pixels and captions behind a word of
style (`dark. a red circle`): {names}. In open_clip's local format, stored in float16. As a
reward: `use: clip_score, args: {{model: {NAME}}}`; SRPO's control words are these words.

It begins as the first {LAYERS} of the 4 layers of shapes-clip's image tower and its whole text tower, and was trained
for {steps} steps as shapes-clip was, on {RENDERS} renders and {DRAWN} pictures that shapes-flux drew,
{STYLED * 100:.0f} % of them made light (nearer to white), dark (nearer to black), saturated or pale (colours further
from grey, or nearer) by a program, `flowrl/worlds/shapes/judges/style.py`. Each caption stands against the same one
behind two other words, and against two that the picture nearly shows behind the same word.

Made by `flowrl world build shapes-style` from seeds, shapes-clip and shapes-flux alone: pictures and captions are this
project's own. Training sees no composition that the world holds out, neither in pictures nor in captions.
Licence: Apache-2.0.

## On compositions that it was never trained on

| | |
|---|---|
| 320 styled renders: the right word is above the other three | {results.renders:.3f} |
| of {names} ones | {of} |
| 640 pictures that shapes-flux drew, styled: the same | {results.drawn:.3f} |
| the same pictures, mixed half and half with what they were before | {results.faint:.3f} |
| 320 styled renders: the right caption is above four lookalikes behind the same word | {results.scene:.3f} |

By chance: 0.25, and 0.2 in the last row. Limits: it knows nothing but these shapes, colours and words.
"""
