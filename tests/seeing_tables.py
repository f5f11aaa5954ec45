"""Tables for `seeing_families`: sizes by the names of keys, and what single types need beside them."""

from typing import Any

WIDTH, HEADS, LAYERS, VOCABULARY = 64, 4, 2, 600

# towers that see, or hear, otherwise where pictures, or sounds, are joined; BLIP's positions count what a row is padded
# with
TORCHAUDIO = ("fun_asr_nano", "granite_speech", "granite_speech_plus")  # whose processors need that package
ALONE = ("emu3", "minicpmv4_6", "minicpmv4_7", "minicpm_ocr", "blip", "phi4_multimodal", *TORCHAUDIO)
DOUBLE = ("phi4_multimodal",)  # shown in float64: in float32 rounding alone is 1.4e-5
WHOLE = ("nemotron_h_omni", "nemo_speechlm")  # with a least time step where they read at once, and none in a step
VIDEOS = ("instructblipvideo",)  # whose processor takes videos where others take pictures
MISSING: dict[str, str] = {}  # why a type could not be made here
PREFIXED = ("fuyu",)  # whose tokenizer puts a token of its own before each text

# by the name of a key, in any part of a config
SIZES: dict[str, Any] = {
    "hidden_size|d_model|embed_dim|hidden_dim|model_dim|output_dim|n_embd|width|word_embed_proj_dim": WIDTH,
    ".*_hidden_size|projector_\\w+_dim|vision_output_dim|projection_dim": WIDTH,
    "intermediate_size|ffn_dim|encoder_ffn_dim|decoder_ffn_dim|mlp_dim|n_inner|shared_expert_intermediate_size": 2
    * WIDTH,
    "moe_intermediate_size": WIDTH,
    "num_hidden_layers|depth|num_layers|encoder_layers|decoder_layers|n_layers|n_layer|num_encoder_layers": LAYERS,
    "num_attention_heads|num_heads|(en|de)coder_attention_heads|n_heads|n_head|attention_heads": HEADS,
    "num_key_value_heads|num_kv_heads": 2,
    "head_dim|attention_head_dim|global_head_dim": WIDTH // HEADS,
    "num_experts|num_local_experts|n_routed_experts|moe_num_experts": 4,
    "num_experts_per_tok|moe_k|top_k_experts|moe_topk": 2,
    "n_group|topk_group": 1,
    "nemo_conv_channels|ext_pw_out_channel|depthwise_separable_out_channel": WIDTH,
    "vocab_size|unpadded_vocab_size": VOCABULARY,
    "qk_rope_head_dim|qk_nope_head_dim": 8,
    "v_head_dim": 16,
    "q_lora_rank|kv_lora_rank": 32,
}

