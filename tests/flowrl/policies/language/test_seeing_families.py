"""Types of models that see or hear, tiny and random: what is drawn together is what each row is alone, and is seen.

A few in the usual tests, all that hold marked slow. docs/language.md tells which do not and why.
"""

import wave

import numpy as np
import pytest
import torch

import seeing_families as families
import vision_support as vision
from flowrl.contracts import Prompt
from flowrl.policies.errors import PolicyError
from flowrl.policies.language import proving
from language_support import replayed
from samplers.tokens import Generation

PLAN = Generation(5)
USUAL = ("gemma3", "qwen3_vl", "internvl", "smolvlm", "qwen3_asr")
ALONE = ("minicpmv4_6", "minicpmv4_7", "minicpm_ocr")  # their towers give other features where pictures are joined
SEEING = """
aya_vision cohere2_vision cosmos3_edge cosmos3_omni deepseek_vl exaone4_5 gemma3 gemma4
gemma4_unified glm46v glm4v glm4v_moe glm5_next glm_ocr glmga got_ocr2 granite_docling hunyuan_vl
hy_v4_vl hyperclovax_vision_v2 idefics2 idefics3 inkling2 inkling2_loop inkling_mm_model internvl
janus kimi_k25 lfm2_vl lfm3_vl lighton_ocr llava llava_next llava_next_video llava_onevision
minicpm_ocr minicpmv4_6 minicpmv4_7 minimax_m3_vl mistral3 mistral_large4 muse_glimmer ovis2
paddleocr_vl qianfan_ocr qwen2_5_omni_thinker qwen2_5_vl qwen2_vl qwen3_5 qwen3_5_moe
qwen3_omni_moe_thinker qwen3_vl qwen3_vl_moe smolvlm video_llama_3 video_llava vipllava
""".split()
HEARING = """glmasr moss_transcribe_diarize omniasr qwen2_audio qwen3_asr""".split()


@pytest.fixture(scope="module")
def files(tmp_path_factory: pytest.TempPathFactory) -> dict[str, tuple[str, str]]:
    folder = tmp_path_factory.mktemp("media")
    for name, seconds, hertz in (("a", 1.0, 440), ("b", 1.6, 700)):
        time = np.arange(int(16000 * seconds)) / 16000
        with wave.open(str(folder / f"{name}.wav"), "wb") as file:
            file.setparams((1, 2, 16000, 0, "NONE", ""))
            file.writeframes((2**14 * np.sin(2 * np.pi * hertz * time)).astype("<i2").tobytes())
    pictures = (
        vision.picture(folder / "a.png", size=(224, 168)),
        vision.picture(folder / "b.png", size=(112, 196), seed=1),
    )
    return {"image": pictures, "audio": (str(folder / "a.wav"), str(folder / "b.wav"))}


@pytest.mark.filterwarnings("ignore::DeprecationWarning")  # of transformers' own processors
@pytest.mark.parametrize(
    "name", [n if n in USUAL else pytest.param(n, marks=pytest.mark.slow) for n in (*SEEING, *HEARING)]
)
def test_rows_drawn_together_are_each_row_alone(name: str, files: dict[str, tuple[str, str]]):
    first, second = files["audio" if name in HEARING else "image"]
    prompts = [
        Prompt("one", "What is this?", (first,)),
        Prompt("two", "And which is larger or so?", (second,)),
        Prompt("three", "Why", (first,)),
    ]
    subject = families.policy(name, batch_invariant=name in ALONE)
    subject._proven = {True, False}  # the proof's limit is wider than what is shown here
    rollout = subject.rollout(prompts, plan=PLAN, seed=0)
    mask = rollout.mask
    for parts in ([[0, 1, 2]], [[2], [0], [1]]):
        found = replayed(subject, rollout, parts).logp
        torch.testing.assert_close(found[mask], rollout.rollout_logp[mask], rtol=0, atol=1e-5)
    rollout.replay.inputs = [proving._other(shown) for shown in rollout.replay.inputs]
    changed = (replayed(subject, rollout, [[0, 1, 2]]).logp - rollout.rollout_logp).abs()[:, 0]
    assert (changed > 1e-4).all()


def test_a_model_that_does_not_see_its_pictures_is_refused(files: dict[str, tuple[str, str]]):
    """Its config names no placeholder: transformers leaves the pictures out without a word."""
    subject = families.policy("minicpmv4_6", batch_invariant=True)
    subject.model.config.image_token_id = None
    with pytest.raises(PolicyError, match="give the same log-probs, so the model does not see them"):
        subject.prepare(Prompt("one", "What is this?", files["image"][:1]), PLAN)


def test_a_model_without_a_cache_is_refused():
    with pytest.raises(PolicyError, match="Blip2ForConditionalGeneration takes no key-value cache"):
        families.policy("blip-2")
