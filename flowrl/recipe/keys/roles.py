"""The keys of several adapters of one language model that answer a prompt together."""

from typing import Literal

from flowrl.recipe.base import Strict, key


class Roles(Strict):
    """Several LoRA adapters of one model that speak in turn about a prompt, and are trained in one run.

    names: who speaks, in this order, `rounds` times. hear: what is shown of what was said, all that was said before
    (before) or what was said in earlier rounds (rounds), so that those of a round speak independently. ask: what is
    then asked, a text with {question} and {said}, or a mapping of names to such texts (others are asked the question
    alone). line: of each contribution in {said}, a text with {text}, and {name} where it should be. adapters: each of
    the names has one, or each of the rounds, which its speakers share (MAPoRL's code).

    A contribution is one trained row, scored by the rewards like any completion, and compared with what the same
    speaker said in the same round of other discussions of the prompt; train.group counts discussions. share: whose
    rewards it gets, its own and those of the speaker's later rounds (own), its own and the means over all speakers in
    later rounds (all, as MAPoRL, arXiv:2502.18439), the mean over the speakers of the last round (team), or that of
    what is said last (last). discount: of own and all, what a later round counts by; they are divided by the sum of the
    discounts. Evaluations hold a discussion and score what is said last.
    """

    names: list[str] = key(..., "a list of two or more different words", min_length=2)
    rounds: int = key(1, "a whole number >= 1", ge=1)
    hear: Literal["before", "rounds"] = key("before", "before or rounds")
    ask: str | dict[str, str] = key(
        "{question}\n\nSo far was said:\n{said}\nWeigh this, and answer the question yourself.",
        "a text with {question} and {said}, or a mapping of names to such texts",
    )
    line: str = key("{name}: {text}\n", "a text with {text} in it")
    adapters: Literal["names", "rounds"] = key("names", "names or rounds")
    share: Literal["own", "all", "team", "last"] = key("all", "own, all, team or last")
    discount: float = key(1.0, "a number in [0, 1]", ge=0, le=1)

    @property
    def contributions(self) -> int:
        """How often something is said in a discussion."""
        return len(self.names) * self.rounds

    @property
    def labels(self) -> list[str]:
        """The names of the adapters, of which the first is that of a single policy."""
        return self.names if self.adapters == "names" else [f"round_{i + 1}" for i in range(self.rounds)]
