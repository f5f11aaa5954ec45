"""Models that embed images and texts into one space (CLIP, SigLIP), by open_clip or by transformers.

`tower` reads either kind. Images and texts are preprocessed as the checkpoint says; embeddings have length 1, so that
their product is the cosine. Everything is float32, frozen and in eval mode; only images get gradients.
"""

from pathlib import Path

from reward_models.parts.assets import shipped_path
from reward_models.parts.embedding.open_clip_tower import CONFIG, ELSEWHERE, OpenClipTower
from reward_models.parts.embedding.tower import ADVICE, Tower
from reward_models.parts.embedding.transformers_tower import TransformersTower


def tower(model: str, weights: str | None = None, *, processor: str | None = None, texts: bool = True) -> Tower:
    """The tower of a checkpoint, on the CPU. Raises ValueError, in one line, for one that cannot be read.

    model: shapes-clip, which ships, a folder, a model of the hub, or with `weights` (a tag or a file) an architecture
    of open_clip such as ViT-H-14. A folder with an open_clip_config.json and what begins with `hf-hub:` or
    `local-dir:` is read by open_clip, all else by transformers. processor: where transformers finds tokenizer and
    image sizes, if not with the model. texts=False leaves the half for texts out.
    """
    model = shipped_path(model)
    folder = Path(model.removeprefix("local-dir:")).expanduser()
    if weights is None and not model.startswith(ELSEWHERE) and not (folder / CONFIG).is_file():
        if "/" not in model and not folder.is_dir():
            raise ValueError(f"model {model!r} is no folder and no owner/name of the hub; {ADVICE}")
        return TransformersTower(model, processor or model, texts)
    if processor is not None:
        raise ValueError(f"processor={processor!r}: open_clip's {model!r} has its own; leave it out")
    if folder.is_dir():
        return OpenClipTower(f"local-dir:{folder}", weights, texts)
    return OpenClipTower(model if model.startswith(ELSEWHERE) else model.replace("/", "-"), weights, texts)
