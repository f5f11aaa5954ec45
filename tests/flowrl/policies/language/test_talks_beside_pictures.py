"""Conversations drawn, or looked at once more, beside changed pictures of their prompts."""

from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

import pytest
import torch

import vision_support as vision
from flowrl.contracts import Drawing, Prompt, Rollout, Samples, View
from flowrl.core.backward import StepLoss, backward
from flowrl.core.filling import weighed
from flowrl.core.objectives.grpo import ClippedObjective
from flowrl.core.objectives.perception import Perception
from flowrl.environments.workers import Workers
from flowrl.policies import adapters
from flowrl.policies.language.completions import plain_rows, rollout_of
from flowrl.policies.language.media.views import PictureView, Views, viewed
from flowrl.policies.language.policy import LanguagePolicy
from flowrl.policies.language.talks.again import talks_with_hints
from flowrl.policies.language.talks.discussion import Speakers, discussion
from flowrl.policies.language.talks.trees import tree_of_turns
from flowrl.policies.noise import Key
from language_support import replayed
from samplers.tokens import Generation
from talk_support import PLAN as TALK
from talk_support import PROMPTS, Album, Counting, policy, seeing

PLAN = Generation(120)
MASKED = PictureView("masked", "drop")


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return vision.folder(tmp_path_factory.mktemp("seeing"), "qwen2_5_vl")


def row(rollout: Rollout, i: int) -> tuple[list[int], list[float], list[bool], Any]:
    """Ids, log-probs, mask and conversation of one row, without its padding."""
    number = int(rollout.replay.length[i])
    lists = (values[i, :number].tolist() for values in (rollout.replay.tokens, rollout.rollout_logp, rollout.mask))
    return *lists, rollout.samples.talks[i].written()


def test_a_second_look_is_beside_another_picture_of_the_prompt_and_the_same_of_the_tool(folder: Path, tmp_path: Path):
    prompts, plan = vision.prompts(tmp_path), PLAN
    subject = seeing(folder, Album(), turn_tokens=12)
    views = Views(second=MASKED)
    drawing = Drawing(prompts, 2, plan, seed=1, first=0)
    rollout = viewed(subject, drawing, lambda samples: ({}, torch.zeros(6)), views=views).rollout
    plain = subject.rollout(prompts, group_size=2, plan=plan, seed=1)
    assert [row(rollout, i) for i in range(6)] == [row(plain, i) for i in range(6)]
    held = rollout.replay
    both = zip(held.inputs, held.shown, strict=True)
    pieces = [(own.pieces, () if other is None else other.pieces) for own, other in both]
    assert max(len(other) for _, other in pieces) > 1
    assert [i for i, (_, other) in enumerate(pieces) if not other] == [4, 5]
    for own, other in pieces[:4]:
        assert own[0].digest != other[0].digest and own[1:] == other[1:]
    seen: list[Any] = []
    with torch.no_grad():
        for part in ([2], [5, 0, 4], [1, 3]):
            subject.look(rollout, torch.tensor(part), View(shown=True), seen.append)
    shown = torch.cat([one.logp for one in seen])[torch.cat([one.rows for one in seen]).argsort()]
    alone = replace(rollout, replay=replace(held, inputs=held.beside(True)))
    expected = replayed(subject, alone, [[i] for i in range(6)]).logp
    mask = rollout.mask[:4]
    torch.testing.assert_close(shown[:4][mask], expected[:4][mask], rtol=0, atol=1e-5)
    assert shown[4:].isnan().all()
    for turn in (1, 2):  # what is said behind the tool's picture sees the other one as well
        own = mask & (rollout.step_stats["turn"][:4] == turn)
        assert ((shown[:4] - rollout.rollout_logp[:4]).abs()[own] > 1e-4).float().mean() > 0.8


