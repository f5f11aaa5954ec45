"""Published schedules as curves of a recipe: decays of older weights, and the share of real pictures in Pair-GRPO."""

from itertools import pairwise

import pytest

import golden
from flowrl.recipe.curves import Curve

# Flow-Factory's names: first step, value there, rise a step, limit
NAMED = {"none": "0-0-0-0", "slow": "0-0-0.001-0.5", "medium": "75-0-0.0075-0.999", "fast": "0-0-0.02-0.99"}
NAMED |= {"moderate": "0-0-0.01-0.5", "offline": "0-1-0-1", "0": "0-0-0-0", "1": NAMED["slow"], "2": NAMED["medium"]}
NAMED |= {"3": NAMED["offline"], "4": NAMED["fast"], "5": NAMED["moderate"], "6": "0-0-0.0075-0.999"}


def ramp(kind: object) -> Curve:
    """A rise that stops at its limit, with a point before the limit and one behind it."""
    first, value, slope, limit = map(float, NAMED.get(str(kind), str(kind)).split("-"))
    points = {int(first): value}
    if slope > 0:
        whole = int((limit - value) / slope + 1e-9)
        points |= {int(first) + whole: value + whole * slope, int(first) + whole + 1: limit}
    return Curve(tuple(points.items()), by="updates")


@pytest.mark.parametrize("case", golden.cases("direct/decay_schedules.json"))
def test_decays_of_older_weights(case) -> None:
    curve = ramp(case["params"]["decay_type"])
    golden.check({"decay": [curve.at(0, step) for step in case["inputs"]["step"]]}, case)


@pytest.mark.parametrize("case", golden.cases("direct/pair_grpo_curriculum.json"))
def test_the_curriculum_of_pair_grpo(case) -> None:
    params = case["params"]
    curve = Curve(((params["s1"], 1.0), (params["s2"], params["p_mid"]), (params["s3"], 0.0)))
    golden.check({"prob": [curve.at(step, 0) for step in case["inputs"]["step"]]}, case)


FILTERS, TERMS = "objectives/llm_sampler_filter.json", "objectives/llm_aux_loss.json"


@pytest.mark.parametrize("case", golden.cases(FILTERS, where=lambda c: golden.kind(c) == "noisyrollout.schedule"))
def test_the_decays_of_noisyrollout(case) -> None:
    """The noise falls from its step to 0: the way from one to 0."""
    params, total = case["params"], case["params"]["total_steps"]
    shape = {"pow": "power"}.get(params["decay_mode"], params["decay_mode"])
    how = {"coef": float(params["decay_coef"]), "mid": params["decay_sig_mid_step"] / total}
    curve = Curve(((0, 1.0), (total, 0.0)), "iterations", (shape,), **how)
    decay = [curve.at(step, 0) for step in case["inputs"]["step"]]
    golden.check({"decay": decay, "noise_step": [int(params["gaussian_noise_step"] * d) for d in decay]}, case)


@pytest.mark.parametrize("case", golden.cases(TERMS, where=lambda c: golden.kind(c) == "chord.mu_schedule"))
def test_the_schedule_of_chord(case) -> None:
    params = case["params"]
    warm, decay = params["mu_warmup_steps"], params["mu_decay_steps"]
    points = {0: 0.0} if warm else {}
    points |= {warm: params["mu_peak"]} | ({warm + decay: params["mu_valley"]} if decay else {})
    points |= {} if decay else {warm + 1: params["mu_valley"]}
    curve = Curve(tuple(points.items()), "updates", ("linear", "cosine")[2 - len(points) + (1 if warm else 0) :])
    golden.check({"mu": [curve.at(0, step) for step in case["inputs"]["global_step"]]}, case)


def test_the_points_of_a_ramp_rise() -> None:
    for kind in NAMED:
        assert all(a < b for (a, _), (b, _) in pairwise(ramp(kind).points))
