"""A tiny checkpoint of HPSv3 in the public names, and the model that it stands for."""

from typing import Any

import numpy as np
import torch
from qwen2vl_support import WIDTH, chats, model, old_names, published_states, save
from safetensors.torch import save_file

from reward_models.parts.judge.instructions import HPSV3

PIXELS = 16 * 24
SIZES: dict[str, Any] = {"min_pixels": PIXELS, "max_pixels": PIXELS, "dtype": "float32"}


class Checkpoint:
    """The base folder, the file of weights, and what they were made of."""

    def __init__(self, folder):
        self.base, self.file = folder / "base", folder / "HPSv3.safetensors"
        self.model, self.processor = save(self.base, seed=1)
        self.model = model(self.processor.tokenizer, seed=2)  # the file holds other weights than the base
        self.processor.tokenizer.add_special_tokens({"additional_special_tokens": ["<|Reward|>"]})
        draw = torch.Generator().manual_seed(3)
        sizes = {"0": (1024, WIDTH), "3": (16, 1024), "5": (2, 16)}
        self.head = {}
        for place, (rows, columns) in sizes.items():
            self.head[f"rm_head.{place}.weight"] = torch.randn(rows, columns, generator=draw) / columns**0.5
            self.head[f"rm_head.{place}.bias"] = torch.randn(rows, generator=draw) / 4
        # the published model was cut to its tokenizer
        self.model.resize_token_embeddings(len(self.processor.tokenizer), mean_resizing=False)
        self.tensors = old_names(self.model.state_dict()) | self.head
        save_file(self.tensors, self.file)

    def states(self, pictures, captions):
        """Last hidden states at the reward token, [B, width], of a right-padded batch of Pillow pictures."""
        texts = [HPSV3.format(text_prompt=caption) for caption in captions]
        batch = self.processor(
            text=chats(self.processor, "image", texts),
            images=pictures,
            padding=True,
            padding_side="right",
            return_tensors="pt",
        )
        token = self.processor.tokenizer.convert_tokens_to_ids("<|Reward|>")
        return published_states(self.model, batch)[batch["input_ids"] == token]

    def scores(self, pictures, captions):
        """Means of the preference, in numpy from the hidden states on."""
        x = self.states(pictures, captions).numpy()
        for place in "035":
            x = x @ self.head[f"rm_head.{place}.weight"].numpy().T + self.head[f"rm_head.{place}.bias"].numpy()
            x = np.maximum(x, 0) if place != "5" else x
        return torch.from_numpy(x[:, 0])
