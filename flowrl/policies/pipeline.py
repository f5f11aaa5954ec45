"""Any diffusers flow-matching pipeline as a policy, without a line written for its family.

A rollout is the pipeline's own `__call__` with its scheduler's `step` intercepted. The replay of a step is the same
call with the same arguments, in which earlier iterations are fast-forwarded (see gates.py) and the step runs for real,
with gradient. Guidance, packing, conditions and loop indices are thereby those of the rollout by construction.

Before the first rollout a probe of one row learns what the pipeline calls, compares each step at noise 0 with the
scheduler's own, and compares a replay with its rollout. A pipeline that fails is refused with the reason.
"""

from collections.abc import Callable, Iterator, Sequence
from typing import Any

import torch
from PIL import Image
from torch import Tensor, nn

from flowrl.batches import rollout_chunks
from flowrl.contracts import Prompt, Rollout, Samples, Score
from flowrl.policies import adapters
from flowrl.policies.dressing import Dressed
from flowrl.policies.encoding import longest
from flowrl.policies.errors import PolicyError
from flowrl.policies.gates import GateKeeper
from flowrl.policies.noise import Key, start_generators
from flowrl.policies.probe import probe
from flowrl.policies.scheduler import Leave, Session, Walk
from flowrl.policies.tape import Streams, Tape, in_company, joined
from flowrl.policies.walks import Dynamics, Looking, Recording, Replaying
from samplers.plan import Plan

Call = dict[str, Any] | Callable[[Sequence[Prompt]], dict[str, Any]]
Visit = Callable[[int, Tensor, Tensor, Tensor | None], None]  # step, rows [r], logp [r], kl [r]


