"""`flowrl scan`: its values, its statistics and its advice in closed form, and real scans of tiny budgets."""

import csv
import json
import math
import re
from pathlib import Path

import pytest
import torch

from cli_support import call
from flowrl.core.evaluation import Mean
from flowrl.recipe.errors import RecipeError
from flowrl.recipe.load import load
from flowrl.scan.advice import advise
from flowrl.scan.draw import refuse_equal
from flowrl.scan.measures import (
    ValueMeasures,
    group_spreads,
    is_significant,
    mean_difference,
    paired_difference,
    prompt_means,
    standard_deviation,
)
from flowrl.scan.values import ScannedValue, expand_range, scanned_values

TINY = ["train.prompts=2", "train.updates=1"]
NAN = float("nan")

# ------------------------------------------------------------------ values


@pytest.mark.parametrize(
    ("given", "values"),
    [
        (("0.1", "1.2", "6"), ["0.1", "0.32", "0.54", "0.76", "0.98", "1.2"]),
        (("2", "6", "3"), ["2", "4", "6"]),
        (("1", "2", "3"), ["1", "1.5", "2"]),
        (("1.0", "3", "3"), ["1", "2", "3"]),
        (("1e-3", "2e-3", "2"), ["0.001", "0.002"]),
    ],
)
def test_a_range_holds_both_ends_evenly(given, values):
    assert expand_range(*given) == values


def test_every_value_becomes_a_checked_recipe():
    key, found = scanned_values("tiny_flow_grpo", ["train.lr=1e-5", "sampler.window.size=1:3:3"], ["seed=7"])
    assert key == "sampler.window.size"
    assert [(c.label, c.recipe.sampler.window.size) for c in found] == [("1", 1), ("2", 2), ("3", 3)]
    assert {(c.recipe.train.lr, c.recipe.seed) for c in found} == {(1e-5, 7)}


def test_a_list_is_split_at_its_own_commas_only():
    key, found = scanned_values(
        "tiny_flow_grpo", ["sampler.window={kind: first, size: 2},{kind: random, size: 2, high: 4}"]
    )
    assert key == "sampler.window" and [c.recipe.sampler.window.kind for c in found] == ["first", "random"]
    key, found = scanned_values("tiny_flow_grpo", ["sampler.step=flow_sde,cps", 'output="a,b"'])
    assert [c.recipe.sampler.step for c in found] == ["flow_sde", "cps"]


@pytest.mark.parametrize(
    ("values", "parts"),
    [
        (["train.lr=1e-4,1e-3"], ["train.lr", "does not affect", "sampler.*"]),
        (["sampler.noise=0.7"], ["no key", "sampler.noise=0.1:1.2:6"]),
        (["sampler.noise=0.1,0.2", "sampler.steps=4,5"], ["2 keys", "sampler.noise, sampler.steps"]),
        (["sampler.noise=0.1,0.5,0.1"], ["sampler.noise", "0.1 twice"]),
        (["sampler.noise=0.1:1:1"], ["got 1 values", "2 to 50"]),
        (["sampler.noise=0,0.5"], ["sampler.noise", "got 0"]),
        (["sampler.noize=0.1,0.5"], ["sampler.noize", "did you mean 'noise'"]),
        (["sampler.window.size=2,9"], ["sampler.window.size", "9"]),
        (["sampler.window.size=1:2:3"], ["sampler.window.size", "1.5", "whole number"]),
        (["sampler.step=flow_sde,ode"], ["sampler.step", "ode"]),
        (["sampler.reduce=mean,sum"], ["sampler.reduce", "same samples"]),
        (["sampler.noise=0.1,0.5", "--model-run", "nowhere"], ["--model-run", "nowhere"]),
        (["sampler.noise=0.1,0.5", "--weights", "best"], ["--weights best", "--model-run"]),
    ],
)
def test_what_cannot_be_scanned_is_one_line_before_weights_load(values, parts, capsys, monkeypatch, tmp_path):
    monkeypatch.setattr("diffusers.DiffusionPipeline.from_pretrained", lambda *_, **__: pytest.fail("weights loaded"))
    code, _, err = call(capsys, monkeypatch, "scan", "tiny_flow_grpo", *values, "--output", tmp_path / "out")
    assert code == 2 and len(err.strip().splitlines()) == 1
    for part in parts:
        assert part in err


