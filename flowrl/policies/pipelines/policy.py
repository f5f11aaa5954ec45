"""Any diffusers flow-matching pipeline as a policy, without a line written for its family.

A rollout is the pipeline's own `__call__` with its scheduler's `step` intercepted. The replay of a step is the same
call with the same arguments, in which earlier iterations are fast-forwarded (see gates.py) and the step runs for real,
with gradient. Guidance, packing, conditions and loop indices are thereby those of the rollout by construction.

Before the first rollout a probe learns what the pipeline calls, compares each step at noise 0 with the scheduler's own,
compares a replay with its rollout, and finds out which rows may share a call (see sharing.py). A pipeline that fails is
refused with the reason.
"""

from collections.abc import Callable, Iterator, Sequence
from dataclasses import replace
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn

from flowrl.contracts import LogProbs, Progress, Prompt, Rollout, Samples, View, Visit
from flowrl.core.batches import prompt_chunks
from flowrl.policies import adapters
from flowrl.policies.errors import PolicyError
from flowrl.policies.noise import Key, copy_numbers
from flowrl.policies.pipelines.calls.arguments import Call
from flowrl.policies.pipelines.calls.autoencoders import Autoencoding
from flowrl.policies.pipelines.calls.layouts import Media, join_media, media_of, sample_rate
from flowrl.policies.pipelines.calls.passes import PipelinePasses, WalkPlan
from flowrl.policies.pipelines.calls.working_copy import PLAIN
from flowrl.policies.pipelines.encoding.encodings import Encoding, find_encoding
from flowrl.policies.pipelines.looks.calls import LookPasses
from flowrl.policies.pipelines.looks.levels import Asking, look_at, prove_look
from flowrl.policies.pipelines.looks.noised import field, level_of, noised
from flowrl.policies.pipelines.looks.visited import look_at_visited
from flowrl.policies.pipelines.probing.failing import in_one_line
from flowrl.policies.pipelines.probing.probe import probe
from flowrl.policies.pipelines.probing.sharing import in_order
from flowrl.policies.pipelines.steps.dynamics import Dynamics
from flowrl.policies.pipelines.steps.substeps import Substeps, prove_substeps
from flowrl.policies.pipelines.teacher import Teacher, by_teacher, check_teacher
from flowrl.policies.pipelines.walks.given_samples import fill
from flowrl.policies.pipelines.walks.guided import Guide
from flowrl.policies.pipelines.walks.outputs import credit_of, samples_of
from flowrl.policies.pipelines.walks.replay import LookWalk, ReplayWalk, replay_steps_by_pass
from flowrl.policies.pipelines.walks.replay import Visit as StepVisit
from flowrl.policies.pipelines.walks.trajectory import Streams, Trajectory, join_trajectories, take
from flowrl.policies.weights import under, weights_of
from flowrl.untyped import JSON, Pipeline, PipelineOutput
from samplers.plan import Tree


