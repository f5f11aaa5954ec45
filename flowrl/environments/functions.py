"""Plain functions as an environment: a turn with calls goes on with what they give, a turn without any is final."""

import json
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import torch

from flowrl.contracts import Call, Context, ModelsFault, Prompt, Said, Schema, Shown
from flowrl.environments.schemas import Tool, tool_of
from flowrl.names import UserError


class Functions:
    """An environment of tools. tools: functions, or objects that are called (see schemas.tool_of).

    most: calls that are run of one turn; the model is told that it asked for too many (None: all are run). faults: what
    tools raise, beside ModelsFault, where the call was wrong. Raises UserError for two of one name.
    """

    def __init__(
        self,
        tools: Sequence[Callable[..., Any] | Tool],
        *,
        most: int | None = None,
        faults: tuple[type[Exception], ...] = (),
    ):
        made = [tool if isinstance(tool, Tool) else tool_of(tool) for tool in tools]
        self.named, self.most, self.faults = {tool.name: tool for tool in made}, most, (ModelsFault, *faults)
        if len(self.named) < len(made):
            twice = next(t.name for t in made if sum(t.name == other.name for other in made) > 1)
            raise UserError(f"two tools are called {twice!r}; a model cannot tell them apart: rename one")

    def tools(self) -> list[Schema]:
        """What the model is told of each."""
        return [tool.schema for tool in self.named.values()]

    def start(self, prompt: Prompt, seed: int) -> "Talk":
        """A conversation whose tools share a context."""
        return Talk(self, Context(prompt, seed, list(prompt.media)))


class Talk:
    """An episode of `Functions`."""

    def __init__(self, of: Functions, context: Context):
        self.of, self.context = of, context

    def step(self, said: Said) -> list[Shown] | None:
        """What the calls of the turn give, a message each; None where it has none."""
        if not said.calls:
            return None
        most = len(said.calls) if self.of.most is None else self.of.most
        return [self._answer(call, i < most) for i, call in enumerate(said.calls)]

    def outcome(self) -> Mapping[str, float]:
        """What the tools noted in the context."""
        return dict(self.context.outcome)

    def _answer(self, call: Call, within: bool) -> Shown:
        tool = self.of.named.get(call.name)
        wrong = call.error if within else f"not run: at most {self.of.most} calls a turn"
        if wrong is None and tool is None:
            wrong = f"there is no tool {call.name!r}, only {', '.join(self.of.named) or 'none'}"
        if wrong is None and tool is not None:
            wrong = tool.misfit(call.arguments)
        if wrong is None and tool is not None:
            try:
                message = as_message(tool(call.arguments, self.context), call.name)
            except self.of.faults as error:
                wrong = str(error) or type(error).__name__
            else:
                self.context.pictures += message.pictures
                return message
        return Shown(f"Error: {wrong}", name=call.name or None, error=wrong)


def as_message(value: Any, name: str | None = None) -> Shown:
    """What a tool gave, as a message: text, numbers and JSON as text; a picture, or a list of texts and pictures.

    Raises TypeError for anything else.
    """
    if isinstance(value, Shown):
        return Shown(value.text, tuple(value.pictures), value.role, value.name or name, value.error)
    if is_picture(value):
        return Shown("", (value,), name=name)
    if isinstance(value, list | tuple) and any(map(is_picture, value)):
        texts = [as_text(one) for one in value if not is_picture(one)]
        return Shown("\n".join(texts), tuple(filter(is_picture, value)), name=name)
    return Shown(as_text(value), name=name)


def as_text(value: Any) -> str:
    """Text as it is, nothing as no text, all else as JSON. Raises TypeError for what is none."""
    if value is None:
        return ""
    return value if isinstance(value, str) else json.dumps(value, ensure_ascii=False)


def is_picture(value: Any) -> bool:
    """Whether a value is a PIL image or float [3, H, W]."""
    if isinstance(value, torch.Tensor):
        return value.ndim == 3 and value.is_floating_point()
    return any(of.__module__.partition(".")[0] == "PIL" for of in type(value).__mro__)
