"""Which of a run's weights a command works with: those the run ended with, or those of one of its checkpoints.

Nothing heavy is imported until weights are loaded, so that a run without them is refused at once.
"""

from pathlib import Path
from typing import TYPE_CHECKING

from flowrl.names import UserError

if TYPE_CHECKING:
    from flowrl.learner import Learner
    from flowrl.policies.pipeline import PipelinePolicy

NAMED = ("final", "best", "last")


def final_weights(run: Path) -> Path:
    """lora/ or model/ of a run. Raises UserError where it has neither yet."""
    found = next((run / name for name in ("lora", "model") if (run / name).is_dir()), None)
    if found is None:
        raise UserError(f"{run}: the run has no weights yet (lora/ or model/); let it finish, or give its recipe")
    return found


def look(run: Path, which: str) -> None:
    """Raises UserError where a run cannot have the weights that are asked for; see `load_weights`."""
    if which not in NAMED and not which.isdigit():
        accepted = f"{', '.join(NAMED)}, or the number of a checkpoint"
        raise UserError(f"--weights: got {which!r}, accepted: {accepted}; correct it")
    if which == "final":
        final_weights(run)
    elif not any((run / "checkpoints").glob("*")):
        raise UserError(f"--weights: got {which}, but {run} has no checkpoints; use --weights final")


def load_weights(
    policy: "PipelinePolicy", learner: "Learner", run: Path, which: str = "final", raw: bool = False
) -> None:
    """Puts a run's weights into the policy.

    which: "final" (as saved at the end of the run), "best" by held-out reward, "last", or the number of a checkpoint.
    raw: those without averaging, where the run averages (train.ema); they are kept in checkpoints only. `learner` is
    the recipe's, over the policy's parameters: it says whether there is an average. Raises UserError where the run has
    no such weights.
    """
    look(run, which)
    if which == "final" and not (raw and learner.average is not None):
        from flowrl.policies import adapters

        adapters.restore(policy.source, policy.modules, final_weights(run))
    else:
        _load_checkpoint(policy, learner, run, which, raw)


def _load_checkpoint(policy: "PipelinePolicy", learner: "Learner", run: Path, which: str, raw: bool) -> None:
    """The weights of a checkpoint, averaged or raw; "final" asks for the last one's."""
    asked = f"{which}{' --raw' if raw else ''}"
    raise UserError(f"--weights: got {asked}, but {run} has no checkpoint to read it from; use --weights final")
