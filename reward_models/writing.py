"""How a completion is written, without a judge: form, repetition, one language. No truth is needed.

Each is 0 or 1, or a punishment from `worst` to 0; a recipe adds them to the reward of the answer by their weights.
"""

import re
from collections import Counter
from collections.abc import Hashable, Sequence
from typing import Literal

import torch
from torch import Tensor

from flowrl.contracts import Samples
from reward_models.parts.texts import THINK_ANSWER, THOUGHT, texts_of

CHINESE = re.compile(r"[\u4e00-\u9fff]")
WORD = re.compile(r"\b[a-zA-Z]{2,}\b")
FORMS = {  # form -> what matches at the begin of a completion that has it
    "answer": re.compile(rf"{THINK_ANSWER.pattern}\Z", re.DOTALL),
    "any": re.compile(r"<think>(?!.*<think>)(.*?)</think>", re.DOTALL),
    "alone": re.compile(r"<answer>.*?</answer>\Z", re.DOTALL),
    "boxed": re.compile(r"<think>.*</think>.*\\boxed\{.*\}", re.DOTALL),
    "lines": re.compile(r"<think>\n.*?\n</think>\n<answer>\n.*?\n</answer>\n?\Z", re.DOTALL),
}
RULED = "=|-~_#*.%－█ ─"  # characters that tables and rules are made of, which repeat in good texts


def think_format(samples: Samples, *, form: Literal["answer", "any", "alone", "boxed", "lines"] = "answer") -> Tensor:
    """1 if a completion is a thought and an answer in the requested form, else 0; float32 [B].

    answer: one block <think>...</think>, white space, one block <answer>...</answer> and nothing else (Video-R1,
    ms-swift). any: one block of thought at its very beginning, with anything behind it (TRL). alone: a block of answer
    and nothing else (R1-AQA, arXiv:2503.11197). boxed: a block of thought at its very beginning and behind it a
    \\boxed{...} (EasyR1, as of PAPO and NoisyRollout). lines: as answer, with each mark on a line of its own
    (Praxis-VLM, arXiv:2503.16965).
    """
    if form not in FORMS:
        raise ValueError(f"think_format: form={form!r}; accepted: {', '.join(FORMS)}")
    return torch.tensor([float(FORMS[form].match(text) is not None) for text in texts_of(samples, "think_format")])


def mark_lines(samples: Samples) -> Tensor:
    """A quarter for each of four marks that a completion has exactly once, on a line of its own; float32 [B] in [0, 1].

    They are <think>, </think>, <answer> and </answer>; the first needs a line break behind it, the last one before it,
    the others both. Praxis-VLM (arXiv:2503.16965), its code.
    """
    marks = ("<think>\n", "\n</think>\n", "\n<answer>\n", "\n</answer>")
    texts = texts_of(samples, "mark_lines")
    return torch.tensor([sum(text.count(mark) == 1 for mark in marks) / len(marks) for text in texts])


def closed_tags(
    samples: Samples, *, needed: bool = False, longest: int | None = None, good: float = 1.0, bad: float = 0.0
) -> Tensor:
    """`good` where <think>, and behind the last thought <answer>, are closed as often as opened; else `bad`; [B].

    Of a conversation it is all that the model said. needed: both have to be there, and the answer must not be empty.
    longest: the last answer has fewer characters. DeepEyes (arXiv:2505.14362): good 0, bad -1, longest 1000; DeepEyesV2
    (arXiv:2511.05271): needed, longest 300, where a thought may be open from the beginning; both as their code has it.
    """
    texts = texts_of(samples, "closed_tags")
    texts = texts if samples.talks is None else [talk.text for talk in samples.talks]
    return torch.tensor([good if _closed(text, needed, longest) else bad for text in texts], dtype=torch.float32)


def _closed(text: str, needed: bool, longest: int | None) -> bool:
    text = f"<think>{text}" if needed and not text.startswith("<think>") else text
    thoughts = (text.count("<think>"), text.count("</think>"))
    behind = text.rpartition("</think>")[2]
    answers = (behind.count("<answer>"), behind.count("</answer>"))
    said = text.rpartition("<answer>")[2].partition("</answer>")[0].strip()
    there = not needed or bool(min(thoughts) and min(answers) and said)
    short = longest is None or len(said) < longest
    return thoughts[0] == thoughts[1] and answers[0] == answers[1] and there and short


