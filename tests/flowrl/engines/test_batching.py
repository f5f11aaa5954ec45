"""Requests that come at the same time, drawn in one batch: the numbers of each alone, in less forwards."""

import threading
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest
import torch

import language_support
import vision_support as vision
from engines_support import NAME
from flowrl.engines.service import Completion, PolicyService, RefusedError
from language_support import PROMPTS
from samplers.tokens import Generation

PLAN = Generation(12)


def asked(service: PolicyService, calls: Sequence[dict[str, Any]]) -> list[Any]:
    """The answers to calls of `complete`, all of which wait before the first is drawn."""
    answers: list[Any] = [None] * len(calls)

    def call(i: int) -> None:
        try:
            answers[i] = service.complete(**calls[i])
        except RefusedError as error:
            answers[i] = error

    threads = [threading.Thread(target=call, args=(i,)) for i in range(len(calls))]
    with service.lock:
        for number, thread in enumerate(threads, 1):
            thread.start()
            until = time.monotonic() + 30
            while len(service.batches.waiting) < number and time.monotonic() < until:
                time.sleep(0.001)
    for thread in threads:
        thread.join(60)
    return answers


def service(batch: int, **options: Any) -> PolicyService:
    return PolicyService(language_support.policy(**options), NAME, PLAN, batch=batch)


def calls(of: PolicyService) -> list[dict[str, Any]]:
    """Of unlike length, limit and number; the fourth wants other temperatures, the last a model that is not there."""
    ids = [of.policy.encode(p.text, of.policy.stop) for p in PROMPTS]
    made = [
        {"ids": ids[0], "plan": PLAN, "seed": 1},
        {"ids": ids[2], "plan": Generation(5), "seed": 2, "number": 3},
        {"ids": ids[1], "plan": Generation(9), "seed": 3},
        {"ids": ids[1], "plan": Generation(9, 0.5), "seed": 3},
        {"ids": ids[2], "plan": PLAN, "seed": 4, "stop": ["7"]},
        {"ids": ids[0], "plan": PLAN, "seed": 5, "model": "another"},
    ]
    return made


def forwards(of: PolicyService) -> list[int]:
    """Is filled with the rows of each forward of the model."""
    seen: list[int] = []
    of.model.register_forward_pre_hook(lambda _, args, kwargs: seen.append(len(kwargs["input_ids"])), with_kwargs=True)
    return seen


def close(one: Completion, other: Completion) -> None:
    assert (one.ids, one.text, one.reason, one.stopped_by) == (other.ids, other.text, other.reason, other.stopped_by)
    assert torch.allclose(torch.tensor(one.logp), torch.tensor(other.logp), atol=1e-5)


def test_answers_are_those_that_each_gets_alone():
    alone, together = service(1), service(8)
    expected = asked(alone, calls(alone))
    seen = forwards(together)
    found = asked(together, calls(together))
    assert max(seen) == 5  # 1 + 3 + 1: those that fit
    assert len(seen) < 12 + 9 + 12 + 12
    for one, other in zip(found[:5], expected[:5], strict=True):
        assert len(one[0]) == len(other[0]) and one[1] == other[1]
        for a, b in zip(one[0], other[0], strict=True):
            close(a, b)
    assert [len(own) for own, _ in found[:5]] == [1, 3, 1, 1, 1]
    assert isinstance(found[5], RefusedError) and isinstance(expected[5], RefusedError)
    assert found[1][0][2].ids != found[1][0][0].ids  # rows of one request differ


def test_a_batch_has_at_most_so_many_rows():
    small = service(4)
    seen = forwards(small)
    ids = small.policy.encode("7*8", small.policy.stop)
    found = asked(small, [{"ids": ids, "plan": PLAN, "seed": i} for i in range(6)])
    assert max(seen) == 4 and all(len(own) == 1 for own, _ in found)
    six = asked(small, [{"ids": ids, "plan": PLAN, "seed": 1, "number": 6}])
    assert max(seen) == 6 and len(six[0][0]) == 6  # a request is never parted


def test_rows_that_no_batch_may_change_are_drawn_alone():
    single, many = service(1, batch_invariant=True), service(8, batch_invariant=True)
    expected, seen = asked(single, calls(single)), forwards(many)
    found = asked(many, calls(many))
    assert max(seen) == 1 and found[:5] == expected[:5]


def test_pictures_stand_beside_texts(tmp_path: Path):
    policy, prompts = vision.policy(vision.folder(tmp_path, "qwen2_5_vl")), vision.prompts(tmp_path)
    rows = [policy.encode.row(prompt, policy.stop) for prompt in prompts]
    given = [{"ids": ids, "plan": Generation(6), "seed": i, "media": media} for i, (ids, media) in enumerate(rows)]
    expected = [PolicyService(policy, NAME, PLAN).complete(**one) for one in given]
    found = asked(PolicyService(policy, NAME, PLAN, batch=8), given)
    for one, other in zip(found, expected, strict=True):
        close(one[0][0], other[0][0])
    assert len({len(ids) for ids, _ in rows}) > 1


def test_an_error_reaches_all_that_wait(monkeypatch: pytest.MonkeyPatch):
    broken = service(8)
    ids = broken.policy.encode("7*8", broken.policy.stop)

    def fail(*_: Any, **__: Any) -> None:
        raise RefusedError(500, "no memory")

    monkeypatch.setattr("flowrl.engines.service.draw_together", fail)
    found = asked(broken, [{"ids": ids, "plan": PLAN, "seed": i} for i in range(3)])
    assert [str(one) for one in found] == ["no memory"] * 3 and not broken.batches.waiting
    monkeypatch.undo()
    assert len(asked(broken, [{"ids": ids, "plan": PLAN, "seed": 1}])[0][0]) == 1  # and it goes on
