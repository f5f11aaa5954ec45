"""The intercepted step: a pipeline's own scheduler, with `step` alone replaced.

The pipeline is given a shallow copy of its scheduler whose class is a subclass made on the fly. Config, sigmas,
`set_timesteps`, isinstance checks and deep copies stay genuine; `step` determines where on the flow it is
(noise levels, velocity, the state in float32) and leaves the rest to the current walk.

    pipeline loop --> denoiser (gate) --> scheduler.step --> Session --> walk.step(Step) --> next state
"""

import copy
import functools
import inspect
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any, Literal, Protocol

import torch
from diffusers import DDIMScheduler, FlowMatchEulerDiscreteScheduler
from diffusers.schedulers.scheduling_utils import SchedulerOutput
from torch import Tensor

from flowrl.policies.errors import PolicyError
from flowrl.policies.pipelines.steps.ddim import DDIMStep
from flowrl.policies.pipelines.steps.first_order import first_order_scheduler, predicts_flow, walks_ddim
from flowrl.policies.pipelines.steps.sigma_table import counts_data, noise_levels, replace_table
from flowrl.untyped import Config, Scheduler
from samplers import tables
from samplers.levels import Level
from samplers.plan import Table

Path = Literal["flow", "exploding", "preserving"]


class EndOfWalk(Exception):
    """Control flow, not an error: raised inside a pipeline's loop to end a pass that has all it needs."""


@dataclass(frozen=True, slots=True)
class Step:
    """One call of `scheduler.step`, in the terms of `samplers`.

    x, v: state and velocity eps - x_0, float32 [R, ...]. s, s_next, s_cap: see `samplers.transitions`. path: how x is
    made of x_0 and eps; exploding if the table has levels above 1, preserving if the model predicts noise (see
    ddim_step.py). kept: bool like x, False where the pipeline itself overwrote what the previous step of this stream
    returned; None if it left it alone. scheduler_reference: the scheduler's own step from the same place. index: of
    s in its sigma table; own: the levels of the pipeline's own table, float32 [own + 1].
    """

    iteration: int
    stream: int
    x: Tensor
    v: Tensor
    s: Level
    s_next: Level
    s_cap: float
    path: Path
    kept: Tensor | None
    scheduler_reference: "SchedulerReference"
    index: int
    own: Tensor


def select_rows(step: Step, index: Tensor) -> Step:
    """The step of rows index, int64 [r], alone."""
    at = index.to(step.x.device)

    def part(value: Level) -> Level:
        return value[at] if isinstance(value, Tensor) and value.shape[:1] == step.x.shape[:1] else value

    return replace(step, x=step.x[at], v=step.v[at], s=part(step.s), s_next=part(step.s_next))


class PipelineWalk(Protocol):
    """What a pass through the pipeline is for."""

    @property
    def rows(self) -> int:
        """Rows that the pipeline is called with."""
        ...

    @property
    def table(self) -> Table:
        """The sigma table that it walks."""
        ...

    def is_real(self, iteration: int) -> bool:
        """Whether this iteration runs; otherwise its denoiser calls are skipped and `skipped_state` is passed on."""
        ...

    def skipped_state(self, iteration: int, stream: int) -> Tensor:
        """The state [R, ...] that a skipped iteration returns."""
        ...

    def step(self, step: Step) -> Tensor:
        """The next state [R, ...]; may raise EndOfWalk."""
        ...


class Session:
    """What the scheduler, its deep copies and the gates share: the current walk and its progress.

    Iterations of the pipeline's loop are recognised by its denoiser calls: the first `step` after one starts a new
    iteration, further ones (video, then audio) belong to the same.
    """

    def __init__(self) -> None:
        self.walk: PipelineWalk | None = None
        self.number = 0  # of the pass, so that nothing of an earlier pass is mistaken for this one's
        self.iteration = -1
        self.fresh = True  # a denoiser ran since the last step
        self.streams = 1

    def begin(self, walk: PipelineWalk) -> None:
        """Starts a pass."""
        self.walk, self.iteration, self.fresh, self.streams = walk, -1, True, 1
        self.number += 1

    @property
    def upcoming(self) -> int:
        """The iteration that a denoiser called now belongs to."""
        return self.iteration + 1

    def arrive(self) -> int:
        """Counts a step; returns its iteration."""
        if self.fresh:
            self.iteration += 1
            self.fresh = False
        return self.iteration


