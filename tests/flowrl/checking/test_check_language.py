"""`flowrl check` of a language model: everything holds on the recipe that ships, and planted faults are named."""

from collections.abc import Callable

import pytest
import torch

from flowrl.checking.check import check
from flowrl.checking.proofs import tokens
from flowrl.checking.proofs.proof import ProofResult
from flowrl.policies.language import proving
from flowrl.recipe.load import load


def findings(*overrides: str) -> list[ProofResult]:
    recipe = load("tiny_lm_grpo", ["train.prompts=2", "train.group=4", "train.updates=1", *overrides])
    return [f for f in check(recipe, rows=8) if isinstance(f, ProofResult)]


def test_everything_holds_on_the_recipe_that_ships(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    found = findings()
    assert [f.title for f in found if f.held is not True] == [] and len(found) == 13
    said = {f.title: f.measured for f in found}
    assert "2 greedy completions alike" in said["greedy decoding is the model's own"]
    assert "0 in 28 factors A" in said["gradient arrives and is finite"]
    assert list(tmp_path.iterdir()) == []


def drift(policy: object) -> None:
    """Adapters that are no longer neutral when training begins."""
    for name, parameter in policy.model.named_parameters():  # pyright: ignore[reportAttributeAccessIssue]
        if "lora_B" in name:
            torch.nn.init.constant_(parameter, 0.02)


def forget(policy: object) -> None:
    """A replay that is not the rollout."""
    looks = policy._looks  # pyright: ignore[reportAttributeAccessIssue]
    whole = looks.at
    looks.at = lambda *a, **k: tuple(v if v is None else v * 1.01 for v in whole(*a, **k))


@pytest.mark.parametrize(
    ("title", "plant", "words"),
    [
        ("greedy decoding is the model's own", drift, "not the one on disk"),
        ("ratio is 1 at every token", forget, "second forward pass differs from the first"),
    ],
)
def test_a_fault_in_the_policy_is_named(title: str, plant: Callable, words: str, monkeypatch: pytest.MonkeyPatch):
    build = tokens.build_policy

    def planted(recipe: object) -> object:
        policy = build(recipe)
        policy.prepare = lambda *_: plant(policy)  # the probe would refuse it
        return policy

    monkeypatch.setattr(tokens, "build_policy", planted)
    first = next(f for f in findings() if f.held is False)
    assert first.title == title and words in first.cause and first.remedy


def test_completions_that_never_end_are_named():
    first = next(f for f in findings("generation.max_new_tokens=2") if f.held is False)
    assert first.title == "completions end" and "8 of 8 cut off at 2" in first.measured
    assert "max_new_tokens" in first.remedy


def test_a_model_that_the_policy_refuses_is_named(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(proving, "MAX_GAP", -1.0)
    found = {f.title: f for f in findings()}
    assert found["model loads and can be replayed"].held is False
    assert found["gradient arrives and is finite"].held is None  # needs the model
