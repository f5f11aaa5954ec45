"""Runs of several roles: one that is killed goes on bit for bit, and what does not fit is refused in one line."""

from pathlib import Path

import pytest

from flowrl.planning.costs import arithmetic
from flowrl.planning.dry_run import describe
from flowrl.recipe.errors import RecipeError
from flowrl.recipe.load import load
from flowrl.worlds.arithmetic.model import make_tokenizer
from language_support import model
from resume_support import goes_on, metrics, train

ROLES = (
    "roles={names: [solver, checker], rounds: 2, hear: rounds, ask: '{question} {said}', line: '{text}', discount: 0.3}"
)
SMALL = [ROLES, "train.prompts=2", "train.group=2", "train.updates=2", "train.iterations=3", "train.micro_batch=3"]
SMALL += ["generation.max_new_tokens=8", "checkpoint.every=1", "threads=1", "eval.every=null", "eval.prompts=3"]
SMALL += ["rewards={short: {use: overlong, args: {limit: 8, margin: 8}}}"]


def test_a_killed_run_of_roles_with_critics_goes_on_bit_for_bit(tmp_path: Path) -> None:
    more = [*SMALL, "objective={preset: ppo, kl: 0.05}", "critic={use: lora, rank: 2, lr: 1.0e-2}"]
    folder, whole = goes_on("tiny_lm_grpo", more, tmp_path)
    assert (folder / "lora" / "checker" / "adapter_model.safetensors").is_file()
    seen = [line for line in metrics(whole) if line["kind"] == "train"]
    names = {f"roles/{name}_{number}" for name in ("solver", "checker") for number in (1, 2)}
    assert all(names <= line.keys() and line["replay_gap_max"] < 1e-4 for line in seen[:1])
    assert all(line["value/loss"] > 0 for line in seen)


REFUSED = {
    "roles": ["lora=null", "full=true"],
    "roles.names": ["roles.names=[a, a]"],
    "roles.ask": ["roles.ask='{said}'"],
    "roles.ask.nobody": ["roles.ask={nobody: '{question}{said}'}"],
    "roles.line": ["roles.line=text"],
    "roles.adapters": ["roles.rounds=1", "roles.adapters=rounds"],
    "roles.discount": ["roles.share=last"],
    "lora.init": ["lora.init=somewhere"],
    "generation.partial": ["generation.partial=4"],
    "train.budget": ["train.budget={kind: equal_treatment, limit: 4}"],
    "train.skip_truncated": ["train.skip_truncated=true"],
    "objective.right": ["objective.right={coef: 0.1}"],
    "rollout.dtype": ["rollout.dtype=bfloat16"],
    "advantage.credit.kind": ["advantage.credit=optimal_token"],
}


@pytest.mark.parametrize("place", REFUSED)
def test_what_does_not_fit_roles_is_refused_in_one_line(place: str) -> None:
    load("tiny_lm_grpo", SMALL)
    with pytest.raises(RecipeError) as refused:
        load("tiny_lm_grpo", [*SMALL, *REFUSED[place]])
    assert refused.value.place == place and "\n" not in str(refused.value)


def test_a_denoiser_has_no_roles() -> None:
    with pytest.raises(RecipeError, match=r"roles: given, but only language models"):
        load("quickstart", ["roles={names: [a, b]}"])


def test_shipped_discussions_run_as_published_on_a_tiny_model(tmp_path: Path) -> None:
    tokenizer, network = make_tokenizer(), model()
    network.config.max_position_embeddings = network.generation_config.max_length = 2048
    network.save_pretrained(tmp_path / "model")
    tokenizer.save_pretrained(tmp_path / "model")
    more = [f"model={tmp_path / 'model'}", "train.prompts=2", "train.updates=2", "train.iterations=3", "device=cpu"]
    more += ["prompts={train: prompts/word_problems_train.jsonl, heldout: null}", "generation.max_new_tokens=6"]
    more += [
        "eval.prompts=null",
        "dtype.model=float32",
        "rewards.length={use: lengths_for_tests.fewer}",
        "train.lr=1e-3",
        "critic.lr=1e-3",
    ]
    train("maporl", [*more, "train.micro_batch=4", "train.rollout_batch=4", "threads=1"], tmp_path / "maporl")
    seen = [line for line in metrics(tmp_path / "maporl") if line["kind"] == "train"]
    names = {f"roles/{name}_{number}" for name in ("one", "two") for number in (1, 2, 3)}
    assert len(seen) == 3 and all(names <= line.keys() and line["grad_norm"] > 0 for line in seen)
    assert {path.name for path in (tmp_path / "maporl" / "lora").iterdir() if path.is_dir()} == {"round_2", "round_3"}


def test_the_debate_that_learns_here_runs(tmp_path: Path) -> None:
    more = ["train.prompts=2", "train.group=4", "train.updates=1", "train.iterations=3", "eval.prompts=4"]
    train("tiny_debate", [*more, "threads=1", "eval.every=null"], tmp_path / "run")
    seen = metrics(tmp_path / "run")
    for line in (line for line in seen if line["kind"] == "train"):
        both = [line["roles/solver_1"], line["roles/checker_1"]]
        assert sum(both) / 2 == pytest.approx(line["reward/exact/mean"], abs=1e-6)
    assert [line["iteration"] for line in seen if line["kind"] == "heldout"] == [0, 3]
    assert "2 rows of each" in describe(load("tiny_debate")) and arithmetic(load("tiny_debate")).rows == 256
