"""Captions that a scene nearly fits, and other captions that it fits as well."""

import random
from dataclasses import replace
from functools import cache

from flowrl.worlds.shapes.captions import COLORS, RELATIONS, SHAPES, Object, Scene, split
from flowrl.worlds.shapes.render import MAX_OBJECTS

OPPOSITE = {"left of": "right of", "right of": "left of", "above": "below", "below": "above"}
CHANGES = ("color", "shape", "number", "exchange", "relation")


def lookalikes(scene: Scene, number: int, rng: random.Random, *, seen: bool) -> list[Scene]:
    """Up to `number` distinct scenes that differ from this one in a colour, a shape, a number, an attribute that two
    objects exchange, or the relation. seen: only compositions that occur in training.

    One may still be true of a picture in which an object lies near the diagonal: "above" as well as "left of".
    """
    by_caption: dict[str, Scene] = {}
    for _ in range(8 * number):
        changed = change_one_thing(scene, rng.choice(CHANGES), rng)
        if changed is not None and not (seen and is_held_out(changed)):
            by_caption.setdefault(changed.caption, changed)
        if len(by_caption) == number:
            break
    return list(by_caption.values())


def change_one_thing(scene: Scene, what: str, rng: random.Random) -> Scene | None:
    """The scene with one thing changed; None if it has no such thing, or if nothing would change."""
    groups = {obj: scene.objects.count(obj) for obj in scene.objects}
    kept = scene.relation
    if what == "relation":
        return None if kept is None else replace(scene, relation=rng.choice([r for r in RELATIONS if r != kept]))
    if what == "exchange":
        return _exchange(scene, groups, rng)
    chosen = rng.choice(list(groups))
    if what == "number":
        if kept is not None:
            return None
        first = next(iter(groups))  # of two kinds, the world counts the first only
        most = MAX_OBJECTS - len(groups) + 1
        groups[first] = rng.choice([n for n in range(1, most + 1) if n != groups[first]])
        return scene_of(groups, None)
    color, shape = chosen
    new = (rng.choice([c for c in COLORS if c != color]), shape)
    if what == "shape":
        new = (color, rng.choice([s for s in SHAPES if s != shape]))
    renamed = {new if obj == chosen else obj: n for obj, n in groups.items()}
    return scene_of(renamed, kept) if len(renamed) == len(groups) and _sayable(renamed) else None


def paraphrase(scene: Scene, rng: random.Random) -> Scene:
    """Another scene that every picture of this one also shows, or the same scene."""
    if scene.kind == "pair":
        return replace(scene, objects=scene.objects[:: rng.choice((1, -1))])
    if scene.relation is None:
        return scene
    turned = Scene("relation", scene.objects[::-1], OPPOSITE[scene.relation])
    if rng.random() < 0.15:
        return Scene("pair", rng.choice((scene, turned)).objects)
    return rng.choice((scene, turned))


def contents(scene: Scene) -> tuple[Object, ...]:
    """The objects of a scene in a fixed order: scenes of equal contents may both be true of a picture."""
    return tuple(sorted(scene.objects))


def is_held_out(scene: Scene) -> bool:
    """Whether the composition is one that training never shows."""
    pairs, counts = _held_out()
    kinds = frozenset(scene.objects)
    return kinds in pairs if len(kinds) == 2 else contents(scene) in counts


@cache
def _held_out() -> tuple[set[frozenset[Object]], set[tuple[Object, ...]]]:
    scenes = [s for of_kind in split()[1].values() for s in of_kind]
    pairs = {frozenset(s.objects) for s in scenes if len(set(s.objects)) == 2}
    return pairs, {contents(s) for s in scenes if len(set(s.objects)) == 1}


def _exchange(scene: Scene, groups: dict[Object, int], rng: random.Random) -> Scene | None:
    """Two kinds of object with their colours exchanged, or their numbers."""
    if len(groups) != 2:
        return None
    (one, n), (two, m) = groups.items()
    if n != m and rng.random() < 0.5:
        return scene_of({two: n, one: m}, scene.relation)
    swapped = {(two[0], one[1]): n, (one[0], two[1]): m}
    if one[1] == two[1] and n == m:
        return None
    return scene_of(swapped, scene.relation)


def _sayable(groups: dict[Object, int]) -> bool:
    return len({color for color, _ in groups}) == len(groups)  # two kinds of one colour are never drawn


def scene_of(groups: dict[Object, int], relation: str | None) -> Scene:
    """The scene of so many of each object, in this order."""
    objects = tuple(obj for obj, n in groups.items() for _ in range(n))
    if relation is not None:
        return Scene("relation", objects, relation)
    return Scene("single" if len(objects) == 1 else "pair" if len(groups) == len(objects) else "count", objects)
