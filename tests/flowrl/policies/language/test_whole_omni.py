"""A whole omni checkpoint, with the parts that speak: its reading and writing part is the policy."""

from pathlib import Path

import pytest
import torch
import transformers as tf

import seeing_families as families
import seeing_survey as survey
from flowrl.contracts import Prompt
from flowrl.policies.language.policy import LanguagePolicy
from flowrl.policies.loading import load_language, load_processor


@pytest.mark.slow  # builds the parts that speak as well
def test_the_thinker_of_a_whole_checkpoint_is_loaded_and_proven(tmp_path: Path):
    folder = tmp_path / "whole"
    torch.manual_seed(0)
    config, processor = families.fitting("qwen2_5_omni")
    whole = tf.Qwen2_5OmniForConditionalGeneration(config).float().eval()
    assert any(name.startswith("talker.") for name, _ in whole.named_parameters())
    whole.save_pretrained(folder)
    processor.save_pretrained(folder)

    model, tokenizer = load_language(str(folder), torch.float32)
    assert type(model) is tf.Qwen2_5OmniThinkerForConditionalGeneration
    state, thinker = model.state_dict(), whole.thinker.state_dict()
    assert state.keys() == thinker.keys() and all(torch.equal(value, thinker[name]) for name, value in state.items())
    policy = LanguagePolicy(model, tokenizer, processor=load_processor(str(folder)))
    files = survey.written(tmp_path)
    for kind in ("image", "audio"):
        policy._proven.clear()
        policy.prepare(Prompt("one", "What is this?", files[kind][:1]), survey.PLAN)
