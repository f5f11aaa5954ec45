"""What a divergence is measured from: other adapters, other weights, another model, the same one called otherwise."""

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn

from flowrl.build import build_policy
from flowrl.contracts import LogProbs, View
from flowrl.learners import build_learner
from flowrl.planning.costs import plan_for
from flowrl.planning.dry_run import describe
from flowrl.planning.sizes.memory import reference_bytes
from flowrl.policies import adapters
from flowrl.policies.errors import PolicyError
from flowrl.policies.language.building import check_tokens_agree
from flowrl.policies.loading import load_pipeline
from flowrl.policies.reference_lora import add_reference_lora
from flowrl.policies.weights import weights_of
from flowrl.recipe.errors import RecipeError
from flowrl.recipe.load import build, load
from flowrl.worlds.arithmetic.model import make_tokenizer
from language_support import PLAN, model, replayed
from language_support import PROMPTS as SUMS
from language_support import policy as language_policy
from policies_support import shake, watched_steps
from references_support import CALL, DISTILLED, GUIDED, PROMPTS, divergence, drawn, recipe, reference_logp, student
from samplers.tokens import token_kl


@pytest.fixture(scope="module")
def teacher_folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A LoRA of another rank, alpha and targets than the student's."""
    folder = tmp_path_factory.mktemp("teacher") / "lora"
    policy = build_policy(recipe({"use": "base"}, lora={"rank": 3, "alpha": 12, "targets": "all"}))
    shake(policy.modules, 0.05, seed=7)
    adapters.save(policy.source, policy.modules, folder)
    return folder


def test_the_loss_is_the_velocity_error_over_the_steps_variance():
    """(c |dt| (v - v_teacher))^2 / (2 std^2), c = 1 + sigma^2 (1 - s) / (2 s), of the third row alone; the teacher has
    two rows of the denoiser a sample, and the prompts are of unequal length."""
    of = recipe({"use": "base", "pipeline": GUIDED})
    policy = student(of)
    policy.prepare(PROMPTS[0], plan_for(of, 0))
    with watched_steps() as steps:
        rollout = drawn(policy, of)
    alone, whole = divergence(policy, rollout, [2]), divergence(policy, drawn(policy, of), [0, 1, 2, 3])
    assert torch.allclose(alone[0], whole[2], rtol=1e-4)
    prompt, teacher = [PROMPTS[1]], policy.teachers[0].policy
    for column in (1, 2):
        s, x = float(steps[column][0].s), rollout.replay.enter[column][0][2:3]
        std, dt = (rollout.step_stats[name][2, column] for name in ("std", "dt"))
        with torch.no_grad():
            v = policy.velocity(prompt, x, column, plan=plan_for(of, 0), seed=1)
            with policy.weights("reference"):
                wanted = teacher.velocity(prompt, x, column, plan=plan_for(of, 0), seed=1)
        slope = 1 + std**2 / dt.abs() * (1 - s) / (2 * s)
        published = (slope * dt * (v - wanted)).square().mean() / (2 * std**2)
        assert published > 1e-4
        assert float(alone[0, column]) == pytest.approx(float(published), rel=1e-4, abs=1e-6)


def test_the_same_model_called_otherwise_is_a_second_copy_of_it():
    shared, second = (
        recipe({"use": "base", "pipeline": GUIDED}),
        recipe({"use": "model", "path": "shapes-flux", "pipeline": GUIDED}),
    )
    found = []
    for of in (shared, second):
        policy = student(of)
        found.append(divergence(policy, drawn(policy, of), [1, 2]))
    assert torch.equal(*found) and found[0].min() > 0


