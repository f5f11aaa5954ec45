"""Chats of OpenAI's form: into a chat template, and calls of tools out of what was drawn."""

import json
import tempfile
import uuid
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from flowrl.engines.pictures import has_pictures, prompt_of
from flowrl.engines.service import Completion, PolicyService, RefusedError
from flowrl.environments.calls import OPEN, Reader
from flowrl.policies.language.media.inputs import Inputs

Message = dict[str, Any]


def chat_ids(
    service: PolicyService, messages: Sequence[Message], tools: Sequence[Message], more: Message | None = None
) -> tuple[list[int], Inputs | None]:
    """(ids, media) of a chat, by the template and the system message of the served recipe. more: of the template.

    Raises RefusedError for messages that are no texts, and for tools that the template does not tell of; PolicyError
    for a chat that the template refuses, or without a template.
    """
    policy = service.policy
    encode = policy.encode
    if tools or more:
        arguments = encode.arguments | (more or {}) | ({"tools": list(tools)} if tools else {})
        encode = policy.encoder(template=encode.chat, system=encode.system, arguments=arguments)
        if tools and not encode.shows_arguments():
            raise RefusedError(400, "tools: the model's chat template does not tell of them; say it in a message")
    if has_pictures(messages):
        with tempfile.TemporaryDirectory(prefix="flowrl-pictures-") as folder:
            try:
                return encode.row(prompt_of(messages, Path(folder)), policy.stop)
            except (ValueError, KeyError, TypeError) as error:  # a PolicyError is a ValueError
                raise RefusedError(400, f"messages: {' '.join(str(error).split())[:300]}") from error
    return encode("", policy.stop, [_message(i, message) for i, message in enumerate(messages)]), None


def reply(service: PolicyService, one: Completion, ids: Sequence[int], tools: Sequence[Message]) -> Message:
    """The assistant's message: its text, and the calls of the tools that it was told of, where they can be read."""
    calls = ()
    if tools:
        own, end = (one.ids[:-1], one.ids[-1]) if isinstance(one.stopped_by, int) else (one.ids, None)
        read = Reader(service.policy.tokenizer, tools)
        calls = read(own, prompt=list(ids), end=end, cut=one.reason == "length").calls
    if not calls or any(call.error is not None for call in calls):
        return {"role": "assistant", "content": one.text}
    made = [
        {
            "id": f"call_{uuid.uuid4().hex}",
            "type": "function",
            "function": {"name": call.name, "arguments": json.dumps(dict(call.arguments))},
        }
        for call in calls
    ]
    return {"role": "assistant", "content": one.text.partition(OPEN)[0].strip() or None, "tool_calls": made}


def _message(number: int, message: Message) -> Message:
    """A message whose content is a text, and the arguments of whose calls are objects, as templates take them."""
    place, content = f"messages.{number}", message.get("content")
    if isinstance(content, list):
        if other := next((part for part in content if part.get("type") != "text"), None):
            raise RefusedError(400, f"{place}.content: got {other.get('type')!r}; accepted: parts of type text")
        content = "".join(part["text"] for part in content)
    if not isinstance(message.get("role"), str) or not isinstance(content, str | None):
        raise RefusedError(400, f"{place}: accepted: a role and a content, texts")
    made = {**message, "content": content or ""}
    if calls := message.get("tool_calls"):
        made["tool_calls"] = [_with_object(f"{place}.tool_calls", call) for call in calls]
    return made


def _with_object(place: str, call: Message) -> Message:
    function = dict(call.get("function", {}))
    if isinstance(function.get("arguments"), str):
        try:
            function["arguments"] = json.loads(function["arguments"] or "{}")
        except ValueError:
            raise RefusedError(400, f"{place}: arguments are not JSON") from None
    return {**call, "function": function}