def test_a_first_observation_of_its_own_ends_the_prompt_that_is_looked_at_once_more(folder: Path, tmp_path: Path):
    """Each conversation begins with another text; the prompt of the third row is the only one of its length."""
    openings = ["", " Go.", " Now, be quick about it!", " Go.", " Go?", ""]
    prompts = vision.prompts(tmp_path)
    subject = seeing(folder, Album(), turn_tokens=8)
    subject.prepare(prompts[0], PLAN)
    subject.conversations.environment = Album(openings)
    drawing, views = Drawing(prompts, 2, PLAN, seed=1, first=0), Views(second=MASKED)
    rollout = viewed(subject, drawing, lambda samples: ({}, torch.zeros(6)), views=views).rollout
    held = rollout.replay
    for i, opening in enumerate(openings):
        asked = replace(prompts[i // 2], text=prompts[i // 2].text + opening)
        assert held.prompts[i] == subject.encode.row(asked, subject.stop)[0]
        assert held.asked[i] == asked and rollout.samples.prompts[i] == prompts[i // 2]
    found = replayed(subject, rollout, [[2], [0, 1], [5, 3, 4]]).logp
    assert float((found - rollout.rollout_logp).abs()[rollout.mask].max()) < 1e-5
    shown = replace(rollout, replay=replace(held, inputs=held.beside(True)))
    changed = (replayed(subject, shown, [[2], [0, 1], [5, 3, 4]]).logp - found).abs()
    first = rollout.mask & (rollout.step_stats["turn"] == 1)
    assert (changed[:4][first[:4]] > 1e-4).float().mean() > 0.8 and changed[4:].max() == 0


def lengths(samples: Samples) -> tuple[dict[str, torch.Tensor], torch.Tensor]:
    values = samples.lengths.float()
    return {"length": values}, values.double()


def draw(subject: Any, prompts: list[Prompt], views: Views, explore: Any = None) -> tuple[Rollout, dict[str, float]]:
    found = viewed(subject, Drawing(prompts, 3, PLAN, seed=1, first=4), lengths, views=views, explore=explore)
    return found.rollout, found.metrics


@pytest.fixture(scope="module")
def subject(folder: Path) -> LanguagePolicy:
    made = seeing(folder, Album(), turn_tokens=8)
    adapters.add_lora(made.modules, rank=2, alpha=2, targets=r"match:.*language_model.*(q|v)_proj")
    return made


@pytest.fixture(scope="module")
def prompts(tmp_path_factory: pytest.TempPathFactory) -> list[Prompt]:
    return vision.prompts(tmp_path_factory.mktemp("shown"))


@pytest.fixture(scope="module")
def plain(subject: LanguagePolicy, prompts: list[Prompt]) -> Rollout:
    """Five samples of each prompt, beside pictures as they are."""
    return subject.rollout(prompts, group_size=5, plan=PLAN, seed=1, first=4)


@pytest.mark.parametrize("clean", [True, False])
def test_a_view_that_changes_nothing_is_the_run_without_it_bit_for_bit(
    subject: LanguagePolicy, prompts: list[Prompt], plain: Rollout, clean: bool
):
    still = PictureView("still", "mask_patches", {"share": 0.0})
    rollout, told = draw(subject, prompts, Views(draws=still, number=2, clean=clean, beside=still, further=2))
    for i in range(9):
        assert row(rollout, i) == row(plain, i // 3 * 5 + i % 3)
    assert told.get("views/still/gap") == (0.0 if clean else None)
    beside = plain.samples.lengths.float().view(3, 5)[:, 3:].mean(1)  # the fourth and the fifth of a prompt
    contrast = rollout.samples.contrast["length"].view(3, 3)
    assert torch.equal(contrast[:2], beside[:2, None].expand(2, 3)) and contrast[2].isnan().all()


def test_the_last_conversations_of_a_group_see_another_picture_and_the_tools_own(
    subject: LanguagePolicy, prompts: list[Prompt], plain: Rollout
):
    noisy, _ = draw(subject, prompts, Views(draws=MASKED, number=1, clean=False))
    clean, told = draw(subject, prompts, Views(draws=MASKED, number=1))
    late = torch.tensor([2, 5])  # the third prompt has no picture that could change
    for i in range(9):
        same = row(noisy, i)[:2] == row(plain, i // 3 * 5 + i % 3)[:2]
        assert same == (i not in late.tolist())
        assert row(clean, i)[0] == row(noisy, i)[0] and row(clean, i)[3] == row(noisy, i)[3]
    parts = [[2], [0, 1], [5, 3, 4], [6, 7, 8]]
    for rollout in (noisy, clean):
        gap = (replayed(subject, rollout, parts).logp - rollout.rollout_logp)[rollout.mask].abs()
        assert float(gap.max()) < 1e-5
    moved = (noisy.rollout_logp - clean.rollout_logp).abs()[late][noisy.mask[late]]
    assert told["views/masked/gap"] == pytest.approx(float(moved.mean())) and float(moved.mean()) > 1e-3
    pieces = [[own.key for own in rollout.replay.inputs] for rollout in (noisy, clean, plain)]
    for i in late.tolist():
        as_drawn, as_trained, as_is = pieces[0][i], pieces[1][i], pieces[2][i // 3 * 5]
        assert as_drawn[0] != as_trained[0] == as_is[0]
        assert as_drawn[1:] == as_trained[1:]
    assert max(len(own) for own in pieces[1]) > 1


def test_gradients_of_conversations_beside_views_are_the_same_in_any_parts(
    subject: LanguagePolicy, prompts: list[Prompt]
):
    rollout, _ = draw(subject, prompts, Views(draws=MASKED, number=1, second=PictureView("dark", "drop")))
    objective = ClippedObjective(0.2, 0.3, perception=Perception(coef=0.5, entropy=0.05))
    adv, trained, found = torch.linspace(-1, 1, 9), list(subject.trainable()), []
    for parts in ([list(range(9))], [[2], [5, 0, 1], [3, 4, 6, 7, 8]]):
        for parameter in trained:
            parameter.grad = None
        filled, _ = weighed(subject, rollout, adv, objective, len(parts[0]), None)
        share = objective.weights(rollout.mask)
        loss = StepLoss(filled, adv, objective, share, share)
        for part in parts:
            backward(subject, torch.tensor(part), loss)
        assert float(loss.total["perception"]) > 0
        found.append(torch.cat([p.grad.flatten() for p in trained if p.grad is not None]))
    torch.testing.assert_close(found[1], found[0], rtol=0, atol=1e-6)
    assert found[0].abs().max() > 1e-4


FORM = {"ask": "{question};{said}", "line": "{name}: {text}", "hear": "before", "adapters": "rounds"}
SPEAKERS = Speakers(["1", "2"], rounds=1, share="all", discount=1.0, **FORM)
EXPLORED = {
    "tree_of_turns": partial(tree_of_turns, trees=1, expand=2),
    "hints": partial(talks_with_hints, shares=[0.5], right=1e9),
    "discussion": partial(discussion, speakers=SPEAKERS),
}


@pytest.mark.parametrize("name", EXPLORED)
def test_a_second_look_is_at_whatever_drew_the_rows(name: str, folder: Path, prompts: list[Prompt]):
    prompts = [replace(p, meta={"solution": "because of it"}) for p in prompts]
    subject = seeing(folder, Album(), turn_tokens=8)
    if name == "discussion":
        subject.conversations = None
    drawing = Drawing(prompts, 3, Generation(60), seed=1, first=4)
    given = EXPLORED[name](subject, drawing, lengths).rollout
    rollout = viewed(subject, drawing, lengths, views=Views(second=MASKED), explore=EXPLORED[name]).rollout
    held = rollout.replay
    assert torch.equal(given.replay.tokens, held.tokens) and torch.equal(given.rollout_logp, rollout.rollout_logp)
    number = len(rollout.mask) // 3
    for i, (own, other) in enumerate(zip(held.inputs, held.shown, strict=True)):
        assert (other is None) == (i >= 2 * number)
        if other is not None:
            assert other.pieces[0].digest != own.pieces[0].digest and other.pieces[1:] == own.pieces[1:]
    asked = {"hints": " becaus", "discussion": "1: "}.get(name)
    assert asked is None or asked in held.asked[number - 1].text and asked not in prompts[0].text
    found = replayed(subject, replace(rollout, replay=replace(held, inputs=held.beside(True))), [[2], [0, 1]]).logp[:3]
    assert float((found - rollout.rollout_logp[:3]).abs()[rollout.mask[:3]].mean()) > 1e-3


def test_a_stored_conversation_is_trained_as_it_was_scored(subject: LanguagePolicy, prompts: list[Prompt]):
    rollout, _ = draw(subject, prompts, Views(draws=MASKED, number=1))
    again = rollout_of(plain_rows(rollout), PLAN, subject.pad)
    found = replayed(subject, again, [[2], [5, 0], [1, 3, 4, 6, 7, 8]]).logp
    for i in (2, 5, 0):
        assert float((found[i] - rollout.rollout_logp[i]).abs()[rollout.mask[i]].max()) < 1e-5


class Chatty:
    """Begins a conversation with a text where an episode is asked for."""

    def tools(self) -> list[Any]:
        return []

    def start(self, prompt: Prompt, seed: int) -> Any:
        return f"Look at {prompt.id}."


def test_a_text_in_the_place_of_an_episode_fails_and_says_what_is_asked_for():
    samples = policy(Chatty()).rollout(PROMPTS, plan=TALK, seed=0).samples
    assert [talk.end for talk in samples.talks] == ["failed"] * 3
    assert "start gave a str, which has no step(said)" in samples.talks[2].failure
    assert "its attribute opening the text that the prompt ends with" in samples.talks[2].failure


class Restless(Counting):
    """Begins each conversation with another text."""

    begun = 0

    def start(self, prompt: Prompt, seed: int) -> Any:
        self.begun += 1
        self.opening = f" ({self.begun})"
        return super().start(prompt, seed)


@pytest.mark.parametrize("environment", [Restless(), Counting(opening=" (7)")], ids=["restless", "steady"])
def test_a_branch_begins_where_its_environment_begins_as_before(environment: Any):
    subject = policy(environment, talk={"workers": Workers(1)})
    speaks, plan = subject.conversations, replace(TALK, max_new_tokens=60)
    talks = speaks.started(subject, PROMPTS, [[Key(0, p.id, 0)] for p in PROMPTS], plan)
    speaks.converse(subject, talks, plan)
    made = speaks.forked(talks[2], 1, Key(0, "c", 5))
    assert talks[2].failure is None and len(talks[2].said) > 1
    if isinstance(environment, Restless):
        assert "RuntimeError: it does not begin as before" in made.failure
    else:
        assert made.failure is None and made.row.asked.text == f"{PROMPTS[2].text} (7)"
