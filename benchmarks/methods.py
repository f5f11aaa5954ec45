"""What one iteration of a method costs on the shapes pipeline, as times that of training on all steps.

    python benchmarks/methods.py [--only mixgrpo,flash] [--steps 25] [--group 12] [--prompts 2] [--repeats 5] [--threads 2]

An iteration is a run's own (flowrl.iterate, through the recipe): the rollout of `prompts` x `group` finished samples,
their scores, and the update with replay, loss, backward and optimizer. Each method is a list of recipe overrides, all
else is equal. They take turns within one process, and medians over the repeats are shown:
  iteration, rollout, score, train   seconds
  ratio      of the iteration to that of all steps, and between brackets the target
  drawn, replayed                    denoiser row-forwards, counted as they ran, of the rollout and of training
  samples    finished samples of an iteration; a method that draws another number is held to the same number
Prompts are drawn as in training; groups without a spread of rewards train nothing, for every method alike, so rewards
are replaced by ones of fixed spread: what is timed is an iteration in which every row learns.
"""

import argparse
import statistics
import time
from collections import defaultdict
from collections.abc import Sequence
from dataclasses import dataclass, field

import torch
from torch import Tensor

from flowrl.advantages import advantage_metrics, advantages
from flowrl.build import build_learner, build_objective, build_policy, cursor_over, read_prompts, set_up
from flowrl.contracts import Samples
from flowrl.iterate import Settings, iterate
from flowrl.names import UserError
from flowrl.planning import plan_for
from flowrl.recipe.load import load
from flowrl.recipe.schema import Recipe

BASE = "all-steps"
# name -> (recipe overrides, at most so many times an iteration on all steps)
METHODS: dict[str, tuple[list[str], float | None]] = {
    BASE: (["sampler.window={kind: all, skip_last: 1}", "sampler.share_noise=false"], None),
    "mixgrpo": (
        ["sampler.window={kind: progressive, size: 4, interval: 25}", "sampler.share_noise=true"],
        0.45,
    ),
    "flash": (
        [
            "sampler.window={kind: progressive, size: 4, interval: 25}",
            "sampler.share_noise=true",
            "sampler.tail={ratio: 0.4, solver: dpmpp_2m}",
        ],
        0.30,
    ),
    "branch-mix": (
        [
            "sampler.window={kind: progressive, size: 4, interval: 25}",
            "sampler.share_noise=true",
            "sampler.tree={kind: branch, splits: [0, 1, 2, 3], widths: [3, 2, 2, 1], splits_from: window}",
        ],
        0.30,
    ),
    "tempflow": (["sampler.tree={kind: tempflow}"], None),
    "dancegrpo-60": (["sampler.window={kind: fraction, fraction: 0.6}", "sampler.share_noise=true"], None),
}
PHASES = ("rollout", "score", "train")


class Method:
    """A policy with its learner, and what its iterations took."""

    def __init__(self, name: str, overrides: Sequence[str], iteration: int):
        self.name, self.iteration = name, iteration
        self.recipe = load("quickstart", overrides)
        set_up(self.recipe)
        train, _ = read_prompts(self.recipe)
        self.cursor = cursor_over(self.recipe, train)
        self.policy = build_policy(self.recipe)
        self.learner = build_learner(self.recipe, self.policy)
        self.objective = build_objective(self.recipe)
        self.taken: list[Taken] = []

    def step(self) -> None:
        """One iteration, as `flowrl.loop` makes it; rewards are of fixed spread."""
        recipe, train = self.recipe, self.recipe.train
        taken, phase = Taken(), ""

        def enter(name: str) -> None:
            nonlocal phase
            phase = name

        def tick(number: int) -> None:
            taken.forwards[phase] += number

        def score(samples: Samples) -> dict[str, Tensor]:
            taken.samples = len(samples)
            return {name: _spread(samples.group) for name in recipe.rewards}

        def advantage(rewards: dict[str, Tensor], group: Tensor) -> tuple[Tensor, dict[str, float]]:
            weights = {name: spec.weight for name, spec in recipe.rewards.items()}
            adv = advantages(rewards, group, weights=weights, **recipe.advantage.model_dump())
            return adv, advantage_metrics(rewards, group, adv, weights=weights)

        plan, prompts = plan_for(recipe, self.iteration), self.cursor.take(train.prompts)
        self.policy.prepare(prompts[0], plan)
        self.policy.tick = tick
        start = time.perf_counter()
        metrics = iterate(
            self.policy,
            self.learner,
            prompts,
            plan=plan,
            seed=recipe.seed,
            first=len(self.taken) * train.group,
            score=score,
            advantage=advantage,
            objective=self.objective,
            settings=Settings(train.group, train.epochs, train.updates, train.micro_batch),
            enter=enter,
        ).metrics
        taken.seconds = time.perf_counter() - start
        taken.phases = {name: metrics[f"time_{name}"] for name in PHASES}
        if metrics["active_rows"] != 1:
            raise RuntimeError(f"{self.name}: only {metrics['active_rows']:.0%} of the rows learn")
        self.taken.append(taken)


