"""geneval on a tiny Mask2Former and a tiny CLIP, against the published post-processing written anew in numpy."""

import math
from collections import Counter, defaultdict
from types import SimpleNamespace

import numpy as np
import open_clip
import pytest
import torch
from PIL import Image
from torch.nn import functional as F
from transformers import AutoImageProcessor, Mask2FormerForUniversalSegmentation, Mask2FormerImageProcessor

import detector_support
from flowrl import names
from flowrl.contracts import Prompt, Samples
from reward_models.geneval import geneval
from reward_models.parts.vision import geneval_rules as rules
from reward_models.parts.vision import instances
from reward_models.parts.vision.instances import Instance

KINDS = ("cat", "dog", "motorcycle", "computer mouse", "cup", "tv")
SIZE = (48, 64)  # height, width
RESIZE = (64, 96)


@pytest.fixture(scope="module")
def folders(tmp_path_factory: pytest.TempPathFactory) -> SimpleNamespace:
    root = tmp_path_factory.mktemp("geneval")
    return SimpleNamespace(
        detector=str(detector_support.mask2former(root / "detector")),
        clip=str(detector_support.clip(root / "clip", spread=3)),
        vit=str(detector_support.vit(root / "vit")),
        absent=str(root / "absent"),
    )


@pytest.fixture(scope="module")
def make(folders: SimpleNamespace):
    given = {"detector": folders.detector, "model": folders.clip, "weights": None, "resize": RESIZE}
    return lambda **args: geneval(**{**given, "counting_threshold": 0.5, **args})


@pytest.fixture(scope="module")
def pictures() -> torch.Tensor:
    images = torch.full((4, 3, *SIZE), 0.5)
    for image, colour, (top, left) in zip(
        images, torch.eye(4, 3), [(10, 20), (20, 30), (5, 40), (30, 12)], strict=True
    ):
        image[:, top : top + 14, left : left + 16] = colour[:, None, None]
    return images


def samples(images: torch.Tensor, metas: list[dict], **more) -> Samples:
    prompts = [Prompt(id=str(i), text=f"prompt {i}", meta=meta) for i, meta in enumerate(metas)]
    return Samples(prompts=prompts, group=torch.arange(len(prompts)), images=images, **more)


def want(*include: dict, **more) -> dict:
    return {"tag": "colors", "include": list(include), **more}


# ---- the published way from a picture to objects, in numpy --------------------------------------------------------


def softmax(x: np.ndarray) -> np.ndarray:
    e = np.exp(x - x.max(-1, keepdims=True))
    return e / e.sum(-1, keepdims=True)


def by_hand(classes: np.ndarray, masks: np.ndarray, threshold: float) -> list[tuple]:
    """(label, score, box, mask) of class logits [Q, C + 1] and mask logits [Q, H, W] of the picture's size."""
    probability = softmax(classes.astype(np.float64))[:, :-1]
    queries, kinds = probability.shape
    found = []
    for pair in np.argsort(-probability.ravel(), kind="stable")[:queries]:
        query, label = pair // kinds, pair % kinds
        mask = masks[query] > 0
        inside = 1 / (1 + np.exp(-masks[query][mask].astype(np.float64)))
        score = probability[query, label] * inside.sum() / (mask.sum() + 1e-6)
        if score > threshold:
            ys, xs = np.where(mask)
            found.append((label, score, (xs.min(), ys.min(), xs.max() + 1, ys.max() + 1), mask))
    return sorted(found, key=lambda one: -one[1])


def resized(masks: torch.Tensor, size: tuple[int, int]) -> torch.Tensor:
    return F.interpolate(masks[None], size, mode="bilinear", align_corners=False)[0]


def same(found: list[Instance], expected: list[tuple]) -> None:
    assert [(one.label, one.box) for one in found] == [(label, box) for label, _, box, _ in expected]
    assert [one.score for one in found] == pytest.approx([score for _, score, _, _ in expected], abs=1e-5)
    assert all((one.mask.numpy() == mask).all() for one, (*_, mask) in zip(found, expected, strict=True))


@pytest.mark.parametrize("threshold", [0.05, 0.3])
def test_instances_are_those_of_the_formula(threshold: float):
    generator = torch.Generator().manual_seed(3)
    classes, masks = 2 * torch.randn(20, 8, generator=generator), 3 * torch.randn(20, 9, 9, generator=generator) - 6
    found = instances.instances(classes, masks, (31, 27), threshold)
    expected = by_hand(classes.numpy(), resized(masks, (31, 27)).numpy(), threshold)
    same(found, expected)
    assert len(found) > 3 and len({one.box for one in found}) > 1


