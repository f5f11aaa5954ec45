"""Noise levels that finished samples are looked at: spread, repeatable, of the walk where asked."""

import math

import pytest

from samplers.noise_draws import logit_normal, of_walk, uniform


def test_uniform_levels_lie_one_in_each_part():
    for seed in range(20):
        found = uniform(3, low=0.4, high=0.94, seed=seed)
        assert [int((level - 0.4) / 0.18) for level in found] == [2, 1, 0]
    assert uniform(3, seed=1) == uniform(3, seed=1) != uniform(3, seed=2)


def test_logit_normal_levels_have_its_quantiles():
    found = [level for seed in range(400) for level in logit_normal(2, mean=-0.5, std=0.8, seed=seed)]
    logits = sorted(math.log(level / (1 - level)) for level in found)
    assert abs(logits[400] + 0.5) < 0.05 and abs(logits[672] - logits[128] - 1.6) < 0.1
    assert all(0.2 < level < 0.7 for level in logit_normal(5, low=0.2, high=0.7, seed=3))


def test_steps_of_the_walk_are_whole_numbers_without_repeats():
    met = {of_walk(2, steps=5, first=1, last=4, seed=seed) for seed in range(40)}
    assert met == {(1, 2), (1, 3), (2, 3)}
    assert of_walk(5, steps=5, seed=0) == (0, 1, 2, 3, 4)


@pytest.mark.parametrize(
    ("draw", "message"),
    [
        (lambda: uniform(0, seed=0), "number=0"),
        (lambda: uniform(1, low=0.5, high=0.5, seed=0), "low=0.5, high=0.5"),
        (lambda: logit_normal(1, std=0.0, seed=0), "std=0"),
        (lambda: of_walk(4, steps=5, first=2, seed=0), "give 1 to 3"),
    ],
)
def test_levels_that_cannot_be_are_refused(draw, message: str):
    with pytest.raises(ValueError, match=message):
        draw()
