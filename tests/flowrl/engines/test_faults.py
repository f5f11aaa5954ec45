"""A server that drops, errs, hangs and lies: no completion is lost, and none is another than it should be."""

import json
import threading
import urllib.request
from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import pytest
import torch

from cli_support import quiet
from engines_support import NAME, adapted, endpoint
from flowrl.build import build_policy
from flowrl.contracts import Drawing, Prompt
from flowrl.engines import client
from flowrl.engines.app import build_app
from flowrl.engines.client import EngineError
from flowrl.engines.remote import Engine, engine_of
from flowrl.engines.run import served
from flowrl.engines.service import PolicyService
from flowrl.planning.costs import plan_for
from flowrl.recipe.keys.engines import EngineKeys
from flowrl.recipe.load import load
from flowrl.runs.start import run
from samplers.tokens import Generation

FAULTS = ("drop", "500", "half", "503", "abort")
CYCLE = (*FAULTS, *FAULTS, *FAULTS, "hang")


class Faulty:
    """Stands before a server, and answers one request in three with one of CYCLE; `closed`: all of them."""

    def __init__(self, url: str):
        self.url, self.asked, self.faults, self.closed = url, 0, Counter[str](), False
        self.lock, self.released = threading.Lock(), threading.Event()

    def fault(self, path: str) -> str | None:
        if path != "/v1/completions":
            return None
        with self.lock:
            self.asked += 1
            turn, third = divmod(self.asked, 3)
            wrong = "drop" if self.closed else CYCLE[turn % len(CYCLE)] if third == 0 else None
            self.faults[wrong or "none"] += 1
            return wrong


@contextmanager
def before(url: str) -> Iterator[tuple[Faulty, str]]:
    """(what stands before a server, its address)."""
    state = Faulty(url)

    class Handler(BaseHTTPRequestHandler):
        protocol_version = "HTTP/1.1"

        def log_message(self, *_: Any) -> None:
            pass

        def do_GET(self) -> None:
            self.forward(None)

        def do_POST(self) -> None:
            self.forward(self.rfile.read(int(self.headers["Content-Length"])))

        def forward(self, body: bytes | None) -> None:
            fault = state.fault(self.path)
            self.close_connection = True
            if fault == "drop":
                return
            if fault == "hang":
                state.released.wait(30)
                return
            if fault in ("500", "503"):
                return self.reply(int(fault), b'{"error": {"message": "asked to fail"}}')
            request = urllib.request.Request(url + self.path, body, {"Content-Type": "application/json"})
            with urllib.request.urlopen(request, timeout=60) as answer:
                data = answer.read()
            if fault == "abort":
                told = json.loads(data)
                told["choices"][0] |= {"finish_reason": "abort", "token_ids": [], "text": ""}
                data = json.dumps(told).encode()
            self.reply(200, data[: len(data) // 2] if fault == "half" else data)

        def reply(self, status: int, data: bytes) -> None:
            self.send_response(status)
            self.send_header("Content-Length", str(len(data)))
            self.end_headers()
            self.wfile.write(data)

    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    server.daemon_threads = True
    threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.01}, daemon=True).start()
    try:
        yield state, f"http://127.0.0.1:{server.server_address[1]}"
    finally:
        state.released.set()
        server.shutdown()
        server.server_close()


