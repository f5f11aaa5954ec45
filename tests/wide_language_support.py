"""A folder with the config of a language model whose vocabulary is most of it, as of small published ones, and prompts.

Named `random:FOLDER` it has random weights; with the arithmetic tokenizer nearly all of its tokens mean nothing.
"""

import json
from pathlib import Path

from transformers import Qwen2Config

from flowrl.worlds.arithmetic.model import make_tokenizer

VOCABULARY = 20_000


def folder(path: Path, **more: int) -> Path:
    """The folder, with the tokenizer and no weights."""
    told = make_tokenizer()
    sizes = {"hidden_size": 256, "intermediate_size": 768, "num_hidden_layers": 6} | more
    config = Qwen2Config(
        vocab_size=VOCABULARY,
        num_attention_heads=4,
        num_key_value_heads=2,
        max_position_embeddings=512,
        tie_word_embeddings=True,
        bos_token_id=told.bos_token_id,
        eos_token_id=told.eos_token_id,
        pad_token_id=told.pad_token_id,
        architectures=["Qwen2ForCausalLM"],
        **sizes,
    )
    config.save_pretrained(path)
    told.save_pretrained(path)
    return path


def prompts(path: Path, number: int = 4) -> Path:
    """A file of prompts of one word each, of as many tokens as a plan takes it to have."""
    lines = [json.dumps({"id": str(i), "prompt": f"{i}" + "+7" * 17, "answer": "0"}) for i in range(number)]
    path.write_text("\n".join(lines) + "\n", encoding="utf-8")
    return path
