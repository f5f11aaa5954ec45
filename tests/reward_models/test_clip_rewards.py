"""CLIPScore, PickScore, HPSv2 and the aesthetic scores on tiny checkpoints in the real formats."""

from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from torch import Tensor
from torch.nn import functional as F

from clip_support import TEXTS, Made, asked, pixels
from reward_models.clip_score import SCALES
from reward_models.parts.embedding.clip import tower
from reward_models.parts.inputs import as_pil


@pytest.fixture(scope="module")
def made(tmp_path_factory) -> Made:
    return Made(tmp_path_factory.mktemp("rewards"))


def by_transformers(folder: Path, images: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """(image embeddings, text embeddings, logits of each image and its own text), by transformers alone."""
    from transformers import AutoModel, AutoTokenizer
    from transformers.models.clip.image_processing_pil_clip import CLIPImageProcessorPil

    model = AutoModel.from_pretrained(folder).eval()
    tokens = AutoTokenizer.from_pretrained(folder)(TEXTS, padding=True, truncation=True, return_tensors="pt")
    seen = CLIPImageProcessorPil.from_pretrained(folder)(as_pil(images), return_tensors="pt")
    with torch.no_grad():
        found = model(**seen, **tokens)
    return found.image_embeds, found.text_embeds, found.logits_per_image.diagonal()


def test_clip_score_is_the_librarys(made):
    images = pixels(4, 3, 40, 57)
    _, _, logits = by_transformers(made.transformers, images)
    scale = made.reward("clip_score").tower.logit_scale
    near = dict(atol=1e-5, rtol=0)
    torch.testing.assert_close(made.reward("clip_score", scale="logit")(asked(images)), logits, **near)
    cosine = made.reward("clip_score")(asked(images))
    torch.testing.assert_close(cosine, logits / scale, **near)
    paper = made.reward("clip_score", scale="clipscore")(asked(images))
    assert cosine.min() < 0 < cosine.max()
    torch.testing.assert_close(paper, 2.5 * torch.where(cosine > 0, cosine, torch.zeros(4)), **near)


def test_a_siglips_logit_has_its_bias(made):
    images = asked(pixels(4, 3, 40, 57))
    cosine, logit = (made.reward("clip_score", model=str(made.siglip), scale=kind)(images) for kind in SCALES[:2])
    torch.testing.assert_close(logit, 4.481689 * cosine - 0.75, atol=1e-5, rtol=0)  # e ** 1.5


def test_a_prefix_is_put_before_the_caption(made):
    images = pixels(4, 3, 40, 57)
    short, given = TEXTS[:2] * 2, asked(images, [f"a {text}" for text in TEXTS[:2]] * 2)
    want = made.reward("clip_score")(given)
    assert torch.equal(made.reward("clip_score", prefix="a ")(asked(images, short)), want)
    assert not torch.allclose(made.reward("clip_score")(asked(images, short)), want, atol=1e-3)


def by_open_clip(folder: Path, checkpoint: Path, seen: Tensor) -> Tensor:
    """Cosines of preprocessed pictures and TEXTS, by open_clip alone."""
    import open_clip

    model = open_clip.create_model(f"local-dir:{folder}").eval()
    open_clip.load_checkpoint(model, str(checkpoint))
    tokens = open_clip.get_tokenizer(f"local-dir:{folder}")(TEXTS)
    with torch.no_grad():
        images, texts = model.encode_image(seen), model.encode_text(tokens)  # pyright: ignore[reportCallIssue]
    return F.cosine_similarity(images, texts)


@pytest.mark.parametrize("size", [(40, 57), (57, 40), (32, 32), (20, 32), (13, 90)])
def test_hpsv2_sees_the_whole_picture(made, size):
    images = pixels(4, 3, *size)
    scale = 32 / max(size)
    new = [round(side * scale) for side in size]
    mean, std = np.array([0.48, 0.46, 0.41]), np.array([0.27, 0.26, 0.28])
    seen = []
    for picture in as_pil(images):
        canvas = Image.new("RGB", (32, 32))
        at = ((32 - new[1]) // 2, (32 - new[0]) // 2)
        canvas.paste(picture.resize((new[1], new[0]), Image.Resampling.BICUBIC), at)
        seen.append(torch.from_numpy((np.asarray(canvas) / 255 - mean) / std).permute(2, 0, 1).float())
    want = by_open_clip(made.open_clip, made.hps, torch.stack(seen))
    torch.testing.assert_close(made.reward("hpsv2")(asked(images)), want, atol=1e-5, rtol=0)


def test_hpsv2_finds_the_file_of_its_version_in_a_folder(made):
    images = asked(pixels(4, 3, 40, 57))
    assert torch.equal(made.reward("hpsv2", checkpoint=str(made.hps.parent))(images), made.reward("hpsv2")(images))
    with pytest.raises(ValueError, match="hpsv2 v2: the folder .* holds no HPS_v2_compressed.pt"):
        made.reward("hpsv2", checkpoint=str(made.hps.parent), version="v2")


def test_hpsv2_crops_where_asked(made):
    import open_clip

    images = pixels(4, 3, 40, 57)
    preprocess = open_clip.create_model_and_transforms(f"local-dir:{made.open_clip}")[2]
    seen = torch.stack([preprocess(picture) for picture in as_pil(images)])  # pyright: ignore
    want = by_open_clip(made.open_clip, made.hps, seen)
    torch.testing.assert_close(made.reward("hpsv2", crop=True)(asked(images)), want, atol=1e-5, rtol=0)
    assert not torch.allclose(made.reward("hpsv2")(asked(images)), want, atol=1e-3)


def test_pick_score_is_the_logit(made):
    images = pixels(4, 3, 40, 57)
    faces, texts, logits = by_transformers(made.transformers, images)
    near = dict(atol=1e-5, rtol=0)
    torch.testing.assert_close(made.reward("pick_score")(asked(images)), logits, **near)
    torch.testing.assert_close(made.reward("pick_score", divide=26)(asked(images)), logits / 26, **near)
    cosine = made.reward("pick_score", scale="cosine", processor=str(made.transformers))(asked(images))
    torch.testing.assert_close(cosine, (faces * texts).sum(1), **near)


def numpy_head(file: Path, embeddings: Tensor) -> Tensor:
    values = embeddings.double().numpy()
    layers = list(torch.load(file).values())
    for weight, bias in zip(layers[::2], layers[1::2], strict=True):
        values = values @ weight.double().numpy().T + bias.double().numpy()
    return torch.from_numpy(values[:, 0]).float()


def test_the_aesthetic_head_reads_an_embedding_of_length_one(made):
    images = pixels(4, 3, 40, 57)
    faces, _, _ = by_transformers(made.transformers, images)
    want = numpy_head(made.head, faces)
    assert want.std() > 0.01
    torch.testing.assert_close(made.reward("aesthetic")(asked(images)), want, atol=1e-5, rtol=0)
    by_open_clip = made.reward("aesthetic", model=str(made.open_clip))
    assert by_open_clip(asked(images)).isfinite().all()


@pytest.mark.parametrize("model", ["transformers", "siglip", "open_clip"])
def test_patches_are_the_last_normalised_states_without_the_class_token(made, model: str) -> None:
    """Written out by hooks on the library's own modules, of unequal pictures, the third one alone too."""
    by = tower(str(getattr(made, model)), texts=False).by_patches()
    vision = by.model.visual if model == "open_clip" else by.model.vision_model
    last = vision.transformer if model == "open_clip" else vision.encoder
    norm = vision.ln_post if model == "open_clip" else vision.post_layernorm
    seen: list[torch.Tensor] = []
    hook = last.register_forward_hook(lambda *a: seen.append(a[2] if model == "open_clip" else a[2].last_hidden_state))
    images = pixels(4, 3, 32, 32)
    with torch.no_grad():
        by.image_features(by.preprocess.tensors(images))
        hook.remove()
        states = seen[0] if model == "siglip" else seen[0][:, 1:]
        want = torch.nn.functional.normalize(norm(states).mean(1), dim=-1)
        assert want.shape == (4, by.width) and want.std() > 0.01
        torch.testing.assert_close(by.image(images), want, atol=1e-5, rtol=0)
        torch.testing.assert_close(by.image(images[2:3]), want[2:3], atol=1e-5, rtol=0)


def test_a_model_without_patches_and_features_that_are_not_known_are_refused(made) -> None:
    with pytest.raises(ValueError, match="features='pixels': accepted: embedding or patches"):
        made.reward("aesthetic", features="pixels")
    convolutions = tower(str(made.open_clip), texts=False)
    convolutions.model.visual = torch.nn.Identity()
    with pytest.raises(ValueError, match="a Identity has no patches"):
        convolutions.by_patches()


def test_aesthetic_v25_reads_siglips_pooled_output(made):
    from transformers import SiglipVisionModel
    from transformers.models.siglip.image_processing_pil_siglip import SiglipImageProcessorPil

    images = pixels(4, 3, 40, 57)
    seen = SiglipImageProcessorPil.from_pretrained(made.siglip)(as_pil(images), return_tensors="pt")
    with torch.no_grad():
        pooled = SiglipVisionModel.from_pretrained(made.siglip).eval()(**seen).pooler_output
    want = numpy_head(made.head25, pooled / pooled.norm(dim=-1, keepdim=True))
    assert want.std() > 0.01
    torch.testing.assert_close(made.reward("aesthetic_v25")(asked(images)), want, atol=1e-5, rtol=0)
