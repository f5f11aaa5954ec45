"""What `flowrl check` proves of a teacher."""

import pytest
import torch

from flowrl.checking.proofs import denoising, teacher
from flowrl.checking.proofs.bench import Bench
from flowrl.checking.proofs.proof import ProofError
from flowrl.recipe.load import load

TRAIN = ["train.group=2", "train.prompts=2", "train.updates=1"]
FEW = ["sampler.steps=3", "sampler.window={kind: first, size: 2}", *TRAIN]
SMALL = "height: 16, width: 16, max_sequence_length: 16"


def bench(*more: str) -> Bench:
    return Bench(load("tiny_guidance_distill", [*FEW, f"pipeline={{{SMALL}, guidance_scale: 1.0}}", *more]), rows=4)


def guided() -> str:
    return f"reference={{use: base, pipeline: {{{SMALL}, true_cfg_scale: 3.0, negative_prompt: ''}}}}"


def test_a_teacher_is_proven_to_teach():
    proven = bench(guided())
    assert denoising.TEACHER in denoising.PROOFS and denoising.TEACHER.applies(proven)
    told = teacher.teaches(proven)
    assert "away from the model as the run finds it, called with" in told and "true_cfg_scale=3.0" in told
    whole, third = (teacher._divergence(proven, torch.tensor(rows)) for rows in ([0, 1, 2, 3], [2]))
    assert whole.shape == (4, 2) and (whole > 0).all() and (whole[2] - third[0]).abs().max() <= 1e-3 * whole.max()
    assert (whole[2] - whole[0]).abs().max() > 1e-3 * whole.max()


def test_several_teachers_are_proven_together():
    few = f"{{use: base, steps: 2, when: {{kind: [single, count]}}, pipeline: {{{SMALL}, guidance_scale: 1.0}}}}"
    told = teacher.teaches(bench(f"reference=[{few}, {guided().partition('=')[2]}]"))
    assert "2 steps to one, for prompts with kind=['single', 'count']; the model as the run finds it" in told


def test_a_teacher_that_is_the_student_is_named():
    with pytest.raises(ProofError, match="the divergence is 0"):
        teacher.teaches(bench(f"reference={{use: base, pipeline: {{{SMALL}, guidance_scale: 1.0}}}}"))


def test_the_proof_is_no_part_of_other_recipes():
    assert not denoising.TEACHER.applies(Bench(load("quickstart"), rows=4))
    assert not denoising.TEACHER.applies(Bench(load("tiny_flow_grpo", ["objective.kl=0.1"]), rows=4))
