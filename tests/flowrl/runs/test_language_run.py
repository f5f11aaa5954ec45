"""Runs of language models through the same loop: the shipped recipes, what a run leaves, and how it is cut."""

import json
from pathlib import Path

import pytest
import torch
from peft import PeftModel
from transformers import AutoModelForCausalLM, AutoTokenizer

from cli_support import call, quiet
from flowrl import names
from flowrl.build import build_policy
from flowrl.contracts import Prompt
from flowrl.planning.costs import arithmetic, eval_plan, plan_for
from flowrl.planning.dry_run import describe
from flowrl.recipe.load import load
from flowrl.runs.start import run
from flowrl.runs.weights import load_weights
from language_support import model
from samplers.tokens import Generation

SMALL = ["train.prompts=4", "train.group=6", "train.updates=1", "train.iterations=2", "train.micro_batch=null"]
SMALL += ["train.rollout_batch=null", "eval.prompts=8", "eval.grid=3", "eval.every=null", "device=cpu"]
SYSTEM = "{% for m in messages %}{{ m.role + ': ' + m.content + '\\n' }}{% endfor %}assistant: "


def lines(folder: Path, kind: str) -> list[dict]:
    rows = [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]
    return [row for row in rows if row["kind"] == kind]


def tiny(folder: Path, *more: str):
    return load("tiny_lm_grpo", [f"output={folder}", *SMALL, *more])


