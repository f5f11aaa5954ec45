"""What the weights behind rewards take: published numbers of parameters, defaults, checkpoints on this machine."""

import inspect
from pathlib import Path

import open_clip
import pytest
import torch
import transformers as tf
from safetensors.torch import save_file

from flowrl import names
from flowrl.known.language import LANGUAGE
from flowrl.planning.dry_run import describe
from flowrl.planning.sizes.memory import sizes
from flowrl.planning.sizes.rewards import PARAMETERS, READER, on_device, weight_arguments, weights_of
from flowrl.planning.sizes.text import describe_sizes
from flowrl.recipe.load import load

GIB = 1024**3
CLIP_TEXT = {"num_hidden_layers": 12, "hidden_size": 768, "intermediate_size": 3072, "num_attention_heads": 12}
SMALL = {"hidden_size": 512, "intermediate_size": 2048, "num_attention_heads": 8}
CLIP_BASE = {"hidden_size": 768, "intermediate_size": 3072, "num_hidden_layers": 12, "num_attention_heads": 12}
CLIP_LARGE = {"hidden_size": 1024, "intermediate_size": 4096, "num_hidden_layers": 24, "num_attention_heads": 16}
CLIP_HUGE = {"hidden_size": 1280, "intermediate_size": 5120, "num_hidden_layers": 32, "num_attention_heads": 16}
SIGLIP = {"hidden_size": 1152, "intermediate_size": 4304, "num_hidden_layers": 27, "num_attention_heads": 16}
ROPE = {"rope_scaling": {"type": "mrope", "rope_type": "default", "mrope_section": [16, 24, 24]}}
EYES = {"depth": 32, "embed_dim": 1280, "num_heads": 16, "mlp_ratio": 4, "patch_size": 14}
QWEN2_VL = {
    2: {"vocab_size": 151936, "hidden_size": 1536, "intermediate_size": 8960, "num_attention_heads": 12},
    7: {"vocab_size": 152064, "hidden_size": 3584, "intermediate_size": 18944, "num_attention_heads": 28},
}


def count(*modules) -> int:
    return sum(p.numel() for m in modules for p in m.parameters())


def clip(text, vision, width, patch):
    eyes = vision | {"patch_size": patch, "image_size": 224}
    return tf.CLIPModel(tf.CLIPConfig(text_config=text, vision_config=eyes, projection_dim=width))


def images(model) -> int:
    """The half of a CLIP that embeds pictures, with the scale of its logits."""
    return count(model.vision_model, model.visual_projection) + 1


def architecture(name: str) -> int:
    config = open_clip.get_model_config(name)
    return count(open_clip.CLIP(**{key: value for key, value in config.items() if key != "custom_text"}))


def qwen2_vl(size: int) -> int:
    text = QWEN2_VL[size] | ROPE | {"num_hidden_layers": 28, "num_key_value_heads": {2: 2, 7: 4}[size]}
    vision = EYES | {"hidden_size": text["hidden_size"]}
    return count(tf.Qwen2VLModel(tf.Qwen2VLConfig(text_config=text, vision_config=vision)))


def linear(*widths: int) -> int:
    return sum(a * b + b for a, b in zip(widths, widths[1:], strict=False))


def image_reward() -> int:
    eyes = tf.BlipVisionModel(tf.BlipVisionConfig(**CLIP_LARGE, image_size=224, patch_size=16))
    words = CLIP_TEXT | {"vocab_size": 30524, "encoder_hidden_size": 1024, "max_position_embeddings": 512}
    text = tf.BlipTextModel(tf.BlipTextConfig(**words), add_pooling_layer=False)
    return count(eyes, text) + linear(768, 1024, 128, 64, 16, 1)


