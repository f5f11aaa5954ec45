"""Floating-point operations of an iteration of a language model's recipe, see flops.py."""

import inspect
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import torch
from transformers import AutoModelForCausalLM

from flowrl.contracts import Prompt
from flowrl.planning.costs import arithmetic
from flowrl.planning.remembered import look_up
from flowrl.planning.sizes.counted import count_flops
from flowrl.planning.sizes.flops import Flops
from flowrl.planning.sizes.language import tokens_of
from flowrl.planning.sizes.scoring import scoring, told
from flowrl.planning.sizes.seeing import media_tokens
from flowrl.planning.sizes.token_models import build_model, config_of
from flowrl.policies.loading import auto_class_of
from flowrl.policies.recomputing import checkpoint_gradients
from flowrl.recipe.schema import Recipe
from flowrl.untyped import JSON, LanguageModel

Count = Callable[..., int]  # of a forward of so many tokens with logits of so many, with its backward pass if asked


def flops(
    recipe: Recipe, prompts: Sequence[Prompt], limit: int, processor: Mapping[str, JSON] | None = None
) -> Flops | None:
    """Those of a recipe whose completions have `limit` tokens at most; None where no config is at hand, or the model's
    forward needs values.

    Each row counts as the longest prompt and completion. Training and looks are counted on the meta device, one row
    forward and backward; a token that is drawn is what a token adds to such a forward, its attention that to as many
    tokens as there are by then.
    """
    config = config_of(recipe.model)
    if config is None:
        return None
    costs, train = arithmetic(recipe), recipe.train
    length = tokens_of(recipe, prompts) + (media_tokens(recipe.model, processor or {}, prompts) or 0)
    total = length + limit
    again = train.recompute_every if train.gradient_checkpointing else 0
    learns = recipe.model_dump(mode="json", include={"dtype", "quantize", "lora", "roles", "full", "freeze"})
    key = [learns, again, config.to_dict(), total, limit]
    counted = look_up("language_flops", key, lambda: _counted(recipe, config, total, limit))
    if counted is None:
        return None
    look, learnt, each, pair, head = counted
    read = range(length + 1, total + 1)  # by a row's drawn tokens, of which each meets all before it
    row = sum(each + head + pair * n for n in read)
    if costs.reread_forwards:  # where there is no cache
        row = sum(each * n + head + pair * n * n for n in read)
    drawn = costs.rollout_forwards / limit * row
    prompt = train.drawn * (length * (each + pair * length) + head)
    looked = look * (costs.unlearned_forwards + costs.value_forwards) / limit
    phases = {
        "prompts": prompt if costs.rollout_forwards else 0,
        "rollout": drawn,
        "training": learnt * costs.train_forwards / limit + looked,
    }
    scored = scoring(recipe, max((p.text for p in prompts), key=len, default=""))
    phases["scoring"] = scored.flops
    left_out = ", ".join(one for one in (told(scored), "" if recipe.critic is None else "the fit of a critic") if one)
    if (auto_class_of(config) or AutoModelForCausalLM) is not AutoModelForCausalLM:
        left_out = ", ".join(one for one in ("the towers of pictures and sounds", left_out) if one)
    kept = {name: round(number) for name, number in phases.items() if number}
    return Flops(kept, left_out, ("rollout",), recipe.parallel.ranks or 1)


def _counted(recipe: Recipe, config: Any, total: int, limit: int) -> list[float] | None:
    """Operations of a row of `total` tokens, `limit` of them a completion's, forward and with its backward pass; and
    what `_by_token` has. None where the forward needs values."""
    model, *_ = build_model(recipe, config)
    count = _counter(model)
    try:
        look = count(total, limit)
        by_token = _by_token(count, total)
        if recipe.train.gradient_checkpointing:
            checkpoint_gradients({"model": model}, recipe.train.recompute_every)
        return [look, count(total, limit, backward=True), *by_token]
    except (RuntimeError, TypeError, ValueError, NotImplementedError):
        return None


def _counter(model: LanguageModel) -> Count:
    keeps = "logits_to_keep" in inspect.signature(type(model).forward).parameters

    def count(tokens: int, logits: int, *, backward: bool = False) -> int:
        ids = torch.ones(1, tokens, dtype=torch.int64, device="meta")
        mask = torch.ones(1, 1, tokens, tokens, dtype=torch.bool, device="meta")
        given = {"logits_to_keep": logits} if keeps else {}
        return count_flops(
            lambda: model(input_ids=ids, attention_mask=mask, use_cache=False, **given).logits, backward=backward
        )

    return count


def _by_token(count: Count, total: int) -> tuple[float, float, float]:
    """(operations of a token, of a pair of tokens that attend to each other, of a token's logits)."""
    head = count(2, 2) - count(2, 1)
    long, short = total, max(1, total // 2)
    slopes = [(count(tokens, 1) - head) / tokens for tokens in (short, long)]
    pair = (slopes[1] - slopes[0]) / (long - short)
    return slopes[0] - pair * short, pair, head
