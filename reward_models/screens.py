"""Rules on an action on a screen, without a judge: UI-R1 (arXiv:2503.21620) and GUI-R1 (arXiv:2504.10458).

A completion is <think>...</think> <answer>[{'action': ..., 'coordinate' or 'point': [x, y], ...}]</answer>. The answer
is a list of one mapping, written as Python writes it, which is parsed and never run. What is right is in the prompt's
meta; a completion that cannot be read scores 0, a prompt without its truth raises ValueError.
"""

import ast
from collections import Counter
from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import Tensor

from flowrl.contracts import NoTruth, Samples
from reward_models.parts.texts import ANSWER, THINK_ANSWER, texts_of, truth_of_any_kind

NEAR = 140  # pixels from a point that GUI-R1 takes for a hit
TEXTUAL = ("type", "select", "scroll")


def screen_action(samples: Samples, *, key: str = "action") -> Tensor:
    """1 where the action is meta[key], else 0; float32 [B] (UI-R1)."""
    pairs = zip(_answers(samples, "screen_action"), samples.prompts, strict=True)
    return torch.tensor([float(said.get("action") == truth_of_any_kind(prompt, key)) for said, prompt in pairs])


def screen_coordinate(samples: Samples, *, key: str = "box", scale: str = "scale") -> Tensor:
    """1 where the coordinate lies in the box meta[key] = [x1, y1, x2, y2], borders included; float32 [B] (UI-R1).

    The coordinate is multiplied by meta[scale] = [sx, sy], where the prompt has it, and cut to whole pixels.
    """
    scores = []
    for said, prompt in zip(_answers(samples, "screen_coordinate"), samples.prompts, strict=True):
        box, point = _numbers(truth_of_any_kind(prompt, key), 4), _numbers(said.get("coordinate"), 2)
        if box is None:
            raise NoTruth(f"prompt {prompt.text!r} has no {key!r} of four numbers in its meta")
        factor = _numbers(prompt.meta.get(scale), 2) or [1.0, 1.0]
        x, y = (int(p * f) for p, f in zip(point, factor, strict=True)) if point else (-1, -1)
        scores.append(float(point is not None and box[0] <= x <= box[2] and box[1] <= y <= box[3]))
    return torch.tensor(scores)


def screen_format(samples: Samples, *, whole: bool = False) -> Tensor:
    """1 where a completion is one block of thought and one of answer, and nothing else; float32 [B].

    whole: the answer has to be a list of actions, too, each with `action`, `point` of two whole numbers and
    `input_text`, which says something where one types, selects or opens, and a direction where one scrolls (GUI-R1, its
    code, which runs the answer as a program; here it is only parsed).
    """
    right = []
    for text in texts_of(samples, "screen_format"):
        formed = THINK_ANSWER.fullmatch(text.strip()) is not None
        right.append(formed and (not whole or _is_whole(_read(text))))
    return torch.tensor([float(value) for value in right])


def screen_step(samples: Samples, *, action: str = "action", box: str = "gt_bbox", text: str = "input_text") -> Tensor:
    """1 where the action is that of the prompt's meta, with the right place or text, else 0; float32 [B] (GUI-R1).

    click: strictly inside a box of four numbers, or nearer than 140 to a point of two. type, select, scroll: F1 of the
    words, without regard to case, at least 0.5. Other actions have nothing else to be right.
    """
    scores = []
    for said, prompt in zip(_answers(samples, "screen_step"), samples.prompts, strict=True):
        wanted = str(truth_of_any_kind(prompt, action)).lower()
        place = truth_of_any_kind(prompt, box) if wanted == "click" else None
        right = str(said.get("action", "")).lower() == wanted
        if right and wanted == "click":
            right = _hits(_numbers(said.get("point"), 2), place)
        elif right and wanted in TEXTUAL:
            right = _overlap(str(said.get("input_text", "")), str(prompt.meta.get(text, ""))) >= 0.5
        scores.append(float(right))
    return torch.tensor(scores)


def _hits(point: list[float] | None, place: Any) -> bool:
    box, centre = _numbers(place, 4), _numbers(place, 2)
    if point is None or (box is None and centre is None):
        return False
    if box is not None:
        return box[0] < point[0] < box[2] and box[1] < point[1] < box[3]
    return centre is not None and (point[0] - centre[0]) ** 2 + (point[1] - centre[1]) ** 2 < NEAR**2


def _overlap(said: str, wanted: str) -> float:
    """F1 of the words."""
    ours, theirs = Counter(said.lower().split()), Counter(wanted.lower().split())
    common = (ours & theirs).total()
    return 2 * common / (ours.total() + theirs.total()) if common else 0.0


def _numbers(value: Any, number: int) -> list[float] | None:
    """A list of so many numbers; None for anything else."""
    if not isinstance(value, Sequence) or isinstance(value, str) or len(value) != number:
        return None
    plain = all(isinstance(v, int | float) and not isinstance(v, bool) for v in value)
    return [float(v) for v in value] if plain else None


def _answers(samples: Samples, reward: str) -> list[Mapping[str, Any]]:
    return [_action(text) for text in texts_of(samples, reward)]


def _action(text: str) -> Mapping[str, Any]:
    """The first action in the last answer; empty where there is none."""
    read = _read(text)
    first = read[0] if isinstance(read, list) and read else read
    return first if isinstance(first, dict) else {}


def _read(text: str) -> Any:
    """What the last answer holds; None where it cannot be read."""
    blocks = ANSWER.findall(text)
    try:
        return ast.literal_eval(blocks[-1].strip()) if blocks else None
    except (ValueError, SyntaxError, MemoryError, RecursionError):
        return None


def _is_whole(read: Any) -> bool:
    """Whether this is a list of actions, each with all that GUI-R1 asks for."""
    return isinstance(read, list) and all(isinstance(entry, dict) and _is_said(entry) for entry in read)


def _is_said(entry: Mapping[str, Any]) -> bool:
    action, point, said = entry.get("action"), entry.get("point"), entry.get("input_text")
    if not isinstance(action, str) or not isinstance(said, str) or not isinstance(point, list | tuple):
        return False
    if len(point) < 2 or not all(isinstance(value, int) and not isinstance(value, bool) for value in point[:2]):
        return False
    if action in ("type", "select", "open_app"):
        return said != "no input text"
    return action != "scroll" or said in ("left", "right", "up", "down")
