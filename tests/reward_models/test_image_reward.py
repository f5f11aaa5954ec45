"""ImageReward against BLIP written out in tensor operations, on a small checkpoint in the public file's names."""

import math
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from image_reward_support import HEADS, PATCH, SIZE, VOCABULARY, WORDS, public_tensors, save
from PIL import Image

from flowrl.contracts import Prompt, Samples
from reward_models.image_reward import image_reward
from reward_models.parts.embedding import blip

CAPTIONS = ["a cat", "B", "a b c d e f g h i j k l m n o p q r s t u v w x y z a b c d e f g h i j k l m n o p"]


@pytest.fixture(scope="module")
def tensors():
    return public_tensors()


@pytest.fixture(scope="module")
def folder(tensors, tmp_path_factory):
    path = tmp_path_factory.mktemp("image_reward")
    save(path, tensors)
    return path


@pytest.fixture(scope="module")
def reward(folder):
    return image_reward(model=str(folder), tokenizer=str(folder), **HEADS)


def samples(images=None, texts=CAPTIONS, video=None):
    prompts = [Prompt(str(i), text) for i, text in enumerate(texts)]
    return Samples(prompts, torch.zeros(len(prompts), dtype=torch.int64), images=images, video=video)


def pictures(*shape, seed=1):
    """Smooth pictures: noise would make the two ways of resizing differ as no photograph does."""
    coarse = torch.rand(1, math.prod(shape[:-2]), 4, 4, generator=torch.Generator().manual_seed(seed))
    return F.interpolate(coarse, shape[-2:], mode="bilinear", align_corners=True).clamp(0, 1).view(shape)


# --- BLIP in tensor operations, from the paper and the names of the public code ---


def _norm(t, name, x, eps):
    return F.layer_norm(x, x.shape[-1:], t[f"{name}.weight"], t[f"{name}.bias"], eps)


def _linear(t, name, x):
    return x @ t[f"{name}.weight"].T + t[f"{name}.bias"]


def _attend(q, k, v, heads, mask=None):
    out = []
    for qh, kh, vh in zip(q.chunk(heads, -1), k.chunk(heads, -1), v.chunk(heads, -1), strict=True):
        logits = qh @ kh.T / math.sqrt(qh.shape[-1])
        out.append((logits if mask is None else logits.masked_fill(~mask, -math.inf)).softmax(-1) @ vh)
    return torch.cat(out, -1)


def _tokens(caption):
    pieces = []
    for word in caption.lower().split():
        left = [word[0], *(f"##{c}" for c in word[1:])]
        pieces += left if all(p in VOCABULARY for p in left) else ["[UNK]"]
    ids = [VOCABULARY.index(p) for p in ["[CLS]", *pieces[:33], "[SEP]"]]
    return torch.tensor(ids + [0] * (35 - len(ids))), torch.tensor([1] * len(ids) + [0] * (35 - len(ids))).bool()


def _blip_score(t, pixels, caption):
    """The score of one picture [3, SIZE, SIZE] in [0, 1]."""
    mean, std = torch.tensor([0.48145466, 0.4578275, 0.40821073]), torch.tensor([0.26862954, 0.26130258, 0.27577711])
    x = (pixels - mean[:, None, None]) / std[:, None, None]
    v = "blip.visual_encoder."
    blocks = x.unfold(1, PATCH, PATCH).unfold(2, PATCH, PATCH).permute(1, 2, 0, 3, 4).reshape(-1, 3 * PATCH * PATCH)
    seen = blocks @ t[f"{v}patch_embed.proj.weight"].flatten(1).T + t[f"{v}patch_embed.proj.bias"]
    seen = torch.cat([t[f"{v}cls_token"][0], seen]) + t[f"{v}pos_embed"][0]
    for i in range(2):
        layer = f"{v}blocks.{i}."
        q, k, w = _linear(t, f"{layer}attn.qkv", _norm(t, f"{layer}norm1", seen, 1e-6)).chunk(3, -1)
        seen = seen + _linear(t, f"{layer}attn.proj", _attend(q, k, w, HEADS["image_heads"]))
        seen = seen + _linear(
            t, f"{layer}mlp.fc2", F.gelu(_linear(t, f"{layer}mlp.fc1", _norm(t, f"{layer}norm2", seen, 1e-6)))
        )
    seen = _norm(t, f"{v}norm", seen, 1e-6)
    ids, mask = _tokens(caption)
    b = "blip.text_encoder."
    read = t[f"{b}embeddings.word_embeddings.weight"][ids] + t[f"{b}embeddings.position_embeddings.weight"][:35]
    read = _norm(t, f"{b}embeddings.LayerNorm", read, 1e-12)
    for i in range(2):
        for part in ("attention", "crossattention"):
            layer = f"{b}encoder.layer.{i}.{part}."
            source, seeable = (read, mask) if part == "attention" else (seen, None)
            q, k, w = (
                _linear(t, f"{layer}self.{n}", s) for n, s in (("query", read), ("key", source), ("value", source))
            )
            mixed = _linear(t, f"{layer}output.dense", _attend(q, k, w, HEADS["text_heads"], seeable))
            read = _norm(t, f"{layer}output.LayerNorm", mixed + read, 1e-12)
        layer = f"{b}encoder.layer.{i}."
        grown = _linear(t, f"{layer}output.dense", F.gelu(_linear(t, f"{layer}intermediate.dense", read)))
        read = _norm(t, f"{layer}output.LayerNorm", grown + read, 1e-12)
    score = read[0]
    for place in (0, 2, 4, 6, 7):
        score = _linear(t, f"mlp.layers.{place}", score)
    return (score[0] - 0.16717362830052426) / 1.0333394966054072


