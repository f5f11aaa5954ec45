"""Checks what a reward returned, and says why there is no score."""

import torch
from torch import Tensor

from flowrl.contracts import Reward


class RewardError(RuntimeError):
    """A reward failed or returned something that is not a score. The text names it; the cause is chained."""


def check_scores(name: str, score: object, number: int) -> Tensor:
    """A copy of the score, float32 [number] on the CPU, so that later writes of the reward change nothing.

    Raises RewardError for anything but a dense floating tensor [number] whose values are NaN or finite as float32.
    """
    if not isinstance(score, Tensor):
        got = f"a {type(score).__name__}"
    elif score.is_nested or score.layout is not torch.strided or score.is_meta:
        got = "a tensor without values" if score.is_meta else "a sparse or nested tensor; call to_dense() on it"
    elif score.shape != (number,):
        got = f"a tensor of shape {list(score.shape)}"
    elif not score.is_floating_point():
        got = f"a tensor of {score.dtype}"
    else:
        narrow = score.detach().to("cpu", torch.float32, copy=True)
        beyond = narrow.isinf()
        if not beyond.any():
            return narrow
        wide = float(score.detach().cpu()[beyond][0])
        got = "an infinite score" if wide in (torch.inf, -torch.inf) else f"a score of {wide:g}, too large for float32"
    raise RewardError(f"reward {name!r} returned {got}; accepted: float32 [{number}], finite or NaN, one per sample")


def why_missing(reward: Reward) -> str:
    """Why there are no numbers, if the reward counts its reasons (`failures`: number of each)."""
    counts = getattr(reward, "failures", None)
    why = ", ".join(f"{reason} ({number})" for reason, number in counts.items()) if isinstance(counts, dict) else ""
    return f"it gave no number (NaN){': ' if why else ''}{why}"


def reason(error: BaseException) -> str:
    """An error in one line."""
    text = " ".join(str(error).split())
    return text if type(error) is ValueError and text else f"{type(error).__name__}: {text}"
