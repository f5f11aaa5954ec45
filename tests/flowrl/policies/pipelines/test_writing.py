"""Prompts that a pipeline has a language model rewrite: once a sample, whatever rows share a call."""

from __future__ import annotations

from typing import Any

import diffusers as df
import pytest
import torch
from diffusers import DiffusionPipeline
from torch import Tensor, nn

from families import text
from families.base import finish, flow_euler, image_vae, randomize
from families.image_more import flux2_parts
from flowrl.contracts import Prompt, Rollout
from flowrl.policies.errors import PolicyError
from flowrl.policies.noise import Key
from flowrl.policies.pipelines.encoding import writing
from flowrl.policies.pipelines.policy import PipelinePolicy
from flowrl.policies.pipelines.steps.dynamics import Dynamics
from policies_support import ODE, SDE, SEED, gap, pictures, scores
from samplers.transitions import flow_sde

PROMPTS = [Prompt("cat", "a cat"), Prompt("dogs", "two dogs in the deep snow")]


def ernie() -> DiffusionPipeline:
    """ERNIE-Image with a tiny writer of at most 12 tokens."""
    transformer = df.ErnieImageTransformer2DModel(
        hidden_size=32,
        num_attention_heads=2,
        num_layers=2,
        ffn_hidden_size=32,
        in_channels=16,
        out_channels=16,
        text_in_dim=text.WIDTH,
        rope_axes_dim=(4, 6, 6),
    )
    pe_tokenizer = text.qwen_tokenizer()
    pe_tokenizer.model_max_length = 12
    pipe = df.ErnieImagePipeline(
        transformer=randomize(transformer, 62),
        vae=flux2_parts()["vae"],
        text_encoder=text.qwen3(),
        tokenizer=text.qwen_tokenizer(),
        scheduler=flow_euler(),
        pe=text.qwen3(causal=True, seed=77),
        pe_tokenizer=pe_tokenizer,
    )
    return finish(pipe)


def longcat() -> DiffusionPipeline:
    """LongCat-Image, whose text encoder rewrites all prompts of a call in one batch, padded to the longest."""
    transformer = df.LongCatImageTransformer2DModel(
        patch_size=1,
        in_channels=64,  # the pipeline takes 16 latent channels for granted
        num_layers=1,
        num_single_layers=1,
        attention_head_dim=16,
        num_attention_heads=2,
        joint_attention_dim=text.WIDTH,
        pooled_projection_dim=text.WIDTH,
        axes_dims_rope=[4, 4, 8],
    )
    pipe = df.LongCatImagePipeline(
        scheduler=flow_euler(),
        vae=image_vae(16),
        text_encoder=text.qwen25_vl(),
        tokenizer=text.qwen_tokenizer(),
        text_processor=text.qwen_vl_processor(),
        transformer=randomize(transformer, 63),
    )
    pipe.tokenizer_max_length = 24
    pipe.text_encoder.generation_config.do_sample = True
    return finish(pipe)


def policy_of(pipe: DiffusionPipeline, **call: Any) -> PipelinePolicy:
    call = {"height": 16, "width": 16, "guidance_scale": 2.0} | call
    return PipelinePolicy(pipe, {"transformer": pipe.transformer}, Dynamics(flow_sde, 0.7), call=call)


@pytest.fixture(scope="module", params=["ernie", "longcat"])
def drawn(request: pytest.FixtureRequest) -> tuple[PipelinePolicy, Rollout, list[int]]:
    """A policy, its rollout of two prompts twice each, and a counter of writer calls."""
    policy = policy_of({"ernie": ernie, "longcat": longcat}[request.param]())
    writer = policy.source.pe if request.param == "ernie" else policy.source.text_encoder
    calls, own = [0], writer.generate

    def generate(**kwargs: Any) -> Any:
        calls[0] += 1
        assert len(kwargs["input_ids"]) == 1
        return own(**kwargs)

    writer.generate = generate
    return policy, policy.rollout(PROMPTS, group_size=2, plan=SDE, seed=SEED), calls


