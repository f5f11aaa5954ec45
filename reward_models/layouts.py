"""Where furniture is put in a room: form, collisions and places of a layout, as MetaSpatial's code has them
(arXiv:2503.18470).

A completion is <think>...</think> <answer>[{"new_object_id": ..., "x": ..., "y": ..., "z": ...}, ...]</answer> with the
centre of each object, in metres. What is known of the room is in the prompt's meta: `objects`, a list of
{"id", "size": [length, width, height], "angle": 0, 90, 180 or 270, "places": [[x0, x1, y0, y1, z0, z1], ...]}, of which
places, the ranges that a centre may lie in, may be missing; and `room`, its [x, y, z]. The published reward has a
vision-language model grade a picture that Blender renders of the room, too: a rule cannot know that. A prompt without
its objects raises ValueError.
"""

import json
import math
from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import Tensor

from flowrl.contracts import NoTruth, Prompt, Samples
from reward_models.parts.texts import ANSWER, THINK_ANSWER, texts_of, truth_of_any_kind

TOUCH = 1e-3  # metres by which bodies may overlap
THIN = 40.0  # a body whose longest side is so many times its shortest collides with nothing
Body = Mapping[str, Any]
Point = tuple[float, float, float]


def layout_format(samples: Samples, *, key: str = "objects") -> Tensor:
    """0 for another form than thought and answer, 0.1 where the answer is no JSON, 0.5 where its number of objects is
    not that of meta[key], else 1; float32 [B]."""
    scores = []
    for text, prompt in zip(texts_of(samples, "layout_format"), samples.prompts, strict=True):
        number = len(_bodies(prompt, key))
        if THINK_ANSWER.fullmatch(text.strip()) is None:
            scores.append(0.0)
            continue
        read = _answer(text)
        listed = isinstance(read, list | dict)
        scores.append(0.1 if not listed else 1.0 if isinstance(read, list) and len(read) == number else 0.5)
    return torch.tensor(scores)


def layout_collisions(samples: Samples, *, key: str = "objects") -> Tensor:
    """The share of pairs of objects that collide; float32 [B] in [0, 1], to be counted with a weight below 0.

    Bodies are boxes along the walls, turned by their angle. 0 for a completion that does not place each object of
    meta[key] once, which `layout_format` is for.
    """
    scores = []
    for text, prompt in zip(texts_of(samples, "layout_collisions"), samples.prompts, strict=True):
        bodies, placed = _bodies(prompt, key), _placed(text, prompt, key)
        pairs = [(a, b) for a in bodies for b in bodies if a["id"] < b["id"]] if placed else []
        hits = [_collide(a, placed[a["id"]], b, placed[b["id"]]) for a, b in pairs]
        scores.append(sum(hits) / len(hits) if hits else 0.0)
    return torch.tensor(scores, dtype=torch.float32)


def layout_misplaced(samples: Samples, *, key: str = "objects", room: str = "room") -> Tensor:
    """The share of objects whose centre lies in none of their places; float32 [B] in [0, 1], for a weight below 0.

    An object without places has to lie within the room meta[room] = [x, y, z]. 0 for a completion that does not place
    each object once. Places follow from how objects stand to each other and to the walls: they come with the data.
    """
    scores = []
    for text, prompt in zip(texts_of(samples, "layout_misplaced"), samples.prompts, strict=True):
        bodies, placed = _bodies(prompt, key), _placed(text, prompt, key)
        ranges = [_ranges(body, prompt, room) for body in bodies]
        pairs = zip(bodies, ranges, strict=True)
        wrong = [not _is_in(placed[body["id"]], places) for body, places in pairs] if placed else []
        scores.append(sum(wrong) / len(wrong) if wrong else 0.0)
    return torch.tensor(scores, dtype=torch.float32)


def _answer(text: str) -> Any:
    """What the first answer holds as JSON; None where it is none."""
    found = ANSWER.search(text)
    try:
        return json.loads(found[1]) if found else None
    except (ValueError, RecursionError):
        return None


def _placed(text: str, prompt: Prompt, key: str) -> dict[str, Point]:
    """Identity -> centre; empty where the objects are not those of the prompt, each once and with three numbers."""
    read, wanted = _answer(text), {body["id"] for body in _bodies(prompt, key)}
    entries = read if isinstance(read, list) else []
    found: dict[str, Point] = {}
    for entry in entries:
        point: list[Any] = [entry.get(axis) for axis in "xyz"] if isinstance(entry, dict) else [None]
        name = entry.get("new_object_id") if isinstance(entry, dict) else None
        if not all(map(_is_number, point)) or not isinstance(name, str) or name in found:
            return {}
        found[name] = (float(point[0]), float(point[1]), float(point[2]))
    return found if found.keys() == wanted else {}


def _sides(body: Body) -> tuple[float, float, float]:
    """Length, width and height as the body stands."""
    length, width, height = body["size"]
    return (width, length, height) if round(body.get("angle", 0)) % 180 == 90 else (length, width, height)


def _collide(a: Body, at: Point, b: Body, there: Point) -> bool:
    if any(max(body["size"]) >= THIN * min(body["size"]) for body in (a, b)):
        return False
    reach = [(s + t) / 2 for s, t in zip(_sides(a), _sides(b), strict=True)]
    return all(abs(p - q) < r - TOUCH for p, q, r in zip(at, there, reach, strict=True))


def _ranges(body: Body, prompt: Prompt, room: str) -> list[Sequence[float]]:
    if body.get("places"):
        return body["places"]
    sides = truth_of_any_kind(prompt, room)
    if not isinstance(sides, list | tuple) or len(sides) != 3 or not all(map(_is_number, sides)):
        raise NoTruth(f"prompt {prompt.text!r}: {room}={sides!r} in its meta; accepted are three numbers")
    halves = [side / 2 for side in _sides(body)]
    return [[edge for half, side in zip(halves, sides, strict=True) for edge in (half, side - half)]]


def _is_in(point: Point, ranges: Sequence[Sequence[float]]) -> bool:
    """Whether a point lies in one of the ranges, borders included."""
    return any(all(r[2 * i] <= p <= r[2 * i + 1] for i, p in enumerate(point)) for r in ranges)


def _bodies(prompt: Prompt, key: str) -> list[Body]:
    listed = truth_of_any_kind(prompt, key)
    if not isinstance(listed, list) or not listed or not all(map(_is_body, listed)):
        raise NoTruth(
            f"prompt {prompt.text!r}: {key}={listed!r:.80} in its meta; accepted is a list of "
            '{"id": ..., "size": [length, width, height]}'
        )
    return listed


def _is_body(entry: Any) -> bool:
    size = entry.get("size") if isinstance(entry, Mapping) else None
    sides = isinstance(size, list | tuple) and len(size) == 3 and all(_is_number(v) and v > 0 for v in size)
    return sides and isinstance(entry.get("id"), str)


def _is_number(value: Any) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool) and math.isfinite(value)
