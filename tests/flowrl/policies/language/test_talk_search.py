"""Search among turns, and conversations of which more is drawn once they were scored."""

from typing import Any

import pytest
import torch

from flowrl.contracts import Drawing, Explored, Prompt, Samples, View
from flowrl.core.advantages.trees import tree_advantages
from flowrl.policies.language.drawing.guided import FAR
from flowrl.policies.language.policy import LanguagePolicy
from flowrl.policies.language.talks.again import talks_with_hints, values_of_turns
from flowrl.policies.language.talks.trees import search_of_turns
from flowrl.recipe.errors import RecipeError
from flowrl.recipe.load import load
from samplers.tokens import Generation
from talk_support import PROMPTS, Counting, Failing, Moody, policy

GROUP, WIDTH, PLAN = 3, 2, Generation(120)


def even(samples: Samples) -> tuple[dict[str, torch.Tensor], torch.Tensor]:
    """Whether the model drew an even number of tokens; not known of a conversation that failed."""
    found = [float("nan") if talk.failure else float(len(talk.text) % 2 == 0) for talk in samples.talks]
    total = torch.tensor(found, dtype=torch.float64)
    return {"even": total.clone()}, total


def searched(subject: LanguagePolicy, prompts: list[Prompt], score: Any = even) -> Explored:
    return search_of_turns(subject, Drawing(prompts, GROUP, PLAN, 0, 40), score, width=WIDTH, right=0.5)


@pytest.fixture(scope="module")
def found() -> Explored:
    return searched(policy(), PROMPTS)


def test_values_are_those_of_what_was_backed_up(found: Explored):
    """Each leaf in the order in which it was found adds its share to the nodes of its path (eq. 6)."""
    rollout = found.rollout
    node, turn, value = (rollout.step_stats[name] for name in ("node", "turn", "value"))
    _, outcome = even(rollout.samples)
    shared = 0
    for i in range(len(PROMPTS)):
        worth: dict[int, float] = {}
        for row in range(i * GROUP, (i + 1) * GROUP):
            length = int(rollout.replay.length[row])
            path = dict.fromkeys(node[row, :length].int().tolist())
            assert len(path) == int(turn[row, length - 1])  # a node is a turn with what was shown behind it
            gain = 1.0 if outcome[row] > 0.5 else -1.0
            shared += sum(name in worth for name in path)
            for depth, name in enumerate(path, 1):
                old, new = worth.get(name, 0.0), max((depth + 1) / (len(path) + 1), 0.1) * gain
                worth[name] = old + new if old * gain >= 0 else new if gain > 0 else old
        for row in range(i * GROUP, (i + 1) * GROUP):
            for at in range(int(rollout.replay.length[row])):
                assert float(value[row, at]) == pytest.approx(worth[int(node[row, at])], abs=1e-6)
    assert shared > 0 and len(outcome.unique()) == 2
    assert found.metrics["search/right"] == pytest.approx(float(outcome.mean()))


def test_what_it_finds_are_conversations_whose_replay_is_their_rollout(found: Explored):
    subject, rollout = policy(), found.rollout
    for row in (2, 4, 8):
        seen: list[torch.Tensor] = []
        subject.look(rollout, torch.tensor([row]), View(), lambda look, to=seen: to.append(look.logp.detach()[0]))
        assert (seen[0] - rollout.rollout_logp[row])[rollout.mask[row]].abs().max() <= 1e-4
    for row, talk in enumerate(rollout.samples.talks):
        drawn = subject.tokenizer.decode(rollout.replay.tokens[row][rollout.mask[row]], skip_special_tokens=True)
        assert drawn == talk.text and len(talk.said) <= 4
    assert len({talk.written() for talk in rollout.samples.talks[:GROUP]}) > 1


def test_a_search_is_the_same_whatever_it_is_drawn_with(found: Explored):
    alone, whole = searched(policy(max_rows=2), PROMPTS[2:]).rollout, found.rollout
    for i in range(GROUP):
        length, there = int(alone.replay.length[i]), 2 * GROUP + i
        assert length == int(whole.replay.length[there])
        assert torch.equal(alone.replay.tokens[i, :length], whole.replay.tokens[there, :length])
        assert torch.equal(alone.step_stats["value"][i, :length], whole.step_stats["value"][there, :length])


def test_an_environment_that_fails_is_no_score_and_no_end_of_the_search():
    moody = searched(policy(Moody(last=10**6), talk={"turns": 3}), PROMPTS[:1])
    assert [talk.end for talk in moody.rollout.samples.talks] == ["failed"] * GROUP
    assert (moody.rollout.step_stats["value"] == 0).all() and moody.metrics["search/right"] == 0
    talks = searched(policy(Failing()), PROMPTS).rollout.samples.talks
    assert len(talks) == GROUP * len(PROMPTS) and sum(talk.failure is None for talk in talks) >= GROUP * 2


def plain(subject: LanguagePolicy, prompts: list[Prompt], group: int, first: int) -> Any:
    return subject.rollout(prompts, group_size=group, plan=PLAN, seed=0, first=first)


