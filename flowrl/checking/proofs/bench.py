"""The evidence of a check, made once each and on demand: prompts, rewards, policy, a small rollout and its replay.

The policy is the recipe's own, but for two things: its rollouts hold no more rows at once than a training forward does,
so that a replay meets the batch shape of its rollout, and only a few rows are drawn. Nothing is written anywhere.
"""

import gc
import inspect
import itertools
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from functools import cached_property
from typing import Any

import torch
from torch import Tensor

from flowrl.build import build_scorer
from flowrl.contracts import LogProbs, Prompt, Rollout, Samples, View
from flowrl.core.batches import prompt_chunks
from flowrl.planning.costs import eval_plan, plan_for
from flowrl.planning.duration import Pace
from flowrl.planning.sizes.saved import count_saved
from flowrl.policies.devices import device_of
from flowrl.policies.loading import load_pipeline
from flowrl.policies.noise import Key, global_noise, start_generators
from flowrl.policies.pipelines.arguments import call_arguments, of_one_prompt, takes_one_prompt
from flowrl.policies.pipelines.building import build as build_policy
from flowrl.policies.pipelines.first_order import once_a_level, without_memory
from flowrl.policies.pipelines.layouts import media_of
from flowrl.policies.pipelines.policy import PipelinePolicy
from flowrl.reading.inputs import read_prompts
from flowrl.recipe.schema import Recipe
from flowrl.scoring.scorer import Scorer
from samplers.plan import Plan

SEED = 2**33  # added to the recipe's: a check draws nobody's noise
GROUP = 8  # samples of a prompt, at most


@dataclass
class Replay:
    """What replays showed: by step that drew, the largest |log-prob - that of the rollout|; costs; memory for the
    backward pass.

    met: trained steps, whether or not they drew. bytes_per_row: of what autograd kept for one step,
    at most. connected: whether a score had a gradient at all.
    """

    gap: dict[int, float] = field(default_factory=dict)
    met: set[int] = field(default_factory=set)
    seconds: float = 0.0
    forwards: int = 0
    bytes_per_row: float = 0.0
    connected: bool = False


