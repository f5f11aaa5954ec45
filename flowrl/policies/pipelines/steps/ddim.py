"""Pipelines whose model predicts noise, v or the image itself (Stable Diffusion, SDXL, PixArt ...), walked by DDIM.

Their states stay in the pipeline's own variance-preserving coordinates x = a x_0 + s eps with s the amplitude of the
noise, sqrt(1 - alphas_cumprod), and a^2 + s^2 = 1. In the terms of `samplers` a step goes from s to s_next with the
velocity v = eps - x_0, and `vp_ddim` makes it a Gaussian.
"""

import inspect
import math
from typing import TYPE_CHECKING

import torch
from diffusers import DDIMScheduler
from torch import Tensor

from flowrl.policies.errors import PolicyError
from flowrl.untyped import JSON, Config, Scheduler
from samplers.predictions import PREDICTIONS, velocity_from
from samplers.tables import At

_DISTILLED = (
    "LCMScheduler",
    "TCDScheduler",
)  # of models that jump to the image, for which DDIM's small steps are wrong
_OPTIONS = tuple(inspect.signature(DDIMScheduler.__init__).parameters)[1:]


def predicts_noise(scheduler: Scheduler) -> bool:
    """Whether the scheduler denoises variance-preserving states by a prediction of noise, v or image."""
    config = scheduler.config
    return (
        hasattr(scheduler, "alphas_cumprod")
        and config.get("prediction_type", "epsilon") in PREDICTIONS
        and not config.get("use_flow_sigmas")
        and config.get("timestep_type", "discrete") == "discrete"  # "continuous" names levels, not table entries (SVD)
        and type(scheduler).__name__ not in _DISTILLED
    )


def ddim_of(scheduler: Scheduler) -> DDIMScheduler:
    """The DDIM scheduler on the noise table of `scheduler`, with its timesteps; itself if it is one.

    PNDM, Euler, DPM-Solver and others use earlier steps, or draw in ways of their own; on the same table DDIM is the
    first-order step that they refine. Options that the scheduler does not have are off. Raises PolicyError if its steps
    do more to a prediction than DDIM's formula.
    """
    own = scheduler
    if not isinstance(scheduler, DDIMScheduler):
        options: dict[str, JSON] = {name: scheduler.config[name] for name in _OPTIONS if name in scheduler.config}
        options = {"clip_sample": False} | options
        scheduler = DDIMScheduler(**options)
        scheduler.alphas_cumprod = own.alphas_cumprod.clone()  # some move it in ways of their own (CogVideoX)
        scheduler.final_alpha_cumprod = getattr(own, "final_alpha_cumprod", scheduler.final_alpha_cumprod)
    if "variance_type" in own.config:
        # DeepFloyd IF asks for it, and cuts predicted variances off where they are not to be used
        scheduler.register_to_config(variance_type="fixed_small")
    _refuse_more(scheduler, type(own).__name__)
    return scheduler


def _refuse_more(scheduler: DDIMScheduler, name: str) -> None:
    config: Scheduler = scheduler.config
    for option in ("thresholding", "clip_sample"):
        if config[option]:
            raise PolicyError(
                f"{name}: {option}=true clips what the model predicts, which leaves no density to train by; set "
                f"{option} to false in the model's scheduler/scheduler_config.json (latent models have no use for it)"
            )
    if config.prediction_type == "epsilon" and float(scheduler.alphas_cumprod.min()) <= 0:
        raise PolicyError(
            f"{name}: rescale_betas_zero_snr=true with prediction_type='epsilon' begins at pure noise, where predicted "
            "noise says nothing about the image; set rescale_betas_zero_snr to false in the model's "
            "scheduler/scheduler_config.json, unless the model predicts v"
        )


def amplitudes(scheduler: DDIMScheduler) -> list[tuple[float, float]]:
    """(s, s_next) of every step that `scheduler.set_timesteps` made, in double precision.

    As in DDIM itself a step goes to the entry num_train_timesteps // num_steps below, which is the next timestep
    if they are evenly spaced; below entry 0 lies final_alpha_cumprod.
    """
    assert scheduler.num_inference_steps is not None, "set_timesteps comes first"
    table = scheduler.alphas_cumprod.tolist()
    stride = len(table) // scheduler.num_inference_steps
    final = float(scheduler.final_alpha_cumprod)
    times = scheduler.timesteps.tolist()
    if times[0] >= len(table):
        raise PolicyError(
            f"{scheduler.num_inference_steps} steps begin at timestep {times[0]} of {len(table)}: lower sampler.steps "
            f"(the scheduler's steps_offset is {scheduler.config['steps_offset']})"
        )
    return [(_amplitude(table[t]), _amplitude(table[t - stride] if t >= stride else final)) for t in times]


