"""The keys of a run over several processes."""

from flowrl.recipe.base import Strict, key


class ParallelKeys(Strict):
    """Several processes that train one model together, each on its own device (docs/scale.md).

    ranks: how many there have to be (null: as many as are started, by `--ranks N` or torchrun). Numbers of the recipe
    are those of all ranks together: train.prompts are shared out, and the run is the one that a single process does.
    wait: seconds that a rank waits for the slowest before the run ends, with everything saved.
    """

    ranks: int | None = key(None, "a whole number >= 1 or null", ge=1)
    wait: float = key(600.0, "a number > 0, in seconds", gt=0)
