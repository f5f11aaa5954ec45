"""docs/environments.md: the tool, the environment and the agent that it shows train."""

import re
import shlex
import sys
from pathlib import Path

import pytest

from cli_support import call
from resume_support import metrics

PAGE = (Path(__file__).parents[1] / "docs" / "environments.md").read_text(encoding="utf-8")
MODULES = dict(re.findall(r"^```python\n# (my_\w+)\.py\n(.*?)^```", PAGE, re.MULTILINE | re.DOTALL))
GIVEN = [shlex.split(line)[3:] for line in re.findall(r"^flowrl run tiny_lm_grpo .*", PAGE, re.MULTILINE)]
SMALL = ["train.prompts=2", "train.updates=1", "train.group=6", "train.iterations=1", "eval.prompts=2"]


@pytest.mark.parametrize("given", GIVEN, ids=lambda given: given[0][:40])
def test_an_example_trains(given: list[str], tmp_path: Path, capsys, monkeypatch: pytest.MonkeyPatch):
    for name, source in MODULES.items():
        (tmp_path / f"{name}.py").write_text(source)
        monkeypatch.delitem(sys.modules, name, raising=False)
    monkeypatch.chdir(tmp_path)
    monkeypatch.syspath_prepend(str(tmp_path))
    code, _, error = call(capsys, monkeypatch, "run", "tiny_lm_grpo", *given, *SMALL, "output=out")
    assert code == 0, error
    (line,) = [line for line in metrics(tmp_path / "out") if line["kind"] == "train"]
    assert line["replay_gap_max"] < 1e-4
    code, _, error = call(capsys, monkeypatch, "eval", "out")
    assert code == 2 and "--trust" in error


def test_a_tool_an_environment_and_an_agent_have_an_example():
    assert len(GIVEN) == len(MODULES) == 3
