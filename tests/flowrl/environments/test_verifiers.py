"""The agent verifiers, against the package itself; skipped without it."""

import json
import sys
from pathlib import Path

import pytest
from typer.testing import CliRunner

from cli_support import quiet
from flowrl import names
from flowrl.cli import app
from flowrl.contracts import Prompt, Unavailable
from flowrl.environments.plugins.verifiers import verifiers
from flowrl.recipe.load import load
from flowrl.runs.start import run

ENV = {"agent": {"harness": {"id": "sums_for_tests"}, "runtime": {"type": "subprocess"}}}

PLAN = f"environment={json.dumps({'agent': 'verifiers', 'args': {'taskset': 'sums_for_tests', 'env': ENV}})}"


def test_it_ships_as_an_agent():
    assert names.shipped("agent")["verifiers"].accepts == ("taskset", "env", "task")


def test_without_the_package_it_is_one_line(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setitem(sys.modules, "verifiers.v1", None)
    with pytest.raises(Unavailable, match=r"flowrl-toolkit\[verifiers\]"):
        verifiers(taskset="sums_for_tests")
    plan = CliRunner().invoke(app, ["run", "tiny_lm_grpo", PLAN, "--dry-run"])
    assert "missing     environment.agent: 'verifiers' cannot be used" in plan.output


@pytest.mark.slow
def test_its_rewards_train(tmp_path: Path):
    pytest.importorskip("verifiers.v1")
    rows = [{"prompt": "1+2", "task": 0, "answer": "3"}, {"prompt": "2+5", "task": 1, "answer": "7"}]
    (tmp_path / "sums.jsonl").write_text("\n".join(map(json.dumps, rows)))
    changes = [f"prompts={{train: {tmp_path / 'sums.jsonl'}, heldout: null}}", f"output={tmp_path / 'run'}"]
    changes += [PLAN]
    changes += ["rewards={digits: {use: outcome}}", "generation.max_new_tokens=60", "environment.turn_tokens=20"]
    changes += ["train.prompts=2", "train.group=2", "train.updates=1", "train.iterations=2", "eval.every=null"]
    run(load("tiny_lm_grpo", [*changes, "eval.at_start=false", "eval.at_end=false", "device=cpu"]), quiet())
    train = [json.loads(line) for line in (tmp_path / "run" / "metrics.jsonl").read_text().splitlines()]
    train = [line for line in train if line["kind"] == "train"]
    assert len(train) == 2 and all(0 <= line["reward/digits/mean"] <= 2 for line in train)
    with pytest.raises(RuntimeError, match="the episode failed"):
        verifiers(taskset="sums_for_tests", env=ENV)("http://127.0.0.1:9/v1", Prompt("a", "", meta={"task": 0}))
    with pytest.raises(ValueError, match="the number of a task"):
        verifiers(taskset="sums_for_tests", env=ENV)("http://127.0.0.1:9/v1", Prompt("a", ""))
