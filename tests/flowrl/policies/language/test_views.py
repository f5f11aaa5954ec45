"""Rows drawn, or looked at once more, beside changed pictures: each is what it is alone, and so are its gradients."""

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image

import vision_support as vision
from flowrl.contracts import Drawing, Prompt, Rollout, Samples, View
from flowrl.core.backward import StepLoss, backward, fill_reference
from flowrl.core.filling import weighed
from flowrl.core.objectives.grpo import ClippedObjective
from flowrl.core.objectives.perception import Perception
from flowrl.core.objectives.texts import CorrectedAnswers
from flowrl.core.update import Settings, update
from flowrl.policies import adapters
from flowrl.policies.errors import PolicyError
from flowrl.policies.language.drawing.rows import finish
from flowrl.policies.language.media.views import PictureView, Views, viewed
from flowrl.policies.language.policy import LanguagePolicy
from flowrl.policies.noise import Key
from flowrl.reading import pairs
from language_support import replayed
from samplers.tokens import Generation

PLAN = Generation(8)
NOISY, MASKED = PictureView("noisy", "diffuse", {"step": 900}), PictureView("masked", "mask_patches", {"patch": 7})
SHUFFLED = PictureView("shuffled", "shuffle_frames")


@pytest.fixture(scope="module")
def subject(tmp_path_factory: pytest.TempPathFactory) -> LanguagePolicy:
    made = vision.policy(vision.folder(tmp_path_factory.mktemp("views"), "qwen2_5_vl"))
    adapters.add_lora(made.modules, rank=2, alpha=2, targets=r"match:.*language_model.*(q|v)_proj")
    return made


@pytest.fixture(scope="module")
def prompts(tmp_path_factory: pytest.TempPathFactory) -> list[Prompt]:
    """One picture, two, none, the first picture again, and a video of five frames."""
    folder = tmp_path_factory.mktemp("shown")
    made = vision.prompts(folder)
    clip = folder / "clip"
    clip.mkdir()
    for i in range(6):
        Image.fromarray(np.full((28, 28, 3), 40 * i, np.uint8)).save(clip / f"{i}.png")
    return [*made, Prompt("same", "Once more?", made[0].media), Prompt("video", "Then what?", (str(clip),))]


def drawing(prompts: list[Prompt], group: int = 4) -> Drawing:
    return Drawing(prompts, group, PLAN, seed=3, first=5)


def lengths(samples: Samples) -> tuple[dict[str, torch.Tensor], torch.Tensor]:
    values = samples.lengths.float()
    return {"length": values}, values.double()


def draw(subject: LanguagePolicy, prompts: list[Prompt], views: Views, group: int = 4) -> tuple[Rollout, dict]:
    found = viewed(subject, drawing(prompts, group), lengths, views=views)
    assert found.rewards is None
    return found.rollout, found.metrics