@dataclass(frozen=True, slots=True)
class _Returned:
    """What a step returned to the pipeline: the tensor, the state behind it, and what tells that it was changed."""

    out: Tensor
    state: Tensor
    version: int
    session: int


class SchedulerReference:
    """The scheduler's own step from the same place, for comparison with ours."""

    def __init__(self, scheduler: "InterceptedStep", args: tuple):
        self._scheduler, self._args = scheduler, args

    @property
    def is_comparable(self) -> bool:
        """Whether the scheduler's step is first order here: multistep solvers are at their first step only."""
        first_order = isinstance(self._scheduler, FlowMatchEulerDiscreteScheduler | DDIMScheduler)
        return first_order or self._scheduler.step_index == 0

    def step(self) -> Tensor:
        """What the untouched scheduler returns, float32 [R, ...]. Its state is left unchanged."""
        scheduler_reference = object.__new__(type(self._scheduler).__bases__[-1])
        scheduler_reference.__dict__.update(
            {k: copy.copy(v) for k, v in self._scheduler.__dict__.items() if k != "_session"}
        )
        model_output, timestep, sample, options = self._args
        return scheduler_reference.step(model_output, timestep, sample.clone(), return_dict=False, **options)[0].float()


class InterceptedStep:
    """Mixed in before a scheduler class; see the module's docstring."""

    if TYPE_CHECKING:  # attributes of the scheduler class behind it
        step_index: Any
        sigmas: Tensor
        config: Config
        _init_step_index: Callable[[Tensor | float], None]

    _session: Session
    _stream = 0
    _returned: _Returned | None = None
    _own_levels: Tensor | None = None  # if the walk's table replaces them
    _cap: float | None = None  # s_cap of that table
    _copied: tuple[Tensor, Tensor] | None = None  # sigmas, and their copy in host memory

    def _own_table(self) -> Tensor:
        """Levels of the pipeline's own table, float32."""
        return noise_levels(self, self._table) if self._own_levels is None else self._own_levels

    @property
    def _table(self) -> Tensor:
        """`sigmas` in host memory, copied once a table: each read of a device's number waits for the device."""
        if self._copied is None or self._copied[0] is not self.sigmas:
            self._copied = (self.sigmas, self.sigmas.cpu())
        return self._copied[1]

    def __deepcopy__(self, memo: dict) -> "InterceptedStep":
        new = object.__new__(type(self))
        memo[id(self)] = new
        for name, value in self.__dict__.items():
            if name != "_returned":  # a state of the last pass; it may carry a graph, which cannot be copied
                new.__dict__[name] = value if name == "_session" else copy.deepcopy(value, memo)
        new._stream, new._returned = self._session.streams, None
        self._session.streams += 1
        return new

    def scale_model_input(self, sample: Tensor, *args: object, **kwargs: object) -> Tensor:
        """The scaling of the base class, or the sample [R, ...] itself if the base has none (some pipelines call it
        unless the type is exact)."""
        scale = getattr(super(), "scale_model_input", None)
        return sample if scale is None else scale(sample, *args, **kwargs)

    def _intercept(
        self,
        model_output: Tensor,
        timestep: Tensor | float,
        sample: Tensor,
        *,
        per_token_timesteps: Tensor | None = None,
        return_dict: bool = True,
        **rest: object,
    ) -> tuple[Tensor] | SchedulerOutput:
        session, walk = self._session, self._session.walk
        if walk is None:
            raise PolicyError("the scheduler of a policy was stepped outside a walk: call the policy, not its pipeline")
        iteration = session.arrive()
        restarted = self.step_index is None  # set_timesteps was called: what was returned before is another walk's
        if restarted:
            self._init_step_index(timestep)
        if walk.is_real(iteration):
            x, kept = self._state(sample, None if restarted else self._returned)
            options = {} if per_token_timesteps is None else {"per_token_timesteps": per_token_timesteps}
            v, levels = self._place(model_output, x, per_token_timesteps)
            scheduler_reference = SchedulerReference(self, (model_output, timestep, sample, options))
            state = walk.step(
                Step(
                    iteration,
                    self._stream,
                    x,
                    v,
                    *levels,
                    kept,
                    scheduler_reference,
                    self.step_index,
                    self._own_table(),
                )
            )
        else:
            state = walk.skipped_state(iteration, self._stream)
        self._step_index += 1
        # a copy even at equal dtype: the pipeline may write into what it is given
        out = state.to(sample.dtype if per_token_timesteps is not None else model_output.dtype, copy=True)
        self._returned = _Returned(out, state, out._version, session.number)
        return SchedulerOutput(prev_sample=out) if return_dict else (out,)

    def _state(self, sample: Tensor, handed: _Returned | None) -> tuple[Tensor, Tensor | None]:
        """The state in float32, and which elements are still those of the last step (None: all, or there was none).

        What the pipeline holds is cast to the model's dtype; if it is untouched, the finer state behind it counts.
        """
        if handed is None or handed.session != self._session.number:
            return sample.float(), None
        if sample is handed.out and sample._version == handed.version:
            return handed.state.float(), None
        if sample.shape != handed.out.shape:
            raise PolicyError(
                f"{type(self).__name__}: the latents change shape between steps, from {tuple(handed.out.shape)} to "
                f"{tuple(sample.shape)}; such a pipeline is not a chain of steps that can be replayed"
            )
        kept = sample == handed.state.to(sample.dtype)  # not with `out`, which may be this very tensor, written into
        if kept.all():
            return handed.state.float(), None
        return torch.where(kept, handed.state.float(), sample.float()), kept

    def _place(
        self, model_output: Tensor, x: Tensor, per_token: Tensor | None
    ) -> tuple[Tensor, tuple[Level, Level, float, Path]]:
        """The velocity at x, and (s, s_next, s_cap, path)."""
        sign, levels = self._levels(per_token)
        return (model_output.float() if sign > 0 else -model_output.float()), levels

    def _levels(self, per_token: Tensor | None) -> tuple[int, tuple[Level, Level, float, Path]]:
        """Sign that turns the model's output into dx/ds, and (s, s_next, s_cap, path)."""
        first, second = self._table[:2].tolist()
        cap = second if self._cap is None else self._cap
        if per_token is not None:
            # diffusers integrates tokens by (s - s_next) * output, that is, the output is minus the velocity
            s = per_token.float() / self.config.num_train_timesteps
            table = self.sigmas.to(s.device)[:, None, None]
            s_next = torch.where(table < s[None] - 1e-6, table, torch.zeros_like(table)).amax(0)
            return -1, (s[..., None], s_next[..., None], cap, "flow")
        s, s_next = self._table[self.step_index : self.step_index + 2].tolist()
        if counts_data(self):
            return -1, (1 - s, 1 - s_next, 1 - cap if self._cap is None else cap, "flow")
        return 1, (s, s_next, cap, "exploding" if first > 1.001 else "flow")


