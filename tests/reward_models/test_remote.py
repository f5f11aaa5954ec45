"""The client of reward servers: its protocol, and servers on loopback that answer as no server should."""

import copy
import json
import threading
from collections.abc import Callable, Iterator
from dataclasses import replace
from http.server import BaseHTTPRequestHandler
from pathlib import Path
from typing import Any

import pytest
import torch

from flowrl.contracts import Prompt, Samples
from flowrl.recipe.keys.rewards import RewardSpec
from flowrl.scoring.scorer import Scorer, load
from judge_support import Quiet
from reward_models.parts.judge import servers
from reward_models.parts.remote import wire
from reward_models.parts.remote.protocol import JSON, REQUEST_ID, SCORE, TENSORS
from reward_models.remote import remote
from serving import pictures, reds

GREETING = {
    "version": 1,
    "rewards": {"red": {"use": "served.red", "groupwise": False}},
    "limits": {"max_items": 8, "max_pixels": 10_000, "max_bytes": 1_000_000},
}
LIMITS = wire.RequestLimits(items=8, pixels=10_000)
Reply = tuple[int, dict[str, str], bytes]


class Scripted:
    """A server that greets, and answers requests for scores as it is told: `play` gets the number of the request."""

    def __init__(self, play: Callable[[int, bytes], Reply], greeting: Any = GREETING):
        self.requests: list[dict[str, str]] = []
        outer = self

        class Handler(BaseHTTPRequestHandler):
            def log_message(self, *_: object) -> None:
                pass

            def do_GET(self) -> None:
                self.answer((200, {}, json.dumps(greeting).encode()))

            def do_POST(self) -> None:
                body = self.rfile.read(int(self.headers["Content-Length"]))
                outer.requests.append(dict(self.headers))
                self.answer(play(len(outer.requests) - 1, body))

            def answer(self, reply: Reply) -> None:
                status, headers, body = reply
                self.send_response(status)
                for name, value in ({"Content-Length": str(len(body))} | headers).items():
                    self.send_header(name, value)
                self.end_headers()
                self.wfile.write(body)

        self.http = Quiet(("127.0.0.1", 0), Handler)
        self.url = f"http://127.0.0.1:{self.http.server_port}"
        threading.Thread(target=self.http.serve_forever, args=(0.01,), daemon=True).start()

    def close(self) -> None:
        self.http.shutdown()
        self.http.server_close()


@pytest.fixture
def scripted() -> Iterator[Callable[..., Scripted]]:
    made: list[Scripted] = []

    def make(*arguments: Any) -> Scripted:
        made.append(Scripted(*arguments))
        return made[-1]

    yield make
    for one in made:
        one.close()


def good(body: bytes) -> Reply:
    samples, _ = wire.decode(JSON, body, LIMITS)
    items = [{"status": "ok", "scores": {"red": score}} for score in reds(samples).tolist()]
    return 200, {}, json.dumps({"version": 1, "items": items}).encode()


def refusal(status: int, **headers: str) -> Reply:
    given = {name.replace("_", "-"): value for name, value in headers.items()}
    return status, given, json.dumps({"version": 1, "error": "no"}).encode()


def items(*given: dict[str, Any], version: int = 1) -> bytes:
    return json.dumps({"version": version, "items": list(given)}).encode()


OK = {"status": "ok", "scores": {"red": 0.5}}
GARBAGE = {
    "nothing": b"",
    "no JSON": b"<html>200 OK</html>",
    "cut": items(OK, OK)[:-3],
    "pickle": b"\x80\x04K\x01.",
    "too few": items(OK),
    "too many": items(OK, OK, OK),
    "another version": items(OK, OK, version=2),
    "no number": items(OK, {"status": "ok", "scores": {"red": None}}),
    "a number for a failure": items(OK, {"status": "error", "scores": {"red": 0.0}}),
    "infinite": items(OK, {"status": "ok", "scores": {"red": float("inf")}}),
    "NaN": items(OK, {"status": "ok", "scores": {"red": float("nan")}}),
    "a text": items(OK, {"status": "ok", "scores": {"red": "0.5"}}),
    "true": items(OK, {"status": "ok", "scores": {"red": True}}),
    "another reward": items(OK, {"status": "ok", "scores": {"blue": 0.5}}),
    "another status": items(OK, {"status": "fine", "scores": {"red": 0.5}}),
}


