"""The problems: additions and subtractions of two and three digits, products of two digits by one.

Held-out problems occur in no pretraining document and in no training prompt, in either order of the operands.
"""

import random
from dataclasses import dataclass
from functools import cache

SIGNS = {"add": "+", "sub": "-", "mul": "*"}
NUM_HELDOUT = {"add": 96, "sub": 96, "mul": 64}
NUM_TRAIN = {"add": 900, "sub": 900, "mul": 300}
SPLIT_SEED = 11


@dataclass(frozen=True)
class Problem:
    """An operation, `kind`, and its operands a and b."""

    kind: str
    a: int
    b: int

    @property
    def text(self) -> str:
        """The prompt, such as 347+285."""
        return f"{self.a}{SIGNS[self.kind]}{self.b}"

    @property
    def answer(self) -> int:
        """The result; never negative."""
        return {"add": self.a + self.b, "sub": self.a - self.b, "mul": self.a * self.b}[self.kind]

    def meta(self) -> dict[str, object]:
        """The ground truth as a prompt carries it."""
        return {"kind": self.kind, "answer": str(self.answer)}


def draw(kind: str, rng: random.Random) -> Problem:
    """A random problem of a kind; of the operands of sums and differences two in three have three digits."""
    if kind == "mul":
        return Problem(kind, rng.randint(10, 99), rng.randint(2, 9))
    a, b = (rng.randint(100, 999) if rng.random() < 2 / 3 else rng.randint(10, 99) for _ in range(2))
    return Problem(kind, a, b) if kind == "add" else Problem(kind, max(a, b), min(a, b))


@cache
def heldout_problems() -> tuple[Problem, ...]:
    """The 256 held-out problems, distinct, mixed."""
    rng = random.Random(SPLIT_SEED)
    chosen = [p for kind, number in NUM_HELDOUT.items() for p in _distinct(kind, number, rng, frozenset())]
    rng.shuffle(chosen)
    return tuple(chosen)


@cache
def train_problems() -> tuple[Problem, ...]:
    """The 2,100 training prompts, distinct, none of them held out."""
    rng, out = random.Random(SPLIT_SEED + 1), heldout_either_order()
    return tuple(p for kind, number in NUM_TRAIN.items() for p in _distinct(kind, number, rng, out))


@cache
def heldout_either_order() -> frozenset[Problem]:
    """The held-out problems in both orders of their operands."""
    return frozenset(q for p in heldout_problems() for q in (p, Problem(p.kind, p.b, p.a)))


def draw_train_problem(rng: random.Random) -> Problem:
    """A random problem of a random kind that is not held out."""
    while (problem := draw(rng.choice(list(SIGNS)), rng)) in heldout_either_order():
        pass
    return problem


def _distinct(kind: str, number: int, rng: random.Random, banned: frozenset[Problem]) -> list[Problem]:
    problems: dict[frozenset[int], Problem] = {}  # by operands in no order
    while len(problems) < number:
        problem = draw(kind, rng)
        if problem not in banned:
            problems.setdefault(frozenset((problem.a, problem.b)), problem)
    return list(problems.values())
