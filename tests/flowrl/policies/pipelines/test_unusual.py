"""Pipelines with a peculiar call: they are right, or refused in one line, and never end in a traceback."""

from __future__ import annotations

from typing import Any

import diffusers as df
import pytest
import torch
from diffusers import DiffusionPipeline, FluxPipeline
from PIL import Image
from torch import Tensor

import families
from families.base import finish, flow_euler, image_vae, randomize
from families.video import WAN, ltx_parts, unipc, wan_parts
from flowrl.contracts import Prompt
from flowrl.policies.errors import PolicyError
from flowrl.policies.noise import Key, start_generators
from flowrl.policies.pipelines.calls.arguments import call_arguments
from flowrl.policies.pipelines.encoding.prompt_cache import CachedEncoder
from flowrl.policies.pipelines.policy import PipelinePolicy
from flowrl.policies.pipelines.steps.ddim import ddim_of
from flowrl.policies.pipelines.steps.dynamics import Dynamics
from policies_support import ODE, PROMPTS, SDE, SEED, STEPS, gap, pictures, scores
from samplers.renoising import vp_ddim
from samplers.transitions import flow_sde

SMALL = {"height": 16, "width": 16, "num_frames": 5, "guidance_scale": 3.0, "max_sequence_length": 48}


def policy_of(pipe: DiffusionPipeline, **call: Any) -> PipelinePolicy:
    rows = call.pop("max_rows", None)
    return PipelinePolicy(pipe, {"transformer": pipe.transformer}, Dynamics(flow_sde, 0.7), call=call, max_rows=rows)


# ---------------------------------------------------------------------- one prompt a call


@pytest.fixture(scope="module")
def vace() -> DiffusionPipeline:
    """Wan VACE, which insists on one text for its prompt."""
    transformer = df.WanVACETransformer3DModel(**WAN | {"num_layers": 2}, vace_layers=[0], vace_in_channels=72)
    return finish(df.WanVACEPipeline(**wan_parts(flow_euler()), transformer=randomize(transformer, 47)))


def test_a_pipeline_of_one_text_is_called_row_by_row(vace: DiffusionPipeline) -> None:
    call = SMALL | {
        "video": [Image.new("RGB", (16, 16), (90, 30, 200))] * 5,
        "mask": [Image.new("L", (16, 16), 255)] * 5,
        "negative_prompt": "blurry",
    }
    policy = policy_of(vace, **call, max_rows=1)
    drawn = policy.rollout(PROMPTS, group_size=2, plan=SDE, seed=SEED)
    for row in range(4):
        assert gap(scores(policy, drawn, [row]), drawn.rollout_logp[row : row + 1]) <= 1e-5
    plain = pictures(policy.rollout(PROMPTS[1:], plan=ODE, seed=SEED))
    (generator,) = start_generators([Key(SEED, PROMPTS[1].id, 0)])  # it takes no list of them either
    theirs = vace(
        prompt=PROMPTS[1].text, generator=generator, num_inference_steps=STEPS, output_type="pt", **call
    ).frames
    assert gap(plain, theirs) <= 1e-5


# ---------------------------------------------------------------------- loops


def test_a_loop_of_several_walks_is_refused_and_one_of_a_single_walk_is_not() -> None:
    parts = ltx_parts() | {"scheduler": flow_euler()}
    pipe = finish(df.LTXI2VLongMultiPromptPipeline(**parts))
    call = {"height": 32, "width": 32, "num_frames": 33, "temporal_tile_size": 16, "temporal_overlap": 8}
    with pytest.raises(PolicyError, match=r"its loop takes \d+ steps where 4 were asked for"):
        policy_of(pipe, **call).rollout(PROMPTS[:1], plan=SDE, seed=SEED)
    policy = policy_of(pipe, **call | {"num_frames": 9, "max_rows": 1})
    drawn = policy.rollout(PROMPTS, group_size=2, plan=SDE, seed=SEED)
    assert drawn.samples.video is not None and drawn.samples.video.shape[0] == 4
    assert drawn.samples.video.shape[2] == 3 and 0 <= drawn.samples.video.min() and drawn.samples.video.max() <= 1
    assert gap(scores(policy, drawn, [3]), drawn.rollout_logp[3:]) <= 1e-5


def test_schedulers_of_single_frames_step_without_their_original() -> None:
    """SkyReels-V2 diffusion forcing steps a copy of its scheduler for each frame, and never the scheduler itself."""
    transformer = df.SkyReelsV2Transformer3DModel(**WAN)
    pipe = df.SkyReelsV2DiffusionForcingPipeline(**wan_parts(unipc()), transformer=randomize(transformer, 48))
    policy = policy_of(finish(pipe), **SMALL)
    drawn = policy.rollout(PROMPTS, group_size=2, plan=SDE, seed=SEED)
    assert (drawn.step_stats["std"] > 0).all() and (drawn.step_stats["dt"] < 0).all()
    assert gap(scores(policy, drawn, [3, 1]), drawn.rollout_logp[[3, 1]]) <= 1e-5


# ---------------------------------------------------------------------- text encoding