def test_the_lora_of_another_run_is_the_reference_and_is_never_trained(teacher_folder: Path, tmp_path: Path):
    of = recipe({"use": "lora", "path": str(teacher_folder)})
    policy = student(of)
    before = {name: p.detach().clone() for name, p in adapters.trainable_by_name(policy.modules).items()}
    assert not any("reference" in name for name in before)
    rollout = drawn(policy, of, group=1)
    found = reference_logp(policy, rollout)

    other = build_policy(recipe({"use": "base"}, lora={"rank": 3, "alpha": 12, "targets": "all"}))
    shake(other.modules, 0.05, seed=7)
    other.prepare(PROMPTS[0], plan_for(of, 0))
    wanted = torch.zeros_like(found)

    def visit(seen: LogProbs) -> None:
        wanted[seen.rows[:, None], seen.columns[None]] = seen.logp.detach()

    other.look(rollout, torch.arange(2), View(), visit)
    assert torch.equal(found, wanted) and not torch.allclose(found, rollout.rollout_logp, atol=1e-6)
    policy.look(rollout, torch.arange(2), View(), visit)
    assert torch.equal(wanted, rollout.rollout_logp)  # the student is itself again
    after = adapters.trainable_by_name(policy.modules)
    assert after.keys() == before.keys() and all(torch.equal(after[n], before[n]) for n in before)
    adapters.save(policy.source, policy.modules, tmp_path / "saved")
    adapters.restore(policy.source, policy.modules, tmp_path / "saved")


def test_a_lora_that_does_not_fit_is_refused(tmp_path: Path):
    of = recipe({"use": "base"})
    language = language_policy()
    adapters.add_lora(language.modules, rank=2, alpha=4)
    adapters.save(language.source, language.modules, tmp_path / "text")
    with pytest.raises(PolicyError, match="does not fit transformer"):
        add_reference_lora(build_policy(of).modules, tmp_path / "text")


def test_the_average_is_a_reference():
    of = recipe({"use": "average"}, train={"prompts": 2, "group": 2, "ema": 0.5})
    policy = student(of)
    build_learner(of, policy)
    shake(policy.modules, 0.05, seed=5)
    rollout = drawn(policy, of)
    assert divergence(policy, rollout, [2]).min() > 0
    with torch.no_grad(), policy.weights("average"):
        averaged = drawn(policy, of)
    assert not torch.allclose(averaged.rollout_logp, reference_logp(policy, rollout))
    build_learner(of, policy)  # whose average begins where the weights are
    assert divergence(policy, drawn(policy, of), [2]).abs().max() == 0


def edited(tmp_path: Path, **changes: Any) -> str:
    """The tiny FLUX with another scheduler."""
    folder = tmp_path / "edited"
    load_pipeline("shapes-flux", torch.float32).save_pretrained(folder)
    file = folder / "scheduler" / "scheduler_config.json"
    file.write_text(json.dumps(json.loads(file.read_text()) | changes))
    return str(folder)


def test_a_reference_that_cannot_take_up_the_states_is_refused_before_training(tmp_path: Path):
    larger = recipe({"use": "base", "pipeline": CALL | {"height": 32}})
    with pytest.raises(PolicyError, match=r"reference: FluxPipeline walks latents of shape .* same height, width"):
        student(larger).prepare(PROMPTS[0], plan_for(larger, 0))
    of = recipe({"use": "model", "path": edited(tmp_path, use_dynamic_shifting=False, shift=4.0)})
    with pytest.raises(PolicyError, match="at step 0 FluxPipeline goes from noise level 1 to .* sampler.schedule"):
        student(of).prepare(PROMPTS[0], plan_for(of, 0))


# ------------------------------------------------------------------ language models


def test_another_language_model_teaches():
    """Its distributions over the vocabulary, of the third row alone, against logits taken by hand."""
    subject, teacher = language_policy(), model(1)
    subject.teacher = teacher
    rollout = subject.rollout(SUMS, plan=PLAN, seed=1)
    found = replayed(subject, rollout, [[2]], exact_kl=True)
    length, ids = int(rollout.replay.length[2]), rollout.replay.prompts[2]
    tokens = rollout.replay.tokens[2, :length]
    given = torch.tensor([[*ids, *tokens.tolist()]])
    with torch.no_grad():
        own, other = (m(given).logits[:, len(ids) - 1 : -1] for m in (subject.model, teacher))
    wanted = token_kl(own, other, PLAN.scale, torch.float32)
    assert found.kl is not None and torch.allclose(found.kl[0, :length], wanted[0], atol=1e-5) and wanted.min() > 0
    judged = replayed(subject, rollout, [[2]], weights="reference")
    logp = other.log_softmax(-1)[0].gather(1, tokens[:, None])[:, 0]
    assert torch.allclose(judged.logp[0, :length], logp, atol=1e-5)


