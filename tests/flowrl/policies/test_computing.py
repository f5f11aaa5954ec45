"""Adapters that compute in the model's precision: no product in float32 is left, and weights and gradients are."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode

import families
import language_support
from flowrl.build import set_up
from flowrl.contracts import View
from flowrl.planning.sizes.measure import measure
from flowrl.planning.sizes.query import SizeQuery
from flowrl.policies import adapters
from flowrl.policies.computing import compute_as_inputs
from flowrl.policies.roles import add_roles, speaking
from flowrl.recipe.checks.computing import adapters_as_model
from flowrl.recipe.errors import RecipeError
from flowrl.recipe.load import load
from policies_support import PROMPTS, SDE, SEED, FamilyPolicy, scores

TOKENS = torch.arange(12).view(2, 6)
PRODUCTS = {"mm": 2, "addmm": 3, "bmm": 2, "baddbmm": 3}  # how many arguments of each are tensors


class Products(TorchDispatchMode):
    """Counts the FLOP of matrix products by the precision of what is multiplied."""

    def __init__(self) -> None:
        super().__init__()
        self.flop: dict[torch.dtype, int] = {}

    def __torch_dispatch__(self, func: Any, types: Any, args: tuple = (), kwargs: dict | None = None) -> Any:
        out = func(*args, **(kwargs or {}))
        if (number := PRODUCTS.get(func.overloadpacket.__name__)) is not None:
            left = args[number - 2]
            self.flop[left.dtype] = self.flop.get(left.dtype, 0) + 2 * out.numel() * left.shape[-1]
        return out


def moved(modules: Any) -> None:
    generator = torch.Generator().manual_seed(3)
    with torch.no_grad():
        for name, parameter in adapters.trainable_by_name(modules).items():
            if "lora_B" in name:
                parameter += 0.05 * torch.randn(parameter.shape, generator=generator)


def model_with(as_model: bool, **options: Any) -> Any:
    made = language_support.model().to(torch.bfloat16)
    adapters.add_lora({"model": made}, rank=4, alpha=8, targets="all", **options)
    if as_model:
        compute_as_inputs({"model": made})
    moved({"model": made})
    return made


def gradient(made: Any) -> Tensor:
    made(input_ids=TOKENS).logits.float().log_softmax(-1)[..., 5].sum().backward()
    parameters = list(adapters.trainable({"model": made}))
    assert all(p.dtype == p.grad.dtype == torch.float32 for p in parameters)
    return torch.cat([p.grad.flatten() for p in parameters])


def test_no_product_of_a_language_model_is_left_in_float32():
    counts, found = [], []
    for as_model in (False, True):
        made = model_with(as_model)
        with Products() as products:
            found.append(gradient(made))
        counts.append(products.flop.get(torch.float32, 0))
        assert products.flop[torch.bfloat16] > 0
    rotary = 2 * 2 * 6 * 4  # the angles of its positions, which transformers computes in float32, forward alone
    assert counts[0] > 50 * rotary and counts[1] <= rotary
    assert (found[0] - found[1]).norm() < 0.02 * found[0].norm()


def test_no_product_of_a_pipeline_is_and_replays_are_their_rollouts():
    counts = []
    for as_model in (False, True):
        policy = FamilyPolicy("flux", families.get("flux").build().to(torch.bfloat16))
        adapters.add_lora(policy.modules, rank=4, alpha=8, targets="all")
        if as_model:
            compute_as_inputs(policy.modules)
        moved(policy.modules)
        rollout = policy.rollout(PROMPTS, group_size=2, plan=SDE, seed=SEED)
        assert torch.equal(scores(policy, rollout), rollout.rollout_logp)
        with Products() as products:
            policy.look(rollout, torch.tensor([2]), View(), lambda seen: seen.logp.sum().backward())
        counts.append(products.flop.get(torch.float32, 0))
        assert all(p.grad is not None and p.grad.dtype == torch.float32 for p in policy.trainable())
    assert counts[0] > 0 == counts[1]


def test_adapters_that_are_added_compute_likewise_and_dora_does():
    made = model_with(True)
    add_roles({"model": made}, ["one", "two"], 0)
    with Products() as products, speaking({"model": made}, ["one", "two"], 1):
        gradient_of_two = made.model(input_ids=TOKENS).last_hidden_state
        gradient_of_two.float().sum().backward()
    assert products.flop.get(torch.float32, 0) <= 96
    assert gradient(model_with(True, dora=True)).isfinite().all()


def test_a_flux_keeps_less_for_its_backward_pass():
    lora = {"rank": 32, "alpha": 64.0, "targets": "all", "init": "default", "rslora": False, "dora": False}
    lora |= {"modules": None}
    query = {"model": "random:FLUX.1-dev?blocks=1", "dtype": "bfloat16", "text": "a cat", "pictures": {}}
    query |= {"pipeline": {"height": 512, "width": 512}}
    kept = [measure(SizeQuery(**query, lora=lora | more)).kept[0][0] for more in ({}, {"as_model": True})]
    assert kept[1] < 2.7 / 3.73 * kept[0]  # what a count of the whole model asked for


HALF = "dtype.model=bfloat16"


@pytest.mark.parametrize(
    ("overrides", "on"),
    [
        ([], set()),
        ([HALF], {"cuda"}),
        (["dtype.model=float16"], set()),
        ([HALF, "dtype.adapters=model"], {"cuda", "cpu"}),
        (["dtype.model=float16", "dtype.adapters=model"], {"cuda", "cpu"}),
        ([HALF, "dtype.adapters=float32"], set()),
        ([HALF, "parallel.kind=fsdp"], set()),
        ([HALF, "lora=null", "full=true"], set()),
    ],
)
def test_auto_is_for_bfloat16_on_a_gpu(overrides: list[str], on: set[str]):
    made = load("tiny_flow_grpo", overrides)
    assert {device for device in ("cuda", "cpu") if adapters_as_model(made, device)} == on


def test_tf32_is_said_to_torch_and_what_does_not_go_together_is_refused():
    before = torch.backends.cuda.matmul.allow_tf32
    try:
        for on in (True, False):
            set_up(load("tiny_flow_grpo", [f"dtype.tf32={str(on).lower()}"]))
            assert torch.backends.cuda.matmul.allow_tf32 is on
    finally:
        torch.backends.cuda.matmul.allow_tf32 = before
    for more in (["lora=null", "full=true"], ["parallel.kind=fsdp"]):
        with pytest.raises(RecipeError, match="dtype.adapters: got 'model'"):
            load("tiny_flow_grpo", [*more, "dtype.adapters=model"])
    with pytest.raises(RecipeError, match="rollout.merge: got true, but in TF32"):
        load("tiny_flow_grpo", ["dtype.tf32=true", "rollout.merge=true"])
