"""The probe: what a policy learns of a pipeline, and proves, before it trusts it with training."""

from __future__ import annotations

from dataclasses import replace
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from flowrl.contracts import Prompt
from flowrl.policies.adapters import DENOISERS
from flowrl.policies.errors import PolicyError
from flowrl.policies.noise import Key
from flowrl.policies.scheduler import Leave, Step
from flowrl.policies.tape import Tape
from flowrl.policies.walks import Replaying, scenes_by_pass
from samplers.plan import Own, Plan
from samplers.renoising import vp_ddim

if TYPE_CHECKING:
    from flowrl.policies.pipeline import PipelinePolicy
    from flowrl.policies.pipeline import Plan as AnyPlan

STEP_TOLERANCE = 1e-3  # of a step at noise 0 against the scheduler's own, relative to the size of the state
COMPANY_TOLERANCE = 1e-4  # of a velocity alone and beside a longer prompt, relative to its size
COMPANY_TOLERANCE_HALF = 3e-2
REPLAY_TOLERANCE = 1e-4  # of a replayed log-prob, in float32
REPLAY_TOLERANCE_HALF = 2e-2  # the same where the model computes in half precision


class Probing:
    """A walk along the ODE that counts streams and compares each step with the scheduler's own."""

    rows = 1
    table = Own()

    def __init__(self) -> None:
        self.streams: dict[int, int] = {}
        self.worst = 0.0

    def is_real(self, iteration: int) -> bool:
        """Every iteration runs."""
        return True

    def entering(self, iteration: int, stream: int) -> Tensor:
        """Never asked for."""
        raise AssertionError("a probe skips nothing")

    def step(self, step: Step) -> Tensor:
        """The step without noise, Euler's or DDIM's, compared."""
        self.streams[step.iteration] = self.streams.get(step.iteration, 0) + 1
        if step.path == "preserving":
            state = vp_ddim(step.x, step.v, step.s, step.s_next, noise=0.0, s_cap=step.s_cap).mean
        else:
            state = step.x + step.v * (step.s_next - step.s)
        if step.twin.is_comparable:
            own = step.twin.step()
            self.worst = max(self.worst, float((state - own).abs().max() / (1 + own.abs().max())))
        return state


class Glancing(Probing):
    """A probing walk of `rows` rows that takes the velocity of the first step and leaves."""

    def __init__(self, rows: int) -> None:
        super().__init__()
        self.rows = rows
        self.velocity: Tensor | None = None

    def step(self, step: Step) -> Tensor:
        """Keeps the velocity."""
        self.velocity = step.v
        raise Leave


def probe(policy: PipelinePolicy, prompt: Prompt, plan: AnyPlan) -> dict[int, int]:
    """Runs the pipeline for one row; returns the number of `step` calls of each iteration.

    Leaves the policy's keeper knowing the denoisers and what their calls return. Raises PolicyError where the loop
    never steps the scheduler, where a step at noise 0 is not the scheduler's own, or where a replay is not its rollout.
    """
    name, start = type(policy.source).__name__, [Key(0, prompt.id, 0)]
    walk = Probing()
    keeper = policy.keeper
    keeper.forget()
    keeper.recording = True
    try:
        policy._pass(walk, [prompt], start, steps=plan.num_steps)
    finally:
        keeper.recording = False
    if not walk.streams:
        raise PolicyError(
            f"{name} finished without calling its scheduler's step: it has a loop of its own, or hands the work to an "
            "inner pipeline; give that one"
        )
    if (number := max(walk.streams) + 1) > plan.num_steps:
        raise PolicyError(
            f"{name}: its loop takes {number} steps where {plan.num_steps} were asked for: it goes through its sample "
            "in parts, each from noise, which is no one walk; shorten the video to one part, or give another pipeline"
        )
    tolerance = STEP_TOLERANCE if _is_single_precision(policy) else 30 * STEP_TOLERANCE
    if walk.worst > tolerance:
        raise PolicyError(
            f"{name}: a step at noise 0 differs from {type(policy.source.scheduler).__name__}'s own by "
            f"{walk.worst:.1e} of the state's size (accepted: {tolerance:.0e}); its state does not follow "
            "dx/dsigma = model output"
        )
    keeper.denoisers = _denoisers(policy, len(walk.streams))
    if not keeper.denoisers:
        raise PolicyError(f"{name} calls none of its components between two steps: there is nothing to replay")
    policy._streams = walk.streams
    _check_replay(policy, prompt, plan)
    policy.needs_company = _depends_on_company(policy, prompt, plan)
    return walk.streams


