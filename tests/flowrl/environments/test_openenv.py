"""The environment openenv, against servers of the package itself on loopback; skipped without it."""

import sys
import threading
import time
from collections.abc import Iterator
from typing import Any

import pytest

from flowrl.contracts import Call, Prompt, Said, Unavailable

pytest.importorskip("openenv.core.generic_client")
import uvicorn
from openenv.core.env_server.http_server import create_fastapi_app
from openenv.core.env_server.interfaces import Environment
from openenv.core.env_server.types import Action, Observation, State

from flowrl.environments.plugins.openenv import openenv


class Guess(Action):
    """Guess the number."""

    number: int


class Heard(Observation):
    """What is said of a guess."""

    said: str = ""


class Numbers(Environment):
    """A number to be guessed, which comes from the seed."""

    SUPPORTS_CONCURRENT_SESSIONS = True

    def reset(self, seed: int | None = None, episode_id: str | None = None, **given: Any) -> Heard:
        self.number = int(given.get("number", (seed or 0) % 100))
        return Heard(said="Guess my number.")

    def step(self, action: Guess, timeout_s: float | None = None, **given: Any) -> Heard:
        over = action.number == self.number
        return Heard(said="higher" if action.number < self.number else "lower", reward=float(over), done=over)

    @property
    def state(self) -> State:
        return State()


def _served(app: Any) -> Iterator[str]:
    server = uvicorn.Server(uvicorn.Config(app, port=0, log_level="error"))
    thread = threading.Thread(target=server.run, daemon=True)
    thread.start()
    while not server.started:
        time.sleep(0.01)
    yield f"http://127.0.0.1:{server.servers[0].sockets[0].getsockname()[1]}"
    server.should_exit = True
    thread.join(10)


@pytest.fixture(scope="module")
def numbers() -> Iterator[str]:
    yield from _served(create_fastapi_app(Numbers, Guess, Heard, max_concurrent_envs=8))


@pytest.fixture(scope="module")
def tools() -> Iterator[str]:
    pytest.importorskip("fastmcp")
    from fastmcp import FastMCP
    from openenv.core.env_server.mcp_environment import MCPEnvironment
    from openenv.core.env_server.mcp_types import CallToolAction, CallToolObservation

    class Tools(MCPEnvironment):
        SUPPORTS_CONCURRENT_SESSIONS = True

        def __init__(self) -> None:
            mcp = FastMCP("tools")

            @mcp.tool
            def add(a: int, b: int) -> str:
                """Adds two numbers."""
                if b == 13:
                    raise RuntimeError("bad luck")
                return f"The sum is {a + b}."

            super().__init__(mcp)

        def reset(self, seed: int | None = None, episode_id: str | None = None, **given: Any) -> Observation:
            return Observation()

        def _step_impl(self, action: Any, timeout_s: float | None = None, **given: Any) -> Observation:
            raise ValueError(action)

        @property
        def state(self) -> State:
            return State()

    yield from _served(create_fastapi_app(Tools, CallToolAction, CallToolObservation, max_concurrent_envs=8))


def _said(name: str, **arguments: Any) -> Said:
    return Said("", (Call(name, arguments),))


def test_a_session_is_a_conversation(numbers: str):
    kind = openenv(url=numbers + "/", columns=["number"])
    (schema,) = kind.tools()
    assert schema["function"]["name"] == "act" and schema["function"]["parameters"]["required"] == ["number"]
    one = kind.start(Prompt("a", "", meta={"number": 7, "answer": 1}), 0)
    two = kind.start(Prompt("b", ""), 42)
    assert one.opening == "Guess my number."
    assert one.step(_said("act", number=5))[0].text == "higher" and two.step(_said("act", number=50))[0].text == "lower"
    assert "must be of type integer" in one.step(_said("act", number="six"))[0].text
    assert one.step(_said("act", number=7)) is None and two.step(_said("act", number=42)) is None
    assert one.outcome() == {"reward": 1.0, "actions": 2.0, "ended": 1.0}
    assert two.outcome()["reward"] == 1.0 and not two.end.alive


def test_the_servers_own_tools_are_the_models(tools: str):
    kind = openenv(url=tools)
    (schema,) = kind.tools()
    assert schema["function"]["name"] == "add" and schema["function"]["description"] == "Adds two numbers."
    session = kind.start(Prompt("a", ""), 0)
    assert session.step(_said("add", a=2, b=3))[0].text == "The sum is 5."
    with pytest.raises(RuntimeError, match="bad luck"):
        session.step(_said("add", a=2, b=13))
    session.outcome()
    forgiving = openenv(url=tools, faults=["execution_error"]).start(Prompt("a", ""), 0)
    assert "bad luck" in forgiving.step(_said("add", a=2, b=13))[0].text
    forgiving.outcome()


def test_a_missing_server_or_package_is_one_line(monkeypatch: pytest.MonkeyPatch):
    with pytest.raises(Unavailable, match="no server of OpenEnv answers at http://127.0.0.1:9 "):
        openenv(url="http://127.0.0.1:9")
    with pytest.raises(ValueError, match="accepted: execution_error"):
        openenv(url="http://127.0.0.1:9", faults=["all"])
    monkeypatch.setitem(sys.modules, "openenv.core.generic_client", None)
    with pytest.raises(Unavailable, match=r"flowrl-toolkit\[openenv\]"):
        openenv(url="http://127.0.0.1:9")