def test_values_that_draw_the_same_samples_are_refused():
    window = "sampler.window={kind: progressive, size: 2, interval: %d}"
    recipes = [ScannedValue(str(i), load("tiny_flow_grpo", [window % i])) for i in (10, 25)]
    with pytest.raises(RecipeError, match="10 and 25 draw the same samples in iteration 5"):
        refuse_equal("sampler.window.interval", recipes, 5)
    refuse_equal("sampler.window.interval", recipes, 10)  # the first has moved on


# ------------------------------------------------------------------ statistics


def test_spread_is_the_unbiased_deviation_of_each_group():
    std, silent = group_spreads(torch.tensor([[0.0, 1.0, NAN], [2.0, 2.0, 2.0], [5.0, NAN, NAN], [1.0, 2.0, 3.0]]))
    assert std.tolist() == pytest.approx([0.5**0.5, 0.0, NAN, 1.0], nan_ok=True)
    assert silent.tolist() == [False, True, True, False]


def test_quality_is_paired_sample_by_sample():
    rewards = torch.tensor([[1.0, 0.0], [0.5, NAN], [NAN, NAN]])
    ode = torch.tensor([[1.0, 1.0], [1.0, 0.0], [1.0, 1.0]])
    assert paired_difference(rewards, ode).tolist() == pytest.approx([-0.5, -0.5, NAN], nan_ok=True)
    assert prompt_means(rewards).tolist() == pytest.approx([0.5, 0.5, NAN], nan_ok=True)
    assert standard_deviation(torch.tensor([1.0, 3.0, NAN])) == pytest.approx(2**0.5)
    assert standard_deviation(torch.tensor([1.0, NAN])) == 0.0


def test_a_difference_counts_beyond_two_of_its_errors():
    first, second = torch.tensor([1.0, 2.0, 3.0]), torch.tensor([0.0, 1.0, 2.0])
    assert mean_difference(first, second) == Mean(1.0, 0.0, 3)  # however far prompts lie apart
    assert (
        is_significant(Mean(1.0, 0.49, 3))
        and is_significant(Mean(-1.0, 0.49, 3))
        and not is_significant(Mean(1.0, 0.5, 3))
    )
    assert (
        not is_significant(Mean(1.0, 0.0, 1))
        and not is_significant(Mean(0.0, 0.0, 9))
        and not is_significant(Mean(NAN, NAN, 0))
    )


# ------------------------------------------------------------------ advice


def row(label: str, spread: float, quality: float, *, deviation: float = 1.0) -> ValueMeasures:
    """A value with this spread and quality for each of four prompts."""
    nothing = Mean(0.0, 0.0, 4)
    return ValueMeasures(
        label, torch.full((4,), float(spread)), torch.full((4,), float(quality)), 0.0, nothing, nothing, deviation
    )


def noisy(label: str, spread: list[float], quality: list[float]) -> ValueMeasures:
    nothing = Mean(0.0, 0.0, len(spread))
    return ValueMeasures(label, torch.tensor(spread), torch.tensor(quality), 0.0, nothing, nothing, 1.0)


def test_the_largest_spread_within_the_tolerance_is_recommended():
    found = advise([row("0.1", 0.1, 0.0), row("0.5", 0.3, -0.1), row("0.9", 0.5, -0.3)], 0.2)
    assert (found.label, found.open, found.limit) == ("0.5", (), 0.2)
    assert "0.300" in found.text and "2 values" in found.text and "0.100" in found.text
    assert found.verdicts == {"0.1": "within the tolerance", "0.5": "recommended", "0.9": "loses too much"}
    assert advise([row("0.1", 0.1, 0.0), row("0.5", 0.3, -0.1), row("0.9", 0.5, -0.3)], 0.4).label == "0.9"


