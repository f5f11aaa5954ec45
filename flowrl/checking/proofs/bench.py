"""The evidence of a check, each part made once and on demand: prompts, rewards, policy, a small rollout and its replay.

The policy is the recipe's own, with two exceptions: its rollouts hold no more rows at once than a training forward
does, so that a replay has the batch shape of its rollout, and only a few rows are drawn. Nothing is written to disk.
"""

import gc
import inspect
import itertools
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from functools import cached_property

import torch
from torch import Tensor

from flowrl.build import build_scorer
from flowrl.contracts import Field, LogProbs, Prompt, Rollout, Samples, View
from flowrl.core.batches import prompt_chunks
from flowrl.planning.costs import eval_plan, plan_for
from flowrl.planning.duration import Pace
from flowrl.planning.sizes.saved import count_saved
from flowrl.policies.devices import device_of
from flowrl.policies.loading import load_pipeline
from flowrl.policies.noise import Key, global_noise, start_generators
from flowrl.policies.pipelines.building import build as build_policy
from flowrl.policies.pipelines.calls.arguments import call_arguments, single_prompt_arguments, takes_one_prompt
from flowrl.policies.pipelines.calls.layouts import media_of
from flowrl.policies.pipelines.policy import PipelinePolicy
from flowrl.policies.pipelines.steps.first_order import first_order_scheduler, single_step_scheduler
from flowrl.reading.inputs import read_prompts
from flowrl.recipe.schema import Recipe
from flowrl.scoring.scorer import Scorer
from flowrl.untyped import Pipeline
from samplers.plan import Plan

SEED = 2**33  # added to the recipe's, so that a check shares noise with no run
GROUP = 8  # samples per prompt, at most


@dataclass
class ReplayEvidence:
    """Measurements of replays: by step that drew noise, the largest |log-prob - that of the rollout|; costs; memory for
    the backward pass.

    visited: trained steps, whether or not they drew noise. bytes_per_row: what autograd saved for one step, at most.
    connected: whether any log-prob had a gradient.
    """

    gap: dict[int, float] = field(default_factory=dict)
    visited: set[int] = field(default_factory=set)
    seconds: float = 0.0
    forwards: int = 0
    bytes_per_row: float = 0.0
    connected: bool = False


