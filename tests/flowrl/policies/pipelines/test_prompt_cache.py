"""Text is encoded once per distinct prompt, and rows get what they would have got."""

from __future__ import annotations

import functools
from typing import Any

import pytest
import torch
from PIL import Image
from torch import Tensor

import policies_support
from flowrl.policies.pipelines.encoding import prompt_cache as encoding
from flowrl.policies.pipelines.encoding.prompt_cache import CachedEncoder
from policies_support import ODE, PROMPTS, SDE, FamilyPolicy, scores


class Encoder:
    """An `encode_prompt` that notes what it is asked for; a prompt's code is its letters, padded to eight."""

    def __init__(self) -> None:
        self.asked: list[list[str]] = []

    def code(self, texts: list[str]) -> Tensor:
        self.asked.append(list(texts))
        return torch.tensor([[ord(c) for c in text.ljust(8)[:8]] for text in texts]).float()

    def plain(self, prompt: list[str] | str, negative_prompt: str | None = None, device: Any = None) -> Tensor:
        return self.code([prompt] if isinstance(prompt, str) else prompt)

    def layered(self, prompt: list[str]) -> tuple[Tensor, Tensor, list[Tensor], Tensor, None]:
        """Rows first; rows second (HiDream's layers); a list; the same for all rows (FLUX's text ids); nothing."""
        code = self.code(prompt)
        return code, torch.stack([code, 2 * code]), list(code), torch.arange(4.0), None

    def flat(self, prompt: list[str]) -> Tensor:
        """All rows in one dimension with others: no row can be told."""
        return self.code(prompt).flatten()

    def pictured(self, prompt: list[str], image: Any) -> Tensor:
        return self.code(prompt)

    def templating(self, prompt: list[str]) -> Tensor:
        code = self.code(prompt)
        for i, text in enumerate(prompt):
            prompt[i] = f"<{text}>"
        return code


@pytest.fixture
def encoder() -> Encoder:
    return Encoder()


def test_each_distinct_prompt_is_encoded_once(encoder: Encoder) -> None:
    cached = CachedEncoder(encoder.plain)
    rows = ["one", "two", "one", "one", "two"]
    assert torch.equal(cached(rows), Encoder().plain(rows))
    real = [asked for asked in encoder.asked if "two" in asked]
    assert real == [["one", "two"]]
    before = len(encoder.asked)
    assert torch.equal(cached(prompt=rows[::-1]), Encoder().plain(rows[::-1]))
    assert torch.equal(cached(rows), Encoder().plain(rows))
    assert len(encoder.asked) <= before + 1  # the reversed order is another set of prompts, the first is remembered


def test_a_single_text_is_remembered(encoder: Encoder) -> None:
    cached = CachedEncoder(encoder.plain)
    for _ in range(3):
        assert torch.equal(cached("one"), Encoder().plain("one"))
    assert encoder.asked == [["one"]]


def test_other_arguments_are_part_of_the_question(encoder: Encoder) -> None:
    cached = CachedEncoder(encoder.plain)
    cached(["one"])
    cached(["one"], negative_prompt="bad")
    cached(["one"], negative_prompt="bad")
    cached(["one"], device=torch.device("cpu"))
    assert len(encoder.asked) == 3


def test_a_row_is_found_in_whatever_form_the_result_has_it(encoder: Encoder) -> None:
    cached = CachedEncoder(encoder.layered)
    rows = ["one", "two", "one", "one"]
    found, expected = cached(rows), Encoder().layered(rows)
    assert torch.equal(found[0], expected[0])
    assert torch.equal(found[1], expected[1])
    assert all(torch.equal(a, b) for a, b in zip(found[2], expected[2], strict=True))
    assert torch.equal(found[3], expected[3])
    assert found[4] is None


def test_results_without_a_row_a_prompt_are_asked_for_as_they_are(encoder: Encoder) -> None:
    rows = ["one", "two", "one"]
    assert torch.equal(CachedEncoder(encoder.flat)(rows), Encoder().flat(rows))
    assert rows in encoder.asked


def test_pictures_are_told_apart_by_content(encoder: Encoder) -> None:
    cached = CachedEncoder(encoder.pictured)
    red, blue = Image.new("RGB", (2, 2), "red"), Image.new("RGB", (2, 2), "blue")
    cached(["one"], red)
    cached(["one"], red.copy())
    assert len(encoder.asked) == 1
    cached(["one"], blue)
    cached(["one"], torch.ones(2))
    cached(["one"], torch.zeros(2))
    assert len(encoder.asked) == 4


def test_what_cannot_be_told_by_value_is_not_remembered(encoder: Encoder) -> None:
    cached = CachedEncoder(encoder.pictured)
    for _ in range(2):
        cached(["one"], object())
    assert len(encoder.asked) == 2


def test_a_pipeline_may_write_into_its_list(encoder: Encoder) -> None:
    cached = CachedEncoder(encoder.templating)
    prompts = ["one", "two"]
    first = cached(prompts)
    assert prompts == ["one", "two"]
    assert torch.equal(cached(prompts), first)
    assert len(encoder.asked) == 1


def test_lists_that_are_handed_out_are_the_callers_own(encoder: Encoder) -> None:
    cached = CachedEncoder(encoder.layered)
    cached(["one", "two"])[2].clear()
    assert len(cached(["one", "two"])[2]) == 2


def test_the_oldest_are_forgotten_when_memory_is_full(encoder: Encoder, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(encoding, "CACHE_BYTES", 3 * 8 * 4)  # three codes
    cached = CachedEncoder(encoder.plain)
    for text in ("one", "two", "three"):
        cached(text)
    cached("one")  # used again: "two" is now the oldest
    cached("four")
    cached("one")
    assert len(encoder.asked) == 4
    cached("two")
    assert len(encoder.asked) == 5


def test_results_carry_no_gradient_and_the_encoders_are_let_go() -> None:
    weight, let_go = torch.ones(1, requires_grad=True), []
    cached = CachedEncoder(lambda prompt: weight * len(prompt), lambda: let_go.append(1))
    assert not cached("one").requires_grad
    cached("one")
    assert len(let_go) == 1


def test_a_pipelines_prompts_are_encoded_once_for_rollout_and_replay(monkeypatch: pytest.MonkeyPatch) -> None:
    pipe = policies_support.families.get("flux").build()
    own, asked = type(pipe).encode_prompt, []

    @functools.wraps(own)
    def encode_prompt(self: Any, prompt: Any, *args: Any, **kwargs: Any) -> Any:
        asked.extend([prompt] if isinstance(prompt, str) else prompt)
        return own(self, prompt, *args, **kwargs)

    monkeypatch.setattr(type(pipe), "encode_prompt", encode_prompt)
    policy = FamilyPolicy("flux", pipe)
    policy.prepare(PROMPTS[0], ODE)
    asked.clear()
    rollout = policy.rollout(PROMPTS, group_size=3, plan=SDE, seed=0)
    learnt = [text for text in asked if text not in ("a", "a few words")]
    assert learnt.count("two dogs") == 1
    asked.clear()
    policy.rollout(PROMPTS, group_size=3, plan=SDE, seed=1)
    scores(policy, rollout)
    assert asked == []
