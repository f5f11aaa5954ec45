"""Noise levels that finished samples are looked at: spread, repeatable, of the walk where asked."""

import math

import pytest

from samplers.noise_draws import again, align, bridge, leap, logit_normal, of_walk, spaced, tail, uniform
from samplers.visits import Visited


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


def test_the_tail_of_a_walk_is_drawn_whole():
    found = {tail(2, 4, steps=6, seed=seed) for seed in range(40)}
    assert found == {tuple(Visited(step) for step in range(6 - n, 6)) for n in (2, 3, 4)}
    with pytest.raises(ValueError, match="1 <= low <= high <= 6"):
        tail(0, 7, steps=6, seed=0)


def test_an_alignment_goes_down_and_up_between_the_levels():
    drawn = [align(seed=seed) for seed in range(40)]
    assert len(set(drawn)) > 35 and drawn[3] == align(seed=3)
    for down, up in drawn:
        assert 0.75 <= down.to < down.level <= 0.964 and 0.75 <= up.level < up.to <= 0.964
        assert down.level - down.to <= 101.5 * (0.964 - 0.75) / 999
    assert [len(align(20, inversion=False, seed=seed)) for seed in range(20)] == [1] * 20
    with pytest.raises(ValueError, match="0 < low < high < 1"):
        align(low=0.9, high=0.8, seed=0)


def test_late_steps_come_more_often_by_their_power():
    met = [of_walk(1, steps=4, bias=2.0, seed=seed)[0] for seed in range(3000)]
    assert [round(met.count(step) / 100) for step in range(4)] == pytest.approx([1, 4, 9, 16], abs=2)
    assert {len(set(of_walk(3, steps=4, first=1, bias=2.0, seed=seed))) for seed in range(9)} == {3}


def test_two_leaps_take_the_place_of_a_walk():
    met = {leap(steps=4, through=0.2, seed=seed) for seed in range(80)}
    assert {(a.step, b.step) for a, b in met} == {(i, j) for j in range(4) for i in range(j)}
    assert all((a.to, b.to, a.through, b.through) == (b.step, 4, 0.0, 0.2) for a, b in met)
    with pytest.raises(ValueError, match="2 or more"):
        leap(steps=1, seed=0)


def test_a_bridge_has_steps_on_both_sides_of_the_one_that_lets_a_gradient_through():
    for number, steps in ((5, 25), (2, 2), (6, 6), (3, 4)):
        for seed in range(40):
            found = bridge(number, steps=steps, through=0.1, seed=seed)
            (middle,) = [c.step for c in found if c.through]
            before = [c.step for c in found if c.step < middle]
            assert [c.step for c in found] == sorted({c.step for c in found}) and len(found) == number
            share = min(max(round(number * middle / steps), 1), middle)
            assert len(before) == max(min(share, number - 1), number - (steps - middle))
            assert all(c.over == (0, steps) for c in found)
    with pytest.raises(ValueError, match="give 2 to 4"):
        bridge(5, steps=4, seed=0)


def test_spaced_steps_end_where_the_estimate_is_judged():
    for seed in range(60):
        found = spaced(3, steps=25, stop=0.4, seed=seed)
        (last,) = {c.judged for c in found}
        assert last is not None and 15 <= last <= 24
        a, b, c = (v.step for v in found)
        assert b - a == c - b == (last + 1) // 3 and c <= last
        assert [v.to for v in found] == [25 if v.step == last else None for v in found]
    assert {c.step for c in spaced(9, steps=3, stop=0.1, seed=1)} == {0, 1, 2}
    assert again(2, steps=6) == (Visited(5), 5, 5)