def test_transformers_post_processing_agrees_where_its_sizes_do_not_matter():
    generator = torch.Generator().manual_seed(4)
    classes, masks = 2 * torch.randn(12, 6, generator=generator), 3 * torch.randn(12, 24, 24, generator=generator)
    output = SimpleNamespace(class_queries_logits=classes[None], masks_queries_logits=masks[None])
    processor = Mask2FormerImageProcessor()
    (theirs,) = processor.post_process_instance_segmentation(
        output, threshold=0.2, target_sizes=[(384, 384)], return_binary_maps=True
    )
    ours = instances.instances(classes, masks, (384, 384), 0.2)
    order = sorted(range(len(ours)), key=lambda i: -theirs["segments_info"][i]["score"])
    assert len(theirs["segments_info"]) == len(ours) > 3
    for one, i in zip(ours, order, strict=True):
        segment = theirs["segments_info"][i]
        assert one.label == segment["label_id"]
        assert one.score == pytest.approx(segment["score"], abs=2e-6)  # they round to 6 digits
        assert torch.equal(one.mask, theirs["segmentation"][i] == 1)


def test_a_mask_without_a_pixel_is_no_instance():
    classes, masks = torch.tensor([[9.0, 0.0], [0.0, 9.0]]), torch.full((2, 4, 4), -1.0)
    assert instances.instances(classes, masks, (8, 8), 0.3) == []
    masks[0, 1, 2] = 50.0
    (one,) = instances.instances(classes, masks, (4, 4), 0.3)
    assert one.box == (2, 1, 3, 2) and one.score == pytest.approx(1 / (1 + math.exp(-9)), abs=1e-5)


def test_a_crop_keeps_the_object_and_paints_all_else_999():
    array = np.arange(6 * 5 * 3, dtype=np.uint8).reshape(6, 5, 3)
    mask = torch.zeros(6, 5, dtype=torch.bool)
    mask[1, 1] = mask[3, 2] = True
    crop = np.asarray(instances.cut(Image.fromarray(array), Instance(0, 0.9, instances.box(mask), mask), "#999"))
    expected = np.full((3, 2, 3), 0x99, dtype=np.uint8)
    expected[0, 0], expected[2, 1] = array[1, 1], array[3, 2]
    assert (crop == expected).all()


def colours_by_hand(folder: str, picture: np.ndarray, found: list[tuple], kind: str) -> list[str]:
    model, _, transform = open_clip.create_model_and_transforms(f"local-dir:{folder}")
    model.eval()
    tokens = open_clip.get_tokenizer("ViT-L-14")
    weights = []
    for colour in rules.COLOURS:
        phrases = [f"a photo of a {colour} {kind}", f"a photo of a {colour}-colored {kind}"]
        each = F.normalize(model.encode_text(tokens([*phrases, f"a photo of a {colour} object"])), dim=-1).mean(0)
        weights.append(each / each.norm())
    answers = []
    for _, _, (x1, y1, x2, y2), mask in found:
        painted = np.where(mask[..., None], picture, 0x99).astype(np.uint8)[y1:y2, x1:x2]
        image = F.normalize(model.encode_image(transform(Image.fromarray(painted))[None]), dim=-1)[0]
        answers.append(rules.COLOURS[int((torch.stack(weights) @ image).argmax())])
    return answers


@torch.no_grad()
def objects_by_hand(folders: SimpleNamespace, image: torch.Tensor, threshold: float) -> dict[str, list]:
    """Kind -> [(score, box, colour)], the surest first."""
    picture = (image.permute(1, 2, 0).numpy() * 255).round().astype(np.uint8)
    model = Mask2FormerForUniversalSegmentation.from_pretrained(folders.detector).eval()
    processor = AutoImageProcessor.from_pretrained(folders.detector, backend="torchvision")
    pixels = processor(images=[Image.fromarray(picture)], size={"shortest_edge": 64, "longest_edge": 96})
    pixels = torch.as_tensor(np.stack([np.asarray(p) for p in pixels["pixel_values"]]))
    assert pixels.shape == (1, 3, 64, 96)  # 64 x 85 in proportion, up to multiples of 32
    output = model(pixel_values=pixels)
    masks = resized(resized(output.masks_queries_logits[0], (64, 96)), SIZE).numpy()
    found = defaultdict(list)
    for one in by_hand(output.class_queries_logits[0].numpy(), masks, threshold):
        found[KINDS[one[0]]].append(one)
    return {
        kind: [
            (s, box, c)
            for (_, s, box, _), c in zip(ones, colours_by_hand(folders.clip, picture, ones, kind), strict=True)
        ]
        for kind, ones in found.items()
    }


