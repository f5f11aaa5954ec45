"""Rewards of conversations: what the environment says came of them, and whether tools were used.

They read what the model said and what it called, never the text of a tool.
"""

import torch
from torch import Tensor

from flowrl.contracts import Conversation, Samples

TALKS = "this reward reads conversations: give the recipe an environment"


def outcome(samples: Samples, name: str = "reward", absent: float | None = None) -> Tensor:
    """A number that the environment gives at the end of a conversation, float32 [B].

    name: of the number; `reward` is what an environment with get_reward() has. absent: the score of a conversation that
    ended without it, such as one that never called the tool that notes it (null: NaN, no score). A conversation whose
    environment failed is NaN in any case. Raises ValueError without conversations.
    """
    none = torch.nan if absent is None else absent
    return torch.tensor(
        [float(torch.nan if talk.end == "failed" else talk.outcome.get(name, none)) for talk in _talks(samples)]
    )


def used_tool(samples: Samples, name: str | None = None) -> Tensor:
    """1 if the model made a call that its tool answered, else 0; float32 [B]. A wrong call does not count.

    name: of the tool (None: any). DeepEyes (arXiv:2505.14362, section 3.2) pays a bonus for it only where the answer is
    right: gate it by the reward of the answer, `gate: {by: right, least: 1, otherwise: 0}`. Its code once paid for
    every call. Raises ValueError without conversations.
    """
    return torch.tensor([float(bool(answered(talk, name))) for talk in _talks(samples)])


def tool_calls(samples: Samples, column: str = "calls") -> Tensor:
    """Distance of the number of answered calls n from a prompt's estimate e: 1 - |n - e| / max(n, e, 1).

    float32 [B]; NaN where the prompt's meta has no number in `column`. Qwen3-VL (arXiv:2511.21631) compares the number
    with an estimate by a larger model; it publishes no formula, this one is ours. Raises ValueError without
    conversations.
    """
    scores = []
    for prompt, talk in zip(samples.prompts, _talks(samples), strict=True):
        estimate, number = prompt.meta.get(column), len(answered(talk))
        if isinstance(estimate, int | float) and not isinstance(estimate, bool):
            scores.append(1 - abs(number - estimate) / max(number, estimate, 1))
        else:
            scores.append(torch.nan)
    return torch.tensor(scores)


def calls_made(samples: Samples) -> Tensor:
    """Number of calls, wrong ones too, float32 [B]; with a negative weight each call has a cost.

    A cost, however small, can teach a model to stop calling before a call helps it, which is watched for (the alarm
    `calls`). Raises ValueError without conversations.
    """
    return torch.tensor([float(len(talk.calls)) for talk in _talks(samples)])


def answered(talk: Conversation, name: str | None = None) -> list[str]:
    """The names of the tools that answered a call, in order; name: of one of them alone."""
    shown = [m for messages in talk.shown for m in messages if m.name is not None and m.error is None]
    return [m.name for m in shown if m.name is not None and name in (None, m.name)]


def _talks(samples: Samples) -> list[Conversation]:
    if samples.talks is None:
        raise ValueError(TALKS)
    return list(samples.talks)
