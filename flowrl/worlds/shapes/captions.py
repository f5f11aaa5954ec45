"""Captions of the shapes world: what can be asked for, and which compositions are held out.

Four kinds of caption, over 6 colours and 3 shapes:

    single    a red circle
    count     three blue squares            two green circles and a black triangle
    pair      a red circle and a blue square
    relation  a red circle left of a blue square

The held-out split is by composition. A held-out pair of objects never appears together in training, in either
order and under no kind; a held-out plain count (number, colour, shape) never appears in training. The 18 single
objects are all in training: there is nothing to compose.
"""

import itertools
import random
from dataclasses import dataclass

COLORS: dict[str, tuple[float, float, float]] = {
    "red": (0.86, 0.12, 0.12),
    "green": (0.10, 0.62, 0.20),
    "blue": (0.13, 0.28, 0.90),
    "yellow": (0.96, 0.80, 0.08),
    "purple": (0.58, 0.15, 0.72),
    "black": (0.08, 0.08, 0.08),
}
SHAPES = ("circle", "square", "triangle")
NUMBERS = {2: "two", 3: "three", 4: "four"}
RELATIONS = ("left of", "right of", "above", "below")
KINDS = ("single", "count", "pair", "relation")

NUM_HELDOUT_PAIRS = 32  # of 135 unordered object pairs
NUM_HELDOUT_COUNTS = 14  # of 54 plain counts
SPLIT_SEED = 20

Object = tuple[str, str]  # (colour, shape)


@dataclass(frozen=True)
class Scene:
    """What a caption asks for: its kind, the multiset of objects, and how the first lies to the second."""

    kind: str
    objects: tuple[Object, ...]
    relation: str | None = None

    @property
    def caption(self) -> str:
        """The sentence that a text-to-image model is given."""
        if self.kind == "relation":
            first, second = self.objects
            return f"{_phrase(first, 1)} {self.relation} {_phrase(second, 1)}"
        counted = {obj: self.objects.count(obj) for obj in self.objects}  # a dict keeps the order of first appearance
        return " and ".join(_phrase(obj, number) for obj, number in counted.items())

    def meta(self) -> dict:
        """The ground truth as plain JSON values, as a prompt carries it."""
        return {"kind": self.kind, "objects": [list(obj) for obj in self.objects], "relation": self.relation}

    @classmethod
    def from_meta(cls, meta: dict) -> "Scene":
        """The scene that `meta` describes (inverse of `Scene.meta`)."""
        return cls(meta["kind"], tuple((c, s) for c, s in meta["objects"]), meta.get("relation"))


def _phrase(obj: Object, number: int) -> str:
    color, shape = obj
    return f"a {color} {shape}" if number == 1 else f"{NUMBERS[number]} {color} {shape}s"


def split() -> tuple[dict[str, list[Scene]], dict[str, list[Scene]]]:
    """(train, held-out) scenes by kind. Disjoint by composition; see the module's docstring."""
    objects: list[Object] = list(itertools.product(COLORS, SHAPES))
    pairs = [p for p in itertools.combinations(objects, 2) if p[0][0] != p[1][0]]  # two colours: never ambiguous
    counts = [(n, obj) for n in NUMBERS for obj in objects]
    rng = random.Random(SPLIT_SEED)
    rng.shuffle(pairs)
    rng.shuffle(counts)
    heldout = _scenes(pairs[:NUM_HELDOUT_PAIRS], counts[:NUM_HELDOUT_COUNTS])
    train = _scenes(pairs[NUM_HELDOUT_PAIRS:], counts[NUM_HELDOUT_COUNTS:])
    train["single"] = [Scene("single", (obj,)) for obj in objects]
    return train, heldout


def _scenes(pairs: list[tuple[Object, Object]], counts: list[tuple[int, Object]]) -> dict[str, list[Scene]]:
    ordered = [q for a, b in pairs for q in ((a, b), (b, a))]
    return {
        "single": [],
        "count": [Scene("count", (obj,) * n) for n, obj in counts]
        + [Scene("count", (a,) * n + (b,)) for a, b in ordered for n in (2, 3)],
        "pair": [Scene("pair", (a, b)) for a, b in ordered],
        "relation": [Scene("relation", (a, b), r) for a, b in ordered for r in RELATIONS],
    }


def heldout_scenes() -> list[Scene]:
    """The 320 held-out scenes that accuracy is reported on: 128 counts, 64 pairs, 128 relations, distinct, mixed."""
    _, heldout = split()
    rng = random.Random(SPLIT_SEED + 1)
    chosen = [s for kind, n in (("count", 128), ("pair", 64), ("relation", 128)) for s in rng.sample(heldout[kind], n)]
    rng.shuffle(chosen)
    return chosen


def draw(pool: dict[str, list[Scene]], number: int, rng: random.Random, weights: dict[str, float]) -> list[Scene]:
    """`number` scenes: a kind by weight, then one of its scenes uniformly."""
    kinds = rng.choices(list(weights), weights=list(weights.values()), k=number)
    return [rng.choice(pool[kind]) for kind in kinds]
