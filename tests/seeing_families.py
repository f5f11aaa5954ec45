"""Tiny random models of the types that transformers lists for pictures or sounds and text, by their config classes.

Nothing here is about one family but the table OVERRIDES: sizes are made small by the names of their keys, ids of
placeholders are those of a tokenizer that knows every token which the processors name.
"""

import inspect
import re
import string
from pathlib import Path
from typing import Any

import torch
import transformers as tf
from tokenizers import AddedToken, Regex, Tokenizer, decoders, models, normalizers, pre_tokenizers
from transformers.models.auto import (
    feature_extraction_auto,
    image_processing_auto,
    modeling_auto,
    processing_auto,
    video_processing_auto,
)
from transformers.models.auto.configuration_auto import CONFIG_MAPPING

import vision_support
from flowrl.policies.language.drawing.forwards import read_whole
from flowrl.policies.language.policy import LanguagePolicy
from flowrl.policies.loading import reading_part
from seeing_tables import (
    FROM_CONFIG,
    FURTHER,
    HEADS,
    LAYERS,
    OTHER_PARTS,
    OVERRIDES,
    PART_OPTIONS,
    PREFIXED,
    PROCESSOR_OPTIONS,
    PROCESSORS,
    SIZES,
    TOKENS,
    VOCABULARY,
    WIDTH,
)

SEEING: dict[str, str] = dict(modeling_auto.MODEL_FOR_IMAGE_TEXT_TO_TEXT_MAPPING_NAMES)
HEARING = {k: v for k, v in modeling_auto.MODEL_FOR_MULTIMODAL_LM_MAPPING_NAMES.items() if k not in SEEING}


