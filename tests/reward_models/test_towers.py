"""Towers of CLIP and SigLIP against the libraries that they come from, on tiny checkpoints in the real formats."""

import json
import shutil
from pathlib import Path

import pytest
import torch
from PIL import Image

import clip_support
from reward_models.parts.embedding.clip import tower
from reward_models.parts.inputs import as_pil

TEXTS = ["a red circle", "a photo of two blue square left of a green circle of a red square", "a red circle", "zebra!"]
BUILDERS = {
    "open_clip": clip_support.open_clip_folder,
    "transformers": clip_support.transformers_folder,
    "siglip": clip_support.siglip_folder,
}


@pytest.fixture(scope="module")
def folders(tmp_path_factory) -> dict[str, Path]:
    root = tmp_path_factory.mktemp("towers")
    return {name: build(root / name) for name, build in BUILDERS.items()}


@pytest.fixture(scope="module")
def pictures() -> list[Image.Image]:
    images = torch.rand(3, 3, 37, 50, generator=torch.Generator().manual_seed(1))
    return [*as_pil(images[:2]), as_pil(images[2:, :, :20, :24])[0]]


def test_open_clip_gives_its_own_embeddings(folders, pictures):
    import open_clip

    name = f"local-dir:{folders['open_clip']}"
    model, _, preprocess = open_clip.create_model_and_transforms(name)
    tokens = open_clip.get_tokenizer(name)(TEXTS)
    model.eval()
    with torch.no_grad():
        images, texts, scale = model(torch.stack([preprocess(one) for one in pictures]), tokens)  # pyright: ignore
    ours = tower(str(folders["open_clip"]))
    torch.testing.assert_close(ours.image_pil(pictures), images, atol=1e-6, rtol=0)
    torch.testing.assert_close(ours.text(TEXTS), texts, atol=1e-6, rtol=0)
    torch.testing.assert_close(ours.logit_scale, scale.detach())
    assert float(ours.logit_bias) == 0 and ours.width == images.shape[1]


@pytest.mark.parametrize("kind", ["transformers", "siglip"])
def test_transformers_gives_its_own_embeddings(kind, folders, pictures):
    from transformers import AutoModel, AutoTokenizer
    from transformers.models.clip.image_processing_pil_clip import CLIPImageProcessorPil
    from transformers.models.siglip.image_processing_pil_siglip import SiglipImageProcessorPil

    processor = CLIPImageProcessorPil if kind == "transformers" else SiglipImageProcessorPil
    model = AutoModel.from_pretrained(folders[kind]).eval()
    read = AutoTokenizer.from_pretrained(folders[kind])
    tokens = read(TEXTS, padding="max_length", truncation=True, max_length=12, return_tensors="pt")
    pixels = processor.from_pretrained(folders[kind])(pictures, return_tensors="pt")["pixel_values"]
    with torch.no_grad():
        found = model(pixel_values=pixels, **tokens)
    ours = tower(str(folders[kind]))
    torch.testing.assert_close(ours.image_pil(pictures), found.image_embeds, atol=1e-6, rtol=0)
    torch.testing.assert_close(ours.text(TEXTS), found.text_embeds, atol=1e-6, rtol=0)
    logits = ours.logit_scale * ours.text(TEXTS) @ ours.image_pil(pictures).T + ours.logit_bias
    torch.testing.assert_close(logits, found.logits_per_text, atol=1e-5, rtol=0)
    assert ours.width == found.image_embeds.shape[1]


def test_what_transformers_4_returned_is_read_too(folders, pictures, monkeypatch):
    ours = tower(str(folders["transformers"]))
    want = ours.image_pil(pictures)
    wrapped = ours.model.get_image_features
    monkeypatch.setattr(ours.model, "get_image_features", lambda **given: wrapped(**given).pooler_output)
    assert torch.equal(ours.image_pil(pictures), want)


