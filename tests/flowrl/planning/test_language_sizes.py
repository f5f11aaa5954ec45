"""The memory of a language model's recipe from its config, against what a learner and autograd really hold."""

import json
from pathlib import Path

import pytest
import torch
from transformers import OpenAIGPTConfig, OpenAIGPTLMHeadModel

import vision_support as vision
from flowrl.build import build_policy
from flowrl.contracts import Prompt, View
from flowrl.kinds import kind_of
from flowrl.learners import build_learner
from flowrl.planning.costs import arithmetic, plan_for
from flowrl.planning.dry_run import describe
from flowrl.planning.duration import Pace, duration
from flowrl.planning.sizes.language import sizes
from flowrl.planning.sizes.reading_again import reads_again
from flowrl.planning.sizes.saved import count_saved
from flowrl.planning.sizes.seeing import CONFIGS, media_tokens
from flowrl.planning.sizes.text import describe_sizes
from flowrl.policies.language.drawing.stopping import Stop
from flowrl.recipe.load import load
from flowrl.worlds.arithmetic.model import make_tokenizer
from samplers.tokens import Generation

SMALL = ["train.prompts=4", "train.group=4", "train.updates=1", "train.micro_batch=8", "generation.max_new_tokens=24"]


@pytest.mark.parametrize("more", [[], ["lora=null", "full=true", "train.ema=0.9"]], ids=["lora", "full"])
def test_weights_optimizer_and_activations_are_those_of_a_run(more):
    recipe = load("tiny_lm_grpo", [*SMALL, *more])
    policy = build_policy(recipe)
    learner = build_learner(recipe, policy)
    prompts = [Prompt("a", "347+285"), Prompt("b", "7*8"), Prompt("c", "12-5"), Prompt("d", "1+1")]
    rollout = policy.rollout(prompts, group_size=2, plan=plan_for(recipe, 0), seed=0)
    found = sizes(recipe, prompts, 24)
    rows = torch.arange(8)
    parameters = [*policy.model.parameters(), *policy.model.buffers()]
    held = []
    with count_saved(parameters) as saved:
        policy.look(rollout, rows, View(), lambda seen: held.append((saved.bytes, seen.logp.sum().backward())))
    learner.step()
    state = learner.optimizer.state_dict()["state"].values()
    moments = sum(v.numel() * v.element_size() for s in state for k, v in s.items() if k.startswith("exp_avg"))
    learning = sum(p.numel() * p.element_size() for p in learner.parameters)
    draw, train = (next(p for p in found.phases if p.name == name) for name in ("rollout", "training"))
    assert train.weights == sum(p.numel() * p.element_size() for p in policy.model.parameters())
    assert (
        draw.optimizer == moments + learning * (recipe.train.ema is not None)
        and train.optimizer == draw.optimizer + learning
    )
    ids = max(len(policy.encode(p.text)) for p in prompts)
    width = rollout.rollout_logp.shape[1]
    longest = found.latent[0] / (ids + width)  # the plan counts the longest prompts and completions
    assert held[0][0] * longest * 0.75 <= train.activations <= held[0][0] * longest**2 * 1.25


@pytest.mark.parametrize(
    "model", [name if "2.5-VL-3B" in name else pytest.param(name, marks=pytest.mark.slow) for name in CONFIGS]
)
def test_known_models_that_see_have_the_published_number_of_parameters(model: str, tmp_path: Path):
    """Of the safetensors files on the hub; a picture of 640 x 480 is 23 x 17 tokens, or those of the bounds given."""
    published = {"2-VL-2B": 2_208_985_600, "2-VL-7B": 8_291_375_616, "2.5-VL-3B": 3_754_622_976}
    published |= {"2.5-VL-7B": 8_292_166_656}
    prompts = [Prompt("a", "What is this?", (vision.picture(tmp_path / "p.png", size=(640, 480)),)), Prompt("b", "1+1")]
    recipe = load("tiny_lm_grpo", [f"model={model}"])
    found, bare = sizes(recipe, prompts, 24), sizes(recipe, [Prompt("a", "What is this?")], 24)
    assert sum(found.parameters.values()) == published[model.removeprefix("Qwen/Qwen").removesuffix("-Instruct")]
    assert found.latent[0] == bare.latent[0] + 23 * 17 + 2 and found.phases[1].activations > bare.phases[1].activations
    assert media_tokens(model, {"max_pixels": 50176}, prompts) == 9 * 6 + 2
    assert media_tokens(model, {"max_pixels": 50176}, []) == 64 + 2  # a picture that is as large as it may be
    assert media_tokens(model, {"max_pixels": 50176}, prompts[1:]) == media_tokens(model, {}, []) == 0


