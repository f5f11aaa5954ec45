"""What a recipe may call, and what nobody's run folder makes a command import without being told to."""

import shutil
import sys
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

import cli_support
from cli_support import quiet
from flowrl import names
from flowrl.parts import part, refusal
from flowrl.recipe.errors import RecipeError
from flowrl.recipe.load import load, load_unchecked
from flowrl.recipe.trust import foreign
from flowrl.runs.start import run

TINY = ["train.prompts=2", "train.group=2", "train.updates=1", "train.iterations=1", "eval.every=null"]
TINY += ["eval.prompts=2", "eval.grid=0", "eval.steps=2", "sampler.steps=2", "sampler.window.size=1"]
TINY += ["rewards={shapes: {use: shapes}}"]

MINE = """
import functools
from pathlib import Path
import torch
from torch import nn
from flowrl.contracts import Samples
from flowrl.parts import part
from samplers.gaussian import Gaussian

Path("imported").touch()

def plain(samples, strength=1.0): ...
def annotated(shown: Samples, strength=1.0): ...
def quoted(shown: "Samples"): ...
class Judge:
    def __init__(self, path): ...
    def __call__(self, samples): ...
class Network(nn.Module):
    def __init__(self): ...
    def forward(self, samples): ...
half = functools.partial(plain, strength=0.5)
@functools.wraps(plain)
def wrapped(*args, **kwargs): ...
@part("reward")
def declared(*args, **kwargs): ...
@part("reward")
class Declared:
    def __call__(self, *args): ...
def step(x, v, s, s_next, *, noise, s_cap): ...
def annotated_step(latents, velocity, level, after, *, noise, s_cap) -> Gaussian: ...
def stranger(*args, **kwargs): ...
class Stranger:
    def __call__(self, x): ...
def score(samples): return samples.images.mean((1, 2, 3))
"""


@pytest.fixture
def mine(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    """A folder with a module of a user's own, which says when it is imported; it is the current one."""
    (tmp_path / "mine_here.py").write_text(MINE)
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "path", [*sys.path])
    yield tmp_path
    sys.modules.pop("mine_here", None)


Call = Callable[..., tuple[int, str]]


@pytest.fixture
def call(capsys: pytest.CaptureFixture, monkeypatch: pytest.MonkeyPatch) -> Call:
    """Exit code and all that the command printed."""

    def called(*arguments: str) -> tuple[int, str]:
        code, out, err = cli_support.call(capsys, monkeypatch, *arguments)
        return code, out + err

    return called


@pytest.mark.parametrize("name", ["plain", "annotated", "quoted", "Network", "half", "wrapped", "declared", "Declared"])
def test_a_reward_of_ordinary_form_is_taken(name: str, mine: Path):
    assert (
        load("tiny_flow_grpo", [f"rewards.shapes={{use: mine_here.{name}}}"]).rewards["shapes"].use
        == f"mine_here.{name}"
    )


def test_a_class_with_arguments_and_steps_are_taken(mine: Path):
    load("tiny_flow_grpo", ["rewards.shapes={use: mine_here.Judge, args: {path: x}}", "sampler.step=mine_here.step"])
    load("tiny_flow_grpo", ["sampler.step=mine_here.annotated_step"])


@pytest.mark.parametrize(
    ("key", "use"),
    [
        *[("rewards.shapes.use", u) for u in ("subprocess.Popen", "subprocess.run", "os.system", "shutil.rmtree")],
        *[("rewards.shapes.use", u) for u in ("builtins.exec", "torch.load", "mine_here.stranger")],
        ("rewards.shapes.use", "mine_here.Stranger"),
        ("rewards.shapes.use", "mine_here.step"),
        ("sampler.step", "mine_here.plain"),
        ("sampler.step", "subprocess.Popen"),
    ],
)
def test_what_declares_itself_no_part_is_refused_before_it_is_called(key: str, use: str, mine: Path, call: Call):
    args = {"rewards.shapes.use": ["rewards.shapes.args={args: [touch, ran], shell: false}"]}.get(key, [])
    code, text = call("run", "tiny_flow_grpo", "--dry-run", f"{key}={use}", *args)
    kind = "step" if key == "sampler.step" else "reward"
    assert (
        code == 2 and f"{use!r} is not a valid {kind}; accepted: " in text and f'@flowrl.parts.part("{kind}")' in text
    )
    assert not (mine / "ran").exists()


def test_a_tracker_is_a_subclass_of_accelerates(mine: Path):
    with pytest.raises(RecipeError, match="GeneralTracker"):
        load("tiny_flow_grpo", ["track.with=[subprocess.Popen]"])
    assert refusal(3, "reward") is not None and refusal(print, "tracker") is not None


