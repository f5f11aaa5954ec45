"""Calls of tools in what a model said: as its tokenizer's response template has them, else as JSON between tags."""

import json
import re
from collections.abc import Sequence
from typing import Any

from flowrl.contracts import Call, Said, Schema
from flowrl.untyped import Tokenizer

OPEN, CLOSE = "<tool_call>", "</tool_call>"
FORM = '{"name": NAME, "arguments": {...}}'


class Reader:
    """Reads a turn. tokenizer: one with a `response_template` is asked itself; tools: what the model was told of."""

    def __init__(self, tokenizer: Tokenizer, tools: Sequence[Schema] = ()):
        self.tokenizer, self.tools = tokenizer, list(tools)
        self.template = getattr(tokenizer, "response_template", None)

    def __call__(self, ids: Sequence[int], *, prompt: Sequence[int], end: int | None = None, cut: bool = False) -> Said:
        """The turn of these tokens, and the one that ended it, if one did; prompt: those that stood before it.

        Special tokens are left out of its text. A turn that a limit cut has no call: it was not said to its end.
        """
        text = self.tokenizer.decode(list(ids), skip_special_tokens=True, clean_up_tokenization_spaces=False)
        if cut:
            return Said(text, cut=True)
        ends = () if end is None else (end,)
        return Said(text, tagged_calls(text) if self.template is None else self._parsed([*ids, *ends], prompt))

    def _parsed(self, ids: Sequence[int], prompt: Sequence[int]) -> tuple[Call, ...]:
        try:
            message = self.tokenizer.parse_response(list(ids), prefix=list(prompt), tools=self.tools or None)
        except Exception as error:  # of whatever kind the template's parsers raise
            return (Call("", error=f"the call cannot be read: {' '.join(str(error).split())}"),)
        return tuple(_call(one.get("function", one)) for one in message.get("tool_calls") or ())


def tagged_calls(text: str) -> tuple[Call, ...]:
    """The calls between <tool_call> and </tool_call>, one JSON object each; what cannot be read is a wrong call."""
    found, rest = [], text
    while OPEN in rest:
        body, closed, rest = rest.partition(OPEN)[2].partition(CLOSE)
        if not closed:
            found.append(Call("", error=f"{CLOSE} is missing behind {OPEN}"))
            break
        try:
            found.append(_call(json.loads(body)))
        except (ValueError, RecursionError):
            found.append(Call("", error=f"what stands between {OPEN} and {CLOSE} is not JSON of the form {FORM}"))
    return tuple(found)


def _call(value: Any) -> Call:
    """A call from {"name", "arguments"}; the arguments may be written as text once more."""
    name = value.get("name") if isinstance(value, dict) else None
    if not isinstance(name, str):
        return Call("", error=f"a call has the form {FORM}")
    arguments = value.get("arguments", value.get("parameters", {}))
    if isinstance(arguments, str) and re.match(r"\s*\{", arguments):
        try:
            arguments = json.loads(arguments)
        except (ValueError, RecursionError):
            return Call(name, error="its arguments are not JSON")
    arguments = {} if arguments is None else arguments
    return Call(name, arguments) if isinstance(arguments, dict) else Call(name, error="its arguments are no object")
