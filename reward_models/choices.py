"""Is the option that a completion chooses the right one? Two readings of an answer that should be a letter.

The truth is a letter in the prompt's meta, or a text that begins with one ("B. the liver"). A prompt without one raises
ValueError; a completion that chooses nothing, or several, scores 0.
"""

import re

import torch
from torch import Tensor

from flowrl.contracts import NoTruth, Prompt, Samples
from reward_models.parts.texts import ANSWER, texts_of, truth

LETTERS = "ABCDEFGHIJ"  # options that a question may have
BOXED = re.compile(r"\\boxed\{\s*([A-J])\s*\}")
CALLED = re.compile(r"(?i:\banswer(?:\s+is)?)\s*:?\s*\(?([A-J])\b")
DOTTED = re.compile(r"(?<![A-Za-z])([A-J])\s*[.,:;)]")
ALONE = re.compile(r"(?<![A-Za-z])([A-J])(?![A-Za-z])")


def choice_letter(samples: Samples, *, key: str = "answer") -> Tensor:
    """1 where the first <answer> is the right letter and nothing else, 0.5 with more text beside it; float32 [B].

    An answer that has more than one of the letters A to J, also within words and in either case, scores 0: MedVLM-R1
    (arXiv:2502.19634), its code.
    """
    scores = []
    for text, prompt in zip(texts_of(samples, "choice_letter"), samples.prompts, strict=True):
        wanted, found = _truth(prompt, key), ANSWER.search(text)
        said = found[1].strip() if found else ""
        letters = re.findall(f"[{LETTERS}]", said.upper())
        scores.append((1.0 if len(said) == 1 else 0.5) if letters == [wanted] else 0.0)
    return torch.tensor(scores)


def named_choice(samples: Samples, *, key: str = "answer") -> Tensor:
    r"""1 where a completion names the right letter of A to J, else 0; float32 [B].

    What is read is its last <answer>, or all of it where it has none, for the first of these that is there: the last
    \boxed{B}, the first "answer B" or "answer is B", the last letter with a stop, comma, colon or bracket behind it,
    the last capital that stands alone. The order is that of Embodied-R's code (arXiv:2504.12680). Praxis-VLM's
    (arXiv:2503.16965) weighs letters by words near them instead; where there is one letter alone, they agree.
    """
    scores = []
    for text, prompt in zip(texts_of(samples, "named_choice"), samples.prompts, strict=True):
        blocks = ANSWER.findall(text)
        scores.append(float(_named(blocks[-1] if blocks else text) == _truth(prompt, key)))
    return torch.tensor(scores)


def _named(said: str) -> str | None:
    """The letter that an answer names, in either case where it is all of it; None where it names none."""
    if re.fullmatch(f"[{LETTERS}]", said.strip().upper()):
        return said.strip().upper()
    for pattern, which in ((BOXED, -1), (CALLED, 0), (DOTTED, -1), (ALONE, -1)):
        found = pattern.findall(said.strip())
        if found:
            return found[which].upper()
    return None


def _truth(prompt: Prompt, key: str) -> str:
    """The right letter. Raises ValueError where the meta holds something else."""
    wanted = truth(prompt, key)
    inside = ANSWER.search(wanted)
    found = re.match(rf"\(?([{LETTERS}])\s*(?:[.,:;)]|\Z)", (inside[1] if inside else wanted).strip().upper())
    if found is None:
        raise NoTruth(f"prompt {prompt.text!r}: {key}={wanted!r} is no option; accepted is a letter, {LETTERS}")
    return found[1]
