"""Conversations drawn under the one policy: what is given and what is drawn, where turns end, what fails."""

import time
from collections import Counter
from dataclasses import replace
from typing import Any

import pytest
import torch

from flowrl.contracts import ModelsFault, Prompt, Rollout, Said, Shown, View
from flowrl.environments.functions import Functions
from flowrl.environments.workers import Workers
from flowrl.policies.language.policy import LanguagePolicy
from talk_support import PLAN, PROMPTS, Counting, CountingEpisode, add, model, policy

GROUP = 6


@pytest.fixture(scope="module")
def talker() -> LanguagePolicy:
    return policy()


@pytest.fixture(scope="module")
def drawn(talker: LanguagePolicy) -> Rollout:
    return talker.rollout(PROMPTS, group_size=GROUP, plan=PLAN, seed=0)


def test_the_tools_are_heard_and_answer(drawn: Rollout):
    talks = drawn.samples.talks
    assert talks is not None and len(talks) == GROUP * len(PROMPTS)
    ends = Counter(talk.end for talk in talks)
    assert ends["answer"] > 2 and set(ends) <= {"answer", "turns", "length"}
    shown = {m.text for talk in talks for messages in talk.shown for m in messages}
    assert {"3", "34", "Error: not no"} <= shown
    assert any(text.startswith("Error: there is no tool 'fall'") for text in shown)
    assert any(text.startswith("Error: a must be of type integer") for text in shown)
    assert any("not JSON" in text for text in shown)
    assert max(len(talk.said) for talk in talks) > 2


def test_a_replay_is_its_rollout_with_what_was_shown_in_it(talker: LanguagePolicy, drawn: Rollout):
    alone = torch.zeros(drawn.mask.shape)
    for row in range(len(drawn.mask)):
        talker.look(drawn, torch.tensor([row]), View(), lambda seen, row=row: alone[row].copy_(seen.logp[0].detach()))
    assert (alone - drawn.rollout_logp)[drawn.mask].abs().max() <= 1e-4


def test_what_was_drawn_stays_and_what_was_shown_is_as_the_template_has_it(talker: LanguagePolicy, drawn: Rollout):
    """The row's ids are the drawn ones with, between two turns, the template's own; read off one whole chat."""
    told, held = talker.tokenizer, drawn.replay
    several = [i for i, talk in enumerate(drawn.samples.talks or ()) if len(talk.said) > 2]
    assert several
    for i in several:
        talk = drawn.samples.talks[i]
        chat: list[dict[str, Any]] = [{"role": "user", "content": drawn.samples.prompts[i].text}]
        for said, shown in zip(talk.said, talk.shown, strict=True):
            chat.append({"role": "assistant", "content": said.text})
            chat += [{"role": "tool", "content": message.text} for message in shown]
        assert chat[-1]["role"] == "assistant"
        whole = told.apply_chat_template(chat, tools=talker.encode.arguments["tools"], tokenize=False)
        ids = [*held.prompts[i], *held.tokens[i, : held.length[i]].tolist()]
        assert whole.startswith(told.decode(ids)) and whole.removeprefix(told.decode(ids)) in ("\n", "</s>\n")


def test_only_what_the_model_said_is_trained(talker: LanguagePolicy, drawn: Rollout):
    for i, talk in enumerate(drawn.samples.talks or ()):
        tokens = drawn.replay.tokens[i][drawn.mask[i]].tolist()
        assert talker.tokenizer.decode(tokens, skip_special_tokens=True) == talk.text
        assert int(drawn.samples.lengths[i]) == len(tokens)
        assert drawn.samples.texts[i] == talk.said[-1].text
    assert (drawn.rollout_logp[~drawn.mask] == 0).all()


def test_turns_are_numbered_through_what_was_shown(drawn: Rollout):
    turn = drawn.step_stats["turn"]
    for i, talk in enumerate(drawn.samples.talks or ()):
        own = turn[i, : int(drawn.replay.length[i])]
        assert own.unique().tolist() == list(range(1, len(talk.said) + 1))
        assert (own.diff() >= 0).all() and (turn[i, len(own) :] == 0).all()


@pytest.mark.parametrize("number", [1, 5])
def test_a_row_is_the_same_in_any_batch(drawn: Rollout, number: int):
    """Noise is that of seed, prompt, member and token, also behind what was shown."""
    other = policy(max_rows=number).rollout(PROMPTS[2:0:-1], group_size=2, plan=PLAN, seed=0, first=3)
    for at, i in enumerate([15, 16, 9, 10]):
        length = int(drawn.replay.length[i])
        assert other.replay.tokens[at, :length].tolist() == drawn.replay.tokens[i, :length].tolist()
        assert other.samples.talks[at] == drawn.samples.talks[i]


def test_greedy_conversations_are_not_trained(talker: LanguagePolicy):
    greedy = talker.rollout(PROMPTS[:2], plan=replace(PLAN, temperature=0.0), seed=0)
    assert not greedy.mask.any() and len(greedy.samples.talks) == 2


