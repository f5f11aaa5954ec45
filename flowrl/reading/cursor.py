"""A resumable draw of prompts: in passes, in equal shares of some kind, or by what the run remembers of them."""

import copy
import inspect
import json
import random
from collections import Counter, defaultdict
from collections.abc import Callable, Mapping, Sequence
from typing import Any

from flowrl.contracts import Prompt
from flowrl.reading.choices import ranks
from flowrl.reading.prompt_lines import PromptError, text_hash
from flowrl.reading.prompt_memory import Observed, PromptMemory, Turn
from flowrl.untyped import JSON


class Cursor:
    """A deterministic endless draw of prompts: what `take` returns depends on the seed, the position, n, and what was
    observed before, alone.

    A pass goes through all prompts in a new order (shuffle false: in their own); a draw that the rest of a pass cannot
    fill starts the next pass, so that the prompts of a draw are always distinct. With `balance`, a key of the prompts'
    meta, each draw takes every value of it equally often, the remainder at random, and there are no passes.

    choose: a function of choices.py, or one of a user's own, with these arguments. A prompt whose turn it is is passed
    over by the chance that it gives; draws then go on across the end of a pass. If two whole passes do not fill a draw,
    those passed over fill it up, in their order.

    drawn: the draws since something was observed last: those of the iteration that is under way.
    """

    def __init__(
        self,
        prompts: Sequence[Prompt],
        *,
        seed: int,
        balance: str | None = None,
        shuffle: bool = True,
        choose: Callable[..., tuple[float, str]] | None = None,
        arguments: Mapping[str, Any] | None = None,
    ):
        self.prompts, self.seed, self.balance, self.shuffle = list(prompts), seed, balance, shuffle
        self.position, self.drawn = 0, list[list[Prompt]]()
        self.memory, self._iteration = PromptMemory(), 0
        self._choose, self._given, self._adapted = choose, _arguments(choose, arguments or {}), dict[str, float]()
        self._passed: Counter[str] = Counter()
        self._ranks = self._ranked(self._given.get("by"))
        self._classes: dict[str, list[int]] = defaultdict(list)
        for i, prompt in enumerate(self.prompts if balance is not None else ()):
            if balance not in prompt.meta:
                known = ", ".join(prompt.meta) or "nothing"
                raise PromptError(f"prompts.balance: {balance!r} is not in the meta of {prompt.text!r}, only {known}")
            self._classes[json.dumps(prompt.meta[balance], sort_keys=True)].append(i)
        self._digest = text_hash("\n".join(p.id for p in self.prompts))

    def take(self, n: int) -> list[Prompt]:
        """The next n prompts, all distinct. Raises PromptError when there are fewer."""
        if not 1 <= n <= len(self.prompts):
            accepted = f"1 to {len(self.prompts)}, the number of prompts"
            raise PromptError(f"train.prompts: got {n}, accepted: {accepted}; lower it")
        if self._choose is not None:
            chosen = self._take_chosen(n, self._choose)
        else:
            chosen = self._take_in_order(n) if self.balance is None else self._take_balanced(n)
        self.drawn.append([self.prompts[i] for i in chosen])
        return list(self.drawn[-1])

    def copy(self) -> "Cursor":
        """A draw that goes on from here by itself. It remembers what this one does."""
        other = copy.copy(self)
        other.drawn, other._passed, other._adapted = [], Counter(), dict(self._adapted)
        other._choose = copy.deepcopy(self._choose)  # one of a user's own may keep a state
        return other

    def observe(self, observed: Observed) -> dict[str, float]:
        """Remembers the rewards of the prompts of an iteration that is done; returns metrics of the draw.

        prompts/seen is the share of all prompts that were ever drawn and scored. Of a choice, prompts/passed_over/*
        counts the prompts that the iteration's draws passed over, by reason, prompts/brought_back those that had to
        fill up a draw, and choose/* has the arguments that it adapts.
        """
        self.memory.observe(observed)
        self._iteration, self.drawn = self._iteration + 1, []
        metrics = {"prompts/seen": len(self.memory) / len(self.prompts)}
        if self._choose is None:
            return metrics
        metrics |= {f"prompts/{what}": float(number) for what, number in sorted(self._passed.items())}
        metrics["prompts/brought_back"] = float(self._passed["brought_back"])
        self._passed.clear()
        if (adapt := getattr(self._choose, "adapt", None)) is not None:
            self._adapted |= adapt(self._arguments, [mean for mean, _ in observed.values() if mean == mean])
            metrics |= {f"choose/{name}": value for name, value in self._adapted.items()}
        return metrics

    @property
    def _arguments(self) -> dict[str, Any]:
        return self._given | self._adapted

    def _ranked(self, by: str | None) -> list[float]:
        """The share of prompts that are easier than each by a number of their meta, or by the length of their text."""
        if by is None:
            return [0.0] * len(self.prompts)
        values = [p.meta.get(by, len(p.text) if by == "length" else None) for p in self.prompts]
        for prompt, value in zip(self.prompts, values, strict=True):
            if isinstance(value, bool) or not isinstance(value, int | float):
                known = ", ".join(k for k, v in prompt.meta.items() if isinstance(v, int | float)) or "nothing"
                raise PromptError(
                    f"prompts.choose.by: {by!r} is no number in the meta of {prompt.text!r}; accepted: length, {known}"
                )
        return ranks([float(value) for value in values if value is not None])

    def _order(self, epoch: int) -> list[int]:
        order = list(range(len(self.prompts)))
        if self.shuffle:
            random.Random(f"{self.seed}/pass {epoch}").shuffle(order)
        return order

    def _take_in_order(self, n: int) -> list[int]:
        total = len(self.prompts)
        epoch, offset = divmod(self.position, total)
        if offset + n > total:
            epoch, offset = epoch + 1, 0
        self.position = epoch * total + offset + n
        return self._order(epoch)[offset : offset + n]

    def _take_chosen(self, n: int, choose: Callable[..., tuple[float, str]]) -> list[int]:
        total, chosen, passed = len(self.prompts), dict[int, None](), dict[int, None]()
        order, ordered = [], -1
        for _ in range(2 * total):
            if len(chosen) == n:
                break
            epoch, offset = divmod(self.position, total)
            if epoch != ordered:
                order, ordered = self._order(epoch), epoch
            i, prompt = order[offset], self.prompts[order[offset]]
            if i not in chosen:
                turn = Turn(prompt, self.memory[prompt.id], self._iteration, self._ranks[i])
                chance, reason = choose(turn, **self._arguments)
                if chance >= 1 or random.Random(f"{self.seed}/turn {self.position}").random() < chance:
                    chosen[i] = None
                else:
                    self._passed[f"passed_over/{reason}"] += 1
                    passed[i] = None
            self.position += 1
        back = [i for i in passed if i not in chosen][: n - len(chosen)]
        self._passed["brought_back"] += len(back)
        return [*chosen, *back]

    def _take_balanced(self, n: int) -> list[int]:
        rng = random.Random(f"{self.seed}/draw {self.position}")
        self.position += n
        pools = [rng.sample(members, len(members)) for members in self._classes.values()]
        chosen: list[int] = []
        while len(chosen) < n:
            rng.shuffle(pools)
            chosen += [pool.pop() for pool in pools if pool]
        return chosen[:n]

    def state_dict(self) -> dict[str, JSON]:
        """The position of the draw, what the run remembers, and a digest of the prompts it draws from."""
        state: dict[str, JSON] = {"position": self.position, "prompts": self._digest, "iteration": self._iteration}
        return state | {"memory": self.memory.state_dict(), "adapted": dict(self._adapted)}

    def load_state_dict(self, state: dict[str, JSON]) -> None:
        """Continues from a saved state. Raises PromptError if it was saved for other prompts."""
        if state["prompts"] != self._digest:
            raise PromptError("prompts.train: not the prompts this run began with; restore them or start a new run")
        self.position = state["position"]
        self.memory.load_state_dict(state.get("memory", {}))
        self._iteration, self._adapted = state.get("iteration", 0), dict(state.get("adapted", {}))
        self._passed.clear()
        self.drawn = []


def _arguments(choose: Callable[..., Any] | None, given: Mapping[str, Any]) -> dict[str, Any]:
    """The arguments of a choice, with the defaults of those that are not given."""
    parameters = () if choose is None else inspect.signature(choose).parameters.values()
    return {p.name: p.default for p in parameters if p.default is not p.empty} | dict(given)