@pytest.mark.parametrize("what", GARBAGE)
def test_garbage_never_becomes_a_score(scripted: Callable[..., Scripted], what: str):
    server = scripted(lambda *_: (200, {}, GARBAGE[what]))
    with pytest.raises(RuntimeError, match="gave an answer"):
        remote(url=server.url, retries=0)(pictures(2))
    assert len(server.requests) == 1


@pytest.mark.parametrize(("status", "error"), [(400, ValueError), (404, ValueError), (413, ValueError)])
def test_a_refusal_is_not_sent_again(scripted: Callable[..., Scripted], status: int, error: type[Exception]):
    server = scripted(lambda *_: refusal(status))
    with pytest.raises(error, match=f"answers {status}: no"):
        remote(url=server.url)(pictures(2))
    assert len(server.requests) == 1


@pytest.mark.parametrize(
    "fault", [refusal(502), refusal(503, Retry_After="0"), refusal(429, Retry_After="0"), refusal(504)]
)
def test_what_may_pass_is_sent_again_under_the_same_id(scripted: Callable[..., Scripted], fault: Reply):
    server = scripted(lambda number, body: fault if number < 2 else good(body))
    samples = pictures(2)
    assert torch.equal(remote(url=server.url)(samples), reds(samples))
    ids = [request[REQUEST_ID] for request in server.requests]
    assert len(ids) == 3 and len(set(ids)) == 1


def test_what_stays_unscored_is_nan_and_the_rest_is_not(scripted: Callable[..., Scripted]):
    def play(number: int, body: bytes) -> Reply:
        samples, _ = wire.decode(JSON, body, LIMITS)
        return refusal(500) if samples.prompts[0].id == "2" else good(body)

    samples = pictures(6)
    with pytest.warns(UserWarning, match="could not score 2 of 6 samples.*answers 500"):
        scores = remote(url=scripted(play).url, batch=2, retries=1)(samples)
    assert scores.isnan().tolist() == [False, False, True, True, False, False]
    assert torch.equal(scores[[0, 1, 4, 5]], reds(samples)[[0, 1, 4, 5]])


def test_a_hanging_server_is_left_for_another(scripted: Callable[..., Scripted]):
    released = threading.Event()

    def hang(*_: object) -> Reply:
        released.wait(30)
        return refusal(500)

    slow, quick = scripted(hang), scripted(lambda _, body: good(body))
    asked, samples = remote(url=[slow.url, quick.url], timeout=0.5, batch=1, concurrency=2), pictures(8)
    assert torch.equal(asked(samples), reds(samples))
    assert len(slow.requests) <= 3 and len(quick.requests) == 8  # it rests after its failure
    with pytest.raises(RuntimeError, match="does not answer"):
        remote(url=slow.url, timeout=0.2, retries=0)(samples)
    released.set()


def test_work_is_spread(scripted: Callable[..., Scripted]):
    meeting = threading.Barrier(2, timeout=30)

    def play(_: int, body: bytes) -> Reply:
        meeting.wait()  # each server works on a request while the other does
        return good(body)

    one, other = scripted(play), scripted(play)
    samples = pictures(8)
    assert torch.equal(remote(url=[one.url, other.url], batch=1, concurrency=2)(samples), reds(samples))
    assert len(one.requests) == len(other.requests) == 4


def test_a_server_rests_longer_after_each_failure():
    group = servers.Servers(["http://127.0.0.1:9"], retries=3, patience=1)
    waited: list[float] = []
    group._wait = waited.append
    tried: list[str] = []

    def broken(server: servers.RewardServer) -> None:
        tried.append(server.url)
        server.rests_until = min(server.rests_until, 0.0)  # as if it had rested
        raise servers.ServerUnavailableError("down")

    with pytest.raises(servers.ServerUnavailableError):
        group.ask(broken)
    assert len(tried) == 4 and len(waited) == 3 and group.all[0].failures == 4
    for k, rest in enumerate(waited):
        assert 0.7 * 0.25 * 2**k < rest <= 1.25 * 0.25 * 2**k


