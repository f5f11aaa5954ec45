"""Has the prompts of an iteration encoded before anything is drawn, while no denoiser is on the device.

The pipeline is called for each prompt alone and stopped where it first asks its denoiser, so that whatever it encodes
is what it will ask for again: texts, their negative, pictures.
"""

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

from torch import Tensor

from flowrl.contracts import Prompt
from flowrl.policies.noise import Key
from flowrl.policies.pipelines.intercepted_step import EndOfWalk, Step
from samplers.plan import OwnTable

if TYPE_CHECKING:
    from flowrl.policies.pipelines.passes import PipelinePasses


class _Beginning:
    """A walk of one row that ends where it begins."""

    rows, table = 1, OwnTable()

    def is_real(self, iteration: int) -> bool:
        """True, but no iteration is begun."""
        return True

    def skipped_state(self, iteration: int, stream: int) -> Tensor:
        """Never asked for."""
        raise AssertionError("nothing is skipped")

    def step(self, step: Step) -> Tensor:
        """Ends the walk: its denoiser was not asked."""
        raise EndOfWalk


def encode_first(passes: "PipelinePasses", prompts: Sequence[Prompt], steps: int) -> None:
    """Calls the pipeline for each prompt up to its denoiser; `passes` has been probed."""

    def stop(*_: Any) -> None:
        raise EndOfWalk

    keeper = passes.keeper
    keeper.listener = stop
    try:
        for prompt in prompts:
            passes.run(_Beginning(), [prompt], [Key(0, prompt.id, 0)], steps=steps)
    finally:
        keeper.listener = None


def same_inputs(prompt: Prompt) -> str:
    """Equal for prompts that are encoded alike."""
    return repr((prompt.text, prompt.media, sorted(prompt.call.items())))
