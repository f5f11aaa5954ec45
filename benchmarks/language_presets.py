"""How far presets of tokens come with the same number of drawn tokens, on the task of tiny_lm_grpo.

    python benchmarks/language_presets.py [--only sapo,gspo] [--seeds 0,1,2] [--tokens 30000] [--output runs/presets]
                                          [KEY=VALUE ...]

Each preset trains tiny_lm_grpo with its own objective, at a constant learning rate (and with the given values), until
an iteration has drawn so many tokens, at most in 40 iterations; the weights of that iteration are evaluated, greedily,
on the 256 held-out problems. Prints the accuracy before, and a table for a page of the documentation: preset, tokens,
accuracy of each seed. Runs that are in the output folder already are read, so that a table is added to.
"""

import argparse
import json
import math
from pathlib import Path

import torch
from rich.console import Console as RichConsole

from flowrl.build import build_policy, build_scorer, set_up
from flowrl.core.evaluation import mean
from flowrl.reading.inputs import read_prompts
from flowrl.recipe.load import load
from flowrl.recipe.presets import LANGUAGE
from flowrl.runs.console import Console
from flowrl.runs.heldout import evaluate_heldout
from flowrl.runs.start import run
from flowrl.runs.weights import load_weights

# What presets ask for beside an objective, a warm-up that fits so short a run, and parts that fit so short completions.
TAGS = '"<answer>{answer}</answer>"'
BESIDE = {
    "deepsearch": ["generation.tree={kind: deepsearch, segment: 8, width: 3}"],
    "edge": [f"generation.again={{kind: corrections, text: ';', tokens: 40, answer: {TAGS}}}"],
    "grpo_process": ["rewards.steps={use: worked_steps, weight: 1.0}"],
    "psgpo": ["rewards.steps={use: worked_steps, weight: 1.0}"],
    "tree_grpo": ["generation.tree={kind: tree_grpo, split: ';'}", "train.group=6"],
    "treepo": ["generation.tree={kind: treepo, segment: 8}"],
    "vapo": ["critic.warmup=4"],
    "vc_ppo": ["critic.warmup=4"],
    "vineppo": ["generation.again={kind: values, split: ';', continuations: 4}"],
}
FROM_FILES = {"dpo", "mpo", "chord"}  # train on pairs or on answers of others
SEEING = {name for name, values in LANGUAGE.items() if "views" in values}
PRESETS = ",".join(sorted(LANGUAGE.keys() - FROM_FILES - SEEING))
FIRST, MOST = 5, 40  # iterations: before the tokens of one are known, and of a run at most
KEPT = ["checkpoint.every=1", "checkpoint.keep=1000", "eval.every=null", "eval.at_start=false", "eval.at_end=false"]


def drawn(folder: Path) -> list[float]:
    """Tokens drawn up to each iteration of a run."""
    lines = [json.loads(line) for line in (folder / "metrics.jsonl").read_text(encoding="utf-8").splitlines()]
    found, total = [], 0.0
    for line in lines:
        if line["kind"] == "train":
            total += line["forwards/rollout"]
            found.append(total)
    return found


def accuracy(changes: list[str], trained: tuple[Path, str] | None = None) -> float:
    """Share of held-out problems answered right, greedily, by the start or by the weights of (folder, iteration)."""
    recipe = load("tiny_lm_grpo", changes)
    set_up(recipe)
    policy, scorer, heldout = build_policy(recipe), build_scorer(recipe), read_prompts(recipe)[1]
    if trained is not None:
        load_weights(policy, *trained)
    with torch.no_grad():
        return mean(evaluate_heldout(recipe, policy, heldout, scorer).scores["exact"]).value


def asked(preset: str, more: list[str]) -> list[str]:
    """The changes to the recipe that a preset is trained with."""
    return [f"objective={{preset: {preset}}}", "threads=1", *BESIDE.get(preset, []), *more]


def measured(preset: str, seed: int, tokens: int, folder: Path, more: list[str]) -> dict[str, float]:
    """Tokens, iterations, and accuracy after them, of one preset and seed; kept in result.json."""
    place = folder / "result.json"
    if place.is_file():
        return json.loads(place.read_text(encoding="utf-8"))
    changes = [*asked(preset, more), f"seed={seed}"]
    trained = [*changes, *KEPT, f"output={folder}", "train.schedule=constant"]
    iterations, found = FIRST, list[float]()
    while (not found or found[-1] < tokens) and len(found) < MOST:
        recipe = load("tiny_lm_grpo", [*trained, f"train.iterations={iterations}"])
        run(recipe, Console(RichConsole(quiet=True)), resume=folder if found else None)
        found = drawn(folder)
        needed = math.ceil((tokens - found[-1]) / (found[-1] / len(found)))
        iterations = min(MOST, len(found) + max(1, needed))
    last = next((i for i, total in enumerate(found, 1) if total >= tokens), len(found))
    result = {"tokens": found[last - 1], "iterations": last, "after": accuracy(changes, (folder, str(last)))}
    place.write_text(json.dumps(result), encoding="utf-8")
    return result


def main() -> None:
    """Measures and prints the table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--only", default=PRESETS)
    parser.add_argument("--seeds", default="0,1,2")
    parser.add_argument("--tokens", type=int, default=30_000)
    parser.add_argument("--output", type=Path, default=Path("runs/presets"))
    parser.add_argument("changes", nargs="*")
    given = parser.parse_args()
    seeds = [int(seed) for seed in given.seeds.split(",")]
    chosen = given.only.split(",")
    print(f"before: {accuracy(asked(chosen[0], given.changes)):.3f}", flush=True)
    print("| preset | drawn tokens | greedy accuracy on 256 held-out problems, seeds " + given.seeds + " | mean |")
    print("|---|---|---|---|")
    for preset in chosen:
        places = {seed: given.output / f"{preset}-{seed}" for seed in seeds}
        rows = [measured(preset, seed, given.tokens, places[seed], given.changes) for seed in seeds]
        tokens = f"{min(r['tokens'] for r in rows):,.0f} to {max(r['tokens'] for r in rows):,.0f}"
        each = ", ".join(f"{r['after']:.3f}" for r in rows)
        average = sum(r["after"] for r in rows) / len(rows)
        print(f"| `{preset}` | {tokens} | {each} | {average:.3f} |", flush=True)


if __name__ == "__main__":
    main()