class PipelinePolicy:
    """A diffusers pipeline that samples, and scores its own steps again.

    pipe: left as it is; the policy works on a shallow copy of it. modules: the denoisers that are trained (see
    adapters.py). call: arguments of every call of the pipeline, such as height or guidance_scale, or a function that
    gives them for the prompts of the rows of a call, where rows have arguments of their own. max_rows: the most
    rows that a rollout gives to one call. offload: text encoders, autoencoders and image encoders are on the device
    only while they are used.
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
    ):
        self.source, self.modules, self.dynamics = pipe, modules, dynamics
        self.call: Call = {} if call is None else call
        self.device, self.max_rows, self.offload = torch.device(device), max_rows, offload
        self.session = Session()
        self.keeper = GateKeeper(self.session)
        self.tick: Callable[[int], None] | None = None  # called with the number of rows at every denoising iteration
        self._streams: dict[int, int] = {}
        self._dressed = Dressed(pipe, self.session, self.keeper, self.device, trained=modules, offload=offload)
        self.needs_company = False  # a row depends on the longest prompt of its call (found out by the probe)
        self._probed = False

    @property
    def pipe(self) -> Any:
        """The working copy of the pipeline."""
        return self._dressed.pipe

    # ------------------------------------------------------------------ what the loop asks for

    def rollout(
        self, prompts: Sequence[Prompt], *, group_size: int = 1, plan: Plan, seed: int, first: int = 0
    ) -> Rollout:
        """Draws `group_size` samples for each prompt; rows are samples, prompt by prompt. See `contracts.Policy`."""
        self.prepare(prompts[0], plan)
        parts = [
            self._roll(
                [prompts[i] for i in chunk.prompts], range(chunk.first, chunk.first + chunk.size), plan, seed, first
            )
            for chunk in rollout_chunks(len(prompts), group_size, self.max_rows)
        ]
        tape = joined([part[0] for part in parts])
        output = torch.cat([part[1] for part in parts])
        group = torch.arange(len(prompts)).repeat_interleave(group_size)
        samples = _samples(tape.prompts, group, output)
        behave = torch.cat([part[2] for part in parts])
        return Rollout(samples, behave, torch.cat([part[3] for part in parts]), tape)

    def replay(self, rollout: Rollout, rows: Tensor, visit: Callable[[Score], None], *, exact_kl: bool = False) -> None:
        """Scores the trained steps of `rows` with gradient, step by step. See `contracts.Policy`."""
        columns = {step: i for i, step in enumerate(rollout.replay.plan.trained)}

        def hand_over(step: int, part: Tensor, logp: Tensor, kl: Tensor | None) -> None:
            kl = None if kl is None else kl[:, None]
            visit(Score(part, torch.tensor([columns[step]]), logp[:, None], kl))

        self._replay(rollout.replay, rows, hand_over, exact_kl=exact_kl)

    @torch.no_grad()
    def reference(self, rollout: Rollout, rows: Tensor) -> None:
        """Log-probs and means of the trained steps with the adapters disabled. See `contracts.Policy`."""
        columns = {step: i for i, step in enumerate(rollout.replay.plan.trained)}
        found = torch.zeros_like(rollout.behave) if rollout.reference is None else rollout.reference
        rollout.reference = found

        def fill_in(step: int, part: Tensor, logp: Tensor, _: Tensor | None) -> None:
            found[part, columns[step]] = logp.to(found)

        with adapters.disabled(self.modules):
            self._replay(rollout.replay, rows, fill_in, reference=True)

    def trainable(self) -> Iterator[nn.Parameter]:
        """The parameters that learn."""
        return adapters.trainable(self.modules)

    # ------------------------------------------------------------------ what other objectives and plans ask for

    def branch(self, rollout: Rollout, step: int, fan: int, *, plan: Plan, first: int | None = None) -> Rollout:
        """Goes on from the state before `step`, a trained step of `rollout`, with each row repeated `fan` times.

        Child c of a row takes the noise of sample first + c of its prompt; without `first`, its parent's own. The
        result's rows are children, row by row, grouped by parent; its plan holds from `step` on.
        """
        tape: Tape = rollout.replay
        if step not in tape.enter and step != 0:
            raise PolicyError(f"step {step} was not trained, so its state was not stored; stored: {sorted(tape.enter)}")
        parents = torch.arange(len(tape)).repeat_interleave(fan)
        keys = [tape.keys[i] for i in parents]
        if first is not None:
            keys = [Key(k.seed, k.prompt, first + c % fan) for c, k in enumerate(keys)]
        child = Tape([tape.prompts[i] for i in parents], keys, [tape.starts[i] for i in parents], plan)
        if self.needs_company:
            child.company = [tuple(longest(self.source, child.prompts))] * len(child)
        states = parents if step not in tape.parent else tape.parent[step][parents]
        recording = Recording(child, self.dynamics, self._streams_at, tick=self.tick)
        recording.state = {s: x[states.to(x.device)] for s, x in tape.enter.get(step, {}).items()}
        recording.begin(step, len(child))
        output = self._pictures(self._pass(recording, child.prompts, child.starts, steps=plan.num_steps))
        behave, mask = _recorded(recording)
        return Rollout(_samples(child.prompts, parents, output), behave, mask, child)

    def velocity(self, prompts: Sequence[Prompt], x: Tensor | Streams, step: int, *, plan: Plan, seed: int) -> Tensor:
        """v = dx/ds [R, ...] float32, with gradient, of states x (one row a prompt) where iteration `step` begins.

        x is in the pipeline's own layout of latents, as it hands them to its scheduler. Only stream 0 is returned.
        """
        states = x if isinstance(x, dict) else {0: x}
        self.prepare(prompts[0], plan)
        walk = Looking(states, step, self._streams_at(step))
        more = {} if step else {"latents": states[0]}
        self._pass(walk, prompts, [Key(seed, p.id, 0) for p in prompts], steps=plan.num_steps, grad=True, **more)
        return walk.velocity[0]

    def decode(self, prompts: Sequence[Prompt], x: Tensor | Streams, *, plan: Plan, seed: int) -> Tensor:
        """Images [R, 3, H, W] or video [R, T, 3, H, W] of final states x, with gradient through the decoder."""
        states = x if isinstance(x, dict) else {0: x}
        self.prepare(prompts[0], plan)
        walk, starts = Looking(states, None), [Key(seed, p.id, 0) for p in prompts]
        return self._pictures(self._pass(walk, prompts, starts, steps=plan.num_steps, grad=torch.is_grad_enabled()))

    def prepare(self, prompt: Prompt, plan: Plan) -> None:
        """Probes the pipeline, once. Raises PolicyError where it breaks the contract (see `probe`)."""
        if not self._probed:
            self._streams = probe(self, prompt, plan)
            self._probed = True

    # ------------------------------------------------------------------ passes

    def _roll(
        self, prompts: Sequence[Prompt], members: range, plan: Plan, seed: int, first: int
    ) -> tuple[Tape, Tensor, Tensor, Tensor]:
        """One chunk of a rollout, these members of each prompt's group: its tape, pictures, log-probs and mask."""
        group_size = len(members)
        rows = [(p, first + i) for p in prompts for i in members]
        keys = [Key(seed, p.id, i) for p, i in rows]
        starts = [Key(seed, p.id, first) for p, _ in rows] if plan.share_noise else keys
        tape = Tape([p for p, _ in rows], keys, starts, plan, complete=not self.keeper.skip)
        if self.needs_company:
            tape.company = [tuple(i * group_size for i in longest(self.source, prompts))] * len(tape)
        recording = Recording(tape, self.dynamics, self._streams_at, tick=self.tick)
        if plan.share_noise and plan.stochastic and self.keeper.skip:
            fan, lead = plan.stochastic[0], torch.arange(len(prompts)) * group_size
            recording.fan, recording.parent = fan, torch.arange(len(prompts)).repeat_interleave(group_size)
            if fan in plan.trained:
                tape.parent[fan], tape.lead[fan] = recording.parent, lead
            recording.begin(0, len(prompts))
            self._pass(recording, prompts, [starts[i] for i in lead], steps=plan.num_steps)
            recording.begin(fan + 1, len(tape))
        output = self._pass(recording, tape.prompts, starts, steps=plan.num_steps)
        return tape, self._pictures(output), *_recorded(recording)

    def _replay(
        self, tape: Tape, rows: Tensor, visit: Visit, *, reference: bool = False, exact_kl: bool = False
    ) -> None:
        """Replays all trained steps of `rows`, in as few passes as they ran on different sets of rows.

        Where something is left behind from step to step (see `GateKeeper`), each step takes a pass of its own, so that
        no graph reaches from one into the next. Company is replayed with a part's rows, and not shown to `visit`.
        """
        alone = [[s] for s in tape.plan.trained if s in tape.parent or tape.complete]
        together = [s for s in tape.plan.trained if [s] not in alone]
        for part, everybody in in_company(tape, rows):

            def shown(step: int, logp: Tensor, kl: Tensor | None, part: Tensor = part) -> None:
                visit(step, part, logp[: len(part)], None if kl is None else kl[: len(part)])

            for steps in [*alone, together] if together else alone:
                walk = Replaying(
                    tape,
                    self.dynamics,
                    self._streams_at,
                    everybody,
                    steps,
                    shown,
                    reference=reference,
                    exact_kl=exact_kl,
                    tick=self.tick,
                )
                at = walk.prompt_rows()
                prompts, starts = [tape.prompts[i] for i in at], [tape.starts[i] for i in at]
                self._pass(walk, prompts, starts, steps=tape.plan.num_steps, grad=torch.is_grad_enabled())

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
        arguments = call_arguments(self.call, prompts) | {"num_inference_steps": steps, "output_type": "pt"} | more
        arguments["generator"] = start_generators(starts)
        self.session.begin(walk)
        self.keeper.begin()
        try:
            output = self._dressed(arguments, grad=grad)
        except Leave:
            output = None
        finally:
            self.session.walk = None
            self._dressed.park()
        if isinstance(walk, Recording) and output is not None:
            walk.finish()
        return output

    def _pictures(self, output: Any) -> Tensor:
        return pictures_of(output, type(self.source).__name__)

    def _streams_at(self, iteration: int) -> int:
        return self._streams.get(iteration, max(self._streams.values(), default=1))


