"""The golden tests with another set of cases: what it lacks is passed over, counted and said."""

import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

import golden

HERE = Path(__file__).parent


@pytest.mark.skipif(not golden.ROOT.is_dir(), reason=golden.ABSENT)
def test_a_set_that_lacks_kinds_is_passed_over_and_counted(tmp_path: Path):
    (tmp_path / "samplers").mkdir()
    shutil.copy(golden.ROOT / "samplers" / "schedules.json", tmp_path / "samplers")
    files = [str(path) for path in sorted(HERE.glob("**/test_golden_*.py")) if path.name != Path(__file__).name]
    command = [sys.executable, "-m", "pytest", "-rs", "-p", "no:cacheprovider", *files]
    environment = os.environ | {"FLOWRL_GOLDEN": str(tmp_path)}
    done = subprocess.run(command, cwd=HERE.parent, env=environment, capture_output=True, text=True)
    assert done.returncode == 0, done.stdout[-3000:]
    assert "has no case of this kind in samplers/dpm_solver.json" in " ".join(done.stdout.split())
    last = done.stdout.splitlines()[-1]
    assert " passed" in last and " skipped" in last
