"""Rollouts that a server draws, against those of this process; and what of a server is refused."""

from pathlib import Path
from typing import Any

import pytest
import torch

import language_support
import vision_support as vision
from engines_support import NAME, adapted, endpoint
from flowrl.contracts import Drawing
from flowrl.engines.client import EngineError
from flowrl.engines.remote import Engine
from flowrl.names import UserError
from flowrl.policies import adapters
from flowrl.recipe.keys.engines import EngineKeys
from language_support import PROMPTS
from policies_support import shake
from samplers.tokens import Generation

DRAWING = Drawing(PROMPTS, 2, Generation(12), 5, 3)


def engine(url: str, use: str = "vllm", **keys: Any) -> Engine:
    return Engine(EngineKeys(use=use, url=url, model=NAME, retries=1, **keys), NAME)


def same(a: Any, b: Any) -> None:
    """Two rollouts agree to the last bit."""
    for name in ("tokens", "length"):
        assert torch.equal(getattr(a.replay, name), getattr(b.replay, name))
    assert torch.equal(a.rollout_logp, b.rollout_logp) and torch.equal(a.mask, b.mask)
    assert a.samples.texts == b.samples.texts and torch.equal(a.samples.truncated, b.samples.truncated)
    assert a.replay.prompts == b.replay.prompts and torch.equal(a.samples.group, b.samples.group)


def local(policy: Any, drawing: Drawing = DRAWING) -> Any:
    return policy.rollout(
        drawing.prompts, group_size=drawing.group, plan=drawing.plan, seed=drawing.seed, first=drawing.first
    )


@pytest.mark.parametrize("heat", [0.0, 1.0])
def test_adapters_go_to_the_server_and_its_rollout_is_that_of_this_process(heat: float, tmp_path: Path):
    policy, plan = adapted(seed=1), Generation(12, heat)
    drawing = Drawing([*PROMPTS, PROMPTS[0]], 2, plan, 5, 3)
    with endpoint(adapted(), updates=True) as (service, url):
        there = engine(url, weights=str(tmp_path))
        told: list[int] = []
        drawing = Drawing(drawing.prompts, 2, plan, 5, 3, told.append)
        for _ in range(2):
            found = there.draw(policy, drawing)
            same(found.rollout, local(policy, drawing))
            shake(policy.modules, seed=2)  # as an update does
        versions = list(service.names)
    assert found.metrics["engine/retries"] == 0 and sum(told[-8:]) == int(found.rollout.replay.length.sum())
    assert len(versions) == 2 and [p.name for p in tmp_path.iterdir()] == versions[1:]  # older ones are gone


def test_a_whole_model_goes_to_the_server(tmp_path: Path):
    policy = language_support.policy(batch_invariant=True)
    served = language_support.policy()
    adapters.train_full(policy.modules)
    shake(policy.modules, 0.02, seed=4)
    with endpoint(served, updates=True) as (service, url):
        found = engine(url, "sglang").draw(policy, DRAWING)
        assert service.version.startswith("flowrl-")
    same(found.rollout, local(policy))


def test_merged_adapters_go_as_a_whole_model():
    policy = adapted(seed=1)
    with endpoint(language_support.policy(), updates=True) as (_, url):
        found = engine(url, "sglang").draw(policy, DRAWING).rollout
    expected = local(policy)
    assert torch.equal(found.replay.tokens, expected.replay.tokens)
    assert torch.allclose(found.rollout_logp, expected.rollout_logp, atol=1e-5)
    assert not torch.equal(found.rollout_logp, local(language_support.policy()).rollout_logp[:, :12])


def test_weights_that_a_server_lost_are_brought_again():
    policy = adapted(seed=1)
    with endpoint(adapted(), updates=True) as (service, url):
        there = engine(url)
        first = there.draw(policy, DRAWING).rollout
        service._adapters.clear()  # as a server that was started anew
        service._loaded = ""
        same(there.draw(policy, DRAWING).rollout, first)


@pytest.mark.parametrize("use", ["vllm", "sglang"])
def test_the_same_model_passes(use: str):
    policy, served = (adapted(seed=1), adapted()) if use == "vllm" else (adapted(), language_support.policy())
    with endpoint(served, updates=True) as (_, url):
        engine(url, use).check(policy, PROMPTS, Generation(12, 0.7, top_p=0.9))


