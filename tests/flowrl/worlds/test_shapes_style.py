"""shapes-style-clip: styles that a program gives pictures, what is compared in training, the gradient of what ships."""

import random

import pytest
import torch

from flowrl.worlds.shapes.captions import Scene
from flowrl.worlds.shapes.judges import clip, style
from flowrl.worlds.shapes.judges.pool import PicturePool, render_with_centres, spoil
from flowrl.worlds.shapes.render import render
from reward_models.clip_score import clip_score
from reward_models.parts.vision import looks

RED, BLUE = ("red", "circle"), ("blue", "square")
ONE, TWO = Scene("single", (RED,)), Scene("pair", (RED, BLUE))


def pictures(number: int = 6) -> torch.Tensor:
    return render([ONE, TWO] * (number // 2), random.Random(3))


@pytest.mark.parametrize(
    ("word", "measure", "up"),
    [
        ("light", looks.brightness, True),
        ("dark", looks.brightness, False),
        ("saturated", looks.saturation, True),
        ("pale", looks.saturation, False),
    ],
)
def test_a_style_does_what_its_word_says(word, measure, up):
    """Each picture of a batch by its own strength; at a strength of 1 it stays."""
    images, bounds = pictures(), style.STYLES[word]
    strength = torch.linspace(*bounds, len(images))
    after = style.apply_style(images, word, strength)
    assert ((measure(after) > measure(images)) == up).all() and after.min() >= 0 and after.max() <= 1
    alone = style.apply_style(images[2:3], word, strength[2:3])
    assert torch.equal(alone[0], after[2])
    assert torch.allclose(style.apply_style(images, word, torch.ones(len(images))), images, atol=1e-6)


def test_styles_are_drawn_and_known():
    images = pictures(400)
    styled, styles = style.draw_styles(images, random.Random(0))
    assert set(styles) == {None, *style.STYLES} and 0.7 < sum(s is not None for s in styles) / 400 < 0.9
    same = (styled == images).flatten(1).all(1).tolist()
    assert same == [s is None for s in styles]


def test_a_caption_competes_where_it_is_wrong():
    """A word of another style makes it wrong for the same scene; without a word it is right for any style."""
    batch = style.StyledBatch(
        torch.arange(3),
        [ONE, ONE, TWO],
        ["dark", None, "pale"],
        [(0, ("dark", ONE)), (1, (None, ONE)), (2, ("pale", TWO))],
        [(0, ("light", ONE)), (2, ("pale", ONE))],
    )
    assert batch.captions[0] == "dark. a red circle" and batch.captions[1] == "a red circle"
    assert batch.open.tolist() == [
        [True, False, True, True, True],  # the caption without a word is right for it too
        [True, True, True, True, True],
        [True, True, True, True, True],
    ]


def test_a_lesson_is_spoilt_without_touching_its_colours():
    rng = random.Random(5)
    scenes = [ONE, TWO] * 40
    images, spots = render_with_centres(scenes, rng)
    pool = PicturePool((images * 255).byte(), [*scenes], [None] * 80, torch.full((80,), -1), spots)
    batch, drawn, severities = style.draw_lesson(pool, 7)
    assert drawn.shape == (clip.BATCH, 3, 32, 32) and (severities[:, 2:4] == 0).all() and severities.any()
    assert batch.open.shape == (clip.BATCH, len(batch.captions)) and len(batch.owner) == clip.BATCH
    words = {c.partition(". ")[0] for c in batch.captions if ". " in c}
    assert words == set(style.STYLES)
    assert torch.equal(
        spoil(pool.images, 9)[1], spoil(pool.images, 9, kinds=["noise", "blur", "wash", "tint", "warp"])[1]
    )


@pytest.mark.parametrize(
    ("wanted", "other", "measure"), [("light", "dark", looks.brightness), ("saturated", "pale", looks.saturation)]
)
def test_its_gradient_moves_the_style(wanted, other, measure):
    """A small step along the gradient of the relative reward moves their mean brightness, or saturation, as told."""
    images, captions = pictures(40).clamp(0.05, 0.95).requires_grad_(), [ONE.caption, TWO.caption] * 20
    reward = clip_score(model=style.NAME)
    for sign, (first, second) in ((1, (wanted, other)), (-1, (other, wanted))):
        fits = [reward.score(images, [style.say(w, c) for c in captions]) for w in (first, second)]
        (pull,) = torch.autograd.grad((fits[0] - fits[1]).sum(), images)
        with torch.no_grad():
            moved = (images + 0.02 * pull / pull.abs().amax((1, 2, 3), keepdim=True)).clamp(0, 1)
            assert sign * (measure(moved) - measure(images)).mean() > 0
