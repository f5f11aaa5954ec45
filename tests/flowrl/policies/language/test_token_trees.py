"""Trees of tokens, searches, values, hints and corrections: what is shared, what is given, what is counted."""

import pytest
import torch

from flowrl.contracts import Drawing, Prompt, Samples
from flowrl.core.backward import StepLoss, backward
from flowrl.core.objectives.grpo import ClippedObjective
from flowrl.policies.errors import PolicyError
from flowrl.policies.language.drawing.guided import corrections, hints
from flowrl.policies.language.drawing.search import deepsearch
from flowrl.policies.language.drawing.trees import step_ends, tree_grpo, treepo
from flowrl.policies.language.drawing.values import values
from language_support import PROMPTS, model, policy, replayed
from samplers.tokens import Generation

PLAN = Generation(16)


def patient():
    """A model that seldom ends a completion."""
    made = model()
    made.generation_config.eos_token_id = [3, 60]
    return policy(made)


def drawing(group: int, ticks: list[int] | None = None, prompts=PROMPTS) -> Drawing:
    return Drawing(prompts, group, PLAN, 7, 0, None if ticks is None else ticks.append)


def by_length(samples: Samples):
    """A right answer has an even number of tokens."""
    assert samples.lengths is not None
    right = (samples.lengths % 2 == 0).double()
    return {"even": right.float()}, right


def by_text(samples: Samples):
    """A right answer is a text of even length."""
    right = torch.tensor([float(len(text) % 2 == 0) for text in samples.texts or ()]).double()
    return {"even": right.float()}, right


