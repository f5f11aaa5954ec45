"""Terms beside an objective: the gradient is the written sum, each term a mean over its own rows, whatever the cut."""

from collections import Counter
from dataclasses import replace
from pathlib import Path

import pytest
import torch

from flowrl.contracts import Prompt
from flowrl.core.learning.learner import Learner
from flowrl.core.objectives.grpo import ClippedObjective
from flowrl.core.objectives.texts import TextLikelihood, TextPairs
from flowrl.core.replay import SampleStore
from flowrl.core.terms import Term
from flowrl.core.update import Settings, update
from flowrl.policies.language.completions import plain_rows, rollout_of
from flowrl.recipe.errors import RecipeError
from flowrl.recipe.load import load
from flowrl.runs.beside import chosen_prompts
from language_support import PLAN, PROMPTS, policy

RL = ClippedObjective(0.2, 0.2)
EXPERT = [Prompt("x", "5+6"), Prompt("y", "70*81"), Prompt("z", "1-1")]
ANSWERS = ["11", "5670 it is", "0"]


def logp_of(subject, rollout) -> torch.Tensor:
    """Log-probs [R, K] with gradient."""
    found = []
    from flowrl.contracts import View

    subject.look(rollout, torch.arange(len(rollout.mask)), View(), lambda seen: found.append(seen.logp))
    return found[0]


def drawn(subject):
    rollout = subject.rollout(PROMPTS, group_size=3, plan=PLAN, seed=1)
    return rollout, torch.tensor([1.0, -0.5, 0.0, 0.0, 0.0, 0.0, 2.0, -1.0, 0.3])


def of(values: torch.Tensor, mask: torch.Tensor) -> torch.Tensor:
    return values[mask].mean()


@pytest.mark.parametrize("micro", [None, 2])
def test_the_gradient_is_the_sum_over_named_rows(micro: int | None) -> None:
    """Of one step, with right answers among the rows, one of them without an advantage, and an expert's."""
    subject = policy()
    rollout, adv = drawn(subject)
    given = subject.given(EXPERT, [[answer] for answer in ANSWERS], plan=PLAN)
    right = torch.tensor([0, 4, 6])
    terms = [
        Term("right", TextLikelihood(), 0.1, subject, rollout, right),
        Term("expert", TextLikelihood("uncertain"), 0.4, subject, given, torch.arange(3), own=False),
    ]
    grads = []
    learner = Learner(subject.trainable(), lr=1e-9, max_grad_norm=None)
    step = learner.step
    learner.step = lambda: grads.append([p.grad.clone() for p in learner.parameters]) or step()
    how = Settings(3, micro_batch=micro, coef=0.6)
    metrics = update(subject, learner, rollout, adv, RL, how, terms=terms)

    logp, shown = logp_of(subject, rollout), logp_of(subject, given)
    ratio, p = (logp - rollout.rollout_logp).exp(), shown.detach().exp()
    only = torch.zeros_like(rollout.mask).index_fill_(0, right, True) & rollout.mask
    loss = -0.6 * of(adv[:, None] * ratio, rollout.mask) - 0.1 * of(logp, only)
    loss = loss - 0.4 * of(p * (1 - p) * shown, given.mask)
    wanted = torch.autograd.grad(loss, learner.parameters)
    for got, want in zip(grads[0], wanted, strict=True):
        torch.testing.assert_close(got, want, rtol=1e-4, atol=1e-6)
    assert metrics["right/likelihood"] == pytest.approx(float(-of(logp.detach(), only)), abs=1e-4)
    assert metrics["expert/loss"] == pytest.approx(float(-0.4 * of(p * (1 - p) * shown, given.mask).detach()), abs=1e-4)


PAIRED = TextPairs(beta=0.3, pair=0.8, bco=0.2, likelihood=1.0)
TEXTS = [["11", "no 1"], ["567 it", "5"], ["0", "12 or so"]]  # the better one first


def gradients_with_pairs(micro: int | None) -> list[torch.Tensor]:
    """Of two steps, with pairs beside the rewards, whose reference differs from who trains by row."""
    subject = policy()
    rollout, adv = drawn(subject)
    given = subject.given(EXPERT, TEXTS, plan=PLAN)
    term = Term("pairs", PAIRED, 0.4, subject, given, torch.arange(6), own=False)
    assert [term.rows_of(i, 2, torch.arange(3)).tolist() for i in (0, 1)] == [[0, 1, 2, 3], [4, 5]]
    look = subject.look

    def shifted(rollout, rows, view, visit, **how):
        if view.weights != "reference":
            return look(rollout, rows, view, visit, **how)
        view = replace(view, weights="current")
        return look(rollout, rows, view, lambda s: visit(replace(s, logp=s.logp.detach() - 0.1 * s.rows[:, None])))

    subject.look = shifted
    learner = Learner(subject.trainable(), lr=1e-9, max_grad_norm=None)
    step, grads = learner.step, []
    learner.step = lambda: grads.append(torch.cat([p.grad.flatten() for p in learner.parameters])) or step()
    metrics = update(subject, learner, rollout, adv, RL, Settings(3, updates=2, micro_batch=micro), terms=[term])
    assert {"pairs/loss", "pairs/margin", "pairs/likelihood"} <= metrics.keys()
    return grads


