"""What follows from conversations: pictures that are shown, returns, baselines, limits of turns, statistics."""

import math
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from PIL import Image

import vision_support as vision
from flowrl.contracts import Prompt, Rollout, Said, Samples, Shown, View
from flowrl.core.advantages import returns
from flowrl.core.advantages.early_calls import first_calls, shifted
from flowrl.core.advantages.rows import row_advantages
from flowrl.core.engine import Draw
from flowrl.core.refill import join_samples
from flowrl.core.selection import without_rows
from flowrl.environments.calls import Reader
from flowrl.environments.functions import Functions
from flowrl.environments.observations import Observations
from flowrl.environments.workers import Workers
from flowrl.policies.errors import PolicyError
from flowrl.policies.language.policy import LanguagePolicy
from flowrl.policies.language.talks.conversations import Conversations
from flowrl.recipe.keys.rewards import RewardSpec
from flowrl.scoring.scorer import Scorer, load
from flowrl.watch.sample_statistics import sample_statistics
from reward_models.conversations import calls_made, outcome, tool_calls, used_tool
from samplers.tokens import Generation
from talk_support import PLAN, PROMPTS, Counting, CountingEpisode, add, policy, shaky

GROUP = 6


class Album(Counting):
    """Shows a picture of another size behind each turn; behind the first of prompt `two` a text alone."""

    def start(self, prompt: Prompt, seed: int) -> Any:
        return AlbumEpisode(self, prompt.id == "two")


class AlbumEpisode(CountingEpisode):
    def __init__(self, of: Counting, late: bool):
        super().__init__(of)
        self.late = late

    def step(self, said: Said) -> Shown | None:
        shown = super().step(said)
        if shown is None or (self.late and self.count == 1):
            return shown
        return Shown(shown.text, (Image.new("RGB", (30 + 26 * self.count, 56), (90 * self.count, 40, 9)),))


def seeing(path: Path, name: str) -> LanguagePolicy:
    subject = vision.policy(vision.folder(path, name))
    observe = Observations(subject.tokenizer, writer=subject.encode.writer)
    read, options = Reader(subject.tokenizer), {"turns": 4, "turn_tokens": 20}
    subject.conversations = Conversations(Album(), observe, read, Workers(), **options)
    return subject


@pytest.mark.parametrize("name", sorted(vision.MODELS))
def test_pictures_are_shown_behind_turns(tmp_path: Path, name: str):
    """Rows of text, of pictures from the start, and of pictures that come later: the replay of each alone."""
    subject = seeing(tmp_path, name)
    rollout = subject.rollout(vision.prompts(tmp_path), group_size=2, plan=Generation(200), seed=0)
    pieces = [len(one.pieces) for one in rollout.replay.inputs]
    assert {talk.end for talk in rollout.samples.talks} >= {"answer"} and max(pieces) == 3
    logp = torch.zeros(rollout.mask.shape)
    for row in range(len(logp)):
        subject.look(rollout, torch.tensor([row]), View(), lambda seen, row=row: logp[row].copy_(seen.logp[0].detach()))
    assert (logp - rollout.rollout_logp)[rollout.mask].abs().max() <= 1e-5
    for i, talk in enumerate(rollout.samples.talks):
        number = sum(len(m.pictures) for messages in talk.shown for m in messages)
        assert pieces[i] == number + bool(rollout.samples.prompts[i].media)
    assert torch.isin(rollout.replay.tokens[0], torch.tensor(subject.barred)).sum() >= 2


def test_a_model_of_text_is_shown_no_picture():
    with pytest.raises(PolicyError, match="reads text alone"):
        policy(Album()).rollout(PROMPTS, plan=PLAN, seed=0)


@pytest.fixture(scope="module")
def drawn() -> Rollout:
    return policy().rollout(PROMPTS, group_size=GROUP, plan=PLAN, seed=0)


