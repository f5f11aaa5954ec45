"""Several references by prompt, and a reference that takes several steps to one of the student's."""

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch

from flowrl.build import build_policy, read_inputs
from flowrl.contracts import Policy, Prompt, Rollout, View
from flowrl.planning.costs import arithmetic, plan_for
from flowrl.planning.dry_run import describe
from flowrl.policies import adapters
from flowrl.policies.errors import PolicyError
from flowrl.policies.pipelines.steps.substeps import prove_substeps
from flowrl.recipe.errors import RecipeError
from flowrl.recipe.load import build, dump
from flowrl.recipe.scalars import read
from flowrl.recipe.schema import Recipe
from policies_support import SDE, FamilyPolicy, shake, watched_steps
from references_support import DISTILLED, GUIDED, PROMPTS, divergence, drawn, recipe, reference_logp, student
from samplers.renoising import ddim

TWO, THREE = {"kind": "two"}, {"kind": ["three", "four"]}
TOLD = [replace(PROMPTS[0], meta=TWO), replace(PROMPTS[1], meta={"kind": "three"})]


@pytest.fixture(scope="module")
def adapter(tmp_path_factory: pytest.TempPathFactory) -> str:
    folder = tmp_path_factory.mktemp("adapter") / "lora"
    policy = build_policy(recipe({"use": "base"}, lora={"rank": 3, "alpha": 12, "targets": "all"}))
    shake(policy.modules, 0.05, seed=7)
    adapters.save(policy.source, policy.modules, folder)
    return str(folder)


def rolled(policy: Policy, of: Recipe) -> Rollout:
    return policy.rollout(TOLD, group_size=2, plan=plan_for(of, 0), seed=1)


def test_each_prompt_has_its_own_teacher(adapter: str):
    """As single teachers do, to the last digits; the third row also alone."""
    guided, lora = {"use": "base", "pipeline": GUIDED}, {"use": "lora", "path": adapter}
    logps, apart = [], []
    for one in (guided, lora, [guided | {"when": TWO}, lora | {"when": THREE}]):
        of = recipe(one)
        policy = student(of)
        rollout = rolled(policy, of)
        logps.append(reference_logp(policy, rollout))
        apart.append(divergence(policy, rollout, [0, 1, 2, 3]))
    for of_guided, of_lora, of_both in (logps, apart):
        assert torch.allclose(of_both[:2], of_guided[:2], atol=1e-6)
        assert torch.allclose(of_both[2:], of_lora[2:], atol=1e-6)
        assert (of_both[2:] - of_guided[2:]).abs().max() > 1e-3
    assert torch.allclose(divergence(policy, rollout, [2]), apart[2][2:3], rtol=1e-4, atol=1e-6)
    with pytest.raises(PolicyError, match="none of them takes the prompt 'three blue squares'"):
        reference_logp(policy, replace_kind(policy, of, "five"))
    assert not any("reference" in name for name in adapters.trainable_by_name(policy.modules))


def replace_kind(policy: Policy, of: Recipe, kind: str) -> Rollout:
    prompts = [TOLD[0], replace(TOLD[1], meta={"kind": kind})]
    return policy.rollout(prompts, group_size=1, plan=plan_for(of, 0), seed=1)


def test_a_prompt_that_no_teacher_takes_is_refused_before_weights_are_loaded(tmp_path: Path):
    file = tmp_path / "prompts.jsonl"
    lines = [{"prompt": p.text, "kind": kind} for p, kind in zip(PROMPTS, ("two", "five"), strict=True)]
    file.write_text("\n".join(map(json.dumps, lines)))
    own = {"prompts": {"train": str(file)}}
    partly = build(DISTILLED | own | {"reference": [{"use": "average", "when": TWO}], "train": EMA})
    with pytest.raises(RecipeError, match="none of them takes the prompt 'three blue squares'") as refused:
        read_inputs(partly)
    assert refused.value.place == "reference" and "\n" not in str(refused.value)
    read_inputs(build(DISTILLED | own | {"reference": [{"use": "average", "when": TWO}, {}], "train": EMA}))


EMA = {"prompts": 2, "group": 2, "ema": 0.5}


