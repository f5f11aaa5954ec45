"""The probe: what a policy learns about a pipeline, and checks, before it is trained."""

import torch
from torch import Tensor

from flowrl.contracts import Prompt
from flowrl.policies.adapters import DENOISERS, trainable
from flowrl.policies.errors import PolicyError
from flowrl.policies.noise import Key
from flowrl.policies.pipelines.calls.passes import PipelinePasses, WalkPlan
from flowrl.policies.pipelines.probing.guidance import VelocityWalk, find_guidance
from flowrl.policies.pipelines.probing.neighbours import TOLERANCE, TOLERANCE_HALF, compare_alone, find_sharing
from flowrl.policies.pipelines.probing.sharing import ALONE
from flowrl.policies.pipelines.steps.intercepted import Step
from flowrl.policies.pipelines.walks.trajectory import Trajectory
from samplers.plan import OwnTable, Plan
from samplers.renoising import vp_ddim

STEP_TOLERANCE = 1e-3  # of a step at noise 0 against the scheduler's own, relative to the size of the state
REPLAY_TOLERANCE = 1e-4  # of a replayed log-prob, in float32
REPLAY_TOLERANCE_HALF = 2e-2  # the same where the model computes in half precision


class ProbeWalk:
    """A walk along the ODE that counts streams and compares each step with the scheduler's own."""

    rows = 1
    table = OwnTable()

    def __init__(self, name: str):
        self.name = name  # of the pipeline
        self.streams: dict[int, int] = {}
        self.worst = 0.0

    def is_real(self, iteration: int) -> bool:
        """Every iteration runs."""
        return True

    def skipped_state(self, iteration: int, stream: int) -> Tensor:
        """Never called: a probe skips nothing. Would return [R, ...]."""
        raise AssertionError("a probe skips nothing")

    def step(self, step: Step) -> Tensor:
        """The step without noise [R, ...], compared. Raises PolicyError unless each row has one state."""
        if len(step.x) != self.rows:
            raise PolicyError(
                f"{self.name}: its scheduler steps {len(step.x)} states for {self.rows} sample (DiT carries "
                "those of its guidance along): a row's log-prob needs a state of its own; switch guidance off "
                "(pipeline.guidance_scale=1), or give another pipeline"
            )
        self.streams[step.iteration] = self.streams.get(step.iteration, 0) + 1
        if step.path == "preserving":
            state = vp_ddim(step.x, step.v, step.s, step.s_next, noise=0.0, s_cap=step.s_cap).mean
        else:
            state = step.x + step.v * (step.s_next - step.s)
        if step.scheduler_reference.is_comparable:
            own = step.scheduler_reference.step()
            self.worst = max(self.worst, float((state - own).abs().max() / (1 + own.abs().max())))
        return state


def probe(passes: PipelinePasses, prompt: Prompt, plan: WalkPlan) -> dict[int, int]:
    """Runs the pipeline for one row and for two; returns the number of `step` calls of each iteration.

    Leaves the policy's keeper knowing the denoisers and what their calls return, and the policy which rows may share a
    call. Raises PolicyError where the loop
    never steps the scheduler, where a step at noise 0 is not the scheduler's own, or where a replay is not its rollout.
    """
    name, start = type(passes.source).__name__, [Key(0, prompt.id, 0)]
    walk, passes.sharing = ProbeWalk(name), ALONE
    keeper = passes.keeper
    keeper.forget()
    keeper.rollout_walk = True
    try:
        passes.run(walk, [prompt], start, steps=plan.num_steps)
    finally:
        keeper.rollout_walk = False
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
    tolerance = STEP_TOLERANCE if _is_single_precision(passes) else 30 * STEP_TOLERANCE
    if walk.worst > tolerance:
        raise PolicyError(
            f"{name}: a step at noise 0 differs from {type(passes.source.scheduler).__name__}'s own by "
            f"{walk.worst:.1e} of the state's size (accepted: {tolerance:.0e}); its state does not follow "
            "dx/dsigma = model output"
        )
    keeper.denoisers = _denoisers(passes, len(walk.streams))
    if not keeper.denoisers:
        raise PolicyError(f"{name} calls none of its components between two steps: there is nothing to replay")
    passes.streams = walk.streams
    if passes.guidance_gradient == "conditional":
        _divide_guidance(passes, prompt, plan)
    _check_replay(passes, prompt, plan)
    passes.sharing = find_sharing(passes, prompt, plan, half=not _is_single_precision(passes))
    return walk.streams


