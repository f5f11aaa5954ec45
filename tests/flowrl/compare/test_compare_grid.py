"""Which runs a grid has, what they are called, and what is refused before any of them begins."""

from pathlib import Path

import pytest

from cli_support import call
from compare_support import planted
from flowrl.compare import collect, execute, grid
from flowrl.compare.forwards import measured_forwards, planned_forwards
from flowrl.compare.grid import Budget, Variant
from flowrl.names import UserError
from flowrl.recipe.load import load


def test_every_combination_of_the_values_is_a_variant():
    found = grid.make_variants(["sampler.window.size=2, 3", "train.betas=[0.9, 0.99],[0.8, 0.9]"])
    assert [v.name for v in found][:2] == ["size=2 betas=[0.9, 0.99]", "size=2 betas=[0.8, 0.9]"]
    assert len(found) == 4 and found[3].overrides == ("sampler.window.size=3", "train.betas=[0.8, 0.9]")
    assert grid.make_variants([]) == [Variant("base")]
    assert [v.name for v in grid.make_variants(["eval.every=1,2", "checkpoint.every=3"])] == [
        "eval.every=1 checkpoint.every=3",
        "eval.every=2 checkpoint.every=3",
    ]


def test_named_variants_come_of_a_file(tmp_path: Path):
    file = tmp_path / "variants.yaml"
    file.write_text(
        "plain:\nwide: {sampler.window: {kind: first, size: 4}, train.lr: 1e-3}\nloud: [sampler.noise=0.9]\n"
    )
    found = grid.make_variants(["train.group=4,6"], file)
    assert [v.name for v in found][::2] == ["plain group=4", "wide group=4", "loud group=4"]
    cells = grid.make_cells("tiny_flow_grpo", [], found, seeds=1, output=tmp_path / "out")
    wide = cells[3].recipe
    assert (wide.sampler.window.size, wide.train.lr, wide.train.group) == (4, 1e-3, 6)
    assert cells[4].recipe.sampler.noise == 0.9


@pytest.mark.parametrize(
    ("vary", "told"),
    [
        (["sampler.noise"], "KEY=VALUE,VALUE"),
        (["sampler.noise="], "KEY=VALUE,VALUE"),
        (["sampler.noise=1,,2"], "KEY=VALUE,VALUE"),
        (["sampler.noise=[1,2"], "KEY=VALUE,VALUE"),
        (["sampler.noise=1,1"], "has the value 1 twice"),
        (["a=1", "a=2"], "a is given twice"),
        (["a=x/y,x:y"], "the same name or folder"),
    ],
)
def test_what_is_not_varied_as_it_must_be_is_refused(vary: list[str], told: str):
    with pytest.raises(UserError, match=told) as error:
        grid.make_variants(vary)
    assert "\n" not in str(error.value)


@pytest.mark.parametrize(
    ("text", "told"), [("a: 3\n", "a: got 3"), ("a: [1]\n", "a: got"), ("- a\n", "accepted: a mapping")]
)
def test_a_file_of_something_else_is_refused(text: str, told: str, tmp_path: Path):
    (tmp_path / "v.yaml").write_text(text)
    with pytest.raises(UserError, match=told):
        grid.make_variants([], tmp_path / "v.yaml")


def test_every_run_has_its_seed_its_folder_and_the_time_it_may_take(tmp_path: Path):
    chosen = grid.make_variants(["sampler.window.size=2,3"])
    budget = grid.parse_budget("3m", evaluations=4)
    cells = grid.make_cells("tiny_flow_grpo", ["seed=5"], chosen, seeds=2, output=tmp_path, budget=budget, threads=1)
    assert [(c.variant, c.seed) for c in cells] == [("size=2", 5), ("size=3", 5), ("size=2", 6), ("size=3", 6)]
    assert cells[2].folder == tmp_path / "size=2" / "seed-6" == Path(cells[2].recipe.output or "")
    train, evaluation = cells[0].recipe.train, cells[0].recipe.eval
    assert (train.seconds, train.iterations) == (180, grid.UNLIMITED)
    assert (evaluation.every, evaluation.every_seconds) == (None, 60)  # at 0, 60, 120 and 180
    assert cells[0].recipe.threads == 1
    grid.write_recipe(cells[0])
    assert load(str(cells[0].file)) == cells[0].recipe
    limited = grid.make_cells("tiny_flow_grpo", ["train.iterations=7"], chosen, seeds=1, output=tmp_path, budget=budget)
    assert limited[0].recipe.train.iterations == 7


