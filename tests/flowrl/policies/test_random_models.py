"""Models of random weights: made from configs alone, with tokenizers of our own."""

import json
import shutil
from pathlib import Path

import pytest
import torch

import families
from flowrl.contracts import Prompt
from flowrl.policies.errors import PolicyError
from flowrl.policies.language.policy import LanguagePolicy
from flowrl.policies.loading import load_language, load_pipeline, load_processor
from flowrl.policies.pipelines.calls.working_copy import modules_of
from flowrl.policies.random import tokenizers
from samplers.tokens import Generation

PROMPTS = ["a red cat on a blue chair", "three zqx", "a photo of a dog"]
# model_type -> size of the published vocabulary, and ids that its config names
VOCABULARY = {
    "clip_text_model": (49408, {"bos_token_id": 49406, "eos_token_id": 49407, "pad_token_id": 49407}),
    "t5": (32128, {}),
    "umt5": (256384, {}),
    "qwen3": (151936, {}),
    "llama": (128320, {}),
    "mistral3": (131072, {"image_token_index": 10}),
    "gemma3": (262208, {"boi_token_index": 255999, "eoi_token_index": 256000, "image_token_index": 262144}),
    "qwen2_5_vl": (
        151936,
        {"image_token_id": 151655, "video_token_id": 151656, "vision_start_token_id": 151652},
    ),
}
# families whose tests have a plain tokenizer in the place of the published class
CLASSES = {"flux2": {"tokenizer": "PixtralProcessor"}, "hunyuan_video": {"tokenizer": "LlamaTokenizerFast"}}


def bare(family: str, root: Path) -> Path:
    """A tiny pipeline's configs alone, with the vocabularies of the published text encoders."""
    folder = root / family
    families.get(family).build().save_pretrained(folder)
    for path in [*folder.glob("*token*"), *folder.glob("processor")]:
        shutil.rmtree(path)
    for path in folder.rglob("*.safetensors"):
        path.unlink()
    for path in folder.glob("*/config.json"):
        config = json.loads(path.read_text())
        size, ids = VOCABULARY.get(config.get("model_type"), (None, {}))
        if size is not None:
            config |= ids
            config.get("text_config", config)["vocab_size"] = size
        path.write_text(json.dumps(config))
    index = json.loads((folder / "model_index.json").read_text())
    index |= {name: ["transformers", kind] for name, kind in CLASSES.get(family, {}).items()}
    (folder / "model_index.json").write_text(json.dumps(index))
    return folder


SLOW = ("sd3", "sdxl", "qwen_edit", "flux2_klein", "z_image", "kontext", "wan22", "wan_i2v", "ltx2", "hunyuan_video")


@pytest.mark.parametrize("family", ["qwen_image", "flux2", *(pytest.param(n, marks=pytest.mark.slow) for n in SLOW)])
def test_a_pipeline_of_configs_alone_draws_other_samples_for_other_prompts(family: str, tmp_path: Path):
    made, folder = families.get(family), bare(family, tmp_path)
    pipe = load_pipeline(f"random:{folder}", torch.float32)
    if hasattr(pipe, "system_message"):
        pipe.system_message = "s"  # FLUX.2's own is longer than the tiny call's texts
    call = made.batched_call(PROMPTS[: made.max_rows])
    seeds = families.generators([0] * len(call["prompt"]))  # the same noise for all
    out = pipe(**call, generator=seeds, num_inference_steps=2, output_type="pt")
    drawn = torch.as_tensor(out[0])
    assert drawn.isfinite().all() and drawn.std() > 0.01
    assert len(drawn) < 3 or ((drawn[2] - drawn[1]).abs().max() > 1e-5 and (drawn[2] - drawn[0]).abs().max() > 1e-5)
    again = load_pipeline(f"random:{folder}", torch.float32)
    pairs = zip(modules_of(pipe).values(), modules_of(again).values(), strict=True)
    assert all(torch.equal(a, b) for x, y in pairs for a, b in zip(x.parameters(), y.parameters(), strict=True))


