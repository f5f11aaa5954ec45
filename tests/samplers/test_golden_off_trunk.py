"""Steps off a trunk against the published numbers in shared/golden/samplers: TempFlow-GRPO and G2RPO."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

import golden
from flowrl.contracts import Credit
from flowrl.core.advantages.rows import row_advantages
from golden import Case, tensor
from samplers import schedules
from samplers.decisions import replay_forwards
from samplers.plan import ROOT, OwnTable, Segment, Tree
from samplers.tables import Coarse, Shifted
from samplers.transitions import flow_sde, ode
from samplers.trees import PerStep, credit_weights, peers

DANCE = dict(baseline="group", scale="group", unbiased=True, eps=1e-8)


def cases(file: str, scheme: str) -> list:
    return golden.cases(f"samplers/{file}.json", where=lambda case: case["scheme"] == scheme)


@pytest.mark.parametrize("case", cases("tempflow", "tempflow_branching"))
def test_branches_off_a_trunk(case: Case) -> None:
    params, given, wanted = case["params"], case["inputs"], case["outputs"]
    sigmas, number, k = tensor(given["sigmas"]).tolist(), params["num_steps"], params["branches_per_step"]
    form, noise = params["velocity"], tensor(given["noise_by_branch_step"])
    plan = PerStep(number, tuple(range(number - 1)))
    tree = plan.tree(k)
    times = tensor(given["timesteps"]).tolist()

    def velocity(x: Tensor, step: int) -> Tensor:
        return form["a"] * x + form["b"] * times[step] / 1000 + form["c"]

    for sample, start in enumerate(tensor(given["initial_sample"])):
        after: dict[int, Tensor] = {ROOT: start[None]}
        for i, segment in enumerate(tree.segments):
            x = after[segment.parent]
            for step in range(segment.begin, segment.end):
                v = velocity(x, step)
                if step in segment.stochastic:
                    row = sample * k + segment.member
                    trunk = tensor(wanted["anchor_latents"])[step, sample]
                    torch.testing.assert_close(x[0], trunk, atol=case["atol"], rtol=case["rtol"])
                    law = flow_sde(x, v, sigmas[step], sigmas[step + 1], noise=params["noise_level"], s_cap=sigmas[1])
                    x = law.sample(noise[step, row])
                    for name, value in (("branch_next_latents", x[0]), ("branch_log_probs", law.log_prob(x)[0])):
                        atol, rtol = case.get("tol", {}).get(name, (case["atol"], case["rtol"]))
                        torch.testing.assert_close(value, tensor(wanted[name])[step, row], atol=atol, rtol=rtol)
                else:
                    x = ode(x, v, sigmas[step], sigmas[step + 1]).mean
            after[i] = x
            if i in tree.leaves:
                final = tensor(wanted["branch_final_latents"])[segment.trained[0], sample * k + segment.member]
                torch.testing.assert_close(x[0], final, atol=case["atol"], rtol=case["rtol"])
    assert replay_forwards(tree, 1, 1, None) == number - 1


def by_prompt(prompts: list[str]) -> list[list[int]]:
    return [[i for i, p in enumerate(prompts) if p == name] for name in dict.fromkeys(prompts)]


@pytest.mark.parametrize("case", cases("tempflow", "tempflow_per_step_advantages"))
def test_advantages_of_every_step(case: Case) -> None:
    """Rewards are [sample, step]: every column on its own, with a batch's std where it is global."""
    params, rewards = case["params"], tensor(case["inputs"]["rewards"])
    groups = by_prompt(case["inputs"]["prompts"])
    size, steps = params["group_size"], rewards.shape[1]
    tree = PerStep(steps + 1, tuple(range(steps))).tree(size)
    order = torch.tensor(groups)  # [P, size]
    leaves = rewards[order].transpose(1, 2).flatten()  # prompt by prompt, step by step, child by child
    found = row_advantages(
        {"r": leaves},
        torch.arange(len(groups)).repeat_interleave(size * steps),
        Credit(credit_weights(tree), peers(tree)),
        weights={"r": 1.0},
        scale="batch" if params["global_std"] else "group",
        clip=None,
    )
    whole = torch.empty_like(rewards)
    whole[order.flatten()] = found.reshape(len(groups), steps, size).transpose(1, 2).reshape(-1, steps)
    golden.check({"advantages": whole}, case)


@pytest.mark.parametrize("case", cases("g2rpo", "g2rpo_granular_schedule"))
def test_granular_tables(case: Case) -> None:
    """A coarse table that misses 0 ends with a step to it: the published code decodes the prediction made there."""
    params, wanted = case["params"], case["outputs"]
    base, number = Shifted(params["shift"]), params["num_steps"]
    table = Coarse(params["sde_step"] + 2, params["granularity"], base)
    levels = table.levels(schedules.linear(number))
    published = tensor(wanted["sigmas"])
    torch.testing.assert_close(levels[: len(published)], published, atol=case["atol"], rtol=case["rtol"])
    assert len(levels) == len(published) + (not wanted["ends_at_zero"]) == table.num_steps(number) + 1
    if params["granularity"] > 1 and params["sde_step"] + 3 < number:  # later no two strides differ
        own = PerStep(number, (params["sde_step"],), strides=(1, params["granularity"]), table=base)
        assert own.tree(2).tables[1] == table


@pytest.mark.parametrize("case", cases("g2rpo", "g2rpo_multi_granularity_advantage"))
def test_advantages_of_granularities_add_up(case: Case) -> None:
    params, rewards = case["params"], tensor(case["inputs"]["rewards_by_granularity"])  # [views, B, rewards]
    size, views, kinds = params["num_generations"], params["num_granularities"], rewards.shape[-1]
    tree = PerStep(8, (0,), strides=tuple(range(1, views + 1))).tree(size)
    prompts = rewards.shape[1] // size
    leaves = (
        rewards.reshape(views, prompts, size, kinds).permute(1, 2, 0, 3).flatten(0, 2)
    )  # child by child, view by view
    group = torch.arange(prompts).repeat_interleave(size * views)
    columns = [
        row_advantages(
            {"r": leaves[:, k]}, group, Credit(credit_weights(tree), peers(tree)), weights={"r": 1.0}, clip=5.0, **DANCE
        )
        for k in range(kinds)
    ]
    golden.check({"advantages": torch.stack(columns, 1)}, case)


def test_segments_of_a_unit_are_walked_once() -> None:
    """A tree by hand: two children of one state and one that goes on, over two tables."""
    tree = Tree(
        4,
        (
            Segment(ROOT, 0, 1, (0,), (0,)),
            Segment(0, 1, 4),
            Segment(0, 1, 3, (), (), member=1, table=1, view=1),
        ),
        tables=(OwnTable(), Coarse(2, 2)),
    )
    assert [front.units for front in tree.fronts] == [((0,),), ((1, 2),), ((1,),), ((1,),), ((2,),)]
    assert tree.path(2) == (0, 2)
