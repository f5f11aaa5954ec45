"""Does a picture contain the text that its prompt asks for? Reads it, and compares letter by letter.

Scale 0 to 1: 1 - min(edit distance, n) / n, n the letters of the target, without regard to case, spaces, line breaks
and typographic variants of a character. The rule is that of Flow-GRPO (arXiv:2505.05470) with three of its faults
fixed: there a picture with the target among any amount of other text scores 1 (`compatible=True` restores this), a
prompt without quotes raises IndexError (elsewhere the whole prompt becomes the target), and an empty target divides by
zero. The recogniser is PP-OCRv6, which rapidocr ships (Apache-2.0): `pip install "flowrl-toolkit[vision]"`.
"""

import re
import unicodedata
from collections.abc import Sequence
from itertools import permutations
from typing import Literal

import torch
from torch import Tensor

from flowrl.contracts import Prompt, Samples
from reward_models.parts import inputs
from reward_models.parts.extras import require_package
from reward_models.parts.frames import evenly, frame_count
from reward_models.parts.judge.reading import TextReader

QUOTED = re.compile(r'"([^"]*)"|“([^”]*)”|„([^“”]*)[“”]|«([^»]*)»|「([^」]*)」|『([^』]*)』')
PLAIN = str.maketrans("‘’ʼ“”„–—", "'''\"\"\"--")  # a font's forms of the same character
ORDERS = 4  # up to this many texts, any order counts: their places in the picture are not specified


class ocr:  # noqa: N801 - recipes name it
    """How well the text in the picture matches the text that the prompt asks for.

    The target is the prompt's meta under `key` (a text, or a list of them), else the text in double quotes in the
    prompt. missing: for a prompt without a target, "error" or "nan". compatible: Flow-GRPO's rule, in which other text
    next to the target costs nothing and the first quoted text is the target. frames: how many frames of a video are
    read, None for all. side, confidence, workers: as in parts/judge/reading.py. Words 12 pixels high are found in
    pictures of up to 512 pixels, in larger ones those of a fiftieth of the longer side.
    """

    def __init__(
        self,
        *,
        key: str = "text",
        missing: Literal["error", "nan"] = "error",
        compatible: bool = False,
        frames: int | None = 8,
        side: int = 576,
        confidence: float = 0.5,
        workers: int = 1,
    ):
        if missing not in ("error", "nan"):
            raise ValueError(f"ocr: missing={missing!r}: accepted are error and nan")
        require_package("ocr", "rapidfuzz", "vision")
        self.key, self.missing, self.compatible, self.frames = key, missing, compatible, frame_count(frames)
        self.reader = TextReader("ocr", side=side, confidence=confidence, workers=workers)

    @torch.no_grad()
    def __call__(self, samples: Samples) -> Tensor:
        """float32 [B] in [0, 1]; a video has the mean over its frames."""
        pixels = inputs.frames("ocr", samples)
        wanted = [self._targets(prompt) for prompt in samples.prompts]
        scores = torch.full((len(samples),), torch.nan)
        known = torch.tensor([bool(texts) for texts in wanted], dtype=torch.bool)
        good = (known & ~inputs.is_unscorable(pixels).cpu()).nonzero().flatten().tolist() if len(samples) else []
        shown = pixels[good][:, evenly(pixels.shape[1], self.frames)]
        lines = self.reader.lines(inputs.as_pil(shown.flatten(0, 1)))
        for row, i in enumerate(good):
            of_sample = lines[row * shown.shape[1] : (row + 1) * shown.shape[1]]
            agreements = [agreement(wanted[i], frame, compatible=self.compatible) for frame in of_sample]
            scores[i] = sum(agreements) / len(agreements)
        return scores

    def _targets(self, prompt: Prompt) -> list[str]:
        """The prompt's targets; none if `missing` allows it. Raises ValueError if it does not."""
        texts = targets(prompt, self.key)
        if self.compatible:
            texts = texts[:1]
        if not texts and self.missing == "error":
            raise ValueError(
                f"ocr: prompt {prompt.text!r} does not say what to write: put it in double quotes, or into the "
                f"prompt's meta under {self.key!r}; missing: nan leaves such prompts unscored"
            )
        return texts


def targets(prompt: Prompt, key: str = "text") -> list[str]:
    """The texts that the prompt asks for, without those that hold no letter or sign at all.

    Raises ValueError if its meta under `key` is neither a text nor a list of texts.
    """
    value = prompt.meta.get(key)
    texts = [value] if isinstance(value, str) else value
    if texts is None:
        texts = ["".join(groups) for groups in QUOTED.findall(prompt.text)]
    if not isinstance(texts, list | tuple) or not all(isinstance(text, str) for text in texts):
        raise ValueError(
            f"ocr: prompt {prompt.text!r} has {key}={value!r} in its meta; accepted is a text or a list of texts"
        )
    return [text for text in texts if _letters(text)]


def agreement(wanted: Sequence[str], read: Sequence[str], *, compatible: bool = False) -> float:
    """1 - min(edit distance, n) / n, in [0, 1], between the lines read and the wanted texts of total length n.

    Up to four texts may come in any order. Raises ValueError if nothing is wanted.
    """
    from rapidfuzz.distance import Levenshtein

    letters = _letters_as_published if compatible else _letters
    parts, seen = [letters(text) for text in wanted], letters("".join(read))
    length = sum(map(len, parts))
    if not length:
        raise ValueError("ocr: the target is empty; accepted is a text with a letter or sign")
    if compatible and "".join(parts) in seen:
        return 1.0
    orders = permutations(parts) if len(parts) <= ORDERS else [parts]
    distance = min(Levenshtein.distance("".join(order), seen) for order in orders)
    return 1 - min(distance, length) / length


def _letters(text: str) -> str:
    plain = unicodedata.normalize("NFKC", text).translate(PLAIN)
    return "".join(plain.lower().split())


def _letters_as_published(text: str) -> str:
    return text.replace(" ", "").lower()
