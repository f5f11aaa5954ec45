"""The prompts of each embedded world: texts with their ground truth, and pictures where they have some."""

from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple

from flowrl.worlds.arithmetic import corpus, problems
from flowrl.worlds.shapes import captions


class Record(NamedTuple):
    """A prompt of a world. id: None where the text is one; media: files of its pictures."""

    text: str
    meta: dict[str, object]
    id: str | None = None
    media: tuple[str, ...] = ()


def records(world: str, split: str, pictures: Path) -> Iterator[Record]:
    """Every prompt of a world's split, `train` or `heldout`, in a fixed order.

    pictures: the folder that those of a world with pictures are in, and are drawn into where they are missing.
    """
    if world == "shapes-look":
        return _shapes_look(split, pictures / world)
    return {"shapes": _shapes, "arithmetic": _arithmetic}[world](split)


def _shapes(split: str) -> Iterator[Record]:
    if split == "train":
        pool, _ = captions.split()
        scenes = [scene for kind in pool.values() for scene in kind]
    else:
        scenes = captions.heldout_scenes()
    return (Record(scene.caption, scene.meta()) for scene in scenes)


def _arithmetic(split: str) -> Iterator[Record]:
    chosen = problems.train_problems() if split == "train" else problems.heldout_problems()
    return (Record(problem.text, problem.meta() | {"solution": corpus.solution(problem)}) for problem in chosen)


def _shapes_look(split: str, folder: Path) -> Iterator[Record]:
    from flowrl.worlds.shapes_look.files import picture_file  # draws with torch
    from flowrl.worlds.shapes_look.scenes import questions

    for i, question in enumerate(questions(split)):
        name = f"{split}-{i:03d}"
        yield Record(question.text, question.meta(), name, (str(picture_file(question, name, folder)),))
