"""The published width pruning of BranchGRPO that keeps both ends (DanceGRPO's best-of-n: test_golden_objectives.py)."""

import itertools
from typing import Any

import pytest
import torch

import golden
from flowrl.core.advantages.combined import advantages, group_stats
from flowrl.core.replay import best_kept, draw_shares, resampling_weights
from flowrl.core.selection import extremes, largest, most_spread, smallest

Case = dict[str, Any]
WIDTH = "branchgrpo_width_pruning"


@pytest.mark.parametrize(
    "case",
    golden.cases("samplers/branchgrpo_pruning.json", where=lambda c: c["scheme"] == WIDTH and c["params"]["mode"] == 2),
)
def test_width_pruning_keeps_both_ends(case: Case) -> None:
    """The edges of a leaf's chain share its advantage, and are pruned together after the step of the last split.

    Mode 1 is no selection of leaves: it keeps the earliest steps of every chain.
    """
    params, leaves = case["params"], case["inputs"]["leaf_ids"]
    rewards = golden.tensor(case["inputs"]["leaf_rewards"], torch.float32)
    group = torch.zeros(len(leaves), dtype=torch.int64)
    adv = advantages({"r": rewards}, group, weights={"r": 1.0}, unbiased=True, eps=1e-8)
    kept = extremes(adv, group, round(params["ratio"] * len(leaves)))
    last = max(int(step) for step in params["tree_split_points"].split(","))
    after = params["num_steps"] - last - 1  # edges of a chain beyond that step
    pruned = []
    for leaf in (name for name, k in zip(leaves, kept.tolist(), strict=True) if not k):
        steps = leaf.split("_t")
        pruned += ["_t".join(steps[: len(steps) - i]) for i in range(after)]
    got = {"num_edges_before": case["outputs"]["num_edges_before"], "pruned_child_ids": sorted(pruned)}
    got["num_edges_after"] = got["num_edges_before"] - len(pruned)
    wanted = case | {"outputs": case["outputs"] | {"pruned_child_ids": sorted(case["outputs"]["pruned_child_ids"])}}
    golden.check(got, wanted)


FILTERS = "objectives/llm_sampler_filter.json"


@pytest.mark.parametrize(
    "case",
    golden.cases(FILTERS, where=lambda c: c["method"] == "cppo.prune" and c["params"]["metric"] == "smallest"),
)
def test_completions_of_the_smallest_advantages_are_pruned(case: Case) -> None:
    adv = golden.tensor(case["inputs"]["advantages"], torch.float64)
    keep = len(adv) - int(len(adv) * case["params"]["pruning"])
    kept = largest(adv, torch.zeros(len(adv), dtype=torch.int64), keep)
    wanted = sorted(case["outputs"]["kept_indices"])
    assert kept.nonzero()[:, 0].tolist() == wanted


@pytest.mark.parametrize(
    "case",
    golden.cases(
        FILTERS, where=lambda c: c["method"] == "ragen.rollout_filter" and c["params"]["rollout_filter_type"] == "std"
    ),
)
def test_groups_of_the_largest_spread_are_kept(case: Case) -> None:
    params, scores = case["params"], golden.tensor(case["inputs"]["scores"], torch.float64)
    scores = scores.flatten()
    group = torch.arange(len(scores)) // params["group_size"]
    share = params["rollout_filter_ratio"]
    adv = advantages({"r": scores}, group, weights={"r": 1.0}, groups=share)
    kept = set(group[adv != 0].tolist())
    assert kept == {int(group[i]) for i in case["outputs"]["kept_indices"]}


@pytest.mark.parametrize(
    "case", golden.cases(FILTERS, where=lambda c: c["method"] == "cppo.prune" and c["params"]["metric"] == "largest")
)
def test_completions_of_the_largest_advantages_are_pruned_in_the_control(case: Case) -> None:
    adv = golden.tensor(case["inputs"]["advantages"], torch.float64)
    keep = len(adv) - int(len(adv) * case["params"]["pruning"])
    kept = smallest(adv, torch.zeros(len(adv), dtype=torch.int64), keep)
    assert kept.nonzero()[:, 0].tolist() == sorted(case["outputs"]["kept_indices"])


SILENT = {"dynamic_sampling.zero_variance_filter", "dapo.filter_groups"}


