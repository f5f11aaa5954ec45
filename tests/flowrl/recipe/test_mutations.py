"""Two hundred recipes with one mistake each: one line before any weight is loaded, and no traceback."""

import copy
import random
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import yaml

from cli_support import call
from flowrl import names
from flowrl.names import UserError
from flowrl.reading.inputs import planned_prompts
from flowrl.recipe.errors import RecipeError
from flowrl.recipe.load import build, dump, load

FREE = ("pipeline", "args", "processor")  # mappings whose keys belong to a pipeline, a reward or a processor
WRONG = {  # a value of another type than the key's
    str: [17, True, ["x"], {"x": 1}],
    bool: ["yes", 1, None, [True]],
    int: ["3", 2.5, True, [1]],
    float: ["fast", True, [0.1], {"x": 1}],
    list: ["x y", 3.5, {"x": 1}],
    dict: ["text", 4, [1]],
    type(None): ["text", [1]],
}
CONTRADICTIONS = [
    "full=true",
    "lora=null",
    "sampler.step=ode",
    "sampler.noise=0",
    "sampler={step: ddim, noise: 1.5}",
    "sampler.step=vp_ddim",
    "pipeline={eta: 1.0}",
    "sampler.window={kind: all, size: 2}",
    "sampler.window={kind: first}",
    "sampler.window={kind: first, size: 99}",
    "sampler.window={kind: random_window, size: 3, low: 4, high: 5}",
    "sampler.window={kind: progressive, size: 2}",
    "sampler.window={kind: all, skip_last: 99}",
    "train.group=1",
    "train.updates=7",
    "train.micro_batch=100000",
    "train.rollout_batch=100000",
    "train.warmup=1000000",
    "train.betas=[0.9, 1.0]",
    "train.ema=1.0",
    "objective.clip=[0.1]",
    "objective.clip=1.5",
    "objective.dual=0.5",
    "objective.preset=gpro",
    "advantage={baseline: leave_one_out, trim: 0.2}",
    "prompts.limit=1",
    "prompts.heldout=nowhere.txt",
    "prompts.balance=colour",
    "rewards={a: {use: shapes, weight: 0.0}}",
    "rewards={}",
    "rewards={a-b: {use: shapes}}",
    "rewards={a: {use: shapes, args: {strictness: 1}}}",
    "rewards={a: {use: os.nothing_there}}",
    "model=shapes-flx",
    "model=recipes",
    "pipeline={prompt: x}",
    "pipeline={hieght: 32}",
    "eval.prompts=0",
    "checkpoint.keep=0",
    "device=gpu",
    "seed=-1",
    "threads=0",
    "output=[]",
]


def places(values: dict[str, Any], path: tuple[str, ...] = ()) -> Iterator[tuple[str, ...]]:
    """The paths of all keys, those of free mappings left out."""
    for name, value in values.items():
        yield (*path, name)
        if isinstance(value, dict) and name not in FREE:
            yield from places(value, (*path, name))


def written(name: str) -> dict[str, Any]:
    """Every value of a shipped recipe that is not null, and null where it has to be said (the least of a gate)."""

    def full(value: Any) -> Any:
        if not isinstance(value, dict):
            return value
        return {k: full(v) for k, v in value.items() if v is not None or (k == "least" and "otherwise" in value)}

    return full(yaml.safe_load(dump(load(name))))


def parent(values: dict[str, Any], path: tuple[str, ...]) -> dict[str, Any]:
    for name in path[:-1]:
        values = values[name]
    return values


def may_be_missing(path: tuple[str, ...]) -> bool:
    """Whether the schema has a default for the key; a reward of several may always go."""
    if path == ("reference", "use"):
        return True
    return not (path in {("model",), ("prompts",), ("prompts", "train"), ("rewards",)} or path[-1] == "use")


