"""Every recipe that ships for a model that sees or hears, as it is, on a tiny model with a small budget.

A case may change: the model, with the prompts and lengths that it takes; how many prompts and samples an iteration
has, how they are cut, of how many pixels their pictures are; precision, device, evaluations and checkpoints; and where
judges and reward models are. Rewards, advantage, objective, learning rate and phases are the recipe's own. Random
models are never right: a reward of their length, beside the recipe's, gives them something to learn from.
"""

import json
import wave
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

import pytest
import torch
from PIL import Image
from transformers import LlamaConfig, LlamaForSequenceClassification, WhisperFeatureExtractor

import judge_support as support
import seeing_families as families
import vision_support as vision
from cli_support import quiet
from flowrl import names
from flowrl.recipe.load import load
from flowrl.recipe.schema import Recipe
from flowrl.runs.start import run
from flowrl.untyped import JSON

BUDGET = ["train.prompts=2", "train.updates=1", "train.group=4", "train.micro_batch=null", "train.rollout_batch=null"]
BUDGET += ["train.gradient_checkpointing=false", "train.warmup=0", "dtype.model=float32", "device=cpu"]
BUDGET += ["checkpoint.every=null", "watch.ignore=[diversity, hacking, collapse]"]
LENGTH = "rewards.shorter={use: lengths_for_tests.fewer}"  # in characters
CHOICE = {"prompt": "Which organ is this? A. liver B. heart", "answer": "B"}
NUMBER = {"prompt": "How many are there?", "answer": "7"}
STEP = {"prompt": "Open the menu", "action": "click", "gt_bbox": [1, 2, 30, 40], "input_text": "no input text"}
TYPED = {"prompt": "Search for cats", "action": "type", "gt_bbox": [5, 5], "input_text": "cats"}
DOMAINS = ("stem", "chart", "counting", "ocr", "grounding", "gui", "general", "document")


@dataclass(frozen=True)
class Case:
    """family: a type of transformers (tests/seeing_families.py). rows: two prompts or more. more: further changes.
    pairs: what a phase of texts from files reads, where it is no preference.
    media: what each prompt shows, pictures, videos or sounds of its own size, or nothing."""

    family: str
    rows: list[dict[str, JSON]]
    more: list[str] = field(default_factory=list)
    pairs: list[dict[str, JSON]] = field(default_factory=list)
    media: tuple[Literal["images", "videos", "audios"], ...] = ("images",)


PAIRS = [{"prompt": "How many are there?", "chosen": "seven", "rejected": "I do not know"}]
PAIRS += [{"prompt": "And of what kind are they all?", "chosen": "cats", "rejected": "no"}]
CORRECTED = [{"prompt": "What is this?", "answer": "a red cat", "own": "two dogs", "revised": "two red cats"}]
CORRECTED += [{"prompt": "And where?", "answer": "in the garden", "own": "at sea", "revised": "at the house"}]
COMPLETED = [{"prompt": row["prompt"], "completion": row["revised"]} for row in CORRECTED]
SCENE = {"room": [4, 3, 2.5], "objects": [{"id": "bed", "size": [2, 1, 0.5]}, {"id": "desk", "size": [1, 1, 1]}]}
CASES = {
    "r1_vl": Case("qwen2_vl", [NUMBER | {"key_steps": ["seven"]}, CHOICE | {"key_steps": [["a", "b"], "c"]}]),
    "video_r1": Case(
        "qwen2_5_vl",
        [NUMBER | {"problem_type": "numerical"}, CHOICE | {"problem_type": "multiple choice"}],
        media=("videos",),
    ),
    "opa_dpo": Case("llava", CORRECTED, ["train.group=5"], COMPLETED),
    "papo_grpo": Case("qwen2_5_vl", [NUMBER, CHOICE]),
    "papo_dapo": Case("qwen2_5_vl", [NUMBER, CHOICE]),
    "noisy_rollout_geo3k": Case("qwen2_5_vl", [NUMBER, CHOICE], ["train.group=12"]),
    "vlm3b_24gb": Case("qwen2_5_vl", [NUMBER, CHOICE]),
    "ui_r1": Case(
        "qwen2_5_vl",
        [{"prompt": "Open it", "action": "click", "box": [0, 0, 9, 9]}, {"prompt": "Go up", "action": "scroll"}],
    ),
    "gui_r1": Case("qwen2_5_vl", [STEP, TYPED]),
    "infigui_r1": Case("qwen2_5_vl", [STEP | {"subgoal": "find the menu"}, TYPED | {"subgoal": "use the search box"}]),
    "medvlm_r1": Case("qwen2_vl", [CHOICE, NUMBER | {"answer": "A"}]),
    "chestx_reasoner": Case(
        "qwen2_vl",
        [row | {"findings": ["large heart"], "report": "The heart is large."} for row in (CHOICE, NUMBER)],
    ),
    "r1_aqa": Case("qwen2_audio", [CHOICE | {"answer": "heart"}, NUMBER], media=("audios",)),
    "r1_omni": Case("qwen2_5_omni_thinker", [CHOICE | {"answer": "happy"}, NUMBER], media=("videos", "audios")),
    "metaspatial": Case("qwen2_5_vl", [{"prompt": "A small room"} | SCENE, {"prompt": "A room to sleep in"} | SCENE]),
    "embodied_r": Case("qwen2_5_vl", [CHOICE, NUMBER | {"answer": "C"}], media=()),
    "praxis_vlm": Case("qwen2_5_vl", [CHOICE | {"stage": 2}, NUMBER | {"stage": 1}]),
    "qwen3_vl": Case("qwen3_vl", [CHOICE | {"calls": 1}, NUMBER | {"calls": 0}], ["environment.tell=none"]),
    "hunyuan_ocr": Case(
        "hunyuan_vl",
        [
            {"prompt": "Spot", "task": "spotting", "lines": [{"text": "a", "box": [0, 0, 9, 9]}]},
            {"prompt": "Read it", "task": "parsing", "answer": "some text"},
            CHOICE | {"task": "question"},
            {"prompt": "Translate", "task": "translation", "answer": "good day"},
        ],
        ["train.prompts=4", "train.group=2"],
    ),
    "skywork_r1v2": Case("internvl", [NUMBER, NUMBER | {"prompt": "1 + 1"}]),
    "internvl3_5": Case("internvl", [NUMBER, NUMBER | {"prompt": "1 + 1"}]),
    "glm_45v": Case(
        "glm4v",
        [
            STEP | NUMBER | {"prompt": f"{i} of {d}", "domain": d, "box": [0, 0, 9, 9]}
            for i in range(2)  # curriculum sampling may draw some more than it trains on
            for d in DOMAINS
        ],
        ["train.prompts=8", "train.group=2", "generation.force=null"],  # whose text alone is longer
    ),
}
SEEING = set(CASES)
OFTEN = {"r1_vl", "video_r1", "ui_r1", "chestx_reasoner", "metaspatial", "skywork_r1v2"}


