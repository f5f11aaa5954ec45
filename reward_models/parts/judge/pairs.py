"""Which samples of a group are compared, and in what order they are shown: independent of their positions."""

import hashlib
import random
from collections.abc import Hashable, Sequence

from torch import Tensor


def groups(group: Tensor) -> list[list[int]]:
    """The positions of each group's samples, from labels int64 [B]; groups in order of first appearance."""
    positions: dict[int, list[int]] = {}
    for position, name in enumerate(group.tolist()):
        positions.setdefault(name, []).append(position)
    return list(positions.values())


def fingerprint(urls: Sequence[str]) -> str:
    """A name for what a sample shows, whatever its position."""
    return hashlib.sha256("\n".join(urls).encode()).hexdigest()


def draw_pairs(names: Sequence[str], opponents: int | None, seed: Hashable) -> list[tuple[int, int]]:
    """Pairs of positions (i, j), i of the smaller name: all, or enough for each sample to meet `opponents` others.

    The pairs are rounds of a round-robin tournament (circle method) over the samples, shuffled by `seed`; of an odd
    number one sits out each round. The same samples in another order meet the same opponents.
    """
    order = sorted(range(len(names)), key=lambda i: names[i])
    if opponents is None or opponents >= len(order) - 1:
        return [(i, j) for k, i in enumerate(order) for j in order[k + 1 :]]
    place = {i: k for k, i in enumerate(order)}
    circle: list[int | None] = [*order]
    random.Random(repr(seed)).shuffle(circle)
    circle += [None] * (len(circle) % 2)
    met = []
    for _ in range(opponents):
        half = len(circle) // 2
        for i, j in zip(circle[:half], circle[: half - 1 : -1], strict=True):
            if i is not None and j is not None:
                met.append((i, j) if place[i] < place[j] else (j, i))
        circle = [circle[0], circle[-1], *circle[1:-1]]
    return met
