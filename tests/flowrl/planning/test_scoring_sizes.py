"""What scoring computes, as planned from configs alone, against real tiny rewards; what a plan says of it."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
import transformers as tf
from image_reward_support import HEADS, PATCH, SIZE, public_tensors, save
from torch.nn.attention import SDPBackend, sdpa_kernel

import vision_support as vision
from flowrl.contracts import Prompt, Samples
from flowrl.planning.sizes.counted import Counted, count_flops
from flowrl.planning.sizes.flops import denoising
from flowrl.planning.sizes.memory import sizes
from flowrl.planning.sizes.reward_networks import INSTRUCTIONS, Call, Sample, blip, calls, reader
from flowrl.planning.sizes.scoring import measure, scoring
from flowrl.planning.sizes.token_passes import Shapes
from flowrl.recipe.keys.rewards import RewardSpec
from flowrl.recipe.load import load
from reward_models.clip_score import clip_score
from reward_models.image_reward import image_reward
from reward_models.parts.judge import instructions


def counted(compute) -> int:
    """Operations as they are computed on a CPU, of attention as plain products, by torch's formulas."""
    torch.backends.mha.set_fastpath_enabled(False)
    try:
        with sdpa_kernel(SDPBackend.MATH), Counted() as found, torch.no_grad():
            compute()
    finally:
        torch.backends.mha.set_fastpath_enabled(True)
    return found.products


def planned(found: list[Call]) -> int:
    with Shapes():
        return sum(count_flops(lambda one=one: one.run(1)) for one in found)


def samples(number: int, **media: torch.Tensor) -> Samples:
    prompts = [Prompt(str(i), f"a red circle {i}") for i in range(number)]
    return Samples(prompts, torch.arange(number), **media)


def test_a_clip_computes_what_is_planned():
    real = clip_score(model="shapes-clip")
    whole = counted(lambda: real(samples(3, images=torch.rand(3, 3, 40, 40))))
    found = calls("clip_score", {"model": "shapes-clip"}, Sample(1, 0, 0, 0))
    assert found is not None and 3 * planned(found) == pytest.approx(whole, rel=0.01)
    video = counted(lambda: real(samples(1, video=torch.rand(1, 5, 3, 40, 40))))
    found = calls("clip_score", {"model": "shapes-clip"}, Sample(5, 0, 0, 0))
    assert found is not None and planned(found) == pytest.approx(video, rel=0.01)


def test_image_reward_computes_what_is_planned(tmp_path: Path):
    save(tmp_path, public_tensors())
    real = image_reward(model=str(tmp_path), tokenizer=str(tmp_path), **HEADS)
    whole = counted(lambda: real(samples(2, images=torch.rand(2, 3, SIZE, SIZE))))
    found = blip(real.vision.config, real.text.config, 1)
    assert real.vision.config.patch_size == PATCH
    assert 2 * planned(found) == pytest.approx(whole, rel=0.01)


def test_a_judge_that_sees_computes_what_is_planned(tmp_path: Path):
    own = vision.policy(vision.folder(tmp_path / "model", "qwen2_5_vl"))
    ids, shown = own.encode.row(vision.prompts(tmp_path)[1])
    tensors = {name: value for piece in shown.pieces for name, value in piece.tensors.items()}
    row = torch.tensor([ids])
    more = {"mm_token_type_ids": (row == vision.IMAGE).int()}
    whole = counted(lambda: own.model(input_ids=row, logits_to_keep=1, use_cache=False, **tensors, **more))
    config = tf.AutoConfig.from_pretrained(tmp_path / "model")
    with torch.device("meta"):
        empty = tf.AutoModelForImageTextToText.from_config(config).eval()
    media = {n: t.to("meta") if t.is_floating_point() else t for n, t in tensors.items()}
    assert planned([reader(empty, len(ids), media)]) == pytest.approx(whole, rel=0.01)


def test_instructions_are_as_long_as_they_are_taken_to_be():
    told = {"hpsv3": instructions.HPSV3, "video_reward": instructions.VIDEO_REWARD}
    assert {name: len(text.split()) for name, text in told.items()} == INSTRUCTIONS


def test_servers_and_rules_take_nothing_and_what_is_not_known_is_told():
    judge = "{use: server_judge, args: {model: a/Some-7B, base_url: 'http://a:1/v1'}}"
    more = [f"rewards.judge={judge}", "rewards.clip={use: clip_score, args: {model: shapes-clip}}"]
    plain, judged = load("tiny_flow_grpo"), load("tiny_flow_grpo", more)
    assert scoring(plain, "") == scoring(load("tiny_flow_grpo", more[:1]), "")
    found, one = scoring(judged, ""), measure(judged.rewards["clip"], Sample(1, 0, 0, 0))
    assert one is not None and found.unknown == ()
    before, after = denoising(plain, []), denoising(judged, [])
    assert before is not None and after is not None and "scoring" not in before.phases
    samples_of = plain.train.drawn * plain.train.group
    assert after.phases["scoring"] == found.flops == one[0] * samples_of > 0
    assert after.total - before.total == found.flops and after.left_out == ""
    unknown = denoising(load("tiny_flow_grpo", ["rewards.other={use: clip_score, args: {model: no/body}}"]), [])
    assert unknown is not None and unknown.left_out == "rewards (other)"


def test_a_call_of_fewer_samples_holds_less_and_ranks_share_them():
    def held(*more: str) -> int:
        return scoring(load("tiny_flow_grpo", ["rewards.clip={use: pick_score}", *more]), "").held

    whole, few = held(), held("rewards.clip.batch=4")
    one, two = measure(RewardSpec(use="pick_score"), Sample(1, 0, 0, 0))[2:]
    assert few == one + 3 * (two - one) and whole > 10 * few
    assert held("rewards.clip.device=cpu") == (whole if load("tiny_flow_grpo").device == "cpu" else 0)
    recipe = load("tiny_flow_grpo", ["rewards.clip={use: pick_score}", "rewards.clip.batch=4"])
    (phase,) = (phase for phase in sizes(recipe, []).phases if phase.name == "scoring")
    assert phase.activations == few
