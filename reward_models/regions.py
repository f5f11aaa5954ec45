"""How well a box or points of a completion meet the region of the prompt's meta: VLM-R1 and InfiGUI-G1.

Coordinates are pixels, [x1, y1, x2, y2]. A completion without a region that can be read scores lowest; a prompt without
its truth raises ValueError.
"""

import json
import math
import re
from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from flowrl.contracts import NoTruth, Prompt, Samples
from reward_models.parts.texts import ANSWER, texts_of, truth_of_any_kind

NUMBER = r"\s*(-?\d+(?:\.\d+)?)\s*"
BOX = re.compile(rf"\[{','.join([NUMBER] * 4)}\]")


def region_iou(samples: Samples, *, key: str = "box", least: float | None = None) -> Tensor:
    """Overlap of the first box in the last <answer> with the box meta[key]; float32 [B] in [0, 1].

    It is intersection over union of `pixel_iou` (VLM-R1, arXiv:2504.07615). least: 1 where it is at least that much,
    else 0 (VLM-R1's published detection reward takes 0.5). 0 for a completion without a box.
    """
    scores = []
    for text, prompt in zip(texts_of(samples, "region_iou"), samples.prompts, strict=True):
        wanted = _box(prompt, key)
        answers = ANSWER.findall(text)
        found = BOX.search(answers[-1]) if answers else None
        iou = pixel_iou([float(number) for number in found.groups()], wanted) if found else 0.0
        scores.append(iou if least is None else float(iou >= least))
    return torch.tensor(scores, dtype=torch.float32)


def pixel_iou(a: Sequence[float], b: Sequence[float]) -> float:
    """Intersection over union of two boxes whose corners are pixels that belong to them, in [0, 1].

    As VLM-R1's code has it, an intersection that is one pixel wide or high counts as none, and a box's own area is that
    of its corners' difference.
    """
    left, top, right, bottom = max(a[0], b[0]), max(a[1], b[1]), min(a[2] - 1, b[2] - 1), min(a[3] - 1, b[3] - 1)
    meet = (right - left + 1) * (bottom - top + 1) if left < right and top < bottom else 0.0
    union = (a[2] - a[0]) * (a[3] - a[1]) + (b[2] - b[0]) * (b[3] - b[1]) - meet
    return float(meet / union) if union > 0 else 0.0


def point_exploration(samples: Samples, *, key: str = "box", form: float = 1.0, hit: float = 1.0) -> Tensor:
    """Whether one of several points that a completion names lies in the box meta[key]; float32 [B].

    Behind <think>...</think> stands a JSON list of {"point_2d": [x, y]}. With the first hit at place k of n points the
    score is form + hit / sqrt(n k), without one form - hit / n. Three or more points of which three lie on a line, or a
    text that cannot be read, score -form: adaptive exploration of InfiGUI-G1 (arXiv:2508.05731), its code.
    """
    scores = []
    for text, prompt in zip(texts_of(samples, "point_exploration"), samples.prompts, strict=True):
        x1, y1, x2, y2 = _box(prompt, key)
        points = _points(text)
        if not points or _three_on_a_line(points):
            scores.append(-form)
            continue
        inside = [x1 <= x <= x2 and y1 <= y <= y2 for x, y in points]
        number = len(points)
        found = hit / math.sqrt(number * (inside.index(True) + 1)) if any(inside) else -hit / number
        scores.append(form + found)
    return torch.tensor(scores, dtype=torch.float32)


def _box(prompt: Prompt, key: str) -> list[float]:
    """The four numbers of a box in a prompt's meta, also as a mapping with x1, y1, x2, y2."""
    value = truth_of_any_kind(prompt, key)
    if isinstance(value, dict) and {"x1", "y1", "x2", "y2"} <= value.keys():
        value = [value[name] for name in ("x1", "y1", "x2", "y2")]
    if not isinstance(value, list | tuple) or len(value) != 4 or not all(map(_is_number, value)):
        raise NoTruth(f"prompt {prompt.text!r}: {key}={value!r} in its meta; accepted are four numbers x1, y1, x2, y2")
    return [float(v) for v in value]


def _is_number(value: Any) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool) and math.isfinite(value)


def _points(text: str) -> list[tuple[float, float]]:
    """The points of a completion in their order; none where it cannot be read."""
    thought, mark, after = text.partition("</think>")
    listed = re.search(r"\[.*\]", after, re.DOTALL)
    if "<think>" not in thought or not mark or not listed:
        return []
    try:
        read = json.loads(listed[0])
    except (ValueError, RecursionError):
        return []
    points = []
    for entry in read if isinstance(read, list) else []:
        point = entry.get("point_2d") if isinstance(entry, dict) else None
        if not isinstance(point, list) or len(point) != 2 or not all(map(_is_number, point)):
            return []
        points.append((float(point[0]), float(point[1])))
    return points


def _three_on_a_line(points: Sequence[tuple[float, float]]) -> bool:
    """Whether some three of the points lie on one line."""
    for i, (ax, ay) in enumerate(points):
        for j in range(i + 1, len(points)):
            bx, by = points[j]
            for cx, cy in points[j + 1 :]:
                if math.isclose((bx - ax) * (cy - ay), (by - ay) * (cx - ax), abs_tol=1e-9):
                    return True
    return False