def test_the_tolerance_is_in_standard_deviations_of_the_reference():
    rows = [row("0.1", 1, 0.0, deviation=10), row("0.5", 3, -1.0, deviation=10), row("0.9", 5, -3.0, deviation=10)]
    found = advise(rows, 0.2)  # everything ten times as large
    assert (found.label, found.limit) == ("0.5", 2.0)
    assert advise([row("a", 1, 0), row("b", 2, -1.0)], 0.2, "greedy decoding").text.count("greedy decoding's") == 1


def test_of_equal_spreads_the_one_that_is_shown_to_lose_less_is_recommended():
    rows = [noisy("a", [1.0, 2.0, 1.0, 2.0], [0.0, 0.0, 0.0, 0.0]), noisy("b", [2.0, 1.5, 1.0, 2.0], [-0.1] * 4)]
    found = advise(rows, 0.2)
    assert found.label == "a" and "does not differ significantly from the largest (1.625 ± 0.239 at b)" in found.text


def test_those_that_drop_out_are_named():
    rows = [row("a", 1, 0.1), noisy("b", [0.5, 1.2, 0.9, 1.0], [-0.1] * 4), row("c", 0.1, 0.0)]
    found = advise(rows, 0.2)
    assert (
        found.label == "a"
        and "a gain of 0.100" in found.text
        and " b: no significant difference in spread" in found.text
    )


def test_values_that_the_data_do_not_tell_apart_are_named_and_none_is_recommended():
    rows = [
        noisy("a", [1.0, 2.0, 1.0, 2.0], [0.0, -0.1, 0.0, -0.1]),
        noisy("b", [2.0, 1.5, 1.0, 2.0], [-0.1, 0.0, 0.0, -0.1]),
        noisy("c", [0.1, 0.2, 0.1, 0.2], [0.0, 0.0, 0.0, 0.0]),
    ]
    found = advise(rows, 0.2)
    assert found.label is None and found.open == ("a", "b")
    # spread differs by 0.125 ± 0.3146: as large as it looks, it shows at 4 (2 x 0.3146 / 0.125)^2 = 101.3 prompts
    assert "a and b cannot be told apart" in found.text and "--prompts 110 would show" in found.text
    assert found.verdicts["a"] == "spread not below the largest" and found.verdicts["b"] == "largest spread"


def test_one_prompt_tells_nothing_apart():
    found = advise([noisy("a", [1.0], [0.0]), noisy("b", [2.0], [0.0])], 0.2)
    assert found.label is None and found.open == ("a", "b")


def test_where_everything_loses_too_much_none_is_recommended():
    found = advise([row("a", 1, -0.5), row("b", 2, -0.4)], 0.2)
    assert (
        found.label is None
        and "the smallest loss is at b, a loss of 0.400" in found.text
        and "--tolerance" in found.text
    )


def test_where_no_group_has_a_spread_none_is_recommended():
    found = advise([row("a", 0, 0.0), row("b", 0, 0.0)], 0.2)
    assert found.label is None and "nothing to learn from" in found.text
    unscored = noisy("c", [NAN, NAN], [NAN, NAN])
    assert advise([unscored, row("a", 1, 0.0)], 0.2).label == "a"
    assert advise([unscored], 0.2).label is None


def test_caveats_are_told():
    end = advise([row("0.1", 1, 0.0), row("0.5", 2, 0.0), row("0.9", 3, 0.0)], 0.2)
    assert end.label == "0.9" and "end of the scanned range" in end.text
    choice = advise([row("cps", 1, 0.0), row("flow_sde", 2, 0.0), row("dance_sde", 3, 0.0)], 0.2)
    assert choice.label == "dance_sde" and "end of the scanned" not in choice.text
    unsure = advise([noisy("a", [1.0, 1.0], [-0.3, 0.1]), noisy("b", [0.5, 0.5], [0.0, 0.0])], 0.2)
    assert unsure.verdicts["b"] == "within the tolerance"
    doubt = advise([noisy("a", [1.0, 1.0], [-0.5, 0.0]), noisy("b", [0.5, 0.5], [0.1, -0.4])], 0.2)
    assert doubt.verdicts == {"a": "probably loses too much", "b": "recommended"}
    assert unsure.label == "a" and "the loss may exceed that limit" in unsure.text


