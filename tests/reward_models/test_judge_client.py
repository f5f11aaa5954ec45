"""The client of judges: what it asks at once, its thread, its key, its arguments, and how it reads an answer."""

import gc
import json
import math
import random
import threading

import pytest
import torch

import judge_support as support
from reward_models.parts.judge.openai_client import Answer, Client, JudgeServer, read
from reward_models.server_judge import server_judge

GOOD = support.completion("yes", top=[("Yes", -0.1), ("No", -2.5)])
P_YES = 1 / (1 + math.exp(-2.4))


def judged(url, *, number=3, **args):
    """The scores of a judge, and the judge."""
    judge = server_judge(base_url=url, model="m", **{"retries": 1, "backoff": 0.001, **args})
    return judge(support.samples(torch.zeros(number, 3, 8, 8))), judge


def test_questions_are_spread_over_servers():
    asked = {0: 0, 1: 0}

    def counting(which):
        def reply(body, handler):
            asked[which] += 1
            return GOOD

        return reply

    with support.serving(counting(0)) as one, support.serving(counting(1)) as two:
        judged([one, two], number=10)
    assert asked == {0: 5, 1: 5}


def test_so_many_are_asked_at_once_and_no_more():
    lock, three, now, most = threading.Lock(), threading.Barrier(3), [0], [0]

    def reply(body, handler):
        with lock:
            now[0] += 1
            most[0] = max(most[0], now[0])
        three.wait(5)  # passes only where three are asked at once
        with lock:
            now[0] -= 1
        return GOOD

    with support.serving(reply) as url:
        scores, _ = judged(url, number=9, concurrency=3, timeout=10.0)
    assert most == [3] and scores.tolist() == pytest.approx([P_YES] * 9, abs=1e-6)


def test_one_thread_serves_all_calls_also_at_once_and_ends_with_its_reward():
    def alive():
        return [thread for thread in threading.enumerate() if thread.name == "server_judge"]

    gc.collect()
    before = len(alive())
    with support.serving(lambda body, handler: GOOD) as url:
        judge = server_judge(base_url=url, model="m")
        given, found = support.samples(torch.zeros(4, 3, 8, 8)), []
        for _ in range(3):
            judge(given)
        callers = [threading.Thread(target=lambda each: found.append(each(given)), args=(judge,)) for _ in range(4)]
        for caller in callers:
            caller.start()
        for caller in callers:
            caller.join()
        del caller
        assert len(alive()) == before + 1
        assert torch.stack(found).flatten().tolist() == pytest.approx([P_YES] * 16, abs=1e-6)
        del judge, callers
        gc.collect()
        assert len(alive()) == before


def test_retries_draw_nothing_from_the_runs_random_numbers():
    random.seed(0)
    before = random.getstate()
    with support.serving(lambda body, handler: (503, b"{}")) as url, pytest.warns(UserWarning, match="503"):
        judged(url, number=1, retries=2)
    assert random.getstate() == before


def test_the_key_comes_from_the_environment_and_goes_nowhere_else(monkeypatch):
    seen = []

    def reply(body, handler):
        seen.append(handler.headers["authorization"])
        return 401, json.dumps({"error": {"message": f"wrong key: {seen[-1]}"}}).encode()

    monkeypatch.setenv("MY_JUDGE_KEY", "sk-secret")
    with support.serving(reply) as url:
        with pytest.warns(UserWarning, match="401") as caught:
            _, judge = judged(url, number=1, api_key_env="MY_JUDGE_KEY")
        with pytest.warns(UserWarning, match="401"):
            judged(url, number=1)
    assert seen == ["Bearer sk-secret", "Bearer EMPTY"]
    assert not any("sk-secret" in str(warning.message) for warning in caught) and "sk-secret" not in repr(vars(judge))
    monkeypatch.delenv("MY_JUDGE_KEY")
    with pytest.raises(ValueError, match="the environment variable MY_JUDGE_KEY is not set"):
        judged(url, api_key_env="MY_JUDGE_KEY")
    with pytest.raises(ValueError, match="never give the key") as refused:
        judged(url, api_key_env="sk-secret")
    assert "sk-secret" not in str(refused.value)


@pytest.mark.parametrize(
    ("given", "said"),
    [
        ({"base_url": "localhost:8000"}, "base_url='localhost:8000'; accepted is http"),
        ({"base_url": "http://me:secret@host/v1"}, "without a password"),
        ({"base_url": []}, "give base_url, such as"),
        ({"base_url": ["http://a/v1", 5]}, "base_url=5"),
        ({"model": ""}, "and model, as served"),
        ({"mode": "maybe"}, "mode='maybe'; accepted are yes, rubric, unified"),
        ({"question": "{} or {}"}, "question='{} or {}'; accepted is a text with one {}"),
        ({"concurrency": 0}, "concurrency=0; accepted is 1 or more"),
        ({"retries": -1}, "retries=-1; accepted is 0 or more"),
        ({"timeout": 0}, "timeout=0; accepted are seconds"),
        ({"limit": math.inf}, "limit=inf; accepted are seconds"),
        ({"max_side": 0}, "max_side=0; accepted is 1 or more"),
        ({"frames": 0}, "frames=0; accepted is 1 or more"),
    ],
)
def test_a_wrong_argument_is_one_line(given, said):
    with pytest.raises(ValueError) as caught:
        server_judge(**{"base_url": "http://127.0.0.1:1/v1", "model": "m", **given})
    assert said in str(caught.value) and str(caught.value).startswith("server_judge: ")
    assert "\n" not in str(caught.value)


def test_other_samples_are_refused():
    judge = server_judge(base_url="http://127.0.0.1:1/v1", model="m")
    with pytest.raises(ValueError, match="server_judge: pixels are torch.uint8"):
        judge(support.samples(torch.zeros(1, 3, 8, 8, dtype=torch.uint8)))
    with pytest.raises(ValueError, match="server_judge: pixels have shape"):
        judge(support.samples(torch.zeros(1, 4, 8, 8)))


def test_without_the_package_it_says_what_to_install(monkeypatch):
    monkeypatch.setitem(__import__("sys").modules, "openai", None)
    with pytest.raises(ValueError, match=r'pip install "flowrl-toolkit\[judge\]"'):
        server_judge(base_url="http://127.0.0.1:1/v1", model="m")


def test_an_answer_is_read():
    assert read(GOOD) == Answer("yes", False, (("Yes", -0.1), ("No", -2.5)))
    assert read(support.completion("a", finish="length")) == Answer("a", True, None)
    bare = {"choices": [{"message": {"content": None}, "logprobs": {"content": [{"token": "Yes", "logprob": -0.5}]}}]}
    assert read(bare) == Answer(None, False, (("Yes", -0.5),))


def test_nothing_is_asked_of_nobody():
    client = Client(JudgeServer(reward="judge", base_url=support.closed(), model="m"))
    assert client.ask([]) == []
    client.close()
