"""The prompts of each embedded world: texts with their ground truth."""

from collections.abc import Iterator

from flowrl.worlds.arithmetic import corpus, problems
from flowrl.worlds.shapes import captions

Record = tuple[str, dict[str, object]]


def records(world: str, split: str) -> Iterator[Record]:
    """(text, ground truth) of every prompt of a world's split, `train` or `heldout`, in a fixed order."""
    return {"shapes": _shapes, "arithmetic": _arithmetic}[world](split)


def _shapes(split: str) -> Iterator[Record]:
    if split == "train":
        pool, _ = captions.split()
        scenes = [scene for kind in pool.values() for scene in kind]
    else:
        scenes = captions.heldout_scenes()
    return ((scene.caption, scene.meta()) for scene in scenes)


def _arithmetic(split: str) -> Iterator[Record]:
    chosen = problems.train_problems() if split == "train" else problems.heldout_problems()
    return ((problem.text, problem.meta() | {"solution": corpus.solution(problem)}) for problem in chosen)
