"""Switches that save memory: what each saves is counted, and what is computed stays as it is."""

from __future__ import annotations

from collections.abc import Callable
from contextlib import nullcontext
from typing import Any

import pytest
import torch
from torch import Tensor

import families
from flowrl.contracts import View
from flowrl.core.learning import activations
from flowrl.core.learning.activations import activations_in_host
from flowrl.core.learning.copies import Copies
from flowrl.planning.sizes.saved import count_saved
from flowrl.policies import adapters, blocks, recomputing
from flowrl.policies.errors import PolicyError
from flowrl.policies.hosting import Hosted, hosted
from flowrl.policies.pipelines.policy import PipelinePolicy
from flowrl.policies.pipelines.steps.dynamics import Dynamics
from flowrl.recipe.errors import RecipeError
from flowrl.recipe.load import load
from policies_support import PROMPTS, SDE, SEED
from samplers.transitions import flow_sde

Found = tuple[Tensor, Tensor, int]


def made(change: Callable[[dict[str, Any]], None] = lambda modules: None) -> PipelinePolicy:
    """A tiny FLUX with adapters, changed before the policy is made of it."""
    pipe = families.get("flux").build()
    modules = {"transformer": pipe.transformer}
    adapters.add_lora(modules, rank=2, alpha=4.0, init="gaussian")
    for number, parameter in enumerate(adapters.trainable(modules)):  # so that every factor has a gradient
        with torch.no_grad():
            parameter += 0.01 * torch.randn(parameter.shape, generator=torch.Generator().manual_seed(number))
    change(modules)
    return PipelinePolicy(pipe, modules, Dynamics(flow_sde, 0.7), call=dict(families.get("flux").call))


def gradient(policy: PipelinePolicy, within: Callable[[], Any] = nullcontext) -> Found:
    """(log-probs of a rollout, the gradient of replayed ones, the most bytes that autograd kept at once)."""
    rollout = policy.rollout(PROMPTS, plan=SDE, seed=SEED)
    kept = 0

    def visit(seen: Any) -> None:
        nonlocal kept
        kept = max(kept, saved.bytes)
        (seen.logp * (seen.rows + 1)[:, None]).sum().backward()

    module = policy.modules["transformer"]
    with count_saved([*module.parameters(), *module.buffers()]) as saved, within():
        policy.look(rollout, torch.tensor([1]), View(), visit)
    return rollout.rollout_logp, torch.cat([p.grad.flatten() for p in policy.trainable() if p.grad is not None]), kept


@pytest.fixture(scope="module")
def plain() -> Found:
    return gradient(made())


def test_every_other_block_is_computed_again(plain: Found) -> None:
    some, whole = (
        gradient(made(lambda modules, every=every: recomputing.checkpoint_gradients(modules, every)))
        for every in (2, 1)
    )
    for logp, grad, _ in (some, whole):
        assert torch.equal(logp, plain[0])
        assert torch.allclose(grad, plain[1], atol=1e-6)
    assert whole[2] < some[2] < plain[2]


def test_one_block_is_there_at_a_time_in_the_backward_pass_too(plain: Found, monkeypatch: pytest.MonkeyPatch) -> None:
    there: list[set[int]] = [set()]
    own: set[int] = set()
    fetch, park = Hosted.fetch, Hosted.park

    def fetched(self: Hosted) -> None:
        there.append(there[-1] | ({id(self.module())} & own))
        fetch(self)

    def parked(self: Hosted) -> None:
        there.append(there[-1] - {id(self.module())})
        park(self)

    monkeypatch.setattr(Hosted, "fetch", fetched)
    monkeypatch.setattr(Hosted, "park", parked)

    def change(modules: dict[str, Any]) -> None:
        own.update(map(id, blocks.repeated_blocks(modules["transformer"])))
        blocks.offload_blocks(modules, torch.device("cpu"))
        recomputing.checkpoint_gradients(modules)

    logp, grad, _ = gradient(made(change))
    assert len(own) >= 2
    assert max(map(len, there)) == 1
    assert {block for some in there for block in some} == own
    assert torch.equal(logp, plain[0])
    assert torch.allclose(grad, plain[1], atol=1e-6)


def test_weights_of_blocks_are_no_part_of_the_rest() -> None:
    pipe, device = families.get("flux").build(), torch.device("cpu")
    pipe.transformer.requires_grad_(False)
    blocks.offload_blocks({"transformer": pipe.transformer}, device)
    rest = {id(tensor) for tensor, _ in hosted(pipe.transformer, device)._resting()}
    inside = {id(p) for block in blocks.repeated_blocks(pipe.transformer) for p in block.parameters()}
    assert inside
    assert not rest & inside
    assert rest | inside >= {id(p) for p in pipe.transformer.parameters()}
    with pytest.raises(PolicyError, match=r"block_offload: vae .* is no chain of equal blocks; set block_"):
        blocks.offload_blocks({"vae": pipe.vae}, device)


def test_activations_rest_in_the_host_and_come_back_bit_for_bit(plain: Found, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(activations, "LEAST", 0)
    policy = made()
    copied = 0
    own = torch.Tensor.copy_

    def copy_(self: Tensor, other: Tensor, *args: Any, **kwargs: Any) -> Tensor:
        nonlocal copied
        copied += other.numel() * other.element_size()
        return own(self, other, *args, **kwargs)

    monkeypatch.setattr(torch.Tensor, "copy_", copy_)
    logp, grad, _ = gradient(policy, lambda: activations_in_host(policy.modules.values()))
    assert torch.equal(logp, plain[0])
    assert torch.equal(grad, plain[1])
    assert copied >= plain[2], "all that autograd keeps"


def test_weights_are_not_copied_to_the_host_with_activations() -> None:
    layer, x = torch.nn.Linear(300, 300), torch.randn(400, 300, requires_grad=True)
    with activations_in_host([layer]):
        y = layer(x).exp()
    exp: Any = y.grad_fn
    assert torch.equal(exp._saved_result, y)
    assert exp._saved_result.data_ptr() != y.data_ptr()
    linear = exp.next_functions[0][0]
    assert linear._saved_mat2.data_ptr() == layer.weight.data_ptr()


def test_an_average_in_the_host_is_the_same_average() -> None:
    found = []
    for in_host in ([], ["average"]):
        parameter = torch.nn.Parameter(torch.arange(4.0))
        copies = Copies([parameter], in_host)
        copies.keep("average")
        with torch.no_grad():
            parameter += 1
        copies.keep("average", 0.9)
        with torch.no_grad(), copies.using("average"):
            found.append(parameter.detach().clone())
        assert torch.equal(parameter, torch.arange(4.0) + 1)
    assert torch.equal(*found)


@pytest.mark.parametrize(
    ("overrides", "place"),
    [
        (["train.recompute_every=2"], "train.recompute_every"),
        (["train.ema_in_host=true", "train.ema=null"], "train.ema_in_host"),
        (["block_offload=true"], "block_offload"),
        (["block_offload=true", "train.gradient_checkpointing=true", "train.recompute_every=2"], "block_offload"),
        (["block_offload=true", "train.gradient_checkpointing=true", "lora=null", "full=true"], "block_offload"),
    ],
)
def test_what_does_not_go_together_is_refused(overrides: list[str], place: str) -> None:
    with pytest.raises(RecipeError, match=place):
        load("tiny_flow_grpo", overrides)
