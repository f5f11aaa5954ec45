"""The second opinion on the shapes world's pictures: the difference to the nearest drawing of the scene."""

import random
from dataclasses import replace

import pytest
import torch
from torch import Tensor

from flowrl.worlds.shapes import checker
from flowrl.worlds.shapes.captions import COLORS, KINDS, Scene, draw, split
from flowrl.worlds.shapes.render import render
from flowrl.worlds.shapes.residual import residuals

RENDER = 0.02  # what the search leaves of nearly all renders


@pytest.fixture(scope="module")
def truth() -> tuple[list[Scene], Tensor]:
    rng = random.Random(0)
    scenes = draw(split()[0], 200, rng, dict.fromkeys(KINDS, 1.0))
    return scenes, render(scenes, rng)


def test_a_render_is_near_its_own_scene_and_far_from_others(truth):
    scenes, images = truth
    own = residuals(images, scenes)
    assert own.mean() < 0.01 and (own < RENDER).float().mean() > 0.98
    swapped = {color: list(COLORS)[(i + 1) % len(COLORS)] for i, color in enumerate(COLORS)}
    others = [replace(s, objects=tuple((swapped[c], form) for c, form in s.objects)) for s in scenes]
    assert (residuals(images, others) > own).float().mean() > 0.99
    assert residuals(torch.rand(images.shape, generator=torch.Generator().manual_seed(0)), scenes).min() > 0.2


def test_a_relation_that_does_not_hold_is_seen(truth):
    scenes, images = truth
    at = [i for i, scene in enumerate(scenes) if scene.relation is not None]
    turned = [replace(scenes[i], objects=scenes[i].objects[::-1]) for i in at]
    assert (residuals(images[at], turned) > 3 * residuals(images[at], [scenes[i] for i in at])).float().mean() > 0.95


def test_a_picture_that_fools_the_detector_does_not_fool_the_residual(truth, monkeypatch):
    """Stains too small, too faint or off the palette's lines are no objects to a detector; here each pixel counts."""
    scenes, images = truth
    monkeypatch.setattr(checker, "detect", lambda image: pytest.fail("the witness uses the checker"))
    stained = images.clone()
    stained[..., ::3, ::3] = 0.5  # a ninth of the pixels
    assert (residuals(stained, scenes) - residuals(images, scenes)).min() > 0.02


def test_scores_do_not_depend_on_the_company(truth):
    scenes, images = truth
    alone = torch.cat([residuals(images[i : i + 1], scenes[i : i + 1]) for i in range(12)])
    torch.testing.assert_close(alone, residuals(images[:12], scenes[:12]))
