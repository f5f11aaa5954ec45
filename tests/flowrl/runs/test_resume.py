"""A run that is killed, stopped or damaged goes on as if nothing had been."""

import json
import random
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file

from flowrl.build import build_policy
from flowrl.commands.failures import ENDING_ERRORS
from flowrl.core.learning.learner import Learner
from flowrl.names import UserError
from flowrl.policies import adapters
from flowrl.recipe.errors import RecipeError
from flowrl.recipe.load import load
from flowrl.runs import checkpoints as state
from flowrl.runs import resume as resuming
from flowrl.runs import start as running
from flowrl.runs.folder import RunFolder, newest_run
from flowrl.runs.stopping import Stopped
from flowrl.runs.weights import load_weights
from resume_support import (
    QUICK,
    QUICK_TEXT,
    SHORT,
    after,
    assert_same_run,
    begun,
    ended,
    final_state,
    killed,
    metrics,
    same,
    train,
    within,
)

CURVES = ["objective.kl={0: 0, 4: 0.02}", "objective.clip={1: [1.0e-4, 1.0e-4], 5: [2.0e-4, 3.0e-4]}"]
CURVES += ["sampler.noise={0: 0.7, 4: 0.5}"]
KEEP = [*QUICK, "checkpoint.keep=9", *CURVES]


