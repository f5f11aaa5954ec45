"""How much time flowrl adds to the transformer calls that it cannot do without, on the shapes pipeline.

    python benchmarks/overhead.py [--model shapes-flux] [--steps 6] [--repeats 15] [--threads 2]

Two ratios at batches of 16 and 64, as medians over repeats that take turns within one process:
  rollout    a recorded stochastic rollout, pictures included, over a hand-written loop with the same number of
             transformer calls and the same decoding
  training   all optimizer work of an iteration (replay of every trained step, loss, backward, AdamW) over the bare
             forward and backward passes of the same rows and steps with the same AdamW step
Text is encoded before the clock starts, on both sides: flowrl remembers it.
"""

import argparse
import statistics
import time
from collections.abc import Callable

import torch
from torch import Tensor

from flowrl.contracts import Prompt
from flowrl.core.learner import Learner
from flowrl.core.objectives.grpo import ClippedObjective
from flowrl.core.update import Settings, update
from flowrl.policies import adapters
from flowrl.policies.loading import load_pipeline
from flowrl.policies.pipelines.dynamics import Dynamics
from flowrl.policies.pipelines.policy import PipelinePolicy
from flowrl.worlds.shapes.captions import heldout_scenes
from flowrl.worlds.shapes.model import CALL, encode_captions, velocity
from samplers.plan import Plan
from samplers.transitions import flow_sde

NOISE = 0.7


class Bench:
    """A policy on the shapes pipeline and the hand-written equivalents of what it does, for `batch` rows."""

    def __init__(self, model: str, steps: int, batch: int):
        self.pipe = load_pipeline(model, torch.float32)
        modules = adapters.denoisers(self.pipe)
        adapters.add_lora(modules, rank=16, alpha=32)
        self.policy = PipelinePolicy(self.pipe, modules, Dynamics(flow_sde, NOISE), call=CALL)
        self.learner = Learner(self.policy.trainable(), lr=1e-5)
        self.prompts = [Prompt(s.caption, s.caption) for s in heldout_scenes()[: batch // 4]]
        self.texts = [p.text for p in self.prompts for _ in range(4)]
        window = tuple(range(steps - 1))
        self.steps, self.plan = steps, Plan(steps, window, window)
        self.rollout = self.policy.rollout(self.prompts, group_size=4, plan=self.plan, seed=0)
        with torch.no_grad():
            self.text = encode_captions(self.pipe, self.texts)
        self.adv = torch.linspace(-1, 1, batch)
        self.objective = ClippedObjective(1e-3, 1e-3)

    def policy_rollout(self) -> None:
        """What a run does."""
        self.policy.rollout(self.prompts, group_size=4, plan=self.plan, seed=0)

    @torch.no_grad()
    def hand_rollout(self) -> None:
        """The shortest loop with the same transformer calls."""
        x = torch.randn(len(self.texts), 16, 16)
        sigmas = [1 - k / self.steps for k in range(self.steps + 1)]
        for k in range(self.steps):
            s, dt = sigmas[k], sigmas[k + 1] - sigmas[k]
            v = velocity(self.pipe, x, torch.full((len(x),), s), *self.text)
            if k == self.steps - 1:
                x = x + v * dt
                continue
            mean, std = _sde(x, v, s, dt, sigmas[1])
            x = mean + std * torch.randn_like(mean)
            (-((x - mean) ** 2) / (2 * std * std)).flatten(1).mean(1)
        latents = self.pipe._unpack_latents(x, 32, 32, self.pipe.vae_scale_factor)
        config = self.pipe.vae.config
        self.pipe.vae.decode(latents / config.scaling_factor + config.shift_factor)

    def policy_training(self) -> None:
        """The update of an iteration."""
        update(self.policy, self.learner, self.rollout, self.adv, self.objective, Settings(4))

    def bare_training(self) -> None:
        """Forward and backward of the transformer for the same rows and steps, and the optimizer step."""
        trajectory = self.rollout.replay
        for k in self.plan.trained:
            x = trajectory.enter[k][0] if k in trajectory.enter else trajectory.drawn[0][0]
            v = velocity(self.pipe, x, torch.full((len(x),), 1 - k / self.steps), *self.text)
            (v.square().mean((1, 2)) * self.adv).sum().backward()
        self.learner.step()


def _sde(x: Tensor, v: Tensor, s: float, dt: float, cap: float) -> tuple[Tensor, float]:
    per_level = NOISE**2 / (1 - min(s, cap))
    pull = 0.5 * per_level * dt
    return x * (1 + pull) + v * (dt + pull * (1 - s)), (per_level * s * -dt) ** 0.5


def medians(first: Callable[[], None], second: Callable[[], None], repeats: int) -> tuple[float, float]:
    """Median seconds of each, taking turns, after a warm-up."""
    seconds: tuple[list[float], list[float]] = ([], [])
    for _ in range(repeats + 2):
        for function, found in zip((first, second), seconds, strict=True):
            start = time.perf_counter()
            function()
            found.append(time.perf_counter() - start)
    return statistics.median(seconds[0][2:]), statistics.median(seconds[1][2:])


def main() -> None:
    """Prints the table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", default="shapes-flux")
    parser.add_argument("--steps", type=int, default=6)
    parser.add_argument("--repeats", type=int, default=15)
    parser.add_argument("--threads", type=int, default=2)
    options = parser.parse_args()
    torch.set_num_threads(options.threads)
    print(f"{'':12}{'batch':>6}{'flowrl ms':>12}{'bare ms':>10}{'ratio':>8}")
    for batch in (16, 64):
        bench = Bench(options.model, options.steps, batch)
        for name, pair in {
            "rollout": (bench.policy_rollout, bench.hand_rollout),
            "training": (bench.policy_training, bench.bare_training),
        }.items():
            ours, bare = medians(*pair, options.repeats)
            print(f"{name:12}{batch:>6}{ours * 1e3:>12.1f}{bare * 1e3:>10.1f}{ours / bare:>8.3f}")


if __name__ == "__main__":
    main()
