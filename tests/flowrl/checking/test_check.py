"""`flowrl check`: every proof holds on the quickstart, and each one's own planted fault is named."""

import dataclasses
import shutil
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace

import psutil
import pytest
import torch

import families
from cli_support import call
from flowrl.checking.check import check
from flowrl.checking.proofs import bench as bench_module
from flowrl.checking.proofs import common, denoising, learning
from flowrl.checking.proofs import rows as single_rows
from flowrl.checking.proofs.bench import Bench
from flowrl.checking.proofs.proof import ProofError, ProofResult
from flowrl.core.learning.learner import Learner
from flowrl.planning.duration import Duration
from flowrl.policies import adapters
from flowrl.recipe.load import load

BASE = str(Path(__file__).parents[2] / "recipes" / "quickstart.yaml")
# see test_check_noised.py, _teacher.py, _merged.py, test_compiling.py, test_attending.py
OTHERS = (denoising.LOOK, denoising.TEACHER, common.MOVED, common.COMPILED, common.ATTENTION)
OF_STEPS = [proof for proof in denoising.PROOFS if proof not in OTHERS]
FEW = ["sampler.steps=3", "sampler.window={kind: first, size: 2}", "eval.steps=2", "train.group=4"]


@pytest.fixture(autouse=True)
def _no_collecting(monkeypatch: pytest.MonkeyPatch) -> None:
    """Going through all objects of a long test session takes longer than a check."""
    monkeypatch.setattr(bench_module.gc, "collect", lambda: 0)


def small(*overrides: str):
    return load(BASE, [*FEW, *overrides])


def findings(recipe, *, rows: int = 8) -> list[ProofResult]:
    return [found for found in check(recipe, rows=rows) if isinstance(found, ProofResult)]


def first_failure(recipe, *, rows: int = 8) -> ProofResult:
    """The first proof that does not hold; what comes after it is not made."""
    return next(found for found in check(recipe, rows=rows) if isinstance(found, ProofResult) and found.held is False)


def command(capsys, monkeypatch, *arguments: str) -> tuple[int, str, str]:
    return call(capsys, monkeypatch, "check", *arguments, columns=200)


def test_everything_holds_on_the_quickstart_and_nothing_is_left_behind(capsys, monkeypatch, tmp_path: Path):
    monkeypatch.chdir(tmp_path)
    code, out, err = command(capsys, monkeypatch, BASE, *FEW, "--rows", "16")
    assert code == 0 and err == ""
    titles = [proof.title for proof in OF_STEPS]
    lines = [line for line in out.splitlines() if line.startswith("✓")]
    assert [line[2:41].strip() for line in lines] == titles
    measured = dict(zip(titles, (line[41:].strip() for line in lines), strict=True))
    assert measured["noise 0 equals the untouched pipeline"] == "max difference 0"
    assert measured["ratio is 1 at every trained step"] == "1 exactly at 2 steps (0, 1)"
    assert "0 in 22 factors A, as expected" in measured["gradient arrives and is finite"]
    assert "22 of 22 LoRA factors A" in measured["one update changes the samples"]
    assert measured["disabling adapters undoes the update"] == "max difference 0.0"
    assert "the whole recipe, on this machine" in out and "rollout" in out
    assert list(tmp_path.iterdir()) == []


def test_a_mistake_in_the_recipe_stays_exit_code_2(capsys, monkeypatch):
    code, out, err = command(capsys, monkeypatch, BASE, "train.lr=fast")
    assert code == 2 and out == "" and "train.lr" in err
    code, _, err = command(capsys, monkeypatch, BASE, "pipeline.heigth=32")
    assert code == 2 and "pipeline.heigth" in err


def test_a_failure_is_exit_code_1_and_what_does_not_need_it_is_still_shown(capsys, monkeypatch, tmp_path: Path):
    (tmp_path / "taken").write_text("a file")
    arguments = ["rewards.shapes.use=planted.Unmade", "rewards.shapes.args={}", "model=nobody/nothing", "pipeline={}"]
    code, out, err = command(capsys, monkeypatch, BASE, *FEW, *arguments, f"output={tmp_path / 'taken' / 'run'}")
    assert code == 1
    assert err.startswith("flowrl: check: output folder can be written: ") and len(err.splitlines()) == 1
    assert "likely cause" in err and "output=FOLDER" in err
    marks = {line[2:41].strip(): line[0] for line in out.splitlines() if line[:1] in "✓✗–" and line[:1]}
    assert marks["prompts load"] == "✓"
    for title in ("output folder can be written", "rewards can be set up", "model loads and can be replayed"):
        assert marks[title] == "✗"
    assert {marks[p.title] for p in OF_STEPS[4:]} == {"–"}
    assert "nobody/nothing" in out and "weights are not there" in out


def shake_adapters(policy) -> None:
    """Adapters that change the model from the start."""
    with torch.no_grad():
        for name, parameter in policy.modules["transformer"].named_parameters():
            if "lora_B" in name:
                parameter.add_(0.1)