def mutated(kind: str, rng: random.Random) -> tuple[dict[str, Any], tuple[str, ...]]:
    """A shipped recipe with one key renamed, retyped or removed, and which."""
    name = rng.choice(sorted(names.recipes()))
    values = written(name)
    found = list(places(values))
    if kind == "removed":  # half of the time one that cannot be missed
        needed = [p for p in found if not may_be_missing(p)]
        found = rng.choice([needed, found])
    path = rng.choice(found)
    inside, key = parent(values, path), path[-1]
    if kind == "renamed":
        letters = list(str(key))  # the points of a curve are numbers
        at = rng.randrange(len(letters))
        letters[at] = "q" if letters[at] != "q" else "z"
        inside["".join(letters)] = inside.pop(key)
    elif kind == "retyped":
        inside[key] = rng.choice(WRONG[type(inside[key])])
    else:
        del inside[key]
    return values, path


class Started(BaseException):  # no fault that the command line would tell of
    """Training would have begun."""


def outcome(values: Any, tmp_path: Path, capsys: pytest.CaptureFixture, monkeypatch: pytest.MonkeyPatch, *more: str):
    """(exit code, or None where training would have begun; standard error) of `flowrl run`."""
    file = tmp_path / "mutated.yaml"
    file.write_text(yaml.safe_dump(values, sort_keys=False))

    def start(*_: Any) -> None:
        raise Started

    monkeypatch.setattr("flowrl.runs.start.build_policy", start)
    try:
        code, _, error = call(capsys, monkeypatch, "run", file, f"output={tmp_path / 'run'}", *more)
    except Started:
        return None, capsys.readouterr().err
    return code, error


def refused(code: int | None, error: str) -> bool:
    return code == 2 and len(error.strip().splitlines()) == 1 and "Traceback" not in error


@pytest.mark.parametrize("seed", range(60))
@pytest.mark.parametrize("kind", ["renamed", "retyped", "removed"])
def test_a_mutated_recipe(kind: str, seed: int, tmp_path: Path, capsys, monkeypatch):
    values, path = mutated(kind, random.Random(f"{kind} {seed}"))
    values.pop("output", None)
    code, error = outcome(values, tmp_path, capsys, monkeypatch)
    dotted = ".".join(map(str, path))
    if "not here, and not shipped" in error:  # published prompts: all else was found to be right before
        code = None
    elif refused(code, error):
        # a reward may have any name, and its fellow keys may be what the mistake makes wrong
        assert path[0] in error or str(path[-1]) in error, f"{dotted}: {error}"
        assert kind != "removed" or "missing" in error or "accepted" in error
        return
    assert code is None, f"{dotted}: {error}"
    harmless = (kind == "removed" and may_be_missing(path)) or (kind == "renamed" and path[0] == "rewards")
    harmless |= kind == "retyped" and path[-1] == "cache"  # takes the path of a file too
    assert harmless or path in {("output",)}, f"training began with {kind} {dotted}"


@pytest.mark.parametrize("override", CONTRADICTIONS)
def test_a_contradiction(override: str, tmp_path: Path, capsys, monkeypatch):
    values = written("tiny_flow_grpo")
    code, error = outcome(values, tmp_path, capsys, monkeypatch, override)
    assert refused(code, error), f"{override}: {code} {error}"


def test_the_recipe_without_a_mistake_begins(tmp_path: Path, capsys, monkeypatch):
    code, error = outcome(written("tiny_flow_grpo"), tmp_path, capsys, monkeypatch)
    assert code is None, error


def test_every_key_has_a_wrong_type_to_try():
    for name in names.recipes():
        values = written(name)
        assert {type(parent(values, p)[p[-1]]) for p in places(values)} <= set(WRONG)


NONSENSE = [float("nan"), float("inf"), "32", [1], {"x": 1}, True, -7, 10**12]