def test_the_tokens_of_a_local_models_pictures_are_its_processors(tmp_path: Path):
    place = vision.folder(tmp_path / "model", "qwen2_5_vl")
    prompts = vision.prompts(tmp_path)
    recipe = load("tiny_lm_grpo", [*SMALL, f"model={place}"])
    ids, shown = vision.policy(place).encode.row(prompts[1])
    number = sum(token == vision.IMAGE for token in ids)
    assert media_tokens(str(place), {}, prompts) == number + 2 * 2 and number > 10
    text = describe_sizes(recipe, prompts)
    assert f"prompts with {number + 4} tokens of media" in text and "Qwen2_5_VLForConditionalGeneration" in text


def test_checkpointing_keeps_less_and_a_model_without_a_config_is_told():
    plain, again = (
        sizes(load("tiny_lm_grpo", [*SMALL, f"train.gradient_checkpointing={word}"]), [], 24)
        for word in ("false", "true")
    )
    assert again.phases[-1].activations < 0.7 * plain.phases[-1].activations
    text = describe_sizes(load("grpo_qwen", ["model=nobody/nothing"]), [])
    assert "there is no config of nobody/nothing on this machine; give its folder" in text and "FLUX" not in text
    assert "keys and values of all rows" in describe_sizes(load("tiny_lm_grpo"), [Prompt("a", "1+1")])


@pytest.fixture(scope="module")
def cacheless(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with a GPT of 2018, whose forward takes no cache."""
    place = tmp_path_factory.mktemp("cacheless")
    told = make_tokenizer()
    shape = {"n_positions": 64, "n_embd": 16, "n_layer": 2, "n_head": 2}
    made = OpenAIGPTLMHeadModel(OpenAIGPTConfig(vocab_size=len(told), **shape))
    made.save_pretrained(place)
    told.save_pretrained(place)
    return place


def test_a_model_without_a_cache_reads_all_again_and_the_plan_counts_it(cacheless: Path):
    more = ["lora=null", "full=true", "objective.kl=0", "train.prompts=2", "train.group=3"]
    more += ["train.updates=1", "train.micro_batch=null", "generation.max_new_tokens=5"]
    recipe = load("tiny_lm_grpo", [f"model={cacheless}", *more])
    planned, cached = arithmetic(recipe), arithmetic(load("tiny_lm_grpo", more))
    assert (planned.rollout_forwards, cached.reread_forwards) == (30, 0) == (cached.rollout_forwards, 0)
    subject = build_policy(recipe)
    subject._proven, subject.stop = {False}, Stop((), (), subject.tokenizer)
    read: list[int] = []
    hook = lambda _, given, named: read.append(named["input_ids"].numel())  # noqa: E731
    subject.model.register_forward_pre_hook(hook, with_kwargs=True)
    rollout = subject.rollout([Prompt("a", "347+285"), Prompt("b", "7*8")], group_size=3, plan=Generation(5), seed=0)
    width = max(len(ids) for ids in rollout.replay.prompts)
    assert read == [2 * width, *(6 * (width + k) for k in range(1, 5))]
    assert planned.reread_forwards == sum(read) - (2 + 6 * 4) * width == 60
    assert planned.drawing_forwards == 90
    told = describe(recipe)
    assert "no KV cache: each token reads all tokens before it again, 60 more in a rollout" in told
    assert "key-value cache" not in describe(load("tiny_lm_grpo", more))
    found, plain = sizes(recipe, [], 5), sizes(load("tiny_lm_grpo", more), [], 5)
    assert "all tokens of all rows, read again" in found.drawing and "keys and values" in plain.drawing
    pace = Pace(0.5, 1.0)
    held_out = kind_of(recipe).planning.eval_forwards(recipe)
    assert held_out == 5 + 10
    iterations = recipe.train.iterations
    assert duration(recipe, pace, 0).rollout == pytest.approx(90 * iterations * 0.5)


def test_models_with_caches_are_known_by_their_class(tmp_path: Path):
    """One whose keys are of pictures too, a whole that speaks, and one of which nothing is known."""
    for named, again in {
        "BlipForConditionalGeneration": True,
        "Qwen2_5_VLForConditionalGeneration": False,
        "Qwen2_5OmniForConditionalGeneration": False,
        "NobodyKnowsForCausalLM": False,
    }.items():
        (tmp_path / named).mkdir()
        (tmp_path / named / "config.json").write_text(json.dumps({"architectures": [named]}))
        assert reads_again(str(tmp_path / named)) == again
    assert not reads_again("somebody/unknown") and not reads_again("Qwen/Qwen2.5-VL-7B-Instruct")