def free_a_weight(policy) -> None:
    """A weight of the model itself is trained beside the adapters."""
    policy.modules["transformer"].proj_out.bias.requires_grad_(True)


def hook(change: Callable[[torch.Tensor], torch.Tensor]) -> Callable:
    """Gradients of one kind of tensor are changed on their way."""

    def plant(policy) -> None:
        for name, parameter in policy.modules["transformer"].named_parameters():
            if name.startswith("transformer_blocks") and "to_q.lora_B" in name:
                parameter.register_hook(change)

    return plant


@pytest.mark.parametrize(
    ("title", "plant", "words"),
    [
        ("noise 0 equals the untouched pipeline", shake_adapters, ["max difference", "accepted 1e-05"]),
        ("gradient arrives and is finite", hook(torch.zeros_like), ["to_q.lora_B", "lora.targets"]),
        ("gradient arrives and is finite", hook(lambda g: g * torch.nan), ["not finite in 2 tensors", "skip_last"]),
        ("disabling adapters undoes the update", free_a_weight, ["max difference", "plain lora"]),
    ],
)
def test_a_fault_in_the_policy_is_named(title, plant, words, monkeypatch):
    own = bench_module.build_policy

    def build(recipe):
        policy = own(recipe)
        plant(policy)
        return policy

    monkeypatch.setattr(bench_module, "build_policy", build)
    found = first_failure(small())
    assert found.title == title
    for word in words:
        assert word in found.sentence()


@pytest.mark.parametrize(
    ("title", "overrides", "words"),
    [
        ("noise keeps the sample statistics", ["sampler.noise=4"], ["sampler.noise=4", "roughness"]),
        ("noise keeps the sample statistics", ["sampler.step=planted.loud"], ["roughness", "band"]),
        ("ratio is 1 at every trained step", ["sampler.step=planted.restless"], ["off at steps 0, 1 of 0, 1", "pure"]),
        ("gradient arrives and is finite", ["sampler.step=planted.cut"], ["no log-prob has a gradient"]),
        ("noise 0 equals the untouched pipeline", ["sampler.step=planted.shaken"], ["max difference"]),
        ("rewards can be set up", ["rewards.strict.use=planted.Unmade"], ["'strict'", "weights are not there"]),
        ("rewards score and vary within groups", ["rewards.strict.use=planted.broken"], ["'strict'", "KeyError"]),
        (
            "rewards score and vary within groups",
            ["rewards={mine: {use: planted.unsure}}"],
            ["mine is NaN for 1 of 8 samples", "rewards.mine.weight=0"],
        ),
        (
            "rewards score and vary within groups",
            ["rewards={mine: {use: planted.constant}}"],
            ["2 of 2 groups without spread", "every advantage is 0"],
        ),
    ],
)
def test_a_fault_in_the_recipe_is_named(title, overrides, words):
    found = first_failure(small(*overrides))
    assert found.title == title
    for word in words:
        assert word in found.sentence()


def test_an_optional_reward_that_raises_is_named():
    recipe = small("rewards.strict={use: planted.broken, weight: 0.0, required: false}")
    with pytest.warns(UserWarning, match="optional reward 'strict' failed"):
        found = first_failure(recipe)
    assert found.measured == "strict failed on 8 of 8 samples" and "required" in found.remedy


def test_an_empty_prompt_file_is_named(tmp_path: Path):
    (tmp_path / "none.txt").write_text("\n")
    found = first_failure(small(f"prompts.train={tmp_path / 'none.txt'}"))
    assert found.title == "prompts load" and "none.txt" in found.measured


def test_held_out_prompts_that_are_trained_on_are_counted(tmp_path: Path):
    (tmp_path / "a.txt").write_text("\n".join(f"a red circle {i}" for i in range(20)))
    (tmp_path / "b.txt").write_text("a red circle 3\na blue square\na red circle 7\n")
    recipe = small(f"prompts={{train: {tmp_path / 'a.txt'}, heldout: {tmp_path / 'b.txt'}}}")
    assert "3 held out, 2 of these texts are also trained on" in next(iter(check(recipe))).measured


def test_a_full_disk_and_a_full_memory_are_named(monkeypatch):
    monkeypatch.setattr(shutil, "disk_usage", lambda path: SimpleNamespace(total=2**40, used=2**40 - 10, free=10))
    monkeypatch.setattr(psutil, "virtual_memory", lambda: SimpleNamespace(available=2**20))
    failed = [found for found in findings(small()) if found.held is False]
    assert [found.title for found in failed] == ["disk holds the checkpoints", "memory suffices"]
    assert "10" not in failed[0].remedy and "output=FOLDER" in failed[0].remedy
    assert "train.gradient_checkpointing=true" in failed[1].remedy and "1.0 MiB free" in failed[1].measured


def test_an_optimizer_that_moves_nothing_is_named(monkeypatch):
    monkeypatch.setattr(Learner, "step", lambda self: torch.zeros(()))
    found = first_failure(small())
    assert found.title == "one update changes the samples" and "no pixel changes" in found.measured