def test_weights_are_drawn_by_their_place_and_in_the_dtype(tmp_path: Path):
    pipe = load_pipeline("random:shapes-flux", torch.bfloat16)
    true = load_pipeline("shapes-flux", torch.bfloat16)
    for name, module in modules_of(pipe).items():
        ours, theirs = dict(module.named_parameters()), dict(modules_of(true)[name].named_parameters())
        assert {n: (p.shape, p.dtype) for n, p in ours.items()} == {n: (p.shape, p.dtype) for n, p in theirs.items()}
        assert not any(p.requires_grad or p.is_meta for p in ours.values())
        buffers = dict(modules_of(true)[name].named_buffers())
        for place, buffer in module.named_buffers():
            assert torch.equal(buffer, buffers[place]), place
    weights = dict(pipe.transformer.named_parameters())
    a, b = (weights[f"transformer_blocks.{i}.attn.to_q.weight"].float() for i in (0, 1))
    assert not torch.equal(a, b) and len({tuple(row.tolist()) for row in a}) == len(a)
    assert a.std() == pytest.approx(a.shape[1] ** -0.5, rel=0.1)
    assert weights["transformer_blocks.1.attn.to_q.bias"].abs().sum() == 0
    assert weights["transformer_blocks.1.attn.norm_q.weight"].eq(1).all()


def test_a_language_model_of_random_weights_draws_tokens():
    model, tokenizer = load_language("random:arithmetic-qwen2?blocks=1", torch.float32)
    assert model.config.num_hidden_layers == 1 and model.lm_head.weight is model.model.embed_tokens.weight
    policy = LanguagePolicy(model, tokenizer)
    prompts = [Prompt("a", "1+1="), Prompt("b", "2+34="), Prompt("c", "7*8=")]
    rollout = policy.rollout(prompts, plan=Generation(max_new_tokens=4), seed=0)
    assert rollout.rollout_logp.shape[0] == 3 and rollout.rollout_logp[rollout.mask].lt(0).all()


@pytest.mark.slow
def test_a_published_vision_language_model_sees_its_picture(tmp_path: Path):
    from vision_support import picture

    name = "random:Qwen2.5-VL-3B-Instruct?blocks=1"
    model, tokenizer = load_language(name, torch.float32)
    policy = LanguagePolicy(model, tokenizer, processor=load_processor(name, {"max_pixels": 28 * 28 * 16}))
    prompts = [
        Prompt(n, "What is this?", (picture(tmp_path / f"{n}.png", seed=seed),)) for n, seed in (("a", 1), ("b", 2))
    ]
    rollout = policy.rollout(prompts, plan=Generation(max_new_tokens=3), seed=0)
    assert rollout.rollout_logp[rollout.mask].isfinite().all()


def test_tokenizers_of_our_own_have_the_published_control_tokens():
    qwen, clip = tokenizers.TOKENIZERS["Qwen2Tokenizer"](), tokenizers.clip()
    assert qwen("<|vision_start|><|image_pad|>")["input_ids"] == [151652, 151655] and qwen.eos_token_id == 151645
    ids = clip(["a dog", "naïve zebra"], padding="max_length")["input_ids"]
    assert [len(row) for row in ids] == [77, 77] and [row[0] for row in ids] == [49406] * 2 and ids[0][3] == 49407
    t5 = tokenizers.t5()
    assert t5("a red dog")["input_ids"][-1] == t5.eos_token_id == 1 and t5.pad_token_id == 0
    text = "a photograph of an astronaut riding a horse, 8k"
    for make in tokenizers.TOKENIZERS.values():
        own = make()
        assert 9 <= len(own(text)["input_ids"]) <= 40 and own("red")["input_ids"] != own("blue")["input_ids"]
        assert max(own(text)["input_ids"]) < 262208 and own.unk_token_id not in own(text)["input_ids"][:-1]


def test_qwen_images_template_is_as_long_as_published(tmp_path: Path):
    """The pipeline drops the template's first 34 tokens, which are all before the prompt."""
    pipe = load_pipeline(f"random:{bare('qwen_image', tmp_path)}", torch.float32)
    before = pipe.prompt_template_encode.split("{}")[0]
    assert len(pipe.tokenizer(before)["input_ids"]) == pipe.prompt_template_encode_start_idx == 34


def test_what_cannot_be_made_is_one_line(tmp_path: Path):
    folder = bare("qwen_image", tmp_path)
    index = json.loads((folder / "model_index.json").read_text())
    (folder / "model_index.json").write_text(json.dumps(index | {"tokenizer": ["transformers", "BertTokenizer"]}))
    with pytest.raises(PolicyError, match="has no BertTokenizer, and none is made here"):
        load_pipeline(f"random:{folder}", torch.float32)
