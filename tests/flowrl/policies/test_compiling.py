"""Compiled blocks: the numbers of blocks that are not, few graphs and no breaks, and what compile does not go with."""

from __future__ import annotations

import re
from collections.abc import Iterator
from typing import Any

import pytest
import torch
from torch import Tensor, nn

import families
from flowrl.checking.proofs import compiled
from flowrl.checking.proofs.proof import ProofError
from flowrl.checking.proofs.tokens import TokenBench
from flowrl.contracts import Rollout, View
from flowrl.core.learning.copies import Copies
from flowrl.policies import adapters, compiling, recomputing
from flowrl.policies.compiling import Compiled, compile_networks, uncompiled
from flowrl.policies.errors import PolicyError
from flowrl.policies.pipelines.policy import PipelinePolicy
from flowrl.policies.pipelines.steps.dynamics import Dynamics
from flowrl.policies.weights import under, weights_of
from flowrl.recipe.errors import RecipeError
from flowrl.recipe.load import load
from policies_support import PROMPTS, SDE, SEED
from samplers.transitions import flow_sde

# torch's tracer asks every tensor for its gradient
pytestmark = pytest.mark.filterwarnings("ignore:The .grad attribute of a Tensor:UserWarning")


@pytest.fixture(autouse=True)
def nothing_compiled() -> Iterator[None]:
    torch.compiler.reset()
    yield
    torch.compiler.reset()


def made() -> PipelinePolicy:
    """A tiny FLUX of two double and two single blocks, with adapters that change it."""
    pipe = families.get("flux").build()
    modules = {"transformer": pipe.transformer}
    adapters.add_lora(modules, rank=2, alpha=4.0, init="gaussian")
    for number, parameter in enumerate(adapters.trainable(modules)):
        with torch.no_grad():
            parameter += 0.01 * torch.randn(parameter.shape, generator=torch.Generator().manual_seed(number))
    return PipelinePolicy(pipe, modules, Dynamics(flow_sde, 0.7), call=dict(families.get("flux").call))


def rolled(policy: PipelinePolicy) -> Rollout:
    return policy.rollout(PROMPTS, plan=SDE, seed=SEED)


def gradient(policy: Any, rollout: Rollout, rows: Tensor) -> Tensor:
    """The gradient of the replayed log-probs of some rows, each with a weight of its own."""
    for parameter in policy.trainable():
        parameter.grad = None

    def visit(seen: Any) -> None:
        (seen.logp.nan_to_num() * (seen.rows + 1)[:, None]).sum().backward()

    policy.look(rollout, rows, View(), visit)
    return torch.cat([p.grad.flatten() for p in policy.trainable() if p.grad is not None])


def run_through(backend: str, within: float, *, recompute: bool = False) -> None:
    """Three iterations with compiled blocks: the numbers of those without, and few graphs once each way is known."""
    policy = made()
    rollout = rolled(policy)
    plain = gradient(policy, rollout, torch.tensor([1]))
    copies = Copies(list(policy.trainable()))
    copies.keep("average")
    weights = weights_of(policy.modules, copies)
    if recompute:
        recomputing.checkpoint_gradients(policy.modules)
    compile_networks(policy.modules, backend=backend)
    before, after = Compiled.now(), []
    for iteration in range(3):
        again = rolled(policy)
        if iteration == 0:
            assert torch.allclose(again.rollout_logp, rollout.rollout_logp, atol=within, rtol=0)
            assert torch.allclose(gradient(policy, rollout, torch.tensor([1])), plain, atol=within, rtol=within)
        gradient(policy, again, torch.tensor([1]))
        for name in ("reference", "average"):
            with under(weights, name):
                rolled(policy)
        with torch.no_grad():
            for parameter in policy.trainable():
                parameter += 0.01
        after.append(Compiled.now().since(before))
    assert after[0].graphs >= 4  # two classes of blocks, with gradient and without
    assert after[0].breaks == after[2].breaks == 0
    assert after[2].graphs == after[0].graphs


@pytest.mark.slow
def test_compiled_blocks_give_the_same_numbers_and_are_compiled_once() -> None:
    run_through("eager", 1e-6)


@pytest.mark.slow
@pytest.mark.parametrize("recompute", [False, True])
def test_kernels_give_the_same_numbers_within_rounding(recompute: bool) -> None:
    run_through("inductor", 1e-5, recompute=recompute)


