"""Answers by the type of their problem, without a judge: the rules of Video-R1 (arXiv:2503.21776), its code.

The answer is what stands in the first <answer>...</answer> of a completion, that of the prompt likewise, or the whole
text where it has no such marks. An answer that cannot be read scores 0; a prompt without a truth or with an unknown
type raises ValueError. Free text needs `pip install flowrl-toolkit[text]`, for ROUGE.
"""

import re
from collections.abc import Callable, Sequence

import torch
from torch import Tensor

from flowrl.contracts import NoTruth, Prompt, Samples
from reward_models.parts.extras import require_package
from reward_models.parts.texts import ANSWER, texts_of, truth

NAME = "typed_answer"


def typed_answer(samples: Samples, *, key: str = "answer", kind: str = "problem_type") -> Tensor:
    """Correctness of each answer, by a rule for the problem type in meta[kind]; float32 [B] in [0, 1].

    multiple choice: 1 where both texts are equal. numerical: 1 where both or neither have a decimal point or a comma
    and they are equal to two decimals. regression: 1 - relative error. OCR: 1 - word error rate. free-form: mean of
    ROUGE-1, ROUGE-2 and ROUGE-L, stemmed.
    """
    scores = []
    for text, prompt in zip(texts_of(samples, NAME), samples.prompts, strict=True):
        rule = _rule(prompt, kind)
        said, wanted = ANSWER.search(text), truth(prompt, key)
        inside = ANSWER.search(wanted)
        scores.append(rule(said[1].strip() if said else "", (inside[1] if inside else wanted).strip()))
    return torch.tensor(scores, dtype=torch.float32)


def word_error_rate(said: Sequence[str], wanted: Sequence[str]) -> float:
    """Fewest insertions, deletions and substitutions of words from one to the other, per word wanted.

    Without any word wanted: 0 if nothing was said, else 1.
    """
    if not wanted:
        return float(bool(said))
    row = list(range(len(wanted) + 1))
    for i, word in enumerate(said, 1):
        before, row[0] = row[0], i
        for j, other in enumerate(wanted, 1):
            before, row[j] = row[j], min(row[j] + 1, row[j - 1] + 1, before + (word != other))
    return row[-1] / len(wanted)


def _rule(prompt: Prompt, key: str) -> Callable[[str, str], float]:
    named = prompt.meta.get(key)
    if named not in RULES:
        raise NoTruth(f"prompt {prompt.text!r}: {key}={named!r} in its meta; accepted: {', '.join(RULES)}")
    return RULES[named]


def _number(text: str) -> float | None:
    try:
        return float(text.replace(",", ""))
    except ValueError:
        return None


def _choice(said: str, wanted: str) -> float:
    return float(said == wanted)


def _numerical(said: str, wanted: str) -> float:
    ours, theirs = _number(said), _number(wanted)
    alike = bool(re.search("[.,]", said)) == bool(re.search("[.,]", wanted))
    return float(alike and ours is not None and theirs is not None and round(ours, 2) == round(theirs, 2))


def _regression(said: str, wanted: str) -> float:
    ours, theirs = _number(said), _number(wanted)
    if ours is None or theirs is None:
        return 0.0
    error = abs(ours - theirs) / (abs(theirs) + 1e-9)
    return 1.0 - error if error < 1 else 0.0  # an error that is not a number is no answer


def _ocr(said: str, wanted: str) -> float:
    return max(0.0, 1.0 - word_error_rate(said.split(), wanted.split()))


def _free(said: str, wanted: str) -> float:
    scorer = require_package(NAME, "rouge_score.rouge_scorer", "text")
    found = scorer.RougeScorer(["rouge1", "rouge2", "rougeL"], use_stemmer=True).score(wanted, said)
    return sum(score.fmeasure for score in found.values()) / len(found)


RULES: dict[str, Callable[[str, str], float]] = {
    "multiple choice": _choice,
    "numerical": _numerical,
    "regression": _regression,
    "OCR": _ocr,
    "free-form": _free,
}
