"""`flowrl serve-rewards` as a process on loopback: right scores, or an answer that says why not, whatever comes."""

import base64
import io
import json
import os
import random
import signal
import socket
import struct
import zlib
from collections import Counter
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import psutil
import pytest
import torch
from PIL import Image

from flowrl.contracts import Samples
from reward_models.parts.remote import wire
from reward_models.parts.remote.protocol import JSON, TENSORS
from reward_models.remote import remote
from serving import TOKEN, Gate, Running, pictures, reds, until

REWARDS = {name: {"use": f"served.{name}"} for name in ("red", "above", "length")}
LIMITS = {"max_items": 64, "max_pixels": 100_000, "max_bytes": 2_000_000}


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Running]:
    running = Running(tmp_path_factory.mktemp("a"), REWARDS, token_env="SERVE_TOKEN", workers=2, queue=2, **LIMITS)
    yield running
    assert running.stop() == 0


@pytest.fixture(scope="module")
def impatient(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Running]:
    """A server with one worker and no patience, for what kills workers and for being killed itself."""
    running = Running(tmp_path_factory.mktemp("b"), REWARDS, workers=1, timeout=2.0, **LIMITS)
    yield running
    running.stop()


@pytest.fixture(autouse=True)
def _token(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("SERVE_TOKEN", TOKEN)


def client(*servers: Running, name: str = "red", **options) -> remote:
    return remote(url=[s.url for s in servers], name=name, token_env="SERVE_TOKEN", **options)


def body_of(samples: Samples, *names: str) -> bytes:
    return wire.encode(samples, "png", names or ["red"])[1]


# ---------------------------------------------------------------------- scores


def test_scores_are_those_of_the_reward_in_this_process(server: Running):
    samples = pictures(10)
    asked = client(server, batch=3)
    for order in (range(10), [7, 3, 9, 0]):
        assert torch.equal(asked(samples[order]), reds(samples)[list(order)])
    assert asked(samples[[]]).shape == (0,)
    floats = Samples(samples.prompts, samples.group, images=torch.rand(10, 3, 5, 7))
    assert torch.equal(client(server, format="safetensors", batch=4)(floats), reds(floats))
    assert (client(server)(floats) - reds(floats)).abs().max() < 0.5 / 255  # PNGs have 256 levels


def test_groups_stay_whole_and_texts_have_no_pixels(server: Running):
    samples = pictures(12, groups=4)
    shuffled = samples[[0, 4, 8, 1, 5, 9, 2, 6, 10, 3, 7, 11]]
    means = torch.stack([reds(shuffled)[shuffled.group == g].mean() for g in shuffled.group])
    grouped = client(server, name="above", batch=5)
    assert grouped.groupwise and torch.equal(grouped(shuffled), reds(shuffled) - means)
    assert grouped(pictures(3, groups=1)).isnan().all()  # each is alone: there is nothing to compare with
    with pytest.raises(ValueError, match="group of 4 samples, but a request holds 3; raise batch"):
        client(server, name="above", batch=3)(samples)
    texts = Samples(samples.prompts[:2], samples.group[:2], texts=["four", "é\n"])
    assert client(server, name="length")(texts).tolist() == [4, 2]


def test_what_cannot_be_scored_is_nan_and_takes_no_other_with_it(server: Running):
    good, mute, broken = pictures(3), pictures(1, nan=True), pictures(1, fail=True)
    prompts = [*good.prompts[:1], *mute.prompts, *good.prompts[1:], *broken.prompts]
    images = torch.cat([good.images[:1], mute.images, good.images[1:], broken.images])
    mixed = Samples(prompts, torch.arange(5), images=images)
    with pytest.warns(UserWarning, match="could not score 1 of 5 samples: RuntimeError: asked to fail"):
        scores = client(server)(mixed)
    assert scores.isnan().tolist() == [False, True, False, False, True]
    assert torch.equal(scores[[0, 2, 3]], reds(good))
    items = server.ask("/v1/score", body_of(mixed), Content_Type=JSON)[1]["items"]
    assert [item["status"] for item in items] == ["ok", "unscored", "ok", "ok", "error"]
    with pytest.raises(RuntimeError, match="could not score 1 of 1 samples: RuntimeError: asked to fail"):
        client(server)(broken)
    with_hole = Samples(good.prompts, good.group, images=good.images.clone())
    with_hole.images[1, 0, 0, 0] = torch.nan
    assert client(server)(with_hole).isnan().tolist() == [False, True, False]


# ---------------------------------------------------------------------- who may ask, and how much


def test_the_token_guards_scores_but_not_health(server: Running, monkeypatch: pytest.MonkeyPatch):
    for token in (None, "wrong", TOKEN + "x", TOKEN[:-1]):
        status, answer, headers = server.ask("/v1/score", body_of(pictures(1)), token, Content_Type=JSON)
        assert status == 401 and "token" in answer["error"] and headers["www-authenticate"] == "Bearer"
    assert server.ask("/v1/rewards", token=None)[0] == 401
    told = server.health()["rewards"]["above"]
    assert len(told.pop("identity")) == 64 and told == {"use": "served.above", "groupwise": True}
    monkeypatch.setenv("SERVE_TOKEN", "wrong")
    with pytest.raises(ValueError, match="401: missing or wrong token.*set token_env"):
        client(server)
    assert TOKEN not in server.complaints() + json.dumps(server.health())


def test_a_client_that_does_not_fit_is_told_at_once(server: Running):
    with pytest.raises(ValueError, match="no reward 'blue'; accepted: above, length, red"):
        client(server, name="blue")
    with pytest.raises(ValueError, match="several rewards, set name to one of above, length, red"):
        remote(url=server.url, token_env="SERVE_TOKEN")
    with pytest.raises(ValueError, match="404"):
        remote(url=server.url + "/elsewhere", token_env="SERVE_TOKEN")
    with pytest.raises(ValueError, match="a sample of 102400 pixels is more than the server takes"):
        client(server)(pictures(1, size=320))


def bomb(side: int) -> bytes:
    """A PNG of few bytes that claims side x side pixels."""

    def chunk(kind: bytes, data: bytes) -> bytes:
        return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))

    head = struct.pack(">IIBBBBB", side, side, 8, 2, 0, 0, 0)
    return wire.PNG + chunk(b"IHDR", head) + chunk(b"IDAT", zlib.compress(bytes(100_000))) + chunk(b"IEND", b"")