@pytest.mark.parametrize("kind", BUILDERS)
def test_tensors_follow_pictures_and_carry_the_gradient(kind, folders):
    ours = tower(str(folders[kind]))
    pixels = torch.rand(2, 3, 32, 32, generator=torch.Generator().manual_seed(2))
    pixels = ((pixels * 255).round() / 255).requires_grad_()
    torch.testing.assert_close(ours.image(pixels), ours.image_pil(as_pil(pixels)), atol=1e-5, rtol=0)
    direction = torch.randn(2, ours.width, generator=torch.Generator().manual_seed(3))
    (ours.image(pixels) * direction).sum().backward()
    assert pixels.grad is not None
    step = 1e-2 * pixels.grad / pixels.grad.norm()
    with torch.no_grad():
        ahead, behind = (((ours.image(pixels + sign * step)) * direction).sum() for sign in (1, -1))
    assert float(ahead - behind) / 2e-2 == pytest.approx(float(pixels.grad.norm()), rel=0.02)
    assert not [p for p in ours.parameters() if p.requires_grad] and not ours.training
    none = [ours.image(pixels[:0]), ours.image_pil([]), ours.text([])]
    assert [tuple(one.shape) for one in none] == [(0, ours.width)] * 3


@pytest.mark.parametrize("kind", BUILDERS)
def test_an_embedding_does_not_depend_on_its_batch(kind, folders, pictures):
    ours = tower(str(folders[kind]))
    one_by_one = torch.cat([ours.image_pil([one]) for one in pictures])
    torch.testing.assert_close(ours.image_pil(pictures[::-1]), one_by_one.flip(0), atol=1e-5, rtol=0)
    alone = torch.cat([ours.text([text]) for text in TEXTS])
    torch.testing.assert_close(ours.text(TEXTS), alone, atol=1e-5, rtol=0)
    assert torch.equal(ours.text(TEXTS)[0], ours.text(TEXTS)[2])
    assert (ours.text(TEXTS)[0] - ours.text(TEXTS)[1]).abs().max() > 0.01


@pytest.mark.parametrize("kind", BUILDERS)
def test_a_text_is_cut_to_the_context(kind, folders):
    ours = tower(str(folders[kind]))
    fits, cut = "red " * 10, "red " * 40
    torch.testing.assert_close(ours.text([fits]), ours.text([cut]), atol=1e-6, rtol=0)
    assert (ours.text([fits]) - ours.text(["red " * 9])).abs().max() > 1e-3


@pytest.mark.parametrize("kind", BUILDERS)
def test_the_half_for_texts_can_be_left_out(kind, folders, pictures):
    whole, half = tower(str(folders[kind])), tower(str(folders[kind]), texts=False)
    assert torch.equal(whole.image_pil(pictures), half.image_pil(pictures))
    count = [sum(p.numel() for p in one.parameters()) for one in (whole, half)]
    assert count[1] < 0.6 * count[0]
    with pytest.raises(ValueError, match="without its half for texts"):
        half.text(["a"])


@pytest.mark.parametrize("asked", [True, False])
def test_a_folders_own_tokenizer_is_honoured(asked, folders, tmp_path):
    folder = shutil.copytree(folders["open_clip"], tmp_path / "copy")
    said = json.loads((folder / "open_clip_config.json").read_text())
    if not asked:
        del said["model_cfg"]["text_cfg"]["hf_tokenizer_name"]
    (folder / "open_clip_config.json").write_text(json.dumps(said))
    assert torch.equal(tower(str(folder)).text(TEXTS), tower(str(folders["open_clip"])).text(TEXTS))


def test_the_folders_config_says_how_to_resize(folders, tmp_path, pictures):
    folder = clip_support.open_clip_folder(tmp_path / "squash", resize_mode="squash", interpolation="bilinear")
    squash = tower(f"local-dir:{folder}")
    assert (squash.preprocess.mode, squash.preprocess.interpolation) == ("squash", "bilinear")
    assert (squash.image_pil(pictures) - tower(str(folders["open_clip"])).image_pil(pictures)).abs().max() > 0.01
    padded = clip_support.open_clip_folder(tmp_path / "grey", resize_mode="longest", fill_color=127)
    with pytest.raises(ValueError, match="pads with level 127"):
        tower(str(padded))


def test_image_sizes_of_old_checkpoints_are_read(folders, tmp_path, pictures):
    folder = shutil.copytree(folders["transformers"], tmp_path / "old")
    said = json.loads((folder / "preprocessor_config.json").read_text())
    kept = {name: said[name] for name in ("image_mean", "image_std", "resample", "do_resize", "do_normalize")}
    kept |= {"do_center_crop": True, "size": 32, "crop_size": 32, "feature_extractor_type": "CLIPFeatureExtractor"}
    (folder / "preprocessor_config.json").write_text(json.dumps(kept))
    assert torch.equal(tower(str(folder)).image_pil(pictures), tower(str(folders["transformers"])).image_pil(pictures))


