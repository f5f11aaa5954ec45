"""Objectives of reward gradients: published numbers through the product's own loop, and what they ask of rewards."""

from collections.abc import Callable, Sequence
from typing import Any, cast

import pytest
import torch
from torch import Tensor

import golden
from flowrl.contracts import Batch, Field, Finished, Looks, Prompt, Rollout, Samples, View, Visit
from flowrl.core.backward import StepLoss
from flowrl.core.backward_pull import backward_pull
from flowrl.core.objectives.aggregate import weights
from flowrl.core.objectives.pulled import DraftObjective, PulledObjective, ReFLObjective, SRPOObjective
from samplers.direct_align import align_branches, align_levels
from samplers.schedules import shifted

Case = dict[str, Any]
Show = Callable[[Tensor], Samples]


def inputs(case: Case) -> dict[str, Tensor]:
    return {name: golden.tensor(value, torch.float32) for name, value in case["inputs"].items()}


def batch(rows: int, reward_of: Callable[[Samples, Sequence[str] | None], Tensor]) -> Batch:
    zeros = torch.zeros(rows, 1)
    return Batch(zeros, zeros[:, 0], zeros.bool(), reward_of=reward_of)


def shown(pictures: Tensor) -> Samples:
    return Samples([Prompt(str(i), "a cat") for i in range(len(pictures))], torch.arange(len(pictures)), pictures)


def truncated(s: float) -> float:
    """The time that SRPO hands to its model: a thousandth, the rest cut off."""
    return int(s * 1000) / 1000


def picture(packed: Tensor) -> Samples:
    """The stand-in for the decoder: patches of 2 x 2 latents laid out again, [1, 16, 4, 4], and clamped."""
    z = packed.reshape(2, 2, 16, 2, 2).permute(2, 0, 3, 1, 4).reshape(1, 16, 4, 4)
    return shown(((0.2 * (z / 0.3611 + 0.1159)) / 2 + 0.5).clamp(0, 1))


@pytest.mark.parametrize("case", golden.cases("direct/srpo_step.json"))
def test_srpo(case: Case) -> None:
    x, params = inputs(case), case["params"]
    noise, w, b, c = x["noise_packed"], x["w"].requires_grad_(), x["b"].requires_grad_(), x["c"]
    noise, number = noise.reshape(1, *noise.shape), params["timestep_length"]
    x0 = golden.tensor(case["outputs"]["x0_rollout"], torch.float32).reshape(noise.shape)
    ends = shifted(params["vis_sampling_step"], params["shift"])[params["train_timestep"]].tolist()
    table = align_levels(*ends, number).tolist()
    objective = SRPOObjective(
        params["reward_threshold"],
        1 / params["branches_per_update"],
        ["good"],
        ["bad"],
        params["discount_pos"],
        params["discount_inv"],
        (*ends, number),
    )

    def reward_of(samples: Samples, texts: Sequence[str] | None) -> Tensor:
        assert texts in (["good. a cat"], ["bad. a cat"]) and samples.images is not None
        side = "P_positive" if texts == ["good. a cat"] else "P_negative"
        return (samples.images * x[side]).sum()[None]

    losses, rewards = [], []
    for branch in align_branches(number, params["mid_timestep"], params["groundtruth_ratio"]):
        s, to = table[branch.begin], table[branch.end]
        state = s * noise + (1 - s) * x0
        v = state * w + b + c * truncated(s)
        gain = (to - s) / (1 - to)
        seen = Field(torch.tensor([0]), torch.tensor([0]), s, state, v, x0, noise - x0, 1.0, 1.0, gain, to, picture)
        loss, metrics = objective(seen, batch(1, reward_of))
        losses.append(loss.sum())
        rewards.append(metrics["relative_reward"])
    grads = torch.autograd.grad(sum(losses), [w, b])  # pyright: ignore[reportArgumentType]
    golden.check(
        {"last_branch_loss": losses[-1], "grad_w": grads[0], "grad_b": grads[1]},
        case,
        skip=["branches", "rollout_sigmas", "x0_rollout", "k_steps", "sigma_table"],
    )
    for reward, stored in zip(rewards, case["outputs"]["branches"], strict=True):
        assert float(reward) == pytest.approx(float(torch.tensor(stored["reward"])), rel=2e-4, abs=3e-6)


@pytest.mark.parametrize("case", golden.cases("direct/refl.json"))
def test_refl(case: Case) -> None:
    x, params = inputs(case), case["params"]
    w, s, a = x["w"].requires_grad_(), (1 - params["alpha_bar"]) ** 0.5, params["alpha_bar"] ** 0.5
    state = x["x_t"]
    epsilon = state * w[:, None, None] + x["b"][:, None, None]
    v = epsilon - (state - s * epsilon) / a  # eps - x_0
    rows = torch.arange(len(state))
    seen = Field(rows, torch.tensor([0]), s, state, v, state, v.detach(), a + s, show=shown)

    def reward_of(samples: Samples, texts: Sequence[str] | None) -> Tensor:
        assert texts is None and samples.images is not None
        return (samples.images * x["P"]).flatten(1).sum(1)

    loss, metrics = ReFLObjective(params["threshold"], params["grad_scale"])(seen, batch(len(state), reward_of))
    found = {"reward": metrics["estimate_reward"][:, 0], "loss": loss.mean(), "x0": seen.clean(v)}
    golden.check(found | {"grad_w": torch.autograd.grad(loss.mean(), w)[0]}, case)


