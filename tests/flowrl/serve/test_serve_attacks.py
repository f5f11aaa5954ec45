"""What was done to a server of rewards to break it, again: each is bounded, and others are served meanwhile."""

import asyncio
import base64
import json
import socket
import struct
import time
import zlib
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from types import SimpleNamespace

import psutil
import pytest
import torch
from starlette.requests import ClientDisconnect

from flowrl.contracts import Prompt, Samples
from flowrl.serve import app
from flowrl.serve.connections import HEAD, ConnectionLimiter
from reward_models.parts.remote import bounds, wire
from reward_models.parts.remote.protocol import JSON, TENSORS
from reward_models.remote import remote
from serving import Running, pictures, reds, until

LIMITS = wire.RequestLimits(64, 100_000)


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Running]:
    sizes = {"max_items": 64, "max_pixels": 100_000, "max_bytes": 8_000_000}
    running = Running(tmp_path_factory.mktemp("a"), {"red": {"use": "served.red"}}, workers=1, queue=1, **sizes)
    yield running
    assert running.stop() == 0


def serves(server: Running, patience: float = 20.0) -> None:
    """A client of this machine has its scores, and soon."""
    begun, asked = time.monotonic(), remote(url=server.url, timeout=patience, patience=patience)
    assert torch.equal(asked(pictures(2)), reds(pictures(2)))
    assert time.monotonic() - begun < patience


def connect(server: Running) -> socket.socket:
    host, port = server.url.removeprefix("http://").split(":")
    return socket.create_connection((host, int(port)), timeout=30)


# ---------------------------------------------------------------------- connections


def test_silent_connections_shut_nobody_out(server: Running):
    silent = [connect(server) for _ in range(540)]
    try:
        serves(server)
        silent[0].settimeout(30)
        assert silent[0].recv(1) == b""  # 64 of an address: the longest silent has gone
    finally:
        for one in silent:
            one.close()


def test_slow_bodies_hold_no_places(server: Running):
    slow = [connect(server) for _ in range(6)]
    try:
        for one in slow:
            one.sendall(f"POST /v1/score HTTP/1.1\r\nHost: x\r\nContent-Type: {JSON}\r\nContent-Length: 999".encode())
            one.sendall(b"\r\n\r\n{")
        serves(server)
        assert server.health()["queue"]["inside"] == 0
    finally:
        for one in slow:
            one.close()


POST = b"POST /v1/score HTTP/1.1\r\nHost: x\r\n"
CUT = {
    "at once": b"",
    "in the head": POST + b"Content-Le",
    "in the body": POST + b"Content-Type: application/json\r\nContent-Length: 9\r\n\r\n{",
    "no HTTP": bytes(range(256)) * 8,
    "an endless head": b"GET / HTTP/1.1\r\nX: " + b"a" * 300_000,
    "two lengths": POST + b"Content-Length: 1\r\nContent-Length: 2\r\n\r\n{}",
    "chunks that are none": POST + b"Transfer-Encoding: chunked\r\n\r\nzz\r\n",
}


def test_cut_and_garbled_connections_leave_it_serving(server: Running):
    before = server.health()["processes"]
    for data in list(CUT.values()) * 5:
        with connect(server) as one:
            try:
                one.sendall(data)
            except OSError:  # it has hung up already
                continue
    serves(server)
    assert server.health()["processes"] == before


class Fake:
    """A connection of an address; `ended` once it is closed, `told` what was written."""

    def __init__(self, address: str):
        self.cycle = None
        self.told, self.ended = b"", False
        self.transport = SimpleNamespace(
            get_extra_info=lambda _: (address, 1), write=self._write, close=self._end, abort=self._end
        )

    def _write(self, data: bytes) -> None:
        self.told += data

    def _end(self) -> None:
        self.ended = True

    def ask(self) -> None:
        self.cycle = SimpleNamespace(response_complete=False)


def test_a_door_lets_the_longest_silent_go_first():
    async def visit() -> None:
        limiter = ConnectionLimiter(each=2, most=4)
        first, second, third = (Fake("10.0.0.1") for _ in range(3))
        for one in (first, second):
            limiter.enter(one)
        first.ask()
        limiter.heard(first, 10)
        limiter.enter(third)
        assert [one.ended for one in (first, second, third)] == [False, True, False]
        third.ask()
        limiter.enter(turned := Fake("10.0.0.1"))
        assert turned.ended and turned.told.startswith(b"HTTP/1.1 503") and not first.ended
        mapped, network = [Fake("::ffff:10.0.0.9"), Fake("2001:db8::1")], [Fake("2001:db8::2"), Fake("2001:db8::3")]
        for one in (*mapped, *network):
            limiter.enter(one)
        assert [one.ended for one in (*mapped, *network)] == [True, True, False, False]  # full, then a network's share
        limiter.leave(first)
        limiter.enter(Fake("10.0.0.1"))
        assert not third.ended
        talker = Fake("10.0.0.3")
        ConnectionLimiter(1, 1).heard(talker, HEAD + 1)  # one that it does not know
        assert not talker.ended
        own = ConnectionLimiter(1, 1)
        own.enter(talker)
        own.heard(talker, HEAD + 1)
        assert talker.ended

    asyncio.run(visit())


