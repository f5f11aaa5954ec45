"""Samples drawn by merged weights: what the adapters say, within rounding, and frozen weights that nothing moves."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import pytest
import torch
from peft.tuners.tuners_utils import BaseTunerLayer
from torch import Tensor

import language_support
from flowrl.core.learning.copies import Copies
from flowrl.kinds import kind_of
from flowrl.policies import adapters
from flowrl.policies.hosting import hosted
from flowrl.policies.merging import mergeable, merged, touched_bytes
from flowrl.recipe.checks.merging import merges
from flowrl.recipe.errors import RecipeError
from flowrl.recipe.load import load
from policies_support import PROMPTS, SDE, SEED, FamilyPolicy, scores

TOKENS = torch.arange(12).view(2, 6)


def moved(modules: Any, size: float = 0.05) -> None:
    """Adapters as after some updates."""
    generator = torch.Generator().manual_seed(3)
    with torch.no_grad():
        for name, parameter in adapters.trainable_by_name(modules).items():
            if "lora_A" not in name:
                parameter += size * torch.randn(parameter.shape, generator=generator)


def frozen(modules: Any) -> list[Tensor]:
    return [p.detach().clone() for m in modules.values() for p in m.parameters() if not p.requires_grad]


@contextmanager
def adapter_calls(modules: Any) -> Iterator[list[int]]:
    """How often an inner factor is multiplied by."""
    calls = [0]
    hooks = [
        layer.register_forward_hook(lambda *_: calls.__setitem__(0, calls[0] + 1))
        for module in modules.values()
        for name, layer in module.named_modules()
        if name.endswith("lora_A.default")
    ]
    yield calls
    for hook in hooks:
        hook.remove()


def with_lora(**options: Any) -> Any:
    subject = language_support.policy(max_rows=4)
    adapters.add_lora(subject.modules, rank=4, alpha=8, **{"targets": "all"} | options)
    moved(subject.modules)
    return subject


def drawn(subject: Any, group: int = 3) -> Any:
    return subject.rollout(language_support.PROMPTS, group_size=group, plan=language_support.PLAN, seed=5)


def test_a_pipeline_draws_by_merged_weights_what_its_adapters_replay():
    policy = FamilyPolicy("flux", max_rows=4)
    adapters.add_lora(policy.modules, rank=4, alpha=8, targets="all")
    moved(policy.modules)
    before, given = frozen(policy.modules), {"plan": SDE, "seed": SEED}
    beside = policy.rollout(PROMPTS, group_size=3, **given)
    policy.merge = True
    with adapter_calls(policy.modules) as calls:
        rollout = policy.rollout(PROMPTS, group_size=3, **given)
        assert calls == [0]
        gap = (scores(policy, rollout, [2]) - rollout.rollout_logp)[2].abs().max()  # the third row alone
        assert calls[0] > 0
    assert gap < 1e-5
    images, others = rollout.samples.images, beside.samples.images
    assert images is not None and others is not None and 0 < (images - others).abs().max() < 1e-4
    assert all(torch.equal(a, b) for a, b in zip(before, frozen(policy.modules), strict=True))


@pytest.mark.parametrize("options", [{}, {"dora": True}, {"rslora": True}, {"init": "gaussian", "targets": ["q_proj"]}])
def test_a_language_model_draws_by_merged_weights_what_its_adapters_replay(options: dict[str, Any]):
    subject = with_lora(**options)
    before, subject.merge = frozen(subject.modules), True
    with adapter_calls(subject.modules) as calls:
        rollout = drawn(subject)
        after_prove, _ = calls[0], calls.__setitem__(0, 0)
        assert after_prove > 0  # the first rollout is preceded by a proof, whose looks are not merged
        again = drawn(subject)
        assert calls == [0]
    assert torch.equal(rollout.rollout_logp, again.rollout_logp)  # nothing drifts
    apart = language_support.replayed(subject, rollout, [[2], [0, 1, 3, 4, 5, 6, 7, 8]])
    assert (apart.logp - rollout.rollout_logp)[rollout.mask].abs().max() < 5e-5
    assert all(torch.equal(a, b) for a, b in zip(before, frozen(subject.modules), strict=True))


def test_rows_that_go_on_are_drawn_by_merged_weights():
    subject = with_lora()
    drawn(subject)
    subject.merge = True
    with adapter_calls(subject.modules) as calls:
        begun = [None] * 6
        subject.rollout(language_support.PROMPTS, group_size=2, plan=language_support.PLAN, seed=5, begun=begun)
    assert calls == [0]


@pytest.mark.filterwarnings("ignore:Model has `tie_word_embeddings")
def test_a_weight_that_another_layer_shares_keeps_its_adapter_beside_it():
    subject = language_support.policy()
    model: Any = subject.model
    model.lm_head.weight = model.model.embed_tokens.weight
    adapters.add_lora(subject.modules, rank=4, alpha=8, targets="match:lm_head|.*q_proj")
    moved(subject.modules)
    apart = model(input_ids=TOKENS).logits
    with merged(subject.modules):
        assert (model(input_ids=TOKENS).logits - apart).abs().max() < 1e-4
        names = [name for name, layer in model.named_modules() if isinstance(layer, BaseTunerLayer) and layer.merged]
    assert names and "lm_head" not in names


def test_merged_weights_are_those_of_the_copy_that_draws_and_of_no_adapters_where_they_are_off():
    subject = with_lora()
    model: Any = subject.model
    copies = Copies(list(subject.trainable()))
    copies.keep("average")
    averaged = model(input_ids=TOKENS).logits.detach()
    moved(subject.modules)
    with torch.no_grad(), copies.using("average"), merged(subject.modules):
        assert (model(input_ids=TOKENS).logits - averaged).abs().max() < 1e-4
    with torch.no_grad(), adapters.disable_adapters(subject.modules):
        base = model(input_ids=TOKENS).logits
        with merged(subject.modules):
            assert torch.equal(model(input_ids=TOKENS).logits, base)
        assert torch.equal(model(input_ids=TOKENS).logits, base)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("options", [{}, {"rslora": True}, {"dora": True}])
def test_merged_weights_are_to_the_last_bit_what_peft_merges(options: dict[str, Any], dtype: torch.dtype):
    subject = with_lora(**options)
    for layer in mergeable(subject.modules):
        layer.get_base_layer().weight.data = layer.get_base_layer().weight.data.to(dtype)
    layers = mergeable(subject.modules)
    before = [layer.get_base_layer().weight for layer in layers]
    with merged(subject.modules):
        found = [layer.get_base_layer().weight for layer in layers]
    assert all(layer.get_base_layer().weight is weight for layer, weight in zip(layers, before, strict=True))
    for layer, weight, was in zip(layers, found, before, strict=True):
        layer.merge()
        assert weight.dtype == dtype and torch.equal(weight, layer.get_base_layer().weight) and weight is not was


def test_weights_come_back_after_an_error_and_merged_ones_stay_while_the_module_is_away():
    subject = with_lora()
    model, before = subject.model, frozen(subject.modules)
    here = hosted(model, torch.device("cpu"))
    with pytest.raises(KeyError), merged(subject.modules):
        inside = model(input_ids=TOKENS).logits
        here.park()
        here.fetch()
        assert torch.equal(model(input_ids=TOKENS).logits, inside)
        with merged(subject.modules):
            pass
        assert torch.equal(model(input_ids=TOKENS).logits, inside)
        raise KeyError
    assert all(torch.equal(a, b) for a, b in zip(before, frozen(subject.modules), strict=True))
    assert not any(layer.merged for layer in model.modules() if isinstance(layer, BaseTunerLayer))
    touched = sum(layer.get_base_layer().weight.numel() for layer in mergeable(subject.modules))
    assert touched_bytes(subject.modules) == 4 * touched > 0


HALF = "dtype.model=bfloat16"


@pytest.mark.parametrize(
    ("recipe", "overrides", "on"),
    [
        ("tiny_flow_grpo", [], {"cuda"}),
        ("tiny_flow_grpo", ["rollout.merge=true"], {"cuda", "cpu"}),
        ("tiny_flow_grpo", ["rollout.merge=false"], set()),
        ("tiny_flow_grpo", [HALF], set()),
        ("quickstart", [HALF], set()),
        ("quickstart", [HALF, "rollout.merge=true"], {"cuda", "cpu"}),  # no log-prob of the rollout is read
        ("tiny_lm_grpo", ["objective.correction={kind: none}", HALF], {"cuda"}),
        ("tiny_lm_grpo", ["objective.correction={kind: none, bypass: true}", HALF], set()),
        ("tiny_lm_grpo", ["lora=null", "full=true"], set()),
        ("tiny_lm_grpo", ["rollout.batch_invariant=true"], set()),
    ],
)
def test_auto_is_for_gpus_where_log_probs_are_those_of_who_trains(recipe: str, overrides: list[str], on: set[str]):
    made = load(recipe, overrides)
    assert {device for device in ("cuda", "cpu") if merges(made, device)} == on


@pytest.mark.parametrize(
    ("recipe", "overrides", "says"),
    [
        ("tiny_flow_grpo", [HALF], "in bfloat16 it moves"),
        ("tiny_flow_grpo", ["lora=null", "full=true"], "has no adapters"),
        ("tiny_flow_grpo", ["block_offload=true", "train.gradient_checkpointing=true"], "block_offload"),
        ("tiny_flow_grpo", ["parallel.kind=fsdp"], "parts of the weights"),
        ("tiny_lm_grpo", ["rollout.dtype=bfloat16"], "merged by itself"),
        ("tiny_lm_grpo", ["rollout.batch_invariant=true"], "bits of the rollout"),
    ],
)
def test_what_cannot_be_merged_is_refused_in_one_line(recipe: str, overrides: list[str], says: str):
    load(recipe, overrides)
    with pytest.raises(RecipeError, match="rollout.merge: got true, but .*") as error:
        load(recipe, [*overrides, "rollout.merge=true"])
    assert says in str(error.value) and len(str(error.value).splitlines()) == 1


@pytest.mark.parametrize("recipe", ["tiny_flow_grpo", "tiny_lm_grpo"])
def test_the_plan_counts_what_merged_weights_take_where_they_stand(recipe: str):
    plans = [load(recipe, [f"rollout.merge={on}"]) for on in ("false", "true")]
    without, beside = (kind_of(plan).planning.sizes(plan, []) for plan in plans)
    policy = kind_of(plans[1]).building.build(plans[1])
    more = {b.name: b.weights - a.weights for a, b in zip(without.phases, beside.phases, strict=True)}
    assert policy.merge and more["rollout"] == touched_bytes(policy.modules) > 0 == more["training"]