@pytest.fixture(scope="module")
def finished(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder of a shortened tiny_lm_grpo."""
    folder = tmp_path_factory.mktemp("runs") / "tiny_lm"
    run(tiny(folder), quiet())
    return folder


def test_the_tiny_recipe_runs_through_the_same_loop(finished: Path):
    train = lines(finished, "train")
    assert [m["iteration"] for m in train] == [1, 2]
    for metrics in train:
        assert metrics["replay_gap_max"] < 5e-5  # the largest of some hundred sharp tokens; usual is 1e-7
        assert metrics["nonfinite_updates"] == 0
        assert 0 <= metrics["reward/exact/mean"] <= 1 and 0 < metrics["reward/format/mean"] <= 1
    assert any(m["grad_norm"] > 0 for m in train)
    heldout = json.loads((finished / "heldout" / "00002.json").read_text())
    assert heldout["pictures"] == [] and len(heldout["texts"]) == 3 and "answer>" in "".join(heldout["texts"])
    assert {p["kind"] for p in heldout["prompts"]} <= {"add", "sub", "mul"}
    assert {p.name for p in finished.iterdir()} >= {"lora", "metrics.jsonl", "summary.json", "recipe.yaml"}
    assert "sampler" not in (finished / "recipe.yaml").read_text()


def test_the_lora_is_pefts_own(finished: Path):
    """peft, on the untouched model, completes greedily what the trained policy does."""
    recipe = load(str(finished / "recipe.yaml"))
    policy = build_policy(recipe)
    load_weights(policy, finished)
    prompts = [Prompt(t, t) for t in ("347+285", "47*6")]
    ours = policy.rollout(prompts, plan=Generation(40, 0.0), seed=0).samples.texts
    place = names.MODELS["arithmetic-qwen2"]
    base = AutoModelForCausalLM.from_pretrained(place, dtype=torch.float32)
    tuned, tokenizer = PeftModel.from_pretrained(base, str(finished / "lora")), AutoTokenizer.from_pretrained(place)
    theirs = []
    for prompt in prompts:
        ids = policy.encode(prompt.text)
        made = tuned.generate(input_ids=torch.tensor([ids]), do_sample=False, max_new_tokens=40)
        theirs.append(tokenizer.decode(made[0, len(ids) :], skip_special_tokens=True))
    assert theirs == ours


def test_the_same_seed_gives_the_same_numbers_and_cuts_change_nothing(finished: Path, tmp_path: Path):
    run(tiny(tmp_path / "again"), quiet())
    run(tiny(tmp_path / "cut", "train.micro_batch=5", "train.rollout_batch=7", "eval.batch=3"), quiet())
    run(tiny(tmp_path / "other", "seed=1"), quiet())

    def numbers(folder: Path) -> list[dict]:
        rows = lines(folder, "train") + lines(folder, "heldout")
        return [{k: v for k, v in m.items() if not k.startswith("time_")} for m in rows]

    assert numbers(tmp_path / "again") == numbers(finished) != numbers(tmp_path / "other")
    for whole, cut in zip(lines(finished, "train"), lines(tmp_path / "cut", "train"), strict=True):
        for name in ("reward/exact/mean", "grad_norm", "loss", "ratio"):
            assert whole[name] == pytest.approx(cut[name], rel=1e-3, abs=1e-5)


def test_a_share_of_tokens_by_entropy_is_that_of_the_update_however_it_is_cut(finished: Path, tmp_path: Path):
    """With groups drawn anew and rows chosen too; the tokens that are left out are missing from the gradient."""
    more = ["objective.entropy_share=0.2", "train.updates=2", "train.refill=1", "train.keep=4", "objective.kl=0.01"]
    more += ["train.iterations=1", "eval.prompts=3", "generation.max_new_tokens=24"]
    run(tiny(tmp_path / "whole", *more), quiet())
    run(tiny(tmp_path / "cut", *more, "train.micro_batch=3", "train.rollout_batch=7"), quiet())
    run(tiny(tmp_path / "all", *more[1:]), quiet())
    whole, cut, everything = (lines(tmp_path / name, "train") for name in ("whole", "cut", "all"))
    for one, other in zip(whole, cut, strict=True):
        for name in ("reward/exact/mean", "grad_norm", "loss", "ratio", "kl"):
            assert one[name] == pytest.approx(other[name], rel=1e-3, abs=1e-5)
    assert 0 < whole[0]["grad_norm"] != everything[0]["grad_norm"]
    assert whole[0]["reward/exact/mean"] == everything[0]["reward/exact/mean"]


@pytest.fixture(scope="module")
def qwen(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A tiny random Qwen2 with room for long prompts and a template that takes system messages, as a user's folder."""
    folder = tmp_path_factory.mktemp("models") / "qwen"
    made = model()
    made.config.max_position_embeddings = 2048
    made.save_pretrained(folder)
    tokenizer = AutoTokenizer.from_pretrained(names.MODELS["arithmetic-qwen2"])
    tokenizer.chat_template = SYSTEM
    tokenizer.save_pretrained(folder)
    return folder


def test_the_published_recipe_runs_on_a_tiny_qwen(qwen: Path, tmp_path: Path):
    more = [f"model={qwen}", f"output={tmp_path / 'run'}", *SMALL, "eval.batch=8"]
    more += ["generation.max_new_tokens=24", "rewards.length={use: lengths_for_tests.fewer}", "train.lr=1e-3"]
    more += ["prompts={train: prompts/word_problems_train.jsonl, heldout: prompts/word_problems_heldout.jsonl}"]
    run(load("grpo_qwen", more), quiet())
    train = lines(tmp_path / "run", "train")
    for metrics in train:
        assert metrics["grad_norm"] > 0 and metrics["nonfinite_updates"] == 0
        assert metrics["reward/math/nan"] == 0
    assert train[0]["kl"] == pytest.approx(0, abs=1e-4) and train[1]["kl"] > 0


def test_full_weights_become_a_model_of_their_own(qwen: Path, tmp_path: Path):
    more = ["lora=null", "full=true", "train.iterations=1", "train.gradient_checkpointing=true", "train.lr=1e-3"]
    run(tiny(tmp_path / "full", f"model={qwen}", "rewards.length={use: lengths_for_tests.fewer}", *more), quiet())
    weights = tmp_path / "full" / "model"
    trained = build_policy(tiny(tmp_path / "x", f"model={weights}", "lora=null", "full=true"))
    again = build_policy(load(str(tmp_path / "full" / "recipe.yaml")))
    load_weights(again, tmp_path / "full")
    fresh = build_policy(tiny(tmp_path / "x", f"model={qwen}", "lora=null", "full=true"))
    rows = list(zip(trained.trainable(), again.trainable(), fresh.trainable(), strict=True))
    assert all(torch.equal(a, b) for a, b, _ in rows) and not all(torch.equal(a, c) for a, _, c in rows)


@pytest.mark.parametrize("kind", ["exact", "k3"])
def test_a_divergence_is_paid_from_the_second_iteration_on(kind: str, tmp_path: Path):
    run(tiny(tmp_path / "kl", "objective.kl=0.05", f"objective.kl_kind={kind}"), quiet())
    first, second = lines(tmp_path / "kl", "train")
    assert first["kl"] == pytest.approx(0, abs=1e-6) and second["kl"] > 1e-6


def test_plans_and_costs():
    recipe = load("tiny_lm_grpo", ["generation.top_k=9", "generation.top_p=0.9", "train.epochs=2"])
    assert plan_for(recipe, 7) == Generation(40, 1.0, 9, 0.9)
    assert eval_plan(recipe) == Generation(40, 0.0, 9, 0.9)
    assert eval_plan(load("tiny_lm_grpo", ["eval.temperature=null"])) == Generation(40, 1.0)
    costs = arithmetic(recipe)
    assert (costs.rows, costs.rollout_forwards, costs.train_forwards, costs.reference_forwards) == (
        192,
        192 * 40,
        2 * 192 * 40,
        0,
    )
    k3 = arithmetic(load("tiny_lm_grpo", ["train.epochs=2", "objective.kl=0.1", "objective.kl_kind=k3"]))
    exact = arithmetic(load("tiny_lm_grpo", ["train.epochs=2", "objective.kl=0.1", "objective.kl_kind=exact"]))
    assert (k3.reference_forwards, exact.reference_forwards) == (192 * 40, 3 * 192 * 40)
    text = describe(recipe, num_train=2100, num_heldout=256)
    for words in ("at most 40 new tokens, temperature 1, top 9, nucleus 0.9", "token-forwards", "greedy"):
        assert words in text
    assert "ODE" not in text and "denoiser" not in text


def test_eval_and_sample_print_numbers_and_texts(finished: Path, capsys, monkeypatch, tmp_path: Path):
    code, out, err = call(capsys, monkeypatch, "eval", str(finished), "--output", str(tmp_path / "eval.json"))
    assert code == 0, err
    assert "greedy" in out and "exact" in out and "ODE" not in out
    found = json.loads((tmp_path / "eval.json").read_text())["rewards"]["exact"]
    assert found == pytest.approx(json.loads((finished / "summary.json").read_text())["heldout"]["2"]["exact"])
    code, out, _ = call(capsys, monkeypatch, "sample", str(finished), "347+285")
    assert code == 0 and out.count("347+285  ->  ") == 1  # greedy: more would all be the same
    file = tmp_path / "out.txt"
    code, out, _ = call(capsys, monkeypatch, "sample", str(finished), "347+285", "--number", "2", "--output", str(file))
    assert code == 0 and out.count("347+285  ->  ") == 2 and file.read_text() == out


def test_a_mistake_of_the_command_line_is_one_line(capsys, monkeypatch, tmp_path: Path):
    for arguments, words in (
        (("run", "tiny_lm_grpo", "generation.max_new_tokens=500", f"output={tmp_path / 'a'}"), "128 positions"),
        (
            ("run", "tiny_lm_grpo", "objective.preset=edge", "eval.at_start=false", f"output={tmp_path / 'e'}"),
            "corrections add tokens=256 to the completions",
        ),
        (("run", "tiny_lm_grpo", "generation.system=hi", f"output={tmp_path / 'b'}"), "only user and assistant"),
        (("run", "tiny_lm_grpo", "model=nobody/nothing", f"output={tmp_path / 'c'}"), "nobody/nothing"),
        (("world", "build", "arithmetics"), "did you mean 'arithmetic'?"),
        (("world", "build", "arithmetic", "--vae-steps", "3"), "takes only --steps"),
        (("world", "build", "shapes", "--steps", "3"), "takes only --vae-steps, --flow-steps"),
    ):
        code, _, err = call(capsys, monkeypatch, *arguments)
        assert code == 2 and len(err.strip().splitlines()) == 1 and words in err, err