def test_adapters_that_stay_on_are_named(monkeypatch):
    monkeypatch.setattr(adapters, "disable_adapters", torch.no_grad)
    assert first_failure(small()).title == "disabling adapters undoes the update"


def test_a_multistep_scheduler_is_compared_in_its_first_order_form(tmp_path: Path):
    families.get("wan_unipc").build().save_pretrained(tmp_path / "wan")
    size = "pipeline={height: 16, width: 16, num_frames: 5}"
    recipe = small(f"model={tmp_path / 'wan'}", size, "rewards={jpeg: {use: jpeg_compressibility}}")
    found = next(f for f in check(recipe, rows=4) if isinstance(f, ProofResult) and f.title.startswith("noise 0"))
    assert found.held and "first-order form" in found.measured


def test_a_model_that_predicts_noise_is_compared_with_ddim(tmp_path: Path):
    families.get("sdxl").build().save_pretrained(tmp_path)
    overrides = [f"model={tmp_path}", "pipeline={height: 16, width: 16}", "prompts.heldout=null", "sampler.step=ddim"]
    recipe = small(*overrides, "sampler.noise=1.0", "rewards={jpeg: {use: jpeg_compressibility}}")
    found = {f.title: f for f in findings(recipe)}
    assert {f.title for f in found.values() if f.held is not True} == set()
    assert (
        "with DDIM on the noise table of its EulerDiscrete" in found["noise 0 equals the untouched pipeline"].measured
    )
    assert found["ratio is 1 at every trained step"].measured.startswith("1 exactly")


def test_full_weights_are_proven_without_what_is_about_adapters(monkeypatch):
    recipe = small("lora=null", "full=true", "train.lr=1e-4")
    *found, time = check(recipe, rows=8)
    assert isinstance(time, Duration) and time.total > 0
    assert [f.held for f in found] == [True] * (len(OF_STEPS) - 1)
    by_title = {f.title: f.measured for f in found}
    assert "disabling adapters undoes the update" not in by_title
    assert "inner" not in by_title["gradient arrives and is finite"]


def test_steps_of_all_windows_are_met():
    recipe = small("sampler.steps=10", "sampler.window={kind: progressive, size: 2, interval: 1}")
    plans = Bench(recipe).plans
    assert sorted({step for plan in plans for step in plan.trained}) == list(range(9))
    assert plans[0].trained == (0, 1) and len(plans) == 5  # windows side by side where they fit


def test_the_rows_of_a_pass_are_no_more_than_a_training_forward_holds():
    assert Bench(small("train.micro_batch=3")).rows_at_once == 3
    assert Bench(small("train.micro_batch=6", "train.rollout_batch=5")).rows_at_once == 5
    recipe = small("train.micro_batch=3", "train.rollout_batch=6")
    found = next(f for f in check(recipe, rows=8) if isinstance(f, ProofResult) and f.title.startswith("ratio"))
    assert found.measured.startswith("1 exactly")


def test_an_error_in_a_proof_is_told_by_its_place(monkeypatch):
    def stumble(bench):
        raise ZeroDivisionError("by zero")

    proof = dataclasses.replace(common.PROMPTS, show=stumble)
    monkeypatch.setattr(denoising, "PROOFS", (proof, common.FOLDER))
    found = findings(small())
    assert "ZeroDivisionError" in found[0].measured and "test_check.py" in found[0].cause
    assert found[1].held is True


def test_the_time_is_told_only_where_it_was_measured():
    assert not any(isinstance(found, Duration) for found in check(small("model=nobody/nothing", "pipeline={}")))


def test_steps_without_noise_are_neither_trained_nor_certified():
    recipe = small(
        "sampler.step=cps", "sampler.noise=0.5", "sampler.window={kind: all, skip_last: 0}", "sampler.steps=3"
    )
    bench = Bench(recipe, rows=8)
    assert learning.ratio(bench) == "1 exactly at 2 steps (0, 1)"
    assert bench.replay.visited == {0, 1}
    bench.replay.visited.add(2)  # as of a model whose table is known only once it is loaded
    assert learning.ratio(bench).endswith(
        "at 2 steps (0, 1); no noise at 2: not trained (leave it out: sampler.window)"
    )
    bench.replay.gap.clear()
    with pytest.raises(ProofError, match="no noise at trained steps"):
        learning.ratio(bench)


def test_a_row_that_depends_on_its_company_is_named(monkeypatch):
    bench = Bench(small(), rows=8)
    said = single_rows.row_by_itself(bench)
    assert said.startswith("rows share calls, |log ratio| at most ")
    assert float(said.split()[-1]) < 1e-6
    own = bench.policy.run

    def from_the_first(walk, prompts, starts, **how):
        return own(walk, prompts, [starts[0]] * len(starts), **how)

    monkeypatch.setattr(bench.policy, "run", from_the_first)
    with pytest.raises(ProofError, match="of a row by itself"):
        single_rows.row_by_itself(bench)