def picture(mode: str = "RGB", size: tuple[int, int] = (8, 8), form: str = "PNG") -> str:
    buffer = io.BytesIO()
    Image.new(mode, size).save(buffer, format=form)
    return base64.b64encode(buffer.getvalue()).decode()


def request(**changes) -> bytes:
    item = {"prompt": "p", "group": 0, "image": picture()} | changes.pop("item", {})
    return json.dumps({"version": 1, "rewards": ["red"], "items": [item]} | changes).encode()


REFUSED = {
    "no JSON": (422, b"\x80\x04pickled"),
    "empty": (422, b""),
    "deep": (422, b"[" * 100_000),
    "another version": (400, request(version=2)),
    "no version": (400, json.dumps({"items": []}).encode()),
    "no items": (422, request(items=[])),
    "unknown key": (422, request(evil=1)),
    "unknown reward": (404, request(rewards=["blue"])),
    "group is no number": (422, request(item={"group": "0"})),
    "group is too large": (422, request(item={"group": 2**63})),
    "media": (422, request(item={"media": ["secret.png"]})),
    "image and text": (422, request(item={"text": "t"})),
    "image and video": (422, request(item={"video": [picture()]})),
    "no base64": (422, request(item={"image": "!"})),
    "no PNG": (422, request(item={"image": picture(form="JPEG")})),
    "grey": (422, request(item={"image": picture("L")})),
    "alpha": (422, request(item={"image": picture("RGBA")})),
    "cut": (422, request(item={"image": base64.b64encode(base64.b64decode(picture())[:48]).decode()})),
    "bomb": (413, request(item={"image": base64.b64encode(bomb(60_000)).decode()})),
    "too many pixels together": (413, request(item={"image": None, "video": [picture(size=(250, 250))] * 2})),
    "sizes": (422, request(item={"image": None, "video": [picture(), picture(size=(9, 8))]})),
    "too many items": (413, body_of(pictures(65))),
    "too many bytes": (413, b"x" * 2_000_001),
}


