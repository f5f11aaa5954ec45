"""What a plan looks up instead of finding out, and that it loads no big library for a recipe that ships."""

import json
import subprocess
import sys
from pathlib import Path

import pytest

from flowrl import names
from flowrl.planning import remembered
from flowrl.planning.sizes import measure, memory
from flowrl.planning.sizes.encoders import lines
from flowrl.planning.sizes.flops import denoising
from flowrl.planning.sizes.memory import configs_of, sizes
from flowrl.planning.sizes.shipped import find_facts
from flowrl.reading.inputs import planned_prompts
from flowrl.recipe.load import load

SECONDS = "import sys\nfrom flowrl.cli import main\nsys.argv = ['flowrl', 'run', {name!r}, '--dry-run']\n"
SECONDS += "try:\n    main()\nexcept SystemExit as end:\n    assert not end.code\n"  # as it always ends
SECONDS += (
    "loaded = [m for m in ('diffusers', 'transformers', 'peft') if m in sys.modules]\nassert not loaded, loaded\n"
)


def test_a_fact_is_found_out_once(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    asked = []

    def find() -> list[int]:
        asked.append(1)
        return [1, 2]

    assert [remembered.look_up("a", {"x": 1}, find) for _ in range(3)] == [[1, 2]] * 3 and len(asked) == 1
    remembered.look_up("a", {"x": 2}, find)
    assert len(asked) == 2
    (file,) = (tmp_path / "flowrl").iterdir()
    file.write_text(file.read_text()[:-3])  # cut short: found out again
    remembered.look_up("a", {"x": 1}, find)
    assert len(asked) == 3 and len(json.loads(file.read_text())) == 1


def test_what_is_refused_is_refused_again(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    for _ in range(2):
        with pytest.raises(ValueError, match="takes no 'heigth'"):
            planned_prompts(load("tiny_flow_grpo").model_copy(update={"pipeline": {"heigth": 32}}))


@pytest.mark.parametrize("name", names.recipes())
def test_the_plan_of_a_recipe_that_ships_is_known(name: str, monkeypatch: pytest.MonkeyPatch):
    def measured(asked: object, *_: object, **more: object) -> dict:
        raise AssertionError(f"{name}: make flowrl/remembered.json again (python -m flowrl.planning.sizes.shipped)")

    monkeypatch.setattr(memory, "_measure", measured)
    monkeypatch.setattr(measure, "measure_flops", measured)
    monkeypatch.setattr(measure, "measure_encoded", measured)
    recipe = load(name)
    prompts = planned_prompts(recipe)[0] or []
    estimate = sizes(recipe, prompts)
    assert (estimate is None) == (configs_of(recipe.model) is None)
    assert bool(estimate and lines(recipe, estimate, prompts)) == (recipe.offload and estimate is not None)
    assert (denoising(recipe, prompts) is None) == (configs_of(recipe.model) is None)


@pytest.mark.parametrize("name", ["tiny_flow_grpo", "mixgrpo_flux"])
def test_a_plan_loads_no_big_library(name: str):
    done = subprocess.run([sys.executable, "-c", SECONDS.format(name=name)], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    assert done.stdout.startswith(f"{name}: the recipe is valid") and "memory" in done.stdout


def test_the_facts_of_a_recipe_are_true(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    recipe = load("tiny_flow_grpo")
    prompts = planned_prompts(recipe)[0] or []
    known = sizes(recipe, prompts)
    monkeypatch.setattr(remembered, "SHIPPED", tmp_path / "none")
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    assert sizes(recipe, prompts) == known


@pytest.mark.slow
def test_all_facts_that_ship_are_true():
    assert find_facts() == json.loads(remembered.SHIPPED.read_text())
