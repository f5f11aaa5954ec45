"""What holds for every reward of the CLIP family: batches, gradients, videos, and what is refused."""

import json
import shutil

import pytest
import torch
from safetensors.torch import save_file
from torch import Tensor

import clip_support
from clip_support import TEXTS, Made, asked, pixels
from flowrl import names
from flowrl.contracts import Prompt, Samples
from flowrl.recipe.schema import RewardSpec
from flowrl.scoring.scorer import RewardError, Scorer, load
from reward_models.parts.frames import evenly
from reward_models.parts.preference.beauty import Beauty

REWARDS = ("clip_score", "pick_score", "hpsv2", "aesthetic", "aesthetic_v25")


@pytest.fixture(scope="module")
def made(tmp_path_factory) -> Made:
    return Made(tmp_path_factory.mktemp("properties"))


@pytest.fixture(scope="module", params=REWARDS)
def reward(request, made):
    return made.reward(request.param)


def near(got: Tensor, want: Tensor) -> None:
    torch.testing.assert_close(got, want, atol=1e-5, rtol=0)


@pytest.mark.parametrize("name", REWARDS)
def test_a_recipe_names_it_and_every_argument_has_a_default(name, made):
    entry = names.find(name, names.rewards())
    assert entry.needs == () and entry.accepts and "frames" in entry.accepts
    scorer = Scorer(load({"mine": RewardSpec(use=name, args=made.args[name])}))
    scores = scorer(asked(pixels(4, 3, 20, 24)))["mine"]
    assert scores.dtype == torch.float32 and scores.shape == (4,) and scores.std() > 1e-3


def test_batches_and_their_order_change_nothing(reward):
    samples = asked(pixels(4, 3, 40, 57))
    want = reward(samples)
    near(torch.cat([reward(samples[[i]]) for i in range(4)]), want)
    near(torch.cat([reward(samples[[3, 0, 2]]), reward(samples[[1]])]), want[[3, 0, 2, 1]])
    near(reward(samples[[2, 2, 0]]), want[[2, 2, 0]])


def test_pixels_that_are_no_number_spoil_their_own_sample_alone(reward):
    images = pixels(4, 3, 40, 57)
    want = reward(asked(images))
    images[1, 2, 3, 4], images[3, 0, 0, 0] = torch.nan, torch.inf
    got = reward(asked(images))
    assert got.isnan().tolist() == [False, True, False, True]
    near(got[[0, 2]], want[[0, 2]])
    assert reward(asked(torch.full((4, 3, 8, 8), torch.nan))).isnan().all()


def test_an_empty_batch_has_no_scores(reward):
    none = reward(asked(torch.zeros(0, 3, 8, 8), []))
    assert none.shape == (0,) and none.dtype == torch.float32
    assert reward.score(torch.zeros(0, 3, 8, 8), []).shape == (0,)


def test_tensors_have_the_scores_of_their_pictures(reward):
    native = pixels(4, 3, 32, 32)
    near(reward.score(native, TEXTS), reward(asked(native)))  # nothing is resized
    bound = 0.01 if isinstance(reward, Beauty) else 0.003
    if type(reward).__name__ == "pick_score":
        bound *= float(reward.tower.logit_scale)
    for size in ((40, 57), (57, 40), (128, 128)):
        images = pixels(4, 3, *size)
        assert (reward.score(images, TEXTS) - reward(asked(images))).abs().max() < bound


def test_tensors_carry_a_right_gradient(made):
    for name in REWARDS:
        reward = made.reward(name)
        for module in reward.torch_modules():
            module.double()
        images = (0.3 + 0.4 * pixels(2, 3, 20, 24)).double().requires_grad_()
        assert torch.autograd.gradcheck(lambda seen: reward.score(seen, TEXTS[:2]), images, fast_mode=True)  # noqa: B023
        (gradient,) = torch.autograd.grad(reward.score(images, TEXTS[:2])[0], images)
        assert gradient[0].abs().sum() > 1e-4 and not gradient[1].any()


def test_scoring_keeps_no_graph_and_weights_stay(reward):
    images = pixels(2, 3, 20, 24).requires_grad_()
    assert not reward(asked(images, TEXTS[:2])).requires_grad
    assert not any(p.requires_grad for module in reward.torch_modules() for p in module.parameters())
    assert not any(module.training for module in reward.torch_modules())


def test_half_precision_pictures_are_scored(reward):
    images = pixels(4, 3, 20, 24).half()
    near(reward(asked(images)), reward(asked(images.float())))