@pytest.mark.parametrize("what", REFUSED)
def test_a_bad_request_is_refused(server: Running, what: str):
    status, body = REFUSED[what]
    before = server.health()["processes"]
    found, answer, _ = server.ask("/v1/score", body, Content_Type=JSON)
    assert found == status and answer["version"] == 1 and answer["error"], answer
    assert server.health()["processes"] == before  # no worker died of it


def test_other_paths_methods_and_types_are_refused(server: Running):
    assert server.ask("/v1/score", body_of(pictures(1)), Content_Type="application/x-pickle")[0] == 415
    assert server.ask("/v2/score", body_of(pictures(1)), Content_Type=JSON)[0] == 404
    assert server.ask("/v1/score")[0] == 405
    assert server.ask("/v1/score", body_of(pictures(1)), Content_Type=JSON, X_Request_Id="a b")[0] == 422


def fuzzed(number: int) -> Iterator[tuple[str, bytes]]:
    """Good requests with something broken, seeded."""
    draw = random.Random(0)
    good = {kind: body for kind, body in (wire.encode(pictures(2), form, ["red"]) for form in ("png", "safetensors"))}
    for _ in range(number):
        kind = draw.choice([JSON, TENSORS])
        body = bytearray(good[kind])
        manner, at = draw.randrange(5), draw.randrange(len(body))
        if manner == 0:
            body = body[:at]
        elif manner == 1:
            body[at : at + draw.randrange(1, 40)] = draw.randbytes(draw.randrange(40))
        elif manner == 2:
            for place in draw.choices(range(min(len(body), 400)), k=8):
                body[place] = draw.randrange(256)
        elif manner == 3:
            body = bytearray(draw.randbytes(draw.randrange(2000)))
        else:
            body = body[:at] + body[draw.randrange(len(body)) :]
        yield kind, bytes(body)


def fuzz(server: Running, number: int) -> Counter:
    """Statuses of fuzzed requests. What still is a request is scored, all else refused; no worker dies of any."""
    before, statuses = server.health(), Counter()
    for kind, body in fuzzed(number):
        status, answer, _ = server.ask("/v1/score", body, Content_Type=kind)
        statuses[status] += 1
        if status == 200:
            samples, _ = wire.decode(kind, body, wire.RequestLimits(64, 100_000))
            assert [item["scores"]["red"] for item in answer["items"]] == pytest.approx(reds(samples).tolist())
        else:
            assert 400 <= status < 500 and answer["error"], (status, answer)
    assert server.health()["processes"] == before["processes"]
    assert torch.equal(client(server)(pictures(3)), reds(pictures(3)))
    return statuses


def test_fuzzed_bodies_leave_it_serving(server: Running):
    statuses = fuzz(server, 100)
    assert sum(number for status, number in statuses.items() if status != 200) > 80


# ---------------------------------------------------------------------- under load


def test_a_full_server_asks_to_come_again(server: Running, tmp_path: Path):
    gate = Gate(tmp_path / "gate")
    held = pictures(1, gate=str(gate.path))
    with ThreadPoolExecutor(5) as threads:
        asked = [threads.submit(client(server), held) for _ in range(4)]  # two workers, two places in the queue
        until(lambda: server.health()["queue"]["inside"] == 4, "the server did not fill up")
        assert server.health()["queue"]["waiting"] == 2
        status, answer, headers = server.ask("/v1/score", body_of(pictures(1)), Content_Type=JSON)
        assert status == 503 and "queue is full" in answer["error"] and headers["retry-after"] == "1"
        patient = threads.submit(client(server), pictures(2))
        with pytest.raises(RuntimeError, match="503: all workers are busy and the queue is full, for 0.5 s"):
            client(server, patience=0.5)(pictures(1))
        while not all(ask.done() for ask in asked):
            if (gate_opened := gate._open()) is not None:
                os.close(gate_opened)
        assert all(torch.equal(ask.result(), reds(held)) for ask in asked)
        assert torch.equal(patient.result(), reds(pictures(2)))