PROCESSORS = {
    "fast_vlm": "LlavaProcessor",
    "glm_ocr": "Glm46VProcessor",
    "glmga": "Glm46VProcessor",
    "mistral4": "PixtralProcessor",
    "qwen2_5_omni_thinker": "Qwen2_5OmniProcessor",
    "qwen3_omni_moe_thinker": "Qwen3OmniMoeProcessor",
    "kosmos-2": "Kosmos2Processor",
    "kosmos-2.5": "Kosmos2_5Processor",
    "cosmos3_omni": "Qwen3VLProcessor",
    "vision-encoder-decoder": "LlavaProcessor",
}
FROM_CONFIG = ("patch_size", "spatial_merge_size", "image_seq_length")
CLS = {"num_additional_image_tokens": 1, "vision_feature_select_strategy": "default"}
PART_OPTIONS: dict[str, dict[str, Any]] = {  # of an image processor
    "deepseek_vl_hybrid": {"high_res_size": {"height": 256, "width": 256}},
    "deepseek_ocr2": {"size": {"height": 768, "width": 768}, "tile_size": 768},
    "unlimited_ocr": {"size": {"height": 256, "width": 256}, "tile_size": 128},
    "perception_lm": {"tile_size": 56},
    "fast_vlm": {"size": {"shortest_edge": 256}, "crop_size": {"height": 256, "width": 256}},
    "granite4_vision": {"image_grid_pinpoints": [[128, 256], [256, 128], [256, 256]]},
    "dots3_note": {"temporal_patch_size": 1},
    "step3p7": {"size": {"height": 56, "width": 56}, "patch_size": 56},
    "mllama": {"size": {"height": 56, "width": 56}},
    "chameleon": {"size": {"shortest_edge": 64}, "crop_size": {"height": 64, "width": 64}},
    "emu3": {"min_pixels": 32 * 32, "max_pixels": 64 * 64},
    "apertus1p5": {"spatial_factor": 8, "min_pixels": 32 * 32, "max_pixels": 64 * 64},
}
OTHER_PARTS = {("nemotron_h_omni", "feature_extractor"): "ParakeetFeatureExtractor"}
# tokens whose names a processor does not say
TOKENS: dict[str, dict[str, str]] = {
    "kosmos-2.5": {"image_token": "<s>", "boi_token": "<image>", "eoi_token": "</image>"},
    "idefics": {"image_token": "<image>"},
    "pp_chart2table": {"image_token": "<imgpad>"},
}
FURTHER = {
    "pp_chart2table": ["<img>", "<imgpad>", "</img>"],
    "step3p7": ["<im_start>", "<im_end>", "<patch_start>", "<patch_end>", "<patch_newline>"],
}
PROCESSOR_OPTIONS: dict[str, dict[str, Any]] = {
    "deepseek_vl_hybrid": {"num_image_tokens": 196},
    "perception_lm": {"patch_size": 14, "pooling_ratio": 1},
    "chameleon": {"image_seq_length": 64},
    "granite4_vision": {"num_additional_image_tokens": 0, "vision_feature_select_strategy": "full"},
    "kosmos-2": {"num_patch_index_tokens": 16},
    "kosmos-2.5": {"num_image_tokens": 32},
    "llava": CLS,
    "vipllava": CLS,
    "llava_next": CLS,
    "llava_next_video": CLS,
    "video_llava": CLS,
    "fast_vlm": {"patch_size": 64, "num_additional_image_tokens": 0, "vision_feature_select_strategy": "full"},
    "deepseek_vl": {"num_image_tokens": 196},
    "gemma3": {"image_seq_length": 16},
    "shieldgemma2": {"image_seq_length": 16},
    "t5gemma2": {"image_seq_length": 16},
    "idefics3": {"image_seq_len": 16},
    "aya_vision": {"img_size": 56, "patch_size": 14, "downsample_factor": 2},
    "internvl": {"image_seq_length": 4},
    "smolvlm": {"image_seq_len": 16},
    "llava_onevision": {"num_image_tokens": 729, "vision_feature_select_strategy": "full"},
}
HEADS_ALIKE = {"text_config": {"num_key_value_heads": HEADS}}
ROPE = {"rope_type": "default", "rope_theta": 1e4}
MLA = {"head_dim": 16, "qk_nope_head_dim": 8, "qk_rope_head_dim": 8, "v_head_dim": 16, "num_key_value_heads": HEADS}
VIT = {"embed_dim": WIDTH, "depth": 2, "num_heads": 4, "img_size": [56, 56], "ref_feat_shape": [4, 4]}
SAM = {"global_attn_indexes": [1], "image_size": 256, "output_channels": 32, "downsample_channels": [48, 64]}
EXPERTS = {"num_experts_per_tok": 2, "n_group": 1, "topk_group": 1, "mlp_layer_types": ["dense", "sparse"]}
VQ = {"base_channels": 32, "channel_multiplier": [1, 1, 2, 2], "num_res_blocks": 1}
FRAMED = {"vision_start_token_id": 7, "vision_end_token_id": 8}
NEMOTRON = {
    "mamba_num_heads": 8,
    "mamba_head_dim": 16,
    "n_groups": 2,
    "ssm_state_size": 16,
    "layers_block_type": ["linear_attention", "moe", "full_attention", "mlp"],
}
OWN = {  # of the config, deep
    "mistral4": MLA,
    "apertus1p5": {
        "vision_config": {**VQ, "codebook_size": 64, "latent_channels": 32, "embed_dim": 32, "attn_resolutions": [16]},
        "audio_config": {"codebook_dim": WIDTH, "codebook_size": 64, "num_filters": 4},
        "image_token_offset": 400,
        "audio_token_offset": 464,
    },
    "chameleon": {"vq_config": {**VQ, "num_embeddings": 32, "resolution": 64, "latent_channels": 32, "embed_dim": 32}},
    "emu3": {"vq_config": {**VQ, "codebook_size": 32, "hidden_size": 64, "attn_resolutions": [3]}},
    "cohere_compass": {
        "text_config": {
            "layer_types": ["sliding_attention", "full_attention"],
            "rope_parameters": {
                "sliding_attention": ROPE | {"mrope_section": [3, 3, 2]},
                "full_attention": ROPE | {"mrope_section": [3, 3, 2]},
            },
        }
    },
    "dots3_note": {
        "text_config": MLA | {"per_layer_config": {"00": {"num_attention_heads": 2, "num_key_value_heads": 2}}},
        "vision_config": {"adapter_in_dim": WIDTH, "adapter_out_dim": WIDTH, "per_layer_config": None},
        "audio_config": {"adapter_input_size": WIDTH, "adapter_out_dim": WIDTH},
    },
    "perception_lm": {
        "vision_config": {
            "architecture": "vit_pe_core_large_patch14_336",
            "model_args": VIT | {"global_pool": "", "init_values": 0.1, "use_post_transformer_norm": False},
        }
    },
    "fast_vlm": {"vision_config": {"hidden_size": 3072}},
    "deepseek_vl_hybrid": {"high_res_vision_config": {"global_attn_indexes": [0, 1], "image_size": 256}},
    "qwen4_exp": {
        "text_config": {
            "indexer_n_heads": 4,
            "indexer_kv_heads": 1,
            "indexer_head_dim": 16,
            "indexer_budget": 512,
            "indexer_compress_ratio": 4,
        }
    },
    "mllama": {
        "vision_config": {
            "intermediate_layers_indices": [0, 1],
            "vision_output_dim": 3 * WIDTH,
            "image_size": 56,
            "num_global_layers": 1,
        },
        "text_config": {"cross_attention_layers": [1]},
    },
    "deepseek_ocr2": {"vision_config": {"sam_config": SAM | {"image_size": 768}}, "text_config": EXPERTS},
    "unlimited_ocr": {
        "vision_config": {"sam_config": SAM, "encoder_config": {"image_size": 64, "patch_size": 16}},
        "text_config": EXPERTS,
    },
    "granite4_vision": {
        "downsample_rate": "2/4",
        "deepstack_layer_map": [[0, 0], [1, 1]],
        "spatial_target_layers": [0, 1, 0, 1],
        "image_grid_pinpoints": [[128, 256], [256, 128], [256, 256]],
        "vision_config": {"image_size": 128, "patch_size": 16},
    },
    "diffusion_gemma": {
        "text_config": {"num_experts": 4, "top_k_experts": 2, "moe_intermediate_size": WIDTH},
    },
    "nemotron_h_omni": {"text_config": NEMOTRON},
    "molmo2": {"adapter_config": {"vision_feature_layer": [1, 0]}, "text_config": {"rope_scaling_layers": [0]}},
    "step3p7": {"vision_config": {"image_size": 56}, "text_config": {"sliding_window": 512}},
    "nemo_speechlm": {
        "text_config": NEMOTRON,
        "audio_config": {
            "asr_config": {"num_key_value_heads": HEADS},
            "diarization_config": {"audio_config": {"num_key_value_heads": HEADS}},
        },
        "word_timestamp_config": {"num_key_value_heads": HEADS, "blank_token_id": 0},
    },
    "kyutai_speech_to_text": {"codec_config": {"upsample_groups": WIDTH}},
    "kosmos-2.5": {"vision_config": {"patch_embed_hidden_size": 768}, "latent_query_num": 32},
}
HEARD = ("acoustic", "semantic")
OVERRIDES: dict[str, dict[str, Any]] = OWN | {
    "gemma3": {"mm_tokens_per_image": 16, "vision_config": {"image_size": 128, "patch_size": 16}},
    "shieldgemma2": {"mm_tokens_per_image": 16, "vision_config": {"image_size": 128, "patch_size": 16}},
    "t5gemma2": {"encoder": {"mm_tokens_per_image": 16, "vision_config": {"image_size": 128, "patch_size": 16}}},
    "llama4": {"vision_config": {"intermediate_size": 256, "image_size": 56, "patch_size": 14}},
    "kimi_k25": HEADS_ALIKE,
    "muse_glimmer": {"out_hidden_size": 256, "vision_config": {"out_hidden_size": 256}},
    "muse_spark": {"out_hidden_size": 256, "vision_config": {"out_hidden_size": 256}},
    "ernie4_5_vl_moe": {"text_config": {"rope_parameters": {"mrope_section": [3, 3, 2]}}},
    "gemma3n": {"text_config": {"num_kv_shared_layers": 0}, "vision_config": {"hidden_size": 2048}},
    "aria": {"projector_patch_to_query_dict": {"900": 256}, "vision_config": {"image_size": 980}},
    "hunyuan_vl": {"text_config": {"head_dim": WIDTH // HEADS}},
    "aya_vision": {"downsample_factor": 2, "vision_config": {"image_size": 56, "patch_size": 14}},
    "internvl": {"image_seq_length": 4, "vision_config": {"image_size": [56, 56], "patch_size": [14, 14]}},
    "vipllava": {"vision_feature_layers": [-1, -2]},
    "idefics3": {"scale_factor": 2, "vision_config": {"image_size": 56, "patch_size": 7}},
    "smolvlm": {"scale_factor": 2, "vision_config": {"image_size": 56, "patch_size": 7}},
    "qwen2_5_omni_thinker": FRAMED,
    "qwen3_omni_moe_thinker": FRAMED,
    "qwen2_5_omni": {"thinker_config": FRAMED},
    "qwen3_omni_moe": {"thinker_config": FRAMED},
    "vibevoice_asr": {f"{kind}_tokenizer_encoder_config": {"num_filters": 2, "depths": [1] * 7} for kind in HEARD},
    "fun_asr_nano": {"adaptor_config": {"intermediate_size": WIDTH // 4}},
    "gemma4": {"vision_config": {}},
    "gemma4_unified": {"vision_config": {}},
    "mistral_large4": HEADS_ALIKE,
    "glm5_next": HEADS_ALIKE,
}