def test_scores_are_those_of_blip_written_out(reward, tensors):
    images = pictures(3, 3, SIZE, SIZE)
    scores = reward(samples(images))
    rounded = (images * 255).round() / 255
    expected = torch.stack([_blip_score(tensors, image, text) for image, text in zip(rounded, CAPTIONS, strict=True)])
    torch.testing.assert_close(scores, expected, rtol=0, atol=1e-5)
    assert scores.dtype == torch.float32 and scores.std() > 0.01


def test_other_sizes_are_resized_on_the_short_side_and_cropped_as_pil_does(reward, tensors):
    image = pictures(1, 3, 40, 60)
    whole = Image.fromarray((image[0].permute(1, 2, 0) * 255).round().byte().numpy())
    small = whole.resize((24, 16), Image.Resampling.BICUBIC).crop((4, 0, 20, 16))
    pixels = torch.tensor(list(small.tobytes())).view(16, 16, 3).permute(2, 0, 1) / 255
    expected = _blip_score(tensors, pixels, "a cat")
    torch.testing.assert_close(reward(samples(image, ["a cat"]))[0], expected, rtol=0, atol=1e-5)


def test_neither_batch_nor_order_matters(reward):
    images = pictures(3, 3, 20, 24)
    whole = reward(samples(images))
    single = torch.cat([reward(samples(images[i : i + 1], [text])) for i, text in enumerate(CAPTIONS)])
    turned = reward(samples(images.flip(0), CAPTIONS[::-1])).flip(0)
    torch.testing.assert_close(whole, single, rtol=0, atol=1e-5)
    torch.testing.assert_close(whole, turned, rtol=0, atol=1e-5)


def test_a_video_has_the_mean_of_its_frames(reward, folder):
    video = pictures(2, 5, 3, SIZE, SIZE)
    frames = torch.stack([reward(samples(video[:, i], CAPTIONS[:2])) for i in range(5)], 1)
    torch.testing.assert_close(reward(samples(video=video, texts=CAPTIONS[:2])), frames.mean(1), rtol=0, atol=1e-5)
    three = image_reward(model=str(folder), tokenizer=str(folder), frames=3, **HEADS)
    chosen = frames[:, [0, 2, 4]].mean(1)
    torch.testing.assert_close(three(samples(video=video, texts=CAPTIONS[:2])), chosen, rtol=0, atol=1e-5)


def test_the_differentiable_score_is_the_score_and_has_its_gradient(reward, tensors):
    images = ((pictures(3, 3, SIZE, SIZE) * 255).round() / 255).requires_grad_()
    scores = reward.score(images, CAPTIONS)
    torch.testing.assert_close(scores.detach(), reward(samples(images.detach())), rtol=0, atol=1e-5)
    (gradient,) = torch.autograd.grad(scores[0], images)
    assert not gradient[1:].any()
    leaf = images.detach()[0].clone().requires_grad_()
    (expected,) = torch.autograd.grad(_blip_score(tensors, leaf, CAPTIONS[0]), leaf)
    torch.testing.assert_close(gradient[0], expected, rtol=1e-3, atol=1e-5)
    assert all(not p.requires_grad for m in reward.torch_modules() for p in m.parameters())


