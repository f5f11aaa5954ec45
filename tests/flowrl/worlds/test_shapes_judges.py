"""The shapes world's reward models: what they are trained on, and the ones that ship, through the rewards."""

import random
import re
from pathlib import Path

import numpy as np
import open_clip
import pytest
import torch
from torch import Tensor
from transformers import AutoModelForImageTextToText, AutoProcessor

from flowrl.contracts import Prompt, Samples
from flowrl.worlds.shapes.captions import draw, heldout_scenes, split
from flowrl.worlds.shapes.checker import score
from flowrl.worlds.shapes.judges import beauty, build, clip, exam, style, vlm
from flowrl.worlds.shapes.judges.damage import DAMAGES, apply_damages, draw_severities, rating
from flowrl.worlds.shapes.judges.lookalikes import contents, is_held_out, lookalikes, paraphrase
from flowrl.worlds.shapes.judges.pool import describe_scene, render_with_centres
from flowrl.worlds.shapes.pretrain import KIND_WEIGHTS
from flowrl.worlds.shapes.render import render
from reward_models.aesthetic import aesthetic
from reward_models.clip_score import clip_score
from reward_models.parts.assets import SHIPPED, shipped_path
from reward_models.vlm_judge import vlm_judge

ASSETS = Path(build.__file__).parents[1] / "assets"
NAMES = ("shapes-clip", "shapes-aesthetic", "shapes-vlm", "shapes-style-clip")


@pytest.fixture(scope="module")
def questions() -> list[exam.Question]:
    """A question about each of 320 held-out scenes, by another seed than the cards'."""
    return exam.renders(111)


def asked(images: Tensor, captions: list[str]) -> Samples:
    prompts = [Prompt(str(i), text) for i, text in enumerate(captions)]
    return Samples(prompts=prompts, group=torch.arange(len(prompts)), images=images)


def card(name: str) -> str:
    return (ASSETS / name / "README.md").read_text(encoding="utf-8")


def quoted(name: str, line: str) -> list[float]:
    """The numbers at the end of the card's line of a table that holds `line`."""
    (found,) = [text for text in card(name).splitlines() if line in text]
    return [float(n) for n in re.findall(r"\d+\.\d+", found.partition(line)[2])]


def test_lookalikes_are_other_scenes_and_equals_the_same():
    rng = random.Random(0)
    for scene in draw(split()[0], 300, rng, KIND_WEIGHTS):
        image = render([scene], rng)[0].permute(1, 2, 0).numpy()
        near = lookalikes(scene, 4, rng, seen=True)
        assert len(near) >= 2 and len({w.caption for w in near} | {scene.caption}) == len(near) + 1
        assert not [w for w in near if is_held_out(w)]
        for wrong in near:
            across = scene.relation is not None and contents(wrong) == contents(scene)
            assert across or score(image, wrong)[0] == 0, (scene.caption, wrong.caption)
        if score(image, scene)[0]:
            assert score(image, paraphrase(scene, rng))[0] == 1


def test_training_never_meets_a_held_out_composition():
    assert all(is_held_out(scene) for scene in heldout_scenes())
    assert not [s for scenes in split()[0].values() for s in scenes if is_held_out(s)]
    scenes = [
        s for s in split()[0]["pair"] if any(is_held_out(w) for w in lookalikes(s, 8, random.Random(1), seen=False))
    ]
    assert scenes  # so that `seen` has something to leave out


def test_what_the_checker_sees_is_put_into_words():
    rng = random.Random(0)
    scenes = draw(split()[0], 200, rng, KIND_WEIGHTS)
    images, spots = render_with_centres(scenes, random.Random(3))
    assert torch.equal(images, render(scenes, random.Random(3)))
    told = [describe_scene(image.permute(1, 2, 0).numpy()) for image in images]
    same = [t is not None and contents(t) == contents(s) for t, s in zip(told, scenes, strict=True)]
    assert sum(same) >= 196 and describe_scene(np.full((32, 32, 3), 0.9, dtype=np.float32)) is None
    for scene, image, places in zip(scenes, images, spots, strict=True):
        held = places[torch.isfinite(places).all(1)]
        assert len(held) == len(scene.objects)
        colors = image[:, held[:, 1].long(), held[:, 0].long()]  # the middle of an object has its colour
        assert (colors.amax(0) - colors.amin(0) > 0.3).tolist() == [c != "black" for c, _ in scene.objects]


def test_damage_is_what_its_rating_says():
    scenes = heldout_scenes()[:64]
    clean, generator = render(scenes, random.Random(0)), torch.Generator().manual_seed(0)
    none = torch.zeros(64, len(DAMAGES))
    assert torch.allclose(apply_damages(clean, none, generator), clean, atol=1e-5) and (rating(none) == 10).all()
    for k in range(len(DAMAGES)):
        changes = []
        for severity in (0.3, 0.6, 1.0):
            spoilt = none.clone()
            spoilt[:, k] = severity
            assert rating(spoilt).allclose(torch.tensor(1 + 9 * (1 - severity)))
            hurt = apply_damages(clean, spoilt, generator)
            assert hurt.min() >= 0 and hurt.max() <= 1
            changes.append((hurt - clean).abs().mean().item())
        assert 0.001 < changes[0] < changes[1] < changes[2], DAMAGES[k]
    both = torch.tensor([[0.5, 0.5, 0.0, 0.0, 0.0]])
    assert rating(both).item() == pytest.approx(3.25)
    table = draw_severities(400, random.Random(0))
    assert set((table > 0).sum(1).tolist()) == {0, 1, 2} and table.max() <= 1


