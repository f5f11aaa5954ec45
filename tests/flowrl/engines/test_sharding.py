"""Ranks that hold parts of the weights do what one process does. Several launches of minutes: run by hand."""

import json
import shutil

import pytest
from safetensors.torch import load_file

import clip_support
import families
from ranks_support import compare, distance, done, job, lines, weights

pytestmark = pytest.mark.dist
PARTS = "parallel.kind=fsdp"
RUNS = ["noised", "steps", "tokens", "tree", "critic", "copy", "teacher", "debate", "partial", "invariant", "hosted"]
RUNS += ["compiled", "compiled_steps"]
FOLLOWS = 1e-5  # of metrics: how far samples have moved away from the first ones follows the weights
BACK = ["back"]
ADAPTERS = ("objective.kl=0.04", "reference={use: lora, path: 1/tokens/lora}")  # of a run before
FLOAT16 = "dtype.model=float16"
SHARDED = ["noised", "tokens", "critic", "copy"]
LONGER = "train.iterations=3"


@pytest.fixture(scope="module")
def runs(tmp_path_factory):
    """Runs of one process, and of two ranks with parts: gathered before sampling, and block by block."""
    folder = tmp_path_factory.mktemp("parts")
    jobs = [job(1, folder / "1", RUNS, LONGER), job(2, folder / "whole", RUNS, LONGER, PARTS)]
    jobs += [job(2, folder / "sharded", SHARDED, LONGER, PARTS, "parallel.sampling=sharded")]
    jobs += [job(2, folder / "kept", ["steps"], LONGER, PARTS, "parallel.reshard=false")]
    jobs += [job(2, folder / "host", ["steps", "tokens"], LONGER, PARTS, "parallel.offload=true")]
    jobs += [job(2, folder / "half", ["steps", "tokens"], LONGER, PARTS, "parallel.mixed_precision=bfloat16")]
    jobs += [job(1, folder / "1-adapters", ["tokens"], *ADAPTERS), job(1, folder / "1-float16", ["noised"], FLOAT16)]
    jobs += [job(2, folder / "adapters", ["tokens"], PARTS, *ADAPTERS)]
    jobs += [job(2, folder / "float16", ["noised"], PARTS, FLOAT16)]
    jobs += [job(1, folder / "1", BACK), job(2, folder / "whole", BACK, PARTS), job(2, folder / "2", BACK)]
    done(folder, jobs)
    return folder


@pytest.mark.parametrize("name", RUNS)
def test_gathered_before_sampling(name, runs):
    compare(runs / "1" / name, runs / "whole" / name, FOLLOWS)


@pytest.mark.parametrize("name", SHARDED)
def test_block_by_block(name, runs):
    compare(runs / "1" / name, runs / "sharded" / name, FOLLOWS)


def test_parted_behind_the_backward(runs):
    compare(runs / "1" / "steps", runs / "kept" / "steps", FOLLOWS)


@pytest.mark.parametrize("name", ["steps", "tokens"])
def test_parts_that_rest_in_host_memory(name, runs):
    compare(runs / "1" / name, runs / "host" / name, FOLLOWS)


@pytest.mark.parametrize("name", ["steps", "tokens"])
def test_parts_that_are_gathered_in_bfloat16(name, runs):
    """They learn the same to the precision of that type, as one process in bfloat16 does."""
    before, after = lines(runs / "1" / name), lines(runs / "half" / name)
    rewards = [[line["reward/total/mean"] for line in of if line["kind"] == "train"][0] for of in (before, after)]
    assert rewards[0] == rewards[1]
    l2, largest = distance(weights(runs / "1" / name), weights(runs / "half" / name))
    assert 1e-4 < l2 < 0.02, (l2, largest)


@pytest.mark.parametrize(("kind", "name"), [("adapters", "tokens"), ("float16", "noised")])
def test_a_reference_from_other_adapters_and_a_model_in_float16(kind, name, runs):
    compare(runs / f"1-{kind}" / name, runs / kind / name, 1e-4 if kind == "float16" else FOLLOWS)


@pytest.mark.parametrize("kind", ["whole", "2"])
def test_an_alarm_brings_back_the_best_weights_and_their_moments(kind, runs):
    """And the critic's; two iterations go on from there."""
    alarms = [json.loads(line) for line in (runs / kind / "back" / "alarms.jsonl").read_text().splitlines()]
    assert [(alarm["iteration"], alarm["action"]) for alarm in alarms] == [(3, "rollback")]
    compare(runs / "1" / "back", runs / kind / "back", FOLLOWS)


def test_the_recipe_for_eight_cards_on_a_tiny_wan(tmp_path):
    """wan14_8x80gb as it is but for sizes, model and type."""
    families.get("wan_unipc").build().save_pretrained(tmp_path / "wan")
    (tmp_path / "clip").mkdir()
    clip_support.Made(tmp_path / "clip")
    jobs = [job(1, tmp_path / "1", ["wan"]), job(2, tmp_path / "2", ["wan"])]
    done(tmp_path, [*jobs, job(2, tmp_path / "sharded", ["wan"], "parallel.sampling=sharded")])
    for kind in ("2", "sharded"):
        assert len(list((tmp_path / kind / "wan" / "checkpoints").glob("*/shards/*"))) > 1
        compare(tmp_path / "1" / "wan", tmp_path / kind / "wan", FOLLOWS)


@pytest.mark.parametrize("name", ["steps", "tokens"])
def test_all_weights_learn(name, tmp_path):
    """A reference and an average are copies in parts then."""
    more = ["lora=null", "full=true", "objective.kl=0.04", "train.ema=0.9", "train.lr=1e-5"]
    done(tmp_path, [job(1, tmp_path / "1", [name], *more), job(2, tmp_path / "2", [name], PARTS, *more)])
    alone, sharded = tmp_path / "1" / name, tmp_path / "2" / name
    for before, after in zip(lines(alone), lines(sharded), strict=True):
        numbers = [key for key in before if isinstance(before[key], float) and not key.startswith("time_")]
        assert all(after[key] == pytest.approx(before[key], abs=1e-5, rel=1e-5) for key in numbers)
    l2, largest = distance(model_of(alone), model_of(sharded))
    assert l2 < 1e-4, (l2, largest)


def model_of(folder):
    """All weights that a run wrote; also the names tell of those that two layers share."""
    files = sorted((folder / "model").rglob("*.safetensors"))
    return {name: value for file in files for name, value in load_file(file).items()}


@pytest.mark.parametrize(
    ("before", "after"),
    [
        ((2, PARTS), (2, "parallel.kind=replicate")),
        ((2, "parallel.kind=replicate"), (2, PARTS)),
        ((2, PARTS), (1, PARTS)),
    ],
)
def test_a_run_goes_on_in_another_way(before, after, tmp_path):
    """Its weights are those of a run that went on as it began, to rounding."""
    (number, how), (other, way) = before, after
    done(tmp_path, [job(number, tmp_path / "a", ["noised"], how, "train.iterations=1", "checkpoint.every=1")])
    shutil.copytree(tmp_path / "a", tmp_path / "b")
    jobs = [
        job(number, tmp_path / "a", ["noised"], how, resume=True),
        job(other, tmp_path / "b", ["noised"], way, resume=True),
    ]
    done(tmp_path, jobs)
    l2, largest = distance(weights(tmp_path / "a" / "noised"), weights(tmp_path / "b" / "noised"))
    assert l2 < 1e-4, (l2, largest)
