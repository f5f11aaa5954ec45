"""How much time flowrl adds to the transformer calls that it cannot do without, on the models that ship.

    python benchmarks/overhead.py [--model shapes-flux] [--steps 6] [--repeats 15] [--threads 2] [--batches 16 64]

Ratios at batches of 16 and 64, of medians over repeats that take turns within one process, in either order by turns,
with the quartiles of the ratios of single pairs. Python's collection of cyclic garbage is off while the clock runs, and
done between pairs: it would fall to whoever happens to be running.
  rollout    a recorded stochastic rollout, pictures included, over a hand-written loop with the same number of
             transformer calls and the same decoding
  merged     the same with adapters merged into the weights (rollout.merge), over the same loop, which does not merge
  floor      the hand-written loop under merged weights, merging included, over the same loop: what `merged` can come to
  training   all optimizer work of an iteration (replay of every trained step, loss, backward, AdamW) over the bare
             forward and backward passes of the same rows and steps with the same AdamW step
  guided     the same optimizer work under classifier-free guidance, with objective.guidance_gradient=conditional over
             both, at the smaller batch: 0.75 at best, where a backward pass takes as long as a forward pass
and, of the language model of the arithmetic world, at the larger batch,
  decoding   a rollout over a hand-written loop with the same cache that draws as many tokens
  merged     the same with merged adapters
  step       all optimizer work of an iteration over one teacher-forced pass of the same rows with the same AdamW step
With --compile BACKEND it is a policy with compiled blocks over one without: rollout, training, again (training with
train.gradient_checkpointing on both sides), and the language model's step. The first
call of each, from an empty cache, is told apart: its seconds by the clock and by the processor, C++ compiler included.
Text is encoded before the clock starts, on both sides: flowrl remembers it. --cpu: the processor's time in place of the
clock's, for one thread on a busy machine.
"""

import argparse
import contextlib
import gc
import resource
import statistics
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass

import torch
from torch import Tensor, nn
from transformers import DynamicCache

from flowrl.contracts import Prompt
from flowrl.core.learning.learner import Learner
from flowrl.core.objectives.grpo import ClippedObjective
from flowrl.core.update import Settings, update
from flowrl.policies import adapters
from flowrl.policies.compiling import Compiled, compile_networks
from flowrl.policies.language.drawing.forwards import cache_argument
from flowrl.policies.language.policy import LanguagePolicy
from flowrl.policies.loading import load_language, load_pipeline
from flowrl.policies.merging import merged
from flowrl.policies.pipelines.policy import PipelinePolicy
from flowrl.policies.pipelines.steps.dynamics import Dynamics
from flowrl.policies.recomputing import checkpoint_gradients
from flowrl.worlds.arithmetic.problems import heldout_problems
from flowrl.worlds.shapes.captions import heldout_scenes
from flowrl.worlds.shapes.model import CALL, encode_captions, velocity
from samplers.plan import Plan
from samplers.tokens import Generation
from samplers.transitions import flow_sde

NOISE = 0.7


class Rollouts:
    """What a run draws, by a policy and a plan that are there."""

    policy: PipelinePolicy | LanguagePolicy
    prompts: list[Prompt]
    plan: Plan | Generation

    def policy_rollout(self) -> None:
        """What a run does."""
        self.policy.rollout(self.prompts, group_size=4, plan=self.plan, seed=0)

    def merged_rollout(self) -> None:
        """The same by merged weights."""
        self.policy.merge = True
        self.policy_rollout()
        self.policy.merge = False


class Bench(Rollouts):
    """A policy on the shapes pipeline and the hand-written equivalents of what it does, for `batch` rows."""

    def __init__(self, model: str, steps: int, batch: int):
        self.pipe = load_pipeline(model, torch.float32)
        modules = adapters.denoisers(self.pipe)
        adapters.add_lora(modules, rank=16, alpha=32)
        self.modules = modules
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

    def hand_merged(self) -> None:
        """The shortest loop, by merged weights."""
        with merged(self.modules):
            self.hand_rollout()

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

    def guided(self, gradient: str) -> Callable[[], None]:
        """The update of an iteration under guidance, of which both halves have gradient, or the conditional one."""
        call = CALL | {"true_cfg_scale": 4.0, "negative_prompt": ""}
        dynamics = Dynamics(flow_sde, NOISE)
        policy = PipelinePolicy(self.pipe, self.modules, dynamics, call=call, guidance_gradient=gradient)
        rollout = policy.rollout(self.prompts, group_size=4, plan=self.plan, seed=0)
        return lambda: update(policy, self.learner, rollout, self.adv, self.objective, Settings(4))


