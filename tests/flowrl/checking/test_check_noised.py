"""What `flowrl check` proves where finished samples are noised again."""

import pytest

from flowrl.checking.proofs import common, denoising, learning, noised
from flowrl.checking.proofs.bench import Bench
from flowrl.policies.errors import PolicyError
from flowrl.policies.pipelines.looks import levels as level_looks
from flowrl.recipe.load import load
from samplers.tables import At

FEW = [
    "sampler.steps=3",
    "sampler.levels.number=2",
    "eval.steps=2",
    "train.group=4",
    "train.prompts=2",
    "train.updates=1",
    "train.keep=null",
]


def test_a_look_and_its_gradient_are_proven():
    bench = Bench(load("quickstart", FEW), rows=4)
    assert [proof.title for proof in denoising.PROOFS if not proof.applies(bench)] == [
        "ratio is 1 at every trained step",
        "a row does not depend on its batch",
        common.ATTENTION.title,
        common.COMPILED.title,
        "noise keeps the sample statistics",
        common.MOVED.title,
        denoising.TEACHER.title,
    ]
    assert noised.look_at_noised(bench).startswith("that of the walk at 2 levels; a row by itself differs by at most")
    assert learning.gradient(bench).startswith("norm ") and bench.replay.bytes_per_row > 0


def test_a_look_at_another_level_is_named(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(level_looks, "At", lambda level, begins=None: At(0.7 * level, begins))
    with pytest.raises(PolicyError, match="by itself it gives another velocity than in its walk"):
        noised.look_at_noised(Bench(load("quickstart", FEW), rows=4))


def test_the_proof_is_no_part_of_other_recipes():
    assert not denoising.LOOK.applies(Bench(load("tiny_flow_grpo"), rows=4))
