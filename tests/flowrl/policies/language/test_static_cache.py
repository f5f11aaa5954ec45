"""Keys and values in buffers of fixed size: the rows of a cache that grows, and what it is not for."""

from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
import transformers as tf

import vision_support as vision
from flowrl.build import build_policy
from flowrl.contracts import Drawing
from flowrl.planning.sizes.language import DRAW, sizes
from flowrl.policies.compiling import uncompiled
from flowrl.policies.errors import PolicyError
from flowrl.policies.language.building import static_cache
from flowrl.policies.language.drawing import static_steps
from flowrl.policies.language.drawing.reading import read
from flowrl.policies.language.drawing.rows import Begun, go_on
from flowrl.policies.language.drawing.static_cache import StaticBuffers
from flowrl.policies.language.drawing.trees import treepo
from flowrl.policies.noise import Key
from flowrl.recipe.errors import RecipeError
from flowrl.recipe.load import load
from language_support import PROMPTS, STOP, model, policy, replayed
from samplers.tokens import Generation
from static_support import Watched, assert_same, filled, static

PLAN = Generation(24)
STATISTICS: dict[str, Any] = {"keep_entropy": True, "keep_squares": True}


@pytest.fixture(autouse=True)
def plainly() -> Iterator[None]:
    """Steps run as they are written, except where a test is about compiling them."""
    with uncompiled():
        yield


def of_llama() -> Any:
    """A random Llama of equally many heads of keys as of queries, which ends completions of every length."""
    torch.manual_seed(1)
    like = model().config
    config = tf.LlamaConfig(
        vocab_size=like.vocab_size,
        hidden_size=32,
        intermediate_size=48,
        num_hidden_layers=3,
        num_attention_heads=4,
        pad_token_id=0,
    )
    made = tf.LlamaForCausalLM(config).eval()
    with torch.no_grad():
        made.model.norm.weight.mul_(6.0)
    made.generation_config.eos_token_id = STOP
    return made


@pytest.mark.parametrize(
    ("network", "slots", "plan", "stop"),
    [
        (model, None, PLAN, ()),
        (model, 5, replace(PLAN, repetition_penalty=1.3, top_k=20), ()),
        (model, 3, replace(PLAN, temperature=0.6), ("4", "77")),
        (model, 1, replace(PLAN, temperature=0), ()),
        (of_llama, None, PLAN, ()),
        (of_llama, 4, replace(PLAN, repetition_penalty=0.8, temperature=0.9), ("12",)),
    ],
)
def test_rows_are_those_of_a_cache_that_grows(network: Any, slots: int | None, plan: Generation, stop: tuple[str, ...]):
    made = network()
    how = STATISTICS | {"stop": stop}
    whole = policy(made, **how).rollout(PROMPTS, group_size=4, plan=plan, seed=3)
    subject = static(policy(made, max_rows=slots, **how))
    found = subject.rollout(PROMPTS, group_size=4, plan=plan, seed=3)
    assert_same(found, whole)
    assert filled(subject)[-1].rows == max(slots or 12, 2)
    if plan.temperature > 0:
        assert len(set(found.replay.length.tolist())) > 4
        again = replayed(subject, found, [[2], [0, 1, 3], list(range(4, 12))])
        assert float((again.logp - found.rollout_logp).abs()[found.mask].max()) < 1e-5


@pytest.mark.parametrize("max_rows", [None, 2])
def test_pictures_and_their_positions(max_rows: int | None, tmp_path: Path):
    folder, prompts = vision.folder(tmp_path / "m", "qwen2_5_vl"), vision.prompts(tmp_path)
    whole = vision.policy(folder).rollout(prompts, group_size=2, plan=PLAN, seed=1)
    subject = static(vision.policy(folder, max_rows=max_rows))
    found = subject.rollout(prompts, group_size=2, plan=PLAN, seed=1)
    assert_same(found, whole)
    assert filled(subject)[-1].positions is not None
    again = replayed(subject, found, [[2], [5], [0, 1, 3, 4]])
    assert float((again.logp - found.rollout_logp).abs()[found.mask].max()) < 1e-5
    assert len(set(found.replay.length.tolist())) > 2


def test_begun_rows_and_what_is_kept_of_them():
    network = model()
    begun = [None, Begun([9, 10, 11]), Begun([20]), None, Begun([31] * 9), None]
    rollouts, prefixes = [], []
    for subject in (policy(network, **STATISTICS), static(policy(network, **STATISTICS))):
        rollouts.append(subject.rollout(PROMPTS, group_size=2, plan=PLAN, seed=2, begun=begun))
        rows = subject.start(PROMPTS, [[Key(7, p.id, i) for i in range(2)] for p in PROMPTS], PLAN)
        for until in (1, 4, 9, 12):  # some end with their first token, before they stand in a buffer
            go_on(subject, rows, PLAN, until=until, keep=True)
        assert subject.static is None or len(filled(subject)) == 5  # the first token comes of reading the prompt
        prefixes.append([(row.ids, row.prefix) for row in rows])
    assert_same(rollouts[1], rollouts[0])
    for (ids, own), (others, there) in zip(*prefixes, strict=True):
        assert ids == others and len(own) == len(there) > 0
        for part in ("keys", "values"):
            for a, b in zip(getattr(own, part), getattr(there, part), strict=True):
                torch.testing.assert_close(a, b, atol=1e-5, rtol=1e-4)


def unscored(*_: Any) -> Any:
    raise AssertionError("this tree is not grown by scores")


def test_branches_of_a_tree():
    made = model()
    made.generation_config.eos_token_id = [3, 60]
    trees = []
    for subject in (policy(made), static(policy(made))):
        trees.append(
            treepo(subject, Drawing(PROMPTS, 4, Generation(16), 7, 0, None), unscored, segment=6, roots=(2, 2)).rollout
        )
    assert filled(subject)
    assert torch.equal(trees[0].step_stats["node"], trees[1].step_stats["node"])
    assert_same(trees[1], trees[0])


