"""Pairs whose noise was kept, from their drawing to the training on them: PNAPO."""

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import save_file

from cli_support import quiet
from flowrl import cli
from flowrl.core.objectives.preference import gap_factor
from flowrl.names import UserError
from flowrl.policies.pipelines.walks.given_samples import open_noise
from flowrl.reading.pairs import load as load_pairs
from flowrl.reading.pairs import noise_of, rewards_of
from flowrl.recipe.load import load
from flowrl.runs.start import run

TEXTS = ["a red circle", "two blue squares"]
NONE = ["eval.every=null", "eval.at_start=false", "eval.at_end=false", "checkpoint.every=null", "prompts.heldout=null"]
SMALL = [
    *NONE,
    "train.prompts=4",
    "train.updates=1",
    "prompts.source=null",
    "eval.grid=0",
    "train.iterations=2",
    "sampler.steps=3",
]
OWN = ["model=shapes-flux", "pipeline={height: 32, width: 32, max_sequence_length: 16}", "offload=false", "device=cpu"]
OWN += ["dtype.model=float32", "rewards={size: {use: jpeg_compressibility}}"]


@pytest.fixture(scope="module")
def pairs(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Four pairs of a tiny model, as the command writes them."""
    folder = tmp_path_factory.mktemp("kept")
    (folder / "two.txt").write_text("\n".join(TEXTS))
    more = ["rewards={size: {use: jpeg_compressibility}}", "eval.steps=2", f"prompts.train={folder / 'two.txt'}"]
    given = ["--number", "4", "--group", "4", "--each", "2", "--output", str(folder / "out")]
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("sys.argv", ["flowrl", "pairs", "tiny_flow_grpo", *more, *given])
        try:
            cli.main()
        except SystemExit as end:
            assert not end.code
    return folder / "out" / "pairs.jsonl"


def metrics_of(folder: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]


def test_noise_and_rewards_stand_beside_each_pair(pairs: Path) -> None:
    prompts = load_pairs(str(pairs))
    files = [file for prompt in prompts for file in noise_of(prompt) or ()]
    assert len(set(files)) == 8 and {open_noise(file).shape for file in files} == {torch.Size([16, 16])}
    assert len({float(open_noise(file).sum()) for file in files}) == 8
    for prompt in prompts:
        better, worse = rewards_of(prompt) or ()
        assert better > worse and prompt.meta["scores"] == [1, -1]


def test_the_recipe_runs_on_pairs_that_the_model_drew(pairs: Path, tmp_path: Path) -> None:
    more = [*SMALL, *OWN, f"prompts.train={pairs}", "train.lr=1e-3"]
    whole = load("pnapo_flux", [*more, "train.micro_batch=null", f"output={tmp_path / 'whole'}"])
    shipped = load("pnapo_flux")
    assert (
        whole.objective == shipped.objective
        and whole.sampler.levels == shipped.sampler.levels
        and whole.curves == shipped.curves
    )
    run(whole, quiet())
    run(load("pnapo_flux", [*more, "train.micro_batch=1", f"output={tmp_path / 'rows'}"]), quiet())
    metrics, by_row = metrics_of(tmp_path / "whole"), metrics_of(tmp_path / "rows")
    assert metrics[0]["loss"] == pytest.approx(0.6931472) and metrics[0]["forwards/rollout"] == 0
    assert metrics[0]["active_rows"] == 1 and metrics[0]["grad_norm"] > 0
    for a, b in zip(metrics, by_row, strict=True):
        assert a["loss"] == pytest.approx(b["loss"], rel=1e-3) and a["grad_norm"] == pytest.approx(b["grad_norm"], 1e-3)


def test_a_wider_gap_of_rewards_counts_more(pairs: Path, tmp_path: Path) -> None:
    """At the first update the gradient of a pair is beta f(gap) / 4 times that of its errors."""
    norms = []
    for number, gaps in enumerate(([0.1] * 4, [3.0] * 4)):
        lines = [json.loads(line) for line in pairs.read_text().splitlines()]
        for line, gap in zip(lines, gaps, strict=True):
            line["rewards"] = [gap, 0.0]
        file = pairs.parent / f"gap{number}.jsonl"
        file.write_text("\n".join(map(json.dumps, lines)))
        folder = tmp_path / str(number)
        gap_of = ["objective.loss.gap=1", "train.max_grad_norm=1e9", "train.iterations=1"]
        run(load("pnapo_flux", [*SMALL, *OWN, *gap_of, f"prompts.train={file}", f"output={folder}"]), quiet())
        norms.append(metrics_of(folder)[0]["grad_norm"])
    factor = gap_factor(torch.tensor([3.0, 0.1]))
    assert norms[0] > 0 and norms[1] / norms[0] == pytest.approx(float(factor[0] / factor[1]), rel=1e-3)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"noise": None}, r"objective.loss.own_noise: .* has no column `noise` for 'two blue squares'"),
        ({"rewards": None}, r"objective.loss.gap: .* has no column `rewards` for 'two blue squares'"),
        ({"noise": ["gone.safetensors"] * 2}, r":4: .*gone.safetensors does not exist"),
        ({"noise": "pictures"}, r":4: noise is 'pictures'; accepted: a list of 2, one a sample"),
        ({"rewards": [1.0]}, r":4: rewards is \[1.0\]; accepted: a list of 2, one a sample"),
        ({"rewards": [1.0, "x"]}, r":4: rewards is 'x'; accepted: a number"),
        ({"rewards": [1.0, 2.0]}, r":4: the better sample's reward is 1, the worse one's 2; swap the two"),
    ],
)
def test_what_a_file_lacks_is_one_line_before_anything_loads(
    change: dict[str, Any], message: str, pairs: Path, tmp_path: Path
) -> None:
    lines = [json.loads(line) for line in pairs.read_text().splitlines()]
    lines[3] = {name: value for name, value in (lines[3] | change).items() if value is not None}
    file = pairs.parent / "lacking.jsonl"
    file.write_text("\n".join(map(json.dumps, lines)))
    with pytest.raises(UserError, match=message) as error:
        run(load("pnapo_flux", [*SMALL, *OWN, f"prompts.train={file}", f"output={tmp_path}"]), quiet())
    assert "\n" not in str(error.value)


def test_noise_of_another_size_is_refused(pairs: Path, tmp_path: Path) -> None:
    lines = [json.loads(line) for line in pairs.read_text().splitlines()]
    save_file({"noise": torch.zeros(4, 64)}, pairs.parent / "small.safetensors")
    for line in lines:
        line["noise"] = ["small.safetensors"] * 2
    file = pairs.parent / "small.jsonl"
    file.write_text("\n".join(map(json.dumps, lines)))
    with pytest.raises(UserError, match=r"got noise of shape \[4, 64\] for 8 samples, where this pipeline has 8 of"):
        run(load("pnapo_flux", [*SMALL, *OWN, f"prompts.train={file}", f"output={tmp_path}"]), quiet())


def test_drawn_samples_have_noise_of_their_own(tmp_path: Path) -> None:
    """Online, beside files: the same loss on samples that the model draws, whose rewards are their advantages."""
    online = ["train.source=rollouts", "train.group=3", "advantage.scale=none", "prompts.train=shapes/train"]
    run(load("pnapo_flux", [*SMALL, *OWN, *online, "objective.loss.gap=1", f"output={tmp_path}"]), quiet())
    metrics = metrics_of(tmp_path)
    assert metrics[0]["loss"] == pytest.approx(0.6931472) and all(m["grad_norm"] > 0 for m in metrics)
