"""What rewards of completions read: the texts themselves, and the truth in a prompt's meta."""

import re
from typing import Any

from flowrl.contracts import NoTruth, Prompt, Samples

ANSWER = re.compile(r"<answer>(.*?)</answer>", re.DOTALL)
THOUGHT = re.compile(r"<think>(.*?)</think>", re.DOTALL)
THINK_ANSWER = re.compile(r"<think>.*?</think>\s*<answer>.*?</answer>", re.DOTALL)


def texts_of(samples: Samples, reward: str) -> list[str]:
    """The completions, one a sample. Raises ValueError, naming the reward, for samples that are no texts."""
    if samples.texts is None:
        raise ValueError(f"{reward} scores texts; this model gives none")
    return list(samples.texts)


def truth(prompt: Prompt, key: str = "answer") -> str:
    """The ground truth of a prompt, as text; of one such as GSM8K's "... #### 72" what follows the marks.

    Raises ValueError if its meta holds none.
    """
    value = prompt.meta.get(key)
    if not isinstance(value, str | int | float) or isinstance(value, bool) or not str(value).strip():
        raise NoTruth(f"prompt {prompt.text!r} has no {key!r}, only {_held(prompt)}: add it to the prompt file, {OR}")
    return str(value).rpartition("####")[2].strip()


def truth_of_any_kind(prompt: Prompt, key: str) -> Any:
    """What a prompt's meta holds under a key. Raises ValueError if that is nothing."""
    if key not in prompt.meta:
        raise NoTruth(f"prompt {prompt.text!r} has no {key!r}, only {_held(prompt)}: add it to the prompt file, {OR}")
    return prompt.meta[key]


OR = "or set the argument that names it"


def _held(prompt: Prompt) -> str:
    return ", ".join(prompt.meta) or "nothing"
