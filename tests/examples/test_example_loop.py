"""The loop from Python, as examples/loop.py writes it, with small settings; and the names that it takes from flowrl."""

import importlib.util
import subprocess
import sys
from pathlib import Path
from types import ModuleType

import pytest

import flowrl

ROOT = Path(__file__).resolve().parents[2]


@pytest.fixture(scope="module")
def example() -> ModuleType:
    """examples/loop.py, imported but not run."""
    spec = importlib.util.spec_from_file_location("loop_example", ROOT / "examples" / "loop.py")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def test_the_loop_runs_repeats_and_saves_its_lora(example: ModuleType, tmp_path: Path, capsys: pytest.CaptureFixture):
    curve = example.main(iterations=2, prompts=4, group=3, output=str(tmp_path))
    printed = [line for line in capsys.readouterr().out.splitlines() if line.startswith("iteration")]
    assert len(curve) == len(printed) == 2 and all(0 < reward < 1 for reward in curve)
    assert (tmp_path / "pytorch_lora_weights.safetensors").stat().st_size > 100_000
    assert example.main(iterations=1, prompts=4, group=3) == curve[:1]


def test_every_name_at_the_door_leads_to_a_thing():
    things = {name: getattr(flowrl, name) for name in flowrl.__all__}
    assert all(callable(thing) for name, thing in things.items() if name != "__version__")
    assert set(flowrl.__all__) <= set(dir(flowrl))
    with pytest.raises(AttributeError, match="no_such_name"):
        _ = flowrl.no_such_name


def test_importing_flowrl_and_its_command_loads_nothing_heavy():
    code = "import sys, flowrl, flowrl.cli; print({'torch', 'diffusers', 'transformers'} & set(sys.modules))"
    done = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "set()"
