"""Types of models that see or hear, tiny and random: what is drawn together is what each row is alone, and is seen.

A few in the usual tests, all that hold marked slow. docs/seeing.md has the whole table, and why others are refused.
"""

import re
from pathlib import Path

import pytest
import torch

import seeing_families as families
import seeing_survey as survey
from flowrl.contracts import Prompt
from flowrl.policies.compiling import uncompiled
from flowrl.policies.errors import PolicyError
from flowrl.policies.language.drawing.static_cache import StaticCache, refuse_static
from seeing_tables import TORCHAUDIO

USUAL = ("gemma3", "qwen3_vl", "internvl", "smolvlm", "qwen3_asr", "mllama", "paligemma", "idefics", "blip-2")
SEEING = """
apertus1p5 aria aya_vision blip blip-2 chameleon cohere2_vision cohere_compass cosmos3_edge cosmos3_omni deepseek_ocr2
deepseek_vl deepseek_vl_hybrid dots3_note emu3 ernie4_5_vl_moe exaone4_5 fast_vlm fuyu gemma3 gemma3n gemma4
gemma4_unified git glm46v glm4v glm4v_moe glm5_next glm_ocr glmga got_ocr2 granite4_vision granite_docling hunyuan_vl
hy_v4_vl hyperclovax_vision_v2 idefics idefics2 idefics3 inkling2 inkling2_loop inkling_mm_model instructblip
instructblipvideo internvl janus kimi_k25 kosmos-2 kosmos-2.5 lfm2_vl lfm3_vl lighton_ocr llava llava_next
llava_next_video llava_onevision minicpm_ocr minicpmv4_6 minicpmv4_7 minimax_m3_vl mistral3 mistral_large4 mllama
molmo2 muse_glimmer muse_spark nemotron_h_omni ovis2 paddleocr_vl paligemma perception_lm pp_chart2table qianfan_ocr
qwen2_5_omni_thinker qwen2_5_vl qwen2_vl qwen3_5 qwen3_5_moe qwen3_omni_moe_thinker qwen3_vl qwen3_vl_moe qwen4_exp
smolvlm step3p7 video_llama_3 video_llava vipllava
""".split()
HEARING = """
fun_asr_nano glmasr granite_speech granite_speech_plus moss_transcribe_diarize nemo_speechlm omniasr phi4_multimodal
qwen2_5_omni qwen2_audio qwen3_asr qwen3_omni_moe vibevoice_asr
""".split()
REFUSED = {
    "evolla": "`messages_list` and `proteins`",
    "mistral4": "the model does not see them",
    "diffusion_gemma": "does not write token by token",
    "florence2": "an encoder and a decoder",
    "pix2struct": "an encoder and a decoder",
    "pp_formulanet": "an encoder and a decoder",
    "t5gemma2": "an encoder and a decoder",
    "udop": "an encoder and a decoder",
    "shieldgemma2": "3 rows of token ids",
    "llama4": "has no attribute 'image_outputs'",
    "kyutai_speech_to_text": "cannot take what its processor makes",
    "voxtral": "use the `apply_chat_template` method",
    "unlimited_ocr": "forgets what it wrote long ago",
    "pi0": "does not write token by token",
    "vision-encoder-decoder": "an encoder and a decoder",
}


@pytest.fixture(scope="module")
def files(tmp_path_factory: pytest.TempPathFactory) -> survey.Files:
    return survey.written(tmp_path_factory.mktemp("media"))


