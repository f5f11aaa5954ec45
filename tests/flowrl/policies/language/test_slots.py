"""Rows that wait take the places of those that have ended: fewer forwards, and the same rows."""

from dataclasses import replace
from typing import Any

import pytest
import torch
import transformers

from flowrl.policies.language.drawing.prefixes import can_join
from language_support import PROMPTS, model, policy
from samplers.tokens import Generation

PLAN = Generation(24)


def counted(subject: Any, plan: Generation, group: int = 4) -> tuple[Any, list[tuple[int, int]]]:
    """(a rollout, rows and columns of each forward)."""
    sizes: list[tuple[int, int]] = []
    subject.prepare(PROMPTS[0], plan)
    hook = subject.model.get_input_embeddings().register_forward_hook(lambda _, given, __: sizes.append(given[0].shape))
    try:
        return subject.rollout(PROMPTS, group_size=group, plan=plan, seed=3), sizes
    finally:
        hook.remove()


@pytest.mark.parametrize("slots", [1, 3, 5, 11])
@pytest.mark.parametrize(
    ("plan", "stop"),
    [(PLAN, ()), (replace(PLAN, repetition_penalty=1.3, top_k=20), ()), (replace(PLAN, temperature=0.6), ("4", "77"))],
)
def test_rows_are_those_of_one_batch(slots: int, plan: Generation, stop: tuple[str, ...]):
    network = model()
    how: dict[str, Any] = {"keep_entropy": True, "keep_squares": True, "stop": stop}
    whole = policy(network, **how).rollout(PROMPTS, group_size=4, plan=plan, seed=3)
    found, sizes = counted(policy(network, max_rows=slots, **how), plan)
    assert torch.equal(found.replay.tokens, whole.replay.tokens) and found.samples.texts == whole.samples.texts
    torch.testing.assert_close(found.rollout_logp, whole.rollout_logp, atol=1e-5, rtol=0)
    for name in ("entropy", "squares"):
        torch.testing.assert_close(found.step_stats[name], whole.step_stats[name], atol=1e-5, rtol=0)
    assert len(set(found.replay.length.tolist())) > 4
    assert max(rows for rows, columns in sizes if columns == 1) <= slots


def test_places_are_taken_before_the_longest_row_has_ended():
    network = model()
    found, sizes = counted(policy(network, max_rows=4), PLAN)
    by_group = found.replay.length.view(3, 4).amax(1)
    steps = sum(columns == 1 for _, columns in sizes)
    assert steps < int(by_group.sum()) - 3 - 4  # of each group by itself, whose first token comes of reading its prompt
    assert sum(columns > 1 for _, columns in sizes) > 3


def test_a_model_whose_cache_forgets_draws_in_parts():
    torch.manual_seed(0)
    plain = model()
    config = transformers.Qwen2Config(**plain.config.to_dict() | {"use_sliding_window": True, "sliding_window": 6})
    config.layer_types = ["sliding_attention", "full_attention"]
    windowed = transformers.Qwen2ForCausalLM(config).eval()
    windowed.generation_config.eos_token_id = plain.generation_config.eos_token_id
    assert can_join(plain) and not can_join(windowed)
    whole = policy(windowed).rollout(PROMPTS, group_size=4, plan=PLAN, seed=3)
    parts = policy(windowed, max_rows=4).rollout(PROMPTS, group_size=4, plan=PLAN, seed=3)
    assert torch.equal(whole.replay.tokens, parts.replay.tokens)
