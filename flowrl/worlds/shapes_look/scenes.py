"""What is on a picture and what is asked: large and small objects of six shapes, each of a colour of its own.

A large object can be told from the picture as the model sees it, reduced to a quarter of its side; a small one is about
two pixels there, a colour without a shape. Nothing that is pretrained on is among the training or held-out questions.
"""

import random
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cache

from flowrl.worlds.shapes.captions import COLORS

SIDE = 128  # pixels of a picture; all lengths below are in such pixels
CELL = 32  # side of what two zooms show, and of what the model sees of any picture
SHAPES = ("circle", "square", "triangle", "diamond", "ring", "cross")
QUADRANTS = ("top-left", "top-right", "bottom-left", "bottom-right")
RADII = {"small": (3.5, 4.5), "large": (16.0, 21.0)}
OBJECTS = 3
GAP = 3.0  # free pixels between two bounding boxes
QUESTION = "What shape is the {} object?"
NUM_TRAIN, NUM_HELDOUT = 600, 200
SPLIT_SEED = 17


@dataclass(frozen=True)
class Thing:
    """An object: where its centre is, and its radius, in pixels from the top left corner."""

    color: str
    shape: str
    size: str  # small or large
    x: float
    y: float
    radius: float

    @property
    def quadrants(self) -> tuple[str, str]:
        """The quadrant of the picture that holds the centre, and the quadrant of that one."""
        return quadrant(self.x, self.y, SIDE), quadrant(self.x % (SIDE // 2), self.y % (SIDE // 2), SIDE // 2)


@dataclass(frozen=True)
class Question:
    """Which shape the object of this colour has, on the picture that `things` and `tint` describe."""

    things: tuple[Thing, ...]
    asked: Thing
    seed: str  # of the picture's tints

    @property
    def text(self) -> str:
        """The prompt, such as What shape is the red object?"""
        return QUESTION.format(self.asked.color)

    def meta(self) -> dict[str, object]:
        """The ground truth as a prompt carries it."""
        asked = self.asked
        return {"kind": asked.size, "answer": asked.shape, "color": asked.color, "quadrants": list(asked.quadrants)}


def quadrant(x: float, y: float, side: float) -> str:
    """The quadrant of a square picture that holds a point."""
    return QUADRANTS[2 * (y >= side / 2) + (x >= side / 2)]


def draw(rng: random.Random, first: str | None = None) -> tuple[Thing, ...]:
    """Three objects of different colours, their boxes apart; a small one lies inside one of 16 cells of 32 pixels.

    first: the size of the first one; else each is small or large with equal chances.
    """
    while True:
        placed: list[Thing] = []
        for i, color in enumerate(rng.sample(list(COLORS), OBJECTS)):
            size = first if first is not None and i == 0 else rng.choice(("small", "large"))
            thing = _place(color, size, placed, rng)
            if thing is None:
                break
            placed.append(thing)
        if len(placed) == OBJECTS:
            return tuple(placed)


def _place(color: str, size: str, placed: Sequence[Thing], rng: random.Random, tries: int = 40) -> Thing | None:
    shape = rng.choice(SHAPES)
    for _ in range(tries):
        r = rng.uniform(*RADII[size])
        margin = r + 2
        if size == "small":
            x, y = (rng.randrange(SIDE // CELL) * CELL + rng.uniform(margin, CELL - margin) for _ in range(2))
        else:
            x, y = (rng.uniform(margin, SIDE - margin) for _ in range(2))
        if all(max(abs(x - o.x), abs(y - o.y)) > r + o.radius + GAP for o in placed):
            return Thing(color, shape, size, x, y, r)
    return None


@cache
def questions(split: str) -> tuple[Question, ...]:
    """The questions of `train` (600) or `heldout` (200), each on a picture of its own; every second one is on a small
    object, and every shape is asked for equally often among small and among large ones, as far as numbers allow."""
    number = {"train": NUM_TRAIN, "heldout": NUM_HELDOUT}[split]
    rng = random.Random(f"{SPLIT_SEED}/{split}")
    made = []
    for i in range(number):
        things = draw(rng, first=("small", "large")[i % 2])
        asked = things[0]
        wanted = SHAPES[i // 2 % len(SHAPES)]
        asked = Thing(asked.color, wanted, asked.size, asked.x, asked.y, asked.radius)
        made.append(Question((asked, *things[1:]), asked, f"{SPLIT_SEED}/{split}/{i}"))
    rng.shuffle(made)
    return tuple(made)