# ------------------------------------------------------------------ real scans


def scanned(capsys, monkeypatch, folder: Path, *arguments: object) -> dict:
    code, out, err = call(capsys, monkeypatch, "scan", *arguments, "--output", folder)
    assert code == 0, err
    assert str(folder / "report.html") in out
    return json.loads((folder / "scan.json").read_text())


@pytest.fixture(scope="module")
def shared(tmp_path_factory):
    """A scan with a value next to no noise, and its folder."""
    folder = tmp_path_factory.mktemp("scan")
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("sys.argv", ["flowrl"])
        patch.setenv("COLUMNS", "160")
        from typer.testing import CliRunner

        from flowrl.cli import app

        options = ["--prompts", "3", "--group", "4", "--output", str(folder)]
        result = CliRunner().invoke(app, ["scan", "tiny_flow_grpo", "sampler.noise=1e-7,0.7", *TINY, *options])
        assert result.exit_code == 0, result.output
    return folder, json.loads((folder / "scan.json").read_text()), result.output


def test_without_noise_a_group_that_shares_its_start_has_no_spread(shared):
    _, found, out = shared
    still, moved = found["values"]
    assert (still["value"], moved["value"]) == (1e-7, 0.7)
    assert still["spread"]["value"] == pytest.approx(0.0, abs=1e-6) and still["silent"] == 1.0
    assert still["distance"]["value"] < 1e-5 and still["diversity"] < 1e-5
    assert still["quality"]["value"] == pytest.approx(0.0, abs=1e-6)
    assert moved["distance"]["value"] > 0.05 and moved["diversity"] > 0.05
    # the first of six steps once a prompt, the others four times
    assert still["forwards_per_sample"] == moved["forwards_per_sample"] == (1 + 5 * 4) / 4
    assert moved["reference_forwards_per_sample"] == 6 and still["reward"] == still["ode"]
    assert "sampler.noise on tiny_flow_grpo: 3 training prompts x 4 samples" in out


def test_every_member_is_held_against_the_ode_from_its_own_noise(capsys, monkeypatch, tmp_path):
    own = ["sampler.share_noise=false", "--prompts", 3, "--group", 2, "--iteration", 2]
    found = scanned(capsys, monkeypatch, tmp_path, "tiny_flow_grpo", "sampler.noise=1e-7,1e-6", *TINY, *own)
    first = found["values"][0]
    assert first["distance"]["value"] < 1e-5 and first["diversity"] > 0.05
    assert first["forwards_per_sample"] == first["reference_forwards_per_sample"] == 6


def test_a_value_is_measured_alike_in_any_company(shared, capsys, monkeypatch, tmp_path):
    options = ["--prompts", 3, "--group", 4]
    again = scanned(capsys, monkeypatch, tmp_path, "tiny_flow_grpo", "sampler.noise=0.3,0.7", *TINY, *options)
    ours, theirs = again["values"][1], shared[1]["values"][1]
    assert ours["by_prompt"] == theirs["by_prompt"] and ours["statistics"] == theirs["statistics"]
    assert again["values"][0]["by_prompt"] != theirs["by_prompt"]