@pytest.mark.parametrize(
    ("change", "said"),
    [
        ({"resample": 1}, "resizes in no way known here"),
        ({"do_center_crop": False}, "makes pictures of .*shortest"),
    ],
)
def test_unknown_image_sizes_are_refused(change, said, folders, tmp_path):
    folder = shutil.copytree(folders["transformers"], tmp_path / "odd")
    config = json.loads((folder / "preprocessor_config.json").read_text()) | change
    (folder / "preprocessor_config.json").write_text(json.dumps(config))
    with pytest.raises(ValueError, match=said):
        tower(str(folder))


def test_weights_of_a_folder_or_an_architecture_may_be_a_file(folders, tmp_path, pictures):
    other = clip_support.open_clip_folder(tmp_path / "other", seed=5)
    want = tower(str(other))
    file = tmp_path / "checkpoint.pt"
    torch.save({"state_dict": {f"module.{name}": value for name, value in want.model.state_dict().items()}}, file)
    for weights in (file, other / "open_clip_model.safetensors"):
        mixed = tower(str(folders["open_clip"]), str(weights))
        assert torch.equal(mixed.image_pil(pictures), want.image_pil(pictures))


def test_what_cannot_be_loaded_is_one_line(folders, tmp_path):
    file = tmp_path / "wrong.pt"
    torch.save({"weight": torch.zeros(2)}, file)
    code = tmp_path / "code.pt"
    torch.save({"state_dict": Path("x")}, code)  # anything but tensors: refused unread
    lost = shutil.copytree(folders["transformers"], tmp_path / "lost")
    (lost / "model.safetensors").unlink()
    empty = shutil.copytree(folders["open_clip"], tmp_path / "empty")
    (empty / "open_clip_model.safetensors").unlink()
    here = str(folders["open_clip"])
    for given, said in [
        ((str(tmp_path / "nowhere"),), "nowhere' cannot be loaded"),
        (("ViT-H/14", str(tmp_path / "none.pt")), "FileNotFoundError: no file at"),
        (("ViT-H-14", "laion9b"), "ValueError: open_clip has no weights 'laion9b' of ViT-H-14"),
        (("ViT-Z-14", "laion2b_s32b_b79k"), "ValueError: open_clip has no architecture 'ViT-Z-14'"),
        (("ViT-B-32",), "'ViT-B-32' is no folder and no owner/name of the hub"),
        (("nobody/clip",), "'nobody/clip' cannot be loaded"),
        (("hf-hub:nobody/clip",), "'hf-hub:nobody/clip' cannot be loaded"),
        ((here, "laion2b"), "weights 'laion2b' are no file"),
        ((here, str(file)), r"with weights .* cannot be loaded \(RuntimeError"),
        ((here, str(code)), r"cannot be loaded \(UnpicklingError"),
        ((str(lost),), "lost' cannot be loaded"),
        ((str(empty),), "empty' cannot be loaded"),
    ]:
        with pytest.raises(ValueError, match=said) as raised:
            tower(*given)
        assert "\n" not in str(raised.value)


def test_another_kind_of_model_is_refused(folders, tmp_path):
    from transformers import BertConfig, BertModel

    tiny = BertConfig(hidden_size=8, num_hidden_layers=1, num_attention_heads=1, intermediate_size=8, vocab_size=20)
    BertModel(tiny).save_pretrained(tmp_path / "bert")
    with pytest.raises(ValueError, match="is a BertModel; accepted are models like CLIP and SigLIP"):
        tower(str(tmp_path / "bert"))
    with pytest.raises(ValueError, match="processor='x': open_clip's"):
        tower(str(folders["open_clip"]), processor="x")


def test_missing_tensors_are_not_made_up(folders, tmp_path):
    from safetensors.torch import load_file, save_file

    folder = shutil.copytree(folders["transformers"], tmp_path / "holes")
    tensors = load_file(folder / "model.safetensors")
    del tensors["visual_projection.weight"]
    save_file(tensors, folder / "model.safetensors", metadata={"format": "pt"})
    with pytest.raises(ValueError, match=r"lacks 1 tensors of its model \(visual_projection.weight\)"):
        tower(str(folder))


def test_another_models_tokenizer_is_seen(tmp_path):
    small = clip_support.transformers_folder(tmp_path / "small", vocabulary=100)
    with pytest.raises(ValueError, match="the tokenizer gives token .* of 100; it is another model's"):
        tower(str(small)).text(["red"])
