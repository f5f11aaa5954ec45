"""What pipelines return, turned into pictures and sound, or refused."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import diffusers
import pytest
import torch
from diffusers import DiffusionPipeline
from diffusers.pipelines.ltx2.image_processor import LTX2VideoHDRProcessor
from torch import Tensor

import families
from flowrl.policies.errors import PolicyError
from flowrl.policies.pipelines.calls.layouts import check_size, join_media, media_of
from flowrl.policies.pipelines.policy import PipelinePolicy
from flowrl.policies.pipelines.steps.dynamics import Dynamics
from flowrl.recipe.calls import check_call
from flowrl.recipe.errors import RecipeError
from policies_support import ODE, PROMPTS, SEED, FamilyPolicy
from samplers.transitions import flow_sde


def of_class(name: str, **parts: Any) -> DiffusionPipeline:
    """An empty pipeline of a class of diffusers."""
    pipe = object.__new__(getattr(diffusers, name))
    pipe.__dict__.update(parts)
    return pipe


def decoded(*shape: int) -> Tensor:
    """What a decoder makes: values in [-1, 1], with both ends."""
    values = torch.rand(shape, generator=torch.Generator().manual_seed(0)) * 2 - 1
    values.view(-1)[:2] = torch.tensor([-1.0, 1.0])
    return values


def test_a_decoders_own_video_is_turned() -> None:
    video = decoded(1, 3, 5, 4, 6)
    found = media_of({"frames": video}, of_class("LTXI2VLongMultiPromptPipeline"), 1)
    assert list(found) == ["video"]
    assert torch.equal(found["video"], video.transpose(1, 2) / 2 + 0.5)


def test_linear_light_becomes_the_picture_that_the_decoder_made() -> None:
    video, processor = decoded(2, 3, 4, 4, 6), LTX2VideoHDRProcessor()
    light = processor.postprocess_hdr_video(video, output_type="pt")
    assert light.shape == (2, 4, 4, 6, 3) and float(light.max()) > 50  # what a reward was given before
    pipe = of_class("LTX2HDRPipeline", hdr_video_processor=processor)
    found = media_of({"frames": light.requires_grad_(), "audio": None}, pipe, 2)["video"]
    assert torch.allclose(found, video.transpose(1, 2) / 2 + 0.5, atol=2e-5)
    (grad,) = torch.autograd.grad(found.sum(), light)
    assert grad.isfinite().all()


def test_a_transparent_picture_is_laid_over_white() -> None:
    pixels = torch.tensor([0.2, 0.4, 0.6])[:, None, None].expand(3, 2, 2)
    alpha = torch.tensor([[1.0, 0.0], [0.5, 1.0]])
    found = media_of({"images": torch.cat([pixels, alpha[None]])[None]}, of_class("QwenImage21Pipeline"), 1)["images"]
    assert found.shape == (1, 3, 2, 2)
    assert found[0, :, 0, 0].tolist() == pytest.approx([0.2, 0.4, 0.6])
    assert found[0, :, 0, 1].tolist() == [1, 1, 1]
    assert found[0, :, 1, 0].tolist() == pytest.approx([0.6, 0.7, 0.8])


def test_the_pixels_of_a_pixel_space_model_are_shifted() -> None:
    pixels = decoded(2, 3, 4, 4) * 1.5
    found = media_of((pixels, None, None), of_class("IFPipeline"), 2)["images"]
    assert torch.equal(found, (pixels / 2 + 0.5).clamp(0, 1))


def test_sound_comes_alone_or_with_its_video() -> None:
    sound, video = decoded(2, 2, 50), decoded(2, 4, 3, 4, 4) / 2 + 0.5
    assert torch.equal(media_of({"audios": sound}, of_class("StableAudio3Pipeline"), 2)["audio"], sound)
    both = media_of({"frames": video, "audio": sound[:, 0]}, of_class("LTX2Pipeline"), 2)
    assert both["audio"].shape == (2, 1, 50)
    assert torch.equal(both["video"], video)
    alone = media_of({"video": video[0], "sound": sound[0], "action": None}, of_class("Cosmos3OmniPipeline"), 1)
    assert alone["video"].shape == (1, 4, 3, 4, 4) and alone["audio"].shape == (1, 2, 50)


PICTURES = torch.full((2, 3, 4, 4), 0.5)


@pytest.mark.parametrize(
    ("pictures", "reason"),
    [
        (PICTURES[:, :1], r"shape \(2, 1, 4, 4\)"),
        (torch.full((2, 4, 4, 4), 0.5), r"shape \(2, 4, 4, 4\)"),
        (torch.full((2, 3, 5, 4, 4), 0.5), r"shape \(2, 3, 5, 4, 4\)"),
        (torch.full((2, 5, 4, 4, 3), 0.5), r"shape \(2, 5, 4, 4, 3\)"),
        (PICTURES[0], r"shape \(3, 4, 4\)"),
        (PICTURES - 1, "from -0.5 to -0.5; accepted: 0 to 1"),
        (PICTURES * 3, "to 1.5"),
        (PICTURES / 0, "not finite"),
        (PICTURES * torch.nan, "not finite"),
        (PICTURES[:1], r"1 pictures .* for 2 rows"),
        ([torch.zeros(3, 4, 4), torch.zeros(3, 4, 6)], "no batch of pictures"),
    ],
)
def test_what_is_no_picture_is_refused(pictures: Any, reason: str) -> None:
    with pytest.raises(PolicyError, match=f"FluxPipeline returned .*{reason}") as error:
        media_of({"images": pictures}, of_class("FluxPipeline"), 2)
    assert "\n" not in str(error.value)


def test_one_sample_that_is_not_finite_is_left_to_the_rewards() -> None:
    """They have no score for it, and too many of them end a run."""
    pictures = PICTURES.clone()
    pictures[1, 0, 0, 0] = torch.nan
    found = media_of({"images": pictures}, of_class("FluxPipeline"), 2)["images"]
    assert torch.equal(found.isnan(), pictures.isnan())


def test_rounding_is_no_fault() -> None:
    found = media_of({"images": PICTURES * 2 + 5e-4}, of_class("FluxPipeline"), 2)["images"]
    assert float(found.max()) == 1


def test_calls_of_one_rollout_give_samples_of_one_size() -> None:
    with pytest.raises(PolicyError, match=r"audio of one rollout have sizes \[2, 50\] and \[2, 60\]"):
        join_media([{"audio": decoded(1, 2, 50)}, {"audio": decoded(1, 2, 60)}], "LongCatAudioDiTPipeline")


# ---------------------------------------------------------------------- the size asked for


def test_a_pipeline_that_scales_to_an_area_of_its_own_is_refused() -> None:
    family = families.get("kontext")
    pipe = family.build()
    call = dict(family.call) | {"image": families.base.image_for("k"), "height": 16, "width": 24}
    policy = PipelinePolicy(pipe, {"transformer": pipe.transformer}, Dynamics(flow_sde, 0.7), call=call)
    with pytest.raises(PolicyError, match="where 16 x 24 was asked for: .* set pipeline.max_area=384"):
        policy.rollout(PROMPTS[:1], plan=ODE, seed=SEED)
    policy.call = call | {"max_area": 384}
    assert policy.rollout(PROMPTS[:1], plan=ODE, seed=SEED).samples.images.shape == (1, 3, 16, 24)


def test_it_is_refused_before_weights_are_loaded_where_its_class_is_known() -> None:
    size = {"height": 720, "width": 720}
    with pytest.raises(RecipeError, match="pipeline.max_area: not given, .* set it to 518400"):
        check_call(diffusers.FluxKontextPipeline, size)
    check_call(diffusers.FluxKontextPipeline, size | {"max_area": 518400})
    check_call(diffusers.FluxKontextPipeline, {"height": 1024, "width": 1024})
    check_call(diffusers.FluxPipeline, size)


def test_a_whole_multiple_of_the_size_is_an_upscalers() -> None:
    asked, pipe = {"height": 4, "width": 2}, SimpleNamespace()
    check_size({"images": torch.zeros(1, 3, 8, 4)}, asked, pipe)
    with pytest.raises(PolicyError, match="8 x 8 "):
        check_size({"images": torch.zeros(1, 3, 8, 8)}, asked, pipe)


def test_sound_rides_along_with_a_pipelines_video() -> None:
    samples = FamilyPolicy("ltx2").rollout(PROMPTS, group_size=1, plan=ODE, seed=SEED).samples
    assert samples.video is not None and samples.audio is not None
    assert samples.audio.dim() == 3 and len(samples.audio) == 2
    assert samples.sample_rate == 16000
    assert torch.equal(samples[[1]].audio, samples.audio[1:])
    assert (samples.audio[0] - samples.audio[1]).abs().max() > 0