def test_a_door_ends_a_head_that_does_not_come():
    async def visit() -> None:
        limiter, silent, slow, busy = ConnectionLimiter(4, 4, patience=0.02), Fake("a::1"), Fake("a::1"), Fake("a::1")
        for one in (silent, slow, busy):
            limiter.enter(one)
        busy.ask()
        limiter.heard(slow, 1)
        while not (silent.ended and slow.ended):
            await asyncio.sleep(0.01)
        assert not busy.ended
        busy.cycle.response_complete = True  # its next head has as long again
        limiter.heard(busy, 1)
        while not busy.ended:
            await asyncio.sleep(0.01)

    asyncio.run(asyncio.wait_for(visit(), 30))


@pytest.mark.parametrize("rate", [0, 1])
def test_a_body_that_is_too_slow_is_given_up(monkeypatch: pytest.MonkeyPatch, rate: int):
    monkeypatch.setattr(app, "PATIENCE", 0.05)

    async def stream():
        while True:
            await asyncio.sleep(0.01 if rate else 30)
            yield b"x" * rate

    async def read() -> None:
        await app._read(SimpleNamespace(stream=stream), 10**6, 60.0)

    with pytest.raises(app.RefusedError, match="less than 65536 bytes a second") as caught:
        asyncio.run(asyncio.wait_for(read(), 20))
    assert caught.value.status == 408


def test_bodies_have_a_room_of_their_own():
    async def stream(number: int):
        for _ in range(number):
            yield b"x" * 1024

    async def hung_up():
        yield b"x"
        raise ClientDisconnect

    serve = SimpleNamespace(workers=1, queue=1, max_bytes=2048, timeout=5.0)
    service = app.Service(SimpleNamespace(serve=serve), None, None)

    async def visit() -> None:
        async with service._body(SimpleNamespace(stream=lambda: stream(2))) as (body, _):
            assert len(body) == service.held == 2048
            async with service._body(SimpleNamespace(stream=lambda: stream(1))):
                with pytest.raises(app.RefusedError, match="as many bytes") as caught:
                    async with service._body(SimpleNamespace(stream=lambda: stream(2))):
                        raise AssertionError("there was no room")
                assert caught.value.status == 503 and service.held == 3072
        with pytest.raises(app.RefusedError, match="hung up"):
            async with service._body(SimpleNamespace(stream=hung_up)):
                raise AssertionError("it was not there")
        assert service.held == 0

    asyncio.run(visit())


# ---------------------------------------------------------------------- bodies


def chunk(kind: bytes, data: bytes) -> bytes:
    return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))


def png(*sides: int, extra: bytes = b"", end: bool = True) -> bytes:
    """A PNG with a head for each side; the data fits the last."""
    heads = b"".join(chunk(b"IHDR", struct.pack(">IIBBBBB", side, side, 8, 2, 0, 0, 0)) for side in sides)
    rows = (b"\0" + bytes(3 * sides[-1])) * sides[-1]
    tail = chunk(b"IEND", b"") if end else b""
    return bounds.PNG + heads + extra + chunk(b"IDAT", zlib.compress(rows)) + tail


def asking(*files: bytes) -> bytes:
    items = [{"prompt": "p", "group": 0, "image": base64.b64encode(file).decode()} for file in files]
    return json.dumps({"version": 1, "items": items}).encode()


PNGS = {
    "two heads": png(8, 1000),
    "a smaller second head": png(1000, 8),
    "a head after the data": png(8) + png(1000)[8:],
    "no end": png(8, end=False),
    "a head of another length": bounds.PNG + struct.pack(">I", 14) + png(8)[12:],
    "no area": png(0),
    "a side too long": png(2**14 + 1),
}


@pytest.mark.parametrize("what", PNGS)
def test_a_png_is_the_size_that_it_tells(what: str):
    if what == "a head after the data":  # what follows the end is nobody's
        assert wire.decode(JSON, asking(PNGS[what]), LIMITS)[0].images.shape == (1, 3, 8, 8)
        return
    limits = wire.RequestLimits(64, 2**40) if what == "a side too long" else LIMITS
    with pytest.raises(wire.MalformedRequestError) as caught:
        wire.decode(JSON, asking(PNGS[what]), limits)
    assert caught.value.status in (413, 422)