def intercept(scheduler: Scheduler, session: Session) -> Scheduler:
    """A copy of `scheduler` whose steps go to the session's walk.

    Raises PolicyError if it is neither one of flow matching nor one that DDIM can replace.
    """
    if not predicts_flow(scheduler) and not walks_ddim(scheduler):
        raise PolicyError(
            f"{type(scheduler).__name__} (prediction_type={scheduler.config.get('prediction_type')!r}) neither follows "
            "a flow, along a velocity dx/dsigma, nor denoises along alphas_cumprod by an undistilled model: give a "
            "pipeline such as FLUX, SD3, Qwen-Image or Wan, or one such as Stable Diffusion 1.5 or SDXL"
        )
    scheduler = first_order_scheduler(scheduler)
    new = copy.copy(scheduler)
    new.__class__ = _subclass(type(scheduler))
    new._session = session
    return new


@functools.cache
def _subclass(base: type) -> type:
    names: Sequence[str] = list(inspect.signature(base.step).parameters)[4:]  # after self, output, timestep, sample

    @functools.wraps(base.step)
    def step(
        self: Scheduler, model_output: Tensor, timestep: Tensor | float, sample: Tensor, *args: object, **kwargs: object
    ) -> tuple[Tensor] | SchedulerOutput:
        return self._intercept(model_output, timestep, sample, **dict(zip(names, args, strict=False)), **kwargs)

    mixins = (DDIMStep, InterceptedStep) if issubclass(base, DDIMScheduler) else (InterceptedStep,)
    new: Any = type(base.__name__, (*mixins, base), {"step": step, "__module__": base.__module__})

    @functools.wraps(base.set_timesteps)
    def set_timesteps(self: Scheduler, *args: object, **kwargs: object) -> None:
        super(new, self).set_timesteps(*args, **kwargs)
        walk = self._session.walk
        self._own_levels = own = None if walk is None else replace_table(self, walk.table)
        self._cap = None if walk is None or own is None else tables.cap(walk.table, own)

    new.set_timesteps = set_timesteps
    return new