def test_a_list_of_layers_has_its_rows_within() -> None:
    """BRIA FIBO hands out a list of tensors, one a layer, each with a row for each prompt."""
    calls: list[int] = []

    def encode_prompt(prompt: list[str], device: str = "cpu") -> tuple[Tensor, list[Tensor], list[Tensor]]:
        calls.append(len(prompt))
        rows = torch.tensor([[float(len(text))] * 3 for text in prompt])
        return rows, [rows + layer for layer in range(4)], [torch.zeros(2, 2)] * 4

    encoder = CachedEncoder(encode_prompt)
    prompts = ["a cat", "two dogs", "a cat"]
    whole, layers, constant = encoder(prompts)
    theirs = encode_prompt(prompts)
    assert torch.equal(whole, theirs[0])
    assert len(layers) == 4 and all(torch.equal(a, b) for a, b in zip(layers, theirs[1], strict=True))
    assert len(constant) == 4 and constant[0].shape == (2, 2)
    assert max(calls[:-1]) <= 3 and calls[-2] == 2  # each distinct prompt once


def test_lyrics_are_given_to_every_row_of_a_pipeline_that_takes_them() -> None:
    assert call_arguments({}, PROMPTS, ["lyrics"])["lyrics"] == ["", ""]
    assert call_arguments({"lyrics": "la"}, PROMPTS, ["lyrics"])["lyrics"] == ["la", "la"]
    assert "lyrics" not in call_arguments({}, PROMPTS, ["prompt"])
    own = Prompt("a", "a", call={"lyrics": "do re"})
    assert call_arguments({}, [own, PROMPTS[0]], ["lyrics"])["lyrics"] == ["do re", ""]


# ---------------------------------------------------------------------- schedulers, arguments


def test_ddim_answers_what_a_pipeline_asks_its_own_scheduler_of_variances() -> None:
    own = df.DDPMScheduler(variance_type="learned_range", clip_sample=False)
    assert ddim_of(own).config.variance_type == "fixed_small"
    assert own.config.variance_type == "learned_range"


def test_what_a_pipeline_refuses_itself_is_one_line() -> None:
    family = families.get("sd3")
    pipe = family.build()
    with pytest.raises(PolicyError, match="StableDiffusion3Pipeline refuses its arguments: `height`") as error:
        policy_of(pipe, **dict(family.call) | {"height": 15}).rollout(PROMPTS, plan=ODE, seed=SEED)
    assert "\n" not in str(error.value)


# ---------------------------------------------------------------------- faults of a pipeline


class Faulty(FluxPipeline):
    """A pipeline whose start fails with an exception of any kind."""

    fault: Exception

    def prepare_latents(self, *args: Any, **kwargs: Any) -> Any:
        raise self.fault


@pytest.mark.parametrize("fault", [KeyError("std"), AttributeError("two\nlines"), ZeroDivisionError(), StopIteration()])
def test_what_a_pipeline_raises_is_one_line_chained_to_its_cause(fault: Exception) -> None:
    family = families.get("flux")
    pipe = Faulty(**family.build().components)
    pipe.fault = fault
    with pytest.raises(PolicyError) as error:
        policy_of(pipe, **family.call).rollout(PROMPTS[:1], plan=SDE, seed=SEED)
    line, kind = str(error.value), type(fault).__name__
    assert line.startswith(f"Faulty cannot be sampled: {kind}: {' '.join(str(fault).split()) or 'no text'} (")
    assert "pipelines/test_unusual.py:" in line and "\n" not in line
    assert error.value.__cause__ is fault


def test_memory_that_runs_out_is_not_taken_for_a_fault_of_the_pipeline() -> None:
    family = families.get("flux")
    pipe = Faulty(**family.build().components)
    pipe.fault = torch.OutOfMemoryError("too much")
    with pytest.raises(torch.OutOfMemoryError):
        policy_of(pipe, **family.call).rollout(PROMPTS[:1], plan=SDE, seed=SEED)


def test_faults_of_flowrl_itself_are_told_as_such(monkeypatch: pytest.MonkeyPatch) -> None:
    family = families.get("flux")
    policy = policy_of(family.build(), **family.call)
    monkeypatch.setattr(policy, "dynamics", None)
    with pytest.raises(
        PolicyError, match=r"AttributeError: .* \(flowrl/policies/pipelines/\S+.py:\d+\); flowrl itself fails on it"
    ) as error:
        policy.rollout(PROMPTS[:1], plan=SDE, seed=SEED)
    assert isinstance(error.value.__cause__, AttributeError)


def test_a_pipeline_that_steps_other_states_than_one_a_row_is_refused_with_the_reason() -> None:
    own = df.DiTTransformer2DModel(
        num_attention_heads=2, attention_head_dim=8, in_channels=4, out_channels=8, num_layers=1, sample_size=4,
        patch_size=2, num_embeds_ada_norm=1000, norm_type="ada_norm_zero", norm_elementwise_affine=False,
    )  # fmt: skip
    pipe = df.DiTPipeline(own, image_vae(), df.DDIMScheduler(clip_sample=False))
    call = {"class_labels": [1], "guidance_scale": 2.0}
    policy = PipelinePolicy(pipe, {"transformer": own}, Dynamics(vp_ddim, 1.0), call=call)
    with pytest.raises(PolicyError, match="DiTPipeline: its scheduler steps 2 states for 1 sample .*guidance_scale=1"):
        policy.rollout(PROMPTS[:1], plan=SDE, seed=SEED)
