"""Identities of advantages: symmetries, unscored samples, groups without spread, combination, credit."""

import math
from itertools import product

import pytest
import torch
from torch import Tensor

from flowrl.core.advantages.combined import (
    BASELINES,
    SCALES,
    advantage_metrics,
    advantages,
    combined_reward,
    group_stats,
)

NAN = math.nan
GROUP_RELATIVE = [dict(), dict(unbiased=True, eps=1e-8), dict(baseline="leave_one_out"), dict(eps=0.0, floor=1e-6)]
EVERY = [
    dict(baseline=baseline, scale=scale, combine=combine, standardise=standardise)
    for baseline, scale in product([name for name in BASELINES if name != "given"], SCALES)
    for combine, standardise in (("sum", False), ("per_reward", True))
    if baseline != "pass_at_k" or scale in ("group", "none")  # it has a scale of its own
]


def ragged() -> tuple[dict[str, Tensor], Tensor, dict[str, float]]:
    """Two rewards of different size, groups of 5, 3, 6 and 2 samples, labels scattered and interleaved."""
    draw = torch.Generator().manual_seed(3)
    group = torch.tensor([7, -2, 7, 40, 7, -2, 40, 40, 900, 7, 40, -2, 40, 900, 7, 40])
    first, second = torch.randn(2, 16, generator=draw)
    return {"a": first, "b": 30 + 10 * second}, group, {"a": 1.0, "b": 0.2}


@pytest.mark.parametrize("options", EVERY)
def test_permuting_samples_permutes_advantages(options: dict) -> None:
    rewards, group, weights = ragged()
    rewards["a"][4] = NAN
    order = torch.randperm(16, generator=torch.Generator().manual_seed(1))
    straight = advantages(rewards, group, weights=weights, **options)
    moved = advantages({name: r[order] for name, r in rewards.items()}, group[order], weights=weights, **options)
    torch.testing.assert_close(moved, straight[order], rtol=1e-6, atol=1e-6)
    assert straight.abs().max() > 0.1 or options["baseline"] == "pass_at_k"  # to which most of these are all right


@pytest.mark.parametrize("options", EVERY)
def test_labels_are_names_only(options: dict) -> None:
    rewards, group, weights = ragged()
    renamed = torch.tensor([{7: 0, -2: 3, 40: 1, 900: 2}[int(label)] for label in group])
    straight = advantages(rewards, group, weights=weights, **options)
    torch.testing.assert_close(advantages(rewards, renamed, weights=weights, **options), straight, rtol=1e-6, atol=1e-6)


@pytest.mark.parametrize("options", [dict(), dict(unbiased=True), dict(combine="per_reward"), dict(scale="batch")])
def test_affine_change_of_rewards_changes_nothing(options: dict) -> None:
    rewards, group, weights = ragged()
    changed = {name: 4.0 * r - 17.0 for name, r in rewards.items()}
    straight = advantages(rewards, group, weights=weights, eps=0.0, **options)
    torch.testing.assert_close(
        advantages(changed, group, weights=weights, eps=0.0, **options), straight, rtol=1e-4, atol=1e-4
    )


