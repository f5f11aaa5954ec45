"""Small runs over ranks: what they train, and the program that each rank runs.

python -m ranks_support FOLDER NAME ...     as one of several processes
"""

import os
import sys
import time
from pathlib import Path

import torch

from flowrl.contracts import Samples
from flowrl.recipe.load import load

SMALL = ("eval.grid=4", "threads=1")
TOKENS = ("train.iterations=2", "train.group=4", "generation.max_new_tokens=8", "eval.prompts=6", "eval.batch=4")
STEPS = ("train.iterations=2", "train.prompts=3", "train.group=4", "eval.prompts=6", "eval.batch=2")
# name -> recipe, overrides
RUNS: dict[str, tuple[str, tuple[str, ...]]] = {
    "noised": ("quickstart", (*STEPS, "train.updates=1", "train.keep=2")),
    "tokens": ("tiny_lm_grpo", (*TOKENS, "train.prompts=5", "train.updates=1", "train.refill=2", "train.keep=2")),
    "critic": ("tiny_lm_grpo", (*TOKENS, "train.prompts=4", "objective.preset=ppo", "advantage.scale=batch")),
    "alone": ("tiny_lm_grpo", (*TOKENS, "train.prompts=1", "train.updates=1", "objective.kl=0.04")),
    "steps": ("tiny_flow_grpo", (*STEPS, "train.updates=3", "train.ema=0.9", "objective.kl=0.04")),
    "tree": (
        "tiny_flow_grpo",
        (
            *STEPS,
            "train.updates=1",
            "sampler.tree={kind: branch, splits: [0, 2], widths: [2, 2]}",
            "sampler.window={kind: all}",
        ),
    ),
    "failing": (
        "tiny_lm_grpo",
        (*TOKENS, "train.prompts=2", "train.updates=1", "rewards.own={use: ranks_support.fails}"),
    ),
    "hanging": (
        "tiny_lm_grpo",
        (*TOKENS, "train.prompts=2", "train.updates=1", "parallel.wait=3", "rewards.own={use: ranks_support.hangs}"),
    ),
}


def recipe_of(name: str, folder: Path, *more: str):
    """The recipe of a small run, which is written to folder / name."""
    recipe, overrides = RUNS[name]
    return load(recipe, [*overrides, *SMALL, f"output={folder / name}", *more])


def fails(samples: Samples) -> torch.Tensor:
    """A reward that ends the run on rank 1."""
    if os.environ.get("RANK") == "1" and len(samples.group.unique()) < len(samples):  # not in an evaluation
        raise SystemExit(3)
    return torch.zeros(len(samples))


def hangs(samples: Samples) -> torch.Tensor:
    """A reward that never answers on rank 1."""
    if os.environ.get("RANK") == "1" and len(samples.group.unique()) < len(samples):
        time.sleep(600)
    return torch.zeros(len(samples))


def main(folder: Path, names: list[str]) -> None:
    """Runs them one after the other; what ends one is written to NAME-RANK.txt, and is the last thing done."""
    from flowrl.engines.ranks import ProcessRanks
    from flowrl.runs.start import run

    ranks = ProcessRanks(60.0)
    try:
        with ranks.together():
            for name in names:
                run(recipe_of(name, folder), ranks=ranks)
    except Exception as error:
        (folder / f"{name}-{ranks.rank}.txt").write_text(f"{type(error).__name__}: {error}")


if __name__ == "__main__":
    main(Path(sys.argv[1]), sys.argv[2:])
