"""Sandboxes on other machines, by HTTP: SandboxFusion and E2B. Both run the program of `inside.py`.

A request is repeated a few times where the server does not answer, or answers that it is at fault: code and files go
along with every one, so that repeating it changes nothing.
"""

import json
import os
import time
import urllib.error
import urllib.request
import weakref
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from flowrl.environments.tools.parts.sandbox.box import check_runs
from flowrl.environments.tools.parts.sandbox.limits import MIB, Limits, NoSandboxError, SandboxError

PROGRAM = Path(__file__).with_name("inside.py")
GRACE = 10.0  # seconds beyond the code's own, for a start and the way there and back
TRIES, PAUSE = 3, 0.5
MOST = 64 * MIB  # bytes of an answer


class SandboxFusion:
    """A SandboxFusion server (bytedance/SandboxFusion): POST /run_code with language python.

    url: where it is, such as http://localhost:8080.
    """

    name = "sandbox_fusion"

    def __init__(self, url: str):
        self.url = url.rstrip("/")

    def check(self) -> None:
        """Raises NoSandboxError where no server answers at the url."""
        check_runs(self, f" at {self.url}")

    def task(self) -> dict[str, object]:
        """What the program inside has to know: the server counts processes itself."""
        return {"folder": None, "user": None, "processes": None}

    def run(self, task: bytes, limits: Limits) -> bytes:
        """What the program inside writes. Raises SandboxError where the server fails."""
        body = {"code": PROGRAM.read_text(encoding="utf-8"), "language": "python", "stdin": task.decode()}
        body |= {"compile_timeout": GRACE, "run_timeout": limits.seconds + GRACE / 2}
        told = json.loads(request("POST", f"{self.url}/run_code", body, {}, limits.seconds + GRACE))
        ran = told.get("run_result") or {}
        if told.get("status") == "SandboxError" or ran.get("stdout") is None:
            raise SandboxError(f"SandboxFusion at {self.url}: {told.get('message') or told.get('status') or told}")
        return str(ran["stdout"]).encode()


class E2B:
    """A sandbox of E2B (e2b.dev), or of a service with its interface, made at the first code and ended by `close`.

    key_env: the environment variable that has the key. template: what a sandbox starts from. api: where sandboxes are
    made; host: where one runs, {id} being its own and {domain} that which the service names. lives: seconds after which
    the service ends one that nobody has closed.
    """

    name = "e2b"

    def __init__(
        self,
        key_env: str = "E2B_API_KEY",
        template: str = "code-interpreter-v1",
        api: str = "https://api.e2b.app",
        host: str = "https://49999-{id}.{domain}",
        lives: int = 600,
    ):
        self.key_env, self.template, self.api, self.host, self.lives = key_env, template, api.rstrip("/"), host, lives
        self._made: Mapping[str, Any] | None = None
        self._end: Callable[[], object] | None = None

    def check(self) -> None:
        """Raises NoSandboxError where there is no key, or no sandbox can be made and run."""
        if not os.environ.get(self.key_env):
            raise NoSandboxError(f"the environment variable {self.key_env} is not set; it is the key of the service")
        check_runs(self, f" at {self.api}")
        self.close()

    def task(self) -> dict[str, object]:
        """What the program inside has to know: the service counts processes itself."""
        return {"folder": None, "user": None, "processes": None}

    def run(self, task: bytes, limits: Limits) -> bytes:
        """What the program inside writes. Raises SandboxError where the service fails."""
        sandbox = self._made
        if sandbox is None:
            body = {"templateID": self.template, "timeout": self.lives, "secure": True, "allow_internet_access": False}
            sandbox = json.loads(request("POST", f"{self.api}/sandboxes", body, self._key(), GRACE * 6))
            where = f"{self.api}/sandboxes/{sandbox['sandboxID']}"
            self._end = weakref.finalize(self, request, "DELETE", where, None, self._key(), GRACE)
            self._made = sandbox
        tokens = {"X-Access-Token": "envdAccessToken", "E2B-Traffic-Access-Token": "trafficAccessToken"}
        headers = {name: str(sandbox[field]) for name, field in tokens.items() if sandbox.get(field)}
        where = self.host.format(id=sandbox["sandboxID"], domain=sandbox.get("domain") or "e2b.app")
        body = {"code": _within(task.decode()), "context_id": None, "language": None, "env_vars": None}
        told = request("POST", f"{where}/execute", body, headers, limits.seconds + GRACE)
        lines = [json.loads(line) for line in told.decode().splitlines() if line.strip()]
        error = next((line for line in lines if line.get("type") == "error"), None)
        if error is not None:
            raise SandboxError(f"E2B: {error.get('name')}: {str(error.get('value'))[:300]}")
        return "".join(str(line.get("text", "")) for line in lines if line.get("type") == "stdout").encode()

    def close(self) -> None:
        """Ends the sandbox, if there is one; so does whoever drops the last reference to this object."""
        end, self._made, self._end = self._end, None, None
        if end is not None:
            end()

    def _key(self) -> dict[str, str]:
        return {"X-API-Key": os.environ.get(self.key_env, "")}


def _within(task: str) -> str:
    """Code for a notebook that starts the program of its own, and prints what it writes."""
    command = f'[sys.executable, "-I", "-c", {PROGRAM.read_text(encoding="utf-8")!r}]'
    told = f"subprocess.run({command}, input={task!r}, capture_output=True, text=True)"
    return f"import subprocess, sys\ntold = {told}\nprint(told.stdout or told.stderr, end='')"


def request(method: str, url: str, body: Any, headers: Mapping[str, str], timeout: float) -> bytes:
    """The body of the answer to a request with a JSON body. Raises SandboxError where none comes after some tries."""
    data = None if body is None else json.dumps(body).encode()
    asked = urllib.request.Request(url, data, {"Content-Type": "application/json", **headers}, method=method)
    problem = ""
    for attempt in range(TRIES):
        if attempt:
            time.sleep(PAUSE * 2 ** (attempt - 1))
        try:
            with urllib.request.urlopen(asked, timeout=timeout) as answer:
                told: bytes = answer.read(MOST + 1)
        except urllib.error.HTTPError as error:
            problem = f"{error.code} {error.read(300).decode(errors='replace')}"
            if error.code < 500 and error.code != 429:
                break
        except (OSError, ValueError) as error:
            problem = str(error)
        else:
            if len(told) > MOST:
                raise SandboxError(f"{method} {url}: the answer has more than {MOST // MIB} MiB")
            return told
    raise SandboxError(f"{method} {url}: {problem}")
