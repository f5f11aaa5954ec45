"""dino_similarity, clip_i and subject_harmonic against the embeddings that transformers and open_clip give."""

import math
import os
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import open_clip
import pytest
import torch
from PIL import Image
from torch.nn import functional as F
from transformers import AutoImageProcessor, AutoModel, ViTConfig, ViTForImageClassification, ViTImageProcessor

import detector_support
import golden
from flowrl import names
from flowrl.contracts import Prompt, Samples
from flowrl.reading import prompts
from reward_models.image_similarity import clip_i, dino_similarity
from reward_models.subject_harmonic import harmonic, subject_harmonic

REWARDS = ("vit", "dinov2", "clip", "harmonic", "harmonic_dino")
TEXTS = ("a dog on the beach", "a red backpack", "a dog on the beach", "a clay pot")


def picture(seed: int, height: int, width: int) -> np.ndarray:
    """A smooth picture, uint8 [height, width, 3]."""
    coarse = torch.rand(1, 3, 5, 5, generator=torch.Generator().manual_seed(seed))
    smooth = F.interpolate(coarse, (height, width), mode="bicubic", align_corners=False).clamp(0, 1)
    return (smooth[0].permute(1, 2, 0).numpy() * 255).round().astype(np.uint8)


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> SimpleNamespace:
    """Folders of checkpoints, the rewards on them, and reference pictures of several sizes."""
    root = tmp_path_factory.mktemp("similarity")
    folders = {name: str(getattr(detector_support, name)(root / name)) for name in ("vit", "dinov2", "clip")}
    paths = []
    for i, (height, width) in enumerate([(40, 56), (64, 64), (33, 21), (90, 70)]):
        paths.append(str(root / f"reference{i}.png"))
        Image.fromarray(picture(100 + i, height, width)).save(paths[-1])
    rewards = {
        "vit": dino_similarity(model=folders["vit"]),
        "dinov2": dino_similarity(model=folders["dinov2"]),
        "clip": clip_i(model=folders["clip"]),
        "harmonic": subject_harmonic(model=folders["clip"]),
        "harmonic_dino": subject_harmonic(model=folders["clip"], dino=folders["vit"], lam=0.6),
    }
    return SimpleNamespace(folders=folders, paths=paths, rewards=rewards, root=root)


def media(made: SimpleNamespace) -> list[tuple[str, ...]]:
    a, b, c, d = made.paths
    return [(a,), (b, c), (a, b, d), (c,)]


def batch(made: SimpleNamespace, images: torch.Tensor | None = None, **more) -> Samples:
    asked = [Prompt(str(i), text, media=m) for i, (text, m) in enumerate(zip(TEXTS, media(made), strict=True))]
    if images is None and "video" not in more:
        images = torch.stack([torch.from_numpy(picture(i, 48, 48)).permute(2, 0, 1) / 255 for i in range(4)])
    return Samples(asked, torch.arange(4), images=images, **more)


# ---- the same by the libraries themselves -------------------------------------------------------------------------


@torch.no_grad()
def seen_by(made: SimpleNamespace, kind: str, array: np.ndarray) -> np.ndarray:
    if kind == "clip":
        model, _, transform = open_clip.create_model_and_transforms(f"local-dir:{made.folders['clip']}")
        return model.eval().encode_image(transform(Image.fromarray(array))[None])[0].double().numpy()
    model = AutoModel.from_pretrained(made.folders[kind]).eval()
    processor = AutoImageProcessor.from_pretrained(made.folders[kind], backend="pil")
    inputs = processor(images=[Image.fromarray(array)], return_tensors="pt")
    return model(**inputs).last_hidden_state[0, 0].double().numpy()


@torch.no_grad()
def read_by_clip(made: SimpleNamespace, text: str) -> np.ndarray:
    model = open_clip.create_model_and_transforms(f"local-dir:{made.folders['clip']}")[0].eval()
    return model.encode_text(open_clip.get_tokenizer("ViT-B-16")([text]))[0].double().numpy()


def cosine(a: np.ndarray, b: np.ndarray) -> float:
    return float(a @ b / (np.linalg.norm(a) * np.linalg.norm(b)))