class LanguageBench(Rollouts):
    """A policy on the arithmetic language model and the hand-written equivalents of what it does, for `batch` rows."""

    def __init__(self, batch: int):
        model, tokenizer = load_language("arithmetic-qwen2", torch.float32)
        self.policy = LanguagePolicy(model, tokenizer)
        adapters.add_lora(self.policy.modules, rank=16, alpha=32, targets="all")
        self.learner = Learner(self.policy.trainable(), lr=1e-5)
        self.modules = self.policy.modules
        self.model, self.plan = model, Generation(40)
        self.prompts = [Prompt(p.text, p.text) for p in heldout_problems()[: batch // 4]]
        self.rollout = self.policy.rollout(self.prompts, group_size=4, plan=self.plan, seed=0)
        kept = self.rollout.replay
        width = max(map(len, kept.prompts))
        self.ids = torch.tensor([[self.policy.pad] * (width - len(p)) + p for p in kept.prompts])
        self.shown = torch.tensor([[0] * (width - len(p)) + [1] * len(p) for p in kept.prompts])
        self.tokens, self.mask = kept.tokens, self.rollout.mask
        self.adv = torch.linspace(-1, 1, batch)
        self.objective = ClippedObjective(0.2, 0.2, aggregate="decision_mean")

    @torch.no_grad()
    def hand_rollout(self) -> None:
        """The shortest loop: the prompts of all rows are read, then a token of each at a time till the last has ended.

        It goes on with the tokens of the rollout, so that both draw as many; what is drawn is left aside.
        """
        cache, shown, token = DynamicCache(config=self.model.config), self.shown, self.ids
        for k in range(self.tokens.shape[1]):
            at = (shown.cumsum(1) - 1).clamp(min=0)[:, -token.shape[1] :]
            kept = {cache_argument(self.model): cache}
            out = self.model(input_ids=token, attention_mask=shown, position_ids=at, logits_to_keep=1, **kept)
            logp = out.logits[:, -1].log_softmax(-1)
            torch.multinomial(logp.exp(), 1)
            token = self.tokens[:, k : k + 1]
            logp.gather(1, token)
            shown = torch.cat([shown, shown.new_ones(len(shown), 1)], 1)

    def policy_training(self) -> None:
        """The update of an iteration."""
        update(self.policy, self.learner, self.rollout, self.adv, self.objective, Settings(4))

    def bare_training(self) -> None:
        """One forward and backward of the same rows, and the optimizer step."""
        ids = torch.cat([self.ids, self.tokens], 1)
        shown = torch.cat([self.shown, self.mask.long()], 1)
        at = (shown.cumsum(1) - 1).clamp(min=0)
        number = self.tokens.shape[1]
        logits = self.model(input_ids=ids, attention_mask=shown, position_ids=at, use_cache=False).logits
        logp = logits[:, -number - 1 : -1].log_softmax(-1).gather(2, self.tokens[..., None])[..., 0]
        ((logp * self.adv[:, None] * self.mask).sum() / self.mask.sum()).backward()
        self.learner.step()


def _sde(x: Tensor, v: Tensor, s: float, dt: float, cap: float) -> tuple[Tensor, float]:
    per_level = NOISE**2 / (1 - min(s, cap))
    pull = 0.5 * per_level * dt
    return x * (1 + pull) + v * (dt + pull * (1 - s)), (per_level * s * -dt) ** 0.5


@dataclass(frozen=True)
class Compared:
    """Median seconds of flowrl and of what is bare, and the quartiles of the ratios of their pairs."""

    ours: float
    bare: float
    low: float
    high: float


def compare(ours: Callable[[], None], bare: Callable[[], None], repeats: int, clock: Callable[[], float]) -> Compared:
    """Both by turns, the second first every other time, after a warm-up."""
    seconds: dict[Callable[[], None], list[float]] = {ours: [], bare: []}
    for _ in range(2):
        ours()
        bare()
    with collected_between() as collect:
        for turn in range(repeats):
            collect()
            for function in (bare, ours) if turn % 2 else (ours, bare):
                start = clock()
                function()
                seconds[function].append(clock() - start)
    ratios = [a / b for a, b in zip(seconds[ours], seconds[bare], strict=True)]
    low, _, high = statistics.quantiles(ratios, n=4) if repeats > 1 else ratios * 3
    return Compared(statistics.median(seconds[ours]), statistics.median(seconds[bare]), low, high)


@contextlib.contextmanager
def collected_between() -> Iterator[Callable[[], int]]:
    """Within, cyclic garbage is collected by the function that is given, and only then; it looks at what is new."""
    gc.collect()
    gc.freeze()
    gc.disable()
    try:
        yield gc.collect
    finally:
        gc.enable()
        gc.unfreeze()


def compiled(options: argparse.Namespace, repeats: int, clock: Callable[[], float]) -> None:
    """Prints the rows of compiled blocks over those that are not."""
    from torch._inductor import config
    from torch._inductor.utils import fresh_cache

    config.compile_threads = 1  # in this process, whose time is told
    for batch in options.batches:
        for name in ("rollout", "training", "again"):
            pair = [Bench(options.model, options.steps, batch) for _ in range(2)]
            if name == "again":
                for bench in pair:
                    checkpoint_gradients(bench.modules)
            with fresh_cache():
                work = [one.policy_rollout if name == "rollout" else one.policy_training for one in pair]
                first_call(pair[0].modules, options.compile, work[0])
                tell(name, batch, compare(work[0], work[1], repeats, clock))
    largest = max(options.batches)
    ours, plain = (LanguageBench(largest) for _ in range(2))
    with fresh_cache():
        first_call(ours.modules, options.compile, ours.policy_training)
        tell("step", largest, compare(ours.policy_training, plain.policy_training, repeats, clock))


def first_call(modules: dict[str, nn.Module], backend: str, work: Callable[[], None]) -> None:
    """Compiles the blocks of these modules, and prints what their first call takes."""

    def spent() -> float:
        used = [resource.getrusage(who) for who in (resource.RUSAGE_SELF, resource.RUSAGE_CHILDREN)]
        return sum(one.ru_utime + one.ru_stime for one in used)

    torch.compiler.reset()
    compile_networks(modules, backend=backend)
    before, start, used = Compiled.now(), time.perf_counter(), spent()
    work()
    made = Compiled.now().since(before)
    told = f"{time.perf_counter() - start:.1f} s, {spent() - used:.1f} s of the processor's"
    print(f"{'':12}{made.graphs} graphs, {made.breaks} graph breaks, first call {told}", flush=True)


def main() -> None:
    """Prints the table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", default="shapes-flux")
    parser.add_argument("--steps", type=int, default=6)
    parser.add_argument("--repeats", type=int, default=15)
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--batches", type=int, nargs="+", default=[16, 64])
    parser.add_argument("--cpu", action="store_true")
    parser.add_argument("--compile", choices=["inductor", "aot_eager", "eager"])
    options = parser.parse_args()
    how = options.repeats, time.process_time if options.cpu else time.perf_counter
    torch.set_num_threads(options.threads)
    print(f"{'':12}{'batch':>6}{'ms':>12}{'over ms':>10}{'quartiles':>16}{'ratio':>8}")
    if options.compile is not None:
        compiled(options, *how)
        return
    for batch in options.batches:
        bench = Bench(options.model, options.steps, batch)
        pairs = {
            "rollout": (bench.policy_rollout, bench.hand_rollout),
            "merged": (bench.merged_rollout, bench.hand_rollout),
            "floor": (bench.hand_merged, bench.hand_rollout),
            "training": (bench.policy_training, bench.bare_training),
        }
        if batch == min(options.batches):
            pairs["guided"] = bench.guided("conditional"), bench.guided("both")
        for name, pair in pairs.items():
            tell(name, batch, compare(*pair, *how))
    largest = max(options.batches)
    language = LanguageBench(largest)
    for name, pair in {
        "decoding": (language.policy_rollout, language.hand_rollout),
        "merged": (language.merged_rollout, language.hand_rollout),
        "step": (language.policy_training, language.bare_training),
    }.items():
        tell(name, largest, compare(*pair, *how))


def tell(name: str, batch: int, found: Compared) -> None:
    """Prints a row of the table."""
    seconds = f"{found.ours * 1e3:>12.1f}{found.bare * 1e3:>10.1f}"
    print(f"{name:12}{batch:>6}{seconds}{found.low:>9.3f}{found.high:>7.3f}{found.ours / found.bare:>8.3f}", flush=True)


if __name__ == "__main__":
    main()
