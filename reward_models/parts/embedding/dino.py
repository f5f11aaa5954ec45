"""DINO, DINOv2 and DINOv3 as transformers keeps them: the embedding of a picture is the class token's last state."""

from collections.abc import Sequence

import torch
from PIL import Image
from torch import Tensor, nn
from torch.nn import functional as F

from reward_models.parts import checkpoints
from reward_models.parts.embedding.transformers_tower import sizes

# architectures whose first output token is the class token
KINDS = ("vit", "dinov2", "dinov2_with_registers", "dinov3_vit")


class Dino(nn.Module):
    """A vision transformer with a class token, on the CPU, float32. Pictures are resized as the checkpoint says.

    name: a folder or a model of the hub. Raises ValueError, in one line, for anything else.
    """

    def __init__(self, name: str, what: str):
        from transformers import AutoConfig, AutoImageProcessor, AutoModel

        super().__init__()
        config = checkpoints.load_pretrained(AutoConfig.from_pretrained, name, what)
        if config.model_type not in KINDS:
            raise ValueError(f"{what}: {name!r} is a {config.model_type}; accepted are {', '.join(KINDS)}")
        read = AutoModel.from_pretrained
        loaded = checkpoints.load_pretrained(read, name, what, dtype=torch.float32, output_loading_info=True)
        self.model, info = loaded
        # DINO's file has no pooler, and the class token's state is taken before it
        if missing := sorted(key for key in info["missing_keys"] if not key.startswith("pooler.")):
            raise ValueError(f"{what}: {name!r} lacks {len(missing)} tensors ({missing[0]}); download it anew")
        processor = checkpoints.load_pretrained(AutoImageProcessor.from_pretrained, name, what)
        self.preprocess = sizes(processor, name)

    def image(self, images: Tensor) -> Tensor:
        """Embeddings [B, D] of length 1 of images float [B, 3, H, W] in [0, 1], with gradient to them."""
        return self._embed(self.preprocess.tensors(images.to(self.model.device)))

    def image_pil(self, pictures: Sequence[Image.Image]) -> Tensor:
        """Embeddings [B, D] of length 1 of pictures of any sizes, preprocessed by Pillow as published."""
        return self._embed(self.preprocess.pictures(pictures).to(self.model.device))

    def _embed(self, pixels: Tensor) -> Tensor:
        return F.normalize(self.model(pixel_values=pixels).last_hidden_state[:, 0], dim=-1)