def test_what_a_server_tells_of_itself_is_checked(scripted: Callable[..., Scripted]):
    for greeting, told in (
        (GREETING | {"version": 2}, "speaks version 2"),
        ({"rewards": []}, "is not a reward server"),
        ([], "is not a reward server"),
        (GREETING | {"rewards": {"blue": {}}}, "has no reward 'red'"),
    ):
        with pytest.raises(ValueError, match=told):
            remote(url=scripted(lambda *_: refusal(500), greeting).url, name="red")
    other = GREETING | {"rewards": {"red": {"use": "another", "groupwise": False}}}
    both = [scripted(lambda *_: refusal(500), one).url for one in (GREETING, other)]
    with pytest.raises(ValueError, match="'red' is .*served.red.* elsewhere and .*another"):
        remote(url=both)


def test_kept_scores_belong_to_the_code_of_the_server(scripted: Callable[..., Scripted], tmp_path: Path):
    greeting = copy.deepcopy(GREETING)
    server = scripted(lambda _, body: good(body), greeting)
    spec = RewardSpec(use="remote", args={"url": server.url}, cache=str(tmp_path / "scores.db"))
    for identity, requests in (("a", 1), ("a", 1), ("b", 2)):
        greeting["rewards"]["red"]["identity"] = identity
        rewards = load({"x": spec})
        assert rewards["x"].call.identity == [identity]
        assert torch.equal(Scorer(rewards)(pictures(3))["x"], reds(pictures(3)))
        assert len(server.requests) == requests
    # two servers with other code are told apart, not refused: their files may merely lie elsewhere
    other = copy.deepcopy(greeting)
    other["rewards"]["red"]["identity"] = "c"
    assert remote(url=[server.url, scripted(lambda *_: refusal(500), other).url]).identity == ["b", "c"]


@pytest.mark.parametrize(
    ("given", "told"),
    [
        ({"url": "ftp://host"}, "accepted is http://HOST:PORT"),
        ({"url": "host:8471"}, "accepted is http://HOST:PORT"),
        ({"url": "http://user:secret@host"}, "without user, token or query"),
        ({"url": "http://host:99999"}, "accepted is http://HOST:PORT"),
        ({"url": []}, "at least one url"),
        ({"format": "pickle"}, "format png or safetensors"),
        ({"retries": -1}, "retries from 0"),
        ({"timeout": 0}, "timeout=0: accepted is a number above 0"),
        ({"token_env": "NO_SUCH_VARIABLE"}, "holds no token; export it"),
        ({"url": "http://127.0.0.1:9"}, "does not answer .*flowrl serve-rewards"),
    ],
)
def test_wrong_arguments_are_one_line(given: dict[str, Any], told: str):
    with pytest.raises(ValueError, match=told) as caught:
        remote(**({"url": "http://127.0.0.1:9"} | given))
    assert "\n" not in str(caught.value)


# ---------------------------------------------------------------------- the protocol


def same(one: Samples, other: Samples) -> bool:
    def equal(a: Any, b: Any) -> bool:
        return torch.equal(a, b) and a.dtype == b.dtype if isinstance(a, torch.Tensor) else a == b

    fields = ("group", "images", "video", "texts", "lengths", "truncated")
    prompts = [replace(prompt, media=()) for prompt in one.prompts]
    return prompts == list(other.prompts) and all(equal(getattr(one, f), getattr(other, f)) for f in fields)


PROMPTS = [Prompt("a", 'quotes " and é\n', meta={"n": [1, {"x": None}]}), Prompt("b", "", media=("a/file.png",))]
GROUP = torch.tensor([2**40, -1])