def test_several_references_are_written_and_read_back(adapter: str):
    of = recipe([{"use": "lora", "path": adapter, "when": TWO}, {"use": "model", "path": "shapes-flux"}])
    assert build(read(dump(of))).references == of.references and len(of.references) == 2
    text = describe(of)
    assert (
        "reference   the LoRA in" in text
        and "for prompts with kind=two" in text
        and "\n            shapes-flux" in text
    )


def test_two_steps_to_one_of_the_students():
    """The teacher's mean velocity over two halves of the step, by hand from its denoiser, of the third row alone."""
    of = recipe({"use": "base", "steps": 2})
    policy = student(of)
    policy.prepare(PROMPTS[0], plan_for(of, 0))
    with watched_steps() as steps:
        rollout = drawn(policy, of)
    found, whole = divergence(policy, rollout, [2]), divergence(policy, rollout, [0, 1, 2, 3])
    assert torch.allclose(found[0], whole[2], rtol=1e-4, atol=1e-6)
    net, given = policy.modules["transformer"], []
    hook = net.register_forward_pre_hook(lambda _, args, kwargs: given.append(kwargs), with_kwargs=True)
    for column in (1, 2):
        s, x = float(steps[column][0].s), rollout.replay.enter[column][0][2:3]
        std, dt = (rollout.step_stats[name][2, column] for name in ("std", "dt"))
        given.clear()
        with torch.no_grad():
            v = policy.velocity([PROMPTS[1]], x, column, plan=plan_for(of, 0), seed=1)
            call = dict(given[-1])
            assert float(call["timestep"]) == pytest.approx(s, abs=1e-4)
            with policy.weights("reference"):
                first = net(**call)[0]
                there = {"hidden_states": x - first * dt.abs() / 2, "timestep": call["timestep"] - dt.abs() / 2}
                second = net(**call | there)[0]
        slope = 1 + std**2 / dt.abs() * (1 - s) / (2 * s)
        errors = [(slope * dt * (v - u)).square().mean() / (2 * std**2) for u in ((first + second) / 2, first)]
        assert float(found[0, column]) == pytest.approx(float(errors[0]), rel=1e-4, abs=1e-6)
        assert abs(errors[1] - errors[0]) > 1e-3 * errors[0]
    hook.remove()


def test_a_dry_run_counts_each_step_of_a_teacher():
    one, three = recipe({"use": "base"}), recipe({"use": "base", "steps": 3})
    assert arithmetic(three).reference_forwards == 3 * arithmetic(one).reference_forwards > 0
    assert "3 steps to one" in describe(three)
    policy, counted = student(three), []
    rollout = drawn(policy, three)
    policy.teachers[0].policy.look(
        rollout, torch.arange(4), View(weights="reference"), lambda seen: None, progress=counted.append
    )
    assert sum(counted) == arithmetic(three).reference_forwards


def test_a_model_without_levels_between_its_own_is_refused():
    teacher = FamilyPolicy("sd15", transition=ddim)
    with pytest.raises(PolicyError, match=r"reference\.steps: got 2, but .* no levels between; set reference\.steps=1"):
        prove_substeps(teacher, Prompt("cat", "a red cat"), SDE, 2)


@pytest.mark.parametrize(
    ("changes", "place"),
    [
        ({"reference": []}, "reference"),
        ({"reference": [{"use": "base"}, {"use": "base", "pipeline": GUIDED}]}, "reference.0.when"),
        ({"reference": [{"use": "base", "when": {}}]}, "reference.0.when"),
        ({"reference": [{"use": "base", "when": TWO}, {"use": "lora"}]}, "reference.1.path"),
        ({"reference": [{"use": "base", "when": TWO, "pipeline": {"latents": 1}}]}, "reference.0.pipeline.latents"),
        ({"reference": {"use": "base", "steps": 0}}, "reference.steps"),
        (
            {
                "reference": {"steps": 2},
                "objective": {"preset": "crd"},
                "rewards": {"strict": {"use": "shapes_strict"}},
            },
            "reference.steps",
        ),
    ],
)
def test_what_cannot_be_is_refused_in_one_line(changes: dict[str, Any], place: str):
    with pytest.raises(RecipeError) as refused:
        build(DISTILLED | changes)
    assert refused.value.place == place and "\n" not in str(refused.value)
