"""Models and tokenizers that are not what a recipe needs say what they are and what to do."""

import json
from dataclasses import replace
from pathlib import Path

import pytest
from tokenizers import Tokenizer, models, pre_tokenizers
from transformers import AutoTokenizer

from cli_support import call
from flowrl.policies.errors import PolicyError
from language_support import PLAN, PROMPTS, policy


def vision(folder: Path) -> Path:
    config = {"model_type": "qwen2_5_vl", "architectures": ["Qwen2_5_VLForConditionalGeneration"], "vision_config": {}}
    (folder / "config.json").write_text(json.dumps(config))
    return folder


def single(folder: Path) -> Path:
    (folder / "model.safetensors").write_bytes(b"x")
    return folder / "model.safetensors"


def gguf(folder: Path) -> Path:
    (folder / "model-q4.gguf").write_bytes(b"GGUF")
    return folder / "model-q4.gguf"


def gguf_folder(folder: Path) -> Path:
    return gguf(folder).parent


@pytest.mark.parametrize(
    ("make", "what", "remedy"),
    [
        (vision, "pictures or sound and text (qwen2_5_vl) without its processor", "AutoProcessor"),
        (single, "a single file without", "from_single_file"),
        (gguf, "a GGUF file", "gguf:"),
        (gguf_folder, "a folder of GGUF files", "hub id"),
    ],
)
@pytest.mark.parametrize("recipe", ["tiny_flow_grpo", "tiny_lm_grpo"])
def test_a_model_of_another_kind_says_what_it_is(recipe, make, what, remedy, tmp_path, capsys, monkeypatch):
    code, _, error = call(capsys, monkeypatch, "run", recipe, "--dry-run", f"model={make(tmp_path)}")
    assert code == 2 and len(error.splitlines()) == 1 and error.startswith("flowrl: model: ")
    assert what in error and remedy in error


def foreign(folder: Path) -> object:
    """A WordLevel file of whole words beside a Qwen2 configuration: transformers loads it as a byte-level tokenizer."""
    words = {word: i for i, word in enumerate(["<unk>", "<eos>", "what", "is", "twelve", "plus", "three"])}
    made = Tokenizer(models.WordLevel(words, unk_token="<unk>"))
    made.pre_tokenizer = pre_tokenizers.Whitespace()
    made.save(str(folder / "tokenizer.json"))
    (folder / "config.json").write_text(json.dumps({"model_type": "qwen2", "architectures": ["Qwen2ForCausalLM"]}))
    (folder / "tokenizer_config.json").write_text(json.dumps({"unk_token": "<unk>", "eos_token": "<eos>"}))
    return AutoTokenizer.from_pretrained(folder)


def test_a_tokenizer_that_does_not_know_the_prompts_is_refused_before_training(tmp_path):
    subject = policy()
    subject.prepare(PROMPTS[0], PLAN)  # its own tokenizer knows them
    other = policy()
    other.tokenizer = foreign(tmp_path)
    with pytest.raises(PolicyError, match="Qwen2Tokenizer.*tokenizer_class"):
        other.prepare(replace(PROMPTS[0], text="what is twelve plus three"), PLAN)
