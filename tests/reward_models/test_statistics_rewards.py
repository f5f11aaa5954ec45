"""Statistics as rewards: the numbers of colorsys and numpy, the metrics' own, and their gradients."""

import colorsys

import numpy as np
import pytest
import torch

from flowrl.contracts import Prompt, Samples
from flowrl.watch.sample_statistics import sample_statistics
from reward_models.statistics import brightness, contrast, saturation, sharpness

ALL = pytest.mark.parametrize("kind", [saturation, brightness, contrast, sharpness])


def drawn(images=None, video=None) -> Samples:
    number = len(images if images is not None else video)
    return Samples([Prompt(str(i), "") for i in range(number)], torch.arange(number), images=images, video=video)


def noise(*shape: int, seed: int = 0):
    return torch.rand(*shape, generator=torch.Generator().manual_seed(seed))


def by_hand(name: str, picture: np.ndarray) -> float:
    """The statistic of a picture [3, H, W], in float64."""
    grey = np.tensordot([0.299, 0.587, 0.114], picture, 1)
    if name == "saturation":
        return float(np.mean([colorsys.rgb_to_hsv(*pixel)[1] for pixel in picture.reshape(3, -1).T]))
    if name == "sharpness":
        p = np.pad(grey, 1, "edge")
        bend = p[:-2, 1:-1] + p[2:, 1:-1] + p[1:-1, :-2] + p[1:-1, 2:] - 4 * grey
        return float(np.sqrt(np.mean(bend**2)))
    return float(picture.mean() if name == "brightness" else np.std(grey))


@ALL
def test_value_gradient_and_metric_agree(kind):
    images = noise(3, 3, 12, 20)
    images[0, :, :4] = 0  # black
    want = torch.tensor([by_hand(kind.__name__, one.double().numpy()) for one in images], dtype=torch.float32)
    scores = kind()(drawn(images))
    assert scores.dtype == torch.float32
    torch.testing.assert_close(scores, want)
    torch.testing.assert_close(kind().score(images, ["a"] * 3), want)
    name = f"samples/{kind.__name__}"
    assert sample_statistics(drawn(images))[name] == pytest.approx(float(want.double().mean()), rel=1e-6)


@ALL
def test_gradients_are_those_of_finite_differences(kind):
    x = (0.2 + 0.6 * noise(2, 3, 5, 6, seed=3)).double().requires_grad_()
    assert torch.autograd.gradcheck(kind().score, (x,), fast_mode=False)


@ALL
def test_flat_pictures_have_finite_gradients(kind):
    x = torch.stack([torch.full((3, 8, 8), level) for level in (0.0, 0.5, 1.0)]).requires_grad_()
    kind().score(x).sum().backward()
    assert x.grad.isfinite().all()


def test_large_pictures_are_reduced_for_colours():
    small = noise(1, 3, 256, 256)
    large = small.repeat_interleave(2, 2).repeat_interleave(2, 3)
    torch.testing.assert_close(saturation()(drawn(large)), saturation()(drawn(small)))
    assert sharpness()(drawn(large)).item() < sharpness()(drawn(small)).item()


@ALL
def test_videos_batches_and_order(kind):
    video = noise(4, 3, 3, 9, 9)
    whole = kind()(drawn(video=video))
    flat = kind()(drawn(video.flatten(0, 1))).view(4, 3).mean(1)
    torch.testing.assert_close(whole, flat)
    given = drawn(video=video)
    assert torch.equal(torch.cat([kind()(given[[i]]) for i in range(4)]), whole)
    assert torch.equal(kind()(given[[2, 0, 3, 1]]), whole[[2, 0, 3, 1]])


@ALL
@pytest.mark.parametrize("value", [torch.nan, torch.inf])
def test_pixels_that_are_not_finite_have_no_score(kind, value):
    images = noise(2, 3, 8, 8)
    alone = kind()(drawn(images))
    images[0, 2, 1, 1] = value
    scores = kind()(drawn(images))
    assert scores[0].isnan() and scores[1] == alone[1]


@ALL
def test_empty_batches_and_wrong_inputs(kind):
    empty = kind()(drawn(torch.zeros(0, 3, 8, 8)))
    assert empty.shape == (0,) and empty.dtype == torch.float32
    for given, said in [
        ({"texts": ["x"]}, "scores images and video; this model gives texts"),
        ({"images": torch.zeros(1, 1, 8, 8)}, r"shape \[1, 1, 8, 8\]"),
        ({"images": torch.zeros(1, 3, 8, 8, dtype=torch.int64)}, "int64"),
        ({"images": torch.full((1, 3, 8, 8), 1.5)}, "1.5"),
    ]:
        with pytest.raises(ValueError, match=f"^{kind.__name__}.*{said}"):
            kind()(Samples([Prompt("0", "")], torch.zeros(1), **given))
    with pytest.raises(ValueError, match=r"shape \[3, 8, 8\]"):
        kind().score(torch.zeros(3, 8, 8))