def sharing(rollout, group: int) -> int:
    """Checks that equal nodes are equal prefixes, and nothing else; returns how many tokens are distinct."""
    seen: dict[tuple, tuple] = {}
    for row, (tokens, node) in enumerate(zip(rollout.replay.tokens, rollout.step_stats["node"], strict=True)):
        for k in range(int(rollout.replay.length[row])):
            state = (row // group, *tokens[: k + 1].tolist())
            assert seen.setdefault((row // group, int(node[k]), k), state) == state and node[k] > 0
    return len(seen)


TREES = {
    "treepo": (treepo, 8, {"segment": 6, "roots": (2, 2)}),
    "tree_grpo": (tree_grpo, 6, {"segment": 5}),
    "deepsearch": (deepsearch, 4, {"segment": 5, "width": 3, "right": 0.5}),
}


@pytest.mark.parametrize("kind", TREES)
def test_a_tree_computes_what_its_leaves_share_once_and_is_its_replay(kind: str):
    grow, group, options = TREES[kind]
    subject, ticks = patient(), []
    subject.prepare(PROMPTS[0], PLAN)
    found = grow(subject, drawing(group, ticks), by_length, **options)
    rollout = found.rollout
    assert rollout.samples.group.tolist() == [i for i in range(3) for _ in range(group)]
    assert rollout.samples.given is None and rollout.mask.sum(1).tolist() == rollout.replay.length.tolist()
    distinct = sharing(rollout, group)
    if kind == "deepsearch":  # it draws leaves that it does not take
        assert sum(ticks) > distinct and rollout.step_stats["value"].shape == rollout.mask.shape
    else:
        assert sum(ticks) == distinct
        assert found.metrics["tree/computed"] == distinct / int(rollout.mask.sum())
    if kind == "treepo":  # at equal leaves, of rows that do not end early
        assert distinct <= 0.6 * int(rollout.mask.sum())
    gap = (replayed(subject, rollout, [list(range(3 * group))]).logp - rollout.rollout_logp).abs()
    assert gap[rollout.mask].max() < 2e-5
    parts = policy(subject.model, max_rows=5)
    alone = grow(parts, drawing(group, prompts=PROMPTS[2:]), by_length, **options).rollout
    width = alone.replay.tokens.shape[1]
    there = slice(2 * group, 3 * group)
    assert torch.equal(alone.replay.tokens, rollout.replay.tokens[there, :width])  # whatever the batch


def test_the_labels_of_tree_grpo_tell_trees_apart():
    rollout = tree_grpo(patient(), drawing(6), by_length, segment=5).rollout
    tree, node = rollout.step_stats["tree"][:, 0], rollout.step_stats["node"]
    assert tree.tolist() == [1, 2, 1, 1, 2, 2] * 3
    for row in (2, 3, 10, 16):  # each begins as the root of its tree does
        root = row // 6 * 6 + int(tree[row]) - 1
        assert node[row, 0] == node[root, 0]


def test_the_value_of_a_step_is_the_mean_of_what_follows():
    subject = patient()
    found = values(subject, drawing(3), by_length, continuations=64, steps=2, segment=6)
    rollout, value = found.rollout, found.rollout.step_stats["value"]
    for row in range(9):
        length = int(rollout.replay.length[row])
        assert (value[row, : min(6, length)] == value[row // 3 * 3, 0]).all()  # the prompt's own value
        assert value[row, 12:].isnan().all() and (length <= 6 or not value[row, 6:12][: length - 6].isnan().any())
    plain = subject.rollout(PROMPTS, group_size=400, plan=PLAN, seed=99)
    even = by_length(plain.samples)[1].unflatten(0, (3, -1)).mean(1)
    assert (value[::3, 0] - even).abs().max() < 0.25  # four standard errors
    assert step_ends(subject, rollout.replay.tokens[0, :13].tolist(), 6, None) == [6, 12]


def never(samples: Samples):
    wrong = torch.zeros(len(samples)).double()
    for i, given in enumerate(samples.given or []):
        wrong[i] = float(given == "12+3")
    return {"hinted": wrong.float()}, wrong


def test_hints_grow_until_one_answer_is_right():
    prompts = [Prompt(p.id, p.text, meta={"solution": "12+345", "answer": "9"}) for p in PROMPTS]
    subject = patient()
    found = hints(subject, drawing(3, prompts=prompts), never, shares=(0.5, 0.7, 1.0), place="answer")
    assert found.rollout.samples.given == ["12+3"] * 9 and found.metrics["hints/share"] == pytest.approx(0.7)
    assert found.rewards is not None and found.rewards["hinted"].tolist() == [1.0] * 9
    number = len(subject.tokenizer("12+3", add_special_tokens=False).input_ids)
    assert not found.rollout.mask[:, :number].any() and found.rollout.mask[:, number].all()
    asked = hints(subject, drawing(3, prompts=prompts), never, shares=(0.5, 1.0)).rollout
    assert asked.samples.prompts[4].text == PROMPTS[1].text + " 12+345" and asked.samples.given is None
    assert asked.replay.prompts[4] == subject.encode(PROMPTS[1].text + " 12+345")
    with pytest.raises(PolicyError, match="generation.again.column: prompt '12\\+345' has no 'solution'"):
        hints(subject, drawing(3), never)


def test_corrections_follow_wrong_answers_and_are_trained_where_they_are_to_be():
    prompts = [Prompt(p.id, p.text, meta={"answer": "77"}) for p in PROMPTS]
    subject, kept = patient(), []
    for train_given in (True, False):
        how = {"tokens": 6, "text": "9+9", "answer": "={answer};", "right": 0.5, "train_given": train_given}
        found = corrections(subject, drawing(8, prompts=prompts), by_text, **how)
        rollout = found.rollout
        kept.append(rollout)
        given = rollout.samples.given
        assert {text.strip() for text in given} <= {"9+9", "=77;", ""} and len(set(given)) == 3
        plain = subject.rollout(prompts, group_size=8, plan=PLAN, seed=7)
        right = by_text(plain.samples)[1].bool()
        assert [text == "" for text in given] == right.tolist()
        assert sum(found.metrics.values()) == pytest.approx(1 - float(right.double().mean()))
        inside = torch.arange(rollout.mask.shape[1]) < rollout.replay.length[:, None]
        assert torch.equal(rollout.mask, inside) == train_given
        gap = (replayed(subject, rollout, [list(range(24))]).logp - rollout.rollout_logp).abs()
        assert gap[rollout.mask].max() < 2e-5
    assert torch.equal(kept[0].replay.tokens, kept[1].replay.tokens) and kept[1].mask.sum() < kept[0].mask.sum()


def test_an_answer_is_forced_where_few_tokens_are_left():
    subject = patient()
    rollout = subject.rollout(PROMPTS, group_size=3, plan=Generation(16, force=("7*8", 6)), seed=7)
    plain = subject.rollout(PROMPTS, group_size=3, plan=PLAN, seed=7)
    for row in range(9):
        early = int(plain.replay.length[row]) <= 10
        assert rollout.samples.given[row] == ("" if early else "7*8")
        assert torch.equal(rollout.replay.tokens[row, :10], plain.replay.tokens[row, :10])
        assert early or not rollout.mask[row, 10:13].any()
    assert rollout.replay.length.max() == 16 and rollout.mask[:, 13].any()


def test_gradients_are_those_of_any_cut():
    """Of advantages of single tokens, on rows that share tokens, and of given tokens that are trained."""
    subject = patient()
    for parameter in subject.model.parameters():
        parameter.requires_grad_(True)
    prompts = [Prompt(p.id, p.text, meta={"answer": "77"}) for p in PROMPTS]
    how = {"tokens": 6, "text": "9+9", "answer": "={answer};", "right": 0.5}
    fixed = corrections(subject, drawing(3, prompts=prompts), by_text, **how).rollout
    searched = deepsearch(subject, drawing(3), by_length, segment=5, width=3, right=0.5).rollout
    for rollout, adv in ((searched, searched.step_stats["value"] - 0.2), (fixed, torch.linspace(-1, 2, 9))):
        objective, found = ClippedObjective(0.2, 0.2, aggregate="decision_mean"), []
        weights = objective.weights(rollout.mask)
        for parts in ([list(range(9))], [[8], [2, 5], [0, 1, 3], [4, 6, 7]]):
            loss = StepLoss(rollout, adv, objective, weights, weights)
            for part in parts:
                backward(subject, torch.tensor(part), loss)
            found.append(torch.cat([p.grad.flatten() for p in subject.model.parameters()]))
            subject.model.zero_grad()
        assert found[0].abs().max() > 1e-3
        torch.testing.assert_close(found[0], found[1], atol=1e-6, rtol=0)
