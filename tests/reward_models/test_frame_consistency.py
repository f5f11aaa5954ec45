"""Consistency of frames: the formula by numpy, along true motion, and by small DINO and CLIP checkpoints."""

import sys
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import cv2
import numpy as np
import pytest
import torch
from PIL import Image
from transformers import AutoImageProcessor, AutoModel

import clip_support
import detector_support
from flowrl.contracts import Prompt, Samples
from reward_models.frame_consistency import consistency, frame_consistency


def texture(height: int, width: int, seed: int = 0) -> torch.Tensor:
    field = np.random.default_rng(seed).random((height, width, 3)).astype(np.float32)
    field = cv2.GaussianBlur(field, (0, 0), 3)
    return torch.from_numpy((field - field.min()) / (field.max() - field.min())).permute(2, 0, 1).contiguous()


def panned(frames: int = 3, step: int = 3, seed: int = 0) -> torch.Tensor:
    """A camera that moves to the left over a texture, [frames, 3, 96, 96]."""
    whole = texture(96, 96 + frames * step, seed)
    return torch.stack([whole[:, :, (frames - t) * step : (frames - t) * step + 96] for t in range(frames)])


def cut(frames: int = 3) -> torch.Tensor:
    return torch.stack([texture(96, 96, seed) for seed in range(frames)])


def filmed(*clips: torch.Tensor) -> Samples:
    prompts = [Prompt(str(i), "") for i in range(len(clips))]
    return Samples(prompts, torch.arange(len(clips)), video=torch.stack(clips))


@pytest.fixture(scope="module")
def folders(tmp_path_factory: pytest.TempPathFactory) -> dict[str, str]:
    root = tmp_path_factory.mktemp("eyes")
    made = {name: str(getattr(detector_support, name)(root / name)) for name in ("vit", "dinov2")}
    made["clip"] = str(clip_support.transformers_folder(root / "clip"))
    made["open_clip"] = str(clip_support.open_clip_folder(root / "open_clip"))
    return made


KINDS = ("flow", "vit", "dinov2", "clip", "open_clip")


@pytest.fixture(scope="module")
def rewards(folders) -> dict[str, frame_consistency]:
    return {kind: frame_consistency(model=folders.get(kind)) for kind in KINDS}


# ---- along the optical flow


def by_numpy(clip: np.ndarray) -> float:
    """1 - mean difference to the next frame, looked at where DIS leads, of [T, 3, H, W]; in float64."""
    pairs = []
    grey = np.round(np.tensordot([0.299, 0.587, 0.114], clip, (0, 1)) * 255).astype(np.uint8)
    for now, after, grey_now, grey_after in zip(clip, clip[1:], grey, grey[1:], strict=False):
        flow = cv2.DISOpticalFlow_create(cv2.DISOPTICAL_FLOW_PRESET_MEDIUM).calc(grey_now, grey_after, None)
        gaps = []
        for y, x in np.ndindex(grey_now.shape):
            u, v = x + float(flow[y, x, 0]), y + float(flow[y, x, 1])
            if not (0 <= u <= grey_now.shape[1] - 1 and 0 <= v <= grey_now.shape[0] - 1):
                continue
            i, j = min(int(v), grey_now.shape[0] - 2), min(int(u), grey_now.shape[1] - 2)
            p, q = v - i, u - j
            top = (1 - q) * after[:, i, j] + q * after[:, i, j + 1]
            low = (1 - q) * after[:, i + 1, j] + q * after[:, i + 1, j + 1]
            gaps.append(np.abs((1 - p) * top + p * low - now[:, y, x]).mean())
        pairs.append(1 - np.mean(gaps))
    return float(np.mean(pairs))


def test_the_score_is_the_formula():
    clips = [0.5 * panned()[:, :, :40, :48] + 0.5 * cut()[:, :, :40, :48], cut()[:, :, :40, :48]]
    want = torch.tensor([by_numpy(clip.double().numpy()) for clip in clips], dtype=torch.float32)
    torch.testing.assert_close(frame_consistency()(filmed(*clips)), want, rtol=0, atol=1e-5)


