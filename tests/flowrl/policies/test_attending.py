"""Chosen attention kernels: they are called, in the recipe's networks alone, with the numbers of the model's own."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import pytest
import torch
from diffusers.models.attention_dispatch import AttentionBackendName, _AttentionBackendRegistry
from diffusers.models.transformers import transformer_flux
from torch import Tensor
from torch.nn.functional import scaled_dot_product_attention

import families
from flowrl.checking.proofs import attention
from flowrl.checking.proofs.bench import Bench
from flowrl.checking.proofs.proof import ProofError
from flowrl.checking.proofs.tokens import TokenBench
from flowrl.contracts import Prompt, Rollout, View
from flowrl.kinds import kind_of
from flowrl.policies import adapters
from flowrl.policies.attending import as_loaded, choose_attention, counted
from flowrl.policies.errors import PolicyError
from flowrl.policies.pipelines.policy import PipelinePolicy
from flowrl.policies.pipelines.steps.dynamics import Dynamics
from flowrl.recipe.errors import RecipeError
from flowrl.recipe.load import load
from policies_support import SDE, SEED
from samplers.transitions import flow_sde

UNEQUAL = [Prompt("cat", "a red cat"), Prompt("dogs", "two dogs and a very large green house beside the sea")]
FEW = ["sampler.steps=3", "sampler.window={kind: first, size: 2}", "eval.steps=2", "train.prompts=2", "train.group=4"]
MATH = AttentionBackendName._NATIVE_MATH


def made(name: str) -> PipelinePolicy:
    """A tiny pipeline with adapters that change it."""
    pipe = families.get(name).build()
    modules = adapters.denoisers(pipe, None)
    adapters.add_lora(modules, rank=2, alpha=4.0, init="gaussian")
    for number, parameter in enumerate(adapters.trainable(modules)):
        with torch.no_grad():
            parameter += 0.01 * torch.randn(parameter.shape, generator=torch.Generator().manual_seed(number))
    return PipelinePolicy(pipe, modules, Dynamics(flow_sde, 0.7), call=dict(families.get(name).call))


def looked(policy: Any, rollout: Rollout, rows: list[int]) -> tuple[Tensor, Tensor]:
    """(log-probs, gradient of their sum) of some rows of a rollout."""
    found = list[Tensor]()
    for parameter in policy.trainable():
        parameter.grad = None

    def visit(seen: Any) -> None:
        found.append(seen.logp.detach().flatten())
        seen.logp.nan_to_num().sum().backward()

    policy.look(rollout, torch.tensor(rows), View(), visit)
    return torch.cat(found), torch.cat([p.grad.flatten() for p in policy.trainable() if p.grad is not None])


def same(policy: Any, rollout: Rollout, rows: list[int]) -> None:
    """The chosen kernels give a look's log-probs and gradient."""
    with as_loaded(policy.modules.values()):
        own = looked(policy, rollout, rows)
    for ours, theirs in zip(looked(policy, rollout, rows), own, strict=True):
        assert torch.allclose(ours, theirs, atol=1e-5, rtol=1e-5, equal_nan=True)


@pytest.mark.parametrize("name", ["z_image", "qwen_image"])  # whose texts are masked
def test_a_denoiser_attends_as_it_is_told_and_no_other_does(name: str) -> None:
    policy, other = made(name), made(name)
    rollout = policy.rollout(UNEQUAL, group_size=2, plan=SDE, seed=SEED)
    before = _AttentionBackendRegistry.get_active_backend()
    choose_attention(policy.modules, MATH.value)
    assert _AttentionBackendRegistry.get_active_backend() == before
    same(policy, rollout, [2])
    same(policy, rollout, [1, 2])
    for one, heeds in ((policy, True), (other, False)):
        rollout = one.rollout(UNEQUAL, group_size=2, plan=SDE, seed=SEED)
        with counted(one.modules.values(), MATH.value) as calls:
            looked(one, rollout, [2])
        assert (calls.chosen > 0) is heeds and (calls.others == 0) is heeds


def test_a_mask_that_a_kernel_does_not_take_is_one_line() -> None:
    policy = made("z_image")
    rollout = policy.rollout(UNEQUAL, group_size=2, plan=SDE, seed=SEED)
    choose_attention(policy.modules, "_native_flash")
    with pytest.raises(PolicyError, match=r"attention.backend: it does not take .*`attn_mask` is not.*; choose anoth"):
        looked(policy, rollout, [1, 2])


def test_a_pipeline_that_would_not_heed_it_is_refused() -> None:
    modules = adapters.denoisers(families.get("sd3").build(), None)
    with pytest.raises(PolicyError, match=r"native has no effect: transformer \(SD3Transformer2DModel\) calls torch's"):
        choose_attention(modules, "native")


@pytest.fixture(scope="module")
def talking() -> TokenBench:
    values = ["generation.max_new_tokens=4", "attention={backend: eager}", "train.prompts=2", "train.group=2"]
    return TokenBench(load("tiny_lm_grpo", values), rows=4)