@pytest.fixture(autouse=True)
def _no_rests(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(client, "FIRST_REST", 0.0)


@pytest.mark.parametrize(("number", "least"), [(7, 1), pytest.param(25, 5, marks=pytest.mark.slow, id="200 requests")])
def test_of_requests_of_which_a_third_fails_no_row_is_lost(number: int, least: int):
    policy = adapted(seed=1)
    prompts = [Prompt(f"p{i}", f"{i}+{7 * i}") for i in range(number)]
    drawing = Drawing(prompts, 8, Generation(4), 5, 3)
    with endpoint(adapted(), updates=True) as (_, url), before(url) as (faulty, front):
        keys = EngineKeys(use="vllm", url=front, model=NAME, concurrent=16, timeout=3.0, retries=12)
        found = Engine(keys, NAME).draw(policy, drawing)
    rollout = policy.rollout(prompts, group_size=8, plan=drawing.plan, seed=5, first=3)
    assert all(faulty.faults[fault] >= least for fault in (*FAULTS, "hang"))
    assert found.metrics["engine/retries"] == faulty.asked - 8 * number
    assert torch.equal(found.rollout.replay.tokens, rollout.replay.tokens)
    assert torch.equal(found.rollout.rollout_logp, rollout.rollout_logp)
    assert found.rollout.samples.texts == rollout.samples.texts


@pytest.mark.parametrize(
    ("lie", "told"),
    [
        ({"prompt_token_ids": [1, 2]}, "read a prompt of"),
        ({"token_ids": [5, 6], "logprobs": {"token_logprobs": [-0.5]}}, "drew 2 tokens with 1 log-probs"),
        ({"token_ids": [10**6], "logprobs": {"token_logprobs": [-0.5]}}, "drew the token 1000000"),
        ({"token_ids": [5], "logprobs": {"token_logprobs": [0.5]}}, "a log-prob that is none"),
        ({"token_ids": [3, 5], "logprobs": {"token_logprobs": [-1, -1]}}, "went on behind the token 3"),
        ({"token_ids": [5], "logprobs": {"token_logprobs": [-1]}, "finish_reason": "stop"}, "does not end one here"),
    ],
)
def test_an_answer_that_does_not_fit_ends_the_rollout(lie: dict[str, Any], told: str, monkeypatch: pytest.MonkeyPatch):
    policy = adapted()

    def ask(self: Any, path: str, body: Any = None, *, use: Any = lambda answer: answer) -> Any:
        if path == "/v1/models":
            return use({"data": [{"id": NAME}]})
        if path != "/v1/completions":
            return use({})
        choice = {"token_ids": [3], "logprobs": {"token_logprobs": [-1.0]}, "finish_reason": "stop"}
        return use({"model": body["model"], "choices": [choice | {"prompt_token_ids": body["prompt"]} | lie]})

    monkeypatch.setattr(client.Connection, "ask", ask)
    with pytest.raises(EngineError, match=told):
        keys = EngineKeys(use="vllm", url="http://127.0.0.1:9", model=NAME)
        Engine(keys, NAME).draw(policy, Drawing([Prompt("a", "1+2")], 1, Generation(4), 0, 0))


SMALL = ["train.prompts=2", "train.group=3", "train.updates=2", "train.iterations=3", "device=cpu"]
SMALL += ["eval.at_start=false", "eval.at_end=false", "eval.every=null", "generation.max_new_tokens=8"]
SMALL += ["rewards={short: {use: overlong, args: {limit: 8, margin: 8}}}", "checkpoint.every=1"]
SMALL += ["rollout.batch_invariant=true", "objective.correction={kind: none, bypass: true}"]


def metrics(folder: Path) -> list[dict[str, float]]:
    """Those of training, without the seconds and what is of the server alone."""
    rows = [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]
    drop = ("time", "engine/")
    return [{k: v for k, v in row.items() if not k.startswith(drop)} for row in rows if row["kind"] == "train"]


def test_a_run_by_a_server_is_the_run_of_this_process_and_resumes_after_an_outage(tmp_path: Path):
    run(load("tiny_lm_grpo", [f"output={tmp_path / 'local'}", *SMALL]), quiet())
    recipe = load("tiny_lm_grpo", SMALL)
    service = PolicyService(build_policy(recipe), recipe.model, plan_for(recipe, 0), updates=True)
    with served(build_app(service)) as url, before(url) as (faulty, front):
        how = [*SMALL, f"rollout.engine={{use: vllm, url: '{front}', retries: 4, timeout: 3.0}}"]
        how += [f"output={tmp_path / 'there'}"]

        def draw(self: Any, policy: Any, drawing: Any, *ranks: Any) -> Any:
            faulty.closed = drawing.first >= 6  # out of order when the last of three iterations begins
            return own(self, policy, drawing, *ranks)

        own = Engine.draw
        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(Engine, "draw", draw)
            with pytest.raises(EngineError, match="gave no completion"):
                run(load("tiny_lm_grpo", how), quiet())
        assert len(metrics(tmp_path / "there")) == 2
        faulty.closed = False
        engine_of.cache_clear()  # as another process
        run(load("tiny_lm_grpo", how), quiet(), resume=tmp_path / "there")
    assert metrics(tmp_path / "there") == metrics(tmp_path / "local")
    assert max(row["grad_norm"] for row in metrics(tmp_path / "local")) > 0