def test_motion_costs_nothing_and_flicker_does(rewards):
    still, moving = texture(96, 96).expand(3, -1, -1, -1), panned()
    flickering = moving * torch.tensor([0.6, 1.0, 0.6])[:, None, None, None]
    noisy = (moving + 0.2 * torch.randn(moving.shape, generator=torch.Generator().manual_seed(1))).clamp(0, 1)
    frozen, pan, flicker, noise, cuts = rewards["flow"](filmed(still, moving, flickering, noisy, cut())).tolist()
    assert frozen == pytest.approx(1, abs=1e-6)
    assert pan > 0.995
    unmoved = 1 - (moving[1:] - moving[:-1]).abs().mean().item()  # what a comparison in place would say
    assert unmoved < 0.95
    assert max(flicker, noise, cuts) < 0.9


def test_a_pair_that_keeps_nothing_in_the_picture_counts_nothing(rewards, monkeypatch):
    reward = frame_consistency()
    monkeypatch.setattr(reward, "flow", lambda clip: torch.full((len(clip) - 1, 96, 96, 2), 500.0))
    assert reward(filmed(panned())).item() == 0


# ---- by embeddings


def vbench(features: np.ndarray) -> float:
    unit = features / np.linalg.norm(features, axis=1, keepdims=True)
    pairs = [(max(0, unit[t] @ unit[t - 1]) + max(0, unit[t] @ unit[0])) / 2 for t in range(1, len(unit))]
    return float(np.mean(pairs))


def test_consistency_is_vbenchs():
    features = np.random.default_rng(0).normal(0.2, 1, (6, 5))
    assert np.any(features[1:] @ features[0] < 0)
    assert consistency(torch.from_numpy(features)).item() == pytest.approx(vbench(features), rel=1e-6)
    assert consistency(torch.eye(3)).item() == 0
    assert consistency(torch.ones(4, 3)).item() == pytest.approx(1)


@pytest.mark.parametrize("kind", ["vit", "dinov2", "clip"])
@torch.no_grad()
def test_embeddings_are_those_of_transformers(folders, rewards, kind):
    clip = cut(4)
    pictures = [Image.fromarray((frame.permute(1, 2, 0) * 255).round().byte().numpy()) for frame in clip]
    processor = AutoImageProcessor.from_pretrained(folders[kind], backend="pil")
    model, given = AutoModel.from_pretrained(folders[kind]).eval(), processor(images=pictures, return_tensors="pt")
    if kind == "clip":
        features = model.get_image_features(**given).pooler_output
    else:
        features = model(**given).last_hidden_state[:, 0]
    want = vbench(features.double().numpy())
    assert want < 0.999
    assert rewards[kind](filmed(clip)).item() == pytest.approx(want, abs=1e-5)


@torch.no_grad()
def test_open_clip_embeds_by_itself(folders, rewards):
    import open_clip

    clip = cut(4)
    model, _, transform = open_clip.create_model_and_transforms(f"local-dir:{folders['open_clip']}")
    pictures = [Image.fromarray((frame.permute(1, 2, 0) * 255).round().byte().numpy()) for frame in clip]
    features = model.eval().encode_image(torch.stack([transform(picture) for picture in pictures]))
    want = vbench(features.double().numpy())
    assert rewards["open_clip"](filmed(clip)).item() == pytest.approx(want, abs=1e-5)
    named = frame_consistency(model=f"local-dir:{folders['open_clip']}")
    assert torch.equal(named(filmed(clip)), rewards["open_clip"](filmed(clip)))


# ---- both


