"""Conversations of several turns: what a model says, what it is shown in return, and who answers it.

A turn is what the model draws without being interrupted. Behind each the environment is asked what to show; None means
that what was said is final. A plain function is a tool, and a few functions are an environment (flowrl/environments).
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from itertools import zip_longest
from typing import Any, Protocol

from flowrl.contracts.samples import Prompt

Picture = Any  # a PIL image, the path of one, or float [3, H, W] in [0, 1]
Schema = dict[str, Any]  # of a tool, as chat templates take it: transformers.utils.get_json_schema

# why a conversation ended: what was said was final; its limit of turns or of tokens; the environment failed
ENDS = ("answer", "turns", "length", "failed")


class ModelsFault(Exception):
    """A wrong call. Its text is shown to the model; all else that is raised is ours, and its row has no score."""


class Unavailable(Exception):
    """What a tool or an environment needs is not there; the text says what, and what to do.

    Raised where one is made, it ends the run before it starts; raised later, it leaves a row without a score.
    """


@dataclass(frozen=True)
class Call:
    """A tool that the model asks for. error: why it cannot be run as it was written, which the model is shown."""

    name: str
    arguments: Mapping[str, Any] = field(default_factory=dict)
    error: str | None = None


@dataclass(frozen=True)
class Said:
    """One turn of the model: its own text alone, the calls read from it, and whether a limit of tokens cut it."""

    text: str
    calls: tuple[Call, ...] = ()
    cut: bool = False


@dataclass(frozen=True)
class Shown:
    """One message that is put before the model next. role: tool, or user; name: of the tool that answers; error: why a
    call was wrong, which the text says too.

    Where a chat template has no tool role, or does not show pictures in it, the message is the user's.
    """

    text: str = ""
    pictures: tuple[Picture, ...] = ()
    role: str = "tool"
    name: str | None = None
    error: str | None = None


@dataclass
class Context:
    """What a tool may know of the conversation that calls it.

    A tool that has a parameter annotated with this type is given it; the model does not see that parameter. pictures:
    all that the model has been shown, those of the prompt first. state: for what the tools of a row keep between calls.
    outcome: numbers that a reward may read once the conversation has ended, by name.
    """

    prompt: Prompt
    seed: int
    pictures: list[Picture] = field(default_factory=list)
    state: dict[str, Any] = field(default_factory=dict)
    outcome: dict[str, float] = field(default_factory=dict)


class Episode(Protocol):
    """One conversation; it lives for one row, and is asked by one thread at a time."""

    def step(self, said: Said) -> Shown | Sequence[Shown] | None:
        """What the model is shown after a turn, in order; None: what it said is final."""
        ...

    def outcome(self) -> Mapping[str, float]:
        """Numbers that a reward may read once the conversation has ended, by name; NaN: not known."""
        ...


class Environment(Protocol):
    """Answers models. Its episodes may have an attribute `opening`, a text that the prompt then ends with."""

    def tools(self) -> Sequence[Schema]:
        """The tools that the model is told of, which may be none."""
        ...

    def start(self, prompt: Prompt, seed: int) -> Episode:
        """A conversation about a prompt. seed: for all that is drawn; the rows of a group have the same one."""
        ...


@dataclass(frozen=True)
class Conversation:
    """How a sample came about: the turns of the model, what was shown behind each, and how it ended (one of ENDS).

    shown: one entry a turn, empty behind the last; none where an agent asked as it liked. outcome: the environment's
    numbers. failure: why there are none, where the environment failed; such a sample has no score.
    """

    said: tuple[Said, ...]
    shown: tuple[tuple[Shown, ...], ...] = ()
    end: str = "answer"
    outcome: Mapping[str, float] = field(default_factory=dict)
    failure: str | None = None

    @property
    def exchanges(self) -> list[tuple[Said, tuple[Shown, ...]]]:
        """Each turn, and what was shown behind it."""
        return list(zip_longest(self.said, self.shown, fillvalue=()))  # pyright: ignore[reportReturnType]

    @property
    def text(self) -> str:
        """All that the model said, its turns one after the other."""
        return "".join(turn.text for turn in self.said)

    @property
    def calls(self) -> tuple[Call, ...]:
        """The calls of all turns, wrong ones too."""
        return tuple(call for turn in self.said for call in turn.calls)

    @property
    def asked(self) -> int:
        """How often the model asked a tool: its calls, or what tools answered where they need none."""
        return sum(max(len(said.calls), sum(m.name is not None for m in shown)) for said, shown in self.exchanges)

    @property
    def observed(self) -> str:
        """The text of all that the model was shown, which it did not say."""
        return "".join(message.text for messages in self.shown for message in messages)

    def readable(self) -> str:
        """The whole of it to be read: its parts, with a word in place of each picture."""
        return "\n".join(text + " (a picture)" * len(pictures) for text, pictures in self.parts())

    def parts(self) -> list[tuple[str, tuple[Picture, ...]]]:
        """What was said and shown, in order, each with its pictures: turns, what was shown behind each under who showed
        it, and what ended it where that was no answer."""
        found: list[tuple[str, tuple[Picture, ...]]] = []
        for turn, messages in self.exchanges:
            found.append((turn.text, ()))
            for message in messages:
                seen = f" {message.text}" if message.text else ""
                found.append((f"[{message.name or message.role}]{seen}", message.pictures))
        ends = {"answer": "", "failed": f"({self.failure})"}
        end = ends.get(self.end, f"(ended by its limit of {self.end})")
        return [*found, (end, ())] if end else found

    def written(self) -> str:
        """All of it as text, pictures by their number: equal for conversations that read the same."""
        shown = [[(m.role, m.name, m.text, len(m.pictures)) for m in messages] for messages in self.shown]
        return repr(([(t.text, t.cut) for t in self.said], shown, self.end, sorted(self.outcome.items())))
