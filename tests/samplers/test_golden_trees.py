"""Trees against the published numbers in shared/golden/samplers (its README.md explains the fields).

A node of the published trees is a step of one of our segments; its name is the path of splits and plain steps to it.
"""

from __future__ import annotations

from collections import Counter
from typing import Any

import pytest
import torch
from torch import Tensor

import golden
from flowrl.contracts import Credit
from flowrl.core.advantages.rows import row_advantages
from flowrl.core.selection import extremes
from golden import Case, tensor
from samplers import windows
from samplers.gaussian import Gaussian
from samplers.plan import ROOT, Tree
from samplers.transitions import dance_sde, ode
from samplers.trees import Branching, credit_weights, peers

CHECKED = {
    "branchgrpo_structure": {"branchgrpo_split_points", "branchgrpo_tree_structure"},
    "branchgrpo_tree": {"branchgrpo_tree"},
    "branchgrpo_step": {"branchgrpo_split_step"},
    "branchgrpo_advantage": {"branchgrpo_fusion_depth_norm"},
    "branchgrpo_pruning": {
        "branchgrpo_depth_pruning",
        "branchgrpo_pruning_gate",
        "branchgrpo_width_pruning",
        "branchgrpo_mix_windows",
    },
    "tempflow": {"tempflow_branching", "tempflow_per_step_advantages"},
    "g2rpo": {"g2rpo_granular_schedule", "g2rpo_multi_granularity_advantage"},
}
ELSEWHERE = {"tempflow_noise_weights", "tempflow_policy_loss"}  # tests/flowrl/objectives/test_golden_emphasis.py
DANCE = dict(baseline="group", scale="group", unbiased=True, eps=1e-8)


def cases(file: str, scheme: str) -> list:
    return golden.cases(f"samplers/{file}.json", where=lambda case: case["scheme"] == scheme)


@pytest.mark.skipif(not golden.ROOT.is_dir(), reason=golden.ABSENT)
@pytest.mark.parametrize("file", CHECKED)
def test_every_kind_of_case_is_checked(file: str) -> None:
    known = CHECKED[file] | (ELSEWHERE if file == "tempflow" else set())
    golden.account(map(golden.kind, golden.load(f"samplers/{file}.json")), known)


# ---------------------------------------------------------------------- BranchGRPO: structure


