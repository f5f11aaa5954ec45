"""Passes through a pipeline: one call of it for some rows, on behalf of a walk.

What a policy, its probe and its looks at single levels have in common: the working copy of the pipeline, what is known
about it, and how it is called. The probe determines what is known (see probe.py).
"""

from collections.abc import Sequence
from typing import Protocol

import torch
from torch import nn

from flowrl.contracts import Coming, Progress, Prompt
from flowrl.policies import attending
from flowrl.policies.errors import PolicyError
from flowrl.policies.merging import drawing
from flowrl.policies.noise import GlobalGeneratorUse, Key, global_noise, start_generators
from flowrl.policies.pipelines.calls.arguments import Call, call_arguments, is_refusal
from flowrl.policies.pipelines.calls.autoencoders import Autoencoding
from flowrl.policies.pipelines.calls.gates import GateKeeper
from flowrl.policies.pipelines.calls.layouts import Media, check_size, media_of
from flowrl.policies.pipelines.calls.working_copy import PLAIN, WorkingCopy
from flowrl.policies.pipelines.encoding.first import Encoded, encode_first, nothing
from flowrl.policies.pipelines.encoding.writing import check_writing
from flowrl.policies.pipelines.probing.sharing import ALONE, Sharing
from flowrl.policies.pipelines.steps.dynamics import Dynamics
from flowrl.policies.pipelines.steps.intercepted import EndOfWalk, PipelineWalk, Session
from flowrl.policies.pipelines.walks.guided import Guide, GuidedWalk
from flowrl.policies.pipelines.walks.replay import ReplayWalk
from flowrl.policies.pipelines.walks.rollout import RolloutWalk
from flowrl.policies.pipelines.walks.trajectory import Trajectory
from flowrl.untyped import Nest, Pipeline, PipelineOutput
from samplers.plan import Tree


class WalkPlan(Protocol):
    """What a policy walks: see samplers/plan.py."""

    @property
    def num_steps(self) -> int:
        """Steps that the pipeline is asked for."""
        ...

    def tree(self, group: int) -> Tree:
        """The segments of one prompt."""
        ...