class PipelinePolicy(PipelinePasses):
    """A diffusers pipeline that samples, and scores its own steps again.

    Its arguments are those of `PipelinePasses`, and keep_means: whether rollouts store what `LogProbs.centred` needs;
    look_call: arguments of the calls that look at noised samples, where they differ from those of a rollout.
    """

    whole_rows = False  # a row's steps come one by one, each with the graph of one denoiser call

    def __init__(
        self,
        pipe: Pipeline,
        modules: dict[str, nn.Module],
        dynamics: Dynamics,
        *,
        call: Call | None = None,
        device: torch.device | str = "cpu",
        max_rows: int | None = None,
        offload: bool = False,
        keep_means: bool = False,
        guidance_gradient: str = "both",
        look_call: dict[str, JSON] | None = None,
        autoencoding: Autoencoding = PLAIN,
    ):
        super().__init__(
            pipe,
            modules,
            dynamics,
            call=call,
            device=device,
            max_rows=max_rows,
            offload=offload,
            guidance_gradient=guidance_gradient,
            autoencoding=autoencoding,
        )
        self.keep_means = keep_means
        self.weights = weights_of(modules)  # others than those that learn
        self.looks: PipelinePasses = LookPasses(self, look_call) if look_call else self  # at noised samples
        self.teachers: list[Teacher] = []  # what look under the reference in its place
        self.steps_to_one = 1  # of a teacher: how many steps it takes to one of the student's
        self._substeps: Substeps | None = None  # how, once that is proved
        self.guide: Guide | None = None  # what steers walks from which nothing is trained
        self._probed = False
        self._asking: Asking | None = None  # how a level is asked about by itself, once that is proved
        self._given: dict[int, tuple[Trajectory, Encoding]] = {}  # by number of steps: a walk of its own, and how

    # ------------------------------------------------------------------ what the loop asks for

    def rollout(
        self,
        prompts: Sequence[Prompt],
        *,
        group_size: int = 1,
        plan: WalkPlan,
        seed: int,
        first: int = 0,
        progress: Progress | None = None,
        finished: Callable[[Samples], None] | None = None,
    ) -> Rollout:
        """Walks the tree of `group_size` samples for each prompt. See `contracts.Policy`.

        Rows are the tree's trainable segments, samples its leaves, both prompt by prompt.
        """
        self.prepare(prompts[0], plan)
        for passes in dict.fromkeys((self, self.looks)):
            passes.encode_first(prompts, plan.num_steps)
        tree, rollout_walks, outputs = plan.tree(group_size), [], []
        copy = copy_numbers(p.id for p in prompts)
        limit = self.max_rows if self.sharing.rows == "any" else 1
        for chunk in prompt_chunks(len(prompts), max(part.rows for part in tree.passes()), limit):
            trajectory = Trajectory(
                [prompts[i] for i in chunk], tree, seed, first, not self.keeper.skip, [copy[i] for i in chunk]
            )
            guide = None if tree.rows or tree.levels else self.guide
            rollout_walk, output = self.roll(trajectory, progress=progress, keep_means=self.keep_means, guide=guide)
            rollout_walks.append(rollout_walk)
            outputs.append(output)
            if finished is not None:
                finished(self._samples(trajectory.prompts, tree, output))
        results = [rollout_walk.result() for rollout_walk in rollout_walks]
        rollout_logp = torch.cat([logp for logp, _, _ in results])
        return Rollout(
            self._samples(prompts, tree, join_media(outputs, type(self.source).__name__)),
            rollout_logp,
            torch.cat([mask for _, mask, _ in results]),
            join_trajectories([rollout_walk.trajectory for rollout_walk in rollout_walks]),
            credit=credit_of(tree, rollout_logp),
            step_stats={name: torch.cat([step_stats[name] for _, _, step_stats in results]) for name in results[0][2]},
        )

    @torch.no_grad()
    def given(
        self,
        prompts: Sequence[Prompt],
        pictures: Sequence[Sequence[Tensor]],
        *,
        plan: WalkPlan,
        seed: int,
        first: int = 0,
        drawn: Sequence[tuple[Sequence[int], Rollout]] = (),
        noise: Sequence[Sequence[Tensor]] = (),
    ) -> Rollout:
        """Samples that were not drawn, as a rollout whose samples can be noised. See `core.engine.TakesSamples`.

        Raises PolicyError where the pipeline's latents cannot be made of pictures (see encodings.py).
        """
        self.prepare(prompts[0], plan)
        rows = sum(map(len, pictures)) + sum(len(rollout.samples) for _, rollout in drawn)
        tree = plan.tree(rows // len(prompts))
        levels = [n for n in tree.levels if isinstance(n, int | float)]  # the others are states of a walk
        if not levels or len(levels) < len(tree.levels):
            raise PolicyError("samples that were not drawn have no decisions: choose an objective that noises samples")
        if plan.num_steps not in self._given:
            with in_one_line(type(self.source).__name__):
                self._given[plan.num_steps] = self._encoding(prompts[0], plan)
        self.looks.encode_first(prompts, plan.num_steps)
        own, encode = self._given[plan.num_steps]
        trajectory = Trajectory(list(prompts), tree, seed, first, path=own.path)
        trajectory.levels = tuple(own.levels[n] if isinstance(n, int) else n for n in levels)
        media, marks = fill(trajectory, encode, pictures, drawn, noise)
        logp = torch.zeros(rows, len(tree.levels))
        stats = {"given": marks.float()[:, None].expand_as(logp)} if drawn else {}
        mask = torch.ones_like(logp, dtype=torch.bool)
        return Rollout(self._samples(prompts, tree, media), logp, mask, trajectory, step_stats=stats)

    def _encoding(self, prompt: Prompt, plan: WalkPlan) -> tuple[Trajectory, Encoding]:
        """A walk of the pipeline's own, with the levels of all its steps, and the encoding that is proved by it."""
        tree = replace(plan.tree(1), levels=tuple(range(plan.num_steps)))
        own = Trajectory([prompt], tree, 0)
        walk, made = self.roll(own)
        walk.result()
        pixels = made.get("images", made.get("video"))
        if pixels is None or len(own.clean) > 1 or "audio" in made:
            raise PolicyError("its samples are not pictures alone: draw samples instead: set train.source=rollouts")

        def decode(state: Tensor) -> Tensor:
            return self.decode([prompt], state.to(own.clean[0]), plan=plan, seed=0)

        return own, find_encoding(self.source, pixels[0], own.clean[0].shape[1:], decode, self.device)

    def look(
        self, rollout: Rollout, rows: Tensor, view: View, visit: Visit, *, progress: Progress | None = None
    ) -> None:
        """Scores the trained steps of `rows`, step by step, or goes through noised or visited states one by one.

        See `contracts.Policy`. Raises PolicyError for `centred` where the rollout kept no means, and where the pipeline
        cannot be asked about a level by itself (see looks/noised.py).
        """
        trajectory: Trajectory = rollout.replay
        if view.weights == "reference" and self.teachers:
            for teacher, part in by_teacher(self.teachers, rollout, rows):
                if view.states != "drawn" and teacher.sharing != self.looks.sharing:
                    raise PolicyError(
                        "reference: it takes other rows in one call than the trained pipeline, so that velocities "
                        "cannot be compared: choose an objective of the clipped kind, or another reference"
                    )
                teacher.encode_first(trajectory.prompts, trajectory.tree.num_steps)
                teacher.look(rollout, part, view, visit, progress=progress)
            return
        if view.states != "drawn":
            asking = self.prove_looks(trajectory)
            look = partial(self._look_at_noised if view.states == "noised" else self._look_at_visited, asking)
            with under(self.weights, view.weights):
                look(trajectory, rows, view, visit, progress)
            return
        if view.centred and not trajectory.mean:
            raise PolicyError("the rollout kept no means: make the policy with keep_means=True")
        columns = {step: i for i, step in enumerate(trajectory.tree.trained)}

        def hand_over(step: int, part: Tensor, logp: Tensor, kl: Tensor | None, centred: Tensor | None) -> None:
            column = [None if value is None else value[:, None] for value in (kl, centred)]
            visit(LogProbs(part, torch.tensor([columns[step]]), logp[:, None], *column))

        with under(self.weights, view.weights):
            self._replay(trajectory, rows, hand_over, view, progress)

    def trainable(self) -> Iterator[nn.Parameter]:
        """The parameters that learn."""
        return adapters.trainable(self.modules)

    # ------------------------------------------------------------------ what other objectives ask for

    def velocity(
        self, prompts: Sequence[Prompt], x: Tensor | Streams, step: int, *, plan: WalkPlan, seed: int
    ) -> Tensor:
        """v = dx/ds [R, ...] float32, with gradient, of states x (one row a prompt) where iteration `step` begins.

        x is in the pipeline's own layout of latents, as it hands them to its scheduler. Only stream 0 is returned.
        """
        states = x if isinstance(x, dict) else {0: x}
        self.prepare(prompts[0], plan)
        velocities, parts = [], self.sharing.split([p.id for p in prompts])
        for part in parts:
            here = {stream: take(state, torch.tensor(part)) for stream, state in states.items()}
            walk = LookWalk(here, step, self.streams_at(step))
            more = {} if step else {"latents": here[0]}
            self._look(walk, [prompts[i] for i in part], plan, seed, grad=True, **more)
            velocities.append(walk.velocity[0])
        return in_order(velocities, parts)

    def decode(self, prompts: Sequence[Prompt], x: Tensor | Streams, *, plan: WalkPlan, seed: int) -> Tensor:
        """Images [R, 3, H, W], video [R, T, 3, H, W] or, of a pipeline without pictures, sound [R, C, T] of final
        states x, with gradient through the decoder."""
        states = x if isinstance(x, dict) else {0: x}
        self.prepare(prompts[0], plan)
        decoded, parts = [], self.sharing.split([p.id for p in prompts])
        for part in parts:
            walk = LookWalk({stream: take(state, torch.tensor(part)) for stream, state in states.items()}, None)
            output = self._look(walk, [prompts[i] for i in part], plan, seed, grad=torch.is_grad_enabled())
            made = media_of(output, self.source, len(part))
            decoded.append(next(made[kind] for kind in ("images", "video", "audio") if kind in made))
        return in_order(decoded, parts)

    def prepare(self, prompt: Prompt, plan: WalkPlan) -> None:
        """Probes the pipeline, once, and its teachers. Raises PolicyError where one breaks the contract (see `probe`),
        and where a teacher does not fit (see teacher.py)."""
        if not self._probed:
            with in_one_line(type(self.source).__name__):
                self.streams = probe(self, prompt, plan)
                if self.looks is not self:
                    self.looks.streams = probe(self.looks, prompt, plan)
            self._probed = True
        for teacher in [one.policy for one in self.teachers if not one.policy._probed]:
            teacher.prepare(prompt, plan)
            check_teacher(self, teacher, prompt, plan)
            if teacher.steps_to_one > 1:
                teacher._substeps = prove_substeps(teacher, prompt, plan, teacher.steps_to_one)

    # ------------------------------------------------------------------ passes

    def _replay(
        self, trajectory: Trajectory, rows: Tensor, visit: StepVisit, view: View, progress: Progress | None
    ) -> None:
        """Replays all trained steps of `rows`, in as few passes as they ran on different sets of rows."""
        grad = torch.is_grad_enabled()
        for part in self.sharing.parts(trajectory, rows):
            for replay_steps in replay_steps_by_pass(trajectory, part):
                arguments = trajectory, self.dynamics, self.streams_at, replay_steps, visit, view
                if self._substeps is not None:
                    self._substeps.replay(self, *arguments, progress)
                else:
                    self.walk(ReplayWalk(*arguments, progress=progress), trajectory, grad=grad)

    def prove_looks(self, trajectory: Trajectory) -> Asking:
        """Proves, once, that the pipeline can be asked about a level by itself; returns how."""
        if self._asking is None:
            with in_one_line(type(self.source).__name__):
                self._asking = prove_look(self.looks, trajectory.prompts[0], trajectory.tree.num_steps)
        return self._asking

    def _look_at_visited(self, asking: Asking, *arguments: Any) -> None:
        look_at_visited(self.looks, asking, *arguments)

    def _look_at_noised(
        self, asking: Asking, trajectory: Trajectory, rows: Tensor, view: View, visit: Visit, progress: Progress | None
    ) -> None:
        """Shows the velocities at finished samples that are noised to each of the plan's levels."""
        leaves = trajectory.tree.leaves
        for column, level in enumerate(trajectory.levels):
            at = level_of(self.looks, trajectory.path, level)
            for part in self.looks.sharing.split([row // len(leaves) for row in rows.tolist()]):
                mine = rows[torch.tensor(part)]
                made = noised(trajectory, mine, column, at, share=view.share_noise, own=view.own_noise)
                whose = [divmod(row, len(leaves)) for row in mine.tolist()]
                starts = [trajectory.start(p, leaves[i]) for p, i in whose]
                prompts = [trajectory.prompts[p] for p, _ in whose]
                answer = look_at(self.looks, asking, made.x, prompts, starts, at.level)
                if progress is not None:
                    progress(len(mine))
                visit(field(mine, column, at, made, answer))

    def _look(
        self, walk: LookWalk, prompts: Sequence[Prompt], plan: WalkPlan, seed: int, *, grad: bool, **more: object
    ) -> PipelineOutput:
        starts = [Key(seed, p.id, 0) for p in prompts]
        return self.run(walk, prompts, starts, steps=plan.num_steps, grad=grad, **more)

    def _samples(self, prompts: Sequence[Prompt], tree: Tree, media: Media) -> Samples:
        return samples_of(prompts, len(tree.leaves), media, sample_rate(self.source))
