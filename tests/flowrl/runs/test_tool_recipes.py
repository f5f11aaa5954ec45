"""Every recipe that ships with tools, as it is, on a tiny model that calls them, with a small budget.

A case may change what test_seeing_recipes.py lets one change, the lengths of turns, and where documents are. Tools,
rewards, advantage, objective and limits of turns are the recipe's own. Some tokens of the tiny model's vocabulary are
whole calls, so that a random model makes right and wrong ones.
"""

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
import transformers as tf

import judge_support as support
import vision_support as vision
from cli_support import quiet
from flowrl import names
from flowrl.contracts import Shown
from flowrl.environments.functions import Talk
from flowrl.environments.tools import python as python_module
from flowrl.recipe.load import load
from flowrl.recipe.schema import Recipe
from flowrl.runs.start import run
from sandbox_support import Here

BUDGET = ["train.prompts=2", "train.updates=1", "train.group=4", "train.micro_batch=null", "train.rollout_batch=null"]
BUDGET += ["train.gradient_checkpointing=false", "train.warmup=0", "dtype.model=float32", "device=cpu"]
BUDGET += ["checkpoint.every=null", "watch.ignore=[diversity, hacking, collapse]", "train.iterations=3"]
LENGTHS = ["generation.max_new_tokens=400", "environment.turn_tokens=24", "generation.system=null"]
LENGTH = "rewards.shorter={use: lengths_for_tests.fewer}"  # in characters
TEMPLATE = (
    "{{ bos_token }}{% for message in messages %}{{ {'user': '<|user|>', 'tool': '<|user|>[', 'system': '', "
    "'assistant': '<|assistant|>'}[message.role] }}{% if message.content is string %}{{ message.content }}{% else %}"
    "{% for part in message.content %}{% if part.type == 'image' %}<|vision_start|><|image_pad|><|vision_end|>"
    "{% else %}{{ part.text }}{% endif %}{% endfor %}{% endif %}{% if message.role == 'assistant' %}{{ eos_token }}"
    "{% endif %}{% endfor %}{% if add_generation_prompt %}<|assistant|>{% endif %}"
)


def _call(name: str, **arguments: Any) -> str:
    return f"<tool_call>{json.dumps({'name': name, 'arguments': arguments})}</tool_call>"


ZOOMS = [_call("zoom", bbox_2d=[0, 0, 40, 40]), _call("zoom", bbox_2d=[0.1, 0.2, 0.9, 0.8])]
ZOOMS += [_call("zoom", bbox_2d=[0, 0, 30, 30], picture=2), _call("zoom", bbox_2d=[3, 2, 1]), _call("zoom", box="all")]
PYTHON = [_call("python", code="print(6 * 7)"), _call("python", code="1 / 0")]
PYTHON += [
    _call("python", code="from PIL import Image\nImage.open('picture_1.png').crop((0, 0, 30, 28)).save('a.png')")
]
SEARCHES = [_call("search", query="page of costs"), _call("search", query="sales"), _call("search", query="?")]
CALLS = {"deepeyes": ZOOMS, "mini_o3": ZOOMS, "deepeyes_v2": PYTHON + SEARCHES, "vrag_rl": ZOOMS + SEARCHES * 2}
ROWS = [{"prompt": "Which colour?", "answer": "red"}, {"prompt": "How many?", "answer": "7", "data_source": "search"}]
OFTEN = {"deepeyes_v2", "vrag_rl"}  # which use all of the tools


@pytest.fixture(scope="module")
def judge() -> Iterator[str]:
    """The address of a server that finds answers right."""
    with support.serving(lambda body, handler: support.completion("yes", top=[("yes", -0.1), ("no", -3.0)])) as url:
        yield url


def _model(folder: Path, calls: list[str]) -> Path:
    """A tiny random Qwen2.5-VL with a token for each call, which it says about as often as any other."""
    vision.folder(folder, "qwen2_5_vl")
    processor = tf.AutoProcessor.from_pretrained(folder)
    processor.tokenizer.add_tokens([call + end for call in calls for end in ("", "\n", " ")])
    processor.chat_template = processor.tokenizer.chat_template = TEMPLATE
    model = tf.AutoModelForImageTextToText.from_pretrained(folder)
    torch.manual_seed(1)
    model.resize_token_embeddings(len(processor.tokenizer), mean_resizing=False)
    with torch.no_grad():
        for embedding in (model.get_input_embeddings(), model.get_output_embeddings()):
            embedding.weight.normal_(0, 0.02)
    model.save_pretrained(folder)
    processor.save_pretrained(folder)
    return folder