def likeness(made: SimpleNamespace, kind: str, array: np.ndarray, paths: tuple[str, ...]) -> float:
    own = seen_by(made, kind, array)
    return float(np.mean([cosine(own, seen_by(made, kind, np.asarray(Image.open(path)))) for path in paths]))


def by_hand(made: SimpleNamespace, kind: str) -> list[float]:
    scores = []
    for i, (text, paths) in enumerate(zip(TEXTS, media(made), strict=True)):
        array = picture(i, 48, 48)
        if not kind.startswith("harmonic"):
            scores.append(likeness(made, kind, array, paths))
            continue
        lam, eyes = (0.6, "vit") if kind == "harmonic_dino" else (0.3, "clip")
        image = (likeness(made, eyes, array, paths) + 1) / 2
        fit = (cosine(seen_by(made, "clip", array), read_by_clip(made, text)) + 1) / 2
        scores.append(1 / (lam / image + (1 - lam) / fit))
    return scores


@pytest.mark.parametrize("kind", REWARDS)
def test_the_score_is_that_of_the_libraries(made: SimpleNamespace, kind: str):
    scores = made.rewards[kind](batch(made))
    assert scores.dtype == torch.float32 and scores.shape == (4,)
    assert scores.tolist() == pytest.approx(by_hand(made, kind), abs=1e-5)
    assert scores.std() > 5e-3  # the tiny model does tell the pictures apart


@pytest.mark.parametrize("case", golden.cases("direct/lambda_harmonic.json"))
def test_the_harmonic_mean_is_the_published_one(case):
    cosines = (golden.tensor(case["inputs"][name]) for name in ("cos_image", "cos_text"))
    golden.check({"reward": harmonic(*cosines, **case["params"])}, case)


def test_the_harmonic_mean_lies_between_the_two_and_nearer_to_the_smaller():
    image, text = torch.tensor([0.9, -0.6, 0.2]), torch.tensor([-0.5, 0.8, 0.2])
    low, high = (torch.minimum(image, text) + 1) / 2, (torch.maximum(image, text) + 1) / 2
    mean = harmonic(image, text, 0.5)
    assert ((low <= mean + 1e-6) & (mean <= high + 1e-6)).all()
    assert (mean[:2] < (low + high)[:2] / 2).all() and mean[2] == pytest.approx(0.6, abs=1e-6)


@pytest.mark.parametrize("kind", ["vit", "dinov2", "clip"])
def test_a_copy_of_the_one_reference_scores_1(made: SimpleNamespace, kind: str):
    path = made.paths[1]
    image = torch.from_numpy(np.asarray(Image.open(path)).copy()).permute(2, 0, 1)[None] / 255
    copied = Samples([Prompt("0", "x", media=(path,))], torch.zeros(1, dtype=torch.int64), images=image)
    assert made.rewards[kind](copied).item() == pytest.approx(1, abs=1e-6)


@pytest.mark.parametrize("kind", REWARDS)
def test_scores_do_not_depend_on_batch_or_order(made: SimpleNamespace, kind: str):
    reward, samples = made.rewards[kind], batch(made)
    whole = reward(samples)
    split = torch.cat([reward(samples[[0]]), reward(samples[[1, 2]]), reward(samples[[3]])])
    torch.testing.assert_close(split, whole, rtol=0, atol=1e-5)
    order = [2, 0, 3, 1]
    torch.testing.assert_close(reward(samples[order]), whole[order], rtol=0, atol=1e-5)


@pytest.mark.parametrize("kind", REWARDS)
def test_a_video_has_the_mean_of_its_frames(made: SimpleNamespace, kind: str):
    reward = made.rewards[kind]
    video = torch.stack([torch.from_numpy(picture(s, 40, 48)).permute(2, 0, 1) / 255 for s in range(20)]).unflatten(
        0, (4, 5)
    )
    frames = torch.stack([reward(batch(made, video[:, t])) for t in range(5)], 1)
    torch.testing.assert_close(reward(batch(made, video=video)), frames.mean(1), rtol=0, atol=1e-5)


def test_frames_are_picked_evenly(made: SimpleNamespace):
    video = torch.rand(4, 5, 3, 32, 32, generator=torch.Generator().manual_seed(0))
    few = dino_similarity(model=made.folders["vit"], frames=3)
    kept = made.rewards["vit"](batch(made, video=video[:, [0, 2, 4]]))
    torch.testing.assert_close(few(batch(made, video=video)), kept, rtol=0, atol=1e-6)


