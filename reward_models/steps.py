"""Rewards of reasoning by steps, without a judge: R1-VL's StepGRPO (arXiv:2503.12937).

The paper adds 0.1 times the share of key steps, and the validity, to the reward of the answer: they are weights of a
recipe with `advantage.combine: sum`.
"""

import re
from collections.abc import Sequence

import torch
from torch import Tensor

from flowrl.contracts import NoTruth, Samples
from reward_models.parts.texts import texts_of

SECTIONS = ("### Image Description:", "### Rationales:", "### Step 1:", "### The final answer is:")


def key_steps(samples: Samples, *, key: str = "key_steps") -> Tensor:
    """The share of the key steps in the prompt's meta that the steps of a completion mention; float32 [B] in [0, 1].

    meta[key] is a list; an entry is a text, or a list of texts of which one is enough. They are looked for, without
    regard to case, behind "### Step N:". 0 for an empty list. Raises ValueError for a prompt without the list.
    """
    scores = []
    for text, prompt in zip(texts_of(samples, "key_steps"), samples.prompts, strict=True):
        wanted = prompt.meta.get(key)
        if not isinstance(wanted, Sequence) or isinstance(wanted, str):
            raise NoTruth(f"prompt {prompt.text!r} has no list {key!r} in its meta: add it, or set key")
        steps = "\n".join(step for _, step in _steps(text)).casefold()
        met = [any(str(word).casefold() in steps for word in _alternatives(entry)) for entry in wanted]
        scores.append(sum(met) / len(met) if met else 0.0)
    return torch.tensor(scores, dtype=torch.float32)


def step_validity(samples: Samples) -> Tensor:
    """1 where a completion has a description, rationales, steps and an answer in this order, else 0; float32 [B].

    Its headings are "### Image Description:", "### Rationales:", "### Step 1:" and so on, numbered one by one, and "###
    The final answer is:".
    """
    return torch.tensor([float(_is_valid(text)) for text in texts_of(samples, "step_validity")])


def _is_valid(text: str) -> bool:
    places = [text.find(section) for section in SECTIONS]
    numbers = [number for number, _ in _steps(text)]
    return min(places) >= 0 and places == sorted(places) and numbers == list(range(1, len(numbers) + 1))


def _steps(text: str) -> list[tuple[int, str]]:
    """(number, text) of each step, up to the next heading."""
    return [(int(n), step) for n, step in re.findall(r"### Step (\d+):(.*?)(?=###|\Z)", text, re.DOTALL)]


def _alternatives(entry: object) -> Sequence[object]:
    return entry if isinstance(entry, list | tuple) else [entry]
