"""How far presets of tokens come with the same number of drawn tokens, on the task of tiny_lm_grpo.

    python benchmarks/language_presets.py [--only sapo,gspo] [--seeds 0,1,2] [--tokens 30000] [--output runs/presets]
                                          [KEY=VALUE ...]

Each preset trains tiny_lm_grpo with its own objective, at a constant learning rate (and with the given values), until
an iteration has drawn so many tokens, at most in 40 iterations; the weights of that iteration are evaluated, greedily,
on the 256 held-out problems. Prints a table for a page of the documentation: preset, tokens, accuracy of each seed
before and after. Runs that are in the output folder already are read, so that a table is added to.
"""

import argparse
import json
from pathlib import Path

import torch
from rich.console import Console as RichConsole

from flowrl.build import build_policy, build_scorer, set_up
from flowrl.core.evaluation import mean
from flowrl.reading.inputs import read_prompts
from flowrl.recipe.load import load
from flowrl.runs.console import Console
from flowrl.runs.heldout import evaluate_heldout
from flowrl.runs.start import run
from flowrl.runs.weights import load_weights

PRESETS = "grpo,sapo,cispo,gmpo,gspo,dapo,dr_grpo,rloo,opo,reinforce_pp,lite_ppo"
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


def measured(preset: str, seed: int, tokens: int, folder: Path, more: list[str]) -> dict[str, float]:
    """Tokens, iterations, and accuracy before and after, of one preset and seed; kept in result.json."""
    place = folder / "result.json"
    if place.is_file():
        return json.loads(place.read_text(encoding="utf-8"))
    changes = [f"objective={{preset: {preset}}}", f"seed={seed}", "threads=1", *more]
    trained = [*changes, *KEPT, f"output={folder}"]
    iterations, found = 4, list[float]()
    while (not found or found[-1] < tokens) and iterations <= 40:
        recipe = load("tiny_lm_grpo", [*trained, f"train.iterations={iterations}", "train.schedule=constant"])
        run(recipe, Console(RichConsole(quiet=True)), resume=folder if found else None)
        found, iterations = drawn(folder), iterations + 4
    last = next((i for i, total in enumerate(found, 1) if total >= tokens), len(found))
    recipe = load("tiny_lm_grpo", changes)
    set_up(recipe)
    policy, scorer, heldout = build_policy(recipe), build_scorer(recipe), read_prompts(recipe)[1]

    @torch.no_grad()
    def accuracy() -> float:
        return mean(evaluate_heldout(recipe, policy, heldout, scorer).scores["exact"]).value

    before = accuracy()
    load_weights(policy, folder, str(last))
    result = {"tokens": found[last - 1], "iterations": last, "before": before, "after": accuracy()}
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
    print("| preset | drawn tokens | greedy accuracy on 256 held-out problems, seeds " + given.seeds + " | mean |")
    print("|---|---|---|---|")
    for preset in given.only.split(","):
        rows = [measured(preset, s, given.tokens, given.output / f"{preset}-{s}", given.changes) for s in seeds]
        tokens = f"{min(r['tokens'] for r in rows):,.0f} to {max(r['tokens'] for r in rows):,.0f}"
        each = ", ".join(f"{r['after']:.3f}" for r in rows)
        average = sum(r["after"] for r in rows) / len(rows)
        print(f"| `{preset}` | {tokens} | {each} (from {rows[0]['before']:.3f}) | {average:.3f} |", flush=True)


if __name__ == "__main__":
    main()