def _small(name: str, judge: str, folder: Path) -> Recipe:
    lines = []
    for i, row in enumerate(ROWS):
        picture = vision.picture(folder / f"{i}.png", size=(84 + 28 * i, 84), seed=i)
        lines.append(json.dumps(row | {"image": picture, "pages": [f"page {i}"]}))
    (folder / "train.jsonl").write_text("\n".join(lines) + "\n")
    pages = [{"title": f"page {i}", "text": text, "image": f"{i}.png"} for i, text in enumerate(["sales", "costs"])]
    (folder / "pages.jsonl").write_text("\n".join(map(json.dumps, pages)))
    changes = [f"model={_model(folder / 'model', CALLS[name])}", f"output={folder / 'run'}", *BUDGET, *LENGTHS, LENGTH]
    changes += [f"prompts.train={folder / 'train.jsonl'}", "prompts.source=null", "prompts.columns={}"]
    shipped = load(name)
    assert shipped.environment is not None
    own = {"documents": str(folder / "pages.jsonl")}
    tools = [tool.model_dump() for tool in shipped.environment.tools]
    tools = [tool | {"args": tool["args"] | {k: own[k] for k in own if k in tool["args"]}} for tool in tools]
    changes.append(f"environment.tools={json.dumps(tools)}")
    changes += [f"rewards.{k}.args.base_url={judge}" for k, spec in shipped.rewards.items() if "base_url" in spec.args]
    return load(name, changes)


@pytest.mark.parametrize(
    "name", [pytest.param(n, marks=[] if n in OFTEN else [pytest.mark.slow]) for n in sorted(CALLS)]
)
def test_a_recipe_with_tools_runs_on_a_tiny_model(
    name: str, judge: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    if name in ("deepeyes_v2", "vrag_rl"):
        pytest.importorskip("bm25s")
    monkeypatch.setitem(python_module.MACHINES, "bubblewrap", Here)
    recipe, shipped = _small(name, judge, tmp_path), load(name)
    for part in ("lora", "full", "advantage", "objective"):
        assert getattr(recipe, part) == getattr(shipped, part)
    assert recipe.environment is not None and shipped.environment is not None
    assert recipe.environment.turns == shipped.environment.turns
    for mine, theirs in zip(recipe.environment.tools, shipped.environment.tools, strict=True):
        assert mine.use == theirs.use and mine.args | {"documents": ""} == theirs.args | {"documents": ""}
    for key, spec in shipped.rewards.items():
        mine = recipe.rewards[key]
        assert (mine.use, mine.weight, mine.when, mine.gate) == (spec.use, spec.weight, spec.when, spec.gate)

    shown: list[Shown] = []
    answer = Talk._answer

    def answered(self: Talk, *given: Any) -> Shown:
        shown.append(answer(self, *given))
        return shown[-1]

    monkeypatch.setattr(Talk, "_answer", answered)
    run(recipe, quiet())
    for tool in recipe.environment.tools:
        found = [message for message in shown if message.name == tool.use and not message.error]
        assert found, tool.use
        assert tool.use == "search" or any(message.pictures for message in found), tool.use
    assert any(message.error for message in shown)
    train = [json.loads(line) for line in (tmp_path / "run" / "metrics.jsonl").read_text().splitlines()]
    train = [metrics for metrics in train if metrics["kind"] == "train"]
    assert len(train) == 3
    for metrics in train:
        assert metrics["grad_norm"] > 0 and metrics["nonfinite_updates"] == metrics["empty_updates"] == 0
        assert metrics["replay_gap_max"] <= 1e-5
        for key in shipped.rewards:
            assert metrics.get(f"reward/{key}/nan", 0) == 0 and f"reward/{key}/mean" in metrics, key
        assert metrics["talk/end_failed"] == 0


SIZES = {  # recipe -> prompts, samples, optimizer steps an iteration, turns, tokens of one, KL, clip, learning rate
    "deepeyes": (256, 16, 1, 5, 10240, 0.0, 0.2, 1e-6),
    "deepeyes_v2": (256, 16, 8, 9, 8192, 0.0, 0.2, 1e-6),
    "mini_o3": (256, 16, 8, 6, 8192, 0.0, (0.2, 0.3), 1e-6),
    "vrag_rl": (32, 5, 1, 4, 2048, 0.01, 0.2, 1e-6),
}
WEIGHTS = {
    "deepeyes": {"right": 0.8, "format": 0.2, "looked": 1.2},
    "deepeyes_v2": {"right": 0.8, "searched": -0.08, "format": 0.2},
    "mini_o3": {"right": 1.0},
    "vrag_rl": {"answered": 0.0, "searched": 0.1, "right": 0.7, "found": 0.2},
}


@pytest.mark.parametrize("name", sorted(SIZES))
def test_sizes_and_weights_are_the_published_ones(name: str):
    recipe = load(name)
    talk, train = recipe.environment, recipe.train
    assert talk is not None and (train.prompts, train.group, train.updates) == SIZES[name][:3]
    clip = recipe.objective.clip
    clip = tuple(clip) if isinstance(clip, list | tuple) else clip
    assert (talk.turns, talk.turn_tokens, recipe.objective.kl, clip, train.lr) == SIZES[name][3:]
    assert {key: spec.weight for key, spec in recipe.rewards.items()} == WEIGHTS[name]
    assert recipe.objective.dual == 3 and (name == "mini_o3") == train.skip_truncated
    header = names.recipes()[name].read_text().split("\nmodel:")[0]
    for word in ("Task", "Command", "Hardware", "Data", "Run here", "Published", "Differs", "Reference"):
        assert f"# {word}" in header, word