def test_clean_rows_are_those_of_a_plain_rollout_and_noisy_ones_see_noise(
    subject: LanguagePolicy, prompts: list[Prompt]
):
    plain = subject.rollout(prompts, group_size=4, plan=PLAN, seed=3, first=5)
    rollout, _ = draw(subject, prompts, Views(draws=NOISY, number=2, clean=False))
    width = min(plain.rollout_logp.shape[1], rollout.rollout_logp.shape[1])
    early = torch.arange(20) % 4 < 2
    assert torch.equal(plain.replay.tokens[early, :width], rollout.replay.tokens[early, :width])
    torch.testing.assert_close(
        plain.rollout_logp[early, :width], rollout.rollout_logp[early, :width], rtol=0, atol=1e-5
    )
    changed = (plain.rollout_logp[:, 0] - rollout.rollout_logp[:, 0]).abs() > 1e-4
    assert torch.equal(changed, ~early & (torch.arange(20) // 4 != 2))  # a text alone has nothing to change
    mask = rollout.mask
    for parts in ([list(range(20))], [[2], [0, 1, *range(3, 20)]]):
        found = replayed(subject, rollout, parts).logp  # decode = replay beside what drew
        torch.testing.assert_close(found[mask], rollout.rollout_logp[mask], rtol=0, atol=1e-5)


def test_noisy_rows_scored_clean_have_the_log_probs_of_the_pictures_as_they_are(
    subject: LanguagePolicy, prompts: list[Prompt]
):
    noisy, _ = draw(subject, prompts, Views(draws=NOISY, number=2, clean=False))
    rollout, told = draw(subject, prompts, Views(draws=NOISY, number=2))
    assert torch.equal(noisy.replay.tokens, rollout.replay.tokens)
    late = (torch.arange(20) % 4 >= 2) & (torch.arange(20) // 4 != 2)
    gap = (noisy.rollout_logp - rollout.rollout_logp).abs()
    assert (
        told["views/noisy/gap"] == pytest.approx(float(gap[late][rollout.mask[late]].mean())) and gap[~late].max() == 0
    )
    found = replayed(subject, rollout, [[2], [0, 1, *range(3, 20)]]).logp
    torch.testing.assert_close(found[rollout.mask], rollout.rollout_logp[rollout.mask], rtol=0, atol=1e-5)
    clean = subject.start(prompts, [[Key(0, p.id, 0)] for p in prompts], PLAN)
    assert [row.inputs.key for row in clean for _ in range(4)] == [shown.key for shown in rollout.replay.inputs]


def test_a_picture_changes_by_seed_prompt_and_draw_and_each_sample_s_by_its_number(
    subject: LanguagePolicy, prompts: list[Prompt]
):
    ids, clean = subject.encode.row(prompts[0], subject.stop)

    def keys(*args: Any, view: PictureView = MASKED) -> Any:
        return view.inputs(subject, prompts[0], Key(*args), ids).key

    assert keys(3, "one", 5) == keys(3, "one", 5) != clean.key
    assert len({keys(3, "one", 5), keys(4, "one", 5), keys(3, "two", 5), keys(3, "one", 6), keys(3, "one", 5, 1)}) == 5
    for each, number in ((False, 1), (True, 4)):
        rollout, _ = draw(subject, prompts[:1] * 2, Views(second=replace(MASKED, each=each)))
        shown = [row.key for row in rollout.replay.shown]
        assert len(set(shown[:4])) == number and not set(shown[:4]) & set(shown[4:])  # a prompt that comes twice


def test_a_second_look_is_at_what_was_masked_and_at_nothing_where_there_is_none(
    subject: LanguagePolicy, prompts: list[Prompt]
):
    plain = subject.rollout(prompts, group_size=4, plan=PLAN, seed=3, first=5)
    rollout, _ = draw(subject, prompts, Views(second=MASKED))
    assert torch.equal(plain.rollout_logp, rollout.rollout_logp) and torch.equal(plain.mask, rollout.mask)
    found: list[Any] = []
    with torch.no_grad():
        for part in ([2], [1, 7, 9], [0, *range(3, 7), 8, *range(10, 20)]):
            subject.look(rollout, torch.tensor(part), View(shown=True), found.append)
    shown = torch.full_like(rollout.rollout_logp, 9.0)
    for seen in found:
        shown[seen.rows] = seen.logp
    none = torch.arange(20) // 4 == 2
    assert torch.equal(shown.isnan().all(1), none) and not shown[~none].isnan().any()
    alone = replace(rollout, replay=replace(rollout.replay, inputs=rollout.replay.beside(True)))
    expected = replayed(subject, alone, [[7], [*range(7), *range(8, 20)]]).logp
    valid = rollout.mask & ~none[:, None]
    torch.testing.assert_close(shown[valid], expected[valid], rtol=0, atol=1e-5)
    assert ((shown - rollout.rollout_logp).abs()[valid] > 1e-4).float().mean() > 0.9
    with pytest.raises(ValueError, match="has no other pictures for a second look"):
        subject.look(plain, torch.tensor([0]), View(shown=True), found.append)


def test_gradients_are_the_same_in_any_parts_and_the_third_row_s_alone(subject: LanguagePolicy, prompts: list[Prompt]):
    rollout, _ = draw(subject, prompts, Views(draws=NOISY, number=2, second=MASKED))
    objective = ClippedObjective(0.2, 0.3, dual=3.0, perception=Perception(coef=0.5, entropy=0.05))
    assert {"shown", "every_row"} <= objective.needs
    adv = torch.linspace(-1, 1, 20)
    trained = list(subject.trainable())

    def gradient(parts: list[list[int]], micro: int | None, coef: float = 0.5) -> torch.Tensor:
        for parameter in trained:
            parameter.grad = None
        own = replace(objective, perception=Perception(coef=coef, entropy=0.05))
        filled, _ = weighed(subject, rollout, adv, own, micro, None)
        share = own.weights(rollout.mask)
        loss = StepLoss(filled, adv, own, share, share)
        for part in parts:
            backward(subject, torch.tensor(part), loss)
        assert float(loss.total["perception"]) > 0.0 and float(loss.total["perception_entropy"]) > 0.0
        return torch.cat([p.grad.flatten() for p in trained if p.grad is not None])

    whole = gradient([list(range(20))], None)
    for parts, micro in (([[2], [0, 1, *range(3, 20)]], 1), ([[19], [2], [0, 1], list(range(3, 19))], 7)):
        torch.testing.assert_close(gradient(parts, micro), whole, rtol=0, atol=1e-6)
    assert (gradient([list(range(20))], None, coef=0.0) - whole).abs().max() > 1e-4


def test_samples_beside_a_group_are_its_contrast_and_are_not_trained(subject: LanguagePolicy, prompts: list[Prompt]):
    plain = subject.rollout(prompts, group_size=4, plan=PLAN, seed=3, first=5)
    rollout, told = draw(subject, prompts, Views(beside=SHUFFLED, further=3))
    assert torch.equal(plain.replay.tokens, rollout.replay.tokens) and len(rollout.samples) == 20
    contrast = rollout.samples.contrast["length"]
    assert contrast[:16].isnan().all() and not contrast[16:].isnan().any()  # of the video alone
    shown = SHUFFLED.inputs(subject, prompts[4], Key(3, "video", 5), rollout.replay.prompts[16])
    rows = subject.start(prompts[4:], [[Key(3, "video", i) for i in range(9, 12)]], PLAN)
    assert shown.key != rows[0].inputs.key
    for row in rows:
        row.inputs = shown
    finish(subject, rows, PLAN)
    assert float(contrast[16]) == pytest.approx(sum(len(row.ids) for row in rows) / 3)
    assert told["views/shuffled/length"] == pytest.approx(float(contrast[16]))


def test_a_frozen_tower_sees_each_changed_picture_once(prompts: list[Prompt], tmp_path: Path):
    own = vision.policy(vision.folder(tmp_path, "qwen2_5_vl"))
    own.prepare(prompts[0], PLAN)
    own.rollout(prompts, group_size=1, plan=PLAN, seed=0)
    seen: list[int] = []
    own.model.model.visual.patch_embed.register_forward_hook(lambda _, given, __: seen.append(len(given[0])))
    rollout, _ = draw(own, prompts[:2], Views(draws=NOISY, number=2, second=MASKED))
    noisy = [NOISY.inputs(own, p, Key(3, p.id, 5), rollout.replay.prompts[4 * i]) for i, p in enumerate(prompts[:2])]
    patches = sum(piece.tensors["pixel_values"].shape[0] for row in noisy for piece in row.pieces)
    assert sum(seen) == patches  # the pictures as they are were known before
    for part in ([0], [1, 2, 3], list(range(8))):
        own.look(rollout, torch.tensor(part), View(shown=True), lambda _: None)
    assert sum(seen) == 2 * patches


def test_texts_again_beside_masked_pictures_learn_alike_in_any_parts(
    subject: LanguagePolicy, prompts: list[Prompt], tmp_path: Path
):
    """Five rows of each prompt, as they are read from a file; the third row of a prompt alone."""
    lines = [
        {"prompt": p.text, "images": list(p.media), "answer": f"a{i}", "own": "b" * (i + 2), "revised": f"c{i}"}
        for i, p in enumerate([*prompts[:2], prompts[0]])
    ]
    (tmp_path / "corrected.jsonl").write_text("\n".join(json.dumps(line) for line in lines))
    read = pairs.load(str(tmp_path / "corrected.jsonl"))
    texts = [pairs.samples_of(prompt)[0] for prompt in read]
    assert [prompt.media for prompt in read] == [tuple(line["images"]) for line in lines]
    assert texts[1] == ["a1", "bbb", "c1", "a1", "c1"]
    how = {"plan": PLAN, "seed": 3, "first": 5, "shown": [[None, None, None, MASKED, MASKED]] * 3}
    rollout = subject.given(read, texts, **how)
    seen = [shown.key for shown in rollout.replay.inputs]
    assert seen[0] == seen[1] == seen[2] != seen[3] == seen[4] and seen[3] != seen[13]
    objective, trained = CorrectedAnswers(), list(subject.trainable())
    with torch.no_grad():
        trained[-1].add_(0.05)
    for part in torch.arange(15).split(4):
        fill_reference(subject, rollout, part, objective.view)
    found = []
    for micro in (None, 5, 2):
        for parameter in trained:
            parameter.grad = None
        metrics = update(subject, Kept(), rollout, torch.ones(15), objective, Settings(group=5, micro_batch=micro))
        found.append(torch.cat([p.grad.flatten() for p in trained if p.grad is not None]))
    with torch.no_grad():
        trained[-1].sub_(0.05)
    torch.testing.assert_close(found[1], found[0], rtol=0, atol=1e-6)
    torch.testing.assert_close(found[2], found[0], rtol=0, atol=1e-6)
    assert found[0].abs().max() > 1e-4 and metrics["pair_2"] > 0


class Kept:
    """A learner that takes no step, so that gradients stay where they are."""

    scale, loss_scale, lr, parameters = None, 1.0, 0.0, ()
    unmoved: frozenset[str] = frozenset()

    def step(self) -> torch.Tensor:
        return torch.ones(())


def test_tokens_that_change_with_the_picture_are_refused(subject: LanguagePolicy, prompts: list[Prompt]):
    with pytest.raises(PolicyError, match="views.masked: the processor writes other tokens for the changed pictures"):
        MASKED.inputs(subject, prompts[0], Key(0, "one", 0), [1, 2, 3])
