"""Pictures of text, drawn by Pillow with the font that it holds itself."""

import random
from collections.abc import Sequence

import torch
from PIL import Image, ImageDraw, ImageFont
from torch import Tensor
from torchvision.transforms.functional import pil_to_tensor

from flowrl.contracts import Prompt, Samples

COLOURS = [("black", "white"), ("yellow", "navy"), ("firebrick", "beige"), ("white", "darkolivegreen")]
WORDS = (
    "OPEN Sale Coffee Welcome Museum Library Bakery Exit Danger Happy Birthday Express Garden Summer Winter Monday "
    "Quick brown fox jumps Hello World Station Airport Hotel Music Flower River Mountain 2049 NASA STOP Bridge Yellow "
    "Planet Rocket Wizard Kitchen Jazz wonderful adventure 1984 42 elephant"
).split()


def written(*lines: str, size: int = 24, side: int = 256, at: tuple[int, int] = (8, 8), ink=COLOURS[0]) -> Tensor:
    """A square picture [3, side, side] with these lines of text, of `size` pixels, from `at` downwards."""
    picture = Image.new("RGB", (side, side), ink[1])
    draw, font = ImageDraw.Draw(picture), ImageFont.load_default(size)
    for number, line in enumerate(lines):
        draw.text((at[0], at[1] + number * round(1.6 * size)), line, font=font, fill=ink[0])
    return pil_to_tensor(picture).float() / 255


def placed(word: str, size: int, chance: random.Random, side: int = 256) -> Tensor:
    """A picture with the word somewhere inside, in one of four pairs of colours."""
    left, top, right, bottom = ImageFont.load_default(size).getbbox(word)
    at = (chance.randint(2, int(side - right - 2)), chance.randint(2, int(side - bottom - 2)))
    return written(word, size=size, side=side, at=at, ink=chance.choice(COLOURS))


def asked(texts: Sequence[str], images: Sequence[Tensor], **meta) -> Samples:
    """Samples of pictures, the prompts of which ask for a sign with the texts."""
    prompts = [Prompt(str(i), f'a sign that says "{text}"', meta=meta) for i, text in enumerate(texts)]
    return Samples(prompts, torch.arange(len(prompts)), images=torch.stack(list(images)))
