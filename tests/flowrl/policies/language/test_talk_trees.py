"""Trees of turns: what conversations share, what each is alone, and environments that do not answer as before."""

from dataclasses import replace

import pytest
import torch

from flowrl.contracts import Drawing, Explored, Prompt, View
from flowrl.policies.language.policy import LanguagePolicy
from flowrl.policies.language.talks.trees import tree_of_turns
from flowrl.recipe.errors import RecipeError
from flowrl.recipe.load import load
from talk_support import PLAN, PROMPTS, Counting, Moody, policy

TREES, EXPAND, ROUNDS = 2, 2, 2
SIZE = TREES * (1 + EXPAND * ROUNDS)


def explored(subject: LanguagePolicy, prompts: list[Prompt], seed: int = 0) -> Explored:
    drawing = Drawing(prompts, SIZE, PLAN, seed, 40)
    return tree_of_turns(subject, drawing, None, trees=TREES, expand=EXPAND, rounds=ROUNDS)


@pytest.fixture(scope="module")
def grown() -> Explored:
    return explored(policy(), PROMPTS)


def test_rows_share_turns_and_nothing_else(grown: Explored):
    rollout = grown.rollout
    node, tree, tokens = rollout.step_stats["node"], rollout.step_stats["tree"], rollout.replay.tokens
    shared = 0
    for i in range(len(PROMPTS)):
        rows = range(i * SIZE, (i + 1) * SIZE)
        for a in rows:
            for b in range(a + 1, (i + 1) * SIZE):
                length = int(min(rollout.replay.length[a], rollout.replay.length[b]))
                same = (node[a, :length] == node[b, :length]) & (node[a, :length] > 0)
                assert torch.equal(tokens[a, :length][same], tokens[b, :length][same])
                assert same.int().diff().max() <= 0 if len(same) > 1 else True  # from the start of the row alone
                shared += int(same.sum())
                assert not same.any() or tree[a, 0] == tree[b, 0]
        assert tree[list(rows), 0].tolist() == [1, 2, *([1] * EXPAND + [2] * EXPAND) * ROUNDS]
    computed = 1 - shared_tokens(grown) / int(rollout.replay.length.sum())
    assert shared > 0 and grown.metrics["tree/computed"] == pytest.approx(computed) and computed < 0.95


def shared_tokens(grown: Explored) -> int:
    """Tokens of rows that stand in an earlier row of the prompt too."""
    seen, number, node = set(), 0, grown.rollout.step_stats["node"]
    for row, length in enumerate(grown.rollout.replay.length.tolist()):
        for at in range(length):
            key = (row // SIZE, int(node[row, at]), at)
            number += key in seen
            seen.add(key)
    return number


def test_every_row_is_a_conversation_and_its_replay_its_rollout(grown: Explored):
    subject, rollout = policy(), grown.rollout
    for row in range(0, len(rollout.mask), 7):
        found: list[torch.Tensor] = []
        subject.look(rollout, torch.tensor([row]), View(), lambda seen, to=found: to.append(seen.logp.detach()[0]))
        assert (found[0] - rollout.rollout_logp[row])[rollout.mask[row]].abs().max() <= 1e-4
    for row, talk in enumerate(rollout.samples.talks):
        drawn = subject.tokenizer.decode(rollout.replay.tokens[row][rollout.mask[row]], skip_special_tokens=True)
        assert drawn == talk.text and len(talk.said) <= 4
        ends = rollout.step_stats["turn"][row, : rollout.replay.length[row]].unique()
        assert len(ends) == len(talk.said) == len(talk.shown)


def test_a_tree_is_the_same_whatever_it_is_drawn_with(grown: Explored):
    alone = explored(policy(max_rows=3), PROMPTS[1:2])
    whole = grown.rollout
    for i in range(SIZE):
        length = int(alone.rollout.replay.length[i])
        assert length == int(whole.replay.length[SIZE + i])
        assert torch.equal(alone.rollout.replay.tokens[i, :length], whole.replay.tokens[SIZE + i, :length])
        assert torch.equal(alone.rollout.step_stats["node"][i, :length], whole.step_stats["node"][SIZE + i, :length])


def test_an_environment_that_does_not_answer_as_before_fails_its_branches():
    subject = policy(Moody(last=10**6), talk={"turns": 3})
    talks = explored(subject, PROMPTS[:1]).rollout.samples.talks
    assert [talk.end for talk in talks] == ["turns"] * TREES + ["failed"] * (SIZE - TREES)
    assert "does not answer as before" in talks[-1].failure
    steady = policy(Counting(last=10**6), talk={"turns": 3})
    assert {talk.end for talk in explored(steady, PROMPTS[:1]).rollout.samples.talks} == {"turns"}


def test_conversations_of_one_turn_begin_anew():
    talks = explored(policy(Counting(last=1)), PROMPTS[:1]).rollout.samples.talks
    assert len(talks) == SIZE and all(len(talk.said) == 1 and talk.end == "answer" for talk in talks)


def test_a_recipe_grows_trees_of_turns():
    how = ["environment={tools: [calculator], tell: none}", "train.group=6", "advantage.credit=trees"]
    recipe = load("tiny_lm_grpo", [*how, "generation.tree={kind: tree_grpo, trees: 2, expand: 2}"])
    assert recipe.generation is not None and replace(PLAN, max_new_tokens=1)
    with pytest.raises(RecipeError, match="a step is a turn"):
        load("tiny_lm_grpo", [*how[:2], "generation.tree={kind: tree_grpo, trees: 2, expand: 2, segment: 4}"])