def _amplitude(alpha: float) -> float:
    return math.sqrt(1 - alpha)


class DDIMStep:
    """Mixed in between `InterceptedStep` and DDIMScheduler: the levels of a step, and its velocity."""

    if TYPE_CHECKING:  # attributes of DDIMScheduler
        timesteps: Tensor
        alphas_cumprod: Tensor
        num_inference_steps: int
        config: Config

    _step_index: int | None = None
    _amplitudes: list[tuple[float, float]]

    def __getattr__(self, name: str) -> object:
        """DDIMScheduler's own fallback; the AttributeError for anything else says what DDIM stands in for.

        Some pipelines read more of their scheduler than they step by (Stable Diffusion's latent upscaler its sigmas).
        """
        try:
            return super().__getattr__(name)  # pyright: ignore[reportAttributeAccessIssue]
        except AttributeError:
            raise AttributeError(
                f"the pipeline reads {name!r} of its scheduler, which DDIM does not have; DDIM is used here in place "
                "of any scheduler whose model predicts noise, v or the image"
            ) from None

    @property
    def step_index(self) -> int | None:
        """The next step, None before the first; DDIMScheduler itself does not count."""
        return self._step_index

    def set_timesteps(self, num_inference_steps: int, device: str | torch.device | None = None) -> None:
        """DDIM's own; then a new walk begins."""
        super().set_timesteps(num_inference_steps, device)  # pyright: ignore[reportAttributeAccessIssue]
        self._step_index, self._amplitudes = None, amplitudes(self)  # pyright: ignore[reportArgumentType]

    def nearest(self, level: float) -> float:
        """The amplitude of noise, among those that the model knows, that lies nearest to a level."""
        return self._amplitude_at(self._nearest_time(level))

    def look_at(self, table: At) -> Tensor:
        """Puts the timestep nearest to a level where a table has the level, and one above it before; returns the
        amplitudes of the pipeline's own steps, float32 [num_steps + 1]."""
        own, time, at = self._own_table(), self._nearest_time(table.level), table.place(self._own_table())
        before, level = min(time + 1, len(self.alphas_cumprod) - 1), self._amplitude_at(time)
        if table.begins is None:
            times, self._amplitudes = [before, time], [(self._amplitude_at(before), level), (level, level)]
        else:
            times = self.timesteps.tolist()
            times[at - 1 : at + 1] = max(times[at - 1], before), time
            self._amplitudes[at] = level, self._amplitudes[at][1]
        self.timesteps = torch.tensor(times).to(self.timesteps)
        self.num_inference_steps = len(times)
        return own

    def _nearest_time(self, level: float) -> int:
        table = self.alphas_cumprod.double()
        return int(((1 - table).clamp(min=0).sqrt() - level).abs().argmin())

    def _amplitude_at(self, time: int) -> float:
        return _amplitude(float(self.alphas_cumprod[time]))

    def _own_table(self) -> Tensor:
        """The amplitudes of noise that the steps go through, float32 [num_steps + 1]."""
        return torch.tensor([s for s, _ in self._amplitudes] + [self._amplitudes[-1][1]])

    def _init_step_index(self, timestep: Tensor | float) -> None:
        self._step_index = self.timesteps.tolist().index(int(timestep))

    def _place(self, model_output: Tensor, x: Tensor, per_token: Tensor | None) -> tuple[Tensor, tuple]:
        """Velocity and (s, s_next, s_cap, path); see `InterceptedStep._place`."""
        assert per_token is None and self._step_index is not None
        if model_output.shape != x.shape:
            raise PolicyError(
                f"the model predicts {tuple(model_output.shape)} for latents of {tuple(x.shape)}: one that predicts "
                "variances too is not supported, unless its pipeline cuts them off"
            )
        s, s_next = self._amplitudes[self._step_index]
        v = velocity_from(self.config.prediction_type, x, model_output.float(), s)
        return v, (s, s_next, s, "preserving")
