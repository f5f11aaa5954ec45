"""What is remembered of encoders, up to so many bytes: what was not used for longest is forgotten first."""

from collections import OrderedDict
from collections.abc import Hashable, Iterator
from contextlib import contextmanager
from typing import Generic, TypeVar

Value = TypeVar("Value")


class Store(Generic[Value]):
    """Values by key.

    used: the keys that were asked for or stored since somebody emptied it. needed: keys that others make no room for.
    full: whether something found no room beside them since somebody said that it did. size: bytes of all values.
    """

    def __init__(self) -> None:
        self.used: set[Hashable] = set()
        self.needed: set[Hashable] = set()
        self.full = False
        self._kept: OrderedDict[Hashable, tuple[Value, int]] = OrderedDict()  # with bytes
        self.size = 0
        self._spare = False

    def __contains__(self, key: Hashable) -> bool:
        return key in self._kept

    def __getitem__(self, key: Hashable) -> Value:
        """The value, which now is the last to be forgotten."""
        self.touch(key)
        return self._kept[key][0]

    def touch(self, key: Hashable) -> None:
        """Makes a value the last to be forgotten."""
        self._kept.move_to_end(key)
        self.used.add(key)

    def put(self, key: Hashable, value: Value, size: int, limit: int) -> None:
        """Stores a value of `size` bytes and forgets others until all take `limit` at most, or it is alone."""
        self._kept[key] = value, size
        self.size += size
        self.used.add(key)
        while self.size > limit and len(self._kept) > 1:
            oldest = next((other for other in self._kept if other not in self.needed and other != key), None)
            if oldest is None:
                self.full = True
                oldest = key if self._spare else next(iter(self._kept))
            _, freed = self._kept.pop(oldest)
            self.size -= freed

    @contextmanager
    def sparing(self) -> Iterator[None]:
        """Within, what finds no room beside what is needed is itself forgotten."""
        self._spare = True
        try:
            yield
        finally:
            self._spare = False
