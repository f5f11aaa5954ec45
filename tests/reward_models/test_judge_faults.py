"""Servers that fail in every way: a question ends without a score, in bounded time, and never as a number."""

import json
import math
import threading
import time

import pytest
import torch

import judge_support as support
from reward_models.server_judge import server_judge
from reward_models.unified_reward import unified_reward

GOOD = support.completion("yes", top=[("Yes", -0.1), ("No", -2.5)])
P_YES = 1 / (1 + math.exp(-2.4))


@pytest.fixture
def release():
    """An event that hanging replies wait for; set when the test is over."""
    event = threading.Event()
    yield event
    event.set()


def judged(url, *, number=3, reward=server_judge, **args):
    """The scores of a judge that gives up soon."""
    patience = {"retries": 1, "backoff": 0.001, "timeout": 0.2, "limit": 5.0}
    judge = reward(base_url=url, model="m", **{**patience, **args})
    return judge(support.samples(torch.zeros(number, 3, 8, 8))), judge


def hang(body, handler, release):
    release.wait(10)


def drip(body, handler, release):
    handler.send(200, b"{", length=10_000)
    while not release.wait(0.05):
        handler.wfile.write(b" ")
        handler.wfile.flush()


def die(body, handler, release):
    handler.send(200, json.dumps(GOOD).encode()[:60], length=len(json.dumps(GOOD)))
    handler.close_connection = True
    handler.connection.close()


def slam(body, handler, release):
    handler.close_connection = True
    handler.connection.close()


def sent(status, content, **headers):
    def reply(body, handler, release):
        handler.send(status, content if isinstance(content, bytes) else json.dumps(content).encode(), **headers)

    return reply


def with_choices(*choices):
    return sent(200, {**GOOD, "choices": list(choices)})


def with_top(*entries):
    choice = {
        **GOOD["choices"][0],
        "logprobs": {"content": [{"token": "x", "logprob": 0, "top_logprobs": list(entries)}]},
    }
    return with_choices(choice)


FAULTS = {
    "hangs": (hang, "timeout"),
    "drips": (drip, "timeout"),
    "dies in the middle of an answer": (die, "connection"),
    "closes at once": (slam, "connection"),
    "500": (sent(500, {"error": "broken"}), "HTTP 500"),
    "500 with a good body": (sent(500, GOOD), "HTTP 500"),
    "401": (sent(401, {"error": {"message": "who are you?"}}), "HTTP 401"),
    "404 HTML": (sent(404, b"<html>nothing</html>", kind="text/html"), "HTTP 404"),
    "HTML": (sent(200, b"<html>yes</html>", kind="text/html"), "no chat completion"),
    "bytes": (sent(200, b"\x00\xff\xfe\x80"), "no chat completion"),
    "nothing": (sent(200, b""), "no chat completion"),
    "partial JSON": (sent(200, json.dumps(GOOD).encode()[:-9]), "no chat completion"),
    "a list": (sent(200, [GOOD]), "no chat completion"),
    "nested without end": (sent(200, b"[" * 100_000), "no chat completion"),
    "null": (sent(200, b"null"), "no chat completion"),
    "a number": (sent(200, b"1.0"), "no chat completion"),
    "an error with status 200": (sent(200, {"error": {"message": "out of memory"}}), "no chat completion"),
    "no choices": (with_choices(), "no chat completion"),
    "two choices": (with_choices(GOOD["choices"][0], GOOD["choices"][0]), "no chat completion"),
    "a choice of null": (with_choices(None), "no chat completion"),
    "a content that is no text": (with_choices({"message": {"content": ["yes"]}}), "no chat completion"),
    "no message": (with_choices({"text": "yes"}), "no chat completion"),
    "a probability above 1": (with_top({"token": "Yes", "logprob": 3.0}), "no chat completion"),
    "a probability that is none": (with_top({"token": "Yes", "logprob": float("nan")}), "no chat completion"),
    "a probability in words": (with_top({"token": "Yes", "logprob": "-0.1"}), "no chat completion"),
    "a token that is none": (with_top({"token": 5, "logprob": -0.1}), "no chat completion"),
    "log-probabilities of null": (with_top(None), "no chat completion"),
}