def test_a_request_is_scored_once_whoever_asks_again(server: Running, tmp_path: Path):
    gate = Gate(tmp_path / "gate")
    body = body_of(pictures(1, first=9000, gate=str(gate.path)))

    def ask(_=None):
        return server.ask("/v1/score", body, Content_Type=JSON, X_Request_Id="the-same")

    with ThreadPoolExecutor(2) as threads:
        both = [threads.submit(ask), threads.submit(ask)]
        until(lambda: server.health()["queue"]["inside"] == 2, "two requests were not there together")
        os.close(gate.reached())
        first, second = (one.result() for one in both)
    assert first[:2] == second[:2] == ask()[:2] and first[0] == 200
    assert server.calls().count("9000") == 1
    other = server.ask("/v1/score", body_of(pictures(1)), Content_Type=JSON, X_Request_Id="the-same")
    assert other[0] == 409 and "another request" in other[1]["error"]


def test_a_killed_worker_is_replaced_and_its_request_scored(server: Running, tmp_path: Path):
    gate = Gate(tmp_path / "gate")
    held = pictures(1, gate=str(gate.path))
    before = server.health()
    with ThreadPoolExecutor(1) as threads:
        asked = threads.submit(client(server, retries=0), held)
        waiting = gate.reached()
        killed = server.last_called()
        os.kill(killed, signal.SIGKILL)
        os.close(waiting)
        until(lambda: server.last_called() != killed, "no other worker took the request")
        os.close(gate.reached())
        assert torch.equal(asked.result(), reds(held))
    until(lambda: server.health()["workers"]["ready"] == 2, "the killed worker was not replaced")
    after = server.health()
    assert killed not in after["processes"] and after["workers"]["restarts"] == before["workers"]["restarts"] + 1
    assert after["requests"]["served"] == before["requests"]["served"] + 1


def storm(server: Running, requests: int, clients: int) -> tuple[int, int]:
    """Sends requests from clients, every 20th malformed, and kills a worker in the middle. Asserts each answer.

    Returns how many were good and how many not.
    """
    asked = [client(server, batch=3, concurrency=1) for _ in range(clients)]
    before, called = server.health(), len(server.calls())
    victim = before["processes"][0]

    def one(i: int) -> bool:
        if i == requests // 2:
            os.kill(victim, signal.SIGKILL)
        if i % 20 == 7:
            kind, body = [(JSON, b"{"), (JSON, request(item={"image": "AAAA"})), (TENSORS, b"\x08" + bytes(30))][i % 3]
            status, answer, _ = server.ask("/v1/score", body, Content_Type=kind)
            while status == 503:
                status, answer, _ = server.ask("/v1/score", body, Content_Type=kind)
            assert status == 422 and answer["error"]
            return False
        samples = pictures(1 + i % 3, first=10_000 + 3 * i)
        assert torch.equal(asked[i % clients](samples), reds(samples))
        return True

    with ThreadPoolExecutor(clients) as threads:
        good = sum(threads.map(one, range(requests)))
    until(lambda: server.health()["workers"]["ready"] == 2, "the killed worker was not replaced")
    after = server.health()
    assert victim not in after["processes"] and after["workers"]["restarts"] == before["workers"]["restarts"] + 1
    counted = {name: after["requests"][name] - before["requests"][name] for name in ("served", "refused", "failed")}
    assert counted == {"served": good, "refused": requests - good, "failed": 0}
    calls = Counter(server.calls()[called:])
    wanted = {str(10_000 + 3 * i + k) for i in range(requests) if i % 20 != 7 for k in range(1 + i % 3)}
    assert set(calls) == wanted and sum(calls.values()) <= len(wanted) + 3  # the killed worker's last request
    return good, requests - good


