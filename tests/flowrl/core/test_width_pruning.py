"""BranchGRPO's width pruning: against its published numbers, edge by edge, and in a run."""

from pathlib import Path

import pytest
import torch

import golden
from cli_support import quiet
from flowrl.build import width_pruning
from flowrl.core.selection import WidthPruning
from flowrl.recipe.errors import RecipeError
from flowrl.recipe.load import load
from flowrl.runs.start import run

BASE = str(Path(__file__).parents[2] / "recipes" / "quickstart.yaml")
TREE = ["sampler.window={kind: all, skip_last: 0}", "train.group=4", "train.prompts=2", "train.updates=1"]
TREE += ["train.iterations=1", "eval.at_start=false", "eval.at_end=false", "eval.every=null"]
KIND = {1: "branches", 2: "ends"}


def tree(more: str) -> str:
    return f"sampler.tree={{kind: branch, splits: [0, 2], {more}}}"


@pytest.mark.parametrize(
    "case",
    golden.cases("samplers/branchgrpo_pruning.json", where=lambda c: c["scheme"] == "branchgrpo_width_pruning"),
)
def test_published_edges_are_pruned(case: golden.Case) -> None:
    params, leaves = case["params"], case["inputs"]["leaf_ids"]
    last = max(int(step) for step in params["tree_split_points"].split(","))
    chain = params["num_steps"] - last - 1
    candidates = torch.cat([torch.zeros(len(leaves), 1), torch.ones(len(leaves), chain)], 1).bool()
    kept = WidthPruning(candidates, KIND[params["mode"]], params["ratio"]).kept_decisions(
        golden.tensor(case["inputs"]["leaf_rewards"], torch.float32)
    )
    pruned = [
        "_t".join(leaf.split("_t")[: len(leaf.split("_t")) - (chain - column)])
        for leaf, row in zip(leaves, kept.tolist(), strict=True)
        for column, keep in enumerate(row)
        if not keep
    ]
    assert sorted(pruned) == sorted(case["outputs"]["pruned_child_ids"])
    assert kept[:, 0].all()


def test_ends_may_cut_a_branch_in_two() -> None:
    """Of 2 x 3 decisions int(6 * .7) = 4 stay: the two earliest of the better branch, the two last of the worse."""
    kept = WidthPruning(torch.ones(2, 3, dtype=torch.bool), "ends", 0.7).kept_decisions(torch.tensor([-1.0, 1.0]))
    assert kept.tolist() == [[False, True, True], [True, True, False]]


def test_a_recipe_prunes_until_its_iteration(tmp_path: Path) -> None:
    recipe = load(
        BASE, [*TREE, tree("width_prune: ends, width_ratio: 0.5, prune_until: 3"), f"output={tmp_path / 'r'}"]
    )
    found = width_pruning(recipe, 3)
    assert found is not None and width_pruning(recipe, 4) is None
    assert sorted(map(sum, found.candidates.tolist())) == [0, 0, 3, 3, 3, 3] and not found.candidates[:, :3].any()
    run(recipe, quiet())
    with pytest.raises(RecipeError, match="sampler.tree.width_prune: missing"):
        load(BASE, [*TREE, tree("width_ratio: 0.5")])