# ---- with gradient ------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("kind", REWARDS)
def test_score_is_near_the_score_of_the_files(made: SimpleNamespace, kind: str):
    samples = batch(made)
    assert samples.images is not None
    direct = made.rewards[kind].score(samples.images, samples.prompts)
    assert 0 < (direct - made.rewards[kind](samples)).abs().max() < 2e-3


@pytest.mark.parametrize("kind", ["vit", "clip", "harmonic", "harmonic_dino"])
def test_score_is_the_score_of_the_files_where_nothing_is_resized(made: SimpleNamespace, kind: str):
    images = torch.stack([torch.from_numpy(picture(i, 32, 32)).permute(2, 0, 1) / 255 for i in range(4)])
    samples = batch(made, images)
    direct = made.rewards[kind].score(images, samples.prompts)
    torch.testing.assert_close(direct, made.rewards[kind](samples), rtol=0, atol=1e-5)


def formula(made: SimpleNamespace, kind: str, images: torch.Tensor, targets: torch.Tensor) -> torch.Tensor:
    """Mean cosine of images [4, 3, 48, 48] with targets [4, R, D], in torch alone, with gradient."""
    if kind == "clip":
        model, mean, std = open_clip.create_model(f"local-dir:{made.folders['clip']}").eval(), [0.5] * 3, [0.5] * 3
        side, mode, encode = 32, "bicubic", model.encode_image
    else:
        model = AutoModel.from_pretrained(made.folders[kind]).eval()
        mean, std = ([0.5] * 3,) * 2 if kind == "vit" else ([0.485, 0.456, 0.406], [0.229, 0.224, 0.225])
        side, mode = (32, "bilinear") if kind == "vit" else (36, "bicubic")
        encode = lambda x: model(pixel_values=x).last_hidden_state[:, 0]  # noqa: E731
    x = images
    for size in ((x.shape[-2], side), (side, side)):  # axis by axis, as Pillow does
        x = F.interpolate(x, size, mode=mode, align_corners=False, antialias=True).clamp(0, 1)
    x = x[..., 4:32, 4:32] if kind == "dinov2" else x
    mean, std = (torch.tensor(value).view(3, 1, 1) for value in (mean, std))
    return F.cosine_similarity(encode((x - mean) / std)[:, None], targets, dim=-1).mean(1)


@pytest.mark.parametrize("kind", ["vit", "dinov2", "clip"])
def test_the_gradient_is_that_of_the_formula(made: SimpleNamespace, kind: str):
    samples = batch(made)
    assert samples.images is not None
    two = [tuple(made.paths[i : i + 2]) for i in (0, 1, 2, 0)]
    asked = [replace(prompt, media=paths) for prompt, paths in zip(samples.prompts, two, strict=True)]
    seen = {path: torch.tensor(seen_by(made, kind, np.asarray(Image.open(path)))).float() for path in made.paths}
    targets = torch.stack([torch.stack([seen[path] for path in prompt.media]) for prompt in asked])
    ours, theirs = (samples.images.clone().requires_grad_(True) for _ in range(2))
    one, other = made.rewards[kind].score(ours, asked), formula(made, kind, theirs, targets)
    torch.testing.assert_close(one, other, rtol=0, atol=1e-5)
    one.sum().backward()
    other.sum().backward()
    assert ours.grad is not None and theirs.grad is not None
    assert theirs.grad.flatten(1).norm(dim=1).min() > 1e-3
    torch.testing.assert_close(ours.grad, theirs.grad, rtol=1e-3, atol=1e-6)


