"""Did a model find every line of text in a picture, and read it right? Spotting, as HunyuanOCR is asked to
(arXiv:2511.19575).

A completion names each line and its box as that model writes them, `text(x1,y1),(x2,y2)`. What is right is in the
prompt's meta: a list of {"text": ..., "box": [x1, y1, x2, y2]} in the same units, which for that model are thousandths
of the picture's sides. A prompt without the list raises ValueError.
"""

import re
from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import Tensor

from flowrl.contracts import NoTruth, Prompt, Samples
from reward_models.domains import similarity
from reward_models.parts.texts import texts_of, truth_of_any_kind

LINE = re.compile(r"([^()]+)\(\s*(\d+)\s*,\s*(\d+)\s*\)\s*,\s*\(\s*(\d+)\s*,\s*(\d+)\s*\)")
Box = tuple[float, float, float, float]
Line = tuple[str, Box]


def text_spotting(samples: Samples, *, key: str = "lines", least: float = 0.5) -> Tensor:
    """Mean over all lines, those that should be named and those that were, of how well each is read; float32 [B].

    A line that was named and one of the truth belong together where their boxes overlap by `least` or more
    (intersection over union), so that all overlaps add up to the most; such a pair has 1 - edit distance / length of
    the longer text, every line without a partner 0. The report says that place and text count together, by
    overlap and normalised edit distance, and gives no formula: this one is ours. Needs `pip install
    flowrl-toolkit[text]`. Raises ValueError for `least` outside (0, 1].
    """
    if not 0 < least <= 1:
        raise ValueError(f"text_spotting: least={least}; accepted: above 0, at most 1")
    scores = []
    for text, prompt in zip(texts_of(samples, "text_spotting"), samples.prompts, strict=True):
        wanted, named = _lines(prompt, key), lines_of(text)
        pairs = _partners(named, wanted, least)
        number = len(wanted) + len(named) - len(pairs)
        read = sum(similarity(named[i][0], wanted[j][0], spaces=True) for i, j in pairs)
        scores.append(read / number if number else 1.0)
    return torch.tensor(scores, dtype=torch.float32)


def lines_of(text: str) -> list[Line]:
    """The lines of text and their boxes that a completion names, in its order; what is no such pair is passed over."""
    found = []
    for said, *corners in LINE.findall(text):
        x1, y1, x2, y2 = (float(corner) for corner in corners)
        found.append((said.strip(" \n,;"), (min(x1, x2), min(y1, y2), max(x1, x2), max(y1, y2))))
    return found


def box_overlap(a: Sequence[float], b: Sequence[float]) -> float:
    """Intersection over union of two boxes [x1, y1, x2, y2] of real numbers, in [0, 1]; 0 where both are empty."""
    width, height = min(a[2], b[2]) - max(a[0], b[0]), min(a[3], b[3]) - max(a[1], b[1])
    meet = max(0.0, width) * max(0.0, height)
    union = (a[2] - a[0]) * (a[3] - a[1]) + (b[2] - b[0]) * (b[3] - b[1]) - meet
    return meet / union if union > 0 else 0.0


def _partners(named: Sequence[Line], wanted: Sequence[Line], least: float) -> list[tuple[int, int]]:
    """Pairs of lines (named, wanted), each in one at most, whose overlaps add up to the most."""
    from scipy.optimize import linear_sum_assignment

    if not named or not wanted:
        return []
    overlaps = torch.tensor([[box_overlap(a, b) for _, b in wanted] for _, a in named], dtype=torch.float64)
    counted = overlaps.where(overlaps >= least, 0.0)
    rows, columns = linear_sum_assignment(counted.numpy(), maximize=True)
    return [(i, j) for i, j in zip(rows.tolist(), columns.tolist(), strict=True) if counted[i, j] > 0]


def _lines(prompt: Prompt, key: str) -> list[Line]:
    listed = truth_of_any_kind(prompt, key)
    if not isinstance(listed, list) or not all(_is_line(entry) for entry in listed):
        raise NoTruth(
            f"prompt {prompt.text!r}: {key}={listed!r:.80} in its meta; accepted is a list of "
            '{"text": ..., "box": [x1, y1, x2, y2]}'
        )
    return [(str(entry["text"]), _box(*map(float, entry["box"]))) for entry in listed]


def _box(left: float, top: float, right: float, bottom: float) -> Box:
    return left, top, right, bottom


def _is_line(entry: Any) -> bool:
    box = entry.get("box") if isinstance(entry, Mapping) else None
    numbers = isinstance(box, list | tuple) and len(box) == 4 and all(isinstance(v, int | float) for v in box)
    return numbers and isinstance(entry.get("text"), str)
