"""Proves, before a run, what the run takes for granted: a line each, on the real model, leaving nothing behind.

    proofs of a kind of policy, in order --> Finding each: held, failed with its likely cause, or skipped

A proof that needs one that failed is skipped; all others are still shown.
"""

import time
import traceback
from collections.abc import Callable, Iterator
from pathlib import Path

from flowrl.build import set_up
from flowrl.checking.proofs import learning, sampling, surroundings, tokens
from flowrl.checking.proofs import rows as single_rows
from flowrl.checking.proofs.bench import Bench
from flowrl.checking.proofs.proof import Failed, Finding, Proof
from flowrl.checking.proofs.tokens import TokenBench
from flowrl.names import UserError
from flowrl.planning.duration import Duration, duration
from flowrl.recipe.errors import RecipeError
from flowrl.recipe.schema import Recipe


def _has_lora(bench: Bench) -> bool:
    return bench.recipe.lora is not None


PROMPTS = Proof("prompts load", surroundings.prompts)
FOLDER = Proof("output folder can be written", surroundings.folder)
REWARDS = Proof("rewards can be set up", surroundings.rewards_load)
MODEL = Proof("model loads and can be replayed", surroundings.model, (PROMPTS.title,))
DISK = Proof("disk holds the checkpoints", surroundings.disk, (FOLDER.title, MODEL.title))
UNTOUCHED = Proof("noise 0 equals the untouched pipeline", sampling.untouched, (MODEL.title,))
RATIO = Proof("ratio is 1 at every trained step", learning.ratio, (MODEL.title,))
ALONE = Proof("a row is the same in any company", single_rows.alone, (MODEL.title,))
GRADIENT = Proof("gradient arrives and is finite", learning.gradient, (MODEL.title,))
STATISTICS = Proof("noise keeps the sample statistics", sampling.statistics, (MODEL.title,))
SCORES = Proof("rewards score and vary within groups", surroundings.rewards, (REWARDS.title, MODEL.title))
MEMORY = Proof("memory suffices", surroundings.memory, (MODEL.title,))
UPDATE = Proof("one update changes the samples", learning.update, (GRADIENT.title,))
WAY_BACK = Proof("without adapters it draws as before", learning.way_back, (UPDATE.title,), applies=_has_lora)

BENCHES: dict[str, type[Bench]] = {"pipeline": Bench, "language": TokenBench}
# kind of policy -> its proofs, in order; a step that moves the weights comes after all that looks at them
PROOFS: dict[str, tuple[Proof, ...]] = {
    "pipeline": (
        PROMPTS,
        FOLDER,
        REWARDS,
        MODEL,
        DISK,
        UNTOUCHED,
        RATIO,
        ALONE,
        GRADIENT,
        STATISTICS,
        SCORES,
        MEMORY,
        UPDATE,
        WAY_BACK,
    ),
    "language": (
        PROMPTS,
        FOLDER,
        REWARDS,
        MODEL,
        DISK,
        Proof("greedy decoding is the model's own", tokens.untouched, (MODEL.title,)),
        Proof("ratio is 1 at every token", tokens.ratio, (MODEL.title,)),
        GRADIENT,
        Proof("completions end", tokens.completions, (MODEL.title,)),
        SCORES,
        Proof("memory suffices", tokens.memory, (MODEL.title,)),
        UPDATE,
        WAY_BACK,
    ),
}


def check(
    recipe: Recipe, *, rows: int = 32, begin: Callable[[str], None] = lambda title: None
) -> Iterator[Finding | Duration]:
    """A finding for each proof as it is made, and at the end how long the recipe takes here, where that was measured.

    rows: about how many samples are drawn. begin is told the title of a proof before it is looked at. Raises
    RecipeError where the model shows that the recipe does not fit it.
    """
    set_up(recipe)
    kind = "pipeline" if recipe.generation is None else "language"
    bench = BENCHES[kind](recipe, rows=rows)
    failed: set[str] = set()
    for proof in PROOFS[kind]:
        if not proof.applies(bench):
            continue
        begin(proof.title)
        finding = _skipped(proof, failed) or _shown(proof, bench)
        if finding.held is not True:
            failed.add(proof.title)
        yield finding
    if bench.pace is not None:
        yield duration(recipe, bench.pace, len(bench.prompts[1]))


def _skipped(proof: Proof, failed: set[str]) -> Finding | None:
    missing = [title for title in proof.needs if title in failed]
    return Finding(proof.title, None, f"skipped: needs that {missing[0]}") if missing else None


def _shown(proof: Proof, bench: Bench) -> Finding:
    """The finding of one proof. What a user's own code raises is a proof that does not hold, told by place and text."""
    start = time.perf_counter()
    try:
        measured = proof.show(bench)
    except RecipeError:
        raise
    except Failed as failure:
        found = Finding(proof.title, False, failure.measured, failure.cause, failure.remedy)
    except UserError as error:  # says itself what to do
        found = Finding(proof.title, False, str(error))
    except Exception as error:
        found = _raised(proof, error)
    else:
        found = Finding(proof.title, True, measured)
    return Finding(found.title, found.held, found.measured, found.cause, found.remedy, time.perf_counter() - start)


def _raised(proof: Proof, error: Exception) -> Finding:
    text = " ".join(str(error).split())[:300]
    if "OutOfMemory" in type(error).__name__:
        remedy = "train.micro_batch=1, train.rollout_batch=1, train.gradient_checkpointing=true, offload=true"
        return Finding(proof.title, False, text, "this check's own small step does not fit the device", remedy)
    last = traceback.extract_tb(error.__traceback__)[-1]
    cause = f"an error in {Path(last.filename).name}, line {last.lineno} ({last.name})"
    remedy = "if that file is yours, mend it; otherwise report it with the recipe"
    return Finding(proof.title, False, f"{type(error).__name__}: {text}", cause, remedy)
