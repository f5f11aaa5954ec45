"""A reward of noisy latents: a small network on what the denoiser itself makes of them, at any noise level.

Its inputs are taken while the pipeline calls its denoiser: the outputs of some of its blocks, each pooled over tokens
(mean, spread and maximum of each channel). Prompt, guidance and packing are in them by construction, nothing of the
pipeline is known here, and no further forward is needed. Source of the idea: Flow-NRG (VideoAlign, arXiv:2501.13918),
whose reward of noisy latents stands on the first layers of the video model.
"""

import json
from collections.abc import Mapping
from pathlib import Path

import torch
from safetensors.torch import load_file, save_file
from torch import Tensor, nn
from torch.utils._pytree import tree_leaves

from flowrl.policies.errors import PolicyError
from flowrl.untyped import JSON

WEIGHTS, CARD = "latent_reward.safetensors", "card.json"


class LatentReward(nn.Module):
    """The reward of features [R, width] of latents at a noise level: a network of two layers, float32 [R].

    mean, std [width]: of the features it was fitted to, by which they are standardised.
    """

    mean: Tensor
    std: Tensor

    def __init__(self, width: int, hidden: int = 128):
        super().__init__()
        self.width = width
        self.register_buffer("mean", torch.zeros(width))
        self.register_buffer("std", torch.ones(width))
        self.layers = nn.Sequential(
            nn.Dropout(0.1), nn.Linear(width + 2, hidden), nn.SiLU(), nn.Dropout(0.1), nn.Linear(hidden, 1)
        )

    def forward(self, features: Tensor, level: Tensor) -> Tensor:
        """The reward [R] of features [R, width] at levels [R]."""
        known = (features.float() - self.mean) / self.std
        at = torch.stack([level, level.square()], 1).to(known)
        return self.layers(torch.cat([known, at], 1))[:, 0]


def blocks_of(module: nn.Module) -> list[str]:
    """Names of a denoiser's blocks whose outputs are read: of all entries of its lists, one in the middle and the last.

    Raises PolicyError where it has no list of blocks.
    """
    lists = [name for name, part in module.named_modules() if isinstance(part, nn.ModuleList) and len(part)]
    outer = [name for name in lists if not any(name != other and name.startswith(f"{other}.") for other in lists)]
    blocks = [f"{name}.{i}" for name in outer for i in range(len(module.get_submodule(name)))]  # pyright: ignore
    if not blocks:
        raise PolicyError(f"{type(module).__name__} has no list of blocks whose outputs a latent reward could read")
    return list(dict.fromkeys([blocks[len(blocks) // 2], blocks[-1]]))


class Features:
    """What blocks of the denoisers put out in the calls since the last `take`, pooled; with gradient if it is enabled.

    modules: denoisers by name. blocks: by denoiser, see `blocks_of`; None: those of each.
    """

    def __init__(self, modules: Mapping[str, nn.Module], blocks: Mapping[str, list[str]] | None = None):
        self.blocks = {name: blocks_of(module) for name, module in modules.items()} if blocks is None else blocks
        self._seen: list[Tensor] = []
        self._hooks: list[torch.utils.hooks.RemovableHandle] = []
        for name, of in self.blocks.items():
            for block in of:
                try:
                    part = modules[name].get_submodule(block)
                except (KeyError, AttributeError):
                    raise PolicyError(
                        f"sampler.guide: the reward reads {name}.{block}, which this model does not have: fit one to it"
                    ) from None
                self._hooks.append(part.register_forward_hook(self._note))

    def close(self) -> None:
        """Reads no more."""
        for hook in self._hooks:
            hook.remove()

    def clear(self) -> None:
        """Forgets what was put out so far."""
        self._seen.clear()

    def _note(self, module: nn.Module, given: tuple, output: object) -> None:
        self._seen += [leaf for leaf in tree_leaves(output) if isinstance(leaf, Tensor) and leaf.dim() >= 3]

    def take(self, rows: int) -> Tensor:
        """Features [rows, width], float32, of what was put out since the last time.

        Guidance runs several rows a sample, or several calls: each of them gives features of its own. Raises
        PolicyError where outputs are not by rows.
        """
        seen, self._seen = self._seen, []
        pooled = []
        for output in seen:
            if len(output) % rows:
                raise PolicyError(
                    "a latent reward reads outputs by rows, but a block of the denoiser puts out "
                    f"{tuple(output.shape)} for {rows} rows"
                )
            x = output.float()
            x = x.flatten(2).transpose(1, 2) if x.dim() > 3 else x  # channels first with a height and width, else last
            parts = torch.cat([x.mean(1), x.std(1, unbiased=False), x.amax(1)], 1)
            pooled += parts.unflatten(0, (-1, rows)).unbind(0)
        return torch.cat(pooled, 1) if pooled else torch.empty(rows, 0)


def save(reward: LatentReward, folder: Path, card: Mapping[str, JSON]) -> None:
    """Writes the weights as safetensors and the card, which says what was fitted to what, as JSON."""
    folder.mkdir(parents=True, exist_ok=True)
    save_file({name: part.contiguous() for name, part in reward.state_dict().items()}, folder / WEIGHTS)
    sizes = {"width": reward.width, "hidden": reward.layers[1].out_features}
    (folder / CARD).write_text(json.dumps({**card, **sizes}, indent=1) + "\n", encoding="utf-8")


def load(folder: Path) -> tuple[LatentReward, dict[str, JSON]]:
    """The reward of a folder, frozen, and its card. Raises PolicyError where there is none."""
    try:
        card = json.loads((folder / CARD).read_text(encoding="utf-8"))
        reward = LatentReward(card["width"], card["hidden"])
        reward.load_state_dict(load_file(folder / WEIGHTS))
    except (OSError, ValueError, KeyError, RuntimeError) as error:
        raise PolicyError(
            f"sampler.guide.path: {folder} holds no latent reward ({' '.join(str(error).split())[:120]}); give a "
            "folder that `flowrl train-latent-reward` wrote"
        ) from error
    return reward.eval().requires_grad_(False), card
