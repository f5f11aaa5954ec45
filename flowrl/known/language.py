"""Published language models, and those that read pictures: Qwen2, Qwen2.5, Qwen3, Qwen2-VL and Qwen2.5-VL.

Facts of their config.json files. What is the default of the class in transformers is left out.
"""

from flowrl.known.parts import Config
from flowrl.untyped import JSON

_TOWER = {"depth": 32, "num_heads": 16, "intermediate_size": 3420, "hidden_size": 1280}


def _sizes(widths: tuple[int, int], layers: int, heads: tuple[int, int], vocabulary: int) -> Config:
    """widths: hidden and intermediate; heads: of queries, and of keys."""
    return {
        "hidden_size": widths[0],
        "intermediate_size": widths[1],
        "num_hidden_layers": layers,
        "num_attention_heads": heads[0],
        "num_key_value_heads": heads[1],
        "vocab_size": vocabulary,
    }


def _seeing(kind: str, widths: tuple[int, int], layers: int, heads: tuple[int, int], vocabulary: int) -> Config:
    """A config of Qwen2-VL or Qwen2.5-VL."""
    tied, newer = vocabulary == 151936, kind == "qwen2_5_vl"
    vision = _TOWER | {"out_hidden_size": widths[0]} if newer else {"depth": 32, "hidden_size": widths[0]}
    text = _sizes(widths, layers, heads, vocabulary)
    text |= {"tie_word_embeddings": tied, "max_position_embeddings": 128000 if newer else 32768}
    text |= {"rope_theta": 1e6, "rope_scaling": {"rope_type": "default", "mrope_section": [16, 24, 24]}}
    name = "Qwen2_5_VLForConditionalGeneration" if newer else "Qwen2VLForConditionalGeneration"
    tokens = {"image_token_id": 151655, "video_token_id": 151656, "vision_start_token_id": 151652}
    return {"model_type": kind, "tie_word_embeddings": tied, "text_config": text, "vision_config": vision} | {
        "architectures": [name],
        "vision_end_token_id": 151653,
        **tokens,
    }


def _qwen3(widths: tuple[int, int], layers: int, heads: tuple[int, int], *, tied: bool) -> Config:
    more: dict[str, JSON] = {"head_dim": 128, "tie_word_embeddings": tied, "rope_theta": 1e6, "rms_norm_eps": 1e-6}
    names: dict[str, JSON] = {"model_type": "qwen3", "architectures": ["Qwen3ForCausalLM"]}
    return names | _sizes(widths, layers, heads, 151936) | more | {"max_position_embeddings": 40960}


def _qwen2(widths: tuple[int, int], layers: int, heads: tuple[int, int], *, tied: bool, vocabulary: int) -> Config:
    names: dict[str, JSON] = {"model_type": "qwen2", "architectures": ["Qwen2ForCausalLM"], "rope_theta": 1e6}
    more: dict[str, JSON] = {"tie_word_embeddings": tied, "rms_norm_eps": 1e-6, "max_position_embeddings": 32768}
    return names | _sizes(widths, layers, heads, vocabulary) | more


QWEN25_VL_7B = _seeing("qwen2_5_vl", (3584, 18944), 28, (28, 4), 152064)
QWEN3_4B = _qwen3((2560, 9728), 36, (32, 8), tied=True)
QWEN3_8B = _qwen3((4096, 12288), 36, (32, 8), tied=False)

# hub id -> config
LANGUAGE: dict[str, Config] = {
    "Qwen/Qwen2-VL-2B-Instruct": _seeing("qwen2_vl", (1536, 8960), 28, (12, 2), 151936),
    "Qwen/Qwen2-VL-7B-Instruct": _seeing("qwen2_vl", (3584, 18944), 28, (28, 4), 152064),
    "Qwen/Qwen2.5-VL-3B-Instruct": _seeing("qwen2_5_vl", (2048, 11008), 36, (16, 2), 151936),
    "Qwen/Qwen2.5-VL-7B-Instruct": QWEN25_VL_7B,
    "Qwen/Qwen2.5-0.5B-Instruct": _qwen2((896, 4864), 24, (14, 2), tied=True, vocabulary=151936),
    "Qwen/Qwen2.5-1.5B-Instruct": _qwen2((1536, 8960), 28, (12, 2), tied=True, vocabulary=151936),
    "Qwen/Qwen2.5-3B-Instruct": _qwen2((2048, 11008), 36, (16, 2), tied=True, vocabulary=151936),
    "Qwen/Qwen2.5-7B-Instruct": _qwen2((3584, 18944), 28, (28, 4), tied=False, vocabulary=152064),
    "Qwen/Qwen2.5-14B-Instruct": _qwen2((5120, 13824), 48, (40, 8), tied=False, vocabulary=152064),
    "Qwen/Qwen2.5-32B-Instruct": _qwen2((5120, 27648), 64, (40, 8), tied=False, vocabulary=152064),
    "Qwen/Qwen3-0.6B": _qwen3((1024, 3072), 28, (16, 8), tied=True),
    "Qwen/Qwen3-1.7B": _qwen3((2048, 6144), 28, (16, 8), tied=True),
    "Qwen/Qwen3-4B": QWEN3_4B,
    "Qwen/Qwen3-8B": QWEN3_8B,
    "Qwen/Qwen3-14B": _qwen3((5120, 17408), 40, (40, 8), tied=False),
    "Qwen/Qwen3-32B": _qwen3((5120, 25600), 64, (64, 8), tied=False),
}
