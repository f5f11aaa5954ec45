"""Optical flow of videos whose motion is known."""

import math
import sys
from concurrent.futures import ThreadPoolExecutor

import cv2
import numpy as np
import pytest
import torch
from torch.nn import functional

from flowrl.contracts import Prompt, Samples
from reward_models.optical_flow import optical_flow
from reward_models.parts.vision.flow import Flow, warp


def texture(height: int, width: int, seed: int = 0, blur: float = 3.0) -> torch.Tensor:
    """A smooth picture [3, height, width] in [0, 1] with something to see everywhere."""
    field = np.random.default_rng(seed).random((height, width, 3)).astype(np.float32)
    field = cv2.GaussianBlur(field, (0, 0), blur)
    return torch.from_numpy((field - field.min()) / (field.max() - field.min())).permute(2, 0, 1).contiguous()


def panned(dx: int, dy: int, *, frames: int = 3, height: int = 128, width: int = 160, seed: int = 0) -> torch.Tensor:
    """A video [frames, 3, height, width] whose content moves by (dx, dy) pixels a frame."""
    margin = frames * max(abs(dx), abs(dy)) + 1
    whole = texture(height + 2 * margin, width + 2 * margin, seed)
    corners = [(margin - t * dy, margin - t * dx) for t in range(frames)]
    return torch.stack([whole[:, y : y + height, x : x + width] for y, x in corners])


def filmed(*clips: torch.Tensor) -> Samples:
    prompts = [Prompt(str(i), "") for i in range(len(clips))]
    return Samples(prompts, torch.arange(len(clips)), video=torch.stack(clips))


@pytest.fixture(scope="module")
def reward() -> optical_flow:
    return optical_flow()


@pytest.mark.parametrize("shift", [(1, 0), (0, -2), (3, 2), (-4, 4)])
def test_a_shifted_texture_moves_by_its_shift(reward, shift):
    score = reward(filmed(panned(*shift)))
    assert score.dtype == torch.float32
    assert score.item() == pytest.approx(math.hypot(*shift), rel=0.01)


def test_direction_and_warping():
    """The flow points to where a pixel is seen next: looking there gives the frame back."""
    clip = panned(3, -2, frames=2)
    flow = Flow("test", "medium")(clip)
    assert flow.shape == (1, 128, 160, 2)
    assert flow.mean((0, 1, 2)).tolist() == pytest.approx([3, -2], rel=0.01)
    exact = torch.tensor([3.0, -2.0]).expand(1, 128, 160, 2)
    seen, inside = warp(clip[1:], exact)
    assert inside.sum() == (128 - 2) * (160 - 3)
    torch.testing.assert_close(seen[0][:, inside[0]], clip[0][:, inside[0]], rtol=0, atol=1e-4)
    half, _ = warp(clip[1:], torch.tensor([0.5, 0.0]).expand(1, 128, 160, 2))
    torch.testing.assert_close(half[0, :, :, :-1], (clip[1, :, :, 1:] + clip[1, :, :, :-1]) / 2, rtol=0, atol=1e-4)


def test_a_still_video_does_not_move(reward):
    assert reward(filmed(texture(64, 64).expand(4, -1, -1, -1))).item() < 1e-3


def test_the_score_is_the_mean_over_pairs(reward):
    moving = panned(2, 0, frames=4)
    pausing = moving[[0, 1, 1, 2]]
    one, two = (reward(filmed(moving[[a, a + 1]])).item() for a in (0, 1))
    assert reward(filmed(pausing)).item() == pytest.approx((one + two) / 3, rel=1e-6)


def test_relative_scores_compare_sizes():
    small, large = panned(2, 2, height=96, width=120), panned(4, 4, height=192, width=240)
    shares = [optical_flow(relative=True)(filmed(clip)).item() for clip in (small, large)]
    assert shares[0] == pytest.approx(math.hypot(2, 2) / 96, rel=0.01)
    assert shares[1] == pytest.approx(shares[0], rel=0.02)


def test_presets_differ_but_agree_on_coarse_texture():
    whole = functional.interpolate(panned(2, 1, frames=2, height=64, width=64), scale_factor=3, mode="bicubic")
    given = filmed(whole.clamp(0, 1))
    scores = {preset: optical_flow(preset=preset)(given).item() for preset in ("ultrafast", "fast", "medium")}
    assert len(set(scores.values())) == 3
    assert all(score == pytest.approx(3 * math.hypot(2, 1), rel=0.05) for score in scores.values())


def test_batches_order_and_threads_change_nothing(reward):
    given = filmed(*(panned(i, 1, height=48, width=40, seed=i) for i in range(4)))
    whole = reward(given)
    assert torch.equal(torch.cat([reward(given[[i]]) for i in range(4)]), whole)
    assert torch.equal(reward(given[[2, 0, 3, 1]]), whole[[2, 0, 3, 1]])
    with ThreadPoolExecutor(4) as pool:
        assert all(torch.equal(found, whole) for found in pool.map(reward, [given] * 8))


def test_pixels_that_are_not_finite_have_no_score(reward):
    given = filmed(panned(1, 1), panned(1, 1))
    alone = reward(given)
    given.video[0, 1, 0, 5, 5] = torch.nan
    scores = reward(given)
    assert scores[0].isnan() and scores[1] == alone[1]


def test_an_empty_batch_has_no_scores(reward):
    empty = reward(Samples([], torch.zeros(0), video=torch.zeros(0, 3, 3, 64, 64)))
    assert empty.shape == (0,) and empty.dtype == torch.float32


@pytest.mark.parametrize("size", [(32, 32), (32, 512), (40, 1024), (33, 35)])
@pytest.mark.parametrize("preset", ["ultrafast", "fast", "medium"])
def test_the_smallest_frames_are_measured(size, preset):
    """OpenCV ends the process on smaller ones."""
    clip = torch.rand(2, 3, *size, generator=torch.Generator().manual_seed(0))
    assert optical_flow(preset=preset)(filmed(clip)).isfinite().all()


@pytest.mark.parametrize(
    ("given", "said"),
    [
        ({"images": torch.zeros(1, 3, 64, 64)}, "scores video; this model gives images"),
        ({"video": torch.zeros(1, 1, 3, 64, 64)}, "1 frame; accepted is 2 or more"),
        ({"video": torch.zeros(1, 2, 3, 31, 64)}, "64 x 31; accepted is 32 pixels a side"),
        ({"video": torch.zeros(1, 2, 1, 64, 64)}, r"shape \[1, 2, 1, 64, 64\]"),
        ({"video": torch.zeros(1, 2, 3, 64, 64, dtype=torch.uint8)}, "uint8"),
        ({"video": torch.full((1, 2, 3, 64, 64), 2.0)}, "from 2 to 2"),
    ],
)
def test_what_is_refused(reward, given, said):
    with pytest.raises(ValueError, match=f"^optical_flow: .*{said}|^optical_flow {said}") as caught:
        reward(Samples([Prompt("0", "")], torch.zeros(1), **given))
    assert "\n" not in str(caught.value)


def test_wrong_presets_and_missing_packages(monkeypatch):
    with pytest.raises(ValueError, match="optical_flow: preset='slow': accepted are ultrafast, fast, medium"):
        optical_flow(preset="slow")
    monkeypatch.setitem(sys.modules, "cv2", None)
    with pytest.raises(ValueError, match=r'optical_flow: the package \'cv2\'.*pip install "flowrl-toolkit\[vision\]"'):
        optical_flow()
