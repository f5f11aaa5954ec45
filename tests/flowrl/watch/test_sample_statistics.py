"""Sample statistics: known pictures and texts, and that batches, chunks, precision and size change nothing."""

import math
from dataclasses import replace

import pytest
import torch
from torch import Tensor

from flowrl.contracts import Prompt, Samples
from flowrl.core.evaluation import evaluate
from flowrl.watch import sample_statistics as statistics
from flowrl.watch.sample_statistics import sample_statistics


def pictures(x: Tensor, group: list[int] | None = None) -> Samples:
    labels = torch.tensor(group if group is not None else list(range(len(x))))
    return Samples([Prompt(str(i), "") for i in range(len(x))], labels, images=x)


def texts(group: list[int], *values: str) -> Samples:
    return Samples([Prompt(str(i), "") for i in range(len(values))], torch.tensor(group), texts=values)


def flat(*channels: float, size: int = 8) -> Tensor:
    return torch.tensor(channels)[None, :, None, None].expand(1, 3, size, size)


def noise(number: int, size: int = 8, seed: int = 0) -> Tensor:
    return torch.rand(number, 3, size, size, generator=torch.Generator().manual_seed(seed))


def test_flat_colours():
    grey, red = sample_statistics(pictures(flat(0.5, 0.5, 0.5))), sample_statistics(pictures(flat(0.8, 0.2, 0.2)))
    assert grey == pytest.approx(
        {
            "samples/saturation": 0.0,
            "samples/brightness": 0.5,
            "samples/contrast": 0.0,
            "samples/sharpness": 0.0,
            "samples/clipped": 0.0,
        },
        abs=1e-6,
    )
    assert red["samples/saturation"] == pytest.approx(0.75) and red["samples/brightness"] == pytest.approx(0.4)
    black = sample_statistics(pictures(flat(0.0, 0.0, 0.0)))
    assert black["samples/saturation"] == 0 and black["samples/clipped"] == 1
    assert sample_statistics(pictures(flat(1.0, 0.0, 0.5)))["samples/clipped"] == pytest.approx(2 / 3)


def test_a_checkerboard_is_as_sharp_and_contrasty_as_can_be():
    board = ((torch.arange(8)[:, None] + torch.arange(8)) % 2).float().expand(1, 3, 8, 8)
    found = sample_statistics(pictures(board))
    assert found["samples/contrast"] == pytest.approx(0.5)
    # every neighbour differs by 1; edges repeat their pixel: 36 inner pixels with 4, 24 with 3, 4 corners with 2
    assert found["samples/sharpness"] == pytest.approx(math.sqrt((36 * 16 + 24 * 9 + 4 * 4) / 64))


def test_diversity_is_the_mean_distance_within_groups():
    x = torch.cat([flat(0.0, 0.0, 0.0), flat(0.5, 0.5, 0.5), flat(1.0, 1.0, 1.0), flat(0.3, 0.3, 0.3)])
    found = sample_statistics(pictures(x, [7, 7, 7, 2]))
    assert found["samples/diversity"] == pytest.approx((0.5 + 0.5 + 1.0) / 3)
    assert sample_statistics(pictures(flat(0.3, 0.6, 0.1).repeat(3, 1, 1, 1), [0, 0, 0]))["samples/diversity"] == 0
    assert "samples/diversity" not in sample_statistics(pictures(x))


def test_large_pictures_have_the_colours_and_layout_of_small_ones():
    small = noise(4, 32)
    large = small.repeat_interleave(16, 2).repeat_interleave(16, 3)
    a, b = (sample_statistics(pictures(x, [0, 0, 1, 1])) for x in (small, large))
    for name in ("saturation", "brightness", "contrast", "clipped", "diversity"):
        assert b[f"samples/{name}"] == pytest.approx(a[f"samples/{name}"], rel=1e-4)
    assert b["samples/sharpness"] < a["samples/sharpness"]  # blocks are flat inside


def test_precision_and_chunks_change_nothing(monkeypatch: pytest.MonkeyPatch):
    x, group = noise(6, 16), [0, 0, 0, 1, 1, 1]
    whole = sample_statistics(pictures(x, group))
    assert sample_statistics(pictures(x.double(), group)) == pytest.approx(whole, rel=1e-6)
    monkeypatch.setattr(statistics, "CHUNK", 2 * 3 * 16 * 16)
    assert sample_statistics(pictures(x, group)) == pytest.approx(whole, rel=1e-6)


def test_pictures_that_are_not_finite_give_nan():
    x = noise(2)
    x[1, 0, 3, 3] = torch.nan
    assert all(math.isnan(v) for v in sample_statistics(pictures(x, [0, 0])).values())


def test_a_video_counts_by_its_middle_frame():
    x = noise(2)
    video = torch.stack([torch.zeros_like(x), x, torch.ones_like(x)], 1)
    samples = Samples([Prompt("a", "")] * 2, torch.tensor([0, 0]), video=video)
    assert sample_statistics(samples) == sample_statistics(pictures(x, [0, 0]))


def test_texts():
    found = sample_statistics(texts([0, 0, 1, 1], "abcdefghi", "abcdefghi", "aaaaaaaaaa", "b"))
    # runs of eight: 2 of 2 different, twice; 1 of 3; none in the last
    expected = {"samples/length": 29 / 4, "samples/repetition": (2 / 3) / 4, "samples/distinct": 0.75}
    assert found == pytest.approx(expected)
    assert "samples/distinct" not in sample_statistics(texts([0, 1], "a", "a"))
    told = replace(texts([0, 0], "a", "b"), lengths=torch.tensor([3, 8]), truncated=torch.tensor([False, True]))
    found = sample_statistics(told)
    assert found["samples/length"] == 5.5 and found["samples/truncated"] == 0.5


class Gallery:
    """A policy that draws a prompt's own picture."""

    def __init__(self, x: Tensor):
        self.x = x

    def rollout(self, prompts, *, group_size, plan, seed, first=0, **_):
        at = [int(p.id) for p in prompts]
        samples = Samples(prompts, torch.arange(len(at)), images=self.x[at])
        return type("Rollout", (), {"samples": samples})


@pytest.mark.parametrize("batch", [1, 2, 3, 5])
def test_an_evaluation_measures_every_sample_whatever_the_batch(batch: int):
    x = noise(5)
    whole = sample_statistics(pictures(x))
    result = evaluate(
        Gallery(x),
        [Prompt(str(i), "") for i in range(5)],
        lambda samples: {"r": torch.zeros(len(samples))},
        plan=None,
        seed=0,
        batch=batch,
        keep=1,
        statistics=sample_statistics,
    )
    assert result.statistics == pytest.approx(whole, rel=1e-6)
    assert result.pictures.shape[0] == 1
