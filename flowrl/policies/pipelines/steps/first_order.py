"""The scheduler that a policy uses in place of a pipeline's own: a first-order one that steps once per level."""

from diffusers import FlowMatchEulerDiscreteScheduler

from flowrl.policies.pipelines.steps.ddim import ddim_of, predicts_noise
from flowrl.untyped import Scheduler


def first_order_scheduler(scheduler: Scheduler) -> Scheduler:
    """The scheduler, or its first-order form: Euler on its table if it calls step twice per level, DDIM on its table if
    the model predicts noise. Raises PolicyError if that would not be what the scheduler does."""
    if walks_ddim(scheduler):
        return ddim_of(scheduler)
    if getattr(scheduler, "order", 1) == 1:
        return scheduler
    return FlowMatchEulerDiscreteScheduler.from_config(scheduler.config)


def single_step_scheduler(scheduler: Scheduler, num_steps: int) -> Scheduler:
    """The scheduler, or the first-order form of a multistep one: a walk that draws noise cannot use earlier steps."""
    if "solver_order" not in scheduler.config:
        return scheduler
    corrected = {"disable_corrector": list(range(num_steps))} if "disable_corrector" in scheduler.config else {}
    return type(scheduler).from_config(scheduler.config, solver_order=1, **corrected)


def predicts_flow(scheduler: Scheduler) -> bool:
    """Whether the scheduler integrates a velocity dx/dsigma along sigmas."""
    config = scheduler.config
    return hasattr(scheduler, "sigmas") and (
        "Flow" in type(scheduler).__name__
        or bool(config.get("use_flow_sigmas"))
        or config.get("prediction_type") == "flow_prediction"
    )


def walks_ddim(scheduler: Scheduler) -> bool:
    """Whether the model predicts noise, v or the image, so that its steps are DDIM's."""
    return not predicts_flow(scheduler) and predicts_noise(scheduler)