def test_a_turn_is_worth_what_came_of_going_on_from_it():
    def turns(samples: Samples) -> tuple[dict[str, torch.Tensor], torch.Tensor]:
        total = torch.tensor([float(len(talk.text)) for talk in samples.talks], dtype=torch.float64)
        return {"n": total}, total

    subject, drawing = policy(Counting(last=3)), Drawing(PROMPTS[1:], 2, PLAN, 0, 7)
    found = values_of_turns(subject, drawing, turns, continuations=3)
    rollout, expected = found.rollout, plain(subject, PROMPTS[1:], 2, 7)
    assert torch.equal(rollout.replay.tokens, expected.replay.tokens)
    value, turn, length = rollout.step_stats["value"], rollout.step_stats["turn"], rollout.replay.length
    begins = plain(subject, PROMPTS[1:], 3, 7 + FAR).samples
    _, worth = turns(begins)
    for row in range(4):
        own, mean = value[row, : length[row]], float(worth[row // 2 * 3 :][:3].mean())
        assert own[turn[row, : length[row]] == 1].unique().tolist() == [pytest.approx(mean)]
        last, talk = float(own[-1]), rollout.samples.talks[row]
        said = len("".join(one.text for one in talk.said[:-1]))
        assert last >= said and value[row, length[row] :].isnan().all()  # what was said before stands in all of them
    assert int((turn.amax(1) > 1).sum()) > 0
    tokens = rollout.replay.tokens
    states = {(row // 2, tuple(tokens[row, :at].tolist())) for row in range(4) for at in begin(turn[row])}
    assert found.metrics["values/continuations"] == 3 * len(states)
    _, outcome = turns(rollout.samples)
    adv = tree_advantages("values", outcome, rollout, scale="none", clip=None)
    for row in range(4):
        parts = [float(adv[row, at]) for at in begin(turn[row])]  # each turn's: what it added to the worth
        assert sum(parts) == pytest.approx(float(outcome[row] - value[row, 0]), abs=1e-4) and len(parts) == 3
        assert parts[-1] == pytest.approx(float(outcome[row] - value[row, length[row] - 1]), abs=1e-4)


def begin(turn: torch.Tensor) -> list[int]:
    """Where the turns of a row begin."""
    return [int((turn == number).nonzero()[0]) for number in range(1, int(turn.max()) + 1)]


@pytest.mark.parametrize("place", ["prompt", "answer"])
def test_groups_without_a_right_conversation_are_helped(place: str):
    texts = ("1234", "", "98765432")
    prompts = [Prompt(p.id, p.text, meta={"solution": s}) for p, s in zip(PROMPTS, texts, strict=True)]

    def right(samples: Samples) -> tuple[dict[str, torch.Tensor], torch.Tensor]:
        pairs = zip(samples.prompts, samples.talks, strict=True)
        found = [p.id == "b" or "=98" in p.text or talk.text.startswith("98") for p, talk in pairs]
        total = torch.tensor(found, dtype=torch.float64)
        return {"right": total.clone()}, total

    subject, drawing = policy(Counting(last=2)), Drawing(prompts, 2, PLAN, 0, 3)
    found = talks_with_hints(subject, drawing, right, place=place, text="={hint}")
    rollout, expected = found.rollout, plain(subject, prompts, 2, 3)
    length = expected.replay.length
    for row in (2, 3):
        assert torch.equal(rollout.replay.tokens[row, : length[row]], expected.replay.tokens[row, : length[row]])
    assert found.metrics["hints/share"] == pytest.approx((0.75 + 0 + 0.25) / 3)
    for row, hint in ((0, "123"), (4, "98")):
        ids = subject.tokenizer(hint, add_special_tokens=False).input_ids
        talk, mask = rollout.samples.talks[row], rollout.mask[row]
        if place == "prompt":
            assert rollout.samples.prompts[row].text.endswith(f"={hint}") and mask[0]
        else:
            assert rollout.replay.tokens[row, : len(ids)].tolist() == ids and not mask[: len(ids)].any()
            assert talk.said[0].text.startswith(hint) and mask[len(ids)]
        assert len(talk.said) == 2 or talk.end == "length"
    assert torch.equal(found.rewards["right"], right(rollout.samples)[1])


def test_recipes_choose_them():
    how = ["environment={tools: [calculator], tell: none}", "advantage.scale=none"]
    assert load("tiny_lm_grpo", [*how, "generation.tree={kind: deepsearch, width: 4}", "advantage.credit=nodes"])
    assert load("tiny_lm_grpo", [*how, "generation.again={kind: values}", "advantage.credit=values"])
    refused = {
        "generation.again.kind": "generation.again={kind: corrections}",
        "generation.again.split": "generation.again={kind: values, split: so}",
        "generation.tree.segment": "generation.tree={kind: deepsearch, segment: 8}",
        "generation.tree.kind": "generation.tree={kind: treepo}",
    }
    for place, given in refused.items():
        with pytest.raises(RecipeError) as error:
            load("tiny_lm_grpo", [*how, given])
        assert error.value.place == place