@pytest.mark.parametrize("fault", FAULTS)
def test_a_fault_is_never_a_score(fault, release):
    reply, kind = FAULTS[fault]
    with support.serving(lambda body, handler: reply(body, handler, release)) as url:
        started = time.monotonic()
        with pytest.warns(UserWarning, match="server_judge: a question is not scored"):
            scores, judge = judged(url)
        release.set()
    assert torch.isnan(scores).all() and scores.dtype == torch.float32
    assert judge.failures == {kind: 3}
    assert time.monotonic() - started < 8  # a hanging reply lets go after 10


@pytest.mark.parametrize("fault", ["hangs", "dies in the middle of an answer", "500", "HTML", "no choices"])
def test_a_fault_of_one_sample_is_not_the_others(fault, release):
    def mixed(body, handler):
        return FAULTS[fault][0](body, handler, release) if "bad" in support.text_in(body) else GOOD

    with support.serving(mixed) as url, pytest.warns(UserWarning, match="not scored"):
        judge = server_judge(base_url=url, model="m", retries=0, timeout=0.3)
        scores = judge(support.samples(torch.zeros(4, 3, 8, 8), "good", "bad", "good", "bad")).tolist()
        release.set()
    assert [math.isnan(score) for score in scores] == [False, True, False, True]
    assert scores[0] == scores[2] == pytest.approx(P_YES, abs=1e-6)


def test_nobody_listens():
    with pytest.warns(UserWarning, match="not scored: connection: http://127.0.0.1:.*Connect"):
        scores, judge = judged(support.closed())
    assert torch.isnan(scores).all() and judge.failures == {"connection": 3}


@pytest.mark.parametrize("compatible", [False, True])
def test_no_switch_makes_a_score_of_a_failure(compatible):
    with support.serving(lambda body, handler: (500, b"no")) as url, pytest.warns(UserWarning, match="500"):
        scores, _ = judged(url, reward=unified_reward, compatible=compatible)
    assert torch.isnan(scores).all()


def test_a_busy_server_is_asked_again_and_a_wrong_question_is_not():
    tries = {}

    def reply(body, handler):
        caption = support.text_in(body)
        tries[caption] = tries.get(caption, 0) + 1
        if "wrong" in caption:
            return 400, b'{"error": "no such thing"}'
        return GOOD if tries[caption] == 3 else (429 if tries[caption] == 1 else 503, b"{}")

    with support.serving(reply) as url, pytest.warns(UserWarning, match="no such thing"):
        judge = server_judge(base_url=url, model="m", retries=2, backoff=0.001)
        scores = judge(support.samples(torch.zeros(2, 3, 8, 8), "busy", "wrong"))
    assert scores[0].item() == pytest.approx(P_YES, abs=1e-6) and math.isnan(scores[1])
    assert sorted(tries.values()) == [1, 3] and judge.failures == {"HTTP 400": 1}


def test_a_server_says_how_long_to_wait():
    asked = []

    def reply(body, handler):
        asked.append(time.monotonic())
        if len(asked) == 1:
            return handler.send(429, b"{}", retry_after="0.2")
        return GOOD

    with support.serving(reply) as url:
        scores, _ = judged(url, number=1)
    assert scores.item() == pytest.approx(P_YES, abs=1e-6) and asked[1] - asked[0] >= 0.2


def test_the_limit_of_a_call_ends_what_its_tries_would_not(release):
    with support.serving(lambda body, handler: hang(body, handler, release)) as url:
        started = time.monotonic()
        with pytest.warns(UserWarning, match="within the 0.2 s of the whole call"):
            scores, judge = judged(url, timeout=30.0, limit=0.2, retries=9)
        took = time.monotonic() - started
        release.set()
    assert torch.isnan(scores).all() and judge.failures == {"limit": 3} and took < 8


def test_what_came_before_the_limit_counts(release):
    def reply(body, handler):
        return hang(body, handler, release) if "slow" in support.text_in(body) else GOOD

    with support.serving(reply) as url, pytest.warns(UserWarning, match="limit"):
        judge = server_judge(base_url=url, model="m", limit=0.3)
        scores = judge(support.samples(torch.zeros(2, 3, 8, 8), "slow", "fast"))
        release.set()
    assert math.isnan(scores[0]) and scores[1].item() == pytest.approx(P_YES, abs=1e-6)


def test_one_server_of_two_may_be_dead():
    asked = []

    def reply(body, handler):
        asked.append(1)
        return GOOD

    with support.serving(reply) as url:
        scores, judge = judged([support.closed(), url], number=6)
    assert scores.tolist() == pytest.approx([P_YES] * 6, abs=1e-6) and len(asked) == 6 and not judge.failures
