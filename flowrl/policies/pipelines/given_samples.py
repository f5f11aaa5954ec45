"""Samples that were not drawn, and those that were drawn beside them, as one rollout whose samples can be noised."""

from collections.abc import Sequence

import torch
from torch import Tensor

from flowrl.contracts import Rollout
from flowrl.policies.pipelines.encodings import Encoding, fitted
from flowrl.policies.pipelines.layouts import Media
from flowrl.policies.pipelines.trajectory import Trajectory


def fill(
    trajectory: Trajectory,
    encode: Encoding,
    pictures: Sequence[Sequence[Tensor]],
    drawn: Sequence[tuple[Sequence[int], Rollout]],
) -> tuple[Media, Tensor]:
    """Gives a trajectory the final states of the pictures of each prompt, and behind them those of drawn rollouts.

    pictures, drawn: see `core.engine.TakesSamples.given`. Returns the samples, on the encoding's device, and which of
    them were given, bool [R].
    """
    kind = "video" if len(encode.shape) == 4 else "images"
    states: list[list[Tensor]] = [[] for _ in pictures]
    shown: list[list[Tensor]] = [[] for _ in pictures]
    marks = [torch.ones(len(own), dtype=torch.bool) for own in pictures]
    for i, own in enumerate(pictures):
        for one in own:
            pixels = fitted(one.to(encode.device), encode.shape)
            states[i].append(encode(pixels))
            shown[i].append(pixels[None])
    for at, rollout in drawn:
        clean, made = rollout.replay.clean[0], getattr(rollout.samples, kind)
        each = len(made) // len(at)
        for number, i in enumerate(at):
            rows = slice(number * each, (number + 1) * each)
            states[i].append(clean[rows].to(encode.device, torch.float32))
            shown[i].append(made[rows].to(encode.device, torch.float32))
            marks[i] = torch.cat([marks[i], torch.zeros(each, dtype=torch.bool)])
    trajectory.clean = {0: torch.cat([state for own in states for state in own])}
    return {kind: torch.cat([pixels for own in shown for pixels in own])}, torch.cat(marks)
