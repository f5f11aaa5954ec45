"""The shapes rewards on pictures whose score is known."""

import random

import pytest
import torch

from flowrl.contracts import Prompt, Samples
from flowrl.worlds.shapes.captions import Scene, split
from flowrl.worlds.shapes.render import render
from reward_models import shapes as module
from reward_models.shapes import shapes, shapes_residual, shapes_strict

SINGLE = Scene("single", (("red", "circle"),))
PAIR = Scene("pair", (("red", "circle"), ("blue", "square")))


def asked(scenes, images):
    prompts = [Prompt(s.caption, s.caption, meta=s.meta()) for s in scenes]
    return Samples(prompts, torch.zeros(len(scenes), dtype=torch.int64), images=images)


def test_a_right_picture_scores_one_and_a_wrong_one_by_its_parts():
    images = render([SINGLE, PAIR], random.Random(3))
    right = asked([SINGLE, PAIR], images)
    assert shapes(right).tolist() == [1.0, 1.0] and shapes_strict(right).tolist() == [1.0, 1.0]
    swapped = asked([PAIR, SINGLE], images)
    assert shapes_strict(swapped).tolist() == [0.0, 0.0]
    torch.testing.assert_close(
        shapes(swapped, strict=0.0), torch.tensor([0.5, 0.5])
    )  # one of two; one of one, one extra
    torch.testing.assert_close(shapes(swapped, strict=0.6), torch.tensor([0.2, 0.2]))


def test_strict_weight_mixes_the_two_scores():
    train, _ = split()
    scenes = random.Random(0).sample(train["relation"], 20)
    both = asked(scenes, render(scenes[::-1], random.Random(1)))
    exact, graded = shapes(both, strict=1.0), shapes(both, strict=0.0)
    assert torch.equal(exact, shapes_strict(both))
    torch.testing.assert_close(shapes(both, strict=0.25), 0.25 * exact + 0.75 * graded)


def test_a_witness_does_not_score_twice_and_never_sees_old_scores(monkeypatch):
    calls = []

    def counted(images, scenes):
        calls.append(len(scenes))
        return images.mean((1, 2, 3)), images.mean((1, 2, 3))

    monkeypatch.setattr(module, "score_batch", counted)
    images = torch.rand(2, 3, 4, 4)
    given = asked([SINGLE, PAIR], images)
    shapes(given), shapes_strict(given)
    assert len(calls) == 1
    shapes_strict(asked([PAIR, SINGLE], images))  # the same pictures, other captions
    assert len(calls) == 2
    images.zero_()  # the same tensor, other pictures
    assert shapes_strict(asked([PAIR, SINGLE], images)).tolist() == [0.0, 0.0]
    shapes_strict(asked([PAIR, SINGLE], images.clone()))  # a copy of the same pictures, as each reward gets its own
    assert len(calls) == 3


@pytest.mark.parametrize("value", [torch.nan, torch.inf, -torch.inf, 1e30, 1.5, -0.5, 255.0])
def test_a_picture_that_is_none_has_no_score(value):
    images = render([SINGLE] * 3, random.Random(3))
    images[1, 0, 2, 2] = value
    for reward, least in ((shapes, 1.0), (shapes_strict, 1.0), (shapes_residual, -0.01)):
        score = reward(asked([SINGLE] * 3, images))
        assert score.isnan().tolist() == [False, True, False] and score[[0, 2]].min() >= least


def test_a_changed_result_does_not_reach_the_next_reader():
    given = asked([SINGLE], torch.zeros(1, 3, 32, 32))
    shapes_strict(given).fill_(7)
    assert shapes_strict(given).tolist() == [0.0]


@pytest.mark.parametrize("meta", [{}, {"kind": "single"}, {"kind": "single", "objects": 3}])
def test_a_prompt_without_a_scene_is_named(meta):
    given = Samples([Prompt("x", "a cat", meta=meta)], torch.zeros(1), images=torch.zeros(1, 3, 32, 32))
    with pytest.raises(ValueError, match="'a cat' has no scene"):
        shapes(given)


def test_other_media_and_weights_are_refused():
    texts = Samples([Prompt("x", "x", meta=SINGLE.meta())], torch.zeros(1), texts=["x"])
    with pytest.raises(ValueError, match="scores images"):
        shapes(texts)
    with pytest.raises(ValueError, match="strict=2"):
        shapes(asked([SINGLE], torch.zeros(1, 3, 32, 32)), strict=2)
