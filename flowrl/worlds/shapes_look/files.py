"""Pictures of shapes-look as files: prompts name them, as those of a user's data set do."""

import hashlib
import os
from pathlib import Path

from PIL import Image

from flowrl.worlds.shapes_look.render import render
from flowrl.worlds.shapes_look.scenes import Question

DRAWING = 1  # of the way that pictures are drawn: another one needs other files


def picture_file(question: Question, name: str, folder: Path) -> Path:
    """The PNG of a question's picture in a folder, drawn where it is missing; its name tells what it must show."""
    shown = hashlib.sha256(repr((DRAWING, question.things, question.seed)).encode()).hexdigest()[:12]
    path = folder / f"{name}-{shown}.png"
    if not path.exists():
        folder.mkdir(parents=True, exist_ok=True)
        aside = path.with_suffix(f".{os.getpid()}.tmp")
        picture_of(question).save(aside, format="PNG")
        aside.replace(path)
    return path


def picture_of(question: Question) -> Image.Image:
    """The question's picture, RGB, 128 pixels of side."""
    picture, _ = render(question.things, question.seed)
    return Image.fromarray(picture.permute(1, 2, 0).numpy())