def built() -> dict[str, int]:
    """Parameters by name, counted on architectures built from the published configurations."""
    large, base16 = clip(CLIP_TEXT, CLIP_LARGE, 768, 14), clip(CLIP_TEXT | SMALL, CLIP_BASE, 512, 16)
    sizes = {"image_size": 384, "patch_size": 14}
    swin = tf.SwinConfig(depths=[2, 2, 18, 2], embed_dim=96, num_heads=[3, 6, 12, 24], image_size=224, window_size=7)
    swin.out_features = ["stage1", "stage2", "stage3", "stage4"]
    detector = tf.Mask2FormerForUniversalSegmentation(tf.Mask2FormerConfig(backbone_config=swin, num_labels=80))
    huge = CLIP_LARGE | {"hidden_size": 1024}
    return {
        "openai/clip-vit-large-patch14": count(large),
        "openai/clip-vit-large-patch14 (images)": images(large),
        "openai/clip-vit-base-patch16": count(base16),
        "openai/clip-vit-base-patch16 (images)": images(base16),
        "openai/clip-vit-base-patch32 (images)": images(clip(CLIP_TEXT | SMALL, CLIP_BASE, 512, 32)),
        "ViT-H-14": architecture("ViT-H-14"),
        "ViT-L-14": architecture("ViT-L-14"),
        "hf-hub:apple/DFN5B-CLIP-ViT-H-14": architecture("ViT-H-14-quickgelu"),
        "hf-hub:apple/DFN5B-CLIP-ViT-H-14-384": architecture("ViT-H-14-378-quickgelu"),
        "yuvalkirstain/PickScore_v1": count(clip(huge, CLIP_HUGE, 1024, 14)),
        "google/siglip-so400m-patch14-384 (images)": count(
            tf.SiglipVisionModel(tf.SiglipVisionConfig(**SIGLIP, **sizes))
        ),
        "facebook/dino-vits16": count(
            tf.ViTModel(tf.ViTConfig(hidden_size=384, num_attention_heads=6, intermediate_size=1536))
        ),
        "facebook/dino-vitb16": count(tf.ViTModel(tf.ViTConfig())),
        "facebook/mask2former-swin-small-coco-instance": count(detector),
        "THUDM/ImageReward": image_reward(),
        "MizzenAI/HPSv3": qwen2_vl(7) + linear(3584, 1024, 16, 2),
        "KwaiVGI/VideoReward": qwen2_vl(2) + 1536,
    }


def test_parameters_are_those_of_the_published_architectures():
    with torch.device("meta"):
        found = built()
        folder = LANGUAGE["Qwen/Qwen2.5-VL-7B-Instruct"]
        config = tf.AutoConfig.for_model(**folder)
        found["Qwen/Qwen2.5-VL-7B-Instruct"] = count(tf.Qwen2_5_VLForConditionalGeneration(config))
    assert found == {name: PARAMETERS[name] for name in found}
    assert set(PARAMETERS) - set(found) == {"Qwen/Qwen2.5-VL-3B-Instruct"}  # of its card alone


def test_defaults_are_those_of_the_rewards():
    for use in names.rewards():
        known = weight_arguments(use)
        signature = inspect.signature(names.load(use, names.rewards())).parameters
        for key, value in known.items():
            default = None if signature[key].default is inspect.Parameter.empty else signature[key].default
            assert default == value, f"{use}: {key}"


def test_rewards_without_weights_are_rules_and_statistics():
    rules = {use for use in names.rewards() if not weight_arguments(use)} - {"ocr", "remote"}
    assert rules == RULES and not any(weights_of(use, {}) for use in rules)


RULES = {"jpeg_compressibility", "jpeg_incompressibility", "saturation", "brightness", "contrast", "sharpness"}
RULES |= {
    "sound_level",
    "spectral_centroid",
    "optical_flow",
    "shapes",
    "shapes_residual",
    "shapes_strict",
    "exact_match",
    "math_answer",
    "answer_format",
    "overlong",
}
RULES |= {"boxed_answer", "numeric_answer", "typed_answer", "think_format", "region_iou", "point_exploration"}
RULES |= {"choice_letter", "named_choice", "mark_lines", "thought_length"}
RULES |= {"box_format", "close_number", "text_similarity", "text_spotting"}
RULES |= {"layout_format", "layout_collisions", "layout_misplaced"}
RULES |= {"outcome", "used_tool", "tool_calls", "calls_made", "closed_tags"}
RULES |= {"language_share", "one_language", "no_loop", "repetition"}
RULES |= {
    "worked_steps",
    "key_steps",
    "step_validity",
    "screen_action",
    "screen_coordinate",
    "screen_format",
    "screen_step",
}


def test_weights_are_counted_as_they_are_loaded(tmp_path: Path):
    assert weights_of("hpsv3", {}).size == 2 * PARAMETERS["MizzenAI/HPSv3"]  # bfloat16
    assert weights_of("hpsv3", {"dtype": "float32"}).size == 4 * PARAMETERS["MizzenAI/HPSv3"]
    assert weights_of("aesthetic", {"head": "x.pth"}).size == 4 * 303_966_209  # the half for pictures
    assert weights_of("geneval", {}).size == 4 * (68_741_083 + 427_616_513)
    assert weights_of("frame_consistency", {}) is None
    assert weights_of("ocr", {}).place == "cpu" and weights_of("ocr", {}).size == READER
    save_file({"a": torch.zeros(3, 5, dtype=torch.float16), "b": torch.zeros(2)}, tmp_path / "model.safetensors")
    assert weights_of("clip_score", {"model": str(tmp_path)}).size == 17 * 4
    torch.save(torch.zeros(100), tmp_path / "hps.pt")
    size = (tmp_path / "hps.pt").stat().st_size
    assert weights_of("hpsv2", {"checkpoint": str(tmp_path / "hps.pt")}).size == size
    (tmp_path / "model.safetensors").write_bytes(b"\xff" * 40)
    assert weights_of("clip_score", {"model": str(tmp_path)}).size == 40
    assert 0 < weights_of("vlm_judge", {"model": "shapes-vlm"}).size < GIB


