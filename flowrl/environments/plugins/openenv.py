"""Environments behind a server of OpenEnv (github.com/huggingface/OpenEnv), by the client of its package.

A server whose actions are calls of tools (its MCP environments) shows its own tools; of any other the model has one,
whose arguments are the fields of the server's action.
"""

import base64
import io
import json
import urllib.request
import weakref
from collections.abc import Mapping, Sequence
from typing import Any

from PIL import Image

from flowrl.contracts import Context, ModelsFault, Prompt, Said, Schema, Shown, Unavailable
from flowrl.environments.functions import Functions, Talk
from flowrl.environments.schemas import Tool
from flowrl.environments.tools.parts.packages import require

OURS = ("done", "reward", "metadata")  # fields of an observation that the model does not see
KINDS = ("execution_error", "invalid_args", "tool_not_found", "transport_error", "timeout")


class openenv:
    """A server of OpenEnv: one session of it is one conversation."""

    def __init__(
        self,
        *,
        url: str,
        columns: Sequence[str] = (),
        tool: str = "act",
        faults: Sequence[str] = ("invalid_args", "tool_not_found"),
        seconds: float = 60.0,
        most: int | None = 1,
    ):
        """Asks the server what can be done. Raises Unavailable without the package, or where no server answers.

        url: of the server. columns: of a prompt, that `reset` is given beside the seed. tool: what the one tool is
        called, of a server that has none of its own. faults: kinds of errors of such tools that are the model's
        mistake, of execution_error, invalid_args, tool_not_found, transport_error and timeout. seconds: that an answer
        may take. most: actions of a turn (null: any number).
        """
        self.package: Any = require("the environment openenv", "openenv.core.generic_client", "openenv")
        if wrong := [kind for kind in faults if kind not in KINDS]:
            raise ValueError(f"faults={wrong}; accepted: {', '.join(KINDS)}")
        self.url, self.columns, self.seconds, self.most = url.rstrip("/"), tuple(columns), seconds, most
        self.faults = frozenset(faults)
        try:
            with urllib.request.urlopen(f"{self.url}/schema", timeout=seconds) as answer:
                action: dict[str, Any] = json.load(answer)["action"]
            self.own = "tool_name" in action.get("properties", {})
            self.schemas = self._listed() if self.own else [_schema(tool, action)]
        except (OSError, ValueError, KeyError, RuntimeError) as error:
            raise Unavailable(
                f"no server of OpenEnv answers at {url} ({error}); start it, or correct the url"
            ) from error

    def tools(self) -> list[Schema]:
        """The tools of the server."""
        return self.schemas

    def start(self, prompt: Prompt, seed: int) -> "Session":
        """A session that was reset."""
        row = {name: prompt.meta[name] for name in self.columns if name in prompt.meta}
        client = self.client()
        return Session(self, Context(prompt, seed, list(prompt.media)), client, client.reset(seed=seed % 2**31, **row))

    def client(self) -> Any:
        """A connection of its own, whose calls wait for their answer."""
        return self.package.GenericEnvClient(base_url=self.url, message_timeout_s=self.seconds).sync()

    def _listed(self) -> list[Schema]:
        client = self.client()
        try:
            client.reset()
            listed = client.step({"type": "list_tools"}).observation["tools"]
        finally:
            client.close()
        return [
            {
                "type": "function",
                "function": {
                    "name": one["name"],
                    "description": one.get("description") or one["name"],
                    "parameters": one.get("input_schema")
                    or one.get("inputSchema")
                    or {"type": "object", "properties": {}},
                },
            }
            for one in listed
        ]


class Session(Talk):
    """One session. opening: what is observed at first; its outcome is the reward in all, and whether it ended."""

    def __init__(self, of: openenv, context: Context, client: Any, first: Any):
        tools = [Tool(s["function"]["name"], self._caller(s["function"]["name"]), s) for s in of.schemas]
        super().__init__(Functions(tools, most=of.most), context)
        self.kind, self.client, self.over = of, client, False
        self.end = weakref.finalize(self, client.close)
        self.opening = _read(first.observation).text
        context.outcome |= {"reward": 0.0, "actions": 0.0, "ended": 0.0}

    def step(self, said: Said) -> list[Shown] | None:
        """What comes of the actions of a turn; None where there is none, or the session is over."""
        answers = super().step(said)
        return None if self.over else answers

    def outcome(self) -> Mapping[str, float]:
        """The reward in all; the session is closed."""
        self.end()
        return dict(self.context.outcome)

    def _caller(self, name: str) -> Any:
        """What is done where a tool is called."""
        own = weakref.WeakMethod(self.act)  # a session that refers to itself would be closed late

        def call(**arguments: Any) -> Shown:
            act = own()
            assert act is not None
            return act(name, arguments)

        return call

    def act(self, name: str, arguments: Mapping[str, Any]) -> Shown:
        """Sends one action. Raises ModelsFault for an error that is the model's, RuntimeError for any other."""
        if self.over:
            raise ModelsFault("it is over")
        action = {"type": "call_tool", "tool_name": name, "arguments": dict(arguments)} if self.kind.own else arguments
        result = self.client.step(dict(action))
        numbers = self.context.outcome
        numbers |= {"reward": numbers["reward"] + float(result.reward or 0.0), "actions": numbers["actions"] + 1}
        numbers["ended"], self.over = float(bool(result.done)), bool(result.done)
        error = result.observation.get("error") if self.kind.own else None
        if error:
            said = str(error.get("message", error))
            raise ModelsFault(said) if error.get("error_type") in self.kind.faults else RuntimeError(said)
        return _read(result.observation["result"] if self.kind.own else result.observation)


def _schema(name: str, action: Mapping[str, Any]) -> Schema:
    """A tool whose arguments are the fields of an action."""
    fields = {field: of for field, of in action.get("properties", {}).items() if field != "metadata"}
    required = [field for field in action.get("required", ()) if field in fields]
    parameters = {"type": "object", "properties": fields, "required": required}
    about = action.get("description") or "Act, and see what comes of it."
    return {"type": "function", "function": {"name": name, "description": about, "parameters": parameters}}


def _read(value: Any) -> Shown:
    """What is observed: a text as it is, MCP's texts and pictures, all else as JSON, or its only text."""
    if isinstance(value, Mapping) and isinstance(value.get("content"), list):
        parts = [part for part in value["content"] if isinstance(part, Mapping)]
        texts = [str(part["text"]) for part in parts if part.get("type") == "text"]
        pictures = tuple(_picture(part["data"]) for part in parts if part.get("type") == "image")
        return Shown("\n".join(texts), pictures)
    if isinstance(value, Mapping):
        value = {name: one for name, one in value.items() if name not in OURS}
        if len(value) == 1 and isinstance(only := next(iter(value.values())), str):
            value = only
    return Shown(value if isinstance(value, str) else json.dumps(value, ensure_ascii=False))


def _picture(data: str) -> Image.Image:
    with Image.open(io.BytesIO(base64.b64decode(data)), formats=("PNG", "JPEG")) as opened:
        return opened.convert("RGB")
