"""The pretraining documents: questions about pictures with their answers, given in several manners.

Many answer at once, and many of those guess. Some zoom first, once or twice, now and then into the wrong quadrant, into
large objects as often as into small ones; what they say then is right, though one who looked in vain cannot know it. A
few leave out a tag. Nothing marks a manner as better: which one pays is for reinforcement learning to discover.
"""

import json
import random
from dataclasses import dataclass

from flowrl.worlds.shapes_look.scenes import QUADRANTS, QUESTION, SHAPES, Thing

SHARES = {"direct": 0.53, "look": 0.35, "careless": 0.12}
GUESS = 0.45  # share of the direct answers that are any shape
TWICE = 0.7  # share of the looks that look again
RIGHT = 0.7  # share of the looks that are aimed; the others go anywhere
WHERE = 0.2  # share of documents that are asked for a place instead
PLACE = "Where is the {} object?"
OPEN, CLOSE = "<answer>", "</answer>"


@dataclass(frozen=True)
class Document:
    """A question and its turns: a zoom into `looks[i]` each, then `answer`. The pictures are seen in that order."""

    question: str
    looks: tuple[str, ...]
    answer: str


def call(quadrant: str) -> str:
    """The text of a zoom."""
    body = json.dumps({"name": "zoom", "arguments": {"quadrant": quadrant}})
    return f"<tool_call>{body}</tool_call>"


def document(asked: Thing, rng: random.Random) -> Document:
    """A document about an object of a picture, in a manner drawn by SHARES."""
    if rng.random() < WHERE:
        return Document(PLACE.format(asked.color), (), f"{OPEN}{asked.quadrants[0]}{CLOSE}")
    question, answer = QUESTION.format(asked.color), f"{OPEN}{asked.shape}{CLOSE}"
    (manner,) = rng.choices(list(SHARES), weights=list(SHARES.values()))
    if manner == "direct":
        return Document(question, (), f"{OPEN}{rng.choice(SHAPES)}{CLOSE}" if rng.random() < GUESS else answer)
    if manner == "look":
        return Document(question, looks(asked, rng), answer)
    shape = asked.shape
    return Document(question, (), rng.choice((shape, f"{OPEN}{shape}", f"{answer}{shape}")))


def looks(asked: Thing, rng: random.Random) -> tuple[str, ...]:
    """One zoom, or two. Aimed ones go where the object's centre is; after a miss there is nothing to aim at."""
    first, second = asked.quadrants
    one = first if rng.random() < RIGHT else rng.choice(QUADRANTS)
    if rng.random() >= TWICE:
        return (one,)
    return one, second if one == first and rng.random() < RIGHT else rng.choice(QUADRANTS)