def test_what_is_not_known_is_said_and_what_a_server_holds_is_told_apart():
    assert weights_of("clip_score", {"model": "nobody/some-clip"}).size is None
    assert weights_of("mine.redness", {}).size is None
    judge = weights_of("server_judge", {"model": "owner/Some-VL-7B-Instruct", "base_url": "http://a:1/v1"})
    assert (judge.size, judge.place) == (14 * 10**9, "server")
    assert weights_of("unified_reward", {"base_url": "http://a:1/v1"}).size == 16 * 10**9  # 8b, in bfloat16
    assert weights_of("remote", {"url": "http://a:1"}).size is None


def test_the_plan_lists_the_weights_of_each_reward():
    text = describe(load("mixgrpo_flux"))
    for words in (
        "hpsv2, weight 1: 3.7 GiB, xswu/HPSv2",
        "clip_score, weight 1: 3.7 GiB, hf-hub:apple/DFN5B-CLIP-ViT-H-14-384",
        "image_reward, weight 1: 1.7 GiB, THUDM/ImageReward",
        "pick_score, weight 1: 3.7 GiB, yuvalkirstain/PickScore_v1",
        "12.7 GiB of reward models on the run's device\n",
    ):
        assert words in text
    judge = "{use: server_judge, args: {model: Qwen/Qwen2.5-VL-7B-Instruct, base_url: 'http://a:1/v1'}}"
    text = describe(load("tiny_flow_grpo", [f"rewards.judge={judge}", "rewards.ours={use: lengths_for_tests.fewer}"]))
    assert "15.4 GiB, Qwen/Qwen2.5-VL-7B-Instruct, on the server http://a:1/v1" in text
    assert "of a size not known here, your own" in text and "of reward models" not in text


def test_reward_models_are_in_the_memory_of_the_phases():
    def tiny(*more):
        return load("tiny_flow_grpo", ["offload=true", *more])

    plain, judged = sizes(tiny(), []), sizes(tiny("rewards.clip={use: clip_score}"), [])
    assert plain is not None and judged is not None
    stay = 4 * PARAMETERS["openai/clip-vit-large-patch14"]
    by_name = {phase.name: phase for phase in judged.phases}
    assert set(by_name) == {phase.name for phase in plain.phases} | {"scoring"}
    for phase in plain.phases:
        assert by_name[phase.name].total == phase.total + stay
    rollout, scoring = by_name["rollout"], by_name["scoring"]
    assert (scoring.weights, scoring.optimizer, scoring.trajectory) == (
        rollout.weights,
        rollout.optimizer,
        rollout.trajectory,
    )
    away = tiny("rewards.clip={use: clip_score, offload: true}")
    moved = {phase.name: phase.rewards for phase in sizes(away, []).phases}
    assert moved == dict.fromkeys(by_name, 0) | {"scoring": stay}
    lines = describe_sizes(away, []).split("\n")
    assert "rewards" in lines[1] and any(line.split()[:1] == ["scoring"] for line in lines)
    assert "rewards" not in describe_sizes(tiny(), []).split("\n")[1]


def test_what_stays_on_the_device_is_told_apart():
    stay, at_work = on_device(load("mixgrpo_flux").rewards, None)
    assert stay == at_work == pytest.approx(12.7 * GIB, rel=0.01)
    away = load("mixgrpo_flux", ["rewards.pick.offload=true", "rewards.hps.device=cuda:7"])
    stay, at_work = on_device(away.rewards, None)
    assert at_work - stay == 4 * PARAMETERS["yuvalkirstain/PickScore_v1"]
    assert stay == 4 * (PARAMETERS["THUDM/ImageReward"] + PARAMETERS["hf-hub:apple/DFN5B-CLIP-ViT-H-14-384"])
    text = describe(away)
    assert "on cuda:7" in text and "3.7 GiB of them only while scoring" in text


def test_aspects_of_one_video_reward_share_their_model():
    aspects = ["{use: video_reward, args: {aspect: VQ}}", "{use: video_reward, args: {aspect: MQ}}"]
    recipe = load("tiny_flow_grpo", [f"rewards={{a: {aspects[0]}, b: {aspects[1]}}}"])
    assert on_device(recipe.rewards, None) == (2 * PARAMETERS["KwaiVGI/VideoReward"],) * 2