@dataclass
class Taken:
    """What an iteration took."""

    seconds: float = 0.0
    phases: dict[str, float] = field(default_factory=dict)
    forwards: dict[str, int] = field(default_factory=lambda: defaultdict(int))
    samples: int = 0


def _spread(group: Tensor) -> Tensor:
    """A reward for every sample, no two of a group alike and none at its mean, in [0, 1]."""
    at = torch.arange(len(group))
    rank = at - torch.stack([(group == label).nonzero()[0, 0] for label in group])
    return torch.frac(0.1 + (rank + 1) * 0.618034)


def common(options: argparse.Namespace) -> list[str]:
    """Overrides that all methods share."""
    rows = options.prompts * options.group
    return [
        f"model={options.model}",
        f"sampler.steps={options.steps}",
        f"train.prompts={options.prompts}",
        f"train.group={options.group}",
        f"train.micro_batch={min(options.micro_batch, rows)}",
        "train.updates=1",
        "train.iterations=1000",
        f"threads={options.threads}",
    ]


def built(options: argparse.Namespace) -> list[Method]:
    """The methods that were asked for and that this version of flowrl knows, the base first."""
    found = []
    for name, (overrides, _) in METHODS.items():
        if options.only and name != BASE and name not in options.only.split(","):
            continue
        try:
            found.append(Method(name, [*common(options), *overrides], options.iteration))
        except UserError as error:
            print(f"{name}: left out: {error}")
    return found


def report(methods: Sequence[Method], warm_up: int) -> None:
    """Prints the table."""
    columns = ("iteration s", *(f"{name} s" for name in PHASES), "ratio", "target", "drawn", "replayed", "samples")
    print(f"{'':14}" + "".join(f"{column:>13}" for column in columns))
    base = 0.0
    for method in methods:
        taken = method.taken[warm_up:]
        seconds = [statistics.median(values) for values in zip(*(_times(t) for t in taken), strict=True)]
        a_sample = seconds[0] / taken[0].samples
        base = base or a_sample
        target = METHODS[method.name][1]
        cells = [f"{s:.3f}" for s in seconds]
        cells += [f"{a_sample / base:.3f}", "" if target is None else f"<= {target:.2f}"]
        cells += [f"{statistics.median(t.forwards[name] for t in taken):g}" for name in ("rollout", "train")]
        print(f"{method.name:14}" + "".join(f"{cell:>13}" for cell in [*cells, str(taken[0].samples)]))


def _times(taken: Taken) -> list[float]:
    return [taken.seconds, *(taken.phases[name] for name in PHASES)]


def main() -> None:
    """Runs the methods in turns and prints the table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--only", default="", help="methods beside all-steps, with commas: " + ", ".join(METHODS))
    parser.add_argument("--model", default="shapes-flux")
    parser.add_argument("--steps", type=int, default=25)
    parser.add_argument("--group", type=int, default=12)
    parser.add_argument("--prompts", type=int, default=4)
    parser.add_argument("--micro-batch", type=int, default=48)
    parser.add_argument("--repeats", type=int, default=5)
    parser.add_argument("--warm-up", type=int, default=1)
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--iteration", type=int, default=0, help="training iteration whose steps are walked")
    options = parser.parse_args()
    methods = built(options)
    for _ in range(options.warm_up + options.repeats):
        for method in methods:
            method.step()
    report(methods, options.warm_up)


if __name__ == "__main__":
    main()