@pytest.fixture(scope="module")
def expected(folders: SimpleNamespace, pictures: torch.Tensor) -> list[dict[str, list]]:
    return [objects_by_hand(folders, image, 0.3) for image in pictures]


def test_the_tiny_detector_finds_enough_to_test_with(expected: list):
    for found in expected:
        assert 2 <= len(found) and 2 <= len(found["cat"]) <= 8 and len(found["cup"]) >= 2
    assert len({colour for found in expected for kind in found.values() for *_, colour in kind}) > 2


def test_objects_are_those_of_the_published_way(make, pictures: torch.Tensor, expected: list):
    reward = make()
    clauses = [{"class": kind, "count": 1, "color": "red"} for kind in KINDS]
    task = rules.task(want(*clauses), "")
    for image, theirs in zip(pictures, expected, strict=True):
        picture = Image.fromarray((image.permute(1, 2, 0).numpy() * 255).round().astype(np.uint8))
        ours = reward.objects(picture, task)
        assert ours.keys() == theirs.keys()
        for kind, ones in theirs.items():
            assert [(o.box, o.colour) for o in ours[kind]] == [(box, colour) for _, box, colour in ones]
            assert [o.score for o in ours[kind]] == pytest.approx([score for score, *_ in ones], abs=1e-5)


def test_scores_are_those_of_the_objects(make, pictures: torch.Tensor, expected: list):
    metas, partial, strict, official = [], [], [], []
    for i, found in enumerate(expected):
        number = len(found["cat"])
        colour, same_colour = Counter(c for *_, c in found["cup"]).most_common(1)[0]
        cups = len(found["cup"])
        asked = [number, number + 1, number - 1, number][i]
        exclude = [{"class": "cup", "count": 1}] if i == 3 else []
        metas.append(
            want({"class": "cat", "count": asked}, {"class": "cup", "count": cups, "color": colour}, exclude=exclude)
        )
        kept = 0 if i == 3 else 1
        partial.append(kept * (1 - abs(asked - number) / asked + 1 + same_colour / cups) / 3)
        strict.append(float(kept and asked == number and same_colour == cups))
        official.append(float(kept and asked <= number and same_colour == cups))
    batch = samples(pictures, metas)
    assert make()(batch).tolist() == pytest.approx(partial, abs=1e-6)
    assert make(mode="strict")(batch).tolist() == strict
    assert make(mode="official")(batch).tolist() == official
    assert make()(batch).dtype == torch.float32


def test_compatible_brings_the_published_faults_back(make, pictures: torch.Tensor, expected: list):
    cats = len(expected[0]["cat"])
    assert cats > 2
    batch = samples(pictures[:1], [want({"class": "cat", "count": 1}, exclude=[{"class": "cup", "count": 1}])])
    assert make()(batch).tolist() == [0]
    assert make(compatible=True)(batch).tolist() == [1 - (cats - 1)]
    exact = samples(pictures[:1], [want({"class": "cat", "count": cats}, exclude=[{"class": "cup", "count": 1}])])
    assert make(mode="strict", compatible=True)(exact).tolist() == [1]
    assert make(mode="strict")(exact).tolist() == [0]
    assert make(mode="official", compatible=True)(exact).tolist() == make(mode="official")(exact).tolist() == [0]


def test_counting_takes_only_the_surest(make, folders: SimpleNamespace, pictures: torch.Tensor, expected: list):
    sure = len([score for score, *_ in expected[0]["cat"] if score > 0.5])
    assert 0 < sure < len(expected[0]["cat"])
    for tag, number in (("counting", sure), ("single_object", len(expected[0]["cat"]))):
        meta = {"tag": tag, "include": [{"class": "cat", "count": number}]}
        assert make(mode="strict")(samples(pictures[:1], [meta])).tolist() == [1]


def test_no_more_than_max_objects_of_a_class_count(make, pictures: torch.Tensor, expected: list):
    meta = want({"class": "cat", "count": 2})
    assert len(expected[0]["cat"]) > 2
    assert make(mode="strict", max_objects=2)(samples(pictures[:1], [meta])).tolist() == [1]


def mixed(pictures: torch.Tensor) -> Samples:
    asked = [
        want({"class": "cat", "count": 3}),
        want({"class": "cup", "count": 2, "color": "blue"}, {"class": "cat", "count": 4, "position": ["above", 0]}),
        {"tag": "counting", "include": [{"class": "cup", "count": 3}], "exclude": [{"class": "cup", "count": 4}]},
        want({"class": "computer mouse", "count": 2, "color": "yellow"}),
    ]
    return samples(pictures, asked)


