"""Which samples of a group meet, and in what order they are shown: independent of the order that they stand in."""

import hashlib
import random
from collections.abc import Hashable, Sequence

from torch import Tensor


def groups(group: Tensor) -> list[list[int]]:
    """The positions of each group's samples, groups in the order in which they first appear."""
    found: dict[int, list[int]] = {}
    for position, name in enumerate(group.tolist()):
        found.setdefault(name, []).append(position)
    return list(found.values())


def fingerprint(urls: Sequence[str]) -> str:
    """A name for what a sample shows, the same wherever it stands."""
    return hashlib.sha256("\n".join(urls).encode()).hexdigest()


def drawn(names: Sequence[str], opponents: int | None, seed: Hashable) -> list[tuple[int, int]]:
    """Pairs of positions (i, j), i of the smaller name: all, or so many that each sample meets `opponents` others.

    The pairs are rounds of a round-robin tournament (circle method) over the samples as `seed` shuffles their names; of
    an odd number one sits out each round. The same samples in another order meet the same others.
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
