"""Has the prompts of an iteration encoded before anything is drawn, while no denoiser is on the device.

The pipeline is called for each prompt alone and stopped where it first asks its denoiser, so that whatever it encodes
is what it will ask for again: texts, their negative, pictures. Encoders that have come for a prompt also encode those
that are coming, for as long as these find room beside what is needed sooner.
"""

from collections.abc import Hashable, Iterable, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from typing import TYPE_CHECKING, Any

from torch import Tensor

from flowrl.contracts import Prompt
from flowrl.policies.noise import Key
from flowrl.policies.pipelines.encoding.store import Store
from flowrl.policies.pipelines.steps.intercepted import EndOfWalk, Step
from samplers.plan import OwnTable

if TYPE_CHECKING:
    from flowrl.policies.pipelines.calls.passes import PipelinePasses


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


class Encoded:
    """Which results of encoders each prompt needs, and whether all of them are remembered.

    stores: where results are kept. Prompts that are encoded alike are one.
    """

    def __init__(self, stores: Sequence[Store[Any]]):
        self._stores = stores
        self._needs: dict[str, list[set[Hashable]]] = {}  # by what a prompt is encoded of: keys in each store

    def has(self, prompt: Prompt) -> bool:
        """Whether nothing has to be encoded for this prompt; what it needs is then the last to be forgotten."""
        needs = self._needs.get(_inputs(prompt))
        if needs is None or not all(key in store for store, keys in self._pairs(needs) for key in keys):
            return False
        for store, keys in self._pairs(needs):
            for key in keys:
                store.touch(key)
            store.needed |= keys
        return True

    def begin(self) -> None:
        """Nothing is needed by now."""
        for store in self._stores:
            store.needed, store.full = set(), False

    @contextmanager
    def noting(self, prompt: Prompt) -> Iterator[None]:
        """Within, a prompt is encoded."""
        for store in self._stores:
            store.used = set()
        yield
        self._needs[_inputs(prompt)] = [store.used for store in self._stores]
        for store in self._stores:
            store.needed |= store.used

    @contextmanager
    def sparing(self) -> Iterator[None]:
        """Within, what finds no room beside what is needed is not kept."""
        with ExitStack() as stack:
            for store in self._stores:
                stack.enter_context(store.sparing())
            yield

    @property
    def is_full(self) -> bool:
        """Whether something found no room since the beginning."""
        return any(store.full for store in self._stores)

    def _pairs(self, needs: list[set[Hashable]]) -> Iterable[tuple[Store[Any], set[Hashable]]]:
        return zip(self._stores, needs, strict=True)


def encode_first(passes: "PipelinePasses", encoded: Encoded, prompts: Sequence[Prompt], steps: int) -> None:
    """Calls the pipeline for each prompt that is not encoded up to its denoiser, and for those that are coming;
    `passes` has been probed."""

    def stop(*_: Any) -> None:
        raise EndOfWalk

    def encode(prompt: Prompt) -> None:
        with encoded.noting(prompt):
            passes.run(_Beginning(), [prompt], [Key(0, prompt.id, 0)], steps=steps)

    encoded.begin()
    keeper = passes.keeper
    keeper.listener = stop
    try:
        for prompt in prompts:
            if not encoded.has(prompt):
                encode(prompt)
        with encoded.sparing():
            for prompt in passes.coming(prompts):
                if encoded.is_full:
                    break
                if not encoded.has(prompt):
                    encode(prompt)
    finally:
        keeper.listener = None


def nothing(prompts: Sequence[Prompt]) -> Iterable[Prompt]:
    """No prompt is known to come."""
    return ()


def _inputs(prompt: Prompt) -> str:
    """Equal for prompts that are encoded alike."""
    return repr((prompt.text, prompt.media, sorted(prompt.call.items())))