def saved(folder: Path, name: str) -> Path:
    """A random model of a type with its processor and a chat template, as a folder."""
    if name == "hunyuan_vl":  # its own default says nothing of the width of a head
        families.OVERRIDES.setdefault(name, {"text_config": {"head_dim": families.WIDTH // families.HEADS}})
    model, processor = families.family(name)
    if name in ("hunyuan_vl", "glm4v"):
        processor.image_processor.size = {"shortest_edge": 32 * 32, "longest_edge": 64 * 64}
    bands = families.found_in(model.config.to_dict(), "num_mel_bins")
    if bands and hasattr(processor, "feature_extractor"):
        processor.feature_extractor = WhisperFeatureExtractor(feature_size=bands)
    processor.chat_template = processor.tokenizer.chat_template = template(processor)
    model.save_pretrained(folder)
    processor.save_pretrained(folder)
    return folder


def template(processor: Any) -> str:
    """A chat template that writes the placeholder of each medium as its processor looks for it."""
    marks = ("<|vision_start|>", "<|vision_end|>") if type(processor).__name__.startswith("Qwen") else ("", "")
    begin, end = (getattr(processor, f"image_{side}_token", "") for side in ("start", "end"))
    sound = [getattr(processor, f"audio_{side}_token", None) or "" for side in ("bos", "eos")]
    around = {"image": (begin or marks[0], end or marks[1]), "video": marks, "audio": sound}
    parts = ""
    for kind, (before, behind) in around.items():
        if token := getattr(processor, f"{kind}_token", None):
            parts += f"{{% elif part.type == '{kind}' %}}{before}{token}{behind}"
    said = "{% if part.type == 'text' %}{{ part.text }}" + parts + "{% endif %}"
    turns = "{% for m in messages %}{{ '<' + m.role + '>' }}{% for part in m.content %}" + said
    return turns + "{% endfor %}{% endfor %}{% if add_generation_prompt %}<assistant>{% endif %}"


class Saved(dict[str, Path]):
    """Folders of the types that were asked for."""

    def __init__(self, root: Path):
        super().__init__()
        self.root = root

    def __missing__(self, name: str) -> Path:
        self[name] = saved(self.root / name, name)
        return self[name]


@pytest.fixture(scope="module")
def models(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """A random model of each family that is asked for, and one with a head of a number, as folders that a user has."""
    root = tmp_path_factory.mktemp("models")
    made = Saved(root)
    tokenizer = support.make_tokenizer()
    sizes = {"hidden_size": 16, "intermediate_size": 32, "num_hidden_layers": 1, "num_attention_heads": 2}
    torch.manual_seed(0)
    head = LlamaForSequenceClassification(
        LlamaConfig(**sizes, vocab_size=len(tokenizer), num_labels=1, pad_token_id=0, eos_token_id=1)
    )
    head.save_pretrained(root / "head")
    tokenizer.save_pretrained(root / "head")
    made["head"] = root / "head"
    return made


@pytest.fixture(scope="module")
def judge() -> Iterator[str]:
    """The address of a server that says yes to whatever it is asked, with log-probabilities, or counts steps."""

    def reply(body: Any, handler: Any) -> Any:
        if "response_format" in body:
            return support.completion('{"recalled": 1, "steps": 2, "correct": 2, "effective": 1}')
        return support.completion("yes", top=[("yes", -0.1), ("no", -3.0)])

    with support.serving(reply) as url:
        yield url


def written(folder: Path, name: str, rows: list[dict[str, JSON]], media: Sequence[str]) -> Path:
    """A file of prompts, each with a picture, a video or a sound of its own size."""
    lines = []
    for i, row in enumerate(rows):
        size = (56 + 28 * (i % 3), 56)
        frames = [vision.picture(folder / f"{name}{i}-{k}.png", size=size, seed=4 * i + k) for k in range(2 + 2 * i)]
        shown, *others = [Image.open(frame) for frame in frames]
        shown.save(folder / f"{name}{i}.gif", save_all=True, append_images=others, duration=500)
        file = {"images": frames[0], "videos": str(folder / f"{name}{i}.gif"), "audios": str(folder / f"{name}{i}.wav")}
        with wave.open(file["audios"], "wb") as sound:
            sound.setparams((1, 2, 16000, 0, "NONE", ""))
            sound.writeframes(bytes((17 * k * (i + 1)) % 251 for k in range(8000 * (i + 1))))
        lines.append(json.dumps(row | {medium: file[medium] for medium in media}))
    (folder / f"{name}.jsonl").write_text("\n".join(lines) + "\n")
    return folder / f"{name}.jsonl"


def phases_of(shipped: Recipe, files: dict[bool, Path]) -> list[str]:
    """The recipe's own phases, of one and of two iterations, with their prompts from a file, or pairs from another."""
    made = []
    for i, phase in enumerate(shipped.phases):
        given = dict(phase.overrides)
        if "prompts.train" in given:
            given["prompts.train"] = str(files[given.get("train.source") == "files"])
        given |= {"train.prompts": 2} if "train.prompts" in given else {}
        made.append({"iterations": 1 + i, "overrides": given, "reset": phase.reset})
    return [f"phases={json.dumps(made)}"] if made else []


def small(name: str, models: dict[str, Path], judge: str, folder: Path) -> Recipe:
    case, shipped = CASES[name], load(name)
    assert shipped.generation is not None
    prompts = written(folder, "train", case.rows, case.media)
    pairs = written(folder, "pairs", case.pairs or PAIRS, case.media)
    changes = [f"model={models[case.family]}", f"output={folder / 'run'}", *BUDGET, LENGTH]
    changes += [f"prompts.train={prompts}", "prompts.heldout=null", "prompts.source=null", "prompts.columns={}"]
    changes += ["generation.max_new_tokens=8"]
    pixels = {key: 28 * 28 * (4 if key == "max_pixels" else 1) for key in shipped.generation.processor}
    changes += [f"generation.processor={json.dumps(pixels)}"]
    changes += ["train.iterations=3", *phases_of(shipped, {False: prompts, True: pairs})]
    for key, spec in shipped.rewards.items():
        if "base_url" in spec.args:
            changes.append(f"rewards.{key}.args.base_url={judge}")
        if spec.use == "text_reward_model":
            changes.append(f"rewards.{key}.args.model={models['head']}")
    return load(name, [*changes, *case.more])


@pytest.mark.parametrize(
    "name", [pytest.param(n, marks=[] if n in OFTEN else [pytest.mark.slow]) for n in sorted(CASES)]
)
@pytest.mark.filterwarnings("ignore:__array__ implementation:DeprecationWarning")  # of GLM's processor
def test_a_recipe_runs_on_a_tiny_model(name: str, models: dict[str, Path], judge: str, tmp_path: Path) -> None:
    recipe, shipped = small(name, models, judge, tmp_path), load(name)
    for part in ("lora", "full", "advantage", "objective"):
        assert getattr(recipe, part) == getattr(shipped, part)
    assert recipe.train.lr == shipped.train.lr and recipe.train.schedule == shipped.train.schedule
    for key, spec in shipped.rewards.items():
        mine = recipe.rewards[key]
        assert (mine.use, mine.weight, mine.when, mine.gate) == (spec.use, spec.weight, spec.when, spec.gate)
        assert mine.args.keys() == spec.args.keys()

    run(recipe, quiet())
    train = [json.loads(line) for line in (tmp_path / "run" / "metrics.jsonl").read_text().splitlines()]
    train = [metrics for metrics in train if metrics["kind"] == "train"]
    assert len(train) == 3
    for i, metrics in enumerate(train):
        assert metrics["grad_norm"] > 0 and metrics["nonfinite_updates"] == metrics["empty_updates"] == 0
        if recipe.at(i).train.source == "files":
            continue
        assert metrics["replay_gap_max"] <= 1e-5
        for key in shipped.rewards:
            assert metrics.get(f"reward/{key}/nan", 0) == 0 and f"reward/{key}/mean" in metrics, key
    drawn = [metrics for i, metrics in enumerate(train) if recipe.at(i).train.source != "files"]
    if recipe.objective.kl > 0:
        assert drawn[0]["kl"] == pytest.approx(0, abs=1e-5) and drawn[1]["kl"] > 0


PUBLISHED: dict[str, dict[str, float]] = {  # recipe -> reward: weight, by the authors' code; see each header
    "r1_vl": {"exact_match": 1, "key_steps": 0.1, "step_validity": 1},
    "video_r1": {"typed_answer": 1, "think_format": 1},
    "papo_grpo": {"math_answer": 0.9, "think_format": 0.1},
    "papo_dapo": {"math_answer": 0.9, "think_format": 0.1},
    "noisy_rollout_geo3k": {"math_answer": 0.9, "think_format": 0.1},
    "vlm3b_24gb": {"math_answer": 0.9, "think_format": 0.1},
    "gui_r1": {"screen_step": 0.8, "screen_format": 0.2},
    "medvlm_r1": {"choice_letter": 1, "think_format": 1},
    "r1_aqa": {"exact_match": 1, "think_format": 1},
    "r1_omni": {"exact_match": 1, "think_format": 1},
    "metaspatial": {"layout_format": 0.5, "layout_collisions": -0.2, "layout_misplaced": -0.2, "server_text_judge": 1},
    "embodied_r": {"named_choice": 0.7, "think_format": 0.1, "server_text_judge": 0.2},
}
SIZES = {  # recipe -> prompts, samples, optimizer steps an iteration, length, KL, learning rate
    "r1_vl": (16, 4, 1, 1024, 0.04, 1e-6),
    "video_r1": (4, 8, 1, 768, 0.04, 1e-6),
    "papo_grpo": (384, 5, 3, 2048, 0.01, 1e-6),
    "papo_dapo": (384, 5, 3, 2048, 0, 1e-6),
    "noisy_rollout_geo3k": (512, 12, 4, 2048, 0, 1e-5),
    "vlm3b_24gb": (64, 5, 4, 2048, 0.01, 1e-6),  # an eighth of the published prompts
    "ui_r1": (16, 8, 1, 256, 0.04, 1e-6),
    "gui_r1": (512, 5, 4, 1024, 0.01, 1e-6),
    "medvlm_r1": (4, 4, 1, 512, 0.04, 1e-6),
    "chestx_reasoner": (256, 8, 1, 2048, 0.001, 5e-7),
    "r1_aqa": (16, 8, 1, 256, 0.04, 1e-6),
    "r1_omni": (16, 8, 1, 512, 0.04, 1e-6),
    "metaspatial": (4, 3, 1, 4000, 0.01, 1e-6),
    "embodied_r": (4, 8, 1, 2048, 0.001, 5e-7),
    "praxis_vlm": (512, 5, 4, 5500, 0.01, 1e-6),
    "internvl3_5": (512, 16, 16, 32768, 0.0, 1e-6),
}


def test_rewards_and_sizes_are_the_published_ones() -> None:
    for name, rewards in PUBLISHED.items():
        assert {spec.use: spec.weight for spec in load(name).rewards.values()} == rewards, name
    for name, (prompts, group, updates, length, kl, lr) in SIZES.items():
        recipe = load(name)
        if recipe.phases:
            recipe = recipe.at(sum(phase.iterations for phase in recipe.phases) - 1)
        assert (recipe.train.prompts, recipe.train.group, recipe.train.updates) == (prompts, group, updates), name
        assert recipe.generation is not None and recipe.generation.max_new_tokens == length, name
        assert (recipe.objective.kl, recipe.train.lr) == (kl, lr), name


def test_headers_say_what_a_recipe_needs_and_where_it_differs() -> None:
    for name in SEEING:
        header = names.recipes()[name].read_text().split("\nmodel:")[0]
        for word in ("Task", "Command", "Hardware", "Data", "Run here", "Published", "Differs", "Reference"):
            assert f"# {word}" in header, f"{name}: {word}"
        assert f"# Command    flowrl run {name}\n" in header
