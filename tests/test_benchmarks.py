"""Each benchmark runs, for a few seconds, and prints the numbers that its head promises."""

import importlib.util
import json
import re
import sys
from pathlib import Path
from types import ModuleType

import pytest
import torch

from flowrl.policies.compiling import uncompiled

BENCHMARKS = Path(__file__).resolve().parents[1] / "benchmarks"
SMALL = {
    "decoding": "tiny_lm_grpo train.prompts=2 train.group=3 generation.max_new_tokens=8 --repeats 2",
    "methods": "--steps 6 --group 12 --prompts 1 --repeats 1 --warm-up 0 --iterations 0 --threads 1"
    " --only mixgrpo,branch-mix,tempflow",
    "language_presets": "--only grpo,sapo --seeds 3 --tokens 60 train.prompts=2 train.group=2 train.updates=1"
    " generation.max_new_tokens=8 eval.prompts=4",
    "large": "tiny_flow_grpo model=random:shapes-flux?blocks=1 train.prompts=2 train.group=4"
    " train.updates=2 watch=null --iterations 2 --repeats 1",
    "overhead": "--steps 2 --repeats 1 --threads 1 --batches 4 8",
}


def module(name: str) -> ModuleType:
    spec = importlib.util.spec_from_file_location(f"benchmark_{name}", BENCHMARKS / f"{name}.py")
    assert spec is not None and spec.loader is not None
    found = importlib.util.module_from_spec(spec)
    sys.modules[spec.name] = found  # dataclasses look their module up
    spec.loader.exec_module(found)
    return found


def ran(name: str, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> list[str]:
    monkeypatch.setattr(sys, "argv", [name, *SMALL[name].split()])
    threads = torch.get_num_threads()
    try:
        module(name).main()
    finally:
        torch.set_num_threads(threads)
    return capsys.readouterr().out.splitlines()


def test_every_benchmark_is_run_here():
    assert {path.stem for path in BENCHMARKS.glob("*.py")} == set(SMALL)


def test_methods(monkeypatch, capsys):
    head, *rows = ran("methods", monkeypatch, capsys)
    assert "ratio" in head and [row.split()[0] for row in rows] == ["all-steps", "mixgrpo", "branch-mix", "tempflow"]
    numbers = {row.split()[0]: [float(n) for n in row.replace("<=", "").split()[1:]] for row in rows}
    drawn, replayed, samples = zip(*(numbers[name][-3:] for name in ("all-steps", "mixgrpo")), strict=True)
    # 12 rows through 6 steps, all but the last replayed; a window of 4 whose first step all share
    assert (drawn, replayed, samples) == ((72, 61), (60, 37), (12, 12))
    assert numbers["all-steps"][4] == 1


def test_decoding(monkeypatch, capsys):
    with uncompiled():  # minutes of a compiler's work are not tried here
        first, second, *seeds, static, growing, last = ran("decoding", monkeypatch, capsys)
    assert first.startswith("static   before the first: ") and second.startswith("growing  before the first: ")
    assert len(seeds) == 2 and all(re.match(rf"seed {i}: \d+ tokens, the same: True", s) for i, s in enumerate(seeds))
    assert all(float(seed.rsplit(" ", 1)[-1]) < 1e-5 for seed in seeds)
    rates = [re.findall(r" (\d+) (?:tokens|on)", line) for line in (static, growing)]
    assert all(len(rate) == 2 and all(int(n) > 0 for n in rate) for rate in rates)
    assert last == "graphs after the first rollouts: 0"


def test_language_presets(monkeypatch, capsys, tmp_path):
    monkeypatch.chdir(tmp_path)
    _, _, _, *rows = ran("language_presets", monkeypatch, capsys)
    assert [row.split("`")[1] for row in rows] == ["grpo", "sapo"]
    for row in rows:
        result = json.loads((tmp_path / "runs" / "presets" / f"{row.split('`')[1]}-3" / "result.json").read_text())
        assert result["tokens"] >= 60 and 1 <= result["iterations"] <= 8 and f"{result['tokens']:,.0f}" in row


def test_overhead(monkeypatch, capsys):
    _, *rows = ran("overhead", monkeypatch, capsys)
    assert [tuple(row.split()[:2]) for row in rows] == [
        *((name, "4") for name in ("rollout", "merged", "floor", "training", "guided")),
        *((name, "8") for name in ("rollout", "merged", "floor", "training", "decoding", "merged", "step")),
    ]
    assert all(re.fullmatch(r"\d+\.\d{3}", row.split()[-1]) for row in rows)


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore:The .grad attribute of a Tensor:UserWarning")  # torch's tracer asks for it
def test_compiled_blocks_over_plain_ones(monkeypatch, capsys):
    monkeypatch.setitem(SMALL, "overhead", f"{SMALL['overhead'].replace('4 8', '4')} --cpu --compile eager")
    _, *rows = ran("overhead", monkeypatch, capsys)
    told, found = rows[::2], [row.split() for row in rows[1::2]]
    assert all(
        re.fullmatch(r" +[1-9]\d* graphs, 0 graph breaks, first call \S+ s, \S+ s of the processor's", t) for t in told
    )
    assert [row[:2] for row in found] == [[name, "4"] for name in ("rollout", "training", "again", "step")]
    assert all(0.2 < float(row[-1]) < 5 for row in found)


def test_large(tmp_path, monkeypatch, capsys):
    file = tmp_path / "large.jsonl"
    monkeypatch.setitem(SMALL, "large", f"{SMALL['large']} --json {file}")
    lines = ran("large", monkeypatch, capsys)
    found = json.loads(file.read_text())
    assert found["recipe"].startswith("random:") and found["iterations"] == 1 and len(lines) == len(found) - 2
    assert all(found["seconds"][phase] > 0 for phase in ("rollout", "score", "train"))
    assert found["rollout over forwards"] > 1 and found["training over bare calls"] > 0.5
    assert found["calls that were tried bare"] == 1 and found["FLOP an iteration"] > 1e6
    assert found["bytes held at most"] > 1e6 and 0 < found["share of a matrix product's rate"] < 1
