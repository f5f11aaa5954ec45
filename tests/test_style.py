"""House rules that a linter does not know, read off the files: each is a function that a planted breach makes fail."""

import ast
import re
import subprocess
from collections.abc import Iterator
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[1]
PACKAGES = ("flowrl", "samplers", "reward_models", "examples")
MODULES = sorted(path.relative_to(ROOT) for package in PACKAGES for path in (ROOT / package).rglob("*.py"))
TESTS = sorted(path.relative_to(ROOT) for path in (ROOT / "tests").rglob("*.py"))
MAX_LINES = 330
MAX_TOLERANCE = 1e-3
SHADOWING = {"types.py", "token.py"}  # as a script's neighbour, either breaks the standard library
MACHINES = re.compile(
    r"""(?:^|[\s"'`=(\[:,])(/(?:work|tmp|home|root|opt|mnt|Users)(?:/[\w.-]*)?)(?![\w-])""", re.MULTILINE
)


def wide_tolerances(source: str) -> list[str]:
    """`rtol=` and `atol=` beyond 1e-3: a comparison that accepts nearly anything passes for nothing."""
    keywords = (node for node in ast.walk(ast.parse(source)) if isinstance(node, ast.keyword))
    written = ((k.arg, k.value) for k in keywords if k.arg in ("rtol", "atol") and isinstance(k.value, ast.Constant))
    return [f"line {v.lineno}: {name}={v.value}" for name, v in written if float(v.value) > MAX_TOLERANCE]


def machine_paths(text: str) -> list[str]:
    """Absolute paths that exist on somebody's machine only."""
    return [match[1] for match in MACHINES.finditer(text)]


def tracked_files() -> Iterator[Path]:
    """The text files that git tracks; of an unpacked archive, those that are not hidden."""
    listed = subprocess.run(["git", "ls-files", "-z"], cwd=ROOT, capture_output=True, text=True, check=False)
    here = [ROOT / name for name in listed.stdout.split("\0") if name] if listed.returncode == 0 else []
    for path in here or (p for p in ROOT.rglob("*") if not any(x.startswith(".") for x in p.relative_to(ROOT).parts)):
        if path.is_file() and path.suffix not in (".safetensors", ".png", ".pyc"):
            yield path


@pytest.mark.parametrize("path", TESTS, ids=str)
def test_tolerances_are_small(path: Path):
    assert wide_tolerances((ROOT / path).read_text(encoding="utf-8")) == []


@pytest.mark.parametrize("path", MODULES, ids=str)
def test_modules_are_short_and_say_what_they_are(path: Path):
    source = (ROOT / path).read_text(encoding="utf-8")
    assert len(source.splitlines()) <= MAX_LINES
    assert ast.get_docstring(ast.parse(source)), "a module begins with a docstring"
    assert path.name not in SHADOWING


def test_no_file_names_a_path_of_one_machine():
    files = list(tracked_files())
    assert ROOT / "setup.cfg" in files and len(files) > 100
    found = {
        str(f.relative_to(ROOT)): machine_paths(f.read_text(encoding="utf-8")) for f in files if f != Path(__file__)
    }
    assert {name: paths for name, paths in found.items() if paths} == {}


@pytest.mark.parametrize("call", ["f(rtol=1e6)", "f(x, atol=0.5)", "f(rtol=10)"])
def test_a_wide_tolerance_is_seen(call: str):
    assert wide_tolerances(call) and not wide_tolerances("f(rtol=1e-5, atol=1e-3, other=3.0)")


@pytest.mark.parametrize("text", ['x = "/tmp/x"', "cd /work", "see: /home/me/model", "PATH=/opt/fv/bin"])
def test_a_path_of_one_machine_is_seen(text: str):
    assert machine_paths(text)
    assert not machine_paths("https://hub.example/work/model and runs/tmp, 3/tmp, /workshop, a/opt/b")
