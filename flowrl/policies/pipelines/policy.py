"""Any diffusers flow-matching pipeline as a policy, without a line written for its family.

A rollout is the pipeline's own `__call__` with its scheduler's `step` intercepted. The replay of a step is the same
call with the same arguments, in which earlier iterations are fast-forwarded (see gates.py) and the step runs for real,
with gradient. Guidance, packing, conditions and loop indices are thereby those of the rollout by construction.

Before the first rollout a probe learns what the pipeline calls, compares each step at noise 0 with the scheduler's own,
compares a replay with its rollout, and finds out which rows may share a call (see sharing.py). A pipeline that fails is
refused with the reason.
"""

from collections.abc import Callable, Iterator, Sequence
from typing import Any, Protocol

import torch
from torch import Tensor, nn

from flowrl.contracts import LogProbs, Prompt, Rollout, Samples, View, Visit
from flowrl.core.batches import prompt_chunks
from flowrl.policies import adapters
from flowrl.policies.errors import PolicyError
from flowrl.policies.noise import GlobalGeneratorUse, Key, copies, global_noise, start_generators
from flowrl.policies.pipelines.arguments import Call, call_arguments, is_refusal
from flowrl.policies.pipelines.dynamics import Dynamics
from flowrl.policies.pipelines.failing import in_one_line
from flowrl.policies.pipelines.gates import GateKeeper
from flowrl.policies.pipelines.intercepted_step import EndOfWalk, Session, Walk
from flowrl.policies.pipelines.layouts import Media, check_size, join_media, media_of, sample_rate
from flowrl.policies.pipelines.noised_looks import field, level_of, look_at, noised, prove_look
from flowrl.policies.pipelines.outputs import credit_of, samples_of
from flowrl.policies.pipelines.probe import probe
from flowrl.policies.pipelines.replay_walk import Looking, ReplayWalk, replay_steps_by_pass
from flowrl.policies.pipelines.replay_walk import Visit as StepVisit
from flowrl.policies.pipelines.rollout_walk import RolloutWalk
from flowrl.policies.pipelines.sharing import ALONE, Sharing, in_order
from flowrl.policies.pipelines.trajectory import Streams, Trajectory, joined, take
from flowrl.policies.pipelines.working_copy import WorkingCopy
from flowrl.policies.pipelines.writing import check_writing
from flowrl.policies.weights import under, weights_of
from samplers.plan import Tree


class Plan(Protocol):
    """What a policy walks: see samplers/plan.py."""

    @property
    def num_steps(self) -> int:
        """Steps that the pipeline is asked for."""
        ...

    def tree(self, group: int) -> Tree:
        """The segments of one prompt."""
        ...


