"""Samples that were not drawn, and those that were drawn beside them, as one rollout whose samples can be noised."""

from collections.abc import Sequence
from pathlib import Path

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file
from torch import Tensor

from flowrl.contracts import Rollout
from flowrl.policies.errors import PolicyError
from flowrl.policies.pipelines.calls.layouts import Media
from flowrl.policies.pipelines.encoding.encodings import Encoding, fitted
from flowrl.policies.pipelines.walks.trajectory import Trajectory


def fill(
    trajectory: Trajectory,
    encode: Encoding,
    pictures: Sequence[Sequence[Tensor]],
    drawn: Sequence[tuple[Sequence[int], Rollout]],
    noise: Sequence[Sequence[Tensor]] = (),
) -> tuple[Media, Tensor]:
    """Gives a trajectory the final states of the pictures of each prompt, and behind them those of drawn rollouts.

    pictures, drawn, noise: see `core.engine.TakesSamples.given`. Returns the samples, on the encoding's device, and
    which of them were given, bool [R]. Raises PolicyError for noise of another shape than the states.
    """
    if trajectory.tree.keep_noise:
        trajectory.initial = {0: _noise(noise or [()] * len(pictures), drawn, encode.device)}
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
    for stream, start in trajectory.initial.items():
        if start.shape != (clean := trajectory.clean[stream]).shape:
            raise PolicyError(
                f"got noise of shape {list(start.shape[1:])} for {len(start)} samples, where this pipeline has "
                f"{len(clean)} of {list(clean.shape[1:])}: give pairs that it drew itself at this size"
            )
    return {kind: torch.cat([pixels for own in shown for pixels in own])}, torch.cat(marks)


def _noise(
    given: Sequence[Sequence[Tensor]], drawn: Sequence[tuple[Sequence[int], Rollout]], device: torch.device
) -> Tensor:
    """The noise [R, ...] of the pictures of each prompt, and behind it that of drawn rollouts."""
    each = [[one[None].to(device, torch.float32) for one in own] for own in given]
    for at, rollout in drawn:
        if (starts := noise_of(rollout)) is None:
            raise PolicyError("the noise of drawn samples is not known: set objective.loss.own_noise=false")
        for i, own in zip(at, starts.unflatten(0, (len(at), -1)), strict=True):
            each[i].append(own.to(device, torch.float32))
    try:
        return torch.cat([one for own in each for one in own])
    except RuntimeError:
        shapes = sorted({str(list(one.shape[1:])) for own in each for one in own})
        raise PolicyError(f"got noise of shapes {', '.join(shapes)}: give samples of one size") from None


def noise_of(rollout: Rollout) -> Tensor | None:
    """The noise [B, ...] that the samples of a rollout came from; None where its plan kept none, or there is none that
    is told apart from what the walk makes of it (latents of several kinds, walks from a lower level)."""
    initial = rollout.replay.initial
    return initial[0] if list(initial) == [0] else None


def open_noise(path: Path) -> Tensor:
    """The noise of a sample, as `flowrl pairs` writes it: the tensor `noise` of a .safetensors file.

    Raises PolicyError for a file that holds none.
    """
    try:
        return load_file(str(path))["noise"]
    except (OSError, SafetensorError, KeyError) as error:
        problem = f"holds no tensor `noise` ({type(error).__name__})"
        raise PolicyError(f"{path}: {problem}; write it as `flowrl pairs` does") from None