@pytest.mark.parametrize(("text", "seconds"), [("90s", 90), ("3m", 180), ("1.5h", 5400), ("45", 45), (" 2 min", 120)])
def test_budgets(text: str, seconds: float):
    assert grid.parse_budget(text) == Budget(seconds)


@pytest.mark.parametrize(
    ("text", "forwards"), [("66k", 66_000), ("1.5M", 1_500_000), ("900 forwards", 900), ("66k forwards", 66_000)]
)
def test_budgets_of_forwards(text: str, forwards: float):
    assert grid.parse_budget(text, 3) == Budget(forwards=forwards, evaluations=3)


def test_a_budget_of_forwards_is_so_many_iterations_of_each_variant(tmp_path: Path):
    """By hand: 976 in the rollout and 400 with gradient; the ODE's 768, 192 under older weights, 192 with gradient."""
    budget = grid.parse_budget("10k", evaluations=3)
    given = {"steps": [], "nft": ['objective={"preset": "nft"}', "sampler={steps: 4, levels: {kind: walk, number: 2}}"]}
    given["nft"] += ["train.old=0.0", "train.keep=6", "advantage.scale=group"]
    chosen = [Variant(name, tuple(values)) for name, values in given.items()]
    cells = grid.make_cells("tiny_flow_grpo", [], chosen, seeds=1, output=tmp_path, budget=budget)
    each = {"steps": 976 + 3 * 400, "nft": 768 + 192 + 3 * 192}
    for cell in cells:
        number = 10_000 // each[cell.variant]
        assert planned_forwards(cell.recipe, 2) == each[cell.variant]
        assert (cell.recipe.train.iterations, cell.recipe.train.seconds) == (number, None)
        assert (cell.recipe.eval.every, cell.recipe.eval.every_seconds) == (number // 2, None)
    few = grid.parse_budget("2k")
    with pytest.raises(UserError, match=r"^variant 'base': --budget: got 2,000 forwards, .* takes 2,176; give more"):
        grid.make_cells("tiny_flow_grpo", [], [Variant("base")], seeds=1, output=tmp_path, budget=few)
    with pytest.raises(UserError, match=r"sets train\.iterations"):
        grid.make_cells("tiny_flow_grpo", ["train.iterations=3"], chosen, seeds=1, output=tmp_path, budget=budget)


def test_forwards_that_ran_count_as_in_the_plan_and_without_one_where_it_would_import_somebodys_parts():
    recipe = load("quickstart", [])  # of what it looks at, one half has a gradient
    assert measured_forwards(recipe, 3, 576, 168) == 576 + 84 + 3 * 84
    own = recipe.model_copy(update={"sampler": recipe.sampler.model_copy(update={"step": "nobodys_part.step"})})
    assert measured_forwards(own, 3, 576, 168) == 576 + 3 * 168


@pytest.mark.parametrize("text", ["", "0", "3 days", "-3m", "m", "k", "3m forwards", "66kk"])
def test_no_budget(text: str):
    with pytest.raises(UserError, match="accepted: a time > 0"):
        grid.parse_budget(text)


def test_a_recipe_that_cannot_run_is_named_with_its_variant(tmp_path: Path):
    with pytest.raises(UserError, match=r"^variant 'size=9': sampler.window.size: got 9"):
        grid.make_cells("tiny_flow_grpo", [], grid.make_variants(["sampler.window.size=2,9"]), seeds=1, output=tmp_path)


def test_a_folder_with_another_run_is_not_gone_on_with(tmp_path: Path):
    planted(tmp_path / "base" / "seed-0", 0, {0: 0.5, 80: 0.6})
    same = ["train.iterations=80", "threads=1", "checkpoint.every=3"]  # nothing that makes another run
    (cell,) = grid.make_cells("tiny_flow_grpo", same, [Variant("base")], seeds=1, output=tmp_path)
    assert execute.is_done(cell)
    with pytest.raises(UserError, match="seed-0: holds a run with train.lr 0.0015, but the grid needs 0.1"):
        grid.make_cells("tiny_flow_grpo", ["train.lr=0.1"], [Variant("base")], seeds=1, output=tmp_path)


def test_folders_of_runs_are_grouped_by_their_recipes(tmp_path: Path):
    for name, seed, size in (("x", 0, 2), ("y", 1, 2), ("z", 0, 3)):
        planted(tmp_path / name, seed, {0: 0.5, 2: 0.6}, changes=[f"sampler.window.size={size}"])
    found = collect.folder_outcomes([tmp_path / "x", tmp_path / "y", tmp_path / "z"])
    assert [(o.variant, o.seed) for o in found] == [("size=2", 0), ("size=2", 1), ("size=3", 0)]
    assert [o.folder for o in collect.folder_outcomes([tmp_path])] == [o.folder for o in found]
    with pytest.raises(UserError, match="no recipe.yaml in or below it"):
        collect.folder_outcomes([tmp_path / "x" / "heldout"])
    planted(tmp_path / "again", 0, {0: 0.5, 2: 0.6}, changes=["sampler.window.size=3"])
    with pytest.raises(UserError, match="has the same recipe and seed"):
        collect.folder_outcomes([tmp_path])


def test_folders_that_a_grid_made_keep_their_names(tmp_path: Path):
    for name, lr in (("fast_one", 0.1), ("slow", 0.01)):
        for seed in (0, 1):
            planted(tmp_path / name / f"seed-{seed}", seed, {0: 0.5, 2: 0.6}, changes=[f"train.lr={lr}"])
    assert [o.variant for o in collect.folder_outcomes([tmp_path])] == ["fast one"] * 2 + ["slow"] * 2


def test_the_plan_of_a_grid_says_what_each_variant_costs(tmp_path: Path, capsys: pytest.CaptureFixture, monkeypatch):
    given = [
        "compare",
        "tiny_flow_grpo",
        "--vary",
        "sampler.window.size=1,3",
        "--seeds",
        "2",
        "--budget",
        "3m",
        "--dry-run",
    ]
    code, out, _ = call(capsys, monkeypatch, *given, "--output", tmp_path)
    assert code == 0 and not list(tmp_path.iterdir())
    rows = {line.split()[0]: line.split()[1:] for line in out.splitlines() if line.startswith(" size=")}
    assert rows["size=1"] == ["2", "0", "180", "s", "976", "16", "3.0", "min"]  # 16 + 5 * 192; a row a group trains
    assert rows["size=3"] == ["2", "0", "180", "s", "976", "400", "3.0", "min"]
    assert "4 runs are left: about 12 min" in out


@pytest.mark.parametrize(
    ("given", "told"),
    [
        (["tiny_flow_grpo", "stray"], "got 'stray' after tiny_flow_grpo"),
        (["tiny_flow_grpo", "--time-from", "x"], "--time-from: applies only with --dry-run"),
        (["tiny_flow_grpo", "--variants", "none.yaml"], "none.yaml is not a file"),
        ([".", "train.lr=1"], "give only run folders"),
        ([".", "--vary", "train.lr=1"], "give only run folders"),
    ],
)
def test_commands_that_make_no_sense_are_one_line(
    given: list[str], told: str, capsys: pytest.CaptureFixture, monkeypatch
):
    code, _, err = call(capsys, monkeypatch, "compare", *given)
    assert code == 2 and told in err and err.count("\n") == 1
