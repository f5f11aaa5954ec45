"""What a vision model does to pictures: the libraries' numbers with Pillow, and tensors that follow them."""

import numpy as np
import pytest
import torch
from PIL import Image

import golden
from reward_models.parts.embedding.preprocess import CLIP_MEAN, CLIP_STD, Preprocess
from reward_models.parts.inputs import as_pil

SIZES = [(32, 32), (40, 57), (57, 40), (31, 200), (20, 24), (33, 32), (3, 5), (97, 96)]


def noise(height: int, width: int, seed: int = 0) -> Image.Image:
    pixels = np.random.default_rng(seed).integers(0, 256, (height, width, 3), dtype=np.uint8)
    return Image.fromarray(pixels)


def tensor(picture: Image.Image) -> torch.Tensor:
    return torch.from_numpy(np.asarray(picture).copy()).permute(2, 0, 1)[None] / 255


def levels(pixels: torch.Tensor) -> torch.Tensor:
    """Normalised pixels as levels of 0..255 again."""
    mean, std = torch.tensor(CLIP_MEAN).view(3, 1, 1), torch.tensor(CLIP_STD).view(3, 1, 1)
    return (pixels * std + mean) * 255


@pytest.mark.parametrize("size", SIZES)
@pytest.mark.parametrize("mode", ["shortest", "longest", "squash"])
@pytest.mark.parametrize("interpolation", ["bicubic", "bilinear"])
def test_pictures_are_what_open_clip_makes_of_them(size, mode, interpolation):
    from open_clip.transform import PreprocessCfg, image_transform_v2

    picture = noise(*size)
    theirs = image_transform_v2(PreprocessCfg(32, interpolation=interpolation, resize_mode=mode), is_train=False)
    ours = Preprocess((32, 32), mode=mode, interpolation=interpolation)
    torch.testing.assert_close(ours.pictures([picture])[0], theirs(picture), atol=1e-6, rtol=0)


@pytest.mark.parametrize("size", SIZES)
@pytest.mark.parametrize(("shortest", "crop"), [(32, (32, 32)), (36, (31, 30))])
def test_pictures_are_what_transformers_makes_of_them(size, shortest, crop):
    from transformers.models.clip.image_processing_pil_clip import CLIPImageProcessorPil

    picture = noise(*size)
    theirs = CLIPImageProcessorPil(size={"shortest_edge": shortest}, crop_size={"height": crop[0], "width": crop[1]})
    ours = Preprocess(crop, side=shortest, floor=True)
    want = theirs(picture, return_tensors="pt")["pixel_values"]
    torch.testing.assert_close(ours.pictures([picture]), want, atol=1e-5, rtol=0)


@pytest.mark.parametrize("case", golden.cases("direct/rewards_hpsv2_resize.json"))
def test_the_letter_box_is_the_published_one(case):
    side = case["params"]["max_size"]
    image = torch.tensor(case["inputs"]["image"])
    ours = Preprocess((side, side), mode="letter_box")
    golden.check({"out": ours.fit(image)}, case)
    golden.check({"out": ours.fit(image[None].expand(2, -1, -1, -1))[1]}, case)


def test_a_letter_box_keeps_all_of_a_picture_and_pads_what_fits_already():
    ours = Preprocess((224, 224), mode="letter_box")
    assert ours.scaled_size(165, 320) == (115, 224)  # 115.49999999999999: HPSv2's own rounding
    assert Preprocess((224, 224), mode="longest").scaled_size(165, 320) == (116, 224)
    assert ours.scaled_size(1, 4000) == (1, 224)
    fitted = ours.pictures([Image.new("RGB", (224, 101), "white")])
    bright = levels(fitted)[0, 0, :, 0]
    assert bright.shape == (224,) and (bright > 254).nonzero().flatten().tolist() == list(range(61, 162))


@pytest.mark.parametrize("size", SIZES)
@pytest.mark.parametrize("mode", ["shortest", "letter_box", "squash"])
def test_tensors_differ_from_pictures_by_little_more_than_a_level(size, mode):
    ours = Preprocess((32, 32), mode=mode)
    for seed in range(3):
        picture = noise(*size, seed)
        gap = levels(ours.tensors(tensor(picture))) - levels(ours.pictures([picture]))
        assert gap.abs().mean() < 0.4
        assert gap.abs().max() < 1.5 or size == (57, 40)  # tall: Pillow 13 may take heights first
    if size == (32, 32):
        assert gap.abs().max() < 1e-3


def test_tensors_carry_the_gradient_of_the_resize():
    ours = Preprocess((4, 4), mode="letter_box")
    images = torch.rand(1, 3, 6, 9, dtype=torch.float64, generator=torch.Generator().manual_seed(0)) * 0.4 + 0.3

    def fitted(pixels: torch.Tensor) -> torch.Tensor:
        return ours.fit(pixels)

    assert torch.autograd.gradcheck(fitted, images.requires_grad_())
    ours.tensors(images).sum().backward()
    assert images.grad is not None and images.grad.abs().sum() > 0


def test_any_picture_becomes_rgb():
    ours = Preprocess((8, 8))
    grey = Image.new("L", (9, 8), 77)
    torch.testing.assert_close(ours.pictures([grey]), ours.pictures([grey.convert("RGB")]))
    assert ours.pictures([grey, Image.new("RGBA", (20, 30)), Image.new("P", (8, 8))]).shape == (3, 3, 8, 8)
    assert ours.pictures([]).shape == (0, 3, 8, 8)
    assert ours.tensors(torch.zeros(0, 3, 9, 9)).shape == (0, 3, 8, 8)


def test_unknown_ways_are_refused():
    with pytest.raises(ValueError, match="resize mode 'crop': accepted are shortest, longest, letter_box, squash"):
        Preprocess((8, 8), mode="crop")  # pyright: ignore[reportArgumentType]
    with pytest.raises(ValueError, match="interpolation 'nearest': accepted are bicubic and bilinear"):
        Preprocess((8, 8), interpolation="nearest")


def test_a_tensor_on_the_grid_of_8_bits_is_the_picture():
    picture = noise(32, 32)
    (again,) = as_pil(tensor(picture))
    assert np.array_equal(np.asarray(again), np.asarray(picture))