def test_the_page_stands_alone_and_the_files_agree(shared):
    folder, found, _ = shared
    text = (folder / "report.html").read_text()
    assert not re.search(r"""(?:src|href)=["'](?!data:|#)""", text) and "http" not in text.replace("http-equiv", "")
    assert found["why"].split(":")[0].replace("'", "&#39;") in text
    assert text.count("data:image/") == 2 * 3 * (1 + 4)  # values, prompts, ODE and members
    for prompt in found["prompts"]:
        assert prompt in text
    lines = list(csv.DictReader((folder / "scan.csv").open()))
    assert [float(line["spread"]) for line in lines] == [v["spread"]["value"] for v in found["values"]]
    assert [line["sampler.noise"] for line in lines] == ["1e-7", "0.7"]
    assert sorted(p.name for p in (folder / "grids").iterdir()) == ["01_1e-7.png", "02_0.7.png"]


def test_what_the_prompts_say_is_escaped(capsys, monkeypatch, tmp_path):
    source = tmp_path / "p.txt"
    source.write_text("<script>alert(1)</script>\na red circle\n")
    monkeypatch.chdir(tmp_path)
    rewards = "rewards={size: {use: jpeg_compressibility}}"
    own = [f"prompts.train={source}", rewards, "sampler.steps=2,3", "sampler.window={kind: first, size: 1}"]
    found = scanned(capsys, monkeypatch, tmp_path / "o", "tiny_flow_grpo", *own, *TINY, "--prompts", 2, "--group", 2)
    assert [v["value"] for v in found["values"]] == [2, 3]
    assert [v["reference_forwards_per_sample"] for v in found["values"]] == [2, 3]  # each against the ODE of its steps
    assert "<script>alert" not in (tmp_path / "o" / "report.html").read_text()


def test_leaves_of_a_tree_are_held_against_the_ode_from_the_noise_of_their_root(capsys, monkeypatch, tmp_path):
    tree = "sampler.tree={kind: branch, splits: [0, 1], widths: 2}"
    own = [tree, "sampler.share_noise=false", "sampler.noise=1e-7,0.7", "train.group=8", *TINY]
    found = scanned(capsys, monkeypatch, tmp_path, "tiny_flow_grpo", *own, "--prompts", 2)
    still, moved = found["values"]
    # two trees of four leaves: 1, 2, then 4 rows at each of the other four steps
    assert still["forwards_per_sample"] == (1 + 2 + 4 * 4) / 4
    assert still["distance"]["value"] < 1e-5 < 0.05 < moved["distance"]["value"] and still["diversity"] > 0.03


def test_more_prompts_than_there_are_is_one_line(capsys, monkeypatch, tmp_path):
    source = tmp_path / "p.txt"
    source.write_text("a red circle\na blue square\n")
    rewards = "rewards={size: {use: jpeg_compressibility}}"
    own = [f"prompts.train={source}", rewards, "sampler.noise=0.1,0.5", *TINY, "--output", tmp_path / "o"]
    code, _, err = call(capsys, monkeypatch, "scan", "tiny_flow_grpo", *own)
    assert code == 2 and len(err.strip().splitlines()) == 1 and "got 64, accepted: 2 to 2" in err


def test_a_language_model_is_held_against_its_greedy_answers(capsys, monkeypatch, tmp_path):
    own = ["generation.temperature=0.05,1.5", "train.prompts=4", "--prompts", 6, "--group", 4]
    found = scanned(capsys, monkeypatch, tmp_path, "tiny_lm_grpo", *own)
    cold, hot = found["values"]
    assert found["reference"] == "greedy decoding"
    assert hot["spread"]["value"] > cold["spread"]["value"] and hot["diversity"] > cold["diversity"]
    assert (
        hot["distance"]["value"] > 0.5 > cold["distance"]["value"]
    )  # share of completions that are not the greedy one
    assert cold["ode"] == hot["ode"] and hot["quality"]["value"] < 0
    assert hot["quality"]["value"] == pytest.approx(hot["reward"]["value"] - hot["ode"]["value"])
    assert not (tmp_path / "grids").exists() and "greedy (" in (tmp_path / "texts.txt").read_text()
    text = (tmp_path / "report.html").read_text()
    assert "data:image/" not in text and "Greedy" in text and math.isfinite(hot["seconds_per_sample"])