def test_limits_of_turns_and_tokens_end_a_conversation():
    short = policy(Counting(last=9), talk={"turns": 2}).rollout(PROMPTS, plan=PLAN, seed=0)
    assert {talk.end for talk in short.samples.talks} == {"turns"} and short.samples.truncated.all()
    assert all(len(talk.said) == 2 and talk.outcome == {"turns": 2} for talk in short.samples.talks)
    cut = policy(Counting(last=9), made=model(end=-9.0), talk={"turn_tokens": 5}).rollout(PROMPTS, plan=PLAN, seed=0)
    assert all(talk.end == "length" and talk.said[0].cut for talk in cut.samples.talks)
    assert cut.mask.sum(1).tolist() == [5, 5, 5]
    full = policy(Counting(last=9), talk={"turns": 9}).rollout(PROMPTS, plan=replace(PLAN, max_new_tokens=20), seed=0)
    assert (full.replay.length <= 20).all() and {talk.end for talk in full.samples.talks} == {"length"}


def test_the_prompt_ends_with_what_the_environment_begins_with():
    subject = policy(Counting(opening="!0"))
    rollout = subject.rollout(PROMPTS, group_size=2, plan=PLAN, seed=0)
    for ids, prompt in zip(rollout.replay.prompts, rollout.samples.prompts, strict=True):
        assert f"{prompt.text}!0" in subject.tokenizer.decode(ids) and not prompt.text.endswith("!0")


class Unsound(Counting):
    """Fails or hangs in the conversations of prompt b: at the start, in a turn, or at the end."""

    def __init__(self, where: str):
        super().__init__(last=3)
        self.where = where

    def start(self, prompt: Prompt, seed: int) -> Any:
        here = self.where if prompt.id == "b" else ""
        if here == "start":
            raise RuntimeError("no room")
        return UnsoundEpisode(self, here)


class UnsoundEpisode(CountingEpisode):
    """See `Unsound`."""

    def __init__(self, of: Unsound, where: str):
        super().__init__(of)
        self.where = where

    def step(self, said: Said) -> Shown | None:
        if self.where == "hang":
            time.sleep(60)
        if self.where == "step" and self.count == 1:
            raise ModelsFault("of an environment, not of a tool") if self.of.where == "fault" else KeyError("gone")
        return super().step(said)

    def outcome(self) -> dict[str, float]:
        if self.where == "outcome":
            raise ZeroDivisionError
        return super().outcome()


@pytest.mark.parametrize("where", ["start", "step", "hang", "outcome"])
def test_a_failure_is_told_and_touches_no_other_row(where: str):
    """The rows of prompts a and c are those of an environment that does not fail."""
    talk = {"workers": Workers(4, 1.0 if where == "hang" else None)}
    failing = policy(Unsound(where), talk=talk).rollout(PROMPTS, group_size=2, plan=PLAN, seed=0)
    sound = policy(Unsound("")).rollout(PROMPTS, group_size=2, plan=PLAN, seed=0)
    for i, talk in enumerate(failing.samples.talks):
        if failing.samples.prompts[i].id == "b":
            told = {"start": "RuntimeError: no room", "step": "KeyError: 'gone'", "hang": "LateError"}
            assert talk.end == "failed" and told.get(where, "ZeroDivisionError") in (talk.failure or "")
        else:
            assert talk == sound.samples.talks[i]
            n = int(sound.replay.length[i])
            assert failing.replay.tokens[i, :n].tolist() == sound.replay.tokens[i, :n].tolist()


def test_what_a_tool_raises_is_the_models_only_where_it_says_so():
    def broken(a: int, b: int) -> int:
        """Adds two numbers.

        Args:
            a: the first
            b: the second
        """
        raise ValueError("disk full")

    broken.__name__ = "add"
    failing = policy(Functions([broken])).rollout(PROMPTS, group_size=4, plan=PLAN, seed=0).samples.talks
    right = [talk for talk in failing if any(c.name == "add" and c.arguments["a"] != "one" for c in talk.calls)]
    assert right and all(talk.end == "failed" and "disk full" in talk.failure for talk in right)
    told = policy(Functions([broken], faults=(ValueError,))).rollout(PROMPTS, group_size=4, plan=PLAN, seed=0)
    assert any("Error: disk full" in talk.observed for talk in told.samples.talks)
    assert all(talk.failure is None for talk in told.samples.talks)


def test_calls_beyond_the_limit_of_a_turn_are_told_so():
    talks = policy(Functions([add], most=1)).rollout(PROMPTS, group_size=GROUP, plan=PLAN, seed=0).samples.talks
    several = [
        shown for talk in talks for said, shown in zip(talk.said, talk.shown, strict=True) if len(said.calls) > 1
    ]
    assert any(message.text.startswith("Error: not run: at most 1 calls") for shown in several for message in shown[1:])
    assert not any("not run" in shown[0].text for shown in several if shown)
