"""Phases of one run: what each changes and resets, how they are shown, refused and resumed."""

import json
import shutil
from pathlib import Path

import pytest
import torch

from cli_support import quiet
from flowrl.build import build_objective
from flowrl.core.learning.learner import Learner
from flowrl.planning.dry_run import describe
from flowrl.recipe.errors import RecipeError
from flowrl.recipe.load import dump, load
from flowrl.runs.phasing import Draws
from flowrl.runs.start import run
from resume_support import assert_same_run

SMALL = ["train.prompts=2", "train.group=4", "train.updates=2", "train.iterations=null", "train.micro_batch=null"]
SMALL += ["train.rollout_batch=null", "eval.at_start=false", "eval.at_end=false", "eval.every=null", "device=cpu"]
SMALL += ["generation.max_new_tokens=8", "threads=1", "rewards={short: {use: overlong, args: {limit: 8, margin: 8}}}"]
CHANGED = "{objective.kl: 0.5, train.prompts: 4, prompts.train: FILE}"
SECOND = f"{{iterations: 3, overrides: {CHANGED}, reset: [reference, optimizer]}}"


def phased(folder: Path, *more: str, name: str = "run"):
    file = folder / "sums.jsonl"
    file.write_text("".join(json.dumps({"prompt": f"{i}+{i}", "answer": str(2 * i)}) + "\n" for i in range(10, 16)))
    phases = f"phases=[{{iterations: 2}}, {SECOND.replace('FILE', str(file))}]"
    return load("tiny_lm_grpo", [*SMALL, phases, f"output={folder / name}", *more])


def rows(folder: Path) -> list[dict]:
    return [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]


def test_each_phase_has_its_own_constants(tmp_path: Path) -> None:
    recipe = phased(tmp_path)
    assert recipe.train.iterations == 5
    seen = [(recipe.at(i).objective.kl, recipe.at(i).train.prompts) for i in range(6)]
    assert seen == [(0.0, 2)] * 2 + [(0.5, 4)] * 4
    assert recipe.updates_by(5) == 10 and recipe.reads_reference and build_objective(recipe.at(3)).kl == 0.5
    told = describe(recipe)
    assert "iterations 1 to 2: the recipe as it is (16 samples)" in told
    assert "iterations 3 to 5: objective.kl 0.5; train.prompts 4" in told and "new reference, optimizer (48" in told
    assert "total: 64 samples, 10 optimizer steps" in told
    (tmp_path / "again.yaml").write_text(dump(recipe))
    again = load(str(tmp_path / "again.yaml"))
    assert again == recipe and [again.at(i) for i in range(5)] == [recipe.at(i) for i in range(5)]


def test_phases_run_reset_and_resume_bit_for_bit(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    resets = []
    reset = Learner.reset
    monkeypatch.setattr(Learner, "reset", lambda self, names: resets.append((self.steps, names)) or reset(self, names))
    more = ["checkpoint={every: 1, keep: 9}"]
    run(phased(tmp_path, *more, name="whole"), quiet())
    whole, cut = tmp_path / "whole", tmp_path / "cut"
    metrics = rows(whole)
    assert [m["phase"] for m in metrics] == [1, 1, 2, 2, 2]
    assert resets == [(4, ["reference", "optimizer"])]
    assert "kl" not in metrics[1] and metrics[2]["kl"] < 1e-3 < metrics[4]["kl"]  # measured from the model of then
    shutil.copytree(whole, cut)
    for later in ("00004", "00005"):
        shutil.rmtree(cut / "checkpoints" / later)
    (cut / "summary.json").unlink()
    run(phased(tmp_path, *more, name="cut"), quiet(), resume=cut)
    assert_same_run(cut, whole)
    assert len(resets) == 1  # it went on behind the third iteration


def test_a_learner_begins_anew_with_what_is_reset() -> None:
    weight = torch.nn.Parameter(torch.tensor([1.0, 2.0]))
    learner = Learner([weight], lr=0.1, average=0.5, old=True)
    for _ in range(3):
        weight.square().sum().backward()
        learner.step()
    learner.reset(["optimizer", "reference"])
    assert not learner.optimizer.state and torch.equal(learner.copies["reference"][0], weight)
    assert not torch.equal(learner.copies["average"][0], weight) and not torch.equal(learner.copies["old"][0], weight)
    other = Learner([torch.nn.Parameter(torch.zeros(2))], lr=0.1, average=0.5, old=True)
    other.load_state_dict(learner.state_dict())
    assert torch.equal(other.copies["reference"][0], weight.detach())
    learner.reset(["average", "old"])
    assert torch.equal(learner.copies["average"][0], weight) and learner.unmoved == {"old"}


def test_phases_of_the_same_prompts_share_a_draw_and_all_share_a_memory(tmp_path: Path) -> None:
    phases = "[{iterations: 1}, {iterations: 1, overrides: {prompts.choose: drop_solved}}, {iterations: 1}]"
    recipe = load("tiny_lm_grpo", [*SMALL, "prompts.limit=6", f"phases={phases}", f"output={tmp_path}"])
    from flowrl.reading.inputs import phase_prompts, read_prompts

    draws = Draws(recipe, phase_prompts(recipe, read_prompts(recipe)[0]))
    first, second, third = (draws.of(recipe, i) for i in range(3))
    assert first is third and second is not first
    first.observe({p.id: (1.0, 0.0) for p in first.take(4)})
    assert {p.id for p in second.take(2)} == {p.id for p in first.take(2)}  # the two that were never right
    state = json.loads(json.dumps(draws.state_dict()))
    again = Draws(recipe, phase_prompts(recipe, read_prompts(recipe)[0]))
    again.load_state_dict(state)
    assert again.state_dict() == draws.state_dict() and len(again.of(recipe, 1).memory) == 4


@pytest.mark.parametrize(
    ("overrides", "said"),
    [
        ("{lora.rank: 4}", "phases.1.overrides.lora.rank: got 4, but the recipe has 16, which stays during a run"),
        ("{train.lrr: 4}", "phases.1.overrides.train.lrr: "),
        ("{train.lr: -4}", "phases.1.overrides.train.lr: got -4"),
        ("{objective.entropy_share: 0.2}", "phases.1.overrides.objective.entropy_share: got 0.2, but the recipe has"),
        ("{train.keep: 5}", "train.keep: got 5, accepted: an even number"),
    ],
)
def test_an_override_that_cannot_be_is_one_line(overrides: str, said: str) -> None:
    with pytest.raises(RecipeError) as caught:
        load(
            "tiny_lm_grpo",
            ["train.iterations=null", f"phases=[{{iterations: 1}}, {{iterations: 1, overrides: {overrides}}}]"],
        )
    assert said in str(caught.value) and "\n" not in str(caught.value)


def test_iterations_beyond_the_phases_are_refused() -> None:
    with pytest.raises(RecipeError, match="train.iterations: got 40, but the phases are 3 iterations long"):
        load("tiny_lm_grpo", ["phases=[{iterations: 3}]"])