class Bench:
    """See the module's docstring. rows: about how many samples the proofs draw."""

    unit = "pixel"  # of what `draw_quietly` returns

    def __init__(self, recipe: Recipe, *, rows: int = 32):
        self.recipe, self.rows = recipe, rows
        self.device = device_of(recipe.device)
        self.scoring_seconds = 0.0
        self.seconds_per_forward: list[float] = []  # of each rollout at the check's full size
        self.peak = {"rollout": 0, "train": 0}  # bytes above what was held, on a GPU alone

    # ------------------------------------------------------------------ what a run reads and builds

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
        # with the recipe's own call sizes, from which it learns how rows share calls
        policy.prepare(self.drawn_prompts[0], self.plans[0])
        policy.max_rows = self.rows_at_once
        return policy

    @property
    def rows_at_once(self) -> int:
        """Rows per forward pass: no more than the recipe's own rollouts and training forwards hold."""
        train = self.recipe.train
        limits = [train.prompts * train.group // train.updates, train.micro_rows, train.rollout_batch]
        return min(limit for limit in limits if limit is not None)

    @property
    def group(self) -> int:
        """Samples per prompt; a tree determines its own number."""
        if self.recipe.sampler.tree is not None:
            return self.recipe.train.group
        return min(self.recipe.train.group, GROUP, max(2, self.rows // 2))

    @property
    def drawn_prompts(self) -> list[Prompt]:
        """The training prompts that samples are drawn for, evenly spaced over the file."""
        train = self.prompts[0]
        number = max(1, min(self.recipe.train.prompts, self.rows // self.group))
        return [train[i * len(train) // number] for i in range(number)]

    @cached_property
    def plans(self) -> list[Plan]:
        """The first iteration's plan, then others until every step that the run will train is covered."""
        plans = [plan_for(self.recipe, i) for i in range(min(self.recipe.train.iterations, 1000))]
        trained = {plan: set(plan.tree(self.recipe.train.group).trained) for plan in dict.fromkeys(plans)}
        chosen, covered = [plans[0]], set(trained[plans[0]])
        for overlap in (False, True):  # disjoint windows first: fewer of them cover all steps
            for plan, steps in trained.items():
                if steps - covered and (overlap or not steps & covered):
                    chosen.append(plan)
                    covered |= steps
        return chosen

    # ------------------------------------------------------------------ samples

    @property
    def prompt_pair(self) -> list[Prompt]:
        """Two prompts with different texts, or one if a forward pass holds one row."""
        train = self.prompts[0]
        other = next((p for p in reversed(train) if p.text != train[0].text), train[0])
        return [train[0], other][: min(2, self.rows_at_once)]

    @cached_property
    def pipeline_samples(self) -> Tensor:
        """Samples of the prompt pair from the pipeline as it is on disk, called directly; it is freed afterwards."""
        recipe = self.recipe
        pipe = load_pipeline(recipe.model, getattr(torch, recipe.dtype.model), recipe.pipeline, recipe.quantize)
        if recipe.offload and self.device.type != "cpu":
            pipe.enable_model_cpu_offload(device=self.device)
        else:
            pipe.to(self.device)
        output = call_pipeline(pipe, self.prompt_pair, eval_plan(recipe).num_steps, recipe.pipeline, recipe.seed + SEED)
        del pipe
        gc.collect()
        if self.device.type == "cuda":
            torch.cuda.empty_cache()
        return output

    @cached_property
    def quiet_samples(self) -> Tensor:
        """Samples of the prompt pair from the policy without noise, before anything is trained."""
        return self.draw_quietly()

    def draw_quietly(self) -> Tensor:
        """The same samples from the policy as it is now, on the CPU; see `visible_samples`."""
        with torch.no_grad():
            plan, seed = eval_plan(self.recipe), self.recipe.seed + SEED
            return torch.cat(
                [visible_samples(self.policy.rollout([p], plan=plan, seed=seed).samples) for p in self.prompt_pair]
            )

    @cached_property
    def rollout(self) -> Rollout:
        """A small rollout with the first iteration's plan."""
        return self.draw_rollout(self.drawn_prompts, self.group, self.plans[0])

    def draw_rollout(self, prompts: list[Prompt], group: int, plan: Plan) -> Rollout:
        """A rollout, whose pace and peak memory are recorded."""
        count = 0

        def tick(rows: int) -> None:
            nonlocal count
            count += rows

        with self._peak_memory("rollout") as start, torch.no_grad():
            seed = self.recipe.seed + SEED
            rollout = self.policy.rollout(prompts, group_size=group, plan=plan, seed=seed, progress=tick)
        if len(prompts) == len(self.drawn_prompts):
            self.seconds_per_forward.append((time.perf_counter() - start[0]) / max(count, 1))
        return rollout

    @cached_property
    def statistics_pair(self) -> tuple[Samples, Samples]:
        """Samples with the recipe's noise and without it, from the same independent initial noise."""
        first, group = self.plans[0], self.group
        steps = first.tree(group).trained
        plan = replace(first, share_noise=False) if isinstance(first, Plan) else Plan(first.num_steps, steps, steps)
        noisy = self.rollout if plan == first else self.draw_rollout(self.drawn_prompts, group, plan)
        quiet = self.draw_rollout(self.drawn_prompts, group, Plan(plan.num_steps, (), ()))
        return noisy.samples, quiet.samples

    # ------------------------------------------------------------------ replays

    @cached_property
    def replay(self) -> ReplayEvidence:
        """Replays of the rollout and of one small rollout for each further plan; gradients are kept."""
        evidence = ReplayEvidence()
        for parameter in self.policy.trainable():
            parameter.grad = None
        self.replay_into(evidence, self.rollout)
        for plan in self.plans[1:]:
            group = min(2, self.group) if isinstance(plan, Plan) else self.group
            prompts = self.drawn_prompts[: max(1, min(2, self.rows_at_once // group))]
            self.replay_into(evidence, self.draw_rollout(prompts, group, plan))
        return evidence

    def view_of(self, rollout: Rollout) -> View:
        """What a run looks at of such a rollout."""
        return View("noised" if rollout.replay.tree.levels else "drawn")

    def replay_into(self, evidence: ReplayEvidence, rollout: Rollout, *, calls: int | None = None) -> None:
        """Replays the rows call by call as in the rollout, with the gradient of advantages of alternating sign.

        calls: the number of calls to replay (None: all).
        """
        steps, view = rollout.replay.tree.trained, self.view_of(rollout)
        parameters = list(self.policy.trainable())
        frozen = [p for module in self.policy.modules.values() for p in module.parameters()]

        def tick(rows: int) -> None:
            evidence.forwards += rows

        with self._peak_memory("train") as start, count_saved([*parameters, *frozen]) as saved:

            def visit(score: LogProbs | Field) -> None:
                sign = 1.0 - 2.0 * (score.rows % 2)
                evidence.bytes_per_row = max(evidence.bytes_per_row, saved.bytes / len(score.rows))
                if isinstance(score, Field):
                    evidence.connected |= score.v.requires_grad
                    error = (score.v - score.target).square().flatten(1).mean(1)
                    (sign.to(error) * error).mean().backward()
                    return
                at = score.rows[:, None], score.columns[None]
                rollout_logp = rollout.rollout_logp[at].to(score.logp.device)
                drew = rollout.mask[at].to(score.logp.device)
                for i, column in enumerate(score.columns.tolist()):
                    evidence.visited.add(steps[column])
                    if drew[:, i].any():
                        gap = float((score.logp[:, i].detach() - rollout_logp[:, i])[drew[:, i]].abs().max())
                        evidence.gap[steps[column]] = max(evidence.gap.get(steps[column], 0.0), gap)
                if score.logp.requires_grad:
                    evidence.connected = True
                    (-sign.to(score.logp.device)[:, None] * (score.logp - rollout_logp).exp()).mean().backward()

            for part in itertools.islice(call_chunks(rollout, self.rows_at_once), calls):
                self.policy.look(rollout, part, view, visit, progress=tick)
        evidence.seconds += self._since(start)

    # ------------------------------------------------------------------ costs

    @contextmanager
    def time_scoring(self) -> Iterator[None]:
        """Measures the time of the rewards."""
        start = time.perf_counter()
        yield
        self.scoring_seconds = time.perf_counter() - start

    @property
    def pace(self) -> Pace | None:
        """Seconds per row, if a rollout and a replay were made; None otherwise."""
        if not self.seconds_per_forward or "replay" not in self.__dict__:
            return None
        training = self.replay.seconds / max(self.replay.forwards, 1)
        scoring = self.scoring_seconds / len(self.rollout.rollout_logp)
        return Pace(min(self.seconds_per_forward), training, scoring)

    def _since(self, start: list[float]) -> float:
        return time.perf_counter() - start[0]

    def _peak_memory(self, phase: str) -> "_PeakMemory":
        return _PeakMemory(self, phase)


class _PeakMemory:
    """Records the peak of a GPU's memory above what it held before; enters with [start time in seconds]."""

    def __init__(self, bench: Bench, phase: str):
        self.bench, self.phase = bench, phase
        self.gpu = bench.device.type == "cuda"

    def __enter__(self) -> list[float]:
        if self.gpu:
            torch.cuda.synchronize(self.bench.device)
            torch.cuda.reset_peak_memory_stats(self.bench.device)
            self.held = torch.cuda.memory_allocated(self.bench.device)
        return [time.perf_counter()]

    def __exit__(self, *_: object) -> None:
        if self.gpu:
            torch.cuda.synchronize(self.bench.device)
            peak = torch.cuda.max_memory_allocated(self.bench.device) - self.held
            self.bench.peak[self.phase] = max(self.bench.peak[self.phase], peak)


def call_chunks(rollout: Rollout, limit: int) -> Iterator[Tensor]:
    """The rows of a rollout, int64 [n] for each of its calls of at most `limit` rows: whole prompts or parts of one."""
    num_prompts, rows = len(rollout.samples.group.unique()), len(rollout.rollout_logp)
    each = rows // num_prompts
    for chunk in prompt_chunks(num_prompts, each, limit):
        yield from torch.arange(chunk.start * each, chunk.stop * each).split(max(limit, 1))


def call_pipeline(pipe: Pipeline, prompts: list[Prompt], steps: int, call: dict[str, object], seed: int) -> Tensor:
    """A pipeline's own samples of these prompts, float [P, ...] on the CPU, from the initial noise of a policy.

    As in the policy, a multistep scheduler (Wan's UniPC) is reduced to first order, and DDIM replaces schedulers that
    are not first-order if the model predicts noise.
    """
    pipe.scheduler = single_step_scheduler(first_order_scheduler(pipe.scheduler), steps)
    pictures, accepts = [], inspect.signature(type(pipe).__call__).parameters
    for prompt in prompts:  # one by one: in some pipelines a row depends on the others in its call
        key = Key(seed, prompt.id, 0)
        arguments = call_arguments(call, [prompt], accepts) | {"generator": start_generators([key])}
        arguments = single_prompt_arguments(arguments) if takes_one_prompt(type(pipe)) else arguments
        with global_noise(key, getattr(pipe, "_execution_device", torch.device("cpu"))):
            output = pipe(num_inference_steps=steps, output_type="pt", **arguments)
        media = media_of(output, pipe, 1)
        pictures.append(next(media[kind] for kind in ("images", "video", "audio") if kind in media).cpu())
    return torch.cat(pictures)


def visible_samples(samples: Samples) -> Tensor:
    """Pictures [B, 3, H, W], else video [B, T, 3, H, W], else sound [B, C, T], float32 on the CPU."""
    medium = next(m for m in (samples.images, samples.video, samples.audio) if m is not None)
    return medium.float().cpu()
