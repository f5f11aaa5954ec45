"""The published width pruning of BranchGRPO that keeps both ends (DanceGRPO's best-of-n: test_golden_objectives.py)."""

from typing import Any

import pytest
import torch

import golden
from flowrl.core.advantages import advantages
from flowrl.core.selection import extremes, largest

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