@pytest.mark.parametrize("form", ["png", "safetensors"])
def test_samples_arrive_as_they_were(form: str):
    levels = torch.randint(0, 256, (2, 3, 3, 5, 4), generator=torch.Generator().manual_seed(0)) / 255
    for samples in (
        Samples(PROMPTS, GROUP, images=levels[:, 0]),
        Samples(PROMPTS, GROUP, video=levels),
        Samples(PROMPTS, GROUP, texts=["x", ""], lengths=torch.tensor([3, 0]), truncated=torch.tensor([True, False])),
    ):
        got, names = wire.decode(*wire.encode(samples, form, ["one", "two"]), LIMITS)
        assert same(samples, got) and names == ["one", "two"]


@pytest.mark.parametrize("dtype", [torch.float32, torch.float16, torch.bfloat16])
def test_safetensors_keep_every_bit(dtype: torch.dtype):
    images = torch.rand(2, 3, 4, 4).to(dtype)
    images[1, 0, 0, 0] = torch.inf
    got, names = wire.decode(*wire.encode(Samples(PROMPTS, GROUP, images=images), "safetensors"), LIMITS)
    assert got.images is not None and got.images.dtype == dtype and torch.equal(got.images, images) and names is None


def test_meta_has_to_be_json():
    for value in ({1, 2}, float("nan"), b"bytes"):
        samples = Samples([Prompt("a", "p", meta={"x": value})], torch.zeros(1), texts=["t"])
        with pytest.raises(ValueError, match="meta has to be JSON"):
            wire.encode(samples, "png")


def tensors(head: Any = None, **given: torch.Tensor) -> bytes:
    from safetensors.torch import save

    head = {"version": 1, "items": [{"prompt": "p", "group": 0}]} if head is None else head
    return save(given, {"flowrl": json.dumps(head)})


@pytest.mark.parametrize(
    ("status", "body"),
    [
        (422, b""),
        (422, b"\xff" * 100),
        (422, tensors(images=torch.rand(2, 3, 4, 4))),  # one item
        (422, tensors(images=torch.rand(1, 4, 4, 4))),
        (422, tensors(images=torch.zeros(1, 3, 4, 4, dtype=torch.int64))),
        (422, tensors(weights=torch.rand(1, 3, 4, 4))),
        (422, tensors(images=torch.rand(1, 3, 4, 4), video=torch.rand(1, 1, 3, 4, 4))),
        (422, tensors(images=torch.rand(1, 3, 4, 4))[:-4]),
        (422, tensors()),
        (413, tensors(images=torch.rand(1, 3, 101, 100))),
        (400, tensors({"version": 3}, images=torch.rand(1, 3, 4, 4))),
        (422, tensors([], images=torch.rand(1, 3, 4, 4))),
    ],
)
def test_other_safetensors_are_refused(status: int, body: bytes):
    with pytest.raises(wire.MalformedRequestError) as caught:
        wire.decode(TENSORS, body, LIMITS)
    assert caught.value.status == status and "\n" not in str(caught.value)


def test_the_server_is_asked_at_its_path():
    assert servers.server("https://host/behind/").path + SCORE == "/behind/v1/score"
    assert servers.server("https://host").port == 443 and servers.server("http://[::1]:8").host == "::1"


@pytest.mark.parametrize("form", ["png", "safetensors"])
@pytest.mark.parametrize("shape", [(3, 1, 1), (3, 200, 1), (3, 64, 64), (40, 3, 2, 2)])
def test_a_request_is_never_larger_than_a_server_takes(scripted: Callable[..., Scripted], form: str, shape: tuple):
    pixels = torch.rand(7, *shape, generator=torch.Generator().manual_seed(0))  # noise is the worst case of a PNG
    given = {"images": pixels} if len(shape) == 3 else {"video": pixels}
    samples = Samples([Prompt("p", "x" * 1000)] * 7, torch.arange(7), **given)
    asked = remote(url=scripted(lambda *_: refusal(500)).url, format=form)
    for max_bytes in (30_000, 60_000, 200_000):
        asked.limits = {"max_items": 64, "max_pixels": 10**6, "max_bytes": max_bytes}
        try:
            parts = asked._parts(samples, list(range(7)))
        except ValueError:
            continue
        assert sorted(i for part in parts for i in part) == list(range(7))
        assert all(len(wire.encode(samples[part], form)[1]) <= max_bytes for part in parts)
