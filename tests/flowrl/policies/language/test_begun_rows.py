"""Rows that go on from given tokens: against one sequence at a time, and against the same row drawn at once."""

from dataclasses import replace

import pytest
import torch

from flowrl.core.backward import StepLoss, backward
from flowrl.core.objectives.grpo import ClippedObjective
from flowrl.policies.language.drawing.rows import Begun, go_on
from flowrl.policies.noise import Key, token_uniforms
from language_support import PLAN, PROMPTS, alone, model, policy, replayed
from samplers.tokens import draw

GIVEN = [None, [9, 10, 11, 12], [20], None, [31, 32, 34, 36, 37, 39], [], [41, 42], [51] * 12, [3]]
NUMBERS = [0 if ids is None else len(ids) for ids in GIVEN]


def begun_rollout(subject, plan=PLAN, **options):
    begun = [None if ids is None else Begun(ids) for ids in GIVEN]
    return subject.rollout(PROMPTS, group_size=3, plan=plan, seed=4, first=6, begun=begun, **options)


@pytest.mark.parametrize("max_rows", [None, 2])
def test_what_follows_is_what_a_lone_sequence_would_draw_there(max_rows):
    network = model()
    subject = policy(network, max_rows=max_rows, keep_entropy=True)
    rollout = begun_rollout(subject, replace(PLAN, temperature=0.8))
    lengths = rollout.replay.length
    assert len(set(lengths.tolist())) > 4 and lengths.max() == 12
    for row, known in enumerate(NUMBERS):
        prompt, number = PROMPTS[row // 3], int(lengths[row])
        tokens = rollout.replay.tokens[row, :number]
        assert tokens[:known].tolist() == (GIVEN[row] or [])
        assert rollout.mask[row].tolist() == [known <= k < number for k in range(rollout.mask.shape[1])]
        logits = alone(network, subject.encode(prompt.text), tokens.tolist())
        uniform = token_uniforms([Key(4, prompt.id, 6 + row % 3)], 12)[0, known:number]
        drawn = slice(known, number)
        assert torch.equal(draw(logits[drawn], uniform, replace(PLAN, temperature=0.8)), tokens[drawn])
        logp = (logits / 0.8).log_softmax(-1)[torch.arange(number), tokens]
        torch.testing.assert_close(rollout.rollout_logp[row, drawn], logp[drawn], atol=1e-5, rtol=0)
        assert rollout.samples.given[row] == subject.tokenizer.decode(GIVEN[row] or [], skip_special_tokens=True)
        assert bool(rollout.samples.truncated[row]) == (tokens[-1] not in subject.stop)
    gap = (replayed(subject, rollout, [[8, 0, 4], [1, 2, 3, 5, 6, 7]]).logp - rollout.rollout_logp).abs()
    assert gap[rollout.mask].max() < 1e-5


def test_an_interrupted_row_ends_as_if_it_had_not_been():
    """Drawn to some token, then from there with the log-probs of then: everything is that of the whole rollout."""
    subject = policy()
    whole = subject.rollout(PROMPTS, group_size=3, plan=PLAN, seed=1)
    part = subject.rollout(PROMPTS, group_size=3, plan=replace(PLAN, max_new_tokens=4), seed=1)
    begun = [
        Begun(part.replay.tokens[i, :n].tolist(), part.rollout_logp[i, :n].tolist())
        for i, n in enumerate(part.replay.length.tolist())
    ]
    ticks: list[int] = []
    rest = subject.rollout(PROMPTS, group_size=3, plan=PLAN, seed=1, begun=begun, progress=ticks.append)
    assert torch.equal(rest.replay.tokens, whole.replay.tokens) and torch.equal(rest.mask, whole.mask)
    torch.testing.assert_close(rest.rollout_logp, whole.rollout_logp, atol=1e-5, rtol=0)
    assert rest.samples.texts == whole.samples.texts and rest.samples.given is None
    assert sum(ticks) == int((whole.mask.sum(1))[part.samples.truncated].sum())  # read again, then drawn


def test_forks_share_what_was_computed():
    """From the cache of one row's first tokens or computed again: the same draws, and no token of the prefix anew."""
    subject = policy()
    subject.prepare(PROMPTS[0], PLAN)
    keys = [[Key(0, prompt.id, 0)] for prompt in PROMPTS]
    found = []
    for keep in (True, False):
        rows, ticks = subject.start(PROMPTS, keys, PLAN), []
        go_on(subject, rows, PLAN, until=7, keep=keep)
        forks = [row.fork(at, Key(0, row.prompt.id, 1 + at)) for row in rows for at in (0, 3, len(row.ids) - 1)]
        forks[2].give([8, 9, 10])
        known = sum(len(row.ids) for row in forks)
        prefixes = {(row.prompt.id, *row.ids) for row in forks}  # equal ones are read once
        go_on(subject, forks, PLAN, progress=ticks.append)
        new = sum(len(row.ids) for row in forks) - known
        assert sum(ticks) == new + (3 if keep else sum(len(prefix) - 1 for prefix in prefixes))
        found.append(forks)
    for kept, again in zip(*found, strict=True):
        assert kept.ids == again.ids
        torch.testing.assert_close(torch.tensor(kept.logp), torch.tensor(again.logp), atol=1e-5, rtol=0, equal_nan=True)


def test_given_tokens_take_no_part_in_the_gradient_however_rows_are_cut():
    subject = policy()
    for parameter in subject.model.parameters():
        parameter.requires_grad_(True)
    rollout = begun_rollout(subject)
    adv, found = torch.linspace(-1, 2, 9), []
    other = replace(rollout, rollout_logp=rollout.rollout_logp.where(rollout.mask, 5.0))
    for drawn, parts in (
        (rollout, [list(range(9))]),
        (rollout, [[8], [2, 5], [0, 1, 3, 4, 6, 7]]),
        (other, [list(range(9))]),
    ):
        objective = ClippedObjective(0.2, 0.2)
        weights = objective.weights(drawn.mask)
        loss = StepLoss(drawn, adv, objective, weights, weights)
        for part in parts:
            backward(subject, torch.tensor(part), loss)
        found.append(torch.cat([p.grad.flatten() for p in subject.model.parameters()]))
        subject.model.zero_grad()
    assert found[0].abs().max() > 1e-2
    torch.testing.assert_close(found[0], found[1], atol=1e-6, rtol=0)
    assert torch.equal(found[0], found[2])


def test_rows_that_do_not_fit_are_refused():
    with pytest.raises(ValueError, match="begun has 4 rows for 3 prompts"):
        policy().rollout(PROMPTS, plan=PLAN, seed=0, begun=[None] * 4)
    with pytest.raises(ValueError, match="logp has 1 values for 2 tokens"):
        Begun([1, 2], [0.0])