def test_a_lora_is_the_reference_of_a_language_model(tmp_path: Path):
    teacher, subject = language_policy(), language_policy()
    adapters.add_lora(teacher.modules, rank=3, alpha=6)
    shake(teacher.modules, 0.3, seed=7)
    adapters.save(teacher.source, teacher.modules, tmp_path)
    adapters.add_lora(subject.modules, rank=2, alpha=4)
    add_reference_lora(subject.modules, tmp_path)
    subject.weights = weights_of(subject.modules, use="lora")
    rollout = subject.rollout(SUMS, plan=PLAN, seed=1)
    found = replayed(subject, rollout, [[2]], weights="reference").logp
    assert torch.allclose(found, replayed(teacher, rollout, [[2]]).logp, atol=1e-6)
    assert not torch.allclose(found, rollout.rollout_logp[2:], atol=1e-3)


def test_other_tokens_are_refused():
    subject, other = language_policy(), make_tokenizer()
    other.add_tokens(["<new>"])
    with pytest.raises(PolicyError, match="differs from the trained model's in 1 tokens"):
        check_tokens_agree(subject, other, model(1), "there", exact=False)
    wider = model(1)
    wider.config.vocab_size += 8
    check_tokens_agree(subject, make_tokenizer(), wider, "there", exact=False)
    with pytest.raises(PolicyError, match="objective.kl_kind=k2"):
        check_tokens_agree(subject, make_tokenizer(), wider, "there", exact=True)


# ------------------------------------------------------------------ recipes


@pytest.mark.parametrize(
    ("changes", "place"),
    [
        ({"reference": {"use": "lora"}}, "reference.path"),
        ({"reference": {"use": "base", "path": "x"}}, "reference.path"),
        ({"reference": {"use": "average"}}, "reference.use"),
        ({"reference": {"use": "lora", "path": "x"}, "lora": None, "full": True}, "reference.use"),
        ({"reference": {"use": "model", "path": "shapes-flux"}, "objective": {}}, "reference.use"),
        ({"reference": {"use": "model", "path": "shapes-flux"}, "watch": {"kl_to_base": 1.0}}, "watch.kl_to_base"),
        ({"reference": {"use": "base", "pipeline": {"latents": 1}}}, "reference.pipeline.latents"),
        ({"objective": {}}, "rewards.strict.weight"),
        ({"train": {"prompts": 2, "group": 4, "keep": 2}}, "train.keep"),
        ({"train": {"prompts": 2, "group": 4, "refill": 1}}, "train.refill"),
    ],
)
def test_what_cannot_be_is_refused(changes: dict[str, Any], place: str):
    if "objective" in changes and "reference" in changes:
        changes = changes | {"rewards": {"strict": {"use": "shapes_strict"}}}
    with pytest.raises(RecipeError) as refused:
        build(DISTILLED | changes)
    assert refused.value.place == place and "\n" not in str(refused.value)


def test_a_dry_run_tells_of_the_reference_and_its_memory(teacher_folder: Path):
    text = describe(load("tiny_guidance_distill"))
    assert "reference 288" in text and "true_cfg_scale=3.0" in text and "no reward is called" in text
    second = recipe({"use": "model", "path": "shapes-flux", "pipeline": GUIDED})
    modules = [m for m in load_pipeline("shapes-flux", torch.float32).components.values() if isinstance(m, nn.Module)]
    assert reference_bytes(second) == sum(p.numel() * 4 for m in modules for p in m.parameters())
    of = recipe({"use": "lora", "path": str(teacher_folder)})
    assert reference_bytes(of) == sum(f.stat().st_size for f in teacher_folder.glob("*.safetensors"))
    assert reference_bytes(recipe({"use": "base"})) == 0
