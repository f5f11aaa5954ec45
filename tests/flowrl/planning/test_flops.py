"""Operations of an iteration as planned, against those of real rollouts and backward passes; what is told of them."""

from __future__ import annotations

import pytest
import torch
from torch.nn.attention import SDPBackend, sdpa_kernel
from transformers import DynamicCache

from flowrl.build import build_policy
from flowrl.contracts import View
from flowrl.kinds import kind_of
from flowrl.planning.costs import plan_for
from flowrl.planning.sizes.counted import Counted
from flowrl.planning.sizes.flops import PEAKS, Flops, denoising, lines
from flowrl.planning.sizes.language import tokens_of
from flowrl.planning.sizes.language_flops import flops
from flowrl.planning.sizes.text import describe_sizes
from flowrl.reading.inputs import read_prompts
from flowrl.recipe.load import load

SMALL = ["train.prompts=3", "train.group=2", "train.updates=1", "train.micro_batch=2", "train.iterations=1"]
SHORT = ["sampler.steps=3", "sampler.window={kind: first, size: 2}"]
GUIDED = "pipeline={height: 32, width: 32, max_sequence_length: 16, guidance_scale: 1.0, true_cfg_scale: 2.0}"


def counted(compute) -> int:
    """Operations as they are computed on a CPU, of attention as plain products, by torch's formulas."""
    with sdpa_kernel(SDPBackend.MATH), Counted() as found:
        compute()
    return found.products


@pytest.mark.parametrize("again", [0, pytest.param(1, marks=pytest.mark.slow), 2])
def test_a_denoiser_s_are_those_of_a_rollout_and_a_backward_pass(again: int):
    more = [] if not again else ["train.gradient_checkpointing=true", f"train.recompute_every={again}"]
    recipe = load("tiny_flow_grpo", [*SMALL, *SHORT, *more, GUIDED])
    prompts = read_prompts(recipe)[0][:3]
    found = denoising(recipe, prompts)
    policy, plan = build_policy(recipe), plan_for(recipe, 0)
    policy.prepare(prompts[0], plan)
    rollout = policy.rollout(prompts, group_size=2, plan=plan, seed=5)  # texts are remembered from here on
    drawn = counted(lambda: policy.rollout(prompts, group_size=2, plan=plan, seed=5))
    assert found is not None and found.phases["rollout"] + found.phases["decoding"] == pytest.approx(drawn, rel=1e-3)

    def learn() -> None:
        for rows in torch.arange(6).split(2):
            policy.look(rollout, rows, View(), lambda seen: seen.logp.sum().backward())

    learn()  # texts of other combinations of prompts are remembered from here on
    assert found.phases["training"] == pytest.approx(counted(learn), rel=1e-3)


def test_texts_are_counted_prompt_by_prompt():
    one, three = (denoising(load("tiny_flow_grpo", [*SMALL, f"train.prompts={n}"]), []) for n in (1, 3))
    assert one is not None and three is not None
    assert three.phases["encoding"] == 3 * one.phases["encoding"] > 0


@pytest.mark.parametrize("more", [[], ["lora=null", "full=true"]], ids=["lora", "full"])
def test_a_language_model_s_are_those_of_decoding_and_of_a_backward_pass(more: list[str]):
    recipe = load("tiny_lm_grpo", [*SMALL, *more, "generation.max_new_tokens=9", "train.gradient_checkpointing=false"])
    prompts = read_prompts(recipe)[0][:3]
    found = flops(recipe, prompts, 9)
    policy = build_policy(recipe)
    model = policy.model
    length = tokens_of(recipe, prompts)

    def decode() -> None:
        """One row: its prompt, then token by token."""
        cache = DynamicCache()
        with torch.no_grad():
            model(input_ids=torch.ones(1, length, dtype=torch.int64), cache=cache, logits_to_keep=1)
            for _ in range(9):
                model(input_ids=torch.ones(1, 1, dtype=torch.int64), cache=cache)

    def prompt() -> None:
        with torch.no_grad():
            model(input_ids=torch.ones(1, length, dtype=torch.int64), logits_to_keep=1)

    assert found is not None and found.phases["prompts"] == pytest.approx(3 * counted(prompt), rel=1e-3)
    tokens = counted(decode) - counted(prompt)
    assert found.phases["rollout"] == pytest.approx(6 * tokens, rel=1e-3)

    def learn() -> None:
        ids = torch.ones(1, length + 9, dtype=torch.int64)
        model(input_ids=ids, use_cache=False, logits_to_keep=9).logits.sum().backward()

    assert found.phases["training"] == pytest.approx(6 * counted(learn), rel=1e-3)


def test_seconds_are_an_estimate_that_says_so():
    found = Flops({"rollout": 3 * 10**15, "training": 989_400_000_000_000 * 4}, "rewards", ("rollout",), ranks=2)
    assert found.seconds(80) == pytest.approx(5.0)
    head, estimate = lines(found)
    assert head == "compute     6.96 PFLOP an iteration: rollout 3 PFLOP, training 3.96 PFLOP; not in it: rewards"
    assert "40% of a card's dense bfloat16 peak, an ESTIMATE, each of 2 ranks its part: 24 GB 30 s" in estimate
    assert estimate.endswith("80, 141 GB 5 s; without rollout, which memory bounds")
    assert lines(None) == []


def test_the_dry_run_has_them_for_every_kind():
    for name in ("quickstart", "tiny_lm_grpo"):
        recipe = load(name)
        found = kind_of(recipe).planning.flops(recipe, [])
        assert found is not None and describe_sizes(recipe, []).splitlines()[-3:-1] == lines(found)
    assert set(PEAKS) == {24, 32, 48, 80, 141}
