"""Tokens a second that a recipe's language model draws, with a cache that grows and with a static one (rollout.cache).

    python benchmarks/decoding.py tiny_lm_grpo [KEY=VALUE ...] [--repeats 5]

Draws the completions of one iteration so often, by turns, on the same noise, so that both draw the same tokens up to
rounding; prints the medians of processor time and of wall time, what came before the first (compilation, of which the
static cache has one for each way in which adapters are used), how many graphs torch compiled, and how far log-probs are
apart. On a GPU the wall time counts, which is taken once the device is done.
"""

import argparse
import time
from statistics import median
from typing import Any

import torch

from flowrl.build import build_policy, set_up
from flowrl.kinds import kind_of
from flowrl.policies.compiling import Compiled
from flowrl.reading.inputs import read_prompts
from flowrl.recipe.load import load


def timed(policy: Any, prompts: Any, plan: Any, group: int, seed: int) -> tuple[Any, float, float]:
    """(a rollout, seconds of the processor, seconds on the clock)."""
    cpu, wall = time.process_time(), time.perf_counter()
    rollout = policy.rollout(prompts, group_size=group, plan=plan, seed=seed)
    if torch.cuda.is_available():
        torch.cuda.synchronize()
    return rollout, time.process_time() - cpu, time.perf_counter() - wall


def main() -> None:
    """Runs it."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("recipe")
    parser.add_argument("changes", nargs="*", metavar="KEY=VALUE")
    parser.add_argument("--repeats", type=int, default=5)
    given = parser.parse_args()
    recipe = load(given.recipe, [*given.changes, "rollout.cache=static"])
    set_up(recipe)
    policy = build_policy(recipe)
    prompts = read_prompts(recipe)[0][: recipe.train.prompts]
    plan = kind_of(recipe).planning.plan(recipe, 0)
    static, found, rollouts = policy.static, {"static": [], "growing": []}, {}
    for name in found:
        policy.static = static if name == "static" else None
        policy._proven.clear()
        before, begun = Compiled.now(), (time.process_time(), time.perf_counter())
        policy.prepare(prompts[0], plan)
        timed(policy, prompts, plan, recipe.train.group, 0)
        cpu, wall = time.process_time() - begun[0], time.perf_counter() - begun[1]
        made = Compiled.now().since(before)
        print(f"{name:8} before the first: {cpu:.1f} s of the processor, {wall:.1f} s; {made}", flush=True)
    before = Compiled.now()
    for seed in range(given.repeats):
        for name, times in found.items():
            policy.static = static if name == "static" else None
            rollout, cpu, wall = timed(policy, prompts, plan, recipe.train.group, seed)
            tokens = int(rollout.mask.sum())
            times.append((tokens / cpu, tokens / wall))
            rollouts[name] = rollout
        pair = [rollouts[name] for name in found]
        same = torch.equal(pair[0].replay.tokens, pair[1].replay.tokens)
        gap = float((pair[0].rollout_logp - pair[1].rollout_logp).abs().max()) if same else float("nan")
        print(f"seed {seed}: {tokens} tokens, the same: {same}, log-probs within {gap:.2g}", flush=True)
    for name, times in found.items():
        by_cpu, by_wall = (median(values) for values in zip(*times, strict=True))
        print(f"{name:8} {by_cpu:8.0f} tokens a second of the processor, {by_wall:8.0f} on the clock")
    print(f"graphs after the first rollouts: {Compiled.now().since(before).graphs}")


if __name__ == "__main__":
    main()