class PipelinePolicy:
    """A diffusers pipeline that samples, and scores its own steps again.

    pipe: left as it is; the policy works on a shallow copy of it. modules: the denoisers that are trained (see
    adapters.py). call: arguments of every call of the pipeline, such as height or guidance_scale, or a function that
    gives them for the prompts of the rows of a call, where rows have arguments of their own. max_rows: the most
    rows that a rollout gives to one call. offload: text encoders, autoencoders and image encoders are on the device
    only while they are used. keep_means: whether rollouts store what `LogProbs.centred` needs. guidance_gradient: both,
    or conditional, where what the denoiser says without the prompt has none (see guidance.py).
    """

    whole_rows = False  # a row's steps come one by one, each with the graph of one denoiser call

    def __init__(
        self,
        pipe: Any,
        modules: dict[str, nn.Module],
        dynamics: Dynamics,
        *,
        call: Call | None = None,
        device: torch.device | str = "cpu",
        max_rows: int | None = None,
        offload: bool = False,
        keep_means: bool = False,
        guidance_gradient: str = "both",
    ):
        self.keep_means, self.guidance_gradient = keep_means, guidance_gradient
        self.source, self.modules, self.dynamics = pipe, modules, dynamics
        self.call: Call = {} if call is None else call
        check_writing(pipe, {} if callable(self.call) else self.call)
        self.device, self.max_rows, self.offload = torch.device(device), max_rows, offload
        self.weights = weights_of(modules)  # others than those that learn
        self.session = Session()
        self.keeper = GateKeeper(self.session)
        self.tick: Callable[[int], None] | None = None  # called with the number of rows at every denoising iteration
        self.finished: Callable[[Samples], None] | None = None  # called with the samples of each chunk of prompts
        self.keeper.guided = set(modules)
        self._streams: dict[int, int] = {}
        self._working_copy = WorkingCopy(pipe, self.session, self.keeper, self.device, trained=modules, offload=offload)
        self.global_use = GlobalGeneratorUse()  # of any pass so far
        self.sharing: Sharing = ALONE  # which rows may share a call (found out by the probe)
        self._probed = self._looks = False

    @property
    def pipe(self) -> Any:
        """The working copy of the pipeline."""
        return self._working_copy.pipe

    # ------------------------------------------------------------------ what the loop asks for

    def rollout(
        self, prompts: Sequence[Prompt], *, group_size: int = 1, plan: Plan, seed: int, first: int = 0
    ) -> Rollout:
        """Walks the tree of `group_size` samples for each prompt. See `contracts.Policy`.

        Rows are the tree's trainable segments, samples its leaves, both prompt by prompt.
        """
        self.prepare(prompts[0], plan)
        tree, rollout_walks, outputs = plan.tree(group_size), [], []
        copy = copies(p.id for p in prompts)
        limit = self.max_rows if self.sharing.rows == "any" else 1
        for chunk in prompt_chunks(len(prompts), max(part.rows for part in tree.passes()), limit):
            trajectory = Trajectory(
                [prompts[i] for i in chunk], tree, seed, first, not self.keeper.skip, [copy[i] for i in chunk]
            )
            rollout_walk, output = self._roll(trajectory)
            rollout_walks.append(rollout_walk)
            outputs.append(output)
            if self.finished is not None:
                self.finished(self._samples(trajectory.prompts, tree, output))
        found = [rollout_walk.result() for rollout_walk in rollout_walks]
        rollout_logp = torch.cat([logp for logp, _, _ in found])
        return Rollout(
            self._samples(prompts, tree, join_media(outputs, type(self.source).__name__)),
            rollout_logp,
            torch.cat([mask for _, mask, _ in found]),
            joined([rollout_walk.trajectory for rollout_walk in rollout_walks]),
            credit=credit_of(tree, rollout_logp),
            step_stats={name: torch.cat([step_stats[name] for _, _, step_stats in found]) for name in found[0][2]},
        )

    def look(self, rollout: Rollout, rows: Tensor, view: View, visit: Visit) -> None:
        """Scores the trained steps of `rows`, step by step, or goes through the levels of noised samples one by one.

        See `contracts.Policy`. Raises PolicyError for `centred` where the rollout kept no means, and where the pipeline
        cannot be asked about a level by itself (see noised_looks.py).
        """
        trajectory: Trajectory = rollout.replay
        if view.states == "noised":
            with under(self.weights, view.weights):
                self._look_at_noised(trajectory, rows, view, visit)
            return
        if view.centred and not trajectory.mean:
            raise PolicyError("the rollout kept no means: make the policy with keep_means=True")
        columns = {step: i for i, step in enumerate(trajectory.tree.trained)}

        def hand_over(step: int, part: Tensor, logp: Tensor, kl: Tensor | None, centred: Tensor | None) -> None:
            column = [None if value is None else value[:, None] for value in (kl, centred)]
            visit(LogProbs(part, torch.tensor([columns[step]]), logp[:, None], *column))

        with under(self.weights, view.weights):
            self._replay(trajectory, rows, hand_over, view)

    def trainable(self) -> Iterator[nn.Parameter]:
        """The parameters that learn."""
        return adapters.trainable(self.modules)

    # ------------------------------------------------------------------ what other objectives ask for

    def velocity(self, prompts: Sequence[Prompt], x: Tensor | Streams, step: int, *, plan: Plan, seed: int) -> Tensor:
        """v = dx/ds [R, ...] float32, with gradient, of states x (one row a prompt) where iteration `step` begins.

        x is in the pipeline's own layout of latents, as it hands them to its scheduler. Only stream 0 is returned.
        """
        states = x if isinstance(x, dict) else {0: x}
        self.prepare(prompts[0], plan)
        found, parts = [], self.sharing.split([p.id for p in prompts])
        for part in parts:
            here = {stream: take(state, torch.tensor(part)) for stream, state in states.items()}
            walk = Looking(here, step, self._streams_at(step))
            more = {} if step else {"latents": here[0]}
            self._look(walk, [prompts[i] for i in part], plan, seed, grad=True, **more)
            found.append(walk.velocity[0])
        return in_order(found, parts)

    def decode(self, prompts: Sequence[Prompt], x: Tensor | Streams, *, plan: Plan, seed: int) -> Tensor:
        """Images [R, 3, H, W], video [R, T, 3, H, W] or, of a pipeline without pictures, sound [R, C, T] of final
        states x, with gradient through the decoder."""
        states = x if isinstance(x, dict) else {0: x}
        self.prepare(prompts[0], plan)
        found, parts = [], self.sharing.split([p.id for p in prompts])
        for part in parts:
            walk = Looking({stream: take(state, torch.tensor(part)) for stream, state in states.items()}, None)
            output = self._look(walk, [prompts[i] for i in part], plan, seed, grad=torch.is_grad_enabled())
            made = media_of(output, self.source, len(part))
            found.append(next(made[kind] for kind in ("images", "video", "audio") if kind in made))
        return in_order(found, parts)

    def prepare(self, prompt: Prompt, plan: Plan) -> None:
        """Probes the pipeline, once. Raises PolicyError where it breaks the contract (see `probe`)."""
        if not self._probed:
            with in_one_line(type(self.source).__name__):
                self._streams = probe(self, prompt, plan)
            self._probed = True

    # ------------------------------------------------------------------ passes

    def _roll(self, trajectory: Trajectory) -> tuple[RolloutWalk, Media]:
        """The rollout of a chunk of prompts: what was recorded, and what was made of its samples, prompt by prompt."""
        rollout_walk = RolloutWalk(
            trajectory, self.dynamics, self._streams_at, tick=self.tick, keep_means=self.keep_means
        )
        number, made = len(trajectory.prompts), {}
        limit = 1 if self.sharing.rows == "none" else self.max_rows
        per_prompt = None if limit is None else max(1, limit // number)
        for part in trajectory.tree.passes(per_prompt):
            rollout_walk.begin(part)
            output = self._walk(rollout_walk, trajectory)
            if part.leaves:
                for kind, whole in self._media(output, rollout_walk.rows).items():
                    each = whole.unflatten(0, (number, -1))
                    made.setdefault(kind, {}).update({leaf: each[:, j] for j, leaf in enumerate(part.leaves)})
            elif output is not None:
                break  # the loop ended before the step at which the pass was to end: `result` tells
        if not made or set(trajectory.tree.leaves) - set(next(iter(made.values()))):
            rollout_walk.result()  # says what is missing
        leaves = trajectory.tree.leaves
        return rollout_walk, {kind: torch.stack([of[i] for i in leaves], 1).flatten(0, 1) for kind, of in made.items()}

    def _replay(self, trajectory: Trajectory, rows: Tensor, visit: StepVisit, view: View) -> None:
        """Replays all trained steps of `rows`, in as few passes as they ran on different sets of rows."""
        grad = torch.is_grad_enabled()
        for part in self.sharing.parts(trajectory, rows):
            for replay_steps in replay_steps_by_pass(trajectory, part):
                walk = ReplayWalk(
                    trajectory,
                    self.dynamics,
                    self._streams_at,
                    replay_steps,
                    visit,
                    view,
                    tick=self.tick,
                )
                self._walk(walk, trajectory, grad=grad)

    def _look_at_noised(self, trajectory: Trajectory, rows: Tensor, view: View, visit: Visit) -> None:
        """Shows the velocities at finished samples that are noised to each of the plan's levels."""
        leaves = trajectory.tree.leaves
        if not self._looks:
            with in_one_line(type(self.source).__name__):
                prove_look(self, trajectory.prompts[0], trajectory.tree.num_steps)
            self._looks = True
        for column, level in enumerate(trajectory.levels):
            at = level_of(self, trajectory.path, level)
            for part in self.sharing.split([row // len(leaves) for row in rows.tolist()]):
                mine = rows[torch.tensor(part)]
                made = noised(trajectory, mine, column, at, share=view.share_noise)
                whose = [divmod(row, len(leaves)) for row in mine.tolist()]
                starts = [trajectory.start(p, leaves[i]) for p, i in whose]
                velocity = look_at(self, made.x, [trajectory.prompts[p] for p, _ in whose], starts, at.level)
                if self.tick is not None:
                    self.tick(len(mine))
                visit(field(mine, column, at, made, velocity))

    def _walk(self, walk: RolloutWalk | ReplayWalk, trajectory: Trajectory, *, grad: bool = False) -> Any:
        """One pass over the rows that a walk stands for."""
        leads = walk.leads()
        starts = [trajectory.start(p, i) for p, i in leads]
        return self._pass(
            walk, [trajectory.prompts[p] for p, _ in leads], starts, steps=trajectory.tree.num_steps, grad=grad
        )

    def _look(self, walk: Looking, prompts: Sequence[Prompt], plan: Plan, seed: int, *, grad: bool, **more: Any) -> Any:
        starts = [Key(seed, p.id, 0) for p in prompts]
        return self._pass(walk, prompts, starts, steps=plan.num_steps, grad=grad, **more)

    def _pass(
        self,
        walk: Walk,
        prompts: Sequence[Prompt],
        starts: Sequence[Key],
        *,
        steps: int,
        grad: bool = False,
        **more: Any,
    ) -> Any:
        """Calls the pipeline once for these rows; its output, or None where the walk left early."""
        once = self.sharing.pictures == "once"
        arguments = (
            call_arguments(self.call, prompts, self._working_copy.accepts, once=once)
            | {"num_inference_steps": steps, "output_type": "pt"}
            | more
        )
        arguments["generator"] = start_generators(starts)
        self.session.begin(walk)
        self.keeper.begin(starts)
        try:
            with global_noise(starts[0], self.device, self.global_use):
                output = self._working_copy(arguments, grad=grad)
        except EndOfWalk:
            output = None
        except ValueError as error:
            if not is_refusal(error):
                raise
            reason = " ".join(str(error).split())[:300]
            raise PolicyError(f"{type(self.source).__name__} refuses its arguments: {reason}") from error
        finally:
            self.session.walk = None
            self._working_copy.park()
        return output

    def _media(self, output: Any, rows: int) -> Media:
        """What a pass made. Raises PolicyError where it is no sample, or not of the size asked for."""
        made = media_of(output, self.source, rows)
        check_size(made, {} if callable(self.call) else self.call, self.source)
        return made

    def _samples(self, prompts: Sequence[Prompt], tree: Tree, media: Media) -> Samples:
        return samples_of(prompts, len(tree.leaves), media, sample_rate(self.source))

    def _streams_at(self, iteration: int) -> int:
        return self._streams.get(iteration, max(self._streams.values(), default=1))