@pytest.mark.parametrize("kind", ["harmonic", "harmonic_dino"])
def test_the_gradient_of_the_harmonic_mean_is_the_chain_rule(made: SimpleNamespace, kind: str):
    """d h = h^2 (lam / i^2 di + (1 - lam) / t^2 dt), with the gradients of the two cosines on their own."""
    samples, reward = batch(made), made.rewards[kind]
    assert samples.images is not None
    alone = made.rewards["vit" if kind == "harmonic_dino" else "clip"]
    values, gradients = [], []
    for score in (
        lambda x: reward.score(x, samples.prompts),
        lambda x: (alone.score(x, samples.prompts) + 1) / 2,
        lambda x: ((reward.tower.image(x) * reward.tower.text(TEXTS)).sum(1) + 1) / 2,
    ):
        images = samples.images.clone().requires_grad_(True)
        values.append(score(images))
        gradients.append(torch.autograd.grad(values[-1].sum(), images)[0])
    (h, i, t), lam = (value.detach().view(-1, 1, 1, 1) for value in values), reward.lam
    expected = h**2 * (lam / i**2 * gradients[1] + (1 - lam) / t**2 * gradients[2])
    torch.testing.assert_close(gradients[0], expected, rtol=1e-3, atol=1e-6)


def test_weights_get_no_gradient(made: SimpleNamespace):
    for reward in made.rewards.values():
        assert not any(p.requires_grad or m.training for m in reward.torch_modules() for p in m.parameters())


# ---- references ---------------------------------------------------------------------------------------------------


def test_a_reference_is_embedded_once_and_anew_when_it_changed(made: SimpleNamespace, tmp_path: Path):
    path = tmp_path / "reference.png"
    Image.fromarray(picture(7, 40, 40)).save(path)
    reward = dino_similarity(model=made.folders["vit"])
    samples = batch(made)[[0]]
    samples = replace(samples, prompts=[Prompt("0", "x", media=(str(path),))])
    first, calls, embed = reward(samples), [], reward.eyes.image_pil
    reward.eyes.image_pil = lambda pictures: calls.append(len(pictures)) or embed(pictures)
    assert torch.equal(reward(samples), first) and calls == [1]  # the sample alone
    Image.fromarray(picture(8, 40, 40)).save(path)
    os.utime(path, ns=(1, 1))
    changed = reward(samples)
    assert changed != first and calls == [1, 1, 1]
    assert torch.equal(changed, dino_similarity(model=made.folders["vit"])(samples))


def test_a_reference_is_turned_upright(made: SimpleNamespace, tmp_path: Path):
    upright, turned = tmp_path / "upright.png", tmp_path / "turned.png"
    image = Image.fromarray(picture(9, 30, 50))
    image.save(upright)
    exif = Image.Exif()
    exif[0x0112] = 6  # rotate by 90 degrees to see it
    image.transpose(Image.Transpose.ROTATE_90).save(turned, exif=exif)
    one = batch(made)[[0]]
    scores = [made.rewards["vit"](replace(one, prompts=[Prompt("0", "x", media=(str(p),))])) for p in (upright, turned)]
    assert torch.equal(*scores)


def test_media_of_a_prompt_file_are_the_references(made: SimpleNamespace):
    file = made.root / "prompts.jsonl"
    file.write_text('{"prompt": "a dog", "media": ["reference0.png", "reference1.png"]}\n')
    samples = replace(batch(made)[[0]], prompts=prompts.load(str(file)))
    expected = replace(samples, prompts=[Prompt("0", "a dog", media=tuple(made.paths[:2]))])
    assert torch.equal(made.rewards["clip"](samples), made.rewards["clip"](expected))


# ---- what cannot be scored ----------------------------------------------------------------------------------------


@pytest.mark.parametrize("kind", REWARDS)
def test_a_pixel_that_is_no_number_costs_its_own_picture_alone(made: SimpleNamespace, kind: str):
    samples = batch(made)
    assert samples.images is not None
    whole, broken = made.rewards[kind](samples), samples.images.clone()
    broken[1, 0, 3, 3], broken[2, 1, 0, 0] = math.nan, math.inf
    scores = made.rewards[kind](replace(samples, images=broken))
    assert scores.isnan().tolist() == [False, True, True, False]
    torch.testing.assert_close(scores[[0, 3]], whole[[0, 3]], rtol=0, atol=1e-5)


@pytest.mark.parametrize("kind", REWARDS)
def test_an_empty_batch_has_no_scores(made: SimpleNamespace, kind: str):
    empty = Samples([], torch.zeros(0, dtype=torch.int64), images=torch.zeros(0, 3, 8, 8))
    scores = made.rewards[kind](empty)
    assert scores.shape == (0,) and scores.dtype == torch.float32
    images = torch.zeros(0, 3, 8, 8, requires_grad=True)
    assert made.rewards[kind].score(images, []).shape == (0,)


