"""The whole loop from Python, without a recipe or the command: a tiny FLUX learns what its captions ask for.

    python examples/loop.py          # 40 iterations, a minute or two on 2 CPU cores

Each block of `main` is one part of the loop: replace the one you want to change. The LoRA lands in runs/loop.
"""

from pathlib import Path

import diffusers
import torch
import transformers

import flowrl
from reward_models.shapes import shapes
from samplers.transitions import flow_sde


def main(iterations: int = 40, prompts: int = 16, group: int = 12, output: str | None = None) -> list[float]:
    """Trains shapes-flux with Flow-GRPO; returns the mean reward of every iteration. output: a folder for the LoRA."""
    # The policy: any diffusers pipeline. Its scheduler's step is intercepted and becomes a draw from a Gaussian.
    pipe = flowrl.load_pipeline("shapes-flux", torch.float32)
    modules = flowrl.denoisers(pipe)
    flowrl.add_lora(modules, rank=16, alpha=32, targets="attention")
    policy = flowrl.PipelinePolicy(
        pipe,
        modules,
        flowrl.Dynamics(flow_sde, noise=0.7),
        call={"height": 32, "width": 32, "max_sequence_length": 16, "guidance_scale": 1.0},
    )
    # Six denoising steps. The first three draw noise and are trained, the rest follow the ODE.
    plan = flowrl.Plan(6, stochastic=(0, 1, 2), trained=(0, 1, 2), share_noise=True)

    draw = flowrl.Cursor(flowrl.load_prompts("shapes/train"), seed=0)
    objective = flowrl.ClippedObjective(clip_low=1e-3, clip_high=1e-3)
    settings = flowrl.Settings(group=group, updates=4)
    learner = flowrl.Learner(policy.trainable(), lr=1.5e-3, betas=(0.9, 0.99))

    def score(samples: flowrl.Samples) -> dict[str, torch.Tensor]:
        """Every reward by name, float32 [B]."""
        return {"shapes": shapes(samples, strict=0.5)}

    def advantage(rewards, rollout):
        """How much better each sample is than its group, in standard deviations, and metrics to report."""
        adv = flowrl.advantages(rewards, rollout.samples.group, weights={"shapes": 1.0})
        return adv, {"reward": float(rewards["shapes"].nanmean())}

    curve = []
    for number in range(iterations):
        result = flowrl.iterate(
            policy,
            learner,
            draw.take(prompts),
            plan=plan,
            seed=0,
            first=number * group,  # names the noise: no two iterations draw the same
            score=score,
            advantage=advantage,
            objective=objective,
            settings=settings,
        )
        curve.append(result.metrics["reward"])
        print(f"iteration {number + 1:3d}  reward {curve[-1]:.3f}  clipped {result.metrics['clip_frac']:.2f}")
    if output is not None:
        flowrl.save_adapters(pipe, modules, Path(output))
    return curve


if __name__ == "__main__":
    diffusers.utils.logging.set_verbosity_error()
    transformers.utils.logging.set_verbosity_error()
    main(output="runs/loop")
