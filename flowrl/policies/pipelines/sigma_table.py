"""The sigma table of a pipeline's scheduler, and another one in its place."""

from typing import Any

from torch import Tensor

from flowrl.policies.errors import PolicyError
from samplers.plan import Own, Table
from samplers.tables import At


def noise_levels(scheduler: Any) -> Tensor:
    """The levels of a scheduler's table, float32 on the CPU, falling."""
    sigmas = scheduler.sigmas.float().cpu()
    return 1 - sigmas if counts_data(scheduler) else sigmas


def counts_data(scheduler: Any) -> bool:
    """Whether a table counts the share of data, not of noise (Mochi)."""
    return bool(getattr(scheduler.config, "invert_sigmas", False))


def replace_table(scheduler: Any, table: Table) -> Tensor | None:
    """Puts a table in the place of that which `set_timesteps` has made; returns the latter's levels, None if it stays.

    Raises PolicyError where the scheduler tells its model something else than its levels.
    """
    if isinstance(table, Own):
        return None
    if isinstance(table, At) and hasattr(scheduler, "look_at"):
        return scheduler.look_at(table.level)
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
    known = {level: i for i, level in enumerate(own[:-1].tolist())}
    for i, level in enumerate(levels[:-1].tolist()):
        if level in known:  # to the last bit what the pipeline itself tells its model
            times[i] = scheduler.timesteps[known[level]]
    scheduler.sigmas, scheduler.timesteps = sigmas, times.to(scheduler.timesteps)
    scheduler.num_inference_steps = len(times)
    return own