def numbers_of_calls() -> Iterator[tuple[str, str]]:
    """(recipe, argument of its pipeline) of every number in the `pipeline` of a shipped recipe."""
    for name in sorted(names.recipes()):
        for key, value in written(name).get("pipeline", {}).items():
            if isinstance(value, int | float) and not isinstance(value, bool):
                yield name, key


@pytest.mark.parametrize(("name", "key"), list(numbers_of_calls()))
def test_nonsense_in_the_arguments_of_a_pipeline(name: str, key: str):
    for value in NONSENSE:
        if value == 10**12 and "scale" in key:
            continue  # a number, if no sensible one
        values = written(name)
        values["pipeline"][key] = value
        with pytest.raises(RecipeError) as caught:
            build(values)
        assert caught.value.place == f"pipeline.{key}" and "\n" not in str(caught.value), value


REPRESENTATIVE = ("tiny_flow_grpo", "mixgrpo_flux", "branchgrpo_flux", "tiny_lm_grpo", "flow_grpo_wan_i2v")
DEEP: list = []
for _ in range(100):
    DEEP = [DEEP]
LEAVES = [None, [], {}, "", "x" * 300, True, -1, 0, float("nan"), float("inf"), 1e308, 10**30, DEEP]
NEVER = [float("nan"), float("inf"), 1e308, 10**30, "x" * 300, DEEP]  # no key is known to make sense of these
FREE_TEXTS = ("source", "project", "name", "balance", "system")


def every_place(values: dict[str, Any], path: tuple[str, ...] = ()) -> Iterator[tuple[str, ...]]:
    """The paths of all keys, those of free mappings too."""
    for name, value in values.items():
        yield (*path, name)
        if isinstance(value, dict):
            yield from every_place(value, (*path, name))


@pytest.mark.parametrize("name", REPRESENTATIVE)
def test_nonsense_at_every_place_is_refused_in_a_line_or_makes_sense(name: str):
    base = written(name)
    found = [(path, value) for path in every_place(base) for value in LEAVES]
    small = random.Random(name).sample(found, len(found) // 10)
    names_of_files = [(("model",), "x" * 300), (("prompts", "train"), "x" * 300), (("output",), "x" * 300)]
    sizes = [(("sampler", "steps"), 10**30)] if "sampler" in base else []
    for path, value in [*small, *names_of_files, *sizes]:
        values = copy.deepcopy(base)
        parent(values, path)[path[-1]] = value
        try:
            planned_prompts(build(values))
        except UserError as error:
            assert "\n" not in str(error) and len(str(error)) < 1000, path
        else:
            # a reward's own argument may be the name of a model on a hub, which loading alone can tell
            text = isinstance(value, str) and (path[-1] in FREE_TEXTS or "args" in path)
            assert text or not any(value is wrong for wrong in NEVER), (path, str(value)[:40])


@pytest.mark.parametrize(
    ("command", "place"),
    [
        (["run", "{}"], None),
        (["run", "tiny_flow_grpo", "output={}"], "output"),
        (["run", "tiny_flow_grpo", "model={}"], "model"),
        (["run", "tiny_flow_grpo", "prompts.train={}"], "prompts.train"),
        (["run", "tiny_flow_grpo", "prompts.heldout=~nobody_of_that_name/x.txt"], "prompts.heldout"),
        (["run", "tiny_flow_grpo", "rewards.shapes.cache={}"], "rewards.shapes.cache"),
        (["run", "tiny_flow_grpo", "rewards.shapes.cache=''"], "rewards.shapes.cache"),
        (["run", "--resume", "{}"], None),
        (["report", "{}"], None),
        (["compare", "{}"], None),
        (["eval", "{}"], None),
        (["export", "{}"], None),
    ],
)
def test_names_that_no_file_can_have(command: list[str], place: str | None, capsys, monkeypatch):
    code, _, error = call(capsys, monkeypatch, *[part.format("x" * 300) for part in command])
    assert refused(code, error) and (place is None or error.startswith(f"flowrl: {place}: ")), error