def test_a_video_has_the_mean_over_its_frames(made):
    video = pixels(4, 5, 3, 20, 24)
    for name in REWARDS:
        reward = made.reward(name)
        frames = torch.stack([reward(asked(video[:, t])) for t in range(5)], 1)
        near(reward(asked(video)), frames.mean(1))
        near(made.reward(name, frames=3)(asked(video)), frames[:, [0, 2, 4]].mean(1))
    spoilt = video.clone()
    spoilt[2, 1] = torch.nan
    assert made.reward("hpsv2", frames=2)(asked(spoilt)).isnan().tolist() == [False, False, True, False]


def test_frames_are_spread_evenly():
    assert evenly(5, None) == evenly(5, 5) == evenly(5, 9) == [0, 1, 2, 3, 4]
    assert evenly(81, 5) == [0, 20, 40, 60, 80] and evenly(5, 1) == [2] and evenly(5, 2) == [0, 4]


def test_it_moves_with_all_its_weights(made):
    for name in REWARDS:
        reward = made.reward(name)
        assert reward.to("meta") is reward
        assert {p.device.type for module in reward.torch_modules() for p in module.parameters()} == {"meta"}
        assert reward.tower.device.type == "meta"


@pytest.mark.parametrize(
    ("images", "said"),
    [
        (torch.zeros(4, 1, 8, 8), "pixels have shape"),
        (torch.zeros(4, 3, 0, 8), "pixels have shape"),
        (torch.zeros(4, 3, 8, 8, dtype=torch.uint8), "divide by 255"),
        (torch.full((4, 3, 8, 8), 255.0), "reach from 255 to 255"),
    ],
)
def test_what_is_no_picture_is_refused(reward, images, said):
    name = type(reward).__name__
    with pytest.raises(ValueError, match=f"{name}: .*{said}"):
        reward(asked(images))
    with pytest.raises(ValueError, match=f"{name}: .*{said}"):
        reward.score(images, TEXTS)


def test_texts_alone_have_no_picture(reward):
    texts = Samples([Prompt("a", "a")], torch.zeros(1), texts=["x"])
    with pytest.raises(ValueError, match=f"{type(reward).__name__} scores images and video; this model gives texts"):
        reward(texts)


def test_there_is_a_text_for_each_picture(reward):
    with pytest.raises(ValueError, match="2 images and 1 texts; accepted is one text an image"):
        reward.score(pixels(2, 3, 8, 8), ["a"])


def test_prompts_count_where_they_should(made):
    images = pixels(4, 3, 20, 24)
    for name in REWARDS:
        reward = made.reward(name)
        same = torch.equal(reward(asked(images)), reward(asked(images, ["two"] * 4)))
        assert same == name.startswith("aesthetic")
    assert torch.equal(made.reward("aesthetic").score(images), made.reward("aesthetic").score(images, TEXTS))


@pytest.mark.parametrize(
    ("name", "args", "said"),
    [
        ("clip_score", {"scale": "percent"}, "scale='percent': accepted are cosine, logit, clipscore"),
        ("clip_score", {"model": "ViT-B-32"}, "'ViT-B-32' is no folder and no owner/name of the hub"),
        ("clip_score", {"frames": 0}, "frames=0: accepted is None"),
        ("pick_score", {"scale": "clipscore"}, "scale='clipscore': accepted are logit, cosine"),
        ("pick_score", {"divide": 0}, "divide=0: accepted is a number above 0"),
        ("pick_score", {"model": "nobody/PickScore"}, "'nobody/PickScore' cannot be loaded"),
        ("hpsv2", {"version": "v3"}, "version='v3': accepted are v2, v2.1"),
        (
            "hpsv2",
            {"checkpoint": "xswu/HPSv2"},
            "'xswu/HPSv2' .* cannot be fetched from the hub .* the path of HPS_v2.1_c",
        ),
        ("hpsv2", {"checkpoint": "."}, "the folder '.' holds no HPS_v2.1_compressed.pt"),
        ("hpsv2", {"checkpoint": "gone.pt"}, "no file at 'gone.pt'"),
        ("aesthetic", {"head": "gone.pth"}, "linearMSE.pth of github.com.*no file at 'gone.pth'"),
        ("aesthetic_v25", {"head": "gone.pth"}, "aesthetic_predictor_v2_5.pth of github.com.*no file at 'gone.pth'"),
        ("aesthetic_v25", {"frames": True}, "frames=True: accepted is None"),
    ],
)
def test_wrong_arguments_are_one_line(made, name, args, said):
    with pytest.raises(RewardError, match=said) as raised:
        load({"mine": RewardSpec(use=name, args=made.args[name] | args)})
    assert "\n" not in str(raised.value)


