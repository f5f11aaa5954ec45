"""Rules that read a completion: is its answer right, and is it written in the requested format?

The ground truth is in the prompt's meta, under `answer` unless `key` says otherwise; of a text such as GSM8K's
"... #### 72" it is what follows the marks. A prompt without one is a mistake in the prompt file and raises ValueError;
a completion without an answer scores 0.
"""

import re
import threading
from decimal import Decimal, InvalidOperation
from typing import Any

import torch
from torch import Tensor

from flowrl.contracts import Samples
from reward_models.parts.texts import texts_of, truth

SECONDS = 5  # that math-verify may take over one expression


def exact_match(samples: Samples, *, pattern: str | None = None, tag: str = "answer", key: str = "answer") -> Tensor:
    """1 where the last <answer>...</answer> (or the last match of `pattern`) is the ground truth, else 0; float32 [B].

    Numbers are compared by value, without commas, spaces and leading zeros; other texts without regard to case. pattern
    is a regular expression whose first group, or whole match if it has none, is the answer.
    """
    find = _pattern(pattern, tag)
    pairs = zip(texts_of(samples, "exact_match"), samples.prompts, strict=True)
    return torch.tensor([float(_is_same(_last_match(find, text), truth(prompt, key))) for text, prompt in pairs])


def numeric_answer(samples: Samples, *, key: str = "answer") -> Tensor:
    """1 where the number in the last <answer>...</answer>, or the whole text, equals the truth's, else 0; float32 [B].

    NaN where the truth is no number. VLM-R1 (arXiv:2504.07615), see `numbers_equal`.
    """
    scores = []
    for text, prompt in zip(texts_of(samples, "numeric_answer"), samples.prompts, strict=True):
        wanted = truth(prompt, key)
        unknown = numbers_equal(wanted, wanted) is None
        scores.append(torch.nan if unknown else numbers_equal(text, wanted) or 0.0)
    return torch.tensor(scores, dtype=torch.float32)


def numbers_equal(said: str, wanted: str) -> float | None:
    """1.0 where two texts are the same number, 0.0 where they are not, None where one of them is none.

    Each is read from its last <answer>...</answer>, where it has one, without a dot at its end.
    """
    values = []
    for text in (said, wanted):
        inside = _last_match(_pattern(None, "answer"), text)
        try:
            values.append(float((text if inside is None else inside).strip().removesuffix(".")))
        except ValueError:
            return None
    return float(values[0] == values[1])


def boxed(text: str) -> list[str]:
    r"""What stands in the outermost boxes of a text: \boxed{...}, or without any <|begin_of_box|>...<|end_of_box|>.

    GLM-4.5V's reward system (arXiv:2507.01006), its code: the first kind is taken as it stands, also where it never
    ends; of the second, which may be nested, what is stripped and ends.
    """
    found, end = [], 0
    while (start := text.find(r"\boxed{", end)) >= 0:
        depth, end = 1, start + len(r"\boxed{")
        first = end
        while end < len(text) and depth:
            depth += {"{": 1, "}": -1}.get(text[end], 0)
            end += 1
        found.append(text[first : end - 1] if depth == 0 else text[first:end])
    if found:
        return found
    opened = []
    for mark in re.finditer(r"<\|(begin|end)_of_box\|>", text):
        if mark[1] == "begin":
            opened.append(mark.end())
        elif opened:
            first = opened.pop()
            if not opened:
                found.append(text[first : mark.start()].strip())
    return found


def boxed_answer(samples: Samples, *, key: str = "answer") -> Tensor:
    """1 where the one box of a completion holds the ground truth, compared as in `exact_match`, else 0; float32 [B].

    Several boxes that do not agree are no answer (see `boxed`).
    """
    scores = []
    for text, prompt in zip(texts_of(samples, "boxed_answer"), samples.prompts, strict=True):
        inside, wanted = boxed(text), truth(prompt, key)
        scores.append(float(bool(inside) and all(_is_same(found, wanted) for found in inside)))
    return torch.tensor(scores)


def answer_format(samples: Samples, *, tag: str = "answer") -> Tensor:
    """1 where a completion holds exactly one <answer>...</answer>, not empty and with nothing after it; float32 [B]."""
    opened, closed = f"<{tag}>", f"</{tag}>"
    scores = []
    for text in texts_of(samples, "answer_format"):
        single = text.count(opened) == text.count(closed) == 1
        inside, mark, after = text.partition(opened)[2].partition(closed)
        scores.append(float(single and bool(mark) and bool(inside.strip()) and not after.strip()))
    return torch.tensor(scores)


def math_answer(samples: Samples, *, pattern: str | None = None, tag: str = "answer", key: str = "answer") -> Tensor:
    r"""1 where the answer equals the ground truth as mathematics (1/2, 0.5, \frac{1}{2}), else 0; float32 [B].

    The answer is the content of the last <answer>...</answer>, or the last match of `pattern`, as in exact_match;
    without one, what math-verify extracts from the completion, \boxed{} first. NaN if the ground truth itself cannot be
    read. Needs `pip install flowrl-toolkit[text]`.
    """
    texts, find = texts_of(samples, "math_answer"), _pattern(pattern, tag)
    from math_verify import parse, verify  # pyright: ignore[reportMissingImports]

    # its time limits are signals, which only the main thread may set; `parse` takes None too, which its hint leaves out
    seconds: Any = SECONDS if threading.current_thread() is threading.main_thread() else None
    scores = []
    for text, prompt in zip(texts, samples.prompts, strict=True):
        gold = parse(rf"\boxed{{{truth(prompt, key)}}}", fallback_mode="no_fallback", parsing_timeout=seconds)
        inside = _last_match(find, text)
        answer = text if inside is None else rf"\boxed{{{inside}}}"
        right = bool(gold) and verify(gold, parse(answer, parsing_timeout=seconds), timeout_seconds=seconds)
        scores.append(float(right) if gold else torch.nan)
    return torch.tensor(scores, dtype=torch.float32)


def _pattern(pattern: str | None, tag: str) -> re.Pattern[str]:
    try:
        return re.compile(pattern or f"<{re.escape(tag)}>(.*?)</{re.escape(tag)}>", re.DOTALL)
    except re.error as error:
        raise ValueError(f"pattern={pattern!r} is not a regular expression ({error}); correct it") from None


def _last_match(find: re.Pattern[str], text: str) -> str | None:
    """The last match in the text: its first group, or all of it; None without a match."""
    matches = list(find.finditer(text))
    return matches[-1].group(1 if find.groups else 0) if matches else None


def _is_same(found: str | None, wanted: str) -> bool:
    if found is None:
        return False
    ours, theirs = _number(found), _number(wanted)
    if ours is not None and theirs is not None:
        return ours == theirs
    return " ".join(found.split()).casefold() == " ".join(wanted.split()).casefold()


def _number(text: str) -> Decimal | None:
    """The value of a number such as 1,234 or -007; None for any other text, infinities included."""
    try:
        value = Decimal(re.sub(r"[\s,$]", "", text).removesuffix("."))
    except InvalidOperation:
        return None
    return value if value.is_finite() else None