def test_scores_do_not_depend_on_batch_or_order(make, pictures: torch.Tensor):
    reward, batch = make(), mixed(pictures)
    whole = reward(batch)
    assert len(set(whole.tolist())) > 1
    assert torch.equal(torch.cat([reward(batch[[i]]) for i in range(4)]), whole)
    order = [2, 0, 3, 1]
    assert torch.equal(reward(batch[order]), whole[order])


def test_a_pixel_that_is_no_number_costs_its_own_picture_alone(make, pictures: torch.Tensor):
    reward = make()
    whole, broken = reward(mixed(pictures)), pictures.clone()
    broken[1, 0, 3, 3], broken[2, 1, 0, 0] = math.nan, math.inf
    scores = reward(mixed(broken))
    assert scores.isnan().tolist() == [False, True, True, False]
    assert torch.equal(scores[[0, 3]], whole[[0, 3]])


def test_an_empty_batch_has_no_scores(make):
    scores = make()(samples(torch.zeros(0, 3, 8, 8), []))
    assert scores.shape == (0,) and scores.dtype == torch.float32


def test_the_spellings_of_checkpoints_become_those_of_the_benchmark(make):
    assert make().detector.labels == list(KINDS)
    assert instances.names({1: "Sofa", 0: "keyboard"}) == ["computer keyboard", "couch"]


def test_modules_are_moved_and_frozen(make):
    reward = make()
    assert reward.to("cpu") is reward and len(reward.torch_modules()) == 2
    assert not any(p.requires_grad or m.training for m in reward.torch_modules() for p in m.parameters())


def test_the_name_is_known():
    entry = names.rewards()["geneval"]
    assert entry.needs == () and {"mode", "compatible", "detector"} <= set(entry.accepts or ())


def one_line(error: pytest.ExceptionInfo, *said: str) -> None:
    text = str(error.value)
    assert "\n" not in text and all(word in text for word in said), text


@pytest.mark.parametrize(
    ("args", "said"),
    [
        ({"mode": "soft"}, "partial, strict, official"),
        ({"threshold": 30}, "threshold=30"),
        ({"counting_threshold": 0}, "counting_threshold=0"),
        ({"max_objects": 0}, "max_objects=0"),
        ({"position_threshold": -1}, "position_threshold=-1"),
        ({"resize": [800]}, "resize=[800]"),
        ({"resize": [1333, 800]}, "resize=[1333, 800]"),
        ({"resize": "80"}, "resize="),
    ],
)
def test_a_wrong_argument_is_one_line(make, args: dict, said: str):
    with pytest.raises(ValueError) as error:
        make(**args)
    one_line(error, "geneval", said)


@pytest.mark.parametrize("which", ["absent", "vit", "clip"])
def test_a_missing_or_wrong_detector_is_one_line(make, folders: SimpleNamespace, which: str):
    with pytest.raises(ValueError) as error:
        make(detector=getattr(folders, which))
    one_line(error, "geneval: detector", getattr(folders, which))


def test_a_missing_clip_is_one_line(make, folders: SimpleNamespace):
    with pytest.raises(ValueError) as error:
        make(model=folders.absent)
    one_line(error, folders.absent)


@pytest.mark.parametrize(
    ("batch", "said"),
    [
        (samples(torch.zeros(1, 3, 8, 8), [{}]), "'prompt 0' has no GenEval task"),
        (samples(torch.zeros(1, 3, 8, 8), [want({"class": "motorbike", "count": 1})]), "did you mean 'motorcycle'?"),
        (samples(torch.zeros(1, 1, 8, 8), [want({"class": "cat", "count": 1})]), "[1, 1, 8, 8]"),
        (samples(torch.zeros(1, 3, 8, 8, dtype=torch.uint8), [want({"class": "cat", "count": 1})]), "torch.uint8"),
        (samples(torch.full((1, 3, 8, 8), 2.0), [want({"class": "cat", "count": 1})]), "[0, 1]"),
    ],
)
def test_what_cannot_be_scored_is_one_line(make, batch: Samples, said: str):
    with pytest.raises(ValueError) as error:
        make()(batch)
    one_line(error, said)


def test_video_is_refused(make):
    batch = Samples([Prompt("0", "x")], torch.zeros(1, dtype=torch.int64), video=torch.zeros(1, 2, 3, 8, 8))
    with pytest.raises(ValueError, match="geneval scores images; this model gives video"):
        make()(batch)