def shrunk(values: dict[str, Any]) -> dict[str, Any]:
    """A config's values with small sizes; lists with an entry for each layer are cut to those that are left."""
    made = {}
    layers = [v for k, v in values.items() if re.fullmatch("(num_)?(hidden_)?(n_)?layers?|depth", k) and _whole(v)]
    for key, value in values.items():
        small = next((size for names, size in SIZES.items() if re.fullmatch(names, str(key))), None)
        if key == "head_dim" and "qk_rope_head_dim" in values:
            made[key] = 8
        elif key == "per_layer_config":
            made[key] = None
        elif isinstance(value, dict) and not any(_whole(k) for k in value):
            made[key] = shrunk(value)
            if key in ("rope_parameters", "rope_scaling") and "qk_rope_head_dim" in values:
                made[key]["mrope_section"] = [1, 1, 2]
            elif key in ("rope_parameters", "rope_scaling") and "rope_type" in value:
                half = int(WIDTH // HEADS * (value.get("partial_rotary_factor") or 1)) // 2
                made[key]["mrope_section"] = [
                    half // 4,
                    half - half // 4 - (half - half // 4) // 2,
                    (half - half // 4) // 2,
                ]
        elif key in ("layer_types", "mlp_layer_types") and value is not None:
            kinds = list(dict.fromkeys(value))
            made[key] = (kinds * LAYERS)[:LAYERS] if len(kinds) > 1 else value[:LAYERS]
        elif isinstance(value, list) and len(value) in layers and len(value) > LAYERS:
            made[key] = [small if small is not None and _whole(v) else v for v in value[:LAYERS]]
        elif key == "max_position_embeddings" and _whole(value):
            made[key] = max(value, 8192)
        elif small is not None and _whole(value):
            made[key] = min(small, value) if "vocab_size" not in key else small
        else:
            made[key] = value
    return made


def _whole(value: Any) -> bool:
    return isinstance(value, int) and not isinstance(value, bool)


def changed(values: dict[str, Any], changes: dict[str, Any]) -> dict[str, Any]:
    """The values with changes, those of parts within parts."""
    made = dict(values)
    for key, value in changes.items():
        made[key] = changed(made.get(key) or {}, value) if isinstance(value, dict) else value
    return made


def config_of(name: str) -> Any:
    """The tiny config of a type; what it fills in of itself is made small as well."""
    kind, own = CONFIG_MAPPING[name], OVERRIDES.get(name, {})
    if name == "vision-encoder-decoder":  # of two configs, which have no default
        small = {"hidden_size": WIDTH, "num_hidden_layers": LAYERS, "num_attention_heads": HEADS}
        return kind.from_encoder_decoder_configs(tf.ViTConfig(**small), tf.BertConfig(**small))
    first = kind.from_dict(changed(shrunk(kind().to_dict()), own))
    return kind.from_dict(changed(shrunk(first.to_dict()), own))


def code_of(kind: type) -> str:
    """The source of the module of a processor."""
    return Path(inspect.getfile(kind)).read_text()


def tokenizer_of(name: str, kind: type) -> Any:
    """A token a character, those that the code of a processor names, and those that it asks its tokenizer for."""
    code = code_of(kind)
    named = re.findall(r"""["'](<[^<>"'\s{}%]{1,40}>|\[[A-Z_]{2,20}\]|\|[A-Z_]{2,20}\|)["']""", code)
    named += re.findall(r"""(?i)_token\b[^=\n]*= *["']([^"'\n ]{3,30})["']""", code)
    parameters = inspect.signature(kind.__init__).parameters
    defaults = {n: p.default for n, p in parameters.items() if isinstance(p.default, str)}
    defaults["audio_token"] = "<|AUDIO|>"
    defaults |= dict(re.findall(r"""getattr\(tokenizer, *["'](\w+)["'], *["']([^"']+)["']\)""", code)) | TOKENS.get(
        name, {}
    )
    asked = dict.fromkeys([*re.findall(r"""tokenizer,? ?[."]+(\w+_token)\b""", code), *TOKENS.get(name, ())])
    asked = {
        name: defaults.get(name, f"<{name}>")
        for name in asked
        if name not in ("bos_token", "eos_token", "pad_token", "unk_token") and not name.startswith("add_")
        if f"{name}.content" not in code  # a processor that gives its tokenizer that token
    }
    extra = ["<image>", "<|image_pad|>", "<|video_pad|>", "<|vision_start|>", "<|vision_end|>", "<|AUDIO|>"]
    special = list(
        dict.fromkeys(["<pad>", "<unk>", "<s>", "</s>", *extra, *named, *FURTHER.get(name, ()), *asked.values()])
    )
    vocabulary = {token: i for i, token in enumerate([*special, *string.printable[:95], "\n"])}
    raw = Tokenizer(models.WordLevel(vocabulary, unk_token="<unk>"))
    whole = [token for token in special if name in PREFIXED and token[0] == "|"]  # tokens of its vocabulary alone
    if name in PREFIXED:
        raw.normalizer = normalizers.Prepend("_")
    raw.pre_tokenizer = pre_tokenizers.Split(Regex("|".join([*map(re.escape, whole), r"[\s\S]"])), "isolated")
    raw.decoder = decoders.Fuse()
    raw.add_special_tokens([AddedToken(token, special=True) for token in special if token not in whole])
    made = {"bos_token": "<s>", "eos_token": "</s>", "pad_token": "<pad>", "unk_token": "<unk>"}
    return tf.PreTrainedTokenizerFast(
        tokenizer_object=raw, clean_up_tokenization_spaces=False, extra_special_tokens=asked, **made
    )


def found_in(values: Any, name: str) -> Any:
    """The first value of that name in a config or its parts; None where it has none."""
    if not isinstance(values, dict):
        return None
    if values.get(name) is not None:
        return values[name]
    return next((v for v in (found_in(part, name) for part in values.values()) if v is not None), None)


def processor_of(name: str, config: Any) -> Any:
    """The processor of a type with its default parts over a tiny tokenizer."""
    kind = getattr(tf, PROCESSORS.get(name) or processing_auto.PROCESSOR_MAPPING_NAMES[name])
    values, options = config.to_dict(), {}
    for part, parameter in inspect.signature(kind.__init__).parameters.items():
        if part == "tokenizer" or part.endswith("_tokenizer"):
            options[part] = tokenizer_of(name, kind)
        elif part in PARTS:
            options[part] = part_of(name, part, kind, values)
        elif (parameter.default in (None, inspect.Parameter.empty) or part in FROM_CONFIG) and (
            value := found_in(values, part)
        ) is not None:
            options[part] = value
    options |= PROCESSOR_OPTIONS.get(name, {})
    return kind(**{k: v for k, v in options.items() if v is not None})


PARTS = {
    "image_processor": image_processing_auto.IMAGE_PROCESSOR_MAPPING_NAMES,
    "video_processor": video_processing_auto.VIDEO_PROCESSOR_MAPPING_NAMES,
    "feature_extractor": feature_extraction_auto.FEATURE_EXTRACTOR_MAPPING_NAMES,
    "audio_processor": feature_extraction_auto.FEATURE_EXTRACTOR_MAPPING_NAMES,
}


def part_of(name: str, part: str, kind: type, values: dict[str, Any]) -> Any:
    """A default image or video processor, or feature extractor, of a type, or of another with the same processor."""
    alike = [n for n, other in processing_auto.PROCESSOR_MAPPING_NAMES.items() if other == kind.__name__]
    known = next((found for n in (name, *alike) if (found := PARTS[part].get(n))), OTHER_PARTS.get((name, part)))
    if known is None:
        return None
    if isinstance(known, dict):
        known = known.get("torchvision") or known["pil"]
    kind = getattr(tf, known)
    bins = found_in(values, "num_mel_bins")
    options = {"draw_on_frames": False} if hasattr(kind, "draw_on_frames") else {}
    options |= {"feature_size": bins} if bins and "feature_size" in inspect.signature(kind.__init__).parameters else {}
    options |= PART_OPTIONS.get(name, {}) if part == "image_processor" else {}
    made = kind(**options)
    sizes = [(values.get("vision_config") or {}).get(key) for key in ("image_size", "patch_size")]
    sizes = [size[0] if isinstance(size, list) else size for size in sizes]
    if hasattr(made, "image_seq_length") and all(map(_whole, sizes)):
        made.image_seq_length = (sizes[0] // sizes[1]) ** 2
    vision = values.get("vision_config") or values.get("thinker_config", {}).get("vision_config") or {}
    for own, theirs in (
        ("patch_size", "patch_size"),
        ("merge_size", "spatial_merge_size"),
        ("temporal_patch_size",) * 2,
    ):
        if _whole(getattr(made, own, None)) and _whole(vision.get(theirs)):
            setattr(made, own, vision[theirs])
    for attribute, value in (("max_patches", 1), ("crop_to_patches", False), ("max_num_tiles", 1)):
        if getattr(made, attribute, None) is not None:
            setattr(made, attribute, value)
    side = vision.get("image_size")
    side = side[0] if isinstance(side, list | tuple) else side
    for attribute in ("size", "crop_size") if _whole(side) else ():
        now = getattr(made, attribute, None)
        if now is not None and (now.get("height") or now.get("shortest_edge")) and not now.get("longest_edge"):
            setattr(made, attribute, type(now)(**{k: side for k, v in dict(now).items() if v}))
    if _whole(side) and _whole(getattr(made, "max_image_size", None)):
        made.max_image_size = side
    elif _whole(side) and getattr(made, "max_image_size", None):
        made.max_image_size, made.size = {"longest_edge": side}, {"longest_edge": 2 * side}
    for attribute, value in options.items():
        if _whole(value):  # in place of what was read off the config
            setattr(made, attribute, value)
    return made


def with_tokens(values: dict[str, Any], processor: Any) -> dict[str, Any]:
    """A config's values with the ids of tokens as the processor has them."""
    tokenizer = processor.tokenizer
    made = {}
    if "vocabulary_map" in values:  # of a picture's codes, as the two models that have them write them
        codes = {f"IMGIMG{'ABCDEFGHIJ'[i // 10]}{'ABCDEFGHIJ'[i % 10]}Z": 400 + i for i in range(32)}
        codes |= {f"<|visual token {i:06d}|>": 450 + i for i in range(32)}
        own = {"<image>": tokenizer.convert_tokens_to_ids(processor.image_token), "<|extra_200|>": 500}
        values = values | {"vocabulary_map": codes | own}
    for key, value in values.items():
        known = tokenizer.get_vocab()  # two processors name the token of a picture, and write others in its place
        atom = known.get("<IMG_ATOM>", known.get("<|patch|>"))
        name = re.fullmatch(r"(\w+?)_(?:token_)?(?:id|index)", str(key))
        if key == "vocabulary_map":
            made[key] = value
        elif isinstance(value, dict):
            made[key] = with_tokens(value, processor)
        elif key == "image_patch_id":
            made[key] = tokenizer.convert_tokens_to_ids("<im_patch>")
        elif str(key) in ("bos_token_id", "eos_token_id", "pad_token_id"):
            made[key] = {"b": 2, "e": 3, "p": 0}[key[0]]
        elif name and "token" in str(key) and (_whole(value) or re.fullmatch("(image|video)_token_(id|index)", key)):
            holder = tokenizer if hasattr(tokenizer, f"{name[1]}_token") else processor
            token = getattr(holder, f"{name[1]}_token", None)
            own = getattr(holder, f"{name[1]}_token_id", None)
            if own is None and token is not None:
                own = tokenizer.convert_tokens_to_ids(str(token))
            if key in ("image_token_id", "image_token_index") and atom is not None:
                own = atom
            made[key] = own if isinstance(own, int) else value and min(value, VOCABULARY - 1)
        else:
            made[key] = value
    return made


def fitting(name: str) -> tuple[Any, Any]:
    """(config of the whole, processor) of a type, that fit each other."""
    config = config_of(name)
    processor = processor_of(name, config)
    return type(config).from_dict(with_tokens(config.to_dict(), processor)), processor


def family(name: str) -> tuple[Any, Any]:
    """(random model, processor) of a type, that fit each other; of a model that also speaks, the part that reads."""
    config, processor = fitting(name)
    config = reading_part(config)
    torch.manual_seed(0)
    with torch.no_grad():
        model = getattr(tf, {**HEARING, **SEEING}[config.model_type])(config).float().eval()
        for label, parameter in model.named_parameters():  # so that what is seen arrives at the logits
            if parameter.dim() > 1 or label.endswith("_gate") or "alpha" in label:
                parameter.normal_(0, parameter[0].numel() ** -0.5)
    if model.can_generate():
        model.generation_config.eos_token_id = 3
    return model, processor


BEGIN = "<boi_token>"
MARKS = {"gemma3": BEGIN, "shieldgemma2": BEGIN, "t5gemma2": BEGIN, "qianfan_ocr": "<image>"}
MARKS["pp_chart2table"] = "<img>" + "<imgpad>" * 256 + "</img>"
MARKS["hunyuan_vl"] = "<image_start_token><image_token><image_end_token>"


def policy(name: str, *, whole: bool = False, double: bool = False, **options: Any) -> LanguagePolicy:
    """A type as a policy. whole: each token reads all before it again; double: in float64."""
    model, processor = family(name)
    read_whole(model, whole)
    if double:
        model, options = model.double(), options | {"precision": torch.float64}
    mark = MARKS.get(name)
    if mark:  # what a chat template has to write for a picture, where it is not the processor's `image_token`
        processor.chat_template = vision_support.TEMPLATE.replace("IMAGE", mark)
    return LanguagePolicy(model, processor.tokenizer, processor=processor, **options)