def test_tensors_and_pil_are_resized_nearly_alike(reward, monkeypatch):
    fed = []
    monkeypatch.setattr(reward, "_scores", lambda pixels, texts: fed.append(pixels) or torch.zeros(len(pixels)))
    images = pictures(1, 3, 40, 60)
    reward(samples(images, ["a"])), reward.score(images, ["a"])
    assert fed[0].shape == (1, 3, SIZE, SIZE)
    apart = ((fed[0] - fed[1]) * torch.tensor([0.26862954, 0.26130258, 0.27577711])[:, None, None]).abs().max()
    assert 0 < apart < 2 / 256  # as the docstring says


def test_broken_pixels_have_no_score_and_disturb_nobody(reward):
    images = pictures(3, 3, SIZE, SIZE)
    whole = reward(samples(images))
    images[1, 0, 0, 0] = torch.nan
    scores = reward(samples(images))
    assert scores.isnan().tolist() == [False, True, False]
    torch.testing.assert_close(scores[[0, 2]], whole[[0, 2]], rtol=0, atol=1e-5)
    empty = reward(samples(torch.zeros(0, 3, SIZE, SIZE), []))
    assert empty.shape == (0,) and empty.dtype == torch.float32
    assert reward.score(torch.zeros(0, 3, SIZE, SIZE), []).shape == (0,)


@pytest.mark.parametrize(
    ("images", "says"),
    [
        (torch.zeros(1, 1, 16, 16), "shape"),
        (torch.zeros(1, 3, 16, 16, dtype=torch.uint8), "floating point"),
        (torch.full((1, 3, 16, 16), 255.0), r"\[0, 1\]"),
        (None, "this model gives nothing"),
    ],
)
def test_other_pictures_are_refused(reward, images, says):
    with pytest.raises(ValueError, match=says):
        reward(samples(images, ["a"]))


def _refused(says, folder, **args):
    given: dict[str, Any] = {"model": str(folder), "tokenizer": str(folder)} | HEADS | args
    with pytest.raises(ValueError, match=says) as caught:
        image_reward(**given)
    assert "\n" not in str(caught.value) and str(caught.value).startswith("image_reward")


def test_wrong_files_are_refused_in_one_line(folder, tensors, tmp_path):
    _refused("no file", folder, model=str(folder / "none.pt"))
    _refused("holds no ImageReward.pt", folder, model=str(tmp_path))
    _refused("is no file or folder here", folder, model="THUDM/NoSuchModel")
    _refused("has 7 tokens", folder, tokenizer=str(tmp_path))
    _refused("tokenizer: .* cannot be loaded", folder, tokenizer=str(folder / "none"))
    _refused("text_heads=5", folder, text_heads=5)
    with pytest.raises(ValueError, match="frames=0: accepted is"):
        image_reward(model=str(folder), tokenizer=str(folder), frames=0, **HEADS)
    other = tmp_path / "other.pt"
    torch.save({"weight": torch.zeros(2)}, other)
    _refused("holds no patch_embed", folder, model=str(other))
    for name in ("blip.text_encoder.encoder.layer.1.output.dense.bias", "mlp.layers.7.bias"):
        torch.save({n: t for n, t in tensors.items() if n != name}, other)
        _refused("1 missing", folder, model=str(other))
    torch.save({n: t for n, t in tensors.items() if not n.startswith("mlp.layers.7")}, other)
    _refused("do not lead", folder, model=str(other))
    torch.save(tensors | {"blip.text_encoder.embeddings.word_embeddings.weight": torch.zeros(9, WORDS)}, other)
    _refused("9; give bert-base-uncased", folder, model=str(other))


def test_the_names_of_the_public_file():
    """Of a real ImageReward.pt: ViT-L has 24 blocks, a block twelve tensors."""
    assert blip.vision_name("blocks.23.attn.qkv.bias") == "encoder.layers.23.self_attn.qkv.bias"
    assert blip.vision_name("blocks.3.norm2.weight") == "encoder.layers.3.layer_norm2.weight"
    assert blip.vision_name("norm.weight") == "post_layernorm.weight"