@pytest.fixture(scope="module")
def whole(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """An uninterrupted run of five iterations."""
    folder = tmp_path_factory.mktemp("whole") / "run"
    train("tiny_flow_grpo", KEEP, folder)
    return folder


def cut_back(whole: Path, to: Path, iteration: int) -> Path:
    """A copy of the run as a kill after so many iterations would have left it: later lines stay, checkpoints do not."""
    shutil.copytree(whole, to)
    for checkpoint in state.Checkpoints(to).all():
        if checkpoint.iteration > iteration:
            shutil.rmtree(checkpoint.path)
    (to / "summary.json").unlink()
    shutil.rmtree(to / "lora" if (to / "lora").is_dir() else to / "model")
    return to


@pytest.mark.parametrize("iteration", [0, 3])
def test_a_run_goes_on_from_any_checkpoint(iteration: int, whole: Path, tmp_path: Path):
    folder = cut_back(whole, tmp_path / "run", iteration)
    train("tiny_flow_grpo", KEEP, folder, resume=True)
    assert_same_run(folder, whole)
    starts = json.loads((folder / "run.json").read_text())["starts"]
    assert [s["from_iteration"] for s in starts] == [0, iteration]


def test_a_run_follows_its_curves(whole: Path):
    lines = [line for line in metrics(whole) if line["kind"] == "train"]
    assert [line["curve/objective.kl"] for line in lines] == pytest.approx([0, 0.005, 0.01, 0.015, 0.02])
    assert [line["curve/sampler.noise"] for line in lines] == pytest.approx([0.7, 0.65, 0.6, 0.55, 0.5])
    assert [line["curve/objective.clip/1"] for line in lines] == pytest.approx([1e-4, 1e-4, 1.5e-4, 2e-4, 2.5e-4])
    assert ["kl" in line for line in lines] == [False, True, True, True, True]  # without a reference while it is 0


@pytest.mark.parametrize("piece", ["random", "moments", "copies", "cursor", "steps"])
def test_whatever_a_resume_forgets_is_seen(piece: str, whole: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    folder = cut_back(whole, tmp_path / "run", 3)
    forgotten = {"random": state.random_state(), "cursor": None, "moments": {}, "copies": {}, "steps": 0}

    def forgetful(checkpoint: state.Checkpoint, only: str | None = None, like: object = None) -> dict:
        saved = loading(checkpoint, only, like)
        if only is not None:
            return saved
        part = saved["mark"] if piece in ("random", "cursor") else saved["learner"]
        value = forgotten[piece]
        part[piece] = part["cursor"] | {"position": 0} if piece == "cursor" else value
        return saved

    loading = state.load
    monkeypatch.setattr(state, "load", forgetful)
    train("tiny_flow_grpo", KEEP, folder, resume=True)
    monkeypatch.undo()
    assert not same(final_state(folder), final_state(whole))


def being_written(folder: Path) -> Callable[[], bool]:
    """When the second checkpoint is under way."""
    return lambda: len(list(folder.glob("checkpoints/*"))) > 1 and any(folder.glob("checkpoints/*.tmp"))


@pytest.mark.parametrize(
    "moment", [pytest.param("early", marks=pytest.mark.slow), "late", "while a checkpoint is written"]
)
def test_a_killed_run_goes_on_bit_for_bit(moment: str, whole: Path, tmp_path: Path):
    folder = tmp_path / "run"
    took = json.loads((whole / "summary.json").read_text())["seconds"]
    when = {"early": after(0.5 + 0.2 * took), "late": after(0.5 + 0.8 * took)}.get(moment, being_written(folder))
    code = killed(when, signal.SIGKILL, train, "tiny_flow_grpo", KEEP, folder)
    assert code in (0, -signal.SIGKILL)  # a quick machine may be done before
    if code:
        train("tiny_flow_grpo", KEEP, folder, resume=(folder / "recipe.yaml").exists())
    assert_same_run(folder, whole)


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_a_signal_saves_and_ends(number: int, whole: Path, tmp_path: Path):
    folder = tmp_path / "run"
    third = [*KEEP, "checkpoint.every=null", "eval.every=null"]
    when = lambda: (folder / "metrics.jsonl").exists() and len(metrics(folder)) >= 3  # noqa: E731
    assert killed(when, number, train, "tiny_flow_grpo", third, folder) == 1  # Stopped
    saved = state.Checkpoints(folder).find("last").iteration
    assert saved >= 2  # begun with none but the first evaluation's
    train("tiny_flow_grpo", third, folder, resume=True)
    steady = tmp_path / "steady"
    train("tiny_flow_grpo", third, steady)
    assert same(final_state(folder), final_state(steady)) and metrics(folder) == metrics(steady)


def test_a_run_that_is_stopped_while_it_makes_its_folder_can_be_resumed(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    def stopped(*_: object) -> None:
        raise Stopped(signal.SIGINT)

    with monkeypatch.context() as patch, pytest.raises(Stopped):
        patch.setattr(RunFolder, "rewind", stopped)
        train("tiny_flow_grpo", QUICK, tmp_path / "run")
    assert newest_run(tmp_path / "run") == tmp_path / "run" and list(tmp_path.iterdir()) == [tmp_path / "run"]
    assert resuming.find_resume_point(tmp_path / "run", load("tiny_flow_grpo", QUICK)).checkpoint is None


def test_a_damaged_checkpoint_costs_the_iterations_since_the_one_before(whole: Path, tmp_path: Path):
    folder = cut_back(whole, tmp_path / "run", 4)
    path = state.Checkpoints(folder).find("last").path / "state.safetensors"
    path.write_bytes(path.read_bytes()[:-1000])
    point = resuming.find_resume_point(folder, load("tiny_flow_grpo", KEEP))
    assert point.iteration == 3 and len(point.complaints) == 1
    assert "00004 is damaged" in point.complaints[0] and "resuming from" in point.complaints[0]
    train("tiny_flow_grpo", KEEP, folder, resume=True)
    assert_same_run(folder, whole)


def test_what_changed_is_named_and_what_cannot_work_refused(whole: Path):
    point = resuming.find_resume_point(whole, load("tiny_flow_grpo", [*KEEP, "train.lr=1e-4", "train.iterations=9"]))
    assert point.changed == {"train.lr": [1.5e-3, 1e-4], "train.iterations": [5, 9]} and point.summary is None
    for place, value in (("lora.rank", "8"), ("lora.alpha", "1"), ("train.iterations", "4")):
        with pytest.raises(RecipeError) as error:
            resuming.find_resume_point(whole, load("tiny_flow_grpo", [*KEEP, f"{place}={value}"]))
        assert error.value.place == place and value in str(error.value)


def test_a_changed_learning_rate_takes_effect(whole: Path, tmp_path: Path):
    folder = cut_back(whole, tmp_path / "run", 4)
    train("tiny_flow_grpo", [*KEEP, "train.lr=3e-3"], folder, resume=True)
    rates = [line["lr"] for line in metrics(folder) if line["kind"] == "train"]
    before = [line["lr"] for line in metrics(whole) if line["kind"] == "train"]
    assert rates[:4] == before[:4] and rates[4] == pytest.approx(2 * before[4])


def test_a_finished_run_has_nothing_to_do(whole: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(running, "build_policy", lambda *_: pytest.fail("weights loaded"))
    lines = (whole / "metrics.jsonl").read_bytes()
    train("tiny_flow_grpo", KEEP, whole, resume=True)
    assert (whole / "metrics.jsonl").read_bytes() == lines


def test_other_prompts_are_refused(whole: Path, tmp_path: Path):
    folder = cut_back(whole, tmp_path / "run", 3)
    with pytest.raises(UserError, match="prompts.train"):
        train("tiny_flow_grpo", [*KEEP, "prompts.limit=50"], folder, resume=True)
    assert load(str(folder / "recipe.yaml")).prompts.limit is None  # and nothing was written


def test_two_runs_in_one_folder_are_one_too_many(tmp_path: Path):
    first = RunFolder(tmp_path / "run")
    first.write("recipe.yaml", "x: 1\n")
    code = "import sys, pathlib; from flowrl.runs.folder import RunFolder; RunFolder(pathlib.Path(sys.argv[1]))"
    second = subprocess.run([sys.executable, "-c", code, str(tmp_path / "run")], capture_output=True, text=True)
    assert "UserError" in second.stderr and "is being written by another run" in second.stderr
    assert (tmp_path / "run" / "recipe.yaml").read_text() == "x: 1\n"
    first.close()
    RunFolder(tmp_path / "run").close()  # free again


def test_a_folder_that_cannot_be_written_is_one_line(tmp_path: Path):
    (tmp_path / "file").write_text("")
    with pytest.raises(UserError, match=r"output: .*cannot be written \(Not a directory\)"):
        RunFolder(tmp_path / "file" / "run")


def test_a_disk_that_fills_up_is_one_line_and_the_run_goes_on_later(whole: Path, tmp_path: Path):
    folder = cut_back(whole, tmp_path / "run", 3)
    limit = max(p.stat().st_size for p in folder.glob("checkpoints/00003/*")) - 1
    work = begun(within, limit, tmp_path / "told", train, "tiny_flow_grpo", KEEP, folder, True)
    assert ended(work) == 0
    (line,) = (tmp_path / "told").read_text().splitlines()
    assert "00004 cannot be written" in line and "00003 is intact" in line
    train("tiny_flow_grpo", KEEP, folder, resume=True)
    assert_same_run(folder, whole)


def test_the_newest_run_of_an_output_is_found(tmp_path: Path):
    assert newest_run(tmp_path / "q") is None
    for name in ("q", "q-2", "q-10", "q-x", "qq", "a[1]", "a[1]-2", "a1-3"):
        (tmp_path / name).mkdir()
        (tmp_path / name / "recipe.yaml").write_text("")
    (tmp_path / "q-11").mkdir()
    assert newest_run(tmp_path / "q") == tmp_path / "q-10"
    assert newest_run(tmp_path / "a[1]") == tmp_path / "a[1]-2"


def test_the_weights_of_a_checkpoint(whole: Path):
    """The averaged ones of the last checkpoint are those that the run wrote at its end; the raw ones differ."""
    recipe = load(str(whole / "recipe.yaml"))
    final, checked = build_policy(recipe), build_policy(recipe)
    load_weights(final, whole)
    wanted, got = adapters.trainable_by_name(final.modules), adapters.trainable_by_name(checked.modules)
    assert resuming.restore_weights(got, whole, "last") == 5
    assert all(torch.equal(got[n], wanted[n]) for n in wanted)
    resuming.restore_weights(got, whole, "last", raw=True)
    assert any(not torch.equal(got[n], wanted[n]) for n in wanted)
    with pytest.raises(state.StateError, match="accepted: last, best, 0"):
        resuming.restore_weights(got, whole, "77")


def test_the_reference_of_a_full_training_goes_on_too(tmp_path: Path):
    """Its divergence is that from the weights that the run began with, before and after a kill."""
    keep = [*KEEP, "lora=null", "full=true", "objective.kl=0.05", "train.lr=1e-4", "train.iterations=2"]
    train("tiny_flow_grpo", keep, tmp_path / "whole")
    folder = cut_back(tmp_path / "whole", tmp_path / "run", 1)
    train("tiny_flow_grpo", keep, folder, resume=True)
    assert_same_run(folder, tmp_path / "whole")
    first, last = (m["kl"] for m in metrics(folder) if "kl" in m)
    assert 0 < first < last


def test_a_language_run_goes_on_too(tmp_path: Path):
    keep = [*QUICK_TEXT, "checkpoint.keep=9", "objective.entropy_share=0.3"]
    keep += [
        "train.lr={by: updates, points: {0: 1.0e-4, 4: 3.0e-4, 8: 1.0e-4}}",
        "generation.temperature={0: 1, 4: 0.8}",
    ]
    train("tiny_lm_grpo", keep, tmp_path / "whole")
    folder = cut_back(tmp_path / "whole", tmp_path / "run", 3)
    train("tiny_lm_grpo", keep, folder, resume=True)
    assert_same_run(folder, tmp_path / "whole")


@pytest.mark.parametrize(
    ("changes", "told"),
    [
        (
            ["rewards={other: {use: resume_support.noisy_size}}"],
            ["rewards.", "missing, but in the resumed run"],
        ),
        (["rewards.more={use: shapes, weight: 0}"], ["rewards.more", "not in the resumed run"]),
        (["eval.prompts=4"], ["prompts.heldout", "eval.prompts"]),
        (["prompts.heldout=shapes/train"], ["prompts.heldout", "eval.prompts"]),
    ],
)
def test_what_scores_or_is_scored_cannot_change_in_between(
    changes: list[str], told: list[str], whole: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    folder = cut_back(whole, tmp_path / "run", 3)
    monkeypatch.setattr(running, "build_policy", lambda *_: pytest.fail("weights loaded"))
    with pytest.raises(UserError) as error:
        train("tiny_flow_grpo", [*KEEP, *changes], folder, resume=True)
    assert all(words in str(error.value) for words in told) and "\n" not in str(error.value), error.value


def test_other_texts_under_the_same_ids_are_refused(tmp_path: Path):
    def prompts(text: str) -> str:
        file = tmp_path / "prompts.jsonl"
        file.write_text("".join(json.dumps({"id": f"p{i}", "prompt": f"{text} {i}"}) + "\n" for i in range(4)))
        return f"prompts.train={file}"

    keep = [*KEEP, "train.iterations=1", "eval.at_start=false", "eval.at_end=false", "eval.every=null"]
    keep += ["rewards.strict=null"]
    train("tiny_flow_grpo", [*keep, prompts("a red circle")], tmp_path / "run")
    with pytest.raises(UserError, match="prompts.train: differ from the prompts this run began with"):
        train("tiny_flow_grpo", [*keep, prompts("a blue circle"), "train.iterations=2"], tmp_path / "run", resume=True)
    train("tiny_flow_grpo", [*keep, prompts("a red circle"), "train.iterations=2"], tmp_path / "run", resume=True)


@pytest.mark.parametrize("content", [b"", b"{", b"[1]", b"\xff\xfe", b'{"starts": 3, "prompts": 1}'])
def test_damage_beside_whole_checkpoints_costs_nothing(content: bytes, whole: Path, tmp_path: Path):
    folder = cut_back(whole, tmp_path / "run", 4)
    for name in ("summary.json", "run.json", "heldout/00000.json", "heldout/00002.json"):
        (folder / name).write_bytes(content)
    train("tiny_flow_grpo", KEEP, folder, resume=True)
    assert metrics(folder) == metrics(whole)
    ours, theirs = (state.load(state.Checkpoints(f).find("last")) for f in (folder, whole))
    assert same(ours["parameters"], theirs["parameters"]) and same(ours["learner"], theirs["learner"])


@pytest.mark.parametrize("way", ["exit", "leave", "exit_thread"])
def test_a_reward_that_ends_the_process_is_an_error_and_nothing_is_lost(way: str, tmp_path: Path):
    """In the second iteration; sys.exit and os._exit, also in the thread of a reward with a time limit."""
    folder, limit = tmp_path / "run", ", time_limit: 60" if way == "exit_thread" else ""
    use = f"rewards.shapes={{use: resume_support.leaving, args: {{way: {way}, calls: 2}}{limit}}}"
    leaving = [*KEEP, use, "checkpoint.every=null", "eval.at_start=false", "eval.every=null"]
    assert ended(begun(within, 2**30, tmp_path / "told", train, "tiny_flow_grpo", leaving, folder)) == 0
    told = (tmp_path / "told").read_text()
    assert "'shapes' asked the process to end (code 0)" in told
    assert state.Checkpoints(folder).find("last").iteration == 2 and not (folder / "lora").exists()
    (start,) = json.loads((folder / "run.json").read_text())["starts"]
    assert "asked the process to end" in start["ended"]
    assert not any(
        "no record of how" in line
        for line in resuming.find_resume_point(folder, load("tiny_flow_grpo", leaving)).complaints
    )


def test_a_run_that_left_without_a_word_is_told(whole: Path, tmp_path: Path):
    assert json.loads((whole / "run.json").read_text())["starts"][0]["ended"] == "done"
    folder = cut_back(whole, tmp_path / "run", 3)
    kept = json.loads((folder / "run.json").read_text())
    kept["starts"][-1].pop("ended")
    (folder / "run.json").write_text(json.dumps(kept))
    (line,) = resuming.find_resume_point(folder, load("tiny_flow_grpo", KEEP)).complaints
    assert "has no record of how the run ended" in line


def test_what_is_not_finite_takes_no_place(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    """keep=1: the finite checkpoint before it stays, and no weights are written."""
    folder = tmp_path / "run"
    step = Learner.step

    def diverging(self: Learner) -> torch.Tensor:
        norm = step(self)
        if self.steps >= 6:  # the third iteration of two updates
            self.parameters[0].data.fill_(torch.inf)
        return norm

    monkeypatch.setattr(Learner, "step", diverging)
    with pytest.raises(RuntimeError, match="iteration 3: parameters/.* is not finite.*00002 is from before") as error:
        train("tiny_flow_grpo", [*QUICK, "checkpoint.keep=1"], folder)
    assert type(error.value).__name__ in ENDING_ERRORS
    assert state.Checkpoints(folder).find("last").iteration == 2 and not (folder / "lora").exists()
    monkeypatch.undo()
    train("tiny_flow_grpo", [*QUICK, "checkpoint.keep=1"], folder, resume=True)
    assert state.Checkpoints(folder).find("last").iteration == 5


@pytest.mark.parametrize("how", ["cut", "foreign", "shapes", "infinite"])
def test_damaged_or_foreign_weights_are_one_line(how: str, whole: Path, tmp_path: Path):
    folder = tmp_path / "run"
    shutil.copytree(whole, folder)
    (file,) = (folder / "lora").glob("*.safetensors")
    tensors = load_file(file)
    if how == "cut":
        file.write_bytes(file.read_bytes()[:-1000])
    elif how == "foreign":
        save_file({"unet.down.lora_A.weight": torch.zeros(2, 2)}, file)
    else:
        odd = {"shapes": lambda t: t[:1].contiguous(), "infinite": lambda t: t * torch.inf}[how]
        save_file({name: odd(tensor) for name, tensor in tensors.items()}, file)
    policy = build_policy(load(str(folder / "recipe.yaml")))
    with pytest.raises(UserError) as error:
        load_weights(policy, folder)
    assert "\n" not in str(error.value) and str(folder) in str(error.value)


@pytest.mark.slow
@pytest.mark.parametrize("recipe", sorted(SHORT))
def test_twenty_kills_of_twenty(recipe: str, tmp_path: Path):
    """Twenty SIGKILLs at random moments, up to three in the life of a run."""
    short, rng, kills, whole = [*SHORT[recipe], "checkpoint.keep=9"], random.Random(20), 0, tmp_path / "whole"
    start = time.monotonic()
    assert ended(begun(train, recipe, short, whole)) == 0
    took = time.monotonic() - start
    for number in range(100):
        folder = tmp_path / f"run-{number}"
        for _ in range(rng.randint(1, 3)):
            resumed = (folder / "recipe.yaml").exists()
            code = killed(after(rng.uniform(0, took)), signal.SIGKILL, train, recipe, short, folder, resumed)
            kills += code == -signal.SIGKILL
        assert ended(begun(train, recipe, short, folder, (folder / "recipe.yaml").exists())) == 0
        assert_same_run(folder, whole)
        if kills >= 20:
            return
    pytest.fail(f"only {kills} runs were alive to be killed")
