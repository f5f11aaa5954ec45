"""Conversations drawn, or looked at once more, beside changed pictures of their prompts."""

from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch

import vision_support as vision
from flowrl.contracts import Drawing, Prompt, Rollout, View
from flowrl.environments.workers import Workers
from flowrl.policies.language.views import PictureView, Views, viewed
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
