"""Models that read pictures: rows of different lengths and pictures, drawn together, are what each is alone."""

from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch

import vision_support as vision
from flowrl.contracts import Prompt, View
from flowrl.policies import adapters
from flowrl.policies.errors import PolicyError
from flowrl.policies.language.drawing.partial import Unfinished
from flowrl.policies.language.drawing.rows import Begun, finish, go_on
from flowrl.policies.language.media.inputs import EMPTY, Inputs, Piece, joined
from flowrl.policies.language.policy import LanguagePolicy
from flowrl.policies.noise import Key
from language_support import replayed
from samplers.tokens import Generation

PLAN = Generation(10)
NAMES = sorted(vision.MODELS)


@pytest.fixture(scope="module", params=NAMES)
def subject(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> LanguagePolicy:
    return vision.policy(vision.folder(tmp_path_factory.mktemp(request.param), request.param))


@pytest.fixture(scope="module")
def prompts(tmp_path_factory: pytest.TempPathFactory) -> list[Prompt]:
    return vision.prompts(tmp_path_factory.mktemp("pictures"))


def alone(subject: LanguagePolicy, row: Any) -> torch.Tensor:
    """Log-probs [K] of a row by the model itself: no padding, no cache, the positions that it takes of itself."""
    ids = torch.tensor([[*row.prompt_ids, *row.ids]])
    given = dict(row.inputs.pieces[0].tensors) if row.inputs else {}
    if row.inputs and "mm_token_type_ids" in row.inputs.pieces[0].types:
        given["mm_token_type_ids"] = (ids == vision.IMAGE).long()
    with torch.no_grad():
        logits = subject.model(input_ids=ids, use_cache=False, **given).logits
    logp = logits[0, len(row.prompt_ids) - 1 : -1].log_softmax(-1)
    return logp.gather(1, ids[0, len(row.prompt_ids) :, None])[:, 0]


def test_rows_drawn_together_are_those_of_the_model_alone(subject: LanguagePolicy, prompts: list[Prompt]):
    rollout = subject.rollout(prompts, group_size=2, plan=PLAN, seed=3)
    whole = replayed(subject, rollout, [[0, 1, 2, 3, 4, 5]]).logp
    third = replayed(subject, rollout, [[2], [0, 1, 3, 4, 5]]).logp
    mask = rollout.mask
    assert len(set(rollout.replay.length.tolist())) > 1
    torch.testing.assert_close(whole[mask], rollout.rollout_logp[mask], rtol=0, atol=1e-5)
    torch.testing.assert_close(third[mask], whole[mask], rtol=0, atol=1e-5)
    rows = subject.start(prompts, [[Key(3, p.id, i, 0) for i in range(2)] for p in prompts], PLAN)
    for i, row in enumerate(rows):
        row.ids = rollout.replay.tokens[i, : rollout.replay.length[i]].tolist()
        torch.testing.assert_close(alone(subject, row), rollout.rollout_logp[i, : len(row.ids)], rtol=0, atol=1e-5)


def test_a_picture_is_seen_and_no_placeholder_is_drawn(subject: LanguagePolicy, prompts: list[Prompt], tmp_path: Path):
    other = replace(prompts[0], media=(vision.picture(tmp_path / "other.png", seed=7),))
    here, there = (subject.rollout([p], group_size=4, plan=PLAN, seed=3) for p in (prompts[0], other))
    assert not torch.equal(here.rollout_logp[:, 0], there.rollout_logp[:, 0])
    drawn = subject.rollout(prompts[:1], group_size=64, plan=replace(PLAN, temperature=1e6), seed=0).replay.tokens
    assert subject.barred and not torch.isin(drawn, torch.tensor(subject.barred)).any()


def test_an_observation_with_a_picture_is_replayed_as_it_was_drawn(subject: LanguagePolicy, prompts: list[Prompt]):
    rows = subject.start(prompts, [[Key(1, p.id, 0, 0)] for p in prompts], PLAN)
    go_on(subject, rows, PLAN, until=4, keep=True)
    shown, media = subject.encode.row(prompts[0])
    for row in rows[:2]:
        row.ended = False
        row.give(shown, inputs=media)
    plan = replace(PLAN, max_new_tokens=80)
    finish(subject, rows, plan)
    rollout = subject.completed(rows, torch.arange(3), plan)
    found = replayed(subject, rollout, [[1], [0, 2]]).logp
    drawn = torch.tensor([[*row.drawn, *[False] * (rollout.mask.shape[1] - len(row.ids))] for row in rows])
    assert torch.equal(drawn, rollout.mask) and int(drawn[0].sum()) > 4
    torch.testing.assert_close(found[drawn], rollout.rollout_logp[drawn], rtol=0, atol=1e-5)
    forked = rows[0].fork(4, Key(1, "one", 9, 0))
    assert forked.inputs is not None and len(forked.inputs.pieces) == 1


def test_rows_with_other_pictures_are_other_contexts(subject: LanguagePolicy, prompts: list[Prompt], tmp_path: Path):
    other = replace(prompts[0], id="other", media=(vision.picture(tmp_path / "other.png", seed=7),))
    keys = [[Key(0, "same", 0, 0)]] * 2
    rows = subject.start([prompts[0], other], keys, PLAN)
    assert rows[0].prompt_ids == rows[1].prompt_ids
    go_on(subject, rows, PLAN)
    assert rows[0].logp != rows[1].logp
    begun = subject.rollout([prompts[0]], plan=PLAN, seed=0, begun=[Begun(rows[0].ids[:2], inputs=EMPTY)])
    assert begun.replay.tokens[0, :2].tolist() == rows[0].ids[:2]


def test_a_saved_row_goes_on_with_its_picture(subject: LanguagePolicy, prompts: list[Prompt]):
    (row,) = subject.start(prompts[:1], [[Key(0, "one", 0, 0)]], PLAN)
    go_on(subject, [row], PLAN, until=3)
    row.version = [1] * len(row.ids)
    row.ended = False
    kept = Unfinished(prompts)
    kept.groups = [[row]]
    again = Unfinished(prompts)
    again.load_state_dict(kept.state_dict())
    (other,) = again.groups[0]
    assert other.inputs is not None and row.inputs is not None and other.inputs.key == row.inputs.key
    for one in (row, other):
        go_on(subject, [one], PLAN)
    assert (row.ids, row.logp) == (other.ids, other.logp)


def test_tensors_of_different_sizes_are_filled_up_with_zeros():
    made = joined([torch.ones(1, 2, 3), 2 * torch.ones(2, 1, 4)])
    assert made.shape == (3, 2, 4) and made[0, :, 3].eq(0).all() and made[1, 1].eq(0).all()
    assert made.sum() == 6 + 2 * 8
    piece = Piece.of(3, {"x": torch.arange(4.0)}, {"token_type_ids": torch.tensor([0, 1, 1, 0, 0])})
    both = Inputs((piece,)).then(Inputs((piece,)), 7)
    assert [p.begin for p in both.pieces] == [0, 7] and both.end == 10 and both.cut(9) == Inputs((piece,))
    assert Inputs.of_state(both.state()).key == both.key


def test_a_model_of_text_refuses_pictures(prompts: list[Prompt]):
    from language_support import policy

    with pytest.raises(PolicyError, match="has pictures or sounds .* reads text alone; give a vision-language model"):
        policy().rollout(prompts[:1], plan=PLAN, seed=0)


def test_marks_that_are_not_as_many_as_pictures_are_refused(subject: LanguagePolicy, prompts: list[Prompt]):
    wrong = replace(prompts[0], text="<image> and <image>?")
    with pytest.raises(PolicyError, match="has the mark <image> 2 times for 1 files"):
        subject.rollout([wrong], plan=PLAN, seed=0)


def test_a_frozen_tower_sees_each_picture_once(prompts: list[Prompt], tmp_path: Path):
    """In a rollout of groups, in its replay in any parts; whoever trains the tower has it see every row."""
    subject = vision.policy(vision.folder(tmp_path, "qwen2_5_vl"))
    subject.prepare(prompts[0], PLAN)
    seen: list[int] = []
    tower = subject.model.model.visual
    tower.patch_embed.register_forward_hook(lambda _, given, __: seen.append(len(given[0])))
    rollout = subject.rollout(prompts, group_size=4, plan=PLAN, seed=3)
    whole = replayed(subject, rollout, [list(range(12))]).logp
    parts = replayed(subject, rollout, [[i] for i in range(12)]).logp
    patches = [p.tensors["pixel_values"].shape[0] for i in (0, 4) for p in rollout.replay.inputs[i].pieces]
    assert sum(seen) == patches[1] and sum(patches) > sum(seen)  # that of the first prompt is known from the proof
    mask = rollout.mask
    torch.testing.assert_close(whole[mask], parts[mask], rtol=0, atol=1e-5)
    again = vision.policy(tmp_path)
    again.model.model.visual.requires_grad_(True)
    other = again.rollout(prompts, group_size=4, plan=PLAN, seed=3)
    assert torch.equal(other.replay.tokens, rollout.replay.tokens)
    torch.testing.assert_close(other.rollout_logp[mask], rollout.rollout_logp[mask], rtol=0, atol=1e-5)
    count: list[int] = []
    again.model.model.visual.patch_embed.register_forward_hook(lambda _, given, __: count.append(len(given[0])))
    look: list[Any] = []
    again.look(other, torch.tensor([0, 1]), View(), look.append)
    assert sum(count) == 2 * patches[0] and look[0].logp.requires_grad
    with torch.no_grad():
        tower.patch_embed.proj.weight.mul_(2)  # weights that are not what they were
    changed = replayed(subject, rollout, [[0]]).logp
    assert not torch.allclose(changed[mask[:1]], parts[:1][mask[:1]], atol=1e-4)


@pytest.mark.parametrize(
    ("targets", "towers", "language"),
    [
        ("attention", True, True),
        ("match:.*visual.*qkv", True, False),
        (r"match:.*language_model.*(q|v)_proj", False, True),
    ],
)
def test_adapters_of_the_tower_the_language_model_or_both_learn(
    prompts: list[Prompt], tmp_path: Path, targets: str, towers: bool, language: bool
):
    subject = vision.policy(vision.folder(tmp_path, "qwen2_5_vl"))
    adapters.add_lora(subject.modules, rank=2, alpha=2, targets=targets)
    rollout = subject.rollout(prompts[:2], group_size=2, plan=PLAN, seed=3)
    found: list[Any] = []
    subject.look(rollout, torch.arange(4), View(), found.append)
    mask = rollout.mask
    torch.testing.assert_close(found[0].logp[mask].detach(), rollout.rollout_logp[mask], rtol=0, atol=1e-5)
    found[0].logp[mask].sum().backward()
    moved = {n for n, p in subject.model.named_parameters() if p.grad is not None and p.grad.abs().sum() > 0}
    assert any(".visual." in n for n in moved) == towers and any("language_model" in n for n in moved) == language
