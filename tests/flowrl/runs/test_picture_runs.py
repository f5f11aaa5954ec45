"""Runs of models that read pictures: resumed bit for bit, checked, and exported whole or as LoRA."""

import json
from pathlib import Path

import pytest
import torch
from transformers import AutoModelForImageTextToText, AutoProcessor

import vision_support as vision
from cli_support import call
from flowrl.checking.check import check
from flowrl.checking.proofs.proof import ProofResult
from flowrl.recipe.load import load
from resume_support import train

SMALL = ["train.prompts=2", "train.group=4", "train.updates=2", "train.micro_batch=2", "train.iterations=3"]
SMALL += ["eval.every=2", "eval.prompts=2", "eval.batch=2", "eval.grid=2", "checkpoint.every=1", "train.lr=0.01"]
SMALL += [
    "generation.max_new_tokens=8",
    "rewards={size: {use: test_picture_runs.counted}}",
    "device=cpu",
    "train.schedule=constant",
]


def counted(samples) -> torch.Tensor:
    """A reward that never ties: letters, less the further they are from a."""
    return torch.tensor([sum(1 / (1 + abs(ord(c) - 97)) for c in text) + 0.01 * len(text) for text in samples.texts])


@pytest.fixture(scope="module", params=["qwen2_5_vl", pytest.param("llava", marks=pytest.mark.slow)])
def world(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, list[str]]:
    """A folder with a model and prompts, and the overrides that name them."""
    path = tmp_path_factory.mktemp(request.param)
    vision.folder(path / "model", request.param)
    rows = []
    for i, text in enumerate(["What is this?", "Is <image> larger than <image>, or not?", "How many?", "12+345"]):
        names = [f"{i}{j}.png" for j in range([1, 2, 1, 0][i])]
        for j, name in enumerate(names):
            vision.picture(path / name, size=(56 + 28 * i, 56 + 28 * j), seed=i + j)
        rows.append(json.dumps({"prompt": text, "images": names}))
    (path / "prompts.jsonl").write_text("\n".join(rows))
    file = path / "prompts.jsonl"
    return path, [*SMALL, f"model={path / 'model'}", f"prompts.train={file}", f"prompts.heldout={file}"]


@pytest.fixture(scope="module")
def finished(world: tuple[Path, list[str]]) -> Path:
    path, given = world
    train("tiny_lm_grpo", given, path / "run")
    return path / "run"


def metrics(folder: Path) -> list[dict]:
    rows = [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]
    drop = ("time", "seconds", "per_second", "memory")
    return [{k: v for k, v in row.items() if not any(word in k for word in drop)} for row in rows]


def test_a_run_stopped_after_one_iteration_ends_alike(finished: Path, world: tuple[Path, list[str]]):
    path, given = world
    own = [row for row in metrics(finished) if row["kind"] == "train"]
    assert len(own) == 3 and all(row["replay_gap_max"] < 5e-5 and row["grad_norm"] > 0 for row in own)
    train("tiny_lm_grpo", [*given, "train.iterations=1"], path / "cut")
    train("tiny_lm_grpo", given, path / "cut", resume=True)
    for name in ("lora/adapter_model.safetensors",):
        assert (finished / name).read_bytes() == (path / "cut" / name).read_bytes()
    mine, others = ([r for r in metrics(f) if r["kind"] == "train"] for f in (finished, path / "cut"))
    assert mine == others


@pytest.mark.parametrize("kind", ["lora", "merged"])
def test_an_export_says_what_its_policy_says(
    kind: str, finished: Path, tmp_path: Path, capsys: pytest.CaptureFixture, monkeypatch: pytest.MonkeyPatch
):
    code, out, err = call(
        capsys,
        monkeypatch,
        "export",
        str(finished),
        "--kind",
        kind,
        "--to",
        str(tmp_path / kind),
        "--verify",
        "--trust",
    )
    assert code == 0, err
    assert "verified on 4 prompts" in out and "too little" not in out
    card = (tmp_path / kind / "README.md").read_text()
    assert "AutoModelForImageTextToText" in card and "AutoProcessor" in card
    if kind == "merged":
        AutoModelForImageTextToText.from_pretrained(tmp_path / kind)
        assert AutoProcessor.from_pretrained(tmp_path / kind).chat_template


def test_what_a_check_proves_of_it(world: tuple[Path, list[str]]):
    found = [f for f in check(load("tiny_lm_grpo", world[1]), rows=8) if isinstance(f, ProofResult)]
    assert [(f.title, f.measured, f.cause) for f in found if f.held is not True] == []
