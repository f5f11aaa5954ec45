"""docs/extending.md: every part of one's own that the page shows is planned, and all of them train together."""

import json
import re
import shlex
import sys
from pathlib import Path

import pytest

from cli_support import call
from flowrl.parts import KINDS

PAGE = (Path(__file__).parents[1] / "docs" / "extending.md").read_text(encoding="utf-8")
MODULES = dict(re.findall(r"^```python\n# (my_\w+)\.py\n(.*?)^```", PAGE, re.MULTILINE | re.DOTALL))
OVERRIDES = [shlex.split(line)[3:] for line in re.findall(r"^flowrl run tiny_flow_grpo .*", PAGE, re.MULTILINE)]
SMALL = ["train.prompts=2", "train.updates=1", "train.group=6", "train.iterations=2", "eval.prompts=2"]
SMALL += ["eval.at_start=false", "watch.patience=1"]


@pytest.fixture(autouse=True)
def here(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    for name, source in MODULES.items():
        (tmp_path / f"{name}.py").write_text(source)
        monkeypatch.delitem(sys.modules, name, raising=False)
    monkeypatch.chdir(tmp_path)
    monkeypatch.syspath_prepend(str(tmp_path))
    return tmp_path


def test_every_kind_of_part_has_an_example():
    assert (
        len(MODULES) == len(OVERRIDES) == len(set(KINDS) - {"tool", "environment", "agent"})
    )  # environments.md has these
    assert all(any(name in " ".join(given) for given in OVERRIDES) for name in MODULES)


@pytest.mark.parametrize("given", OVERRIDES, ids=" ".join)
def test_an_example_is_planned(given: list[str], capsys: pytest.CaptureFixture, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr("flowrl.planning.sizes.text.describe_sizes", lambda recipe, prompts: "")
    code, out, error = call(capsys, monkeypatch, "run", "tiny_flow_grpo", *given, "--dry-run")
    assert code == 0 and "row-forwards" in out, error


def test_all_examples_train_together(here: Path, capsys: pytest.CaptureFixture, monkeypatch: pytest.MonkeyPatch):
    given = [word for words in OVERRIDES for word in words]
    trees = [word for word in given if word.startswith("sampler.tree")]  # whose rows its advantage is no part of
    others = [word for word in given if word not in trees]
    more = [*SMALL, "policy.every=10", "output=out"]
    code, out, error = call(capsys, monkeypatch, "run", "tiny_flow_grpo", *others, *more)
    assert code == 0, error
    assert "12 samples so far" in out and "24 samples so far" in out
    run = here / "out"
    rows = [json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines()]
    assert all("reward/red/mean" in row for row in rows if "loss" in row)
    code, _, error = call(capsys, monkeypatch, "run", "tiny_flow_grpo", *trees, *SMALL, "output=grown")
    assert code == 0, error
    code, _, error = call(capsys, monkeypatch, "eval", str(run))
    assert code == 2 and "--trust" in error