@pytest.mark.filterwarnings("ignore::DeprecationWarning")  # of transformers' own processors
@pytest.mark.parametrize(
    "name", [n if n in USUAL else pytest.param(n, marks=pytest.mark.slow) for n in (*SEEING, *HEARING)]
)
def test_rows_drawn_together_are_each_row_alone(name: str, files: survey.Files):
    if name in TORCHAUDIO:
        pytest.importorskip("torchaudio")
    found = survey.measured(name, files)
    assert found.gap <= survey.LIMIT
    assert found.change > survey.SEEN


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore::DeprecationWarning")
@pytest.mark.parametrize("name", [*SEEING, *HEARING])
def test_a_static_cache_gives_the_same_rows_or_is_refused_in_one_line(name: str, files: survey.Files):
    if name in TORCHAUDIO:
        pytest.importorskip("torchaudio")
    subject, prompts = survey.policy_of(name), survey.prompts(name, files)
    whole = subject.rollout(prompts, group_size=2, plan=survey.PLAN, seed=0)
    try:
        refuse_static(subject.model)
        subject.static = StaticCache()
        with uncompiled():
            found = subject.rollout(prompts, group_size=2, plan=survey.PLAN, seed=0)
    except PolicyError as refused:
        assert re.fullmatch(r"rollout.cache: got static, but .*; set rollout.cache=true", str(refused))
    else:
        assert torch.equal(found.replay.tokens, whole.replay.tokens)
        assert float((found.rollout_logp - whole.rollout_logp).abs().max()) <= 1e-5


@pytest.mark.filterwarnings("ignore::DeprecationWarning")
@pytest.mark.parametrize(
    "name", [n if n in ("unlimited_ocr", "t5gemma2") else pytest.param(n, marks=pytest.mark.slow) for n in REFUSED]
)
def test_a_type_that_cannot_be_trained_is_refused_with_the_reason(name: str, files: survey.Files):
    assert REFUSED[name] in str(survey.refused(name, files))


def test_rows_that_are_read_anew_for_each_token_take_free_places(files: survey.Files):
    """IDEFICS asks for its pictures with every token, whatever its cache holds: found out within the first rollout."""
    asked = survey.prompts("idefics", files)
    subject = families.policy("idefics")
    subject._proven, drawn = {True, False}, []  # the first rollout finds it out
    for subject.max_rows in (None, 4):
        drawn.append(subject.rollout(asked, group_size=2, plan=survey.PLAN, seed=0))
    assert torch.equal(drawn[0].replay.tokens, drawn[1].replay.tokens)
    assert torch.allclose(drawn[0].rollout_logp, drawn[1].rollout_logp, atol=survey.LIMIT)


@pytest.mark.slow
def test_a_model_whose_cache_gives_other_numbers_is_told_to_read_without_it(files: survey.Files):
    with pytest.raises(PolicyError, match="its cache does not work, set rollout.cache=false"):
        families.policy("nemotron_h_omni").prepare(survey.prompts("nemotron_h_omni", files)[0], survey.PLAN)


def test_a_model_without_placeholders_is_shown_one_picture_a_prompt(files: survey.Files):
    subject = families.policy("git")
    subject.prepare(Prompt("one", "What is this?", files["image"][:1]), survey.PLAN)
    with pytest.raises(PolicyError, match="has 2 files .* and 0 of the placeholders"):
        subject.rollout([Prompt("two", "What is this?", files["image"])], plan=survey.PLAN, seed=0)


def test_a_model_that_does_not_see_its_pictures_is_refused(files: survey.Files):
    """Its config names no placeholder: transformers leaves the pictures out without a word."""
    subject = families.policy("minicpmv4_6", batch_invariant=True)
    subject.model.config.image_token_id = None
    with pytest.raises(PolicyError, match="give the same log-probs, so the model does not see them"):
        subject.prepare(Prompt("one", "What is this?", files["image"][:1]), survey.PLAN)


def test_a_model_that_reads_in_both_directions_is_not_given_prompts_of_text_alone():
    with pytest.raises(PolicyError, match="give prompts with pictures, or another model"):
        families.policy("paligemma").prepare(Prompt("one", "What is this?"), survey.PLAN)


def test_the_page_has_every_type_of_the_pinned_transformers():
    """Those that are shown to be exact here, and those that are refused, are so in docs/seeing.md."""
    page = (Path(__file__).parents[4] / "docs" / "seeing.md").read_text()
    for name in (*families.SEEING, *families.HEARING):
        assert f"| `{name}` |" in page
    for what, names in (("exact", (*SEEING, *HEARING)), ("refused", REFUSED)):
        assert [name for name in names if f"| `{name}` | {what} |" not in page] == []
    assert len(SEEING) == page.split("## Further media")[0].count(" | exact | ")
