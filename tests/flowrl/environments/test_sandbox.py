"""Sandboxes: exec, write and close of every one, and what code cannot do in the one that runs here."""

import json
import shutil
from pathlib import Path

import pytest

from flowrl.environments.tools.parts.sandbox import machines, remote
from flowrl.environments.tools.parts.sandbox.box import Sandbox, read
from flowrl.environments.tools.parts.sandbox.limits import Limits, NoSandboxError, SandboxError
from flowrl.environments.tools.parts.sandbox.machines import Bubblewrap, Docker
from flowrl.environments.tools.parts.sandbox.remote import E2B, SandboxFusion
from sandbox_support import KEY, Here, docker, served

LIMITS = Limits(seconds=20.0, memory=300, processes=16, output=400, files=2)


def _bubblewrap_fault() -> str | None:
    try:
        Bubblewrap().check()
    except NoSandboxError as error:
        return str(error)
    return None


@pytest.fixture(scope="session")
def walled() -> Sandbox:
    """A sandbox that holds."""
    fault = _bubblewrap_fault()
    if fault:
        pytest.skip(fault)
    return Sandbox(Bubblewrap(), LIMITS)


def _protocol(box: Sandbox) -> None:
    """What holds for every sandbox: files go in, come out and stay, and what code does is told."""
    box.write("data/given.txt", b"7")
    ran = box.exec("x = int(open('data/given.txt').read())\nopen('made.txt', 'w').write('y' * x)\nprint('six')\nx * 6")
    assert (ran.status, ran.out, ran.err, ran.files) == ("done", "six\n42\n", "", {"made.txt": b"yyyyyyy"})
    ran = box.exec("def f():\n    print(open('made.txt').read())\n    1 / 0\n\nf()")
    assert ran.status == "failed" and ran.out == "yyyyyyy\n"
    assert "line 3, in f" in ran.err and ran.err.endswith("division by zero\n")
    box.close()
    assert box.exec("import os; print(sorted(os.listdir()))").out == "[]\n"


def test_protocol_of_bubblewrap(walled: Sandbox):
    _protocol(walled)


def test_code_goes_on_from_what_ran_before_it(walled: Sandbox):
    ran = walled.exec("print(a)\na += 1\na", before=["a = 1; print('once')", "raise ValueError", "a += 1"], keep=False)
    assert (ran.status, ran.out, ran.err) == ("done", "2\n3\n", "")
    assert walled.exec("raise SystemExit(3)").status == "failed"


@pytest.mark.skipif(not Path("/usr/bin/python3").is_file(), reason="there is no interpreter that every user may read")
def test_code_cannot_make_namespaces_of_its_own(walled: Sandbox):
    machine = Bubblewrap("/usr/bin/python3")
    machine.check()
    ran = Sandbox(machine, LIMITS).exec("import ctypes, os\nprint(os.getuid(), ctypes.CDLL(None).unshare(0x10000000))")
    user, made = ran.out.split()
    assert user != "0" and made == "-1"