def test_measures_of_the_exam():
    scores, labels = torch.tensor([0.1, 0.4, 0.4, 0.9]), torch.tensor([0.0, 1.0, 0.0, 1.0])
    assert exam.auroc(scores, labels) == 3.5 / 4
    assert exam.calibration_error(scores, labels) == pytest.approx((0.1 + 2 * 0.1 + 0.1) / 4)
    assert exam.ranks_right_first(
        torch.tensor([1.0, 1.0]), [torch.tensor([0.5]), torch.tensor([0.2, 1.0])]
    ).tolist() == [1, 0]
    sure = torch.sigmoid(torch.tensor([4.0, -4.0] * 50))
    half_right = torch.tensor([1.0, 0.0, 1.0, 0.0, 0.0, 1.0, 1.0, 0.0] * 12 + [1.0, 0.0, 1.0, 0.0])
    assert (
        vlm.calibrate_temperature(sure, half_right) > 2
        and vlm.calibrate_temperature(sure, torch.tensor([1.0, 0.0] * 50)) < 0.3
    )


def test_shipped_files_are_small_and_found():
    files = [p for name in NAMES for p in (ASSETS / name).rglob("*") if p.is_file()]
    assert sum(p.stat().st_size for p in files) <= 5_000_000
    assert set(SHIPPED) == set(NAMES) and all(Path(shipped_path(name)).exists() for name in NAMES)
    assert shipped_path("openai/clip-vit-large-patch14") == "openai/clip-vit-large-patch14"
    made = {name: "shapes-style" if name == "shapes-style-clip" else "shapes-rewards" for name in NAMES}
    assert all(f"`flowrl world build {made[n]}`" in card(n) and "Apache-2.0" in card(n) for n in NAMES)


def test_the_libraries_load_what_ships():
    folder = f"local-dir:{ASSETS / 'shapes-clip'}"
    model, _, preprocess = open_clip.create_model_and_transforms(folder)
    assert model.encode_image(torch.zeros(1, 3, 32, 32)).shape == (1, clip.WIDTH) and preprocess is not None
    ids = open_clip.get_tokenizer(folder)(["a red circle left of a blue square"])
    assert ids.shape == (1, 16) and len(set(ids[0].tolist())) == 9  # each word is a token; begin and end
    judge = AutoModelForImageTextToText.from_pretrained(ASSETS / "shapes-vlm")
    processor = AutoProcessor.from_pretrained(ASSETS / "shapes-vlm")
    assert type(judge).__name__ == "LlavaForConditionalGeneration" and processor.chat_template


def test_shapes_clip_picks_the_right_caption(questions):
    """Through the reward, on 320 held-out compositions, about as often as its card says, and far above chance."""
    reward = clip_score(model="shapes-clip")
    place = [i for i, q in enumerate(questions) for _ in range(len(q.wrong) + 1)]
    captions = [s.caption for q in questions for s in (q.scene, *q.wrong)]
    scores = reward(asked(torch.stack([q.image for q in questions])[place], captions))
    parts = scores.split([len(q.wrong) + 1 for q in questions])
    share = exam.ranks_right_first(torch.stack([p[0] for p in parts]), [p[1:] for p in parts]).mean().item()
    (said,) = quoted("shapes-clip", "relation |")
    assert share > max(0.4, said - 0.08)


def test_shapes_style_clip_knows_styles_and_captions(questions):
    """In other styles and strengths than the card's."""
    folder = ASSETS / style.NAME
    assert sum(p.stat().st_size for p in folder.iterdir()) <= 1_000_000
    found = style.measure(folder, questions[::2], None, seed=43)
    (picked,), (scene,) = quoted(style.NAME, "three |")[:1], quoted(style.NAME, "behind the same word |")
    assert found.renders > max(0.7, picked - 0.06) and found.scene > max(0.4, scene - 0.08)


def test_shapes_aesthetic_rates_as_its_rule():
    reward = aesthetic(model="shapes-clip", head="shapes-aesthetic")
    images, wanted = beauty.exam(400, 131)
    read = reward(asked(images, ["anything"] * len(images)))
    said, *_ = quoted("shapes-aesthetic", "correlation with the rule |")
    assert exam.correlation(read, wanted) > max(0.6, said - 0.05)
    clean, _ = reward(asked(render(heldout_scenes(), random.Random(5)), ["a"] * 320)).median(0)
    assert clean > 7.5


def test_shapes_vlm_answers(questions):
    """Through the reward: accuracy and AUROC about as its card says, whatever the batch."""
    reward = vlm_judge(model="shapes-vlm", dtype="float32")
    images, captions, labels = build.questions(questions[::2], None)
    samples = asked(images, captions)
    scores = reward(samples)
    accuracy, auroc, _ = quoted("shapes-vlm", "a changed one |")
    assert ((scores > 0.5).float() == labels).float().mean() > max(0.6, accuracy - 0.08)
    assert exam.auroc(scores, labels) > max(0.65, auroc - 0.08)
    order = list(range(0, 20))[::-1]
    assert torch.allclose(reward(samples[order]), scores[order], atol=1e-5)
    model, processor = vlm.load(ASSETS / "shapes-vlm")
    ours = vlm.probabilities(model, processor, (images[:40] * 255).round() / 255, captions[:40])
    assert torch.allclose(ours, scores[:40], atol=1e-3)
