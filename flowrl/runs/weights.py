"""The weights of a run that a command uses: the final ones, or those of one of its checkpoints.

Nothing heavy is imported until weights are loaded, so that a run without weights is refused at once.
"""

from pathlib import Path
from typing import Any

from flowrl.names import UserError

NAMED = ("final", "best", "last", "witness")
MARKED = ("best", "witness")  # files beside the checkpoints that hold the number of one


def final_weights(run: Path) -> Path:
    """lora/ or model/ of a run. Raises UserError if it has neither yet."""
    weights = next((run / name for name in ("lora", "model") if (run / name).is_dir()), None)
    if weights is None:
        raise UserError(f"{run}: the run has no weights yet (lora/ or model/); let it finish, or give its recipe")
    return weights


def check_weights(run: Path, which: str, raw: bool = False) -> None:
    """Raises UserError if a run does not have the requested weights; see `load_weights`."""
    if which not in NAMED and not which.isdigit():
        accepted = f"{', '.join(NAMED)}, or the number of a checkpoint"
        raise UserError(f"--weights: got {which!r}, accepted: {accepted}; correct it")
    if which == "final" and not raw:
        final_weights(run)
        return
    folder = run / "checkpoints"
    there = sorted(int(p.name) for p in folder.glob("*") if p.name.isdigit())
    asked = f"{which}{' --raw' if raw else ''}"
    if not there:
        raise UserError(f"--weights: got {asked}, but {run} has no checkpoints; use --weights final")
    if (which in MARKED and not (folder / which).is_file()) or (which.isdigit() and int(which) not in there):
        names = [n for n in NAMED if n not in MARKED or (folder / n).is_file()]
        accepted = ", ".join([*names, *map(str, there)])
        raise UserError(f"--weights: got {asked}, but {run} has no such checkpoint; accepted: {accepted}")


def load_weights(policy: Any, run: Path, which: str = "final", raw: bool = False) -> None:
    """Loads a run's weights into the policy of its recipe.

    which: "final" (as saved at the end of the run), "best" by held-out reward, "witness", the best by its witnesses
    (kept if `watch.on_hack` may return to it), "last", or the number of a checkpoint. raw: the weights without
    averaging, if the run averages (train.ema); only checkpoints hold them, so "final" means the last one's. Raises
    UserError if the run has no such weights.
    """
    check_weights(run, which, raw)
    from flowrl.policies import adapters
    from flowrl.runs.checkpoints import nonfinite_tensors
    from flowrl.runs.resume import restore_weights

    if which == "final" and not raw:
        _read_final(policy, final_weights(run))
    else:
        restore_weights(adapters.trainable_by_name(policy.modules), run, "last" if which == "final" else which, raw=raw)
    if bad := next(nonfinite_tensors(adapters.trainable_by_name(policy.modules)), None):
        raise UserError(f"--weights: {which} of {run} are not finite ({bad}); name others, for example best")


def _read_final(policy: Any, folder: Path) -> None:
    """Reads the final weights of a run. Raises UserError if the files are damaged or of another model."""
    from safetensors import SafetensorError

    from flowrl.policies import adapters

    try:
        adapters.restore(policy.source, policy.modules, folder)
    except UserError:
        raise
    except (SafetensorError, OSError, RuntimeError, ValueError, KeyError) as error:
        reason = " ".join(str(error).split())[:200]
        raise UserError(
            f"{folder}: its weights cannot be read ({type(error).__name__}: {reason}); they are damaged or belong to "
            "another model: use those of a checkpoint: --weights best or last"
        ) from error
