"""What the tests of policies share: the policy of a tiny family, its scores, and a look at the steps of a rollout."""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator, Sequence
from typing import Any

import pytest
import torch
from torch import Tensor, nn

import families
from flowrl.contracts import LogProbs, Prompt, Rollout, View
from flowrl.policies.noise import Key, start_generators
from flowrl.policies.pipelines.policy import PipelinePolicy
from flowrl.policies.pipelines.steps.dynamics import Dynamics
from flowrl.policies.pipelines.steps.intercepted import Step
from flowrl.policies.pipelines.walks.rollout import RolloutWalk
from samplers.plan import Plan
from samplers.transitions import flow_sde

STEPS = 4
SEED = 1
SDE = Plan(STEPS, (0, 1, 2), (0, 1, 2))
ODE = Plan(STEPS, (), ())
PROMPTS = [Prompt("cat", "a red cat"), Prompt("dogs", "two dogs")]


class FamilyPolicy(PipelinePolicy):
    """A policy that calls its pipeline with the arguments of a family, those with an entry for each row included."""

    def __init__(
        self,
        name: str,
        pipe: Any = None,
        *,
        noise: float = 0.7,
        transition: Callable = flow_sde,
        dynamics: dict[str, Any] | None = None,
        **options: Any,
    ):
        self.family = families.get(name)
        pipe = self.family.build() if pipe is None else pipe
        modules = {part: getattr(pipe, part) for part in self.family.modules}
        super().__init__(pipe, modules, Dynamics(transition, noise, **(dynamics or {})), call=self._of_rows, **options)

    def _of_rows(self, prompts: Sequence[Prompt]) -> dict[str, Any]:
        return self.family.batched_call([p.text for p in prompts])


def pictures(rollout: Rollout) -> Tensor:
    """The finished images or video, of a pipeline without them its sound."""
    samples = rollout.samples
    return next(found for found in (samples.images, samples.video, samples.audio) if found is not None)


def untouched(policy: FamilyPolicy, prompts: Sequence[Prompt], *, seed: int = SEED, pipe: Any = None) -> Tensor:
    """What the pipeline itself makes of the same prompts and generators."""
    found, alone = [], "padding" in policy.family.tags  # where a row depends on the longest prompt of its call
    for rows in [[p] for p in prompts] if alone else [prompts]:
        output = (policy.source if pipe is None else pipe)(
            **policy.family.batched_call([p.text for p in rows]),
            generator=start_generators([Key(seed, p.id, 0) for p in rows]),
            num_inference_steps=STEPS,
            output_type="pt",
            return_dict=False,
        )[0]
        found.append(output.float())
    return torch.cat(found)


def scores(policy: PipelinePolicy, rollout: Rollout, rows: Sequence[int] | None = None) -> Tensor:
    """Replayed log-probs [r, K]."""
    at = torch.arange(len(rollout.rollout_logp)) if rows is None else torch.tensor(rows)
    found = torch.full_like(rollout.rollout_logp, torch.nan)

    def visit(score: LogProbs) -> None:
        found[score.rows[:, None], score.columns[None]] = score.logp.detach().to(found)

    policy.look(rollout, at, View(), visit)
    assert not found[at].isnan().any()
    return found[at]


def gap(a: Tensor, b: Tensor) -> float:
    """The largest difference."""
    assert a.shape == b.shape
    return float((a.float() - b.float()).abs().max())


@contextlib.contextmanager
def watched_steps() -> Iterator[list[tuple[Step, Tensor]]]:
    """Within, the steps of all rollouts and the states that they returned."""
    seen: list[tuple[Step, Tensor]] = []
    with pytest.MonkeyPatch.context() as patch:
        own = RolloutWalk.step

        def step(self: RolloutWalk, step: Step) -> Tensor:
            state = own(self, step)
            seen.append((step, state))
            return state

        patch.setattr(RolloutWalk, "step", step)
        yield seen


@contextlib.contextmanager
def scaled(modules: dict[str, nn.Module], factor: float) -> Iterator[None]:
    """Within, all weights are `factor` times theirs."""
    kept = {name: {k: v.clone() for k, v in module.state_dict().items()} for name, module in modules.items()}
    try:
        with torch.no_grad():
            for module in modules.values():
                for parameter in module.parameters():
                    parameter.mul_(factor)
        yield
    finally:
        for name, module in modules.items():
            module.load_state_dict(kept[name])


def shake(modules: dict[str, nn.Module], size: float = 0.1, seed: int = 0) -> None:
    """Moves every trainable weight by a small random amount, so that LoRA adapters have an effect."""
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for module in modules.values():
            for parameter in module.parameters():
                if parameter.requires_grad:
                    parameter.add_(size * torch.randn(parameter.shape, generator=generator))
