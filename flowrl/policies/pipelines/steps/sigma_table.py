"""The sigma table of a pipeline's scheduler, and how it is replaced."""

from torch import Tensor

from flowrl.policies.errors import PolicyError
from flowrl.untyped import Scheduler
from samplers.plan import OwnTable, Table
from samplers.tables import At


def noise_levels(scheduler: Scheduler, sigmas: Tensor | None = None) -> Tensor:
    """The levels of a scheduler's table, float32 [num_steps + 1] on the CPU, falling. sigmas: a copy of it."""
    table: Tensor = (scheduler.sigmas if sigmas is None else sigmas).float().cpu()
    return 1 - table if counts_data(scheduler) else table


def counts_data(scheduler: Scheduler) -> bool:
    """Whether a table counts the share of data, not of noise (Mochi)."""
    return bool(getattr(scheduler.config, "invert_sigmas", False))


def _odds_ratio(scheduler: Scheduler) -> float | None:
    """The odds of a sigma over those of its timestep, which a shift makes constant; None where the two are the same.

    CogView4 tells its denoiser the timesteps from before the shift.
    """
    times = (scheduler.timesteps.float() / scheduler.config.num_train_timesteps).tolist()
    for level, time in reversed(list(zip(scheduler.sigmas[:-1].tolist(), times, strict=True))):
        if 0 < level < 1 and 0 < time < 1:
            ratio = level * (1 - time) / (time * (1 - level))
            return ratio if abs(ratio - 1) > 0.01 else None
    return None


def replace_table(scheduler: Scheduler, table: Table) -> Tensor | None:
    """Replaces the table that `set_timesteps` has made; returns its levels [own + 1], or None if it stays.

    Raises PolicyError if the scheduler's timesteps are not its noise levels.
    """
    if isinstance(table, OwnTable):
        return None
    if isinstance(table, At) and hasattr(scheduler, "look_at"):
        return scheduler.look_at(table)
    if not hasattr(scheduler, "sigmas"):
        raise PolicyError(
            f"{type(scheduler).__name__} walks the noise table of its model, which cannot be replaced: use the "
            "pipeline's own schedule, without tail, strides or merged steps"
        )
    own, number = noise_levels(scheduler), scheduler.config.num_train_timesteps
    if (scheduler.sigmas[:-1].float().cpu() * number - scheduler.timesteps.float().cpu()).abs().max() > 1:
        raise PolicyError(
            f"{type(scheduler).__name__}: its timesteps are not {number} times its noise levels, so that its table "
            "cannot be replaced: use the pipeline's own schedule, without tail, strides or merged steps"
        )
    levels = table.levels(own)
    sigmas = (1 - levels if counts_data(scheduler) else levels).to(scheduler.sigmas)
    times = sigmas[:-1] * number
    if isinstance(table, At) and (odds := _odds_ratio(scheduler)):
        times = number * sigmas[:-1] / (sigmas[:-1] + odds * (1 - sigmas[:-1]))
    known = {level: i for i, level in enumerate(own[:-1].tolist())}
    for i, level in enumerate(levels[:-1].tolist()):
        if level in known:  # to the last bit the timestep that the pipeline itself gives its model
            times[i] = scheduler.timesteps[known[level]]
    scheduler.sigmas, scheduler.timesteps = sigmas, times.to(scheduler.timesteps)
    scheduler.num_inference_steps = len(times)
    return own