def _divide_guidance(passes: PipelinePasses, prompt: Prompt, plan: WalkPlan) -> None:
    """Determines which rows are free of the prompt, and checks that calling them separately changes no velocity."""
    divided = find_guidance(passes, prompt, plan.num_steps)
    velocities = []
    for guidance in (None, divided):
        passes.keeper.guidance = guidance
        walk = VelocityWalk(1)
        passes.run(walk, [prompt], [Key(0, prompt.id, 0)], steps=plan.num_steps)
        velocities.append(walk.velocity)
    whole, parts = velocities
    assert whole is not None and parts is not None
    tolerance = TOLERANCE if _is_single_precision(passes) else TOLERANCE_HALF
    gap = float((whole - parts).abs().max() / (1 + whole.abs().max()))
    if not gap <= tolerance:
        raise PolicyError(
            f"objective.guidance_gradient: {type(passes.source).__name__}'s denoiser differs by {gap:.1e} if its rows "
            f"without the prompt are called separately (accepted: {tolerance:.0e}); set "
            "objective.guidance_gradient=both"
        )


def _denoisers(passes: PipelinePasses, iterations: int) -> set[str]:
    """Components called between two steps, and those with a usual denoiser's name that only the first step calls."""
    called = passes.keeper.iterations_by_module()
    between = {name for name, at in called.items() if any(0 < i < iterations for i in at)}
    return between | {name for name in called if name in DENOISERS}


def _check_replay(passes: PipelinePasses, prompt: Prompt, plan: WalkPlan) -> None:
    """Rolls out one row and replays its first and last stochastic step, the first because its state is drawn again.

    Tries once more with denoisers run instead of skipped.
    """
    steps = tuple(sorted(passes.streams))
    usable = steps[:-1] or steps
    full = Plan(plan.num_steps, usable, usable)
    single = _is_single_precision(passes)
    tolerance = REPLAY_TOLERANCE if single else REPLAY_TOLERANCE_HALF
    accepted = tolerance, TOLERANCE if single else TOLERANCE_HALF
    drift = _drift(passes, prompt, full)
    if not _holds(drift, accepted):
        passes.keeper.skip = False
        drift = _drift(passes, prompt, full)
    if not _holds(drift, accepted):
        raise PolicyError(
            f"{type(passes.source).__name__}: the replay of a step gives a log-prob {drift[0]:.1e} away from the "
            f"rollout's (accepted: {accepted[0]:.0e}) and a mean {drift[1]:.1e} of the state's size away (accepted: "
            f"{accepted[1]:.0e}); something outside `generator` and the call's arguments changes between calls"
        )


def _holds(drift: tuple[float, float], accepted: tuple[float, float]) -> bool:
    return all(measured <= most for measured, most in zip(drift, accepted, strict=True))


def _drift(passes: PipelinePasses, prompt: Prompt, plan: Plan) -> tuple[float, float]:
    """The distance of a replay from its rollout: of the log-prob, and of the means over the size of the state."""
    trajectory = Trajectory([prompt], plan.tree(1), 0, complete=not passes.keeper.skip)
    rollout_walk, _ = passes.roll(trajectory, keep_means=True)
    rollout_logp, mask, _ = rollout_walk.result()
    if not mask.any():
        return 0.0, 0.0  # a deterministic transition: nothing is scored, and an objective that needs it says so
    try:
        replayed = compare_alone(passes, trajectory, 0, {plan.trained[0], plan.trained[-1]}, grad=True)
    except torch.OutOfMemoryError:
        raise
    except (AttributeError, RuntimeError, TypeError, ValueError, KeyError, IndexError):
        if passes.keeper.skip:  # a denoiser that was skipped left something undone: run them all
            return float("inf"), float("inf")
        raise
    learns = next(trainable(passes.modules), None) is not None
    if learns and not any(p.requires_grad for p in replayed.logp.values()):
        raise PolicyError(
            f"{type(passes.source).__name__}: no gradient reaches the log-prob of a replayed step; the pipeline calls "
            "its denoiser under torch.no_grad() or detaches its output"
        )
    columns = {step: i for i, step in enumerate(plan.trained)}
    gaps = [abs(float(logp.detach()) - float(rollout_logp[0, columns[step]])) for step, logp in replayed.logp.items()]
    return max(gaps), replayed.worst


def _is_single_precision(passes: PipelinePasses) -> bool:
    dtypes = {p.dtype for m in passes.modules.values() for p in m.parameters()}
    return dtypes <= {torch.float32, torch.float64}
