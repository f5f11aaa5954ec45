"""What a proof is, and how it says that something does not hold."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from flowrl.checking.proofs.bench import Bench


class Failed(Exception):
    """A proof does not hold: what was measured, the likely cause, and what to do about it."""

    def __init__(self, measured: str, cause: str = "", remedy: str = ""):
        super().__init__(measured)
        self.measured, self.cause, self.remedy = measured, cause, remedy


@dataclass(frozen=True)
class Proof:
    """A fact to be shown. show: returns what it measured, or raises Failed. needs: titles without which it means
    nothing. applies: whether the recipe has what it is about."""

    title: str
    show: Callable[[Bench], str]
    needs: tuple[str, ...] = ()
    applies: Callable[[Bench], bool] = lambda bench: True


@dataclass(frozen=True)
class Finding:
    """What came of a proof: held True or False, or None where it was skipped because `measured` says why."""

    title: str
    held: bool | None
    measured: str
    cause: str = ""
    remedy: str = ""
    seconds: float = 0.0

    def sentence(self) -> str:
        """The finding in one line."""
        tail = [f"likely cause: {self.cause}"] if self.cause else []
        tail += [f"try: {self.remedy}"] if self.remedy else []
        return "; ".join([f"{self.title}: {self.measured}", *tail])