class Walked:
    """A policy whose rollout is given: states, levels, and a velocity of each step."""

    whole_rows = False

    def __init__(self, states: list[Tensor], levels: list[float], velocity: Callable[[int, Tensor], Tensor]):
        self.states, self.levels, self.velocity = states, levels, velocity

    def look(self, rollout: Rollout, rows: Tensor, view: View, visit: Visit, **_: object) -> None:
        if view.states == "finished":
            visit(Finished(rows, self.states[-1][rows], shown))
            return
        for k in reversed(range(len(self.states) - 1)):
            x = self.states[k][rows].clone().requires_grad_(view.nested)
            gain = self.levels[k + 1] - self.levels[k]
            x0 = self.states[-1][rows]
            visit(Field(rows, torch.tensor([k]), self.levels[k], x, self.velocity(k, x), x0, x0, gain=gain))


@pytest.mark.parametrize("micro", [1, 100])
@pytest.mark.parametrize("case", golden.cases("direct/truncated_reward_backprop.json"))
def test_draft(case: Case, micro: int) -> None:
    x, params = inputs(case), case["params"]
    number, first, guidance = params["num_steps"], params["backprop_from_step"], params["guidance_scale"]
    w, levels = x["w"].requires_grad_(), [1 - i / number for i in range(number + 1)]

    def velocity(i: int, state: Tensor) -> Tensor:
        sides = [state * w[:, None, None] + bias[:, None, None] + 0.1 * levels[i] for bias in (x["b_u"], x["b"])]
        return sides[0] + guidance * (sides[1] - sides[0])

    states = [x["x_T"]]
    with torch.no_grad():
        for i in range(number):
            states.append(states[-1] + (levels[i + 1] - levels[i]) * velocity(i, states[-1]))
    rows, steps = len(states[0]), number - first
    policy = Walked(states[first:], levels[first:], lambda k, state: velocity(first + k, state))
    mask, objective = torch.ones(rows, steps, dtype=torch.bool), DraftObjective()
    rollout = Rollout(shown(states[-1]), torch.zeros(rows, steps), mask, None)

    def reward_of(samples: Samples, texts: Sequence[str] | None) -> Tensor:
        assert texts is None and samples.images is not None
        return (samples.images * x["P"]).flatten(1).sum(1)

    loss = StepLoss(rollout, torch.zeros(rows), objective, objective.weights(mask), weights(mask), reward_of=reward_of)
    for part in torch.arange(rows).split(micro):
        backward_pull(cast(Looks, policy), part, loss)
    reward = (states[-1] * x["P"]).flatten(1).sum(1)
    golden.check({"x_final": states[-1], "reward": reward, "grad_w": w.grad}, case)
    reward = golden.tensor(case["outputs"]["reward"], torch.float32)
    torch.testing.assert_close(loss.total["sample_loss"], -reward.mean(), rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("nested", [True, False])
def test_the_gradient_of_a_walk_is_that_of_its_whole_graph(nested: bool) -> None:
    w, levels = torch.tensor([0.7, -0.3, 1.1], dtype=torch.float64, requires_grad=True), [0.9, 0.5, 0.2, 0.0]
    states = [torch.randn(3, 3, dtype=torch.float64, generator=torch.Generator().manual_seed(0))]

    def velocity(k: int, state: Tensor) -> Tensor:
        return (state * w + levels[k]).sin()

    for k in range(3):
        seen = states[-1] if nested else states[-1].detach()
        states.append(states[-1] + (levels[k + 1] - levels[k]) * velocity(k, seen))
    wanted = torch.autograd.grad(states[-1][2].square().sum(), w)[0]  # of the third row alone
    states = [state.detach() for state in states]
    mask, objective = torch.tensor([[False], [False], [True]]).expand(3, 3), DraftObjective(nested=nested)
    rollout = Rollout(shown(states[-1]), torch.zeros(3, 3), mask, None)

    def reward_of(samples: Samples, texts: Sequence[str] | None) -> Tensor:
        assert samples.images is not None
        return -samples.images.square().flatten(1).sum(1)

    loss = StepLoss(rollout, torch.zeros(3), objective, objective.weights(mask), weights(mask), reward_of=reward_of)
    backward_pull(cast(Looks, Walked(states, levels, velocity)), torch.tensor([2]), loss)
    torch.testing.assert_close(w.grad, wanted, rtol=1e-12, atol=1e-12)


def test_words_go_round_by_row_and_a_reward_alone_turns_its_sign_on_the_way_up() -> None:
    asked: list[Sequence[str] | None] = []

    def reward_of(samples: Samples, texts: Sequence[str] | None) -> Tensor:
        asked.append(texts)
        assert samples.images is not None
        return samples.images.flatten(1).sum(1)

    def seen(level: float, to: float, rows: list[int]) -> Field:
        x = torch.ones(len(rows), 1, 1, 1)
        return Field(torch.tensor(rows), torch.tensor([0]), level, x, x, x, x, to=to, gain=to - level, show=shown)

    worded = SRPOObjective(positive=["bright", "sharp"], negative=["dark", "dull", "flat"])
    worded(seen(0.9, 0.8, [2, 5]), batch(2, reward_of))
    assert asked == [["bright. a cat", "sharp. a cat"], ["flat. a cat", "flat. a cat"]]
    plain = SRPOObjective(threshold=None, scale=1.0)
    down, up = (plain(seen(*ends, [0]), batch(1, reward_of))[0] for ends in ((0.9, 0.8), (0.8, 0.9)))
    assert asked[2:] == [None, None] and float(down) == -1.0 and float(up) == 1.0


@pytest.mark.parametrize("objective", [PulledObjective(), PulledObjective(threshold=0.5, scale=2.0)])
def test_a_reward_that_is_good_enough_gives_no_gradient(objective: PulledObjective) -> None:
    reward = torch.tensor([0.2, 0.9], requires_grad=True)
    slope = torch.autograd.grad(objective.of_reward(reward).sum(), reward)[0]
    assert slope.tolist() == ([-1.0, -1.0] if objective.threshold is None else [-2.0, 0.0])
