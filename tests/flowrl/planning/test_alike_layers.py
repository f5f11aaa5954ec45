"""Denoisers whose blocks are alike: what a few of them say of all, against all of them measured."""

from collections.abc import Sequence
from dataclasses import replace
from typing import Any

import pytest
import torch
from torch import nn

from flowrl.planning.sizes.activations import measure_activations
from flowrl.planning.sizes.components import components
from flowrl.planning.sizes.counted import count_flops
from flowrl.planning.sizes.repeated import of_blocks
from flowrl.policies.adapters import add_lora
from flowrl.policies.recomputing import checkpoint_gradients

BLOCKS = 12
TINY = {"num_attention_heads": 2, "attention_head_dim": 16, "ffn_dim": 48, "num_layers": BLOCKS, "text_dim": 32}
LORA = {"rank": 4, "alpha": 8, "targets": ["to_q", "to_out.0"]}


def call(rows: int) -> tuple[tuple, dict[str, Any]]:
    states = torch.empty(rows, 16, 1, 8, 8, device="meta")
    words = torch.empty(rows, 7, 32, device="meta")
    when = torch.empty(rows, device="meta", dtype=torch.int64)
    return (), {"hidden_states": states, "timestep": when, "encoder_hidden_states": words}


def numbers(every: int, again: int):
    """Operations forward and backward, and bytes kept over three calls, the last of them of more rows."""

    def measure(module: nn.Module) -> Sequence[int]:
        with torch.device("meta"):
            add_lora({"": module}, **LORA)
        kept = measure_activations(module, [call(1), call(1), call(3)], every)
        if again:
            checkpoint_gradients({"": module}, again)
        given = call(2)[1]
        return [count_flops(lambda: module(**given), backward=True), kept.whole, kept.block, max(kept.moments)]

    return measure


@pytest.mark.parametrize("every", [1, 2, 4])
def test_a_few_blocks_say_what_all_of_them_take(every: int, monkeypatch: pytest.MonkeyPatch):
    wan = (components("Wan-AI/Wan2.1-T2V-1.3B-Diffusers") or {})["transformer"]
    part = replace(wan, config=wan.config | TINY)
    built: list[int] = []
    kind = type(part)
    monkeypatch.setattr(kind, "build", _watched(kind.build, built))
    found = of_blocks(part, torch.float32, LORA, numbers(every, every), every)
    assert BLOCKS in built and max(built[1:]) < BLOCKS - 1  # all are looked at, and few are measured
    assert found == list(numbers(every, every)(part.build(torch.float32)))


def _watched(own: Any, built: list[int]) -> Any:
    def build(part: Any, dtype: torch.dtype) -> nn.Module:
        built.append(part.config["num_layers"])
        return own(part, dtype)

    return build


@pytest.mark.parametrize("targets", ["match:.*[13].*to_q", ["blocks.3.attn1.to_q"]])
def test_adapters_on_some_blocks_are_measured_on_all_of_them(targets: str | list[str]):
    wan = (components("Wan-AI/Wan2.1-T2V-1.3B-Diffusers") or {})["transformer"]
    part = replace(wan, config=wan.config | TINY)
    lora = LORA | {"targets": targets}
    seen: list[int] = []
    of_blocks(part, torch.float32, lora, lambda module: [seen.append(len(module.blocks)) or 0])
    assert seen == [BLOCKS]
