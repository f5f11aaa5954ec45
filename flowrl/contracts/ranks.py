"""The processes that train one model together, as those see them that tell each other something."""

from collections.abc import Sequence
from typing import Protocol, TypeVar

from torch import Tensor

T = TypeVar("T")


class Ranks(Protocol):
    """rank: the number of this process, from 0; size: how many there are; gathered: bytes that all of them have told
    each other so far, sums apart. All call the same methods in one order."""

    rank: int
    size: int

    @property
    def gathered(self) -> int:
        """See above."""
        ...

    def gather(self, value: T) -> list[T]:
        """What each rank gives, in their order; tensors come on the CPU. Raises RankError where one has failed."""
        ...

    def total(self, values: Sequence[Tensor]) -> None:
        """Replaces tensors, of the same shapes on all ranks, by their sums."""
        ...


class OneRank:
    """One process that trains alone."""

    rank, size, gathered = 0, 1, 0

    def gather(self, value: T) -> list[T]:
        """What this process gives."""
        return [value]

    def total(self, values: Sequence[Tensor]) -> None:
        """Leaves them as they are."""


ALONE = OneRank()