def test_what_a_png_holds_beside_its_picture_is_not_read():
    bombs = chunk(b"zTXt", b"a\0\0" + zlib.compress(bytes(10**7))) + chunk(
        b"iCCP", b"a\0\0" + zlib.compress(bytes(10**7))
    )
    assert wire.decode(JSON, asking(png(8, extra=bombs)), LIMITS)[0].images.shape == (1, 3, 8, 8)
    assert len(bounds.unpack(png(8, extra=bombs))[2]) == len(png(8))


def test_a_second_head_kills_no_worker(server: Running):
    before = server.health()["processes"]
    for body in (asking(png(8, 1000)), asking(png(8), png(8, 4000))):
        assert server.ask("/v1/score", body, Content_Type=JSON)[0] == 422
    assert server.health()["processes"] == before
    serves(server)


TINY = b'{"version":1,"items":[' + b",".join([b'{"prompt":"","group":0,"text":""}'] * 190_000) + b"]}"  # 6.4 MB
MANY = {
    "items": (413, TINY),
    "escaped items": (413, TINY.replace(b"prompt", b"pr\\u006fmpt")),
    "values": (
        413,
        b'{"version":1,"items":[{"prompt":"","group":0,"text":"","meta":{"a":[' + b"0," * 3_200_000 + b"0]}}]}",
    ),
    "lists": (413, b"[" * 6_400_000),
    "texts": (413, b'{"a":[' + b'"",' * 2_200_000),
    "digits": (422, b'{"version":1,"items":[{"prompt":"","group":' + b"9" * 6_400_000 + b"}]}"),
    "escapes": (422, b'{"version":1,"items":["' + b"\\\\n" * 2_000_000),
}


@pytest.mark.parametrize("what", MANY)
def test_what_would_take_much_memory_is_not_parsed(what: str, monkeypatch: pytest.MonkeyPatch):
    status, body = MANY[what]
    if what != "escapes":  # one text, which no parser has trouble with

        def parsed(*_, **__):
            raise AssertionError("it was parsed")

        monkeypatch.setattr(wire.Head, "model_validate_json", parsed)
    header = json.dumps({"__metadata__": {"flowrl": body.decode()}}).encode()
    for kind, data in ((JSON, body), (TENSORS, struct.pack("<Q", len(header)) + header)):
        with pytest.raises(wire.MalformedRequestError) as caught:
            wire.decode(kind, data, LIMITS)
        assert caught.value.status == status
    if what in ("values", "lists", "texts"):  # as the header itself
        monkeypatch.setattr(json, "loads", lambda _: pytest.fail("it was parsed"))
        with pytest.raises(wire.MalformedRequestError):
            wire.decode(TENSORS, struct.pack("<Q", len(body)) + body, LIMITS)


def test_brackets_and_quotes_in_texts_do_not_count():
    text = '{"a":[{{{[[["\\\\' * 2000 + "9" * 1000
    prompts = [Prompt(str(i), text, meta={"a": [{"b": text}] * 30, text: 1}) for i in range(64)]
    samples = Samples(prompts, torch.arange(64), texts=[text] * 64)
    kind, body = wire.encode(samples, "png")
    assert wire.decode(kind, body, LIMITS)[0].prompts == prompts
    with pytest.raises(wire.MalformedRequestError, match="more than 63 items"):
        wire.decode(kind, body, wire.RequestLimits(63, 100_000))


def test_many_tiny_items_take_neither_time_nor_memory(server: Running):
    worker = psutil.Process(server.health()["processes"][0])
    before, begun = worker.memory_info().rss, time.monotonic()
    with ThreadPoolExecutor(2) as threads:
        asked = list(threads.map(lambda _: server.ask("/v1/score", TINY, Content_Type=JSON)[0], range(2)))
    assert asked == [413, 413] and time.monotonic() - begun < 5  # parsed, they take 180 MB and 6 s each
    assert worker.is_running() and worker.memory_info().rss - before < 100e6
    serves(server)


@pytest.mark.parametrize("value", [torch.nan, torch.inf, -torch.inf, 1e30, 1.5, -0.5])
def test_what_is_no_picture_has_no_score(server: Running, value: float):
    samples = pictures(4)
    samples.images[2, 1, 3, 3] = value
    body = wire.encode(samples, "safetensors", ["red"])[1]
    status, answer, _ = server.ask("/v1/score", body, Content_Type=TENSORS)
    assert status == 200 and [item["status"] for item in answer["items"]] == ["ok", "ok", "unscored", "ok"]
    assert answer["items"][2]["scores"] == {"red": None} and "pictures with values" in answer["items"][2]["reason"]
    until(lambda: server.health()["status"] == "ok", "a worker died")