@pytest.mark.parametrize("case", golden.cases(FILTERS, where=lambda c: c["method"] in SILENT))
def test_groups_without_spread_are_dropped(case: Case) -> None:
    """The second keeps groups of a single sample, as `singleton: raw` does."""
    if case["method"] == "dapo.filter_groups":
        names = case["inputs"]["uid"]
        value = golden.tensor(case["inputs"]["metric"], torch.float64)
        group = torch.tensor([names.index(name) for name in names])
    else:
        value = golden.tensor(case["inputs"]["rewards"], torch.float64)
        group = torch.arange(len(value)) // case["params"]["num_generations"]
    stats = group_stats(value, group)
    dropped = stats.tied & ((stats.count > 1) | (case["method"] != "dapo.filter_groups"))
    kept = (~dropped[stats.index]).nonzero()[:, 0].tolist()
    assert kept == case["outputs"]["kept_indices"]
    several = (stats.count > 1)[stats.index]
    adv = advantages({"r": value}, group, weights={"r": 1.0})
    moved = torch.zeros(len(stats.count), dtype=torch.bool).index_put((stats.index[adv != 0],), torch.tensor(True))
    assert torch.equal(moved[stats.index][several], ~dropped[stats.index][several])  # as a refill goes by


def test_rows_of_the_largest_variance() -> None:
    values = torch.tensor([0.0, 5.0, 1.0, 1.1, 0.9, -4.0, 6.0, 1.0])
    group = torch.tensor([0, 1, 0, 0, 0, 1, 1, 0])
    kept = most_spread(values, group, 3).nonzero()[:, 0]
    assert {1, 5, 6} <= set(kept.tolist()) and len(kept) == 6  # a set of three stays whole
    mine = (group == 0).nonzero()[:, 0].tolist()
    best = max(values[list(chosen)].var().item() for chosen in itertools.combinations(mine, 3))
    assert values[kept[group[kept] == 0]].var().item() == pytest.approx(best)


@pytest.mark.parametrize(
    "case",
    golden.cases(
        FILTERS, where=lambda c: c["method"] == "ragen.rollout_filter" and c["params"]["rollout_filter_type"] != "std"
    ),
)
def test_groups_of_the_smallest_spread_are_kept_in_the_control(case: Case) -> None:
    params, scores = case["params"], golden.tensor(case["inputs"]["scores"], torch.float64).flatten()
    group = torch.arange(len(scores)) // params["group_size"]
    how = {"weights": {"r": 1.0}, "groups": params["rollout_filter_ratio"], "groups_by": "smallest"}
    adv = advantages({"r": scores}, group, **how)
    assert set(group[adv != 0].tolist()) == {int(group[i]) for i in case["outputs"]["kept_indices"]}


@pytest.mark.parametrize("case", golden.cases(FILTERS, where=lambda c: c["method"] == "pf_ppo.weights"))
def test_a_batch_is_drawn_anew_by_its_scores(case: Case) -> None:
    scores = golden.tensor(case["inputs"]["scores"], torch.float64)
    power = {"power": case["params"]["weight_pow"]} if "weight_pow" in case["params"] else {}
    weight = resampling_weights(scores, case["params"]["reweight_method"], **power)
    golden.check({"weights": weight, "sampling_probability": draw_shares(weight)}, case)


@pytest.mark.parametrize("case", golden.cases(FILTERS, where=lambda c: c["method"] == "trl.replay_buffer"))
def test_a_store_keeps_the_best(case: Case) -> None:
    """Compared item by item: the published order is that of a heap."""
    scores, wanted = case["inputs"]["scores"], case["outputs"]
    kept = best_kept(scores, case["params"]["max_size"])
    shares = dict(zip(wanted["kept_items"], wanted["sampling_probability"], strict=True))
    assert kept == sorted(shares)
    got = draw_shares(golden.tensor([scores[i] for i in kept], torch.float64))
    golden.check({"sampling_probability": got}, case | {"outputs": {"sampling_probability": [shares[i] for i in kept]}})


def test_every_kind_of_filter_is_known() -> None:
    known = {"dars.extra_rollouts.ET", "dars.extra_rollouts.HW", "cppo.prune", "greso.skip", "ragen.rollout_filter"}
    known |= SILENT | {"pf_ppo.weights", "trl.replay_buffer", "noisyrollout.schedule"}
    golden.account([case["method"] for case in golden.load(FILTERS)], known)
