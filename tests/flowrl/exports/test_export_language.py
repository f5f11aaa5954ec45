"""Exports of language models: what transformers and peft load says what the policy says."""

from pathlib import Path

import pytest
from safetensors.torch import load_file, save_file

from cli_support import call
from flowrl.exports import language
from flowrl.exports.writer import export_run
from flowrl.reading.prompts import load as load_prompts
from flowrl.recipe.load import load
from resume_support import train


@pytest.fixture(scope="module")
def language_run(tmp_path_factory) -> Path:
    """A short run of the language recipe, at a rate that moves it."""
    folder = tmp_path_factory.mktemp("runs") / "language"
    few = [
        "train.prompts=2",
        "train.group=4",
        "train.updates=1",
        "train.iterations=2",
        "eval.prompts=4",
        "train.lr=0.01",
    ]
    train("tiny_lm_grpo", few, folder)
    return folder


@pytest.mark.parametrize("kind", ["lora", "merged"])
def test_a_language_model_says_what_its_policy_says(kind, language_run, tmp_path, capsys, monkeypatch):
    code, out, err = call(
        capsys, monkeypatch, "export", str(language_run), "--kind", kind, "--to", str(tmp_path / kind), "--verify"
    )
    assert code == 0, err
    assert "verified on 4 prompts" in out and "too little" not in out
    card = (tmp_path / kind / "README.md").read_text()
    assert ("PeftModel" in card) == (kind == "lora") and "AutoModelForCausalLM" in card


def test_a_tampered_language_export_is_caught(language_run, tmp_path, monkeypatch):
    recipe = load(str(language_run / "recipe.yaml"))
    whole_write = language.write

    def tampered(policy, folder, kind):
        whole_write(policy, folder, kind)
        file = folder / "adapter_model.safetensors"
        tensors = load_file(file)
        name = next(n for n in tensors if "lora_B" in n)
        save_file(tensors | {name: tensors[name] + 0.5}, file, metadata={"format": "pt"})

    monkeypatch.setattr(language, "write", tampered)
    prompts = load_prompts("arithmetic/heldout", split="heldout", limit=2)
    found = export_run(recipe, language_run, tmp_path / "lora", "lora", prompts=prompts)
    assert found is not None and not found.accepted