def one_line(error: pytest.ExceptionInfo, *said: str) -> None:
    text = str(error.value)
    assert "\n" not in text and all(word in text for word in said), text


@pytest.mark.parametrize("kind", REWARDS)
@pytest.mark.parametrize(
    ("images", "said"),
    [
        (torch.zeros(4, 1, 8, 8), "[4, 1, 8, 8]"),
        (torch.zeros(4, 3, 0, 8), "[4, 3, 0, 8]"),
        (torch.zeros(4, 3, 8, 8, dtype=torch.uint8), "torch.uint8"),
        (torch.full((4, 3, 8, 8), 255.0), "[0, 1]"),
    ],
)
def test_wrong_pixels_are_one_line(made: SimpleNamespace, kind: str, images: torch.Tensor, said: str):
    reward = made.rewards[kind]
    samples = batch(made, images)
    for call in (lambda: reward(samples), lambda: reward.score(images, samples.prompts)):
        with pytest.raises(ValueError) as error:
            call()
        one_line(error, reward.name, said)


def test_wrong_references_are_one_line(made: SimpleNamespace, tmp_path: Path):
    text = tmp_path / "notes.png"
    text.write_text("no picture")
    reward, one = made.rewards["vit"], batch(made)[[0]]
    for paths, said in [
        ((), "has none"),
        ((str(text),), "not a readable picture"),
        ((str(tmp_path / "x.png"),), "no reference"),
    ]:
        with pytest.raises(ValueError) as error:
            reward(replace(one, prompts=[Prompt("0", "a dog", media=paths)]))
        one_line(error, "dino_similarity", said)


def test_score_wants_a_prompt_an_image(made: SimpleNamespace):
    with pytest.raises(ValueError, match="4 images and 3 prompts"):
        made.rewards["clip"].score(torch.zeros(4, 3, 8, 8), batch(made).prompts[:3])


def test_a_missing_or_wrong_checkpoint_is_one_line(made: SimpleNamespace, tmp_path: Path):
    absent = str(tmp_path / "absent")
    detector = str(detector_support.mask2former(tmp_path / "detector"))
    broken = detector_support.vit(tmp_path / "broken")
    (broken / "model.safetensors").write_bytes(b"nothing")
    for make, said in [
        (lambda: dino_similarity(model=absent), absent),
        (lambda: dino_similarity(model=detector), "mask2former; accepted are vit, dinov2"),
        (lambda: dino_similarity(model=str(broken)), str(broken)),
        (lambda: clip_i(model=absent), absent),
        (lambda: clip_i(model=made.folders["vit"]), "ViTModel; accepted are models like CLIP and SigLIP"),
        (lambda: subject_harmonic(model=made.folders["clip"], dino=absent), absent),
        (lambda: subject_harmonic(model=made.folders["clip"], lam=1.5), "lam=1.5"),
        (lambda: dino_similarity(model=made.folders["vit"], frames=0), "frames=0"),
    ]:
        with pytest.raises(ValueError) as error:
            make()
        one_line(error, said)


def test_a_checkpoint_of_a_larger_model_is_read(tmp_path: Path):
    """facebook/dino-vits16 has no pooler, classifiers have a head besides: both load."""
    sizes = {"hidden_size": 16, "num_hidden_layers": 1, "num_attention_heads": 2, "intermediate_size": 32}
    model = ViTForImageClassification(ViTConfig(**sizes, image_size=32, patch_size=8))
    model.save_pretrained(tmp_path)
    ViTImageProcessor(size={"height": 32, "width": 32}).save_pretrained(tmp_path)
    reward = dino_similarity(model=str(tmp_path))
    pixels = torch.randn(2, 3, 32, 32, generator=torch.Generator().manual_seed(0))
    with torch.no_grad():
        expected = model.eval().vit(pixel_values=pixels).last_hidden_state[:, 0]
        assert torch.allclose(reward.eyes._embed(pixels), F.normalize(expected, dim=-1), rtol=0, atol=1e-6)


def test_the_names_are_known():
    known = names.rewards()
    assert {"dino_similarity", "clip_i", "subject_harmonic"} <= known.keys()
    assert all(known[name].needs == () for name in ("dino_similarity", "clip_i", "subject_harmonic"))
