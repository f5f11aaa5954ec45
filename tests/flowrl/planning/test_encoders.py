"""What a plan says of encoders that come and go: how often, what that moves, and what their results take."""

from __future__ import annotations

import pytest

from flowrl.build import build_policy
from flowrl.contracts import Prompt
from flowrl.kinds import kind_of
from flowrl.planning.costs import plan_for
from flowrl.planning.sizes import encoders
from flowrl.planning.sizes.encoders import encoded_bytes, lines
from flowrl.planning.sizes.memory import sizes
from flowrl.policies.hosting import hosted
from flowrl.policies.pipelines.calls.working_copy import modules_of
from flowrl.recipe.load import load

MIB = 2**20


def told(name: str, *more: str, prompts: list[Prompt] | None = None) -> list[str]:
    recipe = load(name, list(more))
    estimate = kind_of(recipe).planning.sizes(recipe, prompts or [])
    assert estimate is not None
    return lines(recipe, estimate, prompts or [])


def test_results_take_and_journeys_move_what_the_plan_says() -> None:
    recipe = load("quickstart", ["offload=true", "device=cpu"])
    prompts = [Prompt("a", "a red circle"), Prompt("b", "two blue squares")]
    policy = build_policy(recipe)
    plan = plan_for(recipe, 0)
    policy.prepare(prompts[0], plan)
    encoder = policy._working_copy.encoder
    assert encoder is not None
    before = encoder.kept.size
    policy.encode_first(prompts[1:], plan.num_steps)
    assert encoder.kept.size - before == pytest.approx(encoded_bytes(recipe, prompts), rel=0.03)
    estimate = sizes(recipe, prompts)
    assert estimate is not None and [phase.name for phase in estimate.phases if phase.moved] == ["encoding"]
    parts = modules_of(policy.source)
    moved = [t for name in parts if name != "vae" for t in hosted(parts[name], policy.device)._frozen()]
    weights = sum(t.numel() * t.element_size() for t in moved if t.is_floating_point())
    assert estimate.phases[0].moved == pytest.approx(weights, rel=1e-3)


def test_how_often_they_come_is_told() -> None:
    each, first = "31.3 GiB to the device each time", "encoders    come "
    one = told("flux_32gb", "encode_ahead=1")
    assert one[0] == f"{first}once an iteration, for 8 prompts: {each}"
    assert one[1].endswith("takes 4.0 MiB of host memory a prompt, at most 2.0 GiB; once a batch of an evaluation")
    assert told("flux_32gb", "encode_ahead=1", "train.prompts=1024", "train.updates=1")[0] == (
        f"{first}once an iteration, and again within it, as its 1024 prompts find no room: {each}"
    )
    many = told("flux_32gb", "encode_ahead=100")
    assert (
        many[0] == f"{first}once in 63 iterations, for 504 prompts, as 100 find no room: {each}, 0.5 GiB an iteration"
    )
    assert "once in 31 batches of an evaluation" in many[1] and len(many) == 2
    assert (
        told("flux_32gb", "encode_ahead=1", "parallel.ranks=2")[0] == f"{first}once an iteration, for 4 prompts: {each}"
    )
    assert told("flux_32gb", "offload=false") == ["encoders    stay: without offload, encode_ahead has no effect"]
    assert told("flux_32gb", "offload=false", "encode_ahead=1") == told("tiny_lm_grpo") == []


def test_the_denoiser_comes_back_if_it_went_and_known_prompts_are_told(monkeypatch: pytest.MonkeyPatch) -> None:
    frozen = {name: told("flux_32gb", *more)[0].split(": ")[1] for name, more in {"": (), "blocks": BLOCKS}.items()}
    assert frozen[""].startswith("31.3 GiB") and frozen["blocks"].startswith("9.9 GiB")
    prompts = [Prompt(str(i), f"{i} red circles") for i in range(9)]
    more = ["offload=true", "encode_ahead=2"]
    assert told("quickstart", *more, prompts=prompts)[2] == (
        f"{'':<12}they stay away once all 9 training prompts are encoded"
    )
    monkeypatch.setattr(encoders, "CACHE_BYTES", 8 * encoded_bytes(load("quickstart", more), prompts))
    assert len(told("quickstart", *more, prompts=prompts)) == 2


BLOCKS = ("block_offload=true",)
