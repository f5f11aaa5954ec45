"""Guidance whose unconditional half has no gradient: against the same detached by hand, on families of every kind."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import replace
from typing import Any

import pytest
import torch
from torch import Tensor

from families.base import image_for
from flowrl.contracts import LogProbs, Rollout, View
from flowrl.policies import adapters
from flowrl.policies.errors import PolicyError
from flowrl.policies.pipelines.policy import PipelinePolicy
from flowrl.policies.pipelines.probing import guidance
from flowrl.policies.pipelines.probing.branches import Branches
from flowrl.policies.pipelines.probing.guidance import find_guidance
from policies_support import PROMPTS, SDE, SEED, FamilyPolicy, gap, pictures, shake

Detach = Callable[[Any, int], Any]


def made(name: str, guidance_gradient: str = "both") -> FamilyPolicy:
    """A family with adapters that say something, the same whenever it is made."""
    policy = FamilyPolicy(name, guidance_gradient=guidance_gradient)
    adapters.add_lora(policy.modules, rank=2, alpha=4)
    shake(policy.modules)
    return policy


def first_half(output: Any, call: int) -> Any:
    """One call of [without, with] the prompt."""
    rows = len(output[0]) // 2
    return (torch.cat([output[0][:rows].detach(), output[0][rows:]]), *output[1:])


def last_entries(output: Any, call: int) -> Any:
    """One call of lists, [with, without] the prompt (Z-Image)."""
    rows = len(output[0]) // 2
    return ([*output[0][:rows], *(entry.detach() for entry in output[0][rows:])], *output[1:])


def second_call(output: Any, call: int) -> Any:
    """Two calls a step, the first with the prompt."""
    return output if call % 2 == 0 else tuple(part.detach() for part in output)


HAND_MADE: dict[str, Detach] = {
    "sd3": first_half,
    "z_image": last_entries,
    "wan": second_call,
    "qwen_image": second_call,
}


def rolled(policy: FamilyPolicy) -> Rollout:
    return policy.rollout(PROMPTS, group_size=2, plan=SDE, seed=SEED)


def replayed(policy: PipelinePolicy, rollout: Rollout, rows: Sequence[int]) -> tuple[Tensor, Tensor]:
    """(log-probs [r, K], the gradient of a sum of them whose terms count differently) of some rows."""
    found = torch.zeros(len(rollout.rollout_logp), 3)

    def visit(score: LogProbs) -> None:
        found[score.rows[:, None], score.columns[None]] = score.logp.detach()
        weight = (1.0 + score.rows[:, None]) * (2.0 + score.columns[None])
        (weight * score.logp).sum().backward()

    policy.look(rollout, torch.tensor(rows), View(), visit)
    parameters = list(policy.trainable())
    grad = torch.cat([torch.zeros(p.numel()) if p.grad is None else p.grad.flatten() for p in parameters])
    for parameter in parameters:
        parameter.grad = None
    return found[list(rows)], grad


def by_hand(policy: FamilyPolicy, detach: Detach) -> None:
    """From now on the denoiser's output is detached where the prompt is not known."""
    module, calls = policy.modules["transformer"], 0
    forward = module.forward

    def detached(*args: Any, **kwargs: Any) -> Any:
        nonlocal calls
        calls += 1
        return detach(forward(*args, **kwargs), calls - 1)

    module.forward = detached


@pytest.mark.parametrize("name", HAND_MADE)
def test_the_gradient_is_that_of_a_guidance_detached_by_hand(name: str) -> None:
    policy, plain = made(name, "conditional"), made(name)
    rollout, other = rolled(policy), rolled(plain)
    rounding = 0.0 if HAND_MADE[name] is second_call else 2e-6  # a call that is divided has another batch size
    assert (
        gap(rollout.rollout_logp, other.rollout_logp) <= rounding
        and gap(pictures(rollout), pictures(other)) <= 10 * rounding
    )
    whole = replayed(plain, other, range(4))
    by_hand(plain, HAND_MADE[name])
    for rows in (range(4), [2], [3, 0]):
        logp, grad = replayed(policy, rollout, rows)
        expected, wanted = replayed(plain, other, rows)
        assert gap(logp, expected) <= rounding
        assert float((grad - wanted).norm()) <= 1e-4 * float(wanted.norm())
    logp, grad = replayed(policy, rollout, range(4))
    assert gap(logp, whole[0]) <= rounding and torch.equal(logp, rollout.rollout_logp)  # a replay is its rollout
    assert torch.nn.functional.cosine_similarity(grad, whole[1], dim=0) < 0.99  # both halves say something else


