"""Proves, before a run, what the run takes for granted: a line each, on the real model, leaving nothing behind.

    proofs of a kind of model, in order --> Finding each: held, failed with its likely cause, or skipped

A proof that needs one that failed is skipped; all others are still shown.
"""

import time
import traceback
from collections.abc import Callable, Iterator
from pathlib import Path

from flowrl.build import set_up
from flowrl.checking.proofs.bench import Bench
from flowrl.checking.proofs.proof import Failed, Finding, Proof
from flowrl.kinds import kind_of
from flowrl.names import UserError
from flowrl.planning.duration import Duration, duration
from flowrl.recipe.errors import RecipeError
from flowrl.recipe.schema import Recipe


def check(
    recipe: Recipe, *, rows: int = 32, begin: Callable[[str], None] = lambda title: None
) -> Iterator[Finding | Duration]:
    """A finding for each proof as it is made, and at the end how long the recipe takes here, where that was measured.

    rows: about how many samples are drawn. begin is told the title of a proof before it is looked at. Raises
    RecipeError where the model shows that the recipe does not fit it.
    """
    set_up(recipe)
    proofs = kind_of(recipe).proofs
    bench = proofs.BENCH(recipe, rows=rows)
    failed: set[str] = set()
    for proof in proofs.PROOFS:
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
