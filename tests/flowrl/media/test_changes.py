"""What views do to pictures and frames: by hand, from seeds, and what stays as it was."""

import inspect

import pytest
import torch

from flowrl.media.changes import CHANGES, diffuse, drop, mask_patches, noise_levels, shuffle_frames
from flowrl.recipe.keys.views import CHANGED, READS


def seeded(number: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(number)


def frames(number: int = 1, height: int = 33, width: int = 47) -> torch.Tensor:
    return torch.randint(1, 256, (number, height, width, 3), generator=seeded(7), dtype=torch.uint8)


@pytest.mark.parametrize("kind", CHANGES)
def test_a_change_is_its_seeds_and_keeps_the_size(kind: str):
    given = frames(5)
    kept = given.clone()
    made = [CHANGES[kind](given, seeded(n)) for n in (1, 1, 2)]
    assert torch.equal(made[0], made[1]) and torch.equal(given, kept)
    assert torch.equal(made[0], made[2]) == (kind == "drop")
    assert made[0].shape == given.shape and made[0].dtype == torch.uint8 and not torch.equal(made[0], given)


def test_black_squares_begin_at_the_corner_and_are_cut_at_the_edge():
    given = frames(2, 28, 40)
    made = mask_patches(given, seeded(), share=0.5, patch=14)
    black = (made == 0).all(-1)
    assert torch.equal(black[0], black[1])  # of all frames alike
    squares = black[0].unfold(0, 14, 14).unfold(1, 14, 14).flatten(2)
    assert ((squares.all(-1)) | (~squares.any(-1))).all() and (black[0][:14, 28:].all() or not black[0][:14, 28:].any())
    assert torch.equal(made[~black], given[~black])
    shares = [float((mask_patches(frames(1, 700, 700), seeded(n)) == 0).float().mean()) for n in range(3)]
    assert all(abs(share - 0.6) < 0.04 for share in shares)
    assert (
        torch.equal(mask_patches(given, seeded(), share=0.0), given)
        and not mask_patches(given, seeded(), share=1).any()
    )


def test_noise_is_that_of_the_forward_diffusion_at_its_step():
    kept, added = noise_levels()
    assert kept[:2].tolist() == pytest.approx([0.99999, 0.99998], abs=2e-5) and (kept.diff() < 0).all()
    torch.testing.assert_close(kept.square() + added.square(), torch.ones(1000))
    given = torch.full((1, 200, 200, 3), 128, dtype=torch.uint8)
    made = (diffuse(given, seeded(), step=100.9) / 255).flatten()
    level = int(100.9)
    assert float(made.mean()) == pytest.approx(float(kept[level]) * 128 / 255, abs=2e-3)
    assert float(made.std()) == pytest.approx(float(added[level]), rel=0.02)
    assert (diffuse(given, seeded(), step=0).int() - 128).abs().max() < 8


def test_shown_frames_change_places_and_others_stay():
    given = frames(6)
    made = shuffle_frames(given, seeded(1), shown=[0, 2, 3])
    order = [next(i for i in range(6) if torch.equal(one, given[i])) for one in made]
    assert sorted(order) == list(range(6)) and order != list(range(6)) and [order[i] for i in (1, 4, 5)] == [1, 4, 5]
    assert not drop(given, seeded()).any()


def test_the_lists_of_the_recipe_are_those_of_the_functions():
    assert set(CHANGES) == set(READS) == set(CHANGED)
    for kind, change in CHANGES.items():
        named = [p.name for p in inspect.signature(change).parameters.values() if p.kind is p.KEYWORD_ONLY]
        assert [name for name in named if name != "shown"] == list(READS[kind])