def test_no_row_is_run_twice(monkeypatch: pytest.MonkeyPatch) -> None:
    """Rows with gradient are half of all, and all are as many as before."""
    policy, seen = made("sd3", "conditional"), []
    rollout = rolled(policy)
    module = policy.modules["transformer"]
    forward = module.forward

    def watched(*args: Any, **kwargs: Any) -> Any:
        seen.append((torch.is_grad_enabled(), len(kwargs["hidden_states"])))
        return forward(*args, **kwargs)

    monkeypatch.setattr(module, "forward", watched)
    replayed(policy, rollout, range(4))
    assert seen == [(False, 4), (True, 4)] * 3


FIRST = ["a red cat", *(f"a red square {i}" for i in range(3)), "cat", "two two", "", "a long row of small grey stones"]


@pytest.mark.parametrize("name", ["qwen_image", "sd3", "wan", "z_image"])
def test_the_division_is_the_same_whatever_prompt_comes_first(name: str) -> None:
    """Also where no text of as many tokens is near, and where padding is as long as the longest prompt of a call."""
    policy, wanted = made(name), None
    policy.prepare(PROMPTS[0], SDE)
    for text in FIRST:
        found = find_guidance(policy, replace(PROMPTS[0], text=text), SDE.num_steps)._calls
        divided = {call: [(b.prompted, b.in_blocks) for b in known] for call, known in found.items()}
        wanted = divided if wanted is None else wanted
        assert divided == wanted, text


@pytest.mark.parametrize("words", [["red", "red car"], ["red", "a red square and two more"], ["red " * 9, "red " * 12]])
def test_a_row_that_is_padded_to_a_longer_neighbour_is_not_taken_for_changed(
    words: list[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    """No two texts have as many tokens."""
    monkeypatch.setattr(guidance, "_other_texts", lambda text: iter(words))
    policy = made("qwen_image")
    policy.prepare(PROMPTS[0], SDE)
    found = find_guidance(policy, replace(PROMPTS[0], text="a red square"), SDE.num_steps)._calls
    assert [[b.prompted for b in known] for known in found.values()] == [[(True,)], [(False,)]]


def test_a_picture_that_stays_is_no_prompt() -> None:
    """Qwen-Image-Edit without the prompt sees the picture still; with another picture for each text it is refused."""
    policy = made("qwen_edit", "conditional")
    with pytest.raises(PolicyError, match="no row of QwenImageEditPipeline's denoiser is free of the prompt"):
        policy.prepare(PROMPTS[0], SDE)
    policy = made("qwen_edit")
    own = policy.call
    policy.call = lambda prompts: own(prompts) | {"image": [image_for("one", 32)] * len(prompts)}
    policy.prepare(PROMPTS[0], SDE)
    found = find_guidance(policy, PROMPTS[0], SDE.num_steps)._calls
    assert [[b.prompted for b in known] for known in found.values()] == [[(True,)], [(False,)]]


@pytest.mark.parametrize(("name", "says"), [("flux", "embedded"), ("sd3", "no guidance")])
def test_a_pipeline_without_guidance_is_refused(name: str, says: str) -> None:
    policy = FamilyPolicy(name, guidance_gradient="conditional")
    if name == "sd3":
        own = policy.call
        policy.call = lambda prompts: own(prompts) | {"guidance_scale": 1.0}
    with pytest.raises(PolicyError, match=f"objective.guidance_gradient: got conditional, but .*{says}.*=both"):
        policy.prepare(PROMPTS[0], SDE)


def test_branches_lie_in_blocks_or_row_by_row() -> None:
    assert Branches((False, True), True, None).rows(3) == ([0, 1, 2], [3, 4, 5])
    assert Branches((True, False), False, None).rows(2) == ([1, 3], [0, 2])
    assert Branches((True, False, False), True, None).rows(1) == ([1, 2], [0])