def test_another_name_is_refused():
    with endpoint(adapted(), updates=True) as (service, url):
        service.name = "another"
        with pytest.raises(UserError, match=r"engine\.model: .* does not serve 'tiny'; accepted: another"):
            engine(url).check(adapted(), PROMPTS, Generation(12))


def test_another_vocabulary_is_refused():
    served = adapted()
    served.tokenizer = Shifted(served.tokenizer)
    with endpoint(served, updates=True) as (_, url):
        with pytest.raises(UserError, match="serve the same model with its own tokenizer"):
            engine(url).check(adapted(), PROMPTS, Generation(12))


class Shifted:
    """A tokenizer whose ids are others."""

    def __init__(self, of: Any):
        self._of = of

    def __call__(self, text: str, **how: Any) -> dict[str, list[int]]:
        return {"input_ids": [(i + 1) % 104 for i in self._of(text, **how)["input_ids"]]}

    def __getattr__(self, name: str) -> Any:
        return getattr(self._of, name)


def test_other_weights_are_refused():
    served = language_support.policy(language_support.model(7), batch_invariant=True)
    adapters.add_lora(served.modules, rank=4, alpha=8, targets="all")
    with endpoint(served, updates=True) as (_, url), pytest.raises(UserError, match="off those of the model here"):
        engine(url).check(adapted(), PROMPTS, Generation(12))


def test_a_server_of_shorter_texts_is_refused():
    served = adapted()
    served.model.config.max_position_embeddings = 20
    with endpoint(served, updates=True) as (_, url), pytest.raises(UserError, match="takes 20 tokens"):
        engine(url).check(adapted(), PROMPTS, Generation(12))


def test_a_server_that_takes_no_weights_says_how_it_would():
    with endpoint(adapted()) as (_, url), pytest.raises(EngineError, match="--updates"):
        engine(url).draw(adapted(), DRAWING)


def test_a_server_that_is_not_there_is_named():
    with pytest.raises(EngineError, match="does not answer"):
        engine("http://127.0.0.1:9").check(adapted(), PROMPTS, Generation(12))


def test_a_missing_token_is_named(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.delenv("NO_SUCH_TOKEN", raising=False)
    with pytest.raises(UserError, match="NO_SUCH_TOKEN is not set"):
        engine("http://127.0.0.1:9", token_env="NO_SUCH_TOKEN")


@pytest.fixture(scope="module")
def seeing(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return vision.folder(tmp_path_factory.mktemp("seeing"), "qwen2_5_vl")


def sees(folder: Path) -> Any:
    policy = vision.policy(folder, batch_invariant=True)
    adapters.add_lora(policy.modules, rank=2, alpha=2, targets="all")
    return policy


def test_pictures_go_to_the_server_and_its_rows_are_those_of_this_process(seeing: Path, tmp_path: Path):
    policy, prompts = sees(seeing), vision.prompts(tmp_path)
    shake(policy.modules, seed=3)
    drawing = Drawing(prompts, 2, Generation(6), 5, 0)
    with endpoint(sees(seeing), updates=True) as (_, url):
        engine(url).check(policy, prompts, drawing.plan)
        found = engine(url).draw(policy, drawing).rollout
    expected = local(policy, drawing)
    same(found, expected)
    assert [own.key for own in found.replay.inputs] == [own.key for own in expected.replay.inputs]


def test_a_server_that_sees_pictures_with_other_ids_is_refused(seeing: Path, tmp_path: Path):
    policy, prompts, served = sees(seeing), vision.prompts(tmp_path), sees(seeing)
    served.processor.image_processor.size = {"shortest_edge": 28 * 28, "longest_edge": 28 * 28 * 2}
    with endpoint(served, updates=True) as (_, url), pytest.raises(EngineError, match="read a prompt of"):
        engine(url).draw(policy, Drawing(prompts[:1], 1, Generation(4), 5, 0))
    with endpoint(sees(seeing), updates=True) as (_, url), pytest.raises(UserError, match="got 'sglang'"):
        engine(url, "sglang").draw(policy, Drawing(prompts[:1], 1, Generation(4), 5, 0))