def test_copies_in_another_precision_and_merged_adapters():
    subject, own = build_policy(load("tiny_lm_grpo")), Watched()
    with torch.no_grad():
        for number, parameter in enumerate(subject.trainable()):
            parameter += 0.02 * torch.randn(parameter.shape, generator=torch.Generator().manual_seed(number))
    for precision, within in ((None, 1e-5), ("float16", 1e-3)):
        subject.merge, plan, rollouts = precision is None, replace(PLAN, precision=precision), []
        for subject.static in (None, own):
            rollouts.append(subject.rollout(PROMPTS, group_size=2, plan=plan, seed=5))
        number = min(int(one.replay.length[2]) for one in rollouts)
        assert number > 4 and torch.equal(*(one.replay.tokens[2, :number] for one in rollouts))
        gap = (rollouts[0].rollout_logp - rollouts[1].rollout_logp)[2, :number].abs().max()
        assert float(gap) <= within
        kind = torch.float32 if precision is None else torch.float16
        assert own.made[-1].layers()[0][0].dtype == kind


def test_what_stood_in_a_place_before_does_not_matter(monkeypatch: pytest.MonkeyPatch):
    """Rows that have ended leave what is no number, and others take their places."""
    network, took = model(), StaticBuffers.take

    def spoilt(self: StaticBuffers, cache: Any) -> None:
        took(self, cache)
        taken = {row for row in self.live.nonzero()[:, 0].tolist()}
        for part in (part for layer in self.layers() for part in layer):
            part[[row for row in range(len(part)) if row not in taken]] = torch.nan

    whole = policy(network).rollout(PROMPTS, group_size=4, plan=PLAN, seed=3)
    monkeypatch.setattr(StaticBuffers, "take", spoilt)
    assert_same(static(policy(network, max_rows=5)).rollout(PROMPTS, group_size=4, plan=PLAN, seed=3), whole)


def test_a_static_cache_that_does_not_work_is_told_from_the_model(monkeypatch: pytest.MonkeyPatch):
    update = static_steps.StaticLayer.update

    def late(self: Any, keys: Any, values: Any, *more: Any, **named: Any) -> Any:
        self.at = (self.at - 1).clamp(min=0)
        return update(self, keys, values, *more, **named)

    monkeypatch.setattr(static_steps.StaticLayer, "update", late)
    with pytest.raises(PolicyError, match="its static cache does not work, set rollout.cache=true"):
        static(policy()).prepare(PROMPTS[0], PLAN)
    monkeypatch.setattr(static_steps.StaticLayer, "update", lambda *_, **__: 1 / torch.zeros(3, 4) @ torch.ones(3, 4))
    with pytest.raises(
        PolicyError, match=r"Qwen2ForCausalLM draws no token with a static cache \(.*\); set rollout.ca"
    ):
        static(policy()).prepare(PROMPTS[0], PLAN)


def of_windows() -> Any:
    config = tf.Qwen2Config(**model().config.to_dict() | {"use_sliding_window": True, "sliding_window": 6})
    config.layer_types = ["sliding_attention", "full_attention"]
    return tf.Qwen2ForCausalLM(config)


def of_bloom() -> Any:
    return tf.BloomForCausalLM(tf.BloomConfig(vocab_size=50, hidden_size=16, n_layer=1, n_head=2))


@pytest.mark.parametrize(("network", "why"), [(of_windows, "do not keep every token"), (of_bloom, "counts positions")])
def test_models_without_such_a_cache_are_refused(network: Any, why: str):
    recipe, made = load("tiny_lm_grpo", ["rollout.cache=static"]), network()
    with pytest.raises(PolicyError, match=f"rollout.cache: got static, but .* {why}.*; set rollout.cache=true"):
        static_cache(recipe, made)
    assert static_cache(load("tiny_lm_grpo"), made) is None


@pytest.mark.parametrize(
    "beside",
    [
        "rollout.engine={use: vllm, url: 'http://127.0.0.1:1'}",
        "rollout.batch_invariant=true",
        "rollout.dtype=int8",
        "quantize={weights: int8}",
        "parallel.kind=fsdp",
    ],
)
def test_what_it_does_not_go_with_is_refused_in_one_line(beside: str):
    with pytest.raises(RecipeError, match=r"beside .*, but .*; set rollout.cache=true, or leave") as refused:
        load("tiny_lm_grpo", ["rollout.cache=static", beside])
    assert refused.value.place == "rollout.cache" and "\n" not in str(refused.value)


def test_a_pipeline_has_none():
    with pytest.raises(RecipeError, match="got 'static', which is of language models; set rollout.cache=true"):
        load("tiny_flow_grpo", ["rollout.cache=static"])


def test_the_plan_counts_the_buffers():
    recipe = load("tiny_lm_grpo", ["rollout.cache=static", "train.prompts=2", "train.group=3"])
    found, subject = sizes(recipe, PROMPTS, 40), build_policy(recipe)
    assert found is not None and found.latent is not None and subject.static is not None
    buffers = subject.static.buffers(subject.model, 6, found.latent[0])
    buffers.take(read(subject.model, [[5, 6, 7]], pad=0).cache)
    held = sum(part.nbytes for layer in buffers.layers((buffers.rows, buffers.columns)) for part in layer)
    prompts = held // (buffers.rows * buffers.columns) * 2 * (found.latent[0] - 40)
    logits = 6 * DRAW * subject.model.config.vocab_size
    assert found.phases[0].activations == held + prompts + logits
    assert f"6 rows of {buffers.columns} tokens" in found.drawing
