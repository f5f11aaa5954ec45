"""The program that runs a piece of Python within a sandbox. It stands alone: its source is sent there as it is.

It reads one JSON object from its standard input:

    code       what to run, as __main__
    before     pieces of code that run before it, in the same program, without what they print or raise
    settings   environment variables
    files      path -> content in base64, written to the folder before it runs
    folder     where that happens: it has to be there, and writable; null makes one of its own
    seconds, memory (MiB of one process), processes, output (characters), keep (bytes of files): limits; null: none
    user       the user number to go on with, or null to stay who starts this program

It writes the line READY, and then one JSON object: status (`done`, `failed` for an exception or an exit code, `time`,
`killed`), out and err (text, cut), cut (how many bytes are missing), files (what the code made or changed there, in
base64) and lost (names of files that were too much to keep). What the code does to this program is the code's own
doing: whoever started it takes a missing answer after READY for a failure of the code.
"""

import ast
import base64
import json
import linecache
import os
import resource
import select
import signal
import sys
import tempfile
import time
import traceback

READY = "flowrl-sandbox-ready"
NAME = "<code>"
POLL = 0.02  # seconds between looks at whether the code has ended


def main() -> None:
    """Reads what is to be done, does it, and says what came of it."""
    task = json.load(sys.stdin)
    if task["user"] is not None:
        os.setgroups([])
        os.setresgid(task["user"], task["user"], task["user"])
        os.setresuid(task["user"], task["user"], task["user"])
    os.chdir(task["folder"] or tempfile.mkdtemp())
    given = {path: base64.b64decode(content) for path, content in task["files"].items()}
    for path, content in given.items():
        os.makedirs(os.path.dirname(path) or ".", exist_ok=True)
        with open(path, "wb") as file:
            file.write(content)
    print(READY, flush=True)
    status, (out, err), cut = run(task)
    kept, lost = left(given, task["keep"])
    answer = {"status": status, "out": out, "err": err, "cut": cut, "files": kept, "lost": lost}
    print(json.dumps(answer), flush=True)


def run(task: dict) -> tuple:
    """The status, the texts on standard output and error, and how many bytes of them are missing."""
    pipes = [os.pipe(), os.pipe()]
    child = os.fork()
    if child == 0:
        code = 1
        try:
            code = start(task, [write for _, write in pipes])
        finally:
            os._exit(code)
    for _, write in pipes:
        os.close(write)
    open_ends, texts, cut = [read for read, _ in pipes], {read: b"" for read, _ in pipes}, 0
    deadline, exit_code = time.monotonic() + task["seconds"], None
    while time.monotonic() < deadline:
        ready, _, _ = select.select(open_ends, [], [], POLL)
        for end in ready:
            piece = os.read(end, 65536)
            if not piece:
                open_ends.remove(end)
            whole, limit = texts[end] + piece, task["output"]
            texts[end] = whole[-limit:] if end == pipes[1][0] else whole[:limit]  # a traceback's end says what happened
            cut += len(whole) - len(texts[end])
        if exit_code is None:
            pid, status = os.waitpid(child, os.WNOHANG)
            exit_code = os.waitstatus_to_exitcode(status) if pid else None
        if exit_code is not None and not ready:  # what it has started in turn does not outlive it
            break
    decoded = [texts[read].decode(errors="replace") for read, _ in pipes]
    if exit_code is None:
        os.kill(child, signal.SIGKILL)
        os.waitpid(child, 0)
    if exit_code is None or exit_code == -signal.SIGXCPU:
        return "time", decoded, cut
    return {0: "done", -signal.SIGKILL: "killed"}.get(exit_code, "failed"), decoded, cut


def start(task: dict, writes: list) -> int:
    """Of the child: takes the limits upon itself, and runs the code. Gives its exit code."""
    os.setsid()
    empty = os.open(os.devnull, os.O_RDONLY)
    for number, end in enumerate([empty, *writes]):
        os.dup2(end, number)
    os.closerange(3, 256)
    limits = {
        resource.RLIMIT_AS: task["memory"] * 2**20,
        resource.RLIMIT_CPU: int(task["seconds"]) + 1,
        resource.RLIMIT_NPROC: task["processes"],
        resource.RLIMIT_FSIZE: task["keep"],
        resource.RLIMIT_CORE: 0,
    }
    for limit, value in limits.items():
        if value is not None:
            resource.setrlimit(limit, (value, value))
    os.environ.update(task["settings"])
    sys.modules["__main__"], sys.argv = type(sys)("__main__"), [NAME]
    sys.modules["__main__"].__dict__["__builtins__"] = __builtins__
    sys.path.insert(0, "")
    for piece in task["before"]:
        quietly(piece)
    return execute(task["code"])


def quietly(code: str) -> None:
    """Runs code whose output has been seen."""
    sys.stdout.flush()
    sys.stderr.flush()
    kept, nowhere = [os.dup(1), os.dup(2)], os.open(os.devnull, os.O_WRONLY)
    for number in (1, 2):
        os.dup2(nowhere, number)
    execute(code)
    for number, end in zip((1, 2), kept, strict=True):
        os.dup2(end, number)
        os.close(end)
    os.close(nowhere)


def execute(code: str) -> int:
    """Runs the code as __main__, and prints the value of a last line that is an expression, as a console does."""
    linecache.cache[NAME] = (len(code), None, code.splitlines(True), NAME)
    main_module, exit_code = sys.modules["__main__"], 0
    try:
        tree = ast.parse(code, NAME)
        last = tree.body[-1] if tree.body else None
        shown = last if isinstance(last, ast.Expr) else None
        if shown is not None:
            tree.body.pop()
        exec(compile(tree, NAME, "exec"), main_module.__dict__)
        if shown is not None:
            value = eval(compile(ast.Expression(shown.value), NAME, "eval"), main_module.__dict__)
            if value is not None:
                print(repr(value))
    except SystemExit as ending:
        exit_code = ending.code if isinstance(ending.code, int) else int(ending.code is not None)
        if isinstance(ending.code, str):
            print(ending.code, file=sys.stderr)
    except BaseException as error:
        exit_code = 1
        inner = error.__traceback__
        while inner is not None and inner.tb_frame.f_code.co_filename != NAME:
            inner = inner.tb_next  # the frames of this file are of no interest to who wrote the code
        traceback.print_exception(type(error), error, inner)
    sys.stdout.flush()
    sys.stderr.flush()
    return exit_code % 256


def left(given: dict, keep: int) -> tuple:
    """The files that are new or changed, in base64, smallest first up to `keep` bytes; names of others."""
    found = []
    for folder, _, names in os.walk("."):
        for name in names:
            path = os.path.normpath(os.path.join(folder, name))
            if os.path.isfile(path) and not os.path.islink(path) and "__pycache__" not in path:
                found.append((os.path.getsize(path), path))
    kept, lost, total = {}, [], 0
    for size, path in sorted(found):
        with open(path, "rb") as file:
            content = file.read(max(keep - total, len(given.get(path, b""))) + 1)
        if given.get(path) == content:
            continue
        if total + size > keep:
            lost.append(path)
            continue
        total += len(content)
        kept[path] = base64.b64encode(content).decode()
    return kept, lost[:20]


if __name__ == "__main__":
    main()
