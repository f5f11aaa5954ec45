"""The JPEG rewards: published sizes, their scale, and what they refuse."""

import io

import pytest
import torch
from PIL import Image

from flowrl.contracts import Prompt, Samples
from golden import cases
from reward_models.jpeg import jpeg_compressibility, jpeg_incompressibility

BOTH = pytest.mark.parametrize("reward", [jpeg_compressibility, jpeg_incompressibility])


def drawn(images=None, video=None) -> Samples:
    number = len(images if images is not None else video)
    return Samples([Prompt(str(i), "") for i in range(number)], torch.arange(number), images=images, video=video)


def noise(*shape: int, seed: int = 0):
    return torch.rand(*shape, generator=torch.Generator().manual_seed(seed))


@pytest.mark.parametrize("case", cases("direct/rewards_jpeg.json"))
def test_size_is_the_published_one(case):
    pixels = torch.tensor(case["inputs"]["image_uint8"]).permute(2, 0, 1)[None] / 255
    size = jpeg_incompressibility(drawn(pixels), quality=case["params"]["quality"])
    want = torch.tensor(case["outputs"]["size_kb"])
    torch.testing.assert_close(size, want, atol=case["atol"], rtol=case["rtol"])
    assert torch.equal(jpeg_compressibility(drawn(pixels)), -size)


@pytest.mark.parametrize("quality", [20, 95])
def test_size_is_that_of_the_file(quality):
    levels = torch.randint(0, 256, (4, 3, 24, 40), generator=torch.Generator().manual_seed(1), dtype=torch.uint8)
    sizes = []
    for one in levels:
        Image.fromarray(one.permute(1, 2, 0).numpy()).save(file := io.BytesIO(), "JPEG", quality=quality)
        sizes.append(len(file.getvalue()) / 1000)
    found = jpeg_incompressibility(drawn(levels / 255), quality=quality)
    torch.testing.assert_close(found, torch.tensor(sizes), rtol=0, atol=0)
    torch.testing.assert_close(jpeg_compressibility(drawn(levels / 255), quality=quality), -found)


def test_a_video_counts_with_the_mean_of_its_frames():
    video = noise(2, 5, 3, 16, 16)
    flat = jpeg_incompressibility(drawn(video.flatten(0, 1)))
    torch.testing.assert_close(jpeg_incompressibility(drawn(video=video)), flat.view(2, 5).mean(1))


@BOTH
def test_batches_and_order_change_nothing(reward):
    given = drawn(noise(5, 3, 16, 16) ** 3)
    whole = reward(given)
    assert len(set(whole.tolist())) > 1
    assert torch.equal(torch.cat([reward(given[[i]]) for i in range(5)]), whole)
    assert torch.equal(reward(given[[4, 1, 0, 3, 2]]), whole[[4, 1, 0, 3, 2]])


@BOTH
def test_pixels_that_are_not_finite_have_no_score(reward):
    images = noise(3, 3, 16, 16)
    alone = reward(drawn(images))
    images[1, 0, 0, 0] = torch.inf
    scores = reward(drawn(images))
    assert scores[1].isnan() and torch.equal(scores[[0, 2]], alone[[0, 2]])


@BOTH
def test_an_empty_batch_has_no_scores(reward):
    scores = reward(drawn(torch.zeros(0, 3, 16, 16)))
    assert scores.shape == (0,) and scores.dtype == torch.float32


@BOTH
@pytest.mark.parametrize(
    ("given", "options", "said"),
    [
        ({"images": torch.zeros(1, 3, 8, 8)}, {"quality": 0}, "quality=0"),
        ({"texts": ["x"]}, {}, "scores images and video; this model gives texts"),
        ({"images": torch.zeros(1, 4, 8, 8)}, {}, r"shape \[1, 4, 8, 8\]"),
        ({"images": torch.zeros(1, 3, 8, 8, dtype=torch.uint8)}, {}, "uint8"),
        ({"images": torch.full((1, 3, 8, 8), -1.0)}, {}, "from -1 to -1"),
    ],
)
def test_what_is_refused(reward, given, options, said):
    with pytest.raises(ValueError, match=said) as caught:
        reward(Samples([Prompt("0", "")], torch.zeros(1), **given), **options)
    assert str(caught.value).startswith(reward.__name__) and "\n" not in str(caught.value)
