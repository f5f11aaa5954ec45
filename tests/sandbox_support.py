"""Stand-ins for sandboxes, for tests: servers on loopback that speak as SandboxFusion and E2B do, and a docker.

They run the code that tests wrote in a process of its own, without any sandbox: they are for the protocol alone.
"""

import json
import subprocess
import sys
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

from flowrl.environments.tools.parts.sandbox.limits import Limits
from flowrl.environments.tools.parts.sandbox.machines import PROGRAM, contained

KEY = "a-key-for-tests-only"


class Here:
    """A machine without walls."""

    name = "here"

    def check(self) -> None:
        """It is there."""

    def task(self) -> dict[str, object]:
        """A folder of its own."""
        return {"folder": None, "user": None, "processes": None}

    def run(self, task: bytes, limits: Limits) -> bytes:
        """What the program writes."""
        return contained([sys.executable, "-I", str(PROGRAM)], task, limits)


def _run(code: str, stdin: str = "") -> str:
    """What code prints."""
    return subprocess.run([sys.executable, "-c", code], input=stdin, capture_output=True, text=True, check=True).stdout


class _Handler(BaseHTTPRequestHandler):
    """POST /run_code of SandboxFusion; POST /sandboxes, POST /execute and DELETE /sandboxes/ID of E2B."""

    server: Any

    def do_POST(self) -> None:
        """Runs code, or makes a sandbox, as the request says; fails where the test asked for it."""
        body = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
        self.server.asked.append((self.path, body, dict(self.headers)))
        if self.server.failures:
            return self._answer(self.server.failures.pop(), b"asked to fail")
        if self.path == "/run_code":
            told = {"status": "Finished", "return_code": 0, "stdout": _run(body["code"], body["stdin"]), "stderr": ""}
            return self._answer(200, json.dumps({"status": "Success", "message": "", "run_result": told}).encode())
        if self.path == "/sandboxes" and self.headers["X-API-Key"] == KEY:
            made = {"sandboxID": f"s{len(self.server.asked)}", "domain": "example.invalid", "envdAccessToken": "token"}
            return self._answer(201, json.dumps(made).encode())
        if self.path == "/execute" and self.headers["X-Access-Token"] == "token":
            lines = [{"type": "number_of_executions", "execution_count": 1}]
            lines += [{"type": "stdout", "text": text, "timestamp": 0} for text in _run(body["code"]).splitlines(True)]
            return self._answer(200, "\n".join(map(json.dumps, lines)).encode())
        return self._answer(401, b"no such key")

    def do_DELETE(self) -> None:
        """Notes which sandbox was ended."""
        self.server.asked.append((self.path, None, dict(self.headers)))
        self._answer(204, b"")

    def _answer(self, status: int, body: bytes) -> None:
        self.send_response(status)
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)

    def log_message(self, *given: object) -> None:
        """Says nothing."""


@contextmanager
def served() -> Iterator[tuple[str, Any]]:
    """The url of a server, and itself: what it was `asked`, and `failures`, statuses that it answers with first."""
    server: Any = ThreadingHTTPServer(("127.0.0.1", 0), _Handler)
    server.asked, server.failures = [], []
    thread = threading.Thread(target=server.serve_forever, daemon=True, kwargs={"poll_interval": 0.01})
    thread.start()
    try:
        yield f"http://127.0.0.1:{server.server_port}", server
    finally:
        server.shutdown()
        server.server_close()


def docker(folder: Path) -> Path:
    """A program called docker that has one image, and runs what it is given in a folder of the host's."""
    path = folder / "docker"
    path.write_text(f"""#!{sys.executable}
import json, subprocess, sys
words = sys.argv[1:]
with open({str(folder / "asked.txt")!r}, "a") as file:
    file.write(json.dumps(words) + "\\n")
if words[:2] == ["image", "inspect"]:
    sys.exit(0 if words[-1] == "some:image" else "Error: No such image: " + words[-1])
if words[0] == "run":
    task = json.load(sys.stdin)
    assert task["folder"] in words
    program = words[words.index("some:image") + 1 :]
    subprocess.run([sys.executable, *program[1:]], input=json.dumps(task | {{"folder": None}}), text=True)
""")
    path.chmod(0o755)
    return path
