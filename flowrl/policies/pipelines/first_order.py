"""Which scheduler a policy walks on, in the place of a pipeline's own: one of first order that steps once a level."""

from typing import Any

from diffusers import FlowMatchEulerDiscreteScheduler

from flowrl.policies.pipelines.ddim_step import ddim_of, predicts_noise


def once_a_level(scheduler: Any) -> Any:
    """The scheduler, or its first-order form: Euler on its table where it calls step twice a level, DDIM on its table
    where the model predicts noise. Raises PolicyError where that would not be what the scheduler does."""
    if walks_ddim(scheduler):
        return ddim_of(scheduler)
    if getattr(scheduler, "order", 1) == 1:
        return scheduler
    return FlowMatchEulerDiscreteScheduler.from_config(scheduler.config)


def without_memory(scheduler: Any, num_steps: int) -> Any:
    """The scheduler, or where it is a multistep one its first-order form: no walk that draws noise can look back."""
    if "solver_order" not in scheduler.config:
        return scheduler
    corrected = {"disable_corrector": list(range(num_steps))} if "disable_corrector" in scheduler.config else {}
    return type(scheduler).from_config(scheduler.config, solver_order=1, **corrected)


def predicts_flow(scheduler: Any) -> bool:
    """Whether the scheduler integrates a velocity dx/dsigma along sigmas."""
    config = scheduler.config
    return hasattr(scheduler, "sigmas") and (
        "Flow" in type(scheduler).__name__
        or bool(config.get("use_flow_sigmas"))
        or config.get("prediction_type") == "flow_prediction"
    )


def walks_ddim(scheduler: Any) -> bool:
    """Whether the model predicts noise, v or the image, so that its steps are DDIM's."""
    return not predicts_flow(scheduler) and predicts_noise(scheduler)