def test_pairs_beside_rewards_whatever_the_cut() -> None:
    seen = gradients_with_pairs(None)
    for got, wanted in zip(gradients_with_pairs(3), seen, strict=True):
        torch.testing.assert_close(got, wanted, rtol=1e-5, atol=1e-6)
    alone = policy()
    given, rows = alone.given(EXPERT, TEXTS, plan=PLAN), drawn(alone)
    logp = logp_of(alone, given)
    reference = logp.detach() - 0.1 * torch.arange(6.0)[:, None]
    log_ratio = ((logp - reference) * given.mask).sum(1)
    better, worse = 0.3 * log_ratio[4], 0.3 * log_ratio[5]
    loss = -0.8 * (better - worse).sigmoid().log() - 0.2 * (better.sigmoid().log() + (-worse).sigmoid().log())
    loss = 0.4 * (loss - logp[4][given.mask[4]].mean())
    now, late = logp_of(alone, rows[0]), slice(5, 9)
    ratio = (now - rows[0].rollout_logp).exp()
    loss = loss - of((rows[1][:, None] * ratio)[late], rows[0].mask[late])
    wanted = torch.autograd.grad(loss, Learner(alone.trainable(), lr=1e-9).parameters)
    torch.testing.assert_close(seen[1], torch.cat([w.flatten() for w in wanted]), rtol=1e-4, atol=1e-6)


def test_each_step_takes_its_own_right_rows_and_a_share_of_the_experts() -> None:
    subject = policy()
    rollout, _ = drawn(subject)
    block = torch.arange(3, 9)
    right = Term("right", TextLikelihood(), 0.1, subject, rollout, torch.tensor([0, 4, 6]))
    expert = Term("expert", TextLikelihood(), 0.1, subject, rollout, torch.arange(3), own=False)
    assert right.rows_of(1, 2, block).tolist() == [4, 6]
    assert [expert.rows_of(i, 2, block).tolist() for i in (0, 1)] == [[0, 1], [2]]


def test_terms_alone_still_teach_where_no_group_says_anything() -> None:
    subject = policy()
    rollout, adv = drawn(subject)
    learner = Learner(subject.trainable(), lr=1e-3)
    terms = [Term("right", TextLikelihood(), 0.1, subject, rollout, torch.tensor([8]))]
    metrics = update(subject, learner, rollout, torch.zeros_like(adv), RL, Settings(3), terms=terms)
    assert learner.steps == 1 and metrics["grad_norm"] > 0 and "right/loss" in metrics


def test_an_experts_prompts_go_by_the_seed_and_the_iteration() -> None:
    chosen = [[p.id for p in chosen_prompts(EXPERT, 2, 5, i)] for i in range(3)]
    assert sorted(sum(chosen, [])) == ["x", "x", "y", "y", "z", "z"] and sorted(sum(chosen, [])[:3]) == ["x", "y", "z"]
    assert chosen[2] == [p.id for p in chosen_prompts(EXPERT, 2, 5, 2)]


def test_a_store_holds_the_newest_with_an_advantage_and_draws_by_it() -> None:
    store = SampleStore(4, age=2)
    store.add([{"tokens": [i]} for i in range(4)], torch.tensor([0.0, 1.0, -3.0, 0.5]), 0)
    assert [s["tokens"] for s in store.held] == [[1], [2], [3]]
    drawn = Counter(store.draw(1, 7, i)[0]["tokens"][0] for i in range(400))
    assert 0.6 < drawn[2] / 400 < 0.74 and drawn[1] > drawn[3] > 0
    other = SampleStore(4, age=2)
    other.load_state_dict(store.state_dict())
    assert other.draw(2, 3, 5) == store.draw(2, 3, 5) and len(store.draw(9, 3, 5)) == 3
    store.add([{"tokens": [9]}] * 3, torch.tensor([1.0, 1.0, 1.0]), 1)
    assert len(store.held) == 4 and store.held[0]["tokens"] == [3]
    store.add([{"tokens": [8]}], torch.tensor([1.0]), 2)
    assert [s["at"] for s in store.held] == [1, 1, 1, 2]


def test_stored_rows_come_back_as_they_were() -> None:
    subject = policy()
    rollout, _ = drawn(subject)
    again = rollout_of([plain_rows(rollout)[i] for i in (7, 2)], PLAN, subject.pad)
    logp = logp_of(subject, again).detach()
    assert torch.equal(again.mask.sum(1), rollout.mask.sum(1)[[7, 2]])
    torch.testing.assert_close(logp[again.mask], again.rollout_logp[again.mask], atol=1e-4, rtol=0)
    width = again.mask.shape[1]
    assert torch.equal(again.rollout_logp[0][again.mask[0]], rollout.rollout_logp[7, :width][rollout.mask[7, :width]])


def test_terms_that_cannot_be_are_refused(tmp_path: Path) -> None:
    for recipe, given, said in (
        ("quickstart", "objective.right={coef: 0.1}", "objective.right: got a mapping, a likelihood of tokens"),
        ("quickstart", "train.store={draw: 4}", "train.store: got a mapping, but the store holds completions"),
        ("tiny_lm_grpo", "objective.expert={source: nowhere.jsonl}", "objective.expert.source: got 'nowhere.jsonl'"),
        ("tiny_lm_grpo", "objective.preset=chord", "objective.expert.source: missing; give a .jsonl file with prompt"),
        ("tiny_lm_grpo", "objective.pairs={coef: 0.2}", "objective.pairs.source: missing; give a .jsonl file with"),
    ):
        with pytest.raises(RecipeError) as caught:
            load(recipe, [given])
        assert said in str(caught.value)
