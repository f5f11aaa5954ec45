"""Runs with a critic: one that is killed goes on bit for bit, and what does not fit is refused before weights load."""

from collections.abc import Iterable
from contextlib import AbstractContextManager
from pathlib import Path
from typing import Any

import pytest
from torch import nn

from cli_support import quiet
from flowrl.core.learning.activations import activations_in_host
from flowrl.core.update import Settings
from flowrl.recipe.errors import RecipeError
from flowrl.recipe.load import load
from flowrl.recipe.schema import Recipe
from flowrl.runs import loop, settings
from flowrl.runs.start import run
from resume_support import goes_on, metrics

SMALL = [
    "train.prompts=2",
    "train.group=4",
    "train.updates=2",
    "train.iterations=4",
    "train.micro_batch=3",
    "threads=1",
]
SMALL += ["generation.max_new_tokens=10", "checkpoint.every=1", "prompts.heldout=null", "threads=1"]
SMALL += ["rewards={short: {use: overlong, args: {limit: 10, margin: 10}}}"]


def test_a_killed_run_goes_on_with_its_critic_bit_for_bit(tmp_path: Path) -> None:
    more = [*SMALL, "objective={preset: ppo, kl: 0.05}"]
    more += ["critic={use: lora, rank: 4, lr: 1.0e-2, updates: 3, warmup: 1}"]
    _, whole = goes_on("tiny_lm_grpo", more, tmp_path)
    seen = [line for line in metrics(whole) if line["kind"] == "train"]
    assert [line["active_rows"] > 0 for line in seen] == [False, True, True, True]
    assert len({line["value/mean"] for line in seen}) == 4 and seen[0]["value/mean"] == 0


def test_weights_of_the_critic_stay_where_they_are_while_activations_go_to_host_memory(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    learning: list[Any] = []
    staying: list[set[int]] = []

    def settings_of(recipe: Recipe, iteration: int, shrinking: Any, parts: list[Any]) -> Settings:
        learning.extend(parts)
        return settings.settings_of(recipe, iteration, shrinking, parts)

    def in_host(modules: Iterable[nn.Module]) -> AbstractContextManager[None]:
        staying.append({id(module) for module in modules})
        return activations_in_host(modules)

    monkeypatch.setattr(loop, "settings_of", settings_of)
    monkeypatch.setattr(settings, "activations_in_host", in_host)
    more = [*SMALL, "objective.preset=ppo", "critic={use: lora, rank: 4}", "train.offload_activations=true"]
    run(load("tiny_lm_grpo", [*more, "train.iterations=1", f"output={tmp_path / 'run'}"]), quiet())
    policy, critic = learning
    assert staying and set(map(id, critic.modules.values())) - set(map(id, policy.modules.values()))
    assert all(one == {id(m) for part in learning for m in part.modules.values()} for one in staying)


REFUSED = {
    "advantage.credit.kind": ["critic=null"],
    "critic.path": ["critic={use: model}"],
    "critic.warmup": ["critic={warmup: 4}"],
    "advantage.credit.turn_gamma": ["advantage.credit={kind: gae, turn_gamma: 0.5}"],
    "advantage.credit.alpha": ["advantage.credit={kind: gae, lam: 0.9, alpha: 0.05}"],
    "critic": ["advantage.credit=broadcast"],
    "objective.kl_kind": ["objective.kl_kind=exact"],
    "advantage.scale": ["advantage.scale=whiten_by_length"],
}


@pytest.mark.parametrize("place", REFUSED)
def test_what_does_not_fit_is_refused_in_one_line(place: str) -> None:
    base = [*SMALL, "objective={kl: 0.05, kl_in: reward, kl_kind: k1}", "critic={}"]
    base += ["advantage={combine: sum, baseline: none, scale: whiten, clip: null, credit: {kind: gae}}"]
    load("tiny_lm_grpo", base)
    with pytest.raises(RecipeError) as refused:
        load("tiny_lm_grpo", [*base, *REFUSED[place]])
    assert refused.value.place == place and "\n" not in str(refused.value)


@pytest.mark.parametrize(
    ("place", "more"),
    [
        ("critic", ["critic={}"]),
        ("advantage.credit.kind", ["advantage.credit={kind: optimal_token}"]),
        ("advantage.baseline", ["advantage.baseline=given"]),
        ("objective.kl_kind", ["objective.kl=0.1", "objective.kl_in=reward"]),
        ("objective.kl_in", ["objective.kl=0.1", "objective.kl_in=reward", "objective.kl_kind=k1"]),
    ],
)
def test_what_denoising_steps_do_not_have_is_refused(place: str, more: list[str]) -> None:
    with pytest.raises(RecipeError) as refused:
        load("quickstart", more)
    assert refused.value.place == place