def splits_of(params: dict[str, Any]) -> list[int]:
    """The published split points: clamped to the walk and sorted; without a list, evenly spaced."""
    if params["tree_split_points"] is None:
        rounds = params["tree_split_rounds"]
        return [i * (params["num_steps"] // rounds) for i in range(rounds)]
    given = [int(text) for text in params["tree_split_points"].split(",")]
    return sorted(min(max(point, 0), params["num_steps"] - 1) for point in given)


def drawn_steps(params: dict[str, Any]) -> tuple[int, ...]:
    """Steps that draw: all, or in the published mixed form those within `size` of a multiple of the stride."""
    steps = range(params["num_steps"])
    if not params.get("mix_ode_sde_tree", "window_size" in params):
        return tuple(steps)
    stride, size = params["window_stride"], params.get("mix_sde_window_size", params.get("window_size"))
    return tuple(step for step in steps if step - step // stride * stride < size)


def grown(params: dict[str, Any], **more: Any) -> Tree:
    """The published tree: two children at every split."""
    splits, drawn = tuple(splits_of(params)), drawn_steps(params)
    plan = Branching(params["num_steps"], splits, (2,) * len(splits), drawn, drawn, **more)
    return plan.tree(plan.leaves)


def nodes(tree: Tree, splits: list[int]) -> dict[str, tuple[int, int]]:
    """(segment, step) of every node but the root, by its published name."""
    found: dict[str, tuple[int, int]] = {}
    names: dict[int, str] = {ROOT: "root_b0"}
    born = Counter()
    for i, segment in enumerate(tree.segments):
        name = names[segment.parent]
        for step in range(segment.begin, segment.end):
            if step == segment.begin and step in splits:
                name += f"_s{step}_{born[segment.parent]}"
                born[segment.parent] += 1
            else:
                name += f"_t{step}"
            found[name] = i, step
        names[i] = name
    return found


@pytest.mark.parametrize("case", cases("branchgrpo_structure", "branchgrpo_split_points"))
def test_split_points(case: Case) -> None:
    """Clamping, sorting and the default are the published reading of a list; a tree is made of what comes of it."""
    splits = splits_of(case["params"])
    assert splits == case["outputs"]["split_points"]
    if len(set(splits)) == len(splits):
        assert grown(case["params"]).leaves
    else:  # kept as duplicates there; here every split is one step
        with pytest.raises(ValueError, match="must rise"):
            grown(case["params"])


@pytest.mark.parametrize("case", cases("branchgrpo_structure", "branchgrpo_tree_structure"))
def test_tree_structure(case: Case) -> None:
    params, wanted = case["params"], case["outputs"]
    tree, splits = grown(params), splits_of(params)
    named = nodes(tree, splits)
    depths = Counter(step + 1 for _, step in named.values())
    assert [1, *(depths[d] for d in range(1, params["num_steps"] + 1))] == wanted["nodes_per_depth"]
    assert (len(tree.leaves), len(named)) == (wanted["num_leaves"], wanted["num_edges"])
    forwards = sum(len(front.units) for front in tree.fronts)
    assert forwards == wanted["num_model_evals"]
    assert forwards / len(tree.leaves) == pytest.approx(wanted["model_evals_per_leaf"])
    ends = {i: name for name, (i, step) in named.items() if step == params["num_steps"] - 1}
    assert [ends[i] for i in tree.leaves] == wanted["leaf_ids_in_order"]
    drawn = {step for s in tree.segments for step in s.stochastic}
    assert [step in drawn for step in range(params["num_steps"])] == wanted["sde_edge_by_step"]


# ---------------------------------------------------------------------- BranchGRPO: steps and whole trees


def split_step(x: Tensor, v: Tensor, s: float, s_next: float, eta: float, factor: float) -> tuple[Gaussian, Gaussian]:
    """(what children are drawn from, what the published code scores them by) at a split."""
    plain = dance_sde(x, v, s, s_next, noise=eta, s_cap=1.0)
    return plain.scaled(factor), plain


@pytest.mark.parametrize("case", cases("branchgrpo_step", "branchgrpo_split_step"))
def test_split_step(case: Case) -> None:
    params, given = case["params"], case["inputs"]
    sigmas, k = tensor(given["sigmas"]), params["step_index"]
    x, v = tensor(given["sample"]), tensor(given["model_output"])
    factor = params["split_noise_scale"] if params["num_splits"] > 1 else 1.0
    drawn, plain = split_step(x, v, sigmas[k].item(), sigmas[k + 1].item(), params["eta"], factor)
    if params["mode"] == "noise":
        samples = torch.cat([drawn.sample(noise) for noise in tensor(given["noise_per_child"])])
    else:
        samples = tensor(given["prev_sample"])
    children = torch.zeros(len(samples), dtype=torch.int64)
    found = {
        "prev_sample": samples,
        "pred_original_sample": (x - sigmas[k] * v).expand_as(samples),
        "log_prob": plain.rows(children).log_prob(samples),  # theirs; the density of the draw is `drawn`'s
        "std": plain.std,
    }
    golden.check(found, case)
    if factor != 1.0:
        own = drawn.rows(children).log_prob(samples)
        noise = tensor(given["noise_per_child"]).flatten(1)
        expected = -0.5 * noise.square().mean(1) - (factor * plain.std).log() - 0.5 * torch.tensor(2 * torch.pi).log()
        torch.testing.assert_close(own, expected, rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("case", cases("branchgrpo_tree", "branchgrpo_tree"))
def test_a_whole_tree(case: Case) -> None:
    """Walked by our segments; node latents are rounded to bfloat16 after they are scored, as published."""
    params, sigmas = case["params"], tensor(case["inputs"]["sigmas"]).tolist()
    tree, splits = grown(params, split_noise=params["split_noise_scale"]), splits_of(params)
    named = nodes(tree, splits)
    noises = iter(tensor(case["inputs"]["noise_in_draw_order"]))
    form = params["velocity"]
    states: dict[str, Tensor] = {"root_b0": tensor(case["inputs"]["root_latent"])}
    paths: dict[str, float] = {"root_b0": 0.0}
    clean: dict[str, Tensor] = {}
    for wanted in case["outputs"]["nodes"][1:]:  # level by level, node by node, child by child
        name, parent = wanted["id"], wanted["parent"]
        i, step = named[name]
        segment = tree.segments[i]
        assert (wanted["step"], wanted["is_sde_edge"]) == (step + 1, step in segment.stochastic)
        x = states[parent]
        v = form["a"] * x + form["b"] * (int(1000 * sigmas[step]) / 1000) + form["c"]
        logp = torch.zeros(1)
        if step in segment.stochastic:
            factor = segment.scale if step == segment.begin else 1.0
            drawn, plain = split_step(x, v, sigmas[step], sigmas[step + 1], params["eta"], factor)
            state = drawn.sample(next(noises))
            logp = plain.log_prob(state)
        else:
            state = ode(x, v, sigmas[step], sigmas[step + 1]).mean
        states[name], paths[name] = state.bfloat16().float(), paths[parent] + float(logp)
        clean[name] = x - sigmas[step] * v
        torch.testing.assert_close(states[name][0], tensor(wanted["latent"]), atol=case["atol"], rtol=case["rtol"])
        assert float(logp) == pytest.approx(wanted["log_prob"], abs=case["atol"], rel=case["rtol"])
    assert next(noises, None) is None
    leaves = {i: name for name, (i, step) in named.items() if step == params["num_steps"] - 1}
    order = [leaves[i] for i in tree.leaves]
    found = {
        "leaf_pred_original": torch.cat([clean[name] for name in order]),
        "leaf_path_log_prob_sum": torch.tensor([paths[name] for name in order]),
    }
    for name, value in found.items():
        atol, rtol = case.get("tol", {}).get(name, (case["atol"], case["rtol"]))
        torch.testing.assert_close(value, tensor(case["outputs"][name]).reshape(value.shape), atol=atol, rtol=rtol)


@pytest.mark.parametrize("case", cases("branchgrpo_advantage", "branchgrpo_fusion_depth_norm"))
def test_fusion_and_depth_advantages(case: Case) -> None:
    """A node has the advantage of the row that it belongs to; the rewards of a depth are compared."""
    params, given = case["params"], case["inputs"]
    credit = "path_probability" if params["prob_weighted"] else "uniform"
    tree = grown(params, credit=credit)
    named = nodes(tree, splits_of(params))
    edges = torch.zeros(1, len(tree.rows), dtype=torch.float64)
    for name, value in given["edge_log_prob"].items():
        edges[0, tree.rows.index(named[name][0])] = value
    weights = credit_weights(tree, edges if params["prob_weighted"] else None)
    order = [named[name][0] for name in given["leaf_ids"]]
    rewards = torch.zeros(len(tree.leaves))
    rewards[[tree.leaves.index(i) for i in order]] = tensor(given["leaf_rewards"])
    values = (weights[0, 0].double() @ rewards.double()).tolist()
    adv = row_advantages(
        {"r": rewards},
        torch.zeros(len(rewards), dtype=torch.int64),
        Credit(weights, peers(tree)),
        weights={"r": 1.0},
        clip=None,
        **DANCE,
    ).tolist()
    for name, (i, _) in named.items():
        if name in case["outputs"]["node_reward"]:
            row = tree.rows.index(i)
            assert values[row] == pytest.approx(case["outputs"]["node_reward"][name], rel=1e-5, abs=1e-6)
            assert adv[row] == pytest.approx(case["outputs"]["node_advantage"][name], rel=1e-4, abs=2e-5)


# ---------------------------------------------------------------------- BranchGRPO: pruning


@pytest.mark.parametrize("case", cases("branchgrpo_pruning", "branchgrpo_depth_pruning"))
def test_depth_pruning(case: Case) -> None:
    """A child's depth d is the step d - 1 that leads to it. Without a stop, the last split is where the slide ends."""
    params = case["params"]
    depths = tuple(int(text) for text in params["depth_pruning"].split(","))
    stop = max(splits_of(params)) if params["stop_depth"] is None else params["stop_depth"]
    steps = windows.pruned(
        tuple(d - 1 for d in depths),
        interval=params["slide_interval"] if params["slide"] else None,
        stop=stop - 1,
        iteration=params["training_step"],
    )
    assert [step + 1 for step in steps] == case["outputs"]["pruned_depths"]


@pytest.mark.parametrize("case", cases("branchgrpo_pruning", "branchgrpo_pruning_gate"))
def test_pruning_gate(case: Case) -> None:
    params = case["params"]
    until = int(params["max_steps"] * params["pruning_step_ratio"])
    steps = windows.pruned((15, 16), interval=None, stop=0, iteration=params["training_step"], until=until)
    assert bool(steps) == case["outputs"]["should_prune"]


@pytest.mark.parametrize("case", cases("branchgrpo_pruning", "branchgrpo_width_pruning"))
def test_width_pruning(case: Case) -> None:
    """Mode 2 keeps both ends of the leaves' edges, of which ours drops whole leaf rows, their split edge included.

    Mode 1 sorts edges that all have their leaf's advantage: it keeps the earliest steps of every leaf and selects none.
    """
    params, given = case["params"], case["inputs"]
    tree, splits = grown(params), splits_of(params)
    named, last = nodes(tree, splits), max(splits)
    pruned = set(case["outputs"]["pruned_child_ids"])
    assert len(named) == case["outputs"]["num_edges_before"]
    candidates = {name: i for name, (i, step) in named.items() if step > last}
    assert pruned <= set(candidates)
    if params["mode"] == 1:
        length = params["num_steps"] - 1 - last
        kept = {name for name, (_, step) in named.items() if last < step <= last + int(length * params["ratio"])}
        assert set(candidates) - pruned == kept
        return
    adv = tensor(given["leaf_rewards"])
    order = [named[name][0] for name in given["leaf_ids"]]
    number = int(len(order) * params["ratio"] / 2) * 2
    kept_rows = extremes(adv, torch.zeros(len(adv), dtype=torch.int64), number)
    ours = {i for i, keep in zip(order, kept_rows.tolist(), strict=True) if keep}
    assert {i for name, i in candidates.items() if name not in pruned} == ours


@pytest.mark.parametrize("case", cases("branchgrpo_pruning", "branchgrpo_mix_windows"))
def test_mixed_windows(case: Case) -> None:
    """Their window is a function of the denoising step; as one of the iteration it would be `progressive`."""
    drawn = list(drawn_steps(case["params"]))
    assert drawn == case["outputs"]["rollout_sde_steps"] == case["outputs"]["trained_steps"]