def call_arguments(call: Call, prompts: Sequence[Prompt]) -> dict[str, Any]:
    """A pipeline's arguments for these rows, but for its noise. Lists are the call's own: some pipelines write into
    them."""
    arguments: dict[str, Any] = {"prompt": [p.text for p in prompts]}
    if any(p.media for p in prompts):
        images = [_opened(p) for p in prompts]
        arguments["image"] = images if len(images) > 1 else images[0]  # some pipelines take one image and no list
    for name, value in (call(prompts) if callable(call) else call).items():
        if name.startswith("negative_prompt") and isinstance(value, str):
            value = [value] * len(prompts)
        arguments[name] = list(value) if isinstance(value, list) else value
    return arguments


def pictures_of(output: Any, pipeline: str) -> Tensor:
    """Images [B, 3, H, W] or video [B, T, 3, H, W], float32, of what a pipeline returned for output_type="pt".

    Raises PolicyError, naming the pipeline, for anything else.
    """
    first = output[0] if isinstance(output, tuple) else next(iter(output.values()))
    if not isinstance(first, Tensor):
        first = torch.as_tensor(first)
    if first.dim() not in (4, 5):
        raise PolicyError(
            f"{pipeline} returned {tuple(first.shape)} for output_type='pt'; images [B, 3, H, W] or video "
            "[B, T, 3, H, W] were expected"
        )
    return first.float()


def _samples(prompts: Sequence[Prompt], group: Tensor, output: Tensor) -> Samples:
    if output.dim() == 5:
        return Samples(prompts, group, video=output)
    return Samples(prompts, group, images=output)


def _recorded(recording: Recording) -> tuple[Tensor, Tensor]:
    """Log-probs float32 [R, K] of a recording's trained steps and their mask, on the CPU.

    Raises PolicyError where the pipeline's loop never came to a trained step.
    """
    trained = recording.tape.plan.trained
    missing = [s for s in trained if s not in recording.sums]
    if missing:
        raise PolicyError(
            f"step {missing[0]} is to be trained, but the pipeline's loop ended after {recording.iterations} steps of "
            f"{recording.tape.plan.num_steps}: move the window, or raise sampler.steps (image-to-image skips steps)"
        )
    if not trained:
        empty = torch.zeros(len(recording.tape), 0)
        return empty, empty.bool()
    pairs = [recording.logp(s) for s in trained]
    logp = torch.stack([p[0] for p in pairs], 1).cpu()
    return logp, torch.stack([p[1] for p in pairs], 1).cpu()


def _opened(prompt: Prompt) -> Any:
    images = [Image.open(path).convert("RGB") for path in prompt.media]
    return images[0] if len(images) == 1 else images
