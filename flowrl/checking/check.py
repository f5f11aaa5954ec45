"""Proves, before a run, what the run assumes: one line for each fact, on the real model, leaving nothing behind.

    proofs of a kind of model, in order --> Finding each: held, failed with its likely cause, or skipped

A proof that depends on one that failed is skipped; all others are still made.
"""

import time
import traceback
from collections.abc import Callable, Iterator
from pathlib import Path

from flowrl.build import set_up
from flowrl.checking.proofs.bench import Bench
from flowrl.checking.proofs.proof import Proof, ProofError, ProofResult
from flowrl.kinds import kind_of
from flowrl.names import UserError
from flowrl.planning.duration import Duration, duration
from flowrl.recipe.errors import RecipeError
from flowrl.recipe.schema import Recipe


def check(
    recipe: Recipe, *, rows: int = 32, begin: Callable[[str], None] = lambda title: None
) -> Iterator[ProofResult | Duration]:
    """The result of each proof as it is made, and finally how long the recipe takes here, if that was measured.

    rows: about how many samples are drawn. begin is called with the title of each proof before it is made. Raises
    RecipeError if the recipe turns out not to fit the model.
    """
    set_up(recipe)
    proofs = kind_of(recipe).proofs
    bench = proofs.BENCH(recipe, rows=rows)
    failed: set[str] = set()
    for proof in proofs.PROOFS:
        if not proof.applies(bench):
            continue
        begin(proof.title)
        result = _skip_result(proof, failed) or _prove(proof, bench)
        if result.held is not True:
            failed.add(proof.title)
        yield result
    if bench.pace is not None:
        yield duration(recipe, bench.pace, len(bench.prompts[1]))


def _skip_result(proof: Proof, failed: set[str]) -> ProofResult | None:
    missing = [title for title in proof.needs if title in failed]
    return ProofResult(proof.title, None, f'skipped: depends on "{missing[0]}"') if missing else None


def _prove(proof: Proof, bench: Bench) -> ProofResult:
    """The result of one proof. An error in a user's own code is a failed proof, reported with its place and text."""
    start = time.perf_counter()
    try:
        measured = proof.show(bench)
    except RecipeError:
        raise
    except ProofError as failure:
        result = ProofResult(proof.title, False, failure.measured, failure.cause, failure.remedy)
    except UserError as error:  # its text says what to do
        result = ProofResult(proof.title, False, str(error))
    except Exception as error:
        result = _error_result(proof, error)
    else:
        result = ProofResult(proof.title, True, measured)
    return ProofResult(
        result.title, result.held, result.measured, result.cause, result.remedy, time.perf_counter() - start
    )


def _error_result(proof: Proof, error: Exception) -> ProofResult:
    text = " ".join(str(error).split())[:300]
    if "OutOfMemory" in type(error).__name__:
        remedy = "train.micro_batch=1, train.rollout_batch=1, train.gradient_checkpointing=true, offload=true"
        return ProofResult(proof.title, False, text, "this check's own small step does not fit the device", remedy)
    last = traceback.extract_tb(error.__traceback__)[-1]
    cause = f"an error in {Path(last.filename).name}, line {last.lineno} ({last.name})"
    remedy = "if that file is yours, fix it; otherwise report it with the recipe"
    return ProofResult(proof.title, False, f"{type(error).__name__}: {text}", cause, remedy)
