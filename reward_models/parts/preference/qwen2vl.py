"""Qwen2-VL with a head read at special tokens: what HPSv3 and VideoReward share.

One conversation is read at a time. A thousand tokens fill a GPU anyway, no padding is computed, and no kernel can
depend on the batch: a score is bit for bit the same however the batch is split, in bfloat16 too.

Positions are 0, 1, 2 ... for text and picture alike, not Qwen2-VL's three-dimensional ones: the published models were
trained that way (their forward passes embeddings to the language model, which then counts), and scores drift if a
port lets transformers compute the three-dimensional ones.
"""

import math
from collections.abc import Callable, Mapping, Sequence

import torch
from PIL import Image
from torch import Tensor, nn
from torchvision.transforms import InterpolationMode
from torchvision.transforms import functional as transforms

from flowrl.untyped import Config, Network, Processor
from reward_models.parts import checkpoints

PAD = {"image": "<|image_pad|>", "video": "<|video_pad|>"}
DTYPES = {"bfloat16": torch.bfloat16, "float16": torch.float16, "float32": torch.float32}


class QwenReader(nn.Module):
    """A Qwen2VLModel and a head on its last hidden state at the reward tokens; the head is float32.

    processor: of the base model; the tokens are added to its tokenizer.
    """

    def __init__(self, backbone: Network, head: nn.Module, processor: Processor, tokens: Sequence[str], what: str):
        super().__init__()
        self.backbone: Network = backbone
        self.head, self.tokens = head, tuple(tokens)
        self.processor, self.tokenizer = processor, processor.tokenizer
        rows = backbone.get_input_embeddings().weight.shape[0]
        self.ids = [int(i) for i in self.tokenizer.convert_tokens_to_ids(list(tokens))]
        if max(self.ids) >= rows:
            raise ValueError(
                f"{what}: the tokenizer of the base model numbers {tokens[-1]} as {max(self.ids)}, the checkpoint "
                f"embeds {rows} tokens; give the base model that the checkpoint was trained from"
            )

    def forward(self, kind: str, frames: Tensor, text: str) -> Tensor:
        """The head's output at each reward token, float32 [tokens, outputs].

        kind: "image" or "video". frames: float [T, 3, H, W] in [0, 1], T = 1 for an image, already of a size that
        `fitted_size` gives. text: the user's words after the picture, with each reward token once.
        """
        pixels, grid = self.patches(frames)
        ids = self.token_ids(kind, text, int(grid.prod()) // self._vision.spatial_merge_size**2)
        device = self.backbone.get_input_embeddings().weight.device
        ids = ids.to(device)
        name = "pixel_values" if kind == "image" else "pixel_values_videos"
        hidden = self.backbone(
            input_ids=ids[None],
            position_ids=torch.arange(len(ids), device=device).expand(3, 1, -1),
            use_cache=False,
            **{name: pixels.to(device), f"{kind}_grid_thw": grid.to(device)[None]},
        ).last_hidden_state[0]
        places = [int((ids == token).nonzero().item()) for token in self.ids]
        return self.head(hidden[places].float())

    def token_ids(self, kind: str, text: str, number: int) -> Tensor:
        """Token ids of the conversation, int64 [L], in which the picture takes `number` tokens."""
        said = [{"role": "user", "content": [{"type": kind}, {"type": "text", "text": text}]}]
        shown = self.processor.apply_chat_template(said, tokenize=False, add_generation_prompt=True)
        before, pad, after = shown.partition(PAD[kind])
        ids = self.tokenizer(before + pad * number + after, add_special_tokens=False)["input_ids"]
        return torch.tensor(ids, dtype=torch.int64)

    def plain(self, caption: str) -> str:
        """The caption with a space inside every control token that it spells out, so that it stays text."""
        for token in self.tokenizer.get_added_vocab():
            caption = caption.replace(token, f"{token[:1]} {token[1:]}")
        return caption

    def patches(self, frames: Tensor) -> tuple[Tensor, Tensor]:
        """(patches [number, 3 * temporal * patch * patch], grid int64 [3]: their number in time, height and width)."""
        side, merge, span = self._vision.patch_size, self._vision.spatial_merge_size, self._vision.temporal_patch_size
        shape = self.processor.image_processor
        x = transforms.normalize(frames.float(), list(shape.image_mean), list(shape.image_std))
        x = torch.cat([x, x[-1:].expand(-len(x) % span, -1, -1, -1)])  # the last frame again, to whole spans
        times, rows, columns = len(x) // span, x.shape[2] // side, x.shape[3] // side
        x = x.reshape(times, span, 3, rows // merge, merge, side, columns // merge, merge, side)
        x = x.permute(0, 3, 6, 4, 7, 2, 1, 5, 8)  # time, block, place in the block; channel, frame, pixel
        return x.reshape(times * rows * columns, -1), torch.tensor([times, rows, columns])

    @property
    def factor(self) -> int:
        """Height and width of a picture have to be multiples of this."""
        return int(self._vision.patch_size * self._vision.spatial_merge_size)

    @property
    def _vision(self) -> Config:
        return self.backbone.config.vision_config


def fitted_size(height: int, width: int, factor: int, least: int, most: int) -> tuple[int, int]:
    """(height, width) in multiples of `factor` nearest to the picture's, with least .. most pixels.

    As in the public Qwen2-VL code: rounded, or scaled down and floored, or scaled up and ceiled.
    """
    tall, wide = (max(factor, round(side / factor) * factor) for side in (height, width))
    if tall * wide > most:
        shrink = math.sqrt(height * width / most)
        tall, wide = (max(factor, math.floor(side / shrink / factor) * factor) for side in (height, width))
    elif tall * wide < least:
        grow = math.sqrt(least / (height * width))
        tall, wide = (math.ceil(side * grow / factor) * factor for side in (height, width))
    return tall, wide


def resize_frames(frames: Tensor, size: tuple[int, int]) -> Tensor:
    """Frames float [T, 3, H, W] in [0, 1] at another size, bicubic, with gradient."""
    if tuple(frames.shape[-2:]) == size:
        return frames.float()
    return transforms.resize(frames.float(), list(size), InterpolationMode.BICUBIC, antialias=True).clamp(0, 1)


def resize_by_pillow(image: Image.Image, size: tuple[int, int]) -> Tensor:
    """A picture at another size, resized by Pillow, float [1, 3, H, W] in [0, 1]."""
    return transforms.to_tensor(image.resize((size[1], size[0]), Image.Resampling.BICUBIC))[None]


def dtype_of(name: str, what: str) -> torch.dtype:
    """The torch dtype of this name. Raises ValueError for one that is not accepted."""
    if name not in DTYPES:
        raise ValueError(f"{what}: dtype={name!r}; accepted is {', '.join(DTYPES)}")
    return DTYPES[name]


def processor_of(base: str, tokens: Sequence[str], what: str) -> Processor:
    """The processor of a base model, with the reward tokens added to its tokenizer."""
    from transformers import AutoProcessor

    load: Callable[..., Processor] = AutoProcessor.from_pretrained
    processor = checkpoints.load_pretrained(load, base, f"{what}: base")
    if not hasattr(processor, "image_processor"):  # a folder without preprocessor_config.json gives the tokenizer
        raise ValueError(f"{what}: base {base!r} holds no processor of a Qwen2-VL, but a {type(processor).__name__}")
    processor.tokenizer.add_special_tokens({"additional_special_tokens": list(tokens)})
    return processor


def config_of(base: str, what: str) -> Config:
    """The Qwen2VLConfig of a base model. Raises ValueError if it is another model's."""
    from transformers import AutoConfig, Qwen2VLConfig

    load: Callable[..., Config] = AutoConfig.from_pretrained
    config = checkpoints.load_pretrained(load, base, f"{what}: base")
    if not isinstance(config, Qwen2VLConfig):
        raise ValueError(f"{what}: base {base!r} is a {config.model_type}; accepted is a qwen2_vl")
    return config


_OLD = ((r"^model\.visual\.", "visual."), (r"^model\.(?:language_model\.)?", "language_model."))


def backbone_name(name: str) -> str:
    """Qwen2VLModel's name of a tensor of a Qwen2-VL checkpoint with old (model.layers, visual) or new names."""
    return checkpoints.renamed(name, _OLD)


def backbone(config: Config, tensors: Mapping[str, Tensor], dtype: torch.dtype, what: str) -> Network:
    """Qwen2VLModel of the config with these tensors, under the names of `backbone_name`; nothing is drawn at random.

    Its vocabulary is that of the tensors. Raises ValueError, in one line, unless each has the same shape in the config.
    """
    from transformers import Qwen2VLModel

    if (words := tensors.get("language_model.embed_tokens.weight")) is not None:
        config.text_config.vocab_size = words.shape[0]
    with torch.device("meta"):
        wanted = Qwen2VLModel(config).state_dict()
    fit = checkpoints.matching_tensors(wanted, tensors, what)
    return Qwen2VLModel.from_pretrained(None, config=config, state_dict=fit, dtype=dtype)
