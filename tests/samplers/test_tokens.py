"""Draws, cuts, log-probs and divergence of tokens against closed forms, counts and transformers' own filters."""

import pytest
import torch
from transformers import TemperatureLogitsWarper, TopKLogitsWarper, TopPLogitsWarper

from samplers import tokens
from samplers.tokens import Generation, cut, draw, token_kl, token_logp

LOGITS = torch.randn(6, 50, generator=torch.Generator().manual_seed(0)) * 3


def test_a_draw_inverts_the_distribution():
    """At evenly spread numbers every token comes out as often as its probability says, to one part."""
    number = 100_000
    uniform = (torch.arange(number, dtype=torch.float64) + 0.5) / number
    for temperature in (0.5, 1.0, 2.0):
        drawn = draw(LOGITS[:1].expand(number, -1), uniform, Generation(1, temperature))
        expected = (LOGITS[0].double() / temperature).softmax(0) * number
        assert (drawn.bincount(minlength=50) - expected).abs().max() <= 1


def test_the_ends_of_the_unit_interval_draw_tokens_that_can_be_drawn():
    logits = torch.tensor([[-torch.inf, 0.0, -torch.inf, 1.0, -torch.inf]])
    ends = torch.tensor([0.0, 1 - 2**-53], dtype=torch.float64)
    assert draw(logits.expand(2, -1), ends, Generation(1)).tolist() == [1, 3]


def test_temperature_zero_takes_the_likeliest():
    assert torch.equal(draw(LOGITS, torch.rand(6), Generation(1, 0.0)), LOGITS.argmax(-1))


@pytest.mark.parametrize(("top_k", "top_p"), [(5, 1.0), (None, 0.7), (10, 0.5), (1, 1.0), (None, 1e-9), (99, 1.0)])
def test_cuts_are_those_of_transformers(top_k, top_p):
    expected = TemperatureLogitsWarper(0.8)(None, LOGITS)
    if top_k is not None:
        expected = TopKLogitsWarper(top_k)(None, expected)
    if top_p < 1:
        expected = TopPLogitsWarper(top_p)(None, expected)
    assert torch.equal(cut(LOGITS / 0.8, top_k, top_p), expected)


def test_a_cut_draw_stays_inside_and_a_score_ignores_the_cut():
    number = 2000
    uniform = torch.rand(number, dtype=torch.float64, generator=torch.Generator().manual_seed(1))
    drawn = draw(LOGITS[:1].expand(number, -1), uniform, Generation(1, top_k=3))
    assert set(drawn.tolist()) == set(LOGITS[0].topk(3).indices.tolist())


@pytest.mark.parametrize("chunk", [2**24, 120])
def test_log_probs_and_divergence_are_exact_in_value_and_gradient(chunk, monkeypatch):
    monkeypatch.setattr(tokens, "CHUNK", chunk)  # 120: two of the six decisions at once
    logits = LOGITS.double().reshape(3, 2, 50).requires_grad_()
    other = LOGITS.flip(0).double().reshape(3, 2, 50)
    drawn = torch.arange(6).reshape(3, 2)
    logp = token_logp(logits, drawn, 0.7, torch.float64)
    kl = token_kl(logits, other, 0.7, torch.float64)
    p, q = torch.distributions.Categorical(logits=logits / 0.7), torch.distributions.Categorical(logits=other / 0.7)
    expected_kl = torch.distributions.kl_divergence(p, q)
    torch.testing.assert_close(logp, p.log_prob(drawn))
    torch.testing.assert_close(kl, expected_kl)
    ours = torch.autograd.grad((logp + kl).sum(), logits)[0]
    theirs = torch.autograd.grad((p.log_prob(drawn) + expected_kl).sum(), logits)[0]
    torch.testing.assert_close(ours, theirs)
    with torch.no_grad():
        torch.testing.assert_close(token_logp(logits, drawn, 0.7, torch.float64), logp.detach())


def test_half_precision_logits_are_scored_in_float32():
    half = LOGITS[None].bfloat16()
    drawn = torch.arange(6)[None]
    expected = half.float().log_softmax(-1).gather(-1, drawn[..., None]).squeeze(-1)
    torch.testing.assert_close(token_logp(half, drawn, 1.0), expected)


@pytest.mark.parametrize("wrong", [{"max_new_tokens": 0}, {"temperature": -1.0}, {"top_k": 0}, {"top_p": 0.0}])
def test_an_impossible_plan_is_refused(wrong):
    with pytest.raises(ValueError, match=next(iter(wrong))):
        Generation(**({"max_new_tokens": 4} | wrong))
