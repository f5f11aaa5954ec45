"""What `flowrl serve-rewards` refuses before it starts, each in one line."""

import asyncio
import socket
from pathlib import Path
from typing import Any

import pytest
import yaml

from cli_support import call
from flowrl.names import UserError
from flowrl.recipe import load as recipe
from flowrl.recipe.errors import RecipeError
from flowrl.serve import config
from flowrl.serve.ledger import ConflictError, RequestLedger
from flowrl.serve.pool import WorkerPool

JPEG = {"jpeg": {"use": "jpeg_compressibility"}}


def written(folder: Path, **values: Any) -> str:
    path = folder / "serve.yaml"
    path.write_text(yaml.safe_dump({"rewards": JPEG} | values))
    return str(path)


@pytest.mark.parametrize(
    ("values", "place", "told"),
    [
        ({"serve": {"prot": 1}}, "serve.prot", "did you mean 'port'"),
        ({"serve": {"port": 99999}}, "serve.port", "[0, 65535]"),
        ({"serve": {"workers": 0}}, "serve.workers", ">= 1"),
        ({"serve": {"token_env": "not a name"}}, "serve.token_env", "the name of an environment variable"),
        ({"rewards": {}}, "rewards", "names mapped to"),
        ({"rewards": {"a": {"use": "jpeg_compresibility"}}}, "rewards.a.use", "did you mean 'jpeg_compressibility'"),
        ({"rewards": {"a": {"use": "shapes", "args": {"stric": 1}}}}, "rewards.a.args.stric", "did you mean 'strict'"),
        ({"reward": JPEG}, "reward", "did you mean 'rewards'"),
    ],
)
def test_a_mistake_is_one_line(tmp_path: Path, values: dict, place: str, told: str):
    with pytest.raises(RecipeError) as caught:
        config.load(written(tmp_path, **values))
    assert caught.value.place == place and told in str(caught.value) and "\n" not in str(caught.value)


def test_a_recipe_is_served_as_it_is():
    served = config.load("tiny_flow_grpo", port=0, workers=3, host=None)
    assert served.rewards == recipe.load("tiny_flow_grpo").rewards
    assert served.serve == config.ServeSection(port=0, workers=3)
    with pytest.raises(RecipeError, match="config: got 'nowhere.yaml', accepted: a YAML file or a recipe"):
        config.load("nowhere.yaml")


def test_other_machines_need_a_token(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys):
    file = written(tmp_path, serve={"host": "0.0.0.0", "port": 0})
    code, out, err = call(capsys, monkeypatch, "serve-rewards", file)
    assert (code, out) == (2, "") and err.startswith(
        "flowrl: serve.token_env: missing, but 0.0.0.0 can be reached from"
    )
    for token, right in (("short", False), ("with a space in the middle", False), ("0123456789abcdef", True)):
        monkeypatch.setenv("MY_TOKEN", token)
        asked = config.ServeSection(host="0.0.0.0", token_env="MY_TOKEN")
        if right:
            assert config.read_token(asked) == token
        else:
            with pytest.raises(
                RecipeError, match="MY_TOKEN does not hold a token of at least 16.*openssl rand"
            ) as caught:
                config.read_token(asked)
            assert token not in str(caught.value)
    monkeypatch.delenv("MY_TOKEN")
    with pytest.raises(RecipeError, match="MY_TOKEN does not hold a token"):
        config.read_token(config.ServeSection(token_env="MY_TOKEN"))  # asked for, so needed on loopback, too
    assert config.read_token(config.ServeSection()) is None


def test_loopback_is_what_only_this_machine_reaches():
    assert config.is_loopback("127.0.0.1") and config.is_loopback("::1") and config.is_loopback("127.3.2.1")
    assert not any(map(config.is_loopback, ("0.0.0.0", "::", "192.168.0.7")))
    with pytest.raises(RecipeError, match="serve.host: got 'no such host', which has no address"):
        config.is_loopback("no such host")


def test_a_port_that_is_taken_is_named():
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = taken.getsockname()[1]
        with pytest.raises(UserError, match=f"serve.port: 127.0.0.1:{port} cannot be used .*give another port, or 0"):
            config.open_socket(config.ServeSection(port=port))


def test_a_reward_that_cannot_be_set_up_is_told(tmp_path: Path):
    args = {"format": "pickle", "url": "http://127.0.0.1:9"}
    served = config.load(written(tmp_path, rewards={"far": {"use": "remote", "args": args}}))
    with pytest.raises(UserError, match="reward 'far' .remote. cannot be set up: .*format png or safetensors"):
        asyncio.run(WorkerPool(served, print).start())


def test_the_ledger_does_work_once():
    async def play() -> None:
        ledger, done, release = RequestLedger(size=2), [], asyncio.Event()

        async def work(value: int) -> dict:
            done.append(value)
            await release.wait()
            if value < 0:
                raise RuntimeError("failed")
            return {"value": value}

        both = [asyncio.ensure_future(ledger.once("a", "digest", lambda: work(1))) for _ in range(2)]
        gone = asyncio.ensure_future(ledger.once("b", "digest", lambda: work(2)))
        await asyncio.sleep(0)
        gone.cancel()  # who waited is gone: the work is not
        with pytest.raises(ConflictError):
            await ledger.once("a", "another", lambda: work(3))
        release.set()
        assert await asyncio.gather(*both) == [{"value": 1}] * 2
        assert await ledger.once("b", "digest", lambda: work(4)) == {"value": 2} and done == [1, 2]
        for _ in range(2):  # a failure is tried again
            with pytest.raises(RuntimeError, match="failed"):
                await ledger.once("c", "digest", lambda: work(-1))
        for _ in range(2):  # without an id, each is work of its own
            await ledger.once(None, "digest", lambda: work(5))
        assert done == [1, 2, -1, -1, 5, 5]
        await ledger.once("d", "digest", lambda: work(6))
        await ledger.once("a", "digest", lambda: work(7))  # the oldest answer is forgotten
        assert done[-2:] == [6, 7]

    asyncio.run(play())


def test_the_command_is_listed(monkeypatch: pytest.MonkeyPatch, capsys):
    code, out, _ = call(capsys, monkeypatch, "--help")
    assert code == 0 and "serve-rewards" in out
