"""A tiny Qwen2-VL with tokenizer, processor and chat template, saved as the hub has them, and the published forward."""

import json
from pathlib import Path
from typing import Any

import torch
import transformers as tf
from tokenizers import Tokenizer, models, pre_tokenizers, trainers

from reward_models.parts.judge import instructions

SPECIALS = ["<|endoftext|>", "<|im_start|>", "<|im_end|>", "<|vision_start|>", "<|vision_end|>"]
SPECIALS += ["<|image_pad|>", "<|video_pad|>"]
# what the template of Qwen2-VL-Instruct renders for one message of a user
CHAT = (
    "{% for m in messages %}{% if loop.first and m['role'] != 'system' %}<|im_start|>system\n"
    "You are a helpful assistant.<|im_end|>\n{% endif %}<|im_start|>{{ m['role'] }}\n"
    "{% for c in m['content'] %}{% if c['type'] == 'image' %}<|vision_start|><|image_pad|><|vision_end|>"
    "{% elif c['type'] == 'video' %}<|vision_start|><|video_pad|><|vision_end|>"
    "{% elif 'text' in c %}{{ c['text'] }}{% endif %}{% endfor %}<|im_end|>\n{% endfor %}"
    "{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
)
PATCH, MERGE, SPAN, WIDTH = 4, 2, 2, 32
SPARE = 8  # rows of the embedding beyond the tokenizer, as Qwen2-VL has them


def processor() -> Any:
    """Qwen2VLProcessor whose byte-level BPE knows the words of the instructions."""
    trained = Tokenizer(models.BPE())
    trained.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
    trainer = trainers.BpeTrainer(vocab_size=900, min_frequency=1, initial_alphabet=alphabet, show_progress=False)
    trained.train_from_iterator([instructions.HPSV3, instructions.VIDEO_REWARD], trainer)
    model = json.loads(trained.to_str())["model"]
    merges: Any = [tuple(m) for m in model["merges"]]
    tokenizer = tf.Qwen2Tokenizer(vocab=model["vocab"], merges=merges, chat_template=CHAT)
    tokenizer.add_special_tokens({"additional_special_tokens": SPECIALS[1:]})
    sizes: Any = {"patch_size": PATCH, "merge_size": MERGE, "temporal_patch_size": SPAN}
    images = tf.Qwen2VLImageProcessor(min_pixels=64, max_pixels=4096, **sizes)
    videos = tf.Qwen2VLVideoProcessor(min_pixels=64, max_pixels=4096, **sizes)
    return tf.Qwen2VLProcessor(image_processor=images, tokenizer=tokenizer, video_processor=videos, chat_template=CHAT)


def model(tokenizer, seed=0):
    """Qwen2VLForConditionalGeneration with two layers, and weights large enough for every input to matter."""
    ids = {token: tokenizer.convert_tokens_to_ids(token) for token in SPECIALS}
    text = {
        "vocab_size": len(tokenizer) + SPARE,
        "hidden_size": WIDTH,
        "intermediate_size": 48,
        "num_hidden_layers": 2,
        "num_attention_heads": 2,
        "num_key_value_heads": 1,
        "max_position_embeddings": 4096,
        "rope_scaling": {"type": "mrope", "rope_type": "default", "mrope_section": [2, 3, 3]},
        "bos_token_id": ids["<|im_start|>"],
        "eos_token_id": ids["<|im_end|>"],
        "initializer_range": 0.25,
    }
    vision = {"depth": 2, "embed_dim": 16, "num_heads": 2, "mlp_ratio": 2, "hidden_size": WIDTH}
    vision |= {"patch_size": PATCH, "spatial_merge_size": MERGE, "temporal_patch_size": SPAN}
    config = tf.Qwen2VLConfig(
        text_config=text,
        vision_config=vision | {"initializer_range": 0.25},
        image_token_id=ids["<|image_pad|>"],
        video_token_id=ids["<|video_pad|>"],
        vision_start_token_id=ids["<|vision_start|>"],
        vision_end_token_id=ids["<|vision_end|>"],
        tie_word_embeddings=False,
    )
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        return tf.Qwen2VLForConditionalGeneration(config).eval()


def save(folder: Path, seed=0) -> tuple[Any, Any]:
    """Writes the base model there, as save_pretrained does; (model, processor)."""
    made = processor()
    built = model(made.tokenizer, seed)
    built.save_pretrained(folder)
    made.save_pretrained(folder)
    return built, made


def old_names(tensors):
    """The names that transformers 4.45 gave: model.layers.*, model.embed_tokens, visual.*, lm_head."""
    renamed = {}
    for name, tensor in tensors.items():
        name = name.replace("model.language_model.", "model.", 1).replace("model.visual.", "visual.", 1)
        renamed[name] = tensor.clone()
    return renamed


@torch.no_grad()
def published_states(built, batch):
    """Last hidden states [B, L, width] of a padded batch as the published forward takes them.

    It embeds text and picture and hands the embeddings alone to the language model, which then counts positions.
    """
    embedded = built.get_input_embeddings()(batch["input_ids"])
    for kind, name in (("image", "pixel_values"), ("video", "pixel_values_videos")):
        if name in batch:
            seen = built.model.visual(batch[name], grid_thw=batch[f"{kind}_grid_thw"]).pooler_output
            there = batch["input_ids"] == getattr(built.config, f"{kind}_token_id")
            embedded = embedded.masked_scatter(there[..., None], seen)
    return built.model.language_model(inputs_embeds=embedded, attention_mask=batch["attention_mask"]).last_hidden_state


def chats(made, kind, texts):
    """The conversations as text, for the processor to fill the pictures in."""
    said = [[{"role": "user", "content": [{"type": kind}, {"type": "text", "text": text}]}] for text in texts]
    return [made.apply_chat_template(one, tokenize=False, add_generation_prompt=True) for one in said]