@pytest.mark.parametrize("kind", KINDS)
def test_batches_order_and_threads_change_nothing(rewards, kind):
    given = filmed(panned(seed=1), cut(), panned(step=1), texture(96, 96).expand(3, -1, -1, -1))
    whole = rewards[kind](given)
    assert whole.dtype == torch.float32 and len(set(whole.tolist())) == 4
    split = torch.cat([rewards[kind](given[[i]]) for i in range(4)])
    torch.testing.assert_close(split, whole, rtol=0, atol=1e-6)
    torch.testing.assert_close(rewards[kind](given[[3, 1, 0, 2]]), whole[[3, 1, 0, 2]], rtol=0, atol=1e-6)
    with ThreadPoolExecutor(3) as pool:
        for found in pool.map(rewards[kind], [given] * 3):
            torch.testing.assert_close(found, whole, rtol=0, atol=1e-6)


@pytest.mark.parametrize("kind", KINDS)
def test_pixels_that_are_not_finite_have_no_score(rewards, kind):
    given = filmed(cut(), cut())
    alone = rewards[kind](given)
    given.video[1, 2, 0, 0, 0] = -torch.inf
    scores = rewards[kind](given)
    assert scores[1].isnan() and scores[0] == alone[0]


@pytest.mark.parametrize("kind", KINDS)
def test_an_empty_batch_has_no_scores(rewards, kind):
    empty = rewards[kind](Samples([], torch.zeros(0), video=torch.zeros(0, 3, 3, 64, 64)))
    assert empty.shape == (0,) and empty.dtype == torch.float32


@pytest.mark.parametrize("kind", ["flow", "vit"])
@pytest.mark.parametrize(
    ("given", "said"),
    [
        ({"images": torch.zeros(1, 3, 64, 64)}, "scores video; this model gives images"),
        ({"video": torch.zeros(1, 1, 3, 64, 64)}, "1 frame; accepted is 2 or more"),
        ({"video": torch.zeros(1, 2, 4, 64, 64)}, r"shape \[1, 2, 4, 64, 64\]"),
        ({"video": torch.zeros(1, 2, 3, 64, 64, dtype=torch.uint8)}, "uint8"),
    ],
)
def test_what_is_refused(rewards, kind, given, said):
    with pytest.raises(ValueError, match=f"^frame_consistency.*{said}") as caught:
        rewards[kind](Samples([Prompt("0", "")], torch.zeros(1), **given))
    assert "\n" not in str(caught.value)


def test_small_frames_are_for_models_alone(rewards):
    small = filmed(cut()[:, :, :20, :20])
    with pytest.raises(ValueError, match="20 x 20; accepted is 32 pixels"):
        rewards["flow"](small)
    assert rewards["vit"](small).isfinite().all()


def test_a_missing_or_wrong_checkpoint_is_one_line(folders, tmp_path, monkeypatch):
    broken = tmp_path / "broken"
    broken.mkdir()
    (broken / "config.json").write_bytes((Path(folders["vit"]) / "config.json").read_bytes())
    for arguments, said in [
        ({"model": str(tmp_path / "nowhere")}, "nowhere"),
        ({"model": str(broken)}, "broken"),
        ({"model": "ViT-B-32", "weights": str(tmp_path / "none.pt")}, "none.pt"),
        ({"weights": "openai"}, "without a model"),
        ({"preset": "slow"}, "preset='slow'"),
    ]:
        with pytest.raises(ValueError, match=said) as caught:
            frame_consistency(**arguments)
        assert "\n" not in str(caught.value)
    monkeypatch.setitem(sys.modules, "cv2", None)
    with pytest.raises(ValueError, match=r"frame_consistency: the package 'cv2'"):
        frame_consistency()
    assert frame_consistency(model=folders["vit"]).flow is None  # which needs no OpenCV


def test_the_modules_move_with_the_reward(rewards):
    reward = frame_consistency(model=None)
    assert reward.torch_modules() == [] and reward.to("cpu") is reward
    (module,) = rewards["vit"].torch_modules()
    assert not any(p.requires_grad for p in module.parameters()) and not module.training
