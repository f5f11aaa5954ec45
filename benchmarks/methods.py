"""What one iteration of a method costs on the shapes pipeline, as times that of training on all steps.

    python benchmarks/methods.py [--only mixgrpo,flash] [--steps 25] [--group 12] [--prompts 8] [--repeats 5]
                                 [--iterations 0,100,200,300] [--threads 2]

An iteration is a run's own (flowrl.core.iterate, through the recipe): the rollout of `prompts` groups of `group`
finished samples, scores, and the update with replay, loss, backward and optimizer. Each method is a list of recipe
overrides, all else is equal. They take turns within one process:
  iteration, rollout, score, train   seconds: medians over the repeats, averaged over the training iterations that are
                                     walked, since what precedes a sliding window is cheap (300 is a published run)
  ratio      seconds a finished sample, to those of all steps, and its largest value in any of these iterations
  drawn, replayed                    denoiser row-forwards of rollout and training, counted as they ran, averaged alike
  samples    finished samples of an iteration
Groups without a spread of rewards train nothing: rewards are replaced by ones of fixed spread, so that what is timed is
an iteration in which every row learns. Text is encoded before the clock starts.
"""

import argparse
import statistics
import time
from collections import defaultdict
from collections.abc import Sequence
from dataclasses import dataclass, field

import torch
from torch import Tensor

from flowrl.build import build_objective, build_policy, set_up
from flowrl.contracts import Rollout, Samples
from flowrl.core.advantages.combined import advantage_metrics
from flowrl.core.advantages.rows import row_advantages
from flowrl.core.iterate import iterate
from flowrl.core.update import Settings
from flowrl.learners import build_learner
from flowrl.names import UserError
from flowrl.planning.costs import eval_plan, plan_for
from flowrl.reading.inputs import prompt_cursor, read_prompts
from flowrl.recipe.load import load
from flowrl.runs.settings import TREE_MEMBERS

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
            "sampler.tree={kind: branch, splits: [0, 1, 3], widths: [2, 2, 3], splits_from: window}",
        ],
        0.30,
    ),
    "tempflow": (
        ["sampler.window={kind: all, skip_last: 1}", "sampler.share_noise=true", "sampler.tree={kind: per_step}"],
        None,
    ),
    "dancegrpo-60": (["sampler.window={kind: fraction, share: 0.6}", "sampler.share_noise=true"], None),
}
PHASES = ("rollout", "score", "train")


class Method:
    """A policy with its learner, and what its iterations took."""

    def __init__(self, name: str, overrides: Sequence[str]):
        self.name = name
        self.recipe = load("tiny_flow_grpo", overrides)
        set_up(self.recipe)
        train, _ = read_prompts(self.recipe)
        self.cursor = prompt_cursor(self.recipe, train)
        self.policy = build_policy(self.recipe)
        self.learner = build_learner(self.recipe, self.policy)
        self.objective = build_objective(self.recipe)
        self.taken: dict[int, list[Taken]] = defaultdict(list)
        self.draws = 0

    def step(self, iteration: int) -> None:
        """One iteration, as `flowrl.runs.loop` makes it; rewards are of fixed spread."""
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

        def advantage(rewards: dict[str, Tensor], rollout: Rollout) -> tuple[Tensor, dict[str, float]]:
            group = rollout.samples.group
            weights = {name: spec.weight for name, spec in recipe.rewards.items()}
            adv = row_advantages(
                rewards,
                group,
                rollout.credit,
                weights=weights,
                **recipe.advantage.model_dump(exclude={"credit", "early"}),
            )
            return adv, advantage_metrics(rewards, group, adv, weights=weights)

        plan, prompts = plan_for(recipe, iteration), self.cursor.take(train.prompts)
        self.policy.rollout(prompts, group_size=1, plan=eval_plan(recipe), seed=0)  # encodes their texts
        start = time.perf_counter()
        metrics = iterate(
            self.policy,
            self.learner,
            prompts,
            plan=plan,
            seed=recipe.seed,
            first=self.draws * TREE_MEMBERS,
            score=score,
            advantage=advantage,
            objective=self.objective,
            settings=Settings(train.group, train.epochs, train.updates, train.micro_batch),
            enter=enter,
            progress=tick,
        ).metrics
        taken.seconds = time.perf_counter() - start
        taken.phases = {name: metrics[f"time_{name}"] for name in PHASES}
        if metrics["active_rows"] != 1:
            raise RuntimeError(f"{self.name}: only {metrics['active_rows']:.0%} of the rows learn")
        self.taken[iteration].append(taken)
        self.draws += 1


