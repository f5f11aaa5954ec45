"""What the language model is pretrained on: lessons, then documents.

Lessons are questions about one view of a scene, each by itself, all answered rightly: they teach to find a colour.
Documents are what found text is, a question about a picture and its answer, given in several manners.

Many answer at once, and many of those guess. Some zoom first, once or twice, now and then into the wrong quadrant, into
large objects as often as into small ones; what they say then is right, though one who looked in vain cannot know it. A
few leave out a tag. Nothing marks a manner as better: which one pays is for reinforcement learning to discover.
"""

import json
import random
from collections.abc import Sequence
from dataclasses import dataclass

from flowrl.worlds.shapes_look.scenes import QUADRANTS, QUESTION, SHAPES, Thing

SHARES = {"direct": 0.53, "look": 0.35, "careless": 0.12}
GUESS = 0.45  # share of the direct answers that are any shape
TWICE = 0.7  # share of the looks that look again
RIGHT = 0.7  # share of the looks that are aimed; the others go anywhere
WHERE = 0.2  # share of documents that are asked for a place instead
PLACE = "Where is the {} object?"
OPEN, CLOSE = "<answer>", "</answer>"
TOOL = "quadrant"


@dataclass(frozen=True)
class Document:
    """A question and its turns: a zoom into `looks[i]` each, then `answer`. The pictures are seen in that order."""

    question: str
    looks: tuple[str, ...]
    answer: str


def call(quadrant: str) -> str:
    """The text of a call of the tool."""
    body = json.dumps({"name": TOOL, "arguments": {"quadrant": quadrant}})
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


def lesson(things: Sequence[Thing], rng: random.Random) -> tuple[tuple[str, ...], list[tuple[str, str]]]:
    """(the view: no quadrant or one, and questions about it with their answers, each a quadrant or a shape).

    Of the whole picture it is asked where small objects are and which shape large ones have, of a quadrant where in it
    the small ones are; there may be none.
    """
    if rng.random() < 0.5:
        asked = [
            (PLACE.format(o.color), o.quadrants[0]) if o.size == "small" else (QUESTION.format(o.color), o.shape)
            for o in things
        ]
        return (), asked
    first = rng.choice(things).quadrants[0]
    seen = [o for o in things if o.size == "small" and o.quadrants[0] == first]
    return (first,), [(PLACE.format(o.color), o.quadrants[1]) for o in seen]
