"""Rules of GLM-4.5V's reward system (arXiv:2507.01006), which differ by domain: form, numbers, text that is read.

Its recipe sends each prompt to the rule of its domain by `when`. The published code is github.com/zai-org/GLM-V,
glmv_reward. Two of its faults are not repeated: its rule for numbers never comes to pass (sympy refuses every text
when it is strict), and a judge that fails gives the lowest score; here a failure is no score.
"""

import re
from collections.abc import Callable
from typing import Literal

import torch
from torch import Tensor

from flowrl.contracts import Samples
from reward_models.answers import boxed
from reward_models.parts.extras import require_package
from reward_models.parts.texts import ANSWER, texts_of, truth

BEGIN, END = "<|begin_of_box|>", "<|end_of_box|>"
MARKS = re.compile(r"</?(?:think|answer)>", re.IGNORECASE)
WHOLE = re.compile(r"<think>(.*?)</think>\s*<answer>(.*?)</answer>\s*\Z", re.DOTALL | re.IGNORECASE)
THOUGHT_FIRST = re.compile(r"<think>(.*?)</think>(.*)\Z", re.DOTALL | re.IGNORECASE)
YEARS = range(1000, 3001)  # whole numbers that are right only where they are equal


def box_format(samples: Samples, *, answer: bool = True) -> Tensor:
    r"""1 if a completion is a thought and an answer with exactly one box in GLM's form, else 0; float32 [B].

    The thought is <think>...</think>, the box <|begin_of_box|>...<|end_of_box|>, not empty and without \boxed{}; no
    mark stands within another. answer: the box stands in <answer>...</answer>, as problems of science, charts and
    documents have it; without, in what follows the thought (reading, counting).
    """
    return torch.tensor([float(_box(text, WHOLE if answer else THOUGHT_FIRST) is not None) for text in _texts(samples)])


def close_number(samples: Samples, *, tolerance: float = 0.025, key: str = "answer") -> Tensor:
    """1 if the box of a completion holds the ground truth, or a number near it, else 0; float32 [B].

    Near is |a - b| / (|b| + 1e-6) < tolerance: 0.025 for charts, 1e-6 for mathematics, 1e-5 for physics and chemistry
    in the published configuration. Whole numbers of 1000 to 3000, which may be years, have to be equal. Other texts
    are compared as they stand. Raises ValueError for a tolerance below 0.
    """
    if tolerance < 0:
        raise ValueError(f"close_number: tolerance={tolerance}; accepted: 0 or more")
    scores = []
    for text, prompt in zip(texts_of(samples, "close_number"), samples.prompts, strict=True):
        wanted, inside = _plain(truth(prompt, key)), boxed(text)
        said = inside[0].strip() if len(inside) == 1 else None
        scores.append(float(said is not None and (said == wanted or _is_near(said, wanted, tolerance))))
    return torch.tensor(scores)


def text_similarity(
    samples: Samples,
    *,
    key: str = "answer",
    part: Literal["all", "answer", "box"] = "answer",
    case: bool = True,
    spaces: bool = False,
) -> Tensor:
    """1 - edit distance / length of the longer text, between completion and ground truth; float32 [B] in [0, 1].

    part: the whole completion, what stands behind its thought or in its last <answer>, or in its one box. case:
    capitals count. spaces: white space counts; without, it is left out, as in GLM-4.5V's rule. 0 for a completion
    without the part. HunyuanOCR (arXiv:2511.19575) has the same distance for documents. Needs
    `pip install flowrl-toolkit[text]`.
    """
    if part not in PARTS:
        raise ValueError(f"text_similarity: part={part!r}; accepted: {', '.join(PARTS)}")
    scores = []
    for text, prompt in zip(texts_of(samples, "text_similarity"), samples.prompts, strict=True):
        said, wanted = PARTS[part](text), _plain(truth(prompt, key))
        scores.append(0.0 if said is None else similarity(said, wanted, case=case, spaces=spaces))
    return torch.tensor(scores, dtype=torch.float32)


def similarity(said: str, wanted: str, *, case: bool = True, spaces: bool = False) -> float:
    """1 - edit distance / length of the longer text, in [0, 1]; see `text_similarity`."""
    distance = require_package("text_similarity", "rapidfuzz.distance", "text").Levenshtein
    pair = [text if case else text.lower() for text in (said, wanted)]
    pair = [text.strip() if spaces else "".join(text.split()) for text in pair]
    return distance.normalized_similarity(*pair)


def _texts(samples: Samples) -> list[str]:
    return texts_of(samples, "box_format")


def _box(text: str, form: re.Pattern[str]) -> str | None:
    """What stands in the one box of a text of this form; None where it has another."""
    found = form.match(text.strip())
    if found is None or MARKS.search(found[1]) or MARKS.search(found[2]):
        return None
    answer = found[2]
    if answer.count(BEGIN) != 1 or answer.count(END) != 1 or r"\boxed" in answer:
        return None
    return answer.partition(BEGIN)[2].partition(END)[0].strip() or None


def _plain(wanted: str) -> str:
    """The truth without the box or the marks that data sets may write it with."""
    inside = boxed(wanted)
    block = ANSWER.search(wanted)
    return (inside[0] if len(inside) == 1 else block[1] if block else wanted).strip()


def _is_near(said: str, wanted: str, tolerance: float) -> bool:
    a, b = _number(said), _number(wanted)
    if a is None or b is None or ("%" in said) != ("%" in wanted):
        return False
    if a in YEARS and b in YEARS:
        return a == b
    return abs(a - b) / (abs(b) + 1e-6) < tolerance


def _number(text: str) -> float | None:
    """The number of a text such as 1,234.5, $7 or 12 %; None for any other."""
    plain = re.sub(r"[\s,$%]", "", text)
    return float(plain) if re.fullmatch(r"[-+]?(?:\d+\.?\d*|\.\d+)(?:[eE][-+]?\d{1,3})?", plain) else None


def _one_box(text: str) -> str | None:
    inside = boxed(text)
    return inside[0] if len(inside) == 1 else None


def _answer(text: str) -> str | None:
    """What the last <answer> holds; without one, what follows the thought, or all."""
    blocks = ANSWER.findall(text)
    said = blocks[-1] if blocks else text.rpartition("</think>")[2]
    return said if said.strip() else None


PARTS: dict[str, Callable[[str], str | None]] = {
    "all": lambda text: text if text.strip() else None,
    "answer": _answer,
    "box": _one_box,
}