def test_only_parts_that_there_are_can_be_declared():
    with pytest.raises(ValueError, match="reward, step"):
        part("judge")


def test_a_module_that_exits_when_it_is_imported_is_one_line(mine: Path):
    (mine / "leaves.py").write_text("import sys\nsys.exit(0)\n")
    with pytest.raises(RecipeError, match="SystemExit: 0"):
        load("tiny_flow_grpo", ["rewards.shapes.use=leaves.score"])


@pytest.fixture(scope="module")
def finished(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("run") / "run"
    run(load("tiny_flow_grpo", [*TINY, f"output={folder}"]), quiet())
    return folder


def theirs(finished: Path, to: Path, **changes: str) -> Path:
    """The run as somebody else would hand it over, with other texts in its recipe."""
    shutil.copytree(finished, to)
    text = (to / "recipe.yaml").read_text()
    for old, new in changes.items():
        assert f"{old}: " in text
        line = next(line for line in text.splitlines() if line.strip().startswith(f"{old}: "))
        text = text.replace(line, line.partition(":")[0] + f": {new}")
    (to / "recipe.yaml").write_text(text)
    return to


@pytest.mark.parametrize("command", [["eval"], ["sample", "a red circle"], ["export"], ["compare"]])
@pytest.mark.parametrize("changes", [{"use": "mine_here.score"}, {"step": "mine_here:step"}])
def test_nothing_of_somebody_elses_run_is_imported(
    command: list[str], changes: dict[str, str], finished: Path, mine: Path, call: Call
):
    folder = theirs(finished, mine / "run", **changes)
    code, text = call(command[0], str(folder), *command[1:])
    (name,) = changes.values()
    assert code == 2 and name in text and "--trust" in text and text.count("\n") == 1, text
    assert not (mine / "imported").exists() and "mine_here" not in sys.modules


def test_who_trusts_a_run_or_gives_rewards_of_their_own_may_read_it(finished: Path, mine: Path, call: Call):
    folder = theirs(finished, mine / "run", use="mine_here.score")
    assert call("eval", str(folder), "--trust")[0] == 0 and (mine / "imported").exists()
    own = theirs(finished, mine / "other", use="nowhere_at_all.score")
    code, text = call("eval", str(own), "--reward", "mine_here.score")
    assert code == 0 and "score" in text, text
    assert call("eval", str(finished))[0] == 0  # short names need no trust
    assert call("compare", str(own), "--no-drift", "--output", str(mine / "compared"))[0] == 0
    assert call("report", str(own))[0] == 0


def test_a_recipe_cannot_have_a_secret_sent_somewhere(finished: Path, mine: Path, call: Call):
    folder = theirs(
        finished, mine / "run", args="{base_url: 'http://127.0.0.1:9', api_key_env: HOME}", use="server_judge"
    )
    code, text = call("eval", str(folder))
    assert code == 2 and "'HOME'" in text and "--trust" in text


def test_a_run_is_gone_on_with_though_its_old_reward_is_nowhere(finished: Path, mine: Path):
    """What the folder's recipe names is compared, not imported."""
    from flowrl.runs import resume

    folder = theirs(finished, mine / "run", use="nowhere_at_all.score")
    changed = resume.find_resume_point(folder, load("tiny_flow_grpo", TINY)).changed
    assert changed == {"rewards.shapes.use": ["nowhere_at_all.score", "shapes"]}


@pytest.mark.parametrize(
    ("environment", "said"),
    [
        (
            "{tools: [calculator, {use: python, args: {sandbox: docker, command: ./mine}}]}",
            "starts the program './mine'",
        ),
        ("{tools: [{use: python, args: {sandbox: e2b, key_env: HOME}}]}", "sends the variable 'HOME'"),
        ("{tools: [{use: python, args: {sandbox: e2b, api: 'http://127.0.0.1:9'}}]}", "sends the key of E2B"),
        ("{tools: [{use: screen, args: {kind: browser, program: ./mine}}]}", "starts the program './mine'"),
        ("{use: gymnasium, args: {id: 'mine_here:Game-v0'}}", "names 'mine_here:Game-v0'"),
        ("{agent: verifiers, args: {taskset: mine_here}}", "runs the taskset 'mine_here'"),
        ("{tools: [calculator, {use: zoom, args: {unit: relative}}]}", None),
        ("{use: gymnasium, args: {id: FrozenLake-v1}}", None),
    ],
)
def test_tools_of_somebody_elses_run_start_and_send_nothing(environment: str, said: str | None):
    found = list(foreign(load_unchecked(names.recipes()["tiny_lm_grpo"], [f"environment={environment}"])))
    assert [place.partition(".")[0] for place, _ in found] == (["environment"] if said else [])
    assert said is None or said in found[0][1]
