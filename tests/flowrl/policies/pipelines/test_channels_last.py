"""Autoencoders whose convolutions lie channel by channel in memory."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import nn

from flowrl.contracts import Prompt
from flowrl.kinds import kind_of
from flowrl.planning.costs import eval_plan
from flowrl.policies.errors import PolicyError
from flowrl.policies.pipelines.calls.autoencoders import Autoencoding
from flowrl.recipe.load import load

PROMPTS = [Prompt("a", "a red circle"), Prompt("b", "two blue squares left of a green triangle")]


def test_pictures_are_the_same_and_lie_channel_by_channel():
    drawn, layouts = [], []
    for on in ("false", "true"):
        recipe = load("quickstart", [f"vae.channels_last={on}", "eval.steps=2"])
        policy = kind_of(recipe).building.build(recipe)
        last = [part for part in policy.source.vae.decoder.modules() if isinstance(part, nn.Conv2d)][-1]
        inputs: list[Any] = []
        last.register_forward_pre_hook(lambda _, given, inputs=inputs: inputs.append(given[0]))
        drawn.append(policy.rollout(PROMPTS, group_size=2, plan=eval_plan(recipe), seed=0).samples.images)
        layouts.append(inputs[-1].is_contiguous(memory_format=torch.channels_last))
    assert layouts == [False, True]
    assert (drawn[0] - drawn[1])[2].abs().max() < 1e-5  # the third picture


def test_videos_have_a_layout_of_their_own_and_what_has_no_convolution_is_refused():
    class Pipe:
        vae: nn.Module = nn.Sequential(nn.Conv3d(2, 3, 3), nn.Conv2d(2, 3, 3))

    Autoencoding(channels_last=True).set_up(Pipe())
    video, picture = Pipe.vae
    assert video.weight.is_contiguous(memory_format=torch.channels_last_3d)
    assert picture.weight.is_contiguous(memory_format=torch.channels_last) and not picture.weight.is_contiguous()
    Pipe.vae = nn.Linear(2, 3)
    with pytest.raises(PolicyError, match=r"vae.channels_last: vae \(Linear\) has no convolutions"):
        Autoencoding(channels_last=True).set_up(Pipe())
