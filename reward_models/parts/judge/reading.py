"""Reads the text in pictures with PP-OCRv6 by rapidocr, whose wheel holds the models (Apache-2.0): no download.

The engine is set up for many small pictures on few cores: one thread per picture, no search for upside-down lines, the
detector at 7/8 of the picture's size, and short words not padded to a long line before they are read.
"""

import threading
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import Any

from PIL import Image

from reward_models.parts.extras import require_package

SMALL = 128  # pixels a side up to which the detector sees a picture at its own size
NARROWEST = 96  # pixels that a line 48 high is padded to; 320 by default, which costs 16 ms more and reads no better
SETTINGS = {
    "EngineConfig.onnxruntime.intra_op_num_threads": 1,
    "EngineConfig.onnxruntime.inter_op_num_threads": 1,
    "EngineConfig.onnxruntime.enable_cpu_mem_arena": True,
    "Rec.rec_img_shape": [3, 48, NARROWEST],
    "Det.limit_type": "max",
    "Global.max_side_len": 2**20,  # lines are cut from the picture as it is
    "Global.use_cls": False,
    "Global.log_level": "critical",
}


def reading_order(boxes: Sequence[Sequence[tuple[float, float]]]) -> list[int]:
    """Positions of boxes (corners x, y) line by line from the top, each line from the left.

    A box belongs to a line when the middle of either lies within the height of the other. rapidocr asks for tops less
    than ten pixels apart instead: in large text it puts "Tall" before the "no" that it follows.
    """
    spans = [(min(y for _, y in box), max(y for _, y in box), min(x for x, _ in box)) for box in boxes]
    lines: list[list[int]] = []
    for i in sorted(range(len(boxes)), key=lambda i: spans[i][0] + spans[i][1]):
        top, bottom, _ = spans[i]
        if lines:
            first, last, _ = spans[lines[-1][0]]
            if first <= (top + bottom) / 2 <= last or top <= (first + last) / 2 <= bottom:
                lines[-1].append(i)
                continue
        lines.append([i])
    return [i for line in lines for i in sorted(line, key=lambda i: spans[i][2])]


class TextReader:
    """Reads pictures, `workers` at a time. The result of one depends neither on the others nor on threads.

    side: the detector sees larger pictures shrunk to it; lines are read from the picture itself. On more pixels it is
    not only slower but also finds less: 576 finds every word that is a fiftieth of the picture high, 896 does not.
    confidence: lines that the recogniser is less sure of, 0 to 1, do not count as text.
    """

    def __init__(self, reward: str, *, side: int = 576, confidence: float = 0.5, workers: int = 1):
        if side < 32:
            raise ValueError(f"{reward}: side={side}: accepted is 32 pixels or more, 576 by default")
        if not 0 <= confidence <= 1:
            raise ValueError(f"{reward}: confidence={confidence}: accepted is 0 (every line counts) to 1")
        if workers < 1:
            raise ValueError(f"{reward}: workers={workers}: accepted is 1 or more")
        require_package(reward, "onnxruntime", "vision")
        self._make: Any = require_package(reward, "rapidocr", "vision").RapidOCR
        self.side, self.confidence, self.workers = side, confidence, workers
        self._engines: dict[int, Any] = {}
        self._lock = threading.Lock()

    def lines(self, pictures: list[Image.Image]) -> list[list[str]]:
        """The lines of text in each RGB picture, from top to bottom and left to right."""
        if self.workers == 1 or len(pictures) < 2:
            return [self._lines(picture) for picture in pictures]
        with ThreadPoolExecutor(min(self.workers, len(pictures))) as pool:
            return list(pool.map(self._lines, pictures))

    def _lines(self, picture: Image.Image) -> list[str]:
        result = self._engine(max(picture.size))(picture)
        if result.txts is None:
            return []
        return [result.txts[i] for i in reading_order([[tuple(point) for point in box] for box in result.boxes])]

    def _engine(self, longest: int) -> Any:
        """The engine for pictures of this size: its detector's size is fixed when it is made."""
        limit = min(self.side, longest if longest <= SMALL else longest * 7 // 8)
        with self._lock:
            if limit not in self._engines:
                given = {**SETTINGS, "Det.limit_side_len": limit, "Global.text_score": self.confidence}
                self._engines[limit] = self._make(params=given)
            return self._engines[limit]