def test_nothing_is_lost_in_a_storm(server: Running):
    assert storm(server, 120, 6) == (114, 6)


@pytest.mark.slow
def test_two_thousand_requests_and_five_hundred_fuzzed_bodies(tmp_path: Path):
    server = Running(tmp_path, REWARDS, token_env="SERVE_TOKEN", workers=2, queue=8, **LIMITS)
    try:
        storm(server, 200, 16)  # warms up
        sizes = memory(server)
        print("good, malformed:", storm(server, 2000, 16))
        print("fuzzed:", dict(fuzz(server, 500)))
        later = memory(server)
        print("MB of server and workers before and after:", sizes, later)
        assert later[0] < sizes[0] + 10 and max(later[1:]) < max(sizes[1:]) + 20
    finally:
        assert server.stop() == 0


def memory(server: Running) -> list[int]:
    """Resident MB of the server's process, then of its workers."""
    pids = [server.process.pid, *server.health()["processes"]]
    return [psutil.Process(pid).memory_info().rss // 10**6 for pid in pids]


# ---------------------------------------------------------------------- ends


@pytest.mark.slow  # four workers load
def test_what_takes_too_long_or_kills_its_workers_fails(impatient: Running, tmp_path: Path):
    gate = Gate(tmp_path / "gate")
    held = body_of(pictures(1, gate=str(gate.path)))
    status, answer, _ = impatient.ask("/v1/score", held, Content_Type=JSON)
    assert status == 504 and "more than 2 s" in answer["error"]
    status, answer, _ = impatient.ask("/v1/score", body_of(pictures(1, die=True)), Content_Type=JSON)
    while status == 503:  # no worker was ready yet
        status, answer, _ = impatient.ask("/v1/score", body_of(pictures(1, die=True)), Content_Type=JSON)
    assert status == 500 and "2 workers died" in answer["error"]
    ready = {"ready": 1, "wanted": 1, "restarts": 3}
    until(lambda: impatient.health()["workers"] == ready, "no worker came back")


def test_one_of_two_servers_may_die(server: Running, impatient: Running, tmp_path: Path):
    until(lambda: impatient.health()["status"] == "ok", "no worker came back")
    asked, samples = client(server, impatient, batch=1, concurrency=2), pictures(40, first=500)
    asked.servers.all[0].at_work = 1  # the other one is asked first
    first = impatient.health()["requests"]["served"]
    assert torch.equal(asked(samples), reds(samples))
    assert impatient.health()["requests"]["served"] > first
    impatient.process.kill()
    impatient.process.wait()
    assert torch.equal(asked(samples), reds(samples))
    assert torch.equal(client(impatient, server)(samples), reds(samples))  # one that is down is left for later
    with pytest.raises(ValueError, match=r"does not answer \(ConnectionRefusedError.*flowrl serve-rewards"):
        client(impatient)
    asked.servers.all.pop(0)
    asked.servers.all[0].rests_until, asked.servers.retries = 0.0, 1
    with pytest.raises(RuntimeError, match="does not answer"):
        asked(samples)


def test_a_signal_ends_it_after_the_work_under_way(server: Running, tmp_path: Path):
    gate = Gate(tmp_path / "gate")
    held = pictures(1, gate=str(gate.path))
    workers = [psutil.Process(pid) for pid in server.health()["processes"]]
    with ThreadPoolExecutor(1) as threads:
        asked = threads.submit(client(server, retries=0), held)
        waiting = gate.reached()
        for process in (server.process, *workers):  # as a service manager does: to all of them
            process.send_signal(signal.SIGTERM)
        address = server.url.removeprefix("http://").split(":")

        def refused() -> bool:
            with socket.socket() as probe:
                return probe.connect_ex((address[0], int(address[1]))) != 0

        until(refused, "it went on accepting")
        os.close(waiting)
        assert torch.equal(asked.result(), reds(held))
    assert server.process.wait(60) == 0
    assert not any(process.is_running() and process.status() != psutil.STATUS_ZOMBIE for process in workers)