def test_protocol_of_docker(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    docker(tmp_path)
    monkeypatch.setenv("PATH", str(tmp_path), prepend=":")
    machine = Docker("some:image")
    machine.check()
    _protocol(Sandbox(machine, LIMITS))
    words = [json.loads(line) for line in (tmp_path / "asked.txt").read_text().splitlines()][-1]
    for limit in (["--network", "none"], ["--memory", "300m"], ["--memory-swap", "300m"], ["--pids-limit", "20"]):
        assert words[words.index(limit[0]) + 1] == limit[1]
    assert {"--read-only", "--rm", "--cap-drop"} <= set(words)
    with pytest.raises(NoSandboxError, match=r"no image 'other:image'.*docker pull other:image"):
        Docker("other:image").check()
    with pytest.raises(NoSandboxError, match="podman is not installed"):
        Docker(command="podman").check()


def test_protocol_of_sandbox_fusion(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(remote, "PAUSE", 0.0)
    with served() as (url, server):
        machine = SandboxFusion(url + "/")
        machine.check()
        server.failures = [503]
        _protocol(Sandbox(machine, LIMITS))
        path, body, _ = server.asked[-1]
        assert path == "/run_code" and body["language"] == "python" and json.loads(body["stdin"])["seconds"] == 20.0
        server.failures = [500] * remote.TRIES
        with pytest.raises(SandboxError, match="500 asked to fail"):
            Sandbox(machine, LIMITS).exec("1")
        server.failures = [422]
        number = len(server.asked)
        with pytest.raises(SandboxError, match="422"):
            Sandbox(machine, LIMITS).exec("1")
        assert len(server.asked) == number + 1  # a refusal is not asked for again
    with pytest.raises(NoSandboxError, match="sandbox_fusion at http.*does not run code"):
        SandboxFusion(url).check()


def test_protocol_of_e2b(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.delenv("E2B_API_KEY", raising=False)
    with pytest.raises(NoSandboxError, match="E2B_API_KEY is not set"):
        E2B().check()
    monkeypatch.setenv("E2B_API_KEY", KEY)
    with served() as (url, server):
        machine = E2B(api=url, host=url)
        machine.check()
        _protocol(Sandbox(machine, LIMITS))
        made = [body for path, body, _ in server.asked if path == "/sandboxes"]
        assert made[0]["templateID"] == "code-interpreter-v1" and made[0]["allow_internet_access"] is False
        box = Sandbox(E2B(api=url, host=url), LIMITS)
        box.exec("1")
        assert box.machine is not None
        ended = sum(path.startswith("/sandboxes/") for path, _, _ in server.asked)
        del box, machine  # a conversation that is over closes nothing itself
        assert sum(path.startswith("/sandboxes/") for path, _, _ in server.asked) == ended + 2
        monkeypatch.setenv("E2B_API_KEY", "wrong")
        with pytest.raises(NoSandboxError, match="401 no such key"):
            E2B(api=url, host=url).check()


@pytest.mark.parametrize(
    ("code", "status", "said"),
    [
        ("import socket\nsocket.create_connection(('1.1.1.1', 53), 1)", "failed", "Network is unreachable"),
        ("import os\nprint(os.listdir('/proc/1/root/'))", "failed", "Permission denied"),
        ("print(open('/etc/passwd').read())", "failed", "No such file"),
        ("import sys\nopen(sys.prefix + '/planted', 'w')", "failed", "Read-only file system"),
        ("open('/dev/planted', 'w')", "failed", ""),
        ("x = bytearray(400 * 2**20)", "failed", "MemoryError"),
        ("f = open('big', 'wb')\nfor _ in range(9):\n    f.write(bytes(2**20))\n    f.flush()", "failed", "too large"),
        ("import os, signal, time\nos.kill(os.getppid(), signal.SIGKILL)\ntime.sleep(9)", "killed", ""),
        ("import os\nopen(f'/proc/{os.getppid()}/fd/1', 'w').write('{}')", "failed", "Permission denied"),
        ("while True:\n    pass", "time", ""),
        ("while True:\n    print('x' * 10**5)", "time", ""),
    ],
    ids=["net", "root", "read", "write", "dev", "memory", "disk", "kill", "forge", "loop", "output"],
)
def test_an_attack_fails(walled: Sandbox, code: str, status: str, said: str):
    seconds = 0.4 if status == "time" else 20.0
    ran = Sandbox(walled.machine, Limits(seconds, 300, 16, 400, 2)).exec(code)
    assert ran.status == status and said in ran.err
    assert len(ran.out) <= 400 and (ran.cut > 10**5) == ("10**5" in code)
    assert sum(map(len, ran.files.values())) <= 2 * 2**20


def test_many_processes_are_ended(walled: Sandbox):
    code = (
        "import os, time\nmade = 0\ntry:\n    while made < 500:\n        if os.fork() == 0:\n"
        "            time.sleep(60)\n        made += 1\nexcept OSError as error:\n    print(made, error)"
    )
    ran = Sandbox(walled.machine, Limits(20.0, 300, 12, 400, 2)).exec(code)
    assert ran.status == "done" and "temporarily unavailable" in ran.out and int(ran.out.split()[0]) < 12


def test_memory_of_all_processes_counts(walled: Sandbox):
    code = (
        "import os, time\nfor _ in range(5):\n    if os.fork() == 0:\n        x = b'x' * (120 * 2**20)\n        break\n"
    )
    assert Sandbox(walled.machine, Limits(20.0, 300, 16, 400, 2)).exec(code + "time.sleep(60)").status == "killed"


def test_what_cannot_be_read_is_the_codes_doing():
    for answer in (b"", b"{", b"[]", b'{"status": "done"}', b'{"status": "done", "out": "", "files": {"a": "?"}}'):
        assert read(answer).status == "killed"
    told = {"status": "done", "out": "", "err": "", "cut": 0, "lost": [], "files": {"../a": "", "/b": "", "c": ""}}
    assert read(json.dumps(told).encode()).files == {"c": b""}


@pytest.mark.parametrize("path", ["", "/a", "../a", "a/../../b"])
def test_files_stay_in_the_folder(path: str):
    with pytest.raises(ValueError, match="relative path"):
        Sandbox(Here()).write(path, b"")


@pytest.mark.parametrize("wrong", [{"seconds": 0}, {"memory": 10}, {"processes": True}, {"output": "many"}])
def test_limits_are_numbers(wrong: dict):
    with pytest.raises(ValueError, match=next(iter(wrong))):
        Limits(**wrong)


def test_a_missing_program_is_told_with_what_to_do(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(shutil, "which", lambda name: None)
    with pytest.raises(NoSandboxError, match="apt-get install bubblewrap"):
        Bubblewrap().check()
    monkeypatch.undo()
    with pytest.raises(SandboxError, match="does not start"):
        machines.contained(["no-such-program"], b"", LIMITS)