def test_wrong_heads_are_one_line(made, tmp_path):
    good = clip_support.head("layers", 24, (0, 2, 4, 6, 7))
    bare = {name: value for name, value in good.items() if name != "layers.4.bias"}
    open_end = {name: value for name, value in good.items() if ".7." not in name}
    other = clip_support.head("layers", 768, (0, 2, 4, 6, 7))
    for tensors, said in [
        (bare, "'layers.4.bias' is no part of a chain of linear layers"),
        (good | {"norm.scale": torch.zeros(1)}, "'norm.scale' is no part of a chain"),
        (open_end, "its layers 24x1024, .*, 64x16 lead from no embedding of 24 to 1"),
        (other, "its layers 768x1024, .* lead from no embedding of 24 to 1"),
        ({}, "holds no named tensors"),
    ]:
        torch.save(tensors, tmp_path / "head.pth")
        with pytest.raises(ValueError, match=said) as raised:
            made.reward("aesthetic", head=str(tmp_path / "head.pth"))
        assert "\n" not in str(raised.value) and str(raised.value).startswith("head of aesthetic")


def test_the_layers_of_a_head_follow_their_numbers(made, tmp_path):
    tensors = torch.load(made.head)
    renamed = {name.replace(".7.", ".10."): value for name, value in reversed(tensors.items())}
    save_file(renamed, tmp_path / "head.safetensors")
    images = asked(pixels(4, 3, 20, 24))
    near(made.reward("aesthetic", head=str(tmp_path / "head.safetensors"))(images), made.reward("aesthetic")(images))


def test_pick_score_reads_its_processor_beside_a_bare_model(made, tmp_path):
    bare = shutil.copytree(made.transformers, tmp_path / "bare")
    for file in ("preprocessor_config.json", "tokenizer.json", "tokenizer_config.json"):
        (bare / file).unlink()
    images = asked(pixels(4, 3, 20, 24))
    beside = made.reward("pick_score", model=str(bare), processor=str(made.transformers))
    assert torch.equal(beside(images), made.reward("pick_score")(images))
    with pytest.raises(ValueError, match="laion/CLIP-ViT-H-14-laion2B-s32B-b79K' cannot be loaded"):
        made.reward("pick_score", model=str(bare))


@pytest.fixture
def architecture(made, monkeypatch) -> str:
    """A tiny architecture that open_clip has by name, as it has ViT-H-14."""
    from open_clip import factory

    said = json.loads((made.open_clip / "open_clip_config.json").read_text())["model_cfg"]
    del said["text_cfg"]["hf_tokenizer_name"]
    said["text_cfg"]["vocab_size"] = 49408
    monkeypatch.setitem(factory._MODEL_CONFIGS, "tiny-14", said)
    return "tiny-14"


def test_openais_weights_get_their_quickgelu(architecture, tmp_path, monkeypatch):
    import open_clip
    from open_clip import factory, pretrained

    file = tmp_path / "openai.safetensors"
    tag = {"url": "x", "quick_gelu": True, "mean": (0.5,) * 3, "std": (0.25,) * 3}
    monkeypatch.setitem(pretrained._PRETRAINED, architecture, {"openai": tag})
    monkeypatch.setattr(factory, "download_pretrained", lambda *_, **__: str(file))
    save_file(dict(open_clip.create_model(architecture).state_dict()), file)
    reward = names.load("clip_score", names.rewards())(model=architecture, weights="openai")
    assert any(isinstance(module, open_clip.model.QuickGELU) for module in reward.tower.modules())
    assert reward.tower.preprocess.mean == (0.5,) * 3
    assert reward(asked(pixels(4, 3, 20, 24))).isfinite().all()


def test_a_file_fills_an_architecture_without_a_word(architecture, made, tmp_path, caplog):
    import open_clip

    model = open_clip.create_model(architecture).eval()
    torch.save({"state_dict": model.state_dict()}, tmp_path / "HPS_v2_compressed.pt")
    caplog.clear()
    reward = made.reward("hpsv2", model=architecture, checkpoint=str(tmp_path), version="v2")
    assert not caplog.records  # such as "Model initialized randomly"
    with torch.no_grad():
        told = model.encode_text(open_clip.tokenize(["A red circle, of  two!"], 12), normalize=True)  # pyright: ignore
    near(reward.tower.text(["A red circle, of  two!"]), told)
    assert reward.tower.preprocess.mode == "letter_box" and reward.tower.width == 24