class Bench:
    """See the module's docstring. rows: about how many samples the proofs draw."""

    unit = "pixel"  # what `drawn_quietly` is made of

    def __init__(self, recipe: Recipe, *, rows: int = 32):
        self.recipe, self.rows = recipe, rows
        self.device = device_of(recipe.device)
        self.scoring_seconds = 0.0
        self.seconds_per_forward: list[float] = []  # of each rollout at the check's full size
        self.peak = {"rollout": 0, "train": 0}  # bytes above what was held, on a GPU alone

    # ------------------------------------------------------------------ what a run reads and makes

    @cached_property
    def prompts(self) -> tuple[list[Prompt], list[Prompt]]:
        """(training prompts, held-out prompts)."""
        return read_prompts(self.recipe)

    @cached_property
    def scorer(self) -> Scorer:
        """The rewards."""
        return build_scorer(self.recipe)

    @cached_property
    def policy(self) -> PipelinePolicy:
        """The recipe's policy, probed."""
        policy = build_policy(self.recipe)
        policy.prepare(self.drawn[0], self.plans[0])  # with the recipe's own calls, of which it learns how rows share
        policy.max_rows = self.rows_at_once
        return policy

    @property
    def rows_at_once(self) -> int:
        """Rows of one pass: no more than the recipe's own rollouts and training forwards hold."""
        train = self.recipe.train
        limits = [train.prompts * train.group // train.updates, train.micro_batch, train.rollout_batch]
        return min(limit for limit in limits if limit is not None)

    @property
    def group(self) -> int:
        """Samples of a prompt; those of a tree are its own."""
        if self.recipe.sampler.tree is not None:
            return self.recipe.train.group
        return min(self.recipe.train.group, GROUP, max(2, self.rows // 2))

    @property
    def drawn(self) -> list[Prompt]:
        """The training prompts that are drawn for, spread over the file."""
        train = self.prompts[0]
        number = max(1, min(self.recipe.train.prompts, self.rows // self.group))
        return [train[i * len(train) // number] for i in range(number)]

    @cached_property
    def plans(self) -> list[Plan]:
        """The first iteration's plan, then others until every step that the run will train has been met."""
        found = [plan_for(self.recipe, i) for i in range(min(self.recipe.train.iterations, 1000))]
        trained = {plan: set(plan.tree(self.recipe.train.group).trained) for plan in dict.fromkeys(found)}
        chosen, met = [found[0]], set(trained[found[0]])
        for overlap in (False, True):  # windows side by side first: fewer of them cover everything
            for plan, steps in trained.items():
                if steps - met and (overlap or not steps & met):
                    chosen.append(plan)
                    met |= steps
        return chosen

    # ------------------------------------------------------------------ samples

    @property
    def pair(self) -> list[Prompt]:
        """Two prompts of different text, or one where a pass holds one row."""
        train = self.prompts[0]
        other = next((p for p in reversed(train) if p.text != train[0].text), train[0])
        return [train[0], other][: min(2, self.rows_at_once)]

    @cached_property
    def untouched(self) -> Tensor:
        """Pictures of the pair by the pipeline as it is on disk, called by itself; it is gone afterwards."""
        recipe = self.recipe
        pipe = load_pipeline(recipe.model, getattr(torch, recipe.dtype.model), recipe.pipeline)
        if recipe.offload and self.device.type != "cpu":
            pipe.enable_model_cpu_offload(device=self.device)
        else:
            pipe.to(self.device)
        output = called(pipe, self.pair, eval_plan(recipe).num_steps, recipe.pipeline, recipe.seed + SEED)
        del pipe
        gc.collect()
        if self.device.type == "cuda":
            torch.cuda.empty_cache()
        return output

    @cached_property
    def quiet(self) -> Tensor:
        """Pictures of the pair by the policy without noise, before anything was trained."""
        return self.drawn_quietly()

    def drawn_quietly(self) -> Tensor:
        """The same pictures by the policy as it is now."""
        with torch.no_grad():
            plan, seed = eval_plan(self.recipe), self.recipe.seed + SEED
            return torch.cat([visible(self.policy.rollout([p], plan=plan, seed=seed).samples) for p in self.pair])

    @cached_property
    def rollout(self) -> Rollout:
        """A small rollout by the first iteration's plan."""
        return self.roll(self.drawn, self.group, self.plans[0])

    def roll(self, prompts: list[Prompt], group: int, plan: Plan) -> Rollout:
        """A rollout, whose pace and peak are kept."""
        count = 0

        def tick(rows: int) -> None:
            nonlocal count
            count += rows

        self.policy.tick = tick
        with self._watched("rollout") as start, torch.no_grad():
            rollout = self.policy.rollout(prompts, group_size=group, plan=plan, seed=self.recipe.seed + SEED)
        self.policy.tick = None
        if len(prompts) == len(self.drawn):
            self.seconds_per_forward.append((time.perf_counter() - start[0]) / max(count, 1))
        return rollout

    @cached_property
    def statistics_pair(self) -> tuple[Samples, Samples]:
        """Samples with the recipe's noise and without, of equal and independent starts."""
        first, group = self.plans[0], self.group
        steps = first.tree(group).trained
        plan = replace(first, share_noise=False) if isinstance(first, Plan) else Plan(first.num_steps, steps, steps)
        noisy = self.rollout if plan == first else self.roll(self.drawn, group, plan)
        quiet = self.roll(self.drawn, group, Plan(plan.num_steps, (), ()))
        return noisy.samples, quiet.samples

    # ------------------------------------------------------------------ replays

    @cached_property
    def replay(self) -> Replay:
        """The replay of the rollout and of one small rollout for each further plan; gradients are left in place."""
        found = Replay()
        for parameter in self.policy.trainable():
            parameter.grad = None
        self.replay_into(found, self.rollout)
        for plan in self.plans[1:]:
            group = min(2, self.group) if isinstance(plan, Plan) else self.group
            prompts = self.drawn[: max(1, min(2, self.rows_at_once // group))]
            self.replay_into(found, self.roll(prompts, group, plan))
        return found

    def replay_into(self, found: Replay, rollout: Rollout, *, calls: int | None = None) -> None:
        """Replays in the parts that shared calls of the rollout, with the gradient of advantages that alternate.

        calls: how many of these parts (None: all).
        """
        steps = rollout.replay.tree.trained
        parameters = list(self.policy.trainable())
        frozen = [p for module in self.policy.modules.values() for p in module.parameters()]

        def tick(rows: int) -> None:
            found.forwards += rows

        self.policy.tick = tick
        with self._watched("train") as start, count_saved([*parameters, *frozen]) as saved:

            def visit(score: LogProbs) -> None:
                at = score.rows[:, None], score.columns[None]
                rollout_logp = rollout.rollout_logp[at].to(score.logp.device)
                drew = rollout.mask[at].to(score.logp.device)
                for i, column in enumerate(score.columns.tolist()):
                    found.met.add(steps[column])
                    if drew[:, i].any():
                        gap = float((score.logp[:, i].detach() - rollout_logp[:, i])[drew[:, i]].abs().max())
                        found.gap[steps[column]] = max(found.gap.get(steps[column], 0.0), gap)
                found.bytes_per_row = max(found.bytes_per_row, saved.bytes / len(score.rows))
                if score.logp.requires_grad:
                    found.connected = True
                    sign = (1.0 - 2.0 * (score.rows % 2)).to(score.logp.device)[:, None]
                    (-sign * (score.logp - rollout_logp).exp()).mean().backward()

            for part in itertools.islice(parts(rollout, self.rows_at_once), calls):
                self.policy.look(rollout, part, View(), visit)
        self.policy.tick = None
        found.seconds += self._since(start)

    # ------------------------------------------------------------------ costs

    @contextmanager
    def scoring(self) -> Iterator[None]:
        """Times the rewards."""
        start = time.perf_counter()
        yield
        self.scoring_seconds = time.perf_counter() - start

    @property
    def pace(self) -> Pace | None:
        """Seconds a row, where a rollout and a replay were made; what was not reached is not made for it."""
        if not self.seconds_per_forward or "replay" not in self.__dict__:
            return None
        training = self.replay.seconds / max(self.replay.forwards, 1)
        scoring = self.scoring_seconds / len(self.rollout.rollout_logp)
        return Pace(min(self.seconds_per_forward), training, scoring)

    def _since(self, start: list[float]) -> float:
        return time.perf_counter() - start[0]

    def _watched(self, phase: str) -> "_Watched":
        return _Watched(self, phase)


class _Watched:
    """Within, a GPU's peak above what it held is taken; gives [the time it began]."""

    def __init__(self, bench: Bench, phase: str):
        self.bench, self.phase = bench, phase
        self.gpu = bench.device.type == "cuda"

    def __enter__(self) -> list[float]:
        if self.gpu:
            torch.cuda.synchronize(self.bench.device)
            torch.cuda.reset_peak_memory_stats(self.bench.device)
            self.held = torch.cuda.memory_allocated(self.bench.device)
        return [time.perf_counter()]

    def __exit__(self, *_: Any) -> None:
        if self.gpu:
            torch.cuda.synchronize(self.bench.device)
            peak = torch.cuda.max_memory_allocated(self.bench.device) - self.held
            self.bench.peak[self.phase] = max(self.bench.peak[self.phase], peak)


def parts(rollout: Rollout, limit: int) -> Iterator[Tensor]:
    """The rows of a rollout in the pieces that shared its calls: whole prompts, or pieces of one."""
    num_prompts, rows = len(rollout.samples.group.unique()), len(rollout.rollout_logp)
    each = rows // num_prompts
    for chunk in prompt_chunks(num_prompts, each, limit):
        yield from torch.arange(chunk.start * each, chunk.stop * each).split(max(limit, 1))


def called(pipe: Any, prompts: list[Prompt], steps: int, call: dict[str, Any], seed: int) -> Tensor:
    """What a pipeline itself draws for these prompts, with the initial noise that a policy gives them.

    A multistep scheduler (Wan's UniPC) is cut down to single steps, and DDIM stands in for what is not first-order
    where the model predicts noise, as the policy walks.
    """
    pipe.scheduler = without_memory(once_a_level(pipe.scheduler), steps)
    found, accepts = [], inspect.signature(type(pipe).__call__).parameters
    for prompt in prompts:  # one by one: in some pipelines a row depends on those beside it
        key = Key(seed, prompt.id, 0)
        arguments = call_arguments(call, [prompt], accepts) | {"generator": start_generators([key])}
        arguments = of_one_prompt(arguments) if takes_one_prompt(type(pipe)) else arguments
        with global_noise(key, getattr(pipe, "_execution_device", torch.device("cpu"))):
            output = pipe(num_inference_steps=steps, output_type="pt", **arguments)
        made = media_of(output, pipe, 1)
        found.append(next(made[kind] for kind in ("images", "video", "audio") if kind in made).cpu())
    return torch.cat(found)


def visible(samples: Samples) -> Tensor:
    """Pictures [B, 3, H, W], video [B, T, 3, H, W] or, without them, sound [B, C, T], on the CPU."""
    found = next(m for m in (samples.images, samples.video, samples.audio) if m is not None)
    return found.float().cpu()