class PipelinePasses:
    """A diffusers pipeline that is called for walks.

    pipe: left as it is; what is called is a shallow copy of it. modules: the denoisers that are trained (see
    adapters.py). call: arguments of every call of the pipeline, such as height or guidance_scale, or a function that
    gives them for the prompts of the rows of a call, where rows have arguments of their own. max_rows: the most
    rows that a rollout gives to one call. offload: text encoders, autoencoders and image encoders are on the device
    only while they are used, and texts are encoded while no denoiser is. guidance_gradient: both, or conditional, where
    what the denoiser says without the prompt has none (see guidance.py). autoencoding: how autoencoders work.

    Found out by the probe: sharing, which rows may share a call; streams, how many step at each iteration.
    """

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
        guidance_gradient: str = "both",
        autoencoding: Autoencoding = PLAIN,
    ):
        self.autoencoding = autoencoding
        self.guidance_gradient = guidance_gradient
        self.source, self.modules, self.dynamics = pipe, modules, dynamics
        self.call: Call = {} if call is None else call
        check_writing(pipe, {} if callable(self.call) else self.call)
        self.device, self.max_rows, self.offload = torch.device(device), max_rows, offload
        self.session = Session()
        self.keeper = GateKeeper(self.session)
        self.keeper.guided = set(modules)
        self.streams: dict[int, int] = {}
        how = {"trained": modules, "offload": offload, "autoencoding": autoencoding}
        self._working_copy = WorkingCopy(pipe, self.session, self.keeper, self.device, **how)
        self.global_use = GlobalGeneratorUse()  # of any pass so far
        self.merge = False  # whether rollouts are drawn by merged weights
        self.sharing: Sharing = ALONE
        self.coming: Coming = nothing  # what encoders that have come may encode beside what they have come for
        self._encoded = Encoded(self._working_copy.stores)

    @property
    def pipe(self) -> Pipeline:
        """The working copy of the pipeline."""
        return self._working_copy.pipe

    def roll(
        self,
        trajectory: Trajectory,
        *,
        progress: Progress | None = None,
        keep_means: bool = False,
        guide: Guide | None = None,
    ) -> tuple[RolloutWalk, Media]:
        """The rollout of a chunk of prompts: what was recorded, and what was made of its samples, prompt by prompt."""
        rollout_walk = RolloutWalk(trajectory, self.dynamics, self.streams_at, progress=progress, keep_means=keep_means)
        number, leaves, made = len(trajectory.prompts), trajectory.tree.leaves, {}
        whole: Media | None = None  # what one pass has made of all leaves in their order
        limit = 1 if self.sharing.rows == "none" else self.max_rows
        per_prompt = None if limit is None else max(1, limit // number)
        with drawing(self):
            for part in trajectory.tree.passes(per_prompt):
                rollout_walk.begin(part)
                walk = rollout_walk if guide is None else GuidedWalk(rollout_walk, guide)
                output = self.walk(walk, trajectory, grad=guide is not None)
                if part.leaves == leaves:
                    whole = {k: v.detach().cpu() for k, v in self.media(output, rollout_walk.rows).items()}
                elif part.leaves:
                    for kind, media in self.media(output, rollout_walk.rows).items():
                        each = media.detach().cpu().unflatten(0, (number, -1))
                        made.setdefault(kind, {}).update({leaf: each[:, j] for j, leaf in enumerate(part.leaves)})
                elif output is not None:
                    break  # the loop ended before the step at which the pass was to end: `result` tells
        if whole is not None:
            return rollout_walk, whole
        if not made or set(leaves) - set(next(iter(made.values()))):
            rollout_walk.result()  # says what is missing
        return rollout_walk, {kind: torch.stack([of[i] for i in leaves], 1).flatten(0, 1) for kind, of in made.items()}

    def walk(
        self, walk: RolloutWalk | ReplayWalk | GuidedWalk, trajectory: Trajectory, *, grad: bool = False
    ) -> PipelineOutput:
        """One pass over the rows that a walk stands for."""
        leads = walk.leads()
        starts = [trajectory.start(p, i) for p, i in leads]
        return self.run(
            walk, [trajectory.prompts[p] for p, _ in leads], starts, steps=trajectory.tree.num_steps, grad=grad
        )

    def run(
        self,
        walk: PipelineWalk,
        prompts: Sequence[Prompt],
        starts: Sequence[Key],
        *,
        steps: int,
        grad: bool = False,
        **more: object,
    ) -> PipelineOutput:
        """Calls the pipeline once for these rows; returns its output, or None if the walk ended early."""
        arguments = self.arguments(prompts) | {"num_inference_steps": steps, "output_type": "pt"} | more
        arguments["generator"] = start_generators(starts)
        self.session.begin(walk)
        self.keeper.begin(starts)
        try:
            with global_noise(starts[0], self.device, self.global_use):
                output = self._working_copy(arguments, grad=grad)
        except EndOfWalk:
            output = None
        except (ValueError, RuntimeError) as error:
            if problem := attending.refusal(error):
                raise PolicyError(problem) from error
            if not isinstance(error, ValueError) or not is_refusal(error):
                raise
            reason = " ".join(str(error).split())[:300]
            raise PolicyError(f"{type(self.source).__name__} refuses its arguments: {reason}") from error
        finally:
            self.session.walk = None
            self._working_copy.park()
        return output

    def encode_first(self, prompts: Sequence[Prompt], steps: int) -> None:
        """With `offload`, encodes the texts of these prompts that are not remembered, all in one go, and with them
        those that are coming; the policy has been probed. See encoding/first.py."""
        copy = self._working_copy
        if not self.offload or copy.encoder is None or all([self._encoded.has(p) for p in prompts]):
            return
        with copy.encoding():
            encode_first(self, self._encoded, prompts, steps)

    def arguments(self, prompts: Sequence[Prompt]) -> dict[str, Nest]:
        """What the pipeline is called with for these rows, but for their noise and the steps."""
        return call_arguments(self.call, prompts, self._working_copy.accepts, once=self.sharing.pictures == "once")

    def media(self, output: PipelineOutput, rows: int) -> Media:
        """The media of a pass's output. Raises PolicyError if they are not samples of the requested size."""
        made = media_of(output, self.source, rows)
        check_size(made, {} if callable(self.call) else self.call, self.source)
        return made

    def streams_at(self, iteration: int) -> int:
        """The number of streams that step at an iteration."""
        return self.streams.get(iteration, max(self.streams.values(), default=1))
