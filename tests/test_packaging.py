"""The wheel: the three packages, the recipes, the shipped model and the command are in it, and work from it."""

import os
import re
import shutil
import subprocess
import sys
import zipfile
from configparser import ConfigParser
from email.parser import Parser
from pathlib import Path

import pytest

from flowrl import __version__

ROOT = Path(__file__).resolve().parents[1]
WORLDS = ROOT / "flowrl" / "worlds"
SHIPPED = (
    "shapes/assets/shapes-flux/model_index.json",
    "shapes/assets/shapes-clip/open_clip_model.safetensors",
    "shapes/assets/shapes-aesthetic/head.safetensors",
    "shapes/assets/shapes-vlm/model.safetensors",
    "shapes/assets/shapes-style-clip/open_clip_model.safetensors",
    "arithmetic/assets/arithmetic-qwen2/config.json",
    "shapes_look/assets/look-llava/processor_config.json",
)
MAX_ASSETS = 11_000_000  # bytes


def _own_runs(folder: str) -> list[str]:
    """What runs from the checkout wrote, which the package flowrl.runs is not."""
    return ["runs"] if Path(folder) == ROOT else []


@pytest.fixture(scope="module")
def wheel(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The built wheel, unpacked. It is built from a copy without leftovers, without network and without isolation."""
    folder = tmp_path_factory.mktemp("wheel")
    ignored = shutil.ignore_patterns(".*", "__pycache__", "*.egg-info", "build", "dist", "tests")
    shutil.copytree(ROOT, folder / "source", ignore=lambda at, names: {*ignored(at, names), *_own_runs(at)})
    command = [sys.executable, "-m", "build", "--wheel", "--no-isolation", "--outdir", str(folder), "source"]
    done = subprocess.run(command, cwd=folder, capture_output=True, text=True, stdin=subprocess.DEVNULL)
    assert done.returncode == 0, done.stdout[-2000:] + done.stderr[-2000:]
    (built,) = folder.glob("flowrl_toolkit-*.whl")
    with zipfile.ZipFile(built) as archive:
        archive.extractall(folder / "unpacked")
    return folder / "unpacked"


def test_packages_and_recipes_are_in_it(wheel: Path):
    modules = [p for package in ("flowrl", "samplers", "reward_models") for p in (ROOT / package).rglob("*.py")]
    recipes = [
        *(ROOT / "recipes").glob("*.yaml"),
        *(p for p in (ROOT / "recipes" / "prompts").rglob("*") if p.is_file()),
    ]
    page = [*(ROOT / "flowrl" / "report").glob("*.[hcj]*")]  # the pages' frame, templates, style and script
    page += [p for folder in ("compare", "scan") for p in (ROOT / "flowrl" / folder).glob("*.[hc]*")]
    assert len(modules) > 40 and len(recipes) >= 30 and len(page) == 8
    for path in modules + recipes + page:
        assert (wheel / path.relative_to(ROOT)).read_bytes() == path.read_bytes()
    top = {p.name for p in wheel.iterdir() if p.suffix != ".dist-info"}
    assert top == {"flowrl", "samplers", "reward_models", "recipes"}  # neither tests nor benchmarks


def test_the_shipped_models_are_in_it_and_small(wheel: Path):
    files = [p for p in WORLDS.glob("*/assets/**/*") if p.is_file()]
    assert {WORLDS / name for name in SHIPPED} <= set(files)
    for path in files:
        assert (wheel / path.relative_to(ROOT)).read_bytes() == path.read_bytes()
    assert sum(p.stat().st_size for p in files) <= MAX_ASSETS


def test_metadata_names_the_distribution_and_the_command(wheel: Path):
    (info,) = wheel.glob("*.dist-info")
    metadata = Parser().parsestr((info / "METADATA").read_text(encoding="utf-8"))
    assert metadata["Name"] == "flowrl-toolkit" and metadata["Version"] == __version__
    assert "Apache-2.0" in (metadata["License-Expression"] or metadata["License"])
    assert list(info.rglob("LICENSE")) and metadata.get_payload().startswith("# flowrl")
    entry_points = ConfigParser()
    entry_points.read(info / "entry_points.txt")
    assert dict(entry_points["console_scripts"]) == {"flowrl": "flowrl.cli:main"}


def test_the_wheel_works_away_from_the_checkout(wheel: Path, tmp_path: Path):
    """`flowrl run quickstart` finds recipe, steps, rewards and model where the wheel put them."""
    main = "from flowrl import names, cli; print(names.MODELS['shapes-flux'], flush=True); cli.main()"
    command = [sys.executable, "-c", main, "run", "quickstart", "--dry-run"]
    environment = {**os.environ, "PYTHONPATH": str(wheel)}
    done = subprocess.run(command, cwd=tmp_path, env=environment, capture_output=True, text=True)
    assert done.returncode == 0, done.stdout[-2000:] + done.stderr[-2000:]
    model, *plan = done.stdout.splitlines()
    assert Path(model).is_relative_to(wheel) and (Path(model) / "model_index.json").is_file()
    assert plan


def test_constraints_pin_every_direct_dependency():
    """What setup.cfg asks for, the constraints file fixes; names are compared as package indexes do."""
    config = ConfigParser()
    config.read(ROOT / "setup.cfg")
    wanted = config["options"]["install_requires"] + config["options.extras_require"]["test"]
    lines = [line.partition("#")[0].strip() for line in (ROOT / "constraints.txt").read_text().splitlines()]
    pinned = {_name(line) for line in lines if re.match(r"[\w.-]+==\d", line)}
    assert {_name(line) for line in wanted.split("\n") if line} == pinned
    assert not (ROOT / "pyproject.toml").read_text().count("[project]\n")


def _name(requirement: str) -> str:
    return re.split(r"[^\w.-]", requirement)[0].lower().replace("_", "-")