def thought_length(samples: Samples, *, words: int = 250) -> Tensor:
    """Number of words of the first thought divided by the wanted number, at most 1; float32 [B].

    Praxis-VLM's code takes 250. Raises ValueError for words below 1.
    """
    if words < 1:
        raise ValueError(f"thought_length: words={words}; accepted: 1 or more")
    thoughts = [THOUGHT.search(text) for text in texts_of(samples, "thought_length")]
    return torch.tensor([min(1.0, len(found[1].split()) / words) if found else 0.0 for found in thoughts])


def repetition(
    samples: Samples, *, size: int = 3, worst: float = -1.0, units: Literal["words", "characters"] = "words"
) -> Tensor:
    """worst times the share of n-grams of a completion that occurred before; float32 [B]: see `repetition_penalty`.

    size: words, or characters, of an n-gram.
    """
    if units not in ("words", "characters"):
        raise ValueError(f"repetition: units={units!r}; accepted: words, characters")
    texts = texts_of(samples, "repetition")
    pieces: list[Sequence[Hashable]] = [text.split() if units == "words" else text for text in texts]
    return torch.tensor([repetition_penalty(piece, size, worst) for piece in pieces], dtype=torch.float32)


def repetition_penalty(sequence: Sequence[Hashable], size: int, worst: float) -> float:
    """(1 - distinct / all n-grams of `size`) * worst; 0 for a sequence that is too short to have one.

    Demystifying Long Chain-of-Thought Reasoning (arXiv:2502.03373), as TRL has it. Raises ValueError for a size below 1
    or a worst above 0.
    """
    if size < 1 or worst > 0:
        raise ValueError(f"size={size}, worst={worst}: accepted are a size of 1 or more and a worst of 0 or less")
    number = len(sequence) - size + 1
    if number < 1:
        return 0.0
    distinct = len({tuple(sequence[i : i + size]) for i in range(number)})
    return (1 - distinct / number) * worst


def no_loop(samples: Samples, *, window: int = 50, times: int = 10) -> Tensor:
    """0 if any `window` characters of a completion occur in it `times` times or more, else 1; float32 [B].

    Runs of three or more of one character that tables and rules are made of do not count (GLM-4.5V's reward system,
    arXiv:2507.01006, its code). Raises ValueError for a window below 1 or times below 2.
    """
    if window < 1 or times < 2:
        raise ValueError(f"no_loop: window={window}, times={times}; accepted are 1 or more and 2 or more")
    return torch.tensor([float(not loops(text, window, times)) for text in texts_of(samples, "no_loop")])


def loops(text: str, window: int = 50, times: int = 10) -> bool:
    """Whether some `window` characters of the text stand in it `times` times or more; see `no_loop`."""
    text = re.sub(r"\|-+\|", "|", text)
    for character in RULED:
        text = re.sub(rf"{re.escape(character)}{{3,}}", "", text)
    seen = Counter(text[i : i + window] for i in range(len(text) - window + 1))
    return max(seen.values(), default=0) >= times


def one_language(samples: Samples) -> Tensor:
    """0 where a completion has a long paragraph of Chinese and another of English, else 1; float32 [B].

    GLM-4.5V's reward system: see `mixes_languages`.
    """
    return torch.tensor([float(not mixes_languages(text)) for text in texts_of(samples, "one_language")])


def mixes_languages(text: str) -> bool:
    """Whether one paragraph is Chinese, 50 characters or more and 80 % of it, and one English: 200 words, 70 %."""
    chinese = english = False
    for paragraph in filter(None, map(str.strip, re.split(r"\n{2,}", text))):
        characters, words = len(CHINESE.findall(paragraph)), len(WORD.findall(paragraph))
        chinese |= characters >= 50 and characters / len(paragraph) > 0.8
        english |= words >= 200 and words / (len(paragraph.split()) + 1e-5) > 0.7
    return chinese and english


def language_share(samples: Samples, *, script: Literal["latin", "chinese"] = "latin") -> Tensor:
    """The share of a completion's words that are written in the script asked for; float32 [B] in [0, 1].

    The language consistency of DeepSeek-R1 (arXiv:2501.12948, section 2.3.2), which names no way to tell a word's
    language: here by its letters. Chinese characters are words. 1 for a completion without any word.
    """
    if script not in ("latin", "chinese"):
        raise ValueError(f"language_share: script={script!r}; accepted: latin, chinese")
    scores = []
    for text in texts_of(samples, "language_share"):
        words = {"chinese": len(CHINESE.findall(text)), "latin": len(re.findall(r"[A-Za-z\u00c0-\u024f]+", text))}
        total = sum(words.values())
        scores.append(words[script] / total if total else 1.0)
    return torch.tensor(scores, dtype=torch.float32)