def _denoisers(policy: PipelinePolicy, iterations: int) -> set[str]:
    """Components called between two steps, and those of a denoiser's usual name that only the first step calls."""
    called = policy.keeper.called()
    between = {name for name, at in called.items() if any(0 < i < iterations for i in at)}
    return between | {name for name in called if name in DENOISERS}


def _check_replay(policy: PipelinePolicy, prompt: Prompt, plan: AnyPlan) -> None:
    """Rolls out one row and replays its first and last stochastic step, the first because its state is drawn again.

    Tries once more with denoisers run instead of skipped.
    """
    steps = tuple(sorted(policy._streams))
    usable = steps[:-1] or steps
    full = Plan(plan.num_steps, usable, usable)
    drift = _drift(policy, prompt, full)
    tolerance = REPLAY_TOLERANCE if _is_single_precision(policy) else REPLAY_TOLERANCE_HALF
    if not drift <= tolerance:
        policy.keeper.skip = False
        drift = _drift(policy, prompt, full)
    if not drift <= tolerance:
        raise PolicyError(
            f"{type(policy.source).__name__}: the replay of a step gives a log-prob {drift:.1e} away from the "
            f"rollout's (accepted: {tolerance:.0e}); something outside `generator` and the call's arguments changes "
            "between calls"
        )


def _depends_on_company(policy: PipelinePolicy, prompt: Prompt, plan: AnyPlan) -> bool:
    """Whether a row's velocity changes when a longer prompt shares its call, as where padding is not masked."""
    longer = replace(prompt, id=prompt.id + "/longer", text=" ".join([prompt.text] * 3))
    found = []
    for prompts in ([prompt], [prompt, longer]):
        walk = Glancing(len(prompts))
        try:
            policy._pass(walk, prompts, [Key(0, prompt.id, 0)] * len(prompts), steps=plan.num_steps)
        except (PolicyError, TypeError, ValueError, RuntimeError):
            return False  # it takes one prompt a call: there is no company
        found.append(walk.velocity)
    alone, together = found
    if alone is None or together is None:
        return False
    tolerance = COMPANY_TOLERANCE if _is_single_precision(policy) else COMPANY_TOLERANCE_HALF
    return bool((together[: len(alone)] - alone).abs().max() > tolerance * (1 + alone.abs().max()))


def _drift(policy: PipelinePolicy, prompt: Prompt, plan: Plan) -> float:
    tape = Tape([prompt], plan.tree(1), 0, complete=not policy.keeper.skip)
    recording, _ = policy._roll(tape)
    behave, mask, _ = recording.result()
    if not mask.any():
        return 0.0  # a deterministic transition: nothing is scored, and an objective that needs it says so
    ends = {0, len(plan.trained) - 1}
    found: dict[int, Tensor] = {}
    try:
        for end in ends:
            scenes = scenes_by_pass(tape, torch.tensor([0]), steps=[plan.trained[end]])
            walk = Replaying(
                tape,
                policy.dynamics,
                policy._streams_at,
                scenes[0],
                lambda step, _, logp, *__: found.__setitem__(plan.trained.index(step), logp),
            )
            policy._walk(walk, tape, grad=True)
    except (AttributeError, RuntimeError, TypeError, ValueError, KeyError, IndexError):
        if policy.keeper.skip:  # a denoiser that was skipped left something undone: run them all
            return float("inf")
        raise
    if any(p.requires_grad for p in policy.trainable()) and not any(logp.requires_grad for logp in found.values()):
        raise PolicyError(
            f"{type(policy.source).__name__}: no gradient reaches the log-prob of a replayed step; the pipeline calls "
            "its denoiser under torch.no_grad() or detaches its output"
        )
    return max(float((found[end].detach().cpu() - behave[0, end]).abs().max()) for end in ends)


def _is_single_precision(policy: PipelinePolicy) -> bool:
    dtypes = {p.dtype for m in policy.modules.values() for p in m.parameters()}
    return dtypes <= {torch.float32, torch.float64}
