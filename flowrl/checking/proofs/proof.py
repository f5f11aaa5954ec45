"""A proof, its result, and the error that says it does not hold."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from flowrl.checking.proofs.bench import Bench


class ProofError(Exception):
    """A proof does not hold: what was measured, the likely cause, and what to do about it."""

    def __init__(self, measured: str, cause: str = "", remedy: str = ""):
        super().__init__(measured)
        self.measured, self.cause, self.remedy = measured, cause, remedy


@dataclass(frozen=True)
class Proof:
    """A fact to be proven. show: returns what it measured, or raises ProofError. needs: titles of the proofs that it
    depends on. applies: whether the proof is relevant to the recipe."""

    title: str
    show: Callable[[Bench], str]
    needs: tuple[str, ...] = ()
    applies: Callable[[Bench], bool] = lambda bench: True


@dataclass(frozen=True)
class ProofResult:
    """The result of a proof: held is True or False, or None if it was skipped, for the reason in `measured`."""

    title: str
    held: bool | None
    measured: str
    cause: str = ""
    remedy: str = ""
    seconds: float = 0.0

    def sentence(self) -> str:
        """The result in one line."""
        tail = [f"likely cause: {self.cause}"] if self.cause else []
        tail += [f"try: {self.remedy}"] if self.remedy else []
        return "; ".join([f"{self.title}: {self.measured}", *tail])