def test_a_replay_of_any_rows_has_the_text_of_the_rollout(drawn: tuple[PipelinePolicy, Rollout, list[int]]) -> None:
    policy, rollout, calls = drawn
    before = calls[0]
    for rows in ([0, 1, 2, 3], [3], [1, 2], [2, 0]):
        torch.manual_seed(len(rows))
        assert gap(scores(policy, rollout, rows), rollout.rollout_logp[rows]) <= 1e-5
    assert calls[0] == before  # kept, not written again


def test_each_sample_has_its_own_text_and_it_is_that_of_its_key(
    drawn: tuple[PipelinePolicy, Rollout, list[int]],
) -> None:
    policy, rollout, _ = drawn
    policy.keeper.writer._kept.clear()
    torch.manual_seed(99)
    alone = policy.rollout(PROMPTS[1:], group_size=1, plan=SDE, seed=SEED, first=1)
    assert gap(pictures(alone)[0], pictures(rollout)[3]) <= 1e-5
    texts = list(policy.keeper.writer._kept.values())
    other = policy.rollout(PROMPTS[1:], group_size=2, plan=SDE, seed=SEED, first=1)
    assert gap(pictures(other)[0], pictures(rollout)[3]) <= 1e-5
    added = [kept for kept in policy.keeper.writer._kept.values() if not any(kept is one for one in texts)]
    assert any(not torch.equal(kept, one) for kept in added for one in texts)


def test_without_a_writer_nothing_is_written() -> None:
    policy = policy_of(ernie(), use_pe=False)
    policy.rollout(PROMPTS, plan=ODE, seed=SEED)
    assert not policy.keeper.writer._kept


# ---------------------------------------------------------------------- what the writer does with a call


def echo(input_ids: Tensor, attention_mask: Tensor | None = None, **rest: Any) -> Tensor:
    """Adds as many random ids as the first id says."""
    return torch.cat([input_ids, torch.randint(100, 999, (1, int(input_ids[0, 0])))], 1)


def test_rows_are_written_without_padding_and_padded_on_the_right() -> None:
    writer = writing.Writer()
    keys = [Key(0, "a", 0), Key(0, "b", 0)]
    writer.begin(keys)
    ids, mask = torch.tensor([[0, 0, 3], [5, 6, 7]]), torch.tensor([[0, 0, 1], [1, 1, 1]])
    found = writer("pe", echo, (), {"input_ids": ids, "attention_mask": mask, "pad_token_id": 9})
    assert found.shape == (2, 8) and torch.equal(found[:, :3], ids)
    assert found[0, 6:].tolist() == [9, 9]
    writer.begin(keys[:1])  # the first row alone, in a pass of its own, by position
    again = writer("pe", echo, (ids[:1, 2:],), {"attention_mask": mask[:1, 2:], "pad_token_id": 9})
    assert torch.equal(again[0, 1:], found[0, 3:6])


@pytest.mark.parametrize(
    ("given", "reason"),
    [
        ({"input_ids": torch.ones(3, 4).long()}, "for 3 texts of 2 rows"),
        ({"inputs_embeds": torch.ones(2, 4, 8)}, "without input_ids"),
        ({"input_ids": torch.ones(2, 4).long(), "pixel_values": torch.ones(8, 3)}, "pixel_values for 2 rows at once"),
    ],
)
def test_a_call_whose_rows_cannot_be_told_apart_is_refused(given: dict[str, Any], reason: str) -> None:
    writer = writing.Writer()
    writer.begin([Key(0, "a", 0), Key(0, "b", 0)])
    with pytest.raises(PolicyError, match=reason):
        writer("pe", echo, (), given)


class Ideogram4Pipeline(nn.Module):
    """A class by name alone."""


def test_joint_rewriting_is_refused_before_anything_is_built() -> None:
    with pytest.raises(PolicyError, match="pipeline.prompt_upsampling: Ideogram4Pipeline rewrites"):
        writing.check_writing(Ideogram4Pipeline(), {"prompt_upsampling": True})
    writing.check_writing(Ideogram4Pipeline(), {"prompt_upsampling": False})