def test_a_language_model_is_compiled_where_it_learns_and_not_where_it_decodes(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    recipe = load("tiny_lm_grpo", ["generation.max_new_tokens=4", "compile={backend: eager}", "train.prompts=2"])
    bench = TokenBench(recipe, rows=4)
    bench.policy.max_rows = 4  # the policy is made, whose own probe looks as well
    before = Compiled.now()
    rollout = bench.rollout
    assert Compiled.now().since(before) == Compiled(0, 0)
    assert re.fullmatch(r"within \S+ of the largest; [1-9]\d* graphs, 0 graph breaks", compiled.same_numbers(bench))
    ours = gradient(bench.policy, rollout, torch.tensor([2]))
    with uncompiled():
        assert torch.allclose(gradient(bench.policy, rollout, torch.tensor([2])), ours, atol=1e-6)
    norm = type(bench.policy.model.model.norm)
    monkeypatch.setattr(norm, "forward", _twice_unless_compiled(norm.forward))
    torch.compiler.reset()
    with pytest.raises(ProofError, match=r"of the largest; \d+ graphs, 0 graph breaks \(accepted 0.001\)"):
        compiled.same_numbers(bench)


class Kept:
    """Bytes that a graph keeps for its backward pass, but for weights."""

    def __init__(self, model: nn.Module):
        self.bytes, self._weights = 0, {p.untyped_storage().data_ptr() for p in model.parameters()}

    def note(self, tensor: Tensor) -> Tensor:
        if tensor.untyped_storage().data_ptr() not in self._weights:
            self.bytes += tensor.numel() * tensor.element_size()
        return tensor


def recomputed_tokens(backend: str, within: float) -> None:
    """Compiled layers whose activations are computed again: the numbers of plain ones, and as little is kept."""
    keys = ["generation.max_new_tokens=4", "train.prompts=2", f"compile={{backend: {backend}}}"]
    bench = TokenBench(load("tiny_lm_grpo", [*keys, "train.gradient_checkpointing=true"]), rows=4)
    bench.policy.max_rows = 4
    rollout, rows, model = bench.rollout, torch.tensor([2, 0, 3]), bench.policy.model

    def seen() -> tuple[Tensor, int]:
        kept = Kept(model)
        with torch.autograd.graph.saved_tensors_hooks(kept.note, lambda tensor: tensor):
            found = gradient(bench.policy, rollout, rows)
        return found, kept.bytes

    before = Compiled.now()
    ours, kept = seen()
    made = Compiled.now().since(before)
    assert made.graphs >= 1 and made.breaks == 0
    assert torch.equal(seen()[0], ours) and Compiled.now().since(before) == made
    with uncompiled():
        plain, plainly_kept = seen()
        for layer in compiling.repeated(model):
            layer.gradient_checkpointing = False
        everything = seen()[1]
    assert torch.allclose(plain, ours, atol=within, rtol=within) and float(plain.abs().max()) > 100 * within
    assert plainly_kept < everything / 3 and kept < everything / 3, (kept, plainly_kept, everything)


def test_layers_of_a_language_model_are_compiled_and_computed_again() -> None:
    recomputed_tokens("eager", 1e-6)


@pytest.mark.slow
def test_their_kernels_give_the_same_numbers_within_rounding() -> None:
    recomputed_tokens("inductor", 1e-5)


def _twice_unless_compiled(own: Any) -> Any:
    """A layer's forward that is wrong where it is compiled."""

    def forward(self: Any, x: Tensor) -> Tensor:
        return 2 * own(self, x) if torch.compiler.is_compiling() else own(self, x)

    return forward


def test_within_uncompiled_nothing_is() -> None:
    module = nn.Linear(2, 2)
    compile_networks({"denoiser": module}, regional=False, backend="eager")
    before = Compiled.now()
    with uncompiled():
        plain = module(torch.ones(1, 2))
    assert Compiled.now().since(before).graphs == 0
    assert torch.equal(module(torch.ones(1, 2)), plain)
    assert Compiled.now().since(before).graphs == 1


def test_a_network_without_blocks_is_refused() -> None:
    with pytest.raises(PolicyError, match=r"compile.regional: .* repeated blocks of head \(Linear\); set compile.reg"):
        compile_networks({"head": nn.Linear(2, 2)}, backend="eager")


def test_a_cpu_without_a_compiler_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(compiling.shutil, "which", lambda name: None)
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    with pytest.raises(PolicyError, match=r"compile: inductor needs a C\+\+ compiler .*; install one, or set compile="):
        compile_networks({"head": nn.Linear(2, 2)}, regional=False)


@pytest.mark.parametrize(
    ("values", "beside"),
    [
        (["block_offload=true", "train.gradient_checkpointing=true"], "block_offload"),
        (["quantize={weights: gguf, file: README.md}"], "quantize"),
        (["train.offload_activations=true"], "train.offload_activations"),
    ],
)
def test_what_does_not_go_with_it_is_refused(values: list[str], beside: str) -> None:
    with pytest.raises(RecipeError, match=rf"compile: given beside {beside}, with which it has not been tried; set co"):
        load("quickstart", ["compile={}", *values])


def test_a_whole_network_is_not_compiled_where_its_weights_are_shared_out() -> None:
    load("quickstart", ["compile={}", "parallel.kind=fsdp"])
    with pytest.raises(RecipeError, match=r"compile.regional: .*; set true, or parallel.kind=replicate"):
        load("quickstart", ["compile={regional: false}", "parallel.kind=fsdp"])
