"""The wheel: the three packages, the recipes, the shipped model and the entry point are in it."""

import shutil
import subprocess
import sys
import zipfile
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[1]
ASSETS = ROOT / "flowrl" / "worlds" / "shapes" / "assets"


@pytest.fixture(scope="module")
def names(tmp_path_factory: pytest.TempPathFactory) -> dict[str, str]:
    """Names in the built wheel, with the text of its metadata files."""
    folder = tmp_path_factory.mktemp("wheel")
    source = folder / "source"
    ignored = shutil.ignore_patterns(".*", "__pycache__", "*.egg-info", "build", "dist", "runs", "tests")
    shutil.copytree(ROOT, source, ignore=ignored)
    command = [sys.executable, "-m", "build", "--wheel", "--no-isolation", "--outdir", str(folder), str(source)]
    done = subprocess.run(command, capture_output=True, text=True)
    assert done.returncode == 0, done.stdout[-2000:] + done.stderr[-2000:]
    (wheel,) = folder.glob("flowrl_toolkit-*.whl")
    with zipfile.ZipFile(wheel) as archive:
        return {n: archive.read(n).decode() if ".dist-info/" in n else "" for n in archive.namelist()}


def test_packages_and_recipes_are_in_it(names: dict[str, str]):
    for package in ("flowrl", "samplers", "reward_models"):
        for path in (ROOT / package).rglob("*.py"):
            assert str(path.relative_to(ROOT)) in names
    for path in [*(ROOT / "recipes").glob("*.yaml"), *(ROOT / "recipes" / "prompts").iterdir()]:
        assert str(path.relative_to(ROOT)) in names
    assert not [n for n in names if n.startswith("tests/")]


def test_the_shipped_model_is_in_it_and_small(names: dict[str, str]):
    files = [p for p in ASSETS.rglob("*") if p.is_file()]
    assert ASSETS / "shapes-flux" / "model_index.json" in files
    for path in files:
        assert str(path.relative_to(ROOT)) in names
    assert sum(p.stat().st_size for p in files) <= 8_000_000


def test_metadata_names_the_distribution_and_the_command(names: dict[str, str]):
    metadata = next(text for name, text in names.items() if name.endswith("METADATA"))
    assert "Name: flowrl-toolkit" in metadata.splitlines()
    assert [line for line in metadata.splitlines() if line.startswith("License") and line.endswith("Apache-2.0")]
    entry_points = next(text for name, text in names.items() if name.endswith("entry_points.txt"))
    assert "flowrl = flowrl.cli:main" in entry_points