def test_returns_run_through_what_was_shown(drawn: Rollout):
    """As if each row were written without it (verl restarted there)."""
    rewards = torch.randn(drawn.mask.shape, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    whole = returns.reward_to_go(rewards, drawn.mask, gamma=0.9)
    several = [i for i, talk in enumerate(drawn.samples.talks or ()) if len(talk.said) > 1]
    for i in several:
        own = drawn.mask[i].nonzero()[:, 0]
        alone = returns.reward_to_go(rewards[i, own][None], torch.ones(1, len(own)).bool(), gamma=0.9)
        torch.testing.assert_close(whole[i, own], alone[0])
        assert not torch.equal(whole, returns.reward_to_go(rewards, drawn.mask, gamma=0.9, restart=True))
    ends = returns.turn_ends(drawn.step_stats["turn"], drawn.mask)
    assert ends.sum(1).tolist() == [len(talk.said) for talk in drawn.samples.talks]


def test_baselines_count_conversations(drawn: Rollout):
    """However many turns each has: the mean of a prompt is that of its conversations' rewards."""
    turns = torch.tensor([float(len(talk.said)) for talk in drawn.samples.talks])
    assert len(turns.unique()) > 1
    own = row_advantages(
        {"turns": turns}, drawn.samples.group, None, weights={"turns": 1.0}, baseline="group", scale="none", clip=None
    )
    groups = turns.unflatten(0, (-1, GROUP))
    torch.testing.assert_close(own, (groups - groups.mean(1, keepdim=True)).flatten())


def test_rewards_read_what_the_model_said(drawn: Rollout):
    samples = drawn.samples
    assert all("Error:" not in text for text in samples.texts) and samples.given is None
    used = used_tool(samples)
    for i, talk in enumerate(samples.talks):
        fine = [m for messages in talk.shown for m in messages if m.error is None]
        assert used[i] == bool(fine) and samples.texts[i] == talk.said[-1].text
    assert used_tool(samples, name="sulk").sum() == 0 and 0 < used.sum() < len(used)
    asked = replace(samples, prompts=[replace(p, meta={"calls": 1} if p.id == "a" else {}) for p in samples.prompts])
    scores = tool_calls(asked)
    assert scores[:GROUP].isfinite().all() and scores[GROUP:].isnan().all() and scores[:GROUP].max() == 1
    assert calls_made(samples).tolist() == [sum(len(turn.calls) for turn in talk.said) for talk in samples.talks]
    assert outcome(samples).isnan().all()
    with pytest.raises(ValueError, match="environment"):
        outcome(replace(samples, talks=None))


def test_statistics_say_how_conversations_end(drawn: Rollout):
    found = sample_statistics(drawn.samples)
    talks = drawn.samples.talks or ()
    assert found["talk/turns"] == pytest.approx(sum(len(t.said) for t in talks) / len(talks))
    assert sum(found[f"talk/end_{end}"] for end in ("answer", "turns", "length", "failed")) == pytest.approx(1)
    assert 0 < found["talk/wrong_calls"] < found["talk/calls"]
    both = join_samples([drawn.samples, drawn.samples[[0, 3]]])
    assert both.talks == [*talks, talks[0], talks[3]] and both.readable()[-1] == talks[3].readable()


def test_over_long_conversations_count_in_the_mean_and_not_in_the_loss(drawn: Rollout):
    """Mini-o3: in mean and std, masked in the loss, and left out where groups without a difference are filtered."""
    rewards = torch.tensor([0.0, 1, 0, 0, 0, 0] + [1, 1, 1, 0, 1, 1] + [0, 1, 0, 1, 0, 1])
    cut = torch.tensor([0, 1, 0, 0, 0, 0] + [0, 0, 0, 0, 0, 0] + [1, 0, 0, 0, 0, 1]).bool()
    samples = replace(drawn.samples, truncated=cut)
    rollout = replace(drawn, samples=samples)
    adv = row_advantages(
        {"r": rewards}, samples.group, None, weights={"r": 1.0}, baseline="group", scale="group", clip=None
    )
    draw = Draw(rollout, {"r": rewards}, adv, {})
    first = rewards[:GROUP]
    expected = (first - first.mean()) / first.std(correction=0)
    assert adv[:GROUP].tolist() == pytest.approx(expected.tolist(), abs=1e-3)
    assert draw.kept_prompts().tolist() == [0, 1, 2]
    assert draw.kept_prompts(ended=True).tolist() == [1, 2]  # those of the first that ended are all alike
    masked, left = without_rows(rollout, adv, cut)
    assert not masked.mask[cut].any() and (left[cut] == 0).all() and torch.equal(left[~cut], adv[~cut])
    plain = Draw(replace(rollout, samples=replace(samples, talks=None)), {"r": rewards}, adv, {})
    assert plain.kept_prompts(ended=True).tolist() == [0, 1, 2]


def test_right_conversations_are_worth_more_the_earlier_they_call(drawn: Rollout):
    """ASPO (arXiv:2508.19201): A + clip(delta (p - mean p) / mean L, -limit |A|, limit |A|)."""
    at, talks = first_calls(drawn), drawn.samples.talks or ()
    told = policy().tokenizer
    for i, talk in enumerate(talks):
        calling = next((n for n, turn in enumerate(talk.said) if turn.calls), None)
        if calling is None:
            assert at[i].isnan()
            continue
        ids = drawn.replay.tokens[i][drawn.mask[i]].tolist()
        before = told.decode(ids[: int(at[i])], skip_special_tokens=True)
        assert before == "".join(turn.text for turn in talk.said[: calling + 1])
    total = torch.where(torch.arange(len(at)) % 4 == 3, 0.0, 1.0)
    adv = torch.linspace(0.5, 1.5, len(at))
    given: dict[str, float] = {"delta": -2.0, "limit": 0.7, "right": 0.0}
    found, length = shifted(adv, total, drawn, **given), drawn.mask.sum(1).double()
    rows = [i for i in range(GROUP) if total[i] > 0 and not at[i].isnan()]
    assert len(rows) > 2 and len({float(at[i]) for i in rows}) > 1
    for i in range(GROUP):
        p, size = at[rows].mean(), length[rows].mean()
        shift = float(-2 * (at[i] - p) / size) if i in rows else 0.0
        bound = 0.7 * float(adv[i])
        assert float(found[i]) == pytest.approx(float(adv[i]) + max(-bound, min(shift, bound)), abs=1e-5)
    with pytest.raises(ValueError, match="conversations"):
        shifted(adv, total, replace(drawn, samples=replace(drawn.samples, talks=None)), **given)


def scored(number: int, deadline: float) -> tuple[Samples, Samples, torch.Tensor]:
    """Conversations with a tool that fails and hangs now and then, the same with one that does not, and the scores."""
    prompts = [Prompt(str(i), "12+345") for i in range(number)]
    talk = {"turns": 6, "workers": Workers(16, deadline)}
    plan = replace(PLAN, max_new_tokens=200)
    sound = policy(Functions([add]), talk=talk).rollout(prompts, plan=plan, seed=0).samples
    shaky.__name__ = "add"
    samples = policy(Functions([shaky]), talk=talk).rollout(prompts, plan=plan, seed=0).samples
    spec = RewardSpec(use="used_tool", failure_limit=1.0)
    with pytest.warns(UserWarning, match="are not scored"):
        return samples, sound, Scorer(load({"used": spec}))(samples)["used"]


def check_failures(number: int, deadline: float) -> int:
    samples, sound, scores = scored(number, deadline)
    assert len(samples) == number and samples.talks and sound.talks
    expected = used_tool(sound)
    for i, (talk, other) in enumerate(zip(samples.talks, sound.talks, strict=True)):
        calls = [m for messages in other.shown for m in messages if m.error is None]
        doomed = len(calls) > 1 and (i % 100 == 50 or i % 20 == 7)
        if talk.failure is not None:
            assert i % 100 == 50 or i % 20 == 7
            assert ("LateError" in talk.failure) == (i % 100 == 50) and math.isnan(scores[i])
        else:
            assert not doomed and talk == other and scores[i] == expected[i]
    assert sum(talk.failure is not None for talk in samples.talks) > number // 200
    return sum(len(talk.calls) for talk in samples.talks)


def test_no_row_is_lost_and_no_failure_scored():
    assert check_failures(60, 1.5) > 60


@pytest.mark.slow
def test_two_thousand_calls_of_which_some_fail_and_some_hang():
    assert check_failures(800, 2.0) > 2000