def test_a_shift_of_one_group_leaves_the_other_groups_and_itself() -> None:
    rewards, group, weights = ragged()
    shifted = {name: r + 5.0 * (group == 40) for name, r in rewards.items()}
    straight = advantages(rewards, group, weights=weights)
    torch.testing.assert_close(advantages(shifted, group, weights=weights), straight, rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("options", EVERY)
@pytest.mark.parametrize("hidden", [[4], [0, 2, 4, 9], [8, 13], list(range(16))])
def test_unscored_samples_are_as_good_as_absent(options: dict, hidden: list[int]) -> None:
    """Also where one scored sample remains in a group, none in a group, and none at all."""
    rewards, group, weights = ragged()
    rewards["b"][hidden] = NAN
    adv = advantages(rewards, group, weights=weights, **options)
    assert torch.equal(adv[hidden], torch.zeros(len(hidden)))
    seen = [i for i in range(16) if i not in hidden]
    if seen:
        dropped = advantages({n: r[seen] for n, r in rewards.items()}, group[seen], weights=weights, **options)
        torch.testing.assert_close(adv[seen], dropped, rtol=1e-6, atol=1e-6)


def test_an_unscored_witness_costs_nothing() -> None:
    rewards, group, weights = ragged()
    straight = advantages(rewards, group, weights=weights)
    rewards["witness"] = torch.full((16,), NAN)
    assert torch.equal(advantages(rewards, group, weights=weights | {"witness": 0.0}), straight)


@pytest.mark.parametrize("options", GROUP_RELATIVE)
@pytest.mark.parametrize("standardise", [False, True])
@pytest.mark.parametrize("combine", ["sum", "per_reward"])
def test_groups_without_spread_give_exactly_zero(options: dict, standardise: bool, combine: str) -> None:
    """Equal rewards, and rewards equal up to float32 rounding: 0.1 + 0.2 against 0.3, and sums that cancel."""
    rewards, group, weights = ragged()
    rounding = torch.tensor([0.3, 0.30000001192092896, 0.2999999523162842, 0.3, 0.3000000715255737])
    for label, value in ((40, torch.full((6,), 0.7)), (7, rounding)):
        rewards["a"][group == label] = value
        rewards["b"][group == label] = -5.0 * value
    adv = advantages(rewards, group, weights=weights, combine=combine, standardise=standardise, **options)
    silent = (group == 40) | (group == 7)
    assert torch.equal(adv[silent], torch.zeros(11))
    assert (adv[~silent].abs() > 0.01).all()


@pytest.mark.parametrize("baseline", [name for name in BASELINES if name not in ("second_best", "pass_at_k", "given")])
def test_rounding_of_one_reward_is_not_scaled_up_beside_another(baseline: str) -> None:
    """A reward tied in a group adds nothing there; a group std of zero divides nothing, whatever the baseline."""
    rewards, group, _ = ragged()
    rewards["b"][group == 900] = torch.tensor([0.3, 0.30000001192092896])
    options = dict(baseline=baseline, combine="per_reward", eps=1e-8, clip=None)
    both = advantages(rewards, group, weights={"a": 1.0, "b": 1.0}, **options)
    alone = advantages(rewards, group, weights={"a": 1.0, "b": 0.0}, **options) / 2
    torch.testing.assert_close(both[group == 900], alone[group == 900])
    assert (both - alone)[group != 900].abs().min() > 1e-3


def test_the_batch_scale_is_one_divisor_of_raw_rewards() -> None:
    rewards, group, weights = ragged()
    options = dict(weights=weights, clip=None, eps=0.0, combine="sum")
    centred = advantages(rewards, group, scale="none", **options)
    std = combined_reward(rewards, weights).std(correction=0).float()
    torch.testing.assert_close(advantages(rewards, group, scale="batch", **options), centred / std)


def test_a_small_but_real_spread_is_kept() -> None:
    rewards = {"r": torch.tensor([0.5, 0.5001])}
    adv = advantages(rewards, torch.zeros(2, dtype=torch.int64), weights={"r": 1.0}, eps=1e-8)
    torch.testing.assert_close(adv, torch.tensor([-1.0, 1.0]), rtol=1e-3, atol=0)


def test_moments_of_each_scale() -> None:
    rewards, group, weights = ragged()
    options: dict = dict(weights=weights, unbiased=True, clip=None, combine="sum")
    within = advantages(rewards, group, eps=0.0, **options)
    stats = group_stats(within, group, unbiased=True)
    torch.testing.assert_close(stats.mean, torch.zeros(4, dtype=torch.float64), rtol=0, atol=1e-6)
    torch.testing.assert_close(stats.std, torch.ones(4, dtype=torch.float64), rtol=1e-6, atol=0)
    for scale in (dict(scale="batch_centered", eps=0.0), dict(scale="whiten"), dict(standardise=True, eps=0.0)):
        over = advantages(rewards, group, **options, **scale)
        assert abs(float(over.mean())) < 1e-6
        assert abs(float(over.std()) - 1) < 1e-4


def test_leave_one_out_is_the_group_mean_up_to_a_factor() -> None:
    """R_i - mean of the others = (R_i - mean) n / (n - 1)."""
    rewards, group, weights = ragged()
    size = torch.tensor([5, 3, 5, 6, 5, 3, 6, 6, 2, 5, 6, 3, 6, 2, 5, 6])
    plain = advantages(rewards, group, weights=weights, scale="none", clip=None)
    others = advantages(rewards, group, weights=weights, baseline="leave_one_out", scale="none", clip=None)
    torch.testing.assert_close(others, plain * size / (size - 1), rtol=1e-5, atol=1e-5)


def test_per_reward_gives_each_reward_its_weight() -> None:
    """Normalising each reward first makes a thousandfold reward equal to the original; normalising the sum does not."""
    rewards, group, _ = ragged()
    weights = {"a": 1.0, "b": 1.0}
    larger = rewards | {"b": 1000 * rewards["b"]}
    calls = [advantages(r, group, weights=weights, combine="per_reward", eps=1e-8) for r in (rewards, larger)]
    torch.testing.assert_close(calls[0], calls[1], rtol=1e-4, atol=1e-4)
    sums = [advantages(r, group, weights=weights, combine="sum", eps=1e-8) for r in (rewards, larger)]
    assert (sums[0] - sums[1]).abs().max() > 0.1


def test_weights_say_what_rewards_count_beside_each_other() -> None:
    """The factor of a single reward, such as one that changes its unit, is no step size."""
    rewards, group, _ = ragged()
    calls = [advantages({"a": rewards["a"]}, group, weights={"a": w}, eps=0.0) for w in (1.0, 0.002)]
    torch.testing.assert_close(calls[0], calls[1])
    both = [advantages(rewards, group, weights={"a": w, "b": -w}, eps=0.0) for w in (1.0, 500.0)]
    torch.testing.assert_close(both[0], both[1])


def test_one_reward_is_the_same_in_both_combinations() -> None:
    rewards, group, _ = ragged()
    del rewards["b"]
    calls = [advantages(rewards, group, weights={"a": 1.0}, combine=c) for c in ("sum", "per_reward")]
    assert torch.equal(*calls)


def test_singletons() -> None:
    rewards, group = {"r": torch.tensor([2.0, 1.0, 3.0])}, torch.tensor([5, 6, 6])
    zero = advantages(rewards, group, weights={"r": 1.0}, eps=0.0)
    raw = advantages(rewards, group, weights={"r": 1.0}, eps=0.0, singleton="raw")
    assert zero.tolist() == [0.0, -1.0, 1.0]
    assert raw.tolist() == [2.0, -1.0, 1.0]


def test_trim_moves_the_statistics_only() -> None:
    rewards, group = {"r": torch.tensor([-50.0, 1.0, 3.0, 5.0, NAN])}, torch.zeros(5, dtype=torch.int64)
    adv = advantages(rewards, group, weights={"r": 1.0}, trim=0.25, scale="none", clip=None)
    assert adv.tolist() == [-53.0, -2.0, 0.0, 2.0, 0.0]


def test_clip_limits_the_result() -> None:
    rewards, group = {"r": torch.tensor([0.0] * 99 + [1.0])}, torch.zeros(100, dtype=torch.int64)
    free = advantages(rewards, group, weights={"r": 1.0}, clip=None)
    assert free.max() > 9
    assert torch.equal(advantages(rewards, group, weights={"r": 1.0}), free.clamp(-5, 5))


def test_metrics_count_what_was_seen() -> None:
    group = torch.tensor([0, 0, 1, 1, 2, 2])
    rewards = {"a": torch.tensor([1.0, 3.0, 2.0, 2.0, NAN, 4.0]), "witness": torch.tensor([1.0, 1, 1, 1, 5, 5])}
    weights = {"a": 2.0, "witness": 0.0}
    adv = advantages(rewards, group, weights=weights, eps=0.0)
    metrics = advantage_metrics(rewards, group, adv, weights=weights)
    assert metrics["reward/a/mean"] == pytest.approx(2.4)
    assert metrics["reward/total/std"] == pytest.approx(2 * math.sqrt(1.04))
    assert metrics["reward/a/nan"] == pytest.approx(1 / 6)
    assert metrics["reward/witness/mean"] == pytest.approx(14 / 6)
    assert metrics["groups/zero_variance"] == pytest.approx(2 / 3)
    assert metrics["adv/abs_mean"] == pytest.approx(2 / 6)
    nothing = advantage_metrics({"a": torch.full((6,), NAN)}, group, adv, weights={"a": 1.0})
    assert math.isnan(nothing["reward/a/mean"])


def test_errors_name_the_place_and_the_remedy() -> None:
    rewards, group, weights = ragged()
    for options, message in (
        (dict(baseline="mean"), "baseline='mean': choose one of group"),
        (dict(scale="std"), "scale='std'"),
        (dict(combine="x"), "combine='x'"),
        (dict(singleton="x"), "singleton='x'"),
        (dict(trim=1.0), "trim=1.0"),
        (dict(trim=0.5, baseline="leave_one_out"), "set trim to 0"),
    ):
        with pytest.raises(ValueError, match=message):
            advantages(rewards, group, weights=weights, **options)
    with pytest.raises(ValueError, match="same rewards"):
        combined_reward(rewards, {"a": 1.0})
    with pytest.raises(ValueError, match="non-zero"):
        combined_reward(rewards, {"a": 0.0, "b": 0.0})
    rewards["a"][0] = math.inf
    with pytest.raises(ValueError, match="'a' is infinite"):
        combined_reward(rewards, weights)


@pytest.mark.parametrize("combine", ["sum", "per_reward"])
def test_a_given_baseline_is_taken_from_each_reward(combine: str) -> None:
    """Also in a group of one, and where all members score alike: the third sample is its own group."""
    rewards = {"a": torch.tensor([1.0, 1.0, 0.5, NAN]), "b": torch.tensor([0.0, 2.0, 4.0, 1.0])}
    given = {"a": torch.tensor([0.5, 0.5, 0.25, 0.5]), "b": torch.tensor([1.0, 1.0, 3.0, 1.0])}
    options = dict(weights={"a": 1.0, "b": 0.5}, baseline="given", scale="none", combine=combine)
    adv = advantages(rewards, torch.tensor([4, 4, 9, 9]), given=given, **options)
    size = 1.0 if combine == "sum" else 1.5
    torch.testing.assert_close(adv, torch.tensor([0.0, 1.0, 0.75, 0.0]) / size)
    with pytest.raises(ValueError, match="given"):
        advantages(rewards, torch.tensor([4, 4, 9, 9]), **options)