@dataclass
class Taken:
    """What an iteration took."""

    seconds: float = 0.0
    phases: dict[str, float] = field(default_factory=dict)
    forwards: dict[str, int] = field(default_factory=lambda: defaultdict(int))
    samples: int = 0


def _spread(group: Tensor) -> Tensor:
    """A reward for every sample, no two of a group alike, in [0, 1); samples lie prompt by prompt."""
    rank = torch.arange(len(group)) % (len(group) // len(group.unique()))
    return torch.frac(0.1 + (rank + 1) * 0.618034)


def common(options: argparse.Namespace) -> list[str]:
    """Overrides that all methods share."""
    rows = options.prompts * options.group
    return [
        f"model={options.model}",
        f"sampler.steps={options.steps}",
        f"train.prompts={options.prompts}",
        f"train.group={options.group}",
        f"train.micro_batch={options.micro_batch if options.micro_batch < rows else 'null'}",
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
            found.append(Method(name, [*common(options), *overrides]))
        except UserError as error:
            print(f"{name}: left out: {error}")
    return found


def report(methods: Sequence[Method]) -> None:
    """Prints the table."""
    columns = ("iteration s", *(f"{name} s" for name in PHASES), "ratio", "largest", "target", "drawn", "replayed")
    print(f"{'':14}" + "".join(f"{column:>12}" for column in (*columns, "samples")))
    whole = next(_each(method) for method in methods if method.name == BASE)
    base = statistics.fmean(found[0] for found in whole)
    for method in methods:
        each = _each(method)
        a_sample, *means = (statistics.fmean(values) for values in zip(*each, strict=True))
        target = METHODS[method.name][1]
        cells = [f"{seconds:.3f}" for seconds in means[: 1 + len(PHASES)]]
        cells += [f"{a_sample / base:.3f}", f"{max(found[0] for found in each) / base:.3f}"]
        cells += ["" if target is None else f"<= {target:.2f}", *(f"{value:.4g}" for value in means[1 + len(PHASES) :])]
        print(f"{method.name:14}" + "".join(f"{cell:>12}" for cell in cells))


def _each(method: Method) -> list[list[float]]:
    """Medians of each training iteration: seconds a sample, then the columns of the table."""
    return [
        [statistics.median(values) for values in zip(*map(_numbers, taken), strict=True)]
        for taken in method.taken.values()
    ]


def _numbers(taken: Taken) -> list[float]:
    counts = [taken.forwards["rollout"], taken.forwards["train"], taken.samples]
    return [taken.seconds / taken.samples, taken.seconds, *(taken.phases[name] for name in PHASES), *counts]


def main() -> None:
    """Runs the methods in turns and prints the table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--only", default="", help="methods beside all-steps, with commas: " + ", ".join(METHODS))
    parser.add_argument("--model", default="shapes-flux")
    parser.add_argument("--steps", type=int, default=25)
    parser.add_argument("--group", type=int, default=12)
    parser.add_argument("--prompts", type=int, default=8)
    parser.add_argument("--micro-batch", type=int, default=144)
    parser.add_argument("--repeats", type=int, default=5)
    parser.add_argument("--warm-up", type=int, default=1)
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--iterations", default="0,100,200,300", help="training iterations whose steps are walked")
    options = parser.parse_args()
    methods = built(options)
    walked = [int(number) for number in options.iterations.split(",")]
    for _ in range(options.warm_up):
        for method in methods:
            method.step(walked[0])
            method.taken.clear()
    for _ in range(options.repeats):
        for iteration in walked:
            for method in methods:
                method.step(iteration)
    report(methods)


if __name__ == "__main__":
    main()
