"""Training in float16: gradients that it could not hold arrive, overflows are skipped, small steps are not lost."""

from pathlib import Path

import pytest
import torch

from flowrl.build import build_policy
from flowrl.core.learning.learner import Learner
from flowrl.learners import build_critic, build_values
from flowrl.planning.sizes.language import sizes
from flowrl.recipe.load import load
from resume_support import goes_on, metrics


def backward(parameter: torch.nn.Parameter, learner: Learner, slope: float) -> None:
    """A loss whose gradient passes through float16, as in a network whose activations are."""
    hidden = parameter.to(torch.float16) if parameter.dtype != torch.float16 else parameter
    (hidden * torch.ones(3, dtype=torch.float16)).float().sum().mul(slope * learner.loss_scale).backward()


@pytest.mark.parametrize("scaled", [False, True])
def test_a_gradient_below_what_float16_holds_arrives_by_a_scaled_loss(scaled: bool) -> None:
    parameter = torch.nn.Parameter(torch.ones(3))
    learner = Learner([parameter], lr=0.1, weight_decay=0.0, max_grad_norm=None, scaled=scaled)
    backward(parameter, learner, 2e-8)
    norm = learner.step()
    assert float(norm) == (pytest.approx(2e-8 * 3**0.5, rel=1e-2) if scaled else 0.0)
    assert (parameter < 1).all() == scaled  # as far as AdamW goes by the sign alone


def test_an_overflow_moves_nothing_and_halves_the_factor_which_is_saved() -> None:
    parameter = torch.nn.Parameter(torch.ones(3))
    learner = Learner([parameter], lr=0.1, scaled=True)
    backward(parameter, learner, 10.0)
    assert not torch.isfinite(learner.step()) and (parameter == 1).all() and learner.loss_scale == 2**15
    for _ in range(20):
        backward(parameter, learner, 10.0)
        learner.step()
    assert learner.steps > 0 and learner.loss_scale * 10 < 65504 and (parameter < 1).all()
    again = Learner([torch.nn.Parameter(torch.ones(3))], lr=0.1, scaled=True)
    again.load_state_dict(learner.state_dict())
    assert again.loss_scale == learner.loss_scale and again.scale == learner.scale


def test_the_factor_rises_after_many_clean_steps() -> None:
    parameter = torch.nn.Parameter(torch.ones(3))
    learner = Learner([parameter], lr=1e-6, scaled=True)
    assert learner.scale is not None
    learner.scale.every = 3
    for _ in range(3):
        backward(parameter, learner, 1e-3)
        learner.step()
    assert learner.loss_scale == 2**17


def test_steps_that_float16_would_round_away_add_up_and_go_on_after_a_restart() -> None:
    half, again = (torch.nn.Parameter(torch.ones(3, dtype=torch.float16)) for _ in range(2))
    learner = Learner([half], lr=1e-4, weight_decay=0.0, scaled=True)  # half of what float16 can tell from 1 is 2.4e-4
    for _ in range(5):
        backward(half, learner, 1.0)
        learner.step()
    other = Learner([again], lr=1e-4, weight_decay=0.0, scaled=True)
    with torch.no_grad():
        again.copy_(half)
    other.load_state_dict(learner.state_dict())
    for subject, own in ((half, learner), (again, other)):
        for _ in range(5):
            backward(subject, own, 1.0)
            own.step()
    assert half.dtype == torch.float16 and torch.equal(half, again)
    assert float(half.detach()[0]) == pytest.approx(1 - 1e-3, abs=5e-4)


SMALL = ["train.prompts=2", "train.group=4", "train.updates=2", "train.iterations=3", "train.micro_batch=3"]
SMALL += ["generation.max_new_tokens=10", "checkpoint.every=1", "prompts.heldout=null", "threads=1"]
SMALL += ["rewards={short: {use: overlong, args: {limit: 10, margin: 10}}}", "dtype.model=float16"]


def test_a_killed_run_in_float16_goes_on_bit_for_bit(tmp_path: Path) -> None:
    more = [*SMALL, "lora=null", "full=true", "train.lr=1e-4", "objective.preset=ppo", "critic={use: copy, lr: 1.0e-4}"]
    _, whole = goes_on("tiny_lm_grpo", more, tmp_path)
    seen = [line for line in metrics(whole) if line["kind"] == "train"]
    assert all(line["nonfinite_updates"] == 0 and line["loss_scale"] > 1 for line in seen)
    assert any(line["skipped_updates"] < 1 and line["grad_norm"] > 0 for line in seen)
    assert all("value/loss_scale" in line for line in seen)


GIVEN = ["objective.preset=ppo", "critic={use: copy, lr: 1.0e-3, updates: 4}"]


def test_the_critic_learns_as_train_says_and_is_counted() -> None:
    plain = load("tiny_lm_grpo", [])
    given = load("tiny_lm_grpo", GIVEN)
    one, two = sizes(plain, [], 40), sizes(given, [], 40)
    assert one is not None and two is not None and "a critic" not in two.left_out
    number = one.parameters["Qwen2ForCausalLM"] + 97
    more = [phase.weights + phase.optimizer for phase in two.phases]
    less = [phase.weights + phase.optimizer for phase in one.phases]
    assert more[0] - less[0] == 4 * 3 * number and more[1] - less[1] == 4 * 4 * number  # weights, moments; gradients
    recipe = load("tiny_lm_grpo", [*GIVEN, "train.adam_epsilon=1e-5"])
    critic = build_critic(recipe, build_values(recipe, build_policy(given)))
    assert critic is not None and critic.learner.optimizer.defaults["eps"] == 1e-5
    critic.learner.steps = 80  # of 40 iterations of 4: halfway down the line
    assert critic.learner.lr == pytest.approx(0.5e-3)