def test_a_language_model_attends_as_it_is_told(talking: TokenBench) -> None:
    policy = talking.policy
    rollout = policy.rollout(
        [Prompt("a", "1+1="), Prompt("b", "12+34+5=")], group_size=2, plan=talking.plans[0], seed=1
    )
    same(policy, rollout, [2])
    same(policy, rollout, [1, 2])
    for backend in ("eager", "sdpa"):
        with counted(policy.modules.values(), backend) as calls:
            looked(policy, rollout, [2])
        assert (calls.chosen, calls.others) == (0, 0)
    assert "by plain operations, 0 past it" in attention.same_numbers(talking)
    with as_loaded(policy.modules.values()), counted(policy.modules.values(), "sdpa") as calls:
        looked(policy, rollout, [2])
    assert calls.chosen > 0 and calls.others == 0


def test_a_language_model_that_only_warns_is_refused(talking: TokenBench, monkeypatch: pytest.MonkeyPatch) -> None:
    modules = talking.policy.modules
    model = talking.policy.model
    for kind in {type(model), type(model.model)}:
        monkeypatch.setattr(kind, "_can_set_attn_implementation", classmethod(lambda cls: False))
    with pytest.raises(
        PolicyError, match=r"sdpa has no effect: \w+ \(Qwen2ForCausalLM\) keeps eager; set attention=nu"
    ):
        choose_attention(modules, "sdpa")


def test_a_language_model_that_cannot_is_refused(talking: TokenBench, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(type(talking.policy.model), "_supports_flex_attn", False)
    with pytest.raises(
        PolicyError, match=r"flex_attention cannot be used by \w+ \(Qwen2ForCausalLM\): .*; set attentio"
    ):
        choose_attention(talking.policy.modules, "flex_attention")


@pytest.fixture(scope="module")
def drawing() -> Iterator[Bench]:
    bench = Bench(load("tiny_flow_grpo", [*FEW, "train.updates=1", f"attention.backend={MATH.value}"]), rows=8)
    assert bench.rollout.rollout_logp.shape[0] == 8
    yield bench


def test_check_counts_and_compares(drawing: Bench, monkeypatch: pytest.MonkeyPatch) -> None:
    assert any(proof.applies is attention.is_chosen for proof in kind_of(drawing.recipe).proofs.PROOFS)
    assert ", 0 past it; within" in attention.same_numbers(drawing)
    own = _AttentionBackendRegistry._backends[MATH]
    monkeypatch.setitem(
        _AttentionBackendRegistry._backends, MATH, lambda query, key, value, **_: 2 * own(query, key, value)
    )
    with pytest.raises(ProofError, match=r"0 past it; within \S+ of the largest \(accepted 0.001\)"):
        attention.same_numbers(drawing)


def test_check_finds_kernels_that_are_not_called(drawing: Bench, monkeypatch: pytest.MonkeyPatch) -> None:
    def ignores(query: Tensor, key: Tensor, value: Tensor, **_: Any) -> Tensor:
        return scaled_dot_product_attention(*(x.transpose(1, 2) for x in (query, key, value))).transpose(1, 2)

    monkeypatch.setattr(transformer_flux, "dispatch_attention_fn", ignores)
    with pytest.raises(ProofError, match=r"^0 calls, [1-9]\d* past it") as caught:
        attention.same_numbers(drawing)
    assert "_native_math has no effect" in str(vars(caught.value))


def test_without_a_gpu_a_backend_that_needs_one_is_refused_before_weights(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    for name, backend in (("quickstart", "flex"), ("tiny_lm_grpo", "flex_attention")):
        recipe = load(name, [f"attention.backend={backend}"])
        recipe = recipe.model_copy(update={"model": "/nowhere"})
        with pytest.raises(PolicyError, match=rf"^attention.backend: {backend} needs a CUDA GPU, and the device is "):
            kind_of(recipe).building.build(recipe)


@pytest.mark.parametrize(
    ("values", "line"),
    [
        (
            ["attention.backend=sage"],
            "got 'sage', which is none of native, .*; give one of them, or set attention=null",
        ),
        (["attention.backend=sdpa"], "got 'sdpa', which is none of native, "),
        (
            ["attention.backend=xformers"],
            "needs the package xformers, and it is not installed; pip install xformers, or",
        ),
        (["attention.backend=flex", "device=cpu"], "needs a CUDA GPU, with device=cpu; set device=cuda, or set att"),
        (["attention.backend=_native_cudnn"], "half precision alone, with dtype.model=float32; set dtype.model=bfl"),
    ],
)
def test_what_is_not_there_is_refused_in_the_recipe(
    values: list[str], line: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("flowrl.recipe.checks.attention.find_spec", lambda name: None)
    with pytest.raises(RecipeError, match=rf"attention.backend: .*{line}"):
        load("quickstart", values)
    with pytest.raises(RecipeError, match="got 'native', which is none of eager, sdpa, flash_attention_2, flex_att"):
        load("tiny_lm_grpo", ["attention.backend=native"])
