"""Pictures that prompts come with are encoded once a run; autoencoders work as the recipe says."""

from __future__ import annotations

import hashlib
from collections import Counter
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from torch import Tensor

import families
from flowrl.policies.errors import PolicyError
from flowrl.policies.pipelines.calls.autoencoders import Autoencoding
from flowrl.policies.pipelines.encoding import conditions
from flowrl.policies.pipelines.encoding.conditions import Conditions
from policies_support import PROMPTS, SDE, SEED, FamilyPolicy, gap, pictures, scores


def digest(x: Tensor) -> bytes:
    return hashlib.blake2b(x.detach().float().numpy().tobytes()).digest()


def counted(module: Any, method: str) -> Counter[bytes]:
    """How often a method of a module was really called, by the content of its first argument."""
    seen: Counter[bytes] = Counter()
    own = getattr(module, method)

    def call(x: Tensor, *args: Any, **kwargs: Any) -> Any:
        seen[digest(x)] += 1
        return own(x, *args, **kwargs)

    object.__setattr__(module, method, call)
    return seen


@pytest.mark.parametrize("name", ["kontext", pytest.param("wan_i2v", marks=pytest.mark.slow)])
def test_a_condition_is_encoded_once_a_run_and_gives_the_same_numbers(
    name: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    pipe = families.get(name).build()
    seen = counted(pipe.vae, "encode")
    policy = FamilyPolicy(name, pipe, max_rows=2)
    found = [policy.rollout(PROMPTS, group_size=2, plan=SDE, seed=seed) for seed in (SEED, SEED + 1)]
    replayed = torch.cat([scores(policy, found[1], rows) for rows in ([3], [0, 1])])
    assert len(seen) >= len(PROMPTS)
    assert set(seen.values()) == {1}
    monkeypatch.setattr(Conditions, "__call__", lambda self, name, call, args, kwargs: call(*args, **kwargs))
    plain = FamilyPolicy(name, max_rows=2)
    expected = [plain.rollout(PROMPTS, group_size=2, plan=SDE, seed=seed) for seed in (SEED, SEED + 1)]
    for own, other in zip(found, expected, strict=True):
        assert gap(own.rollout_logp, other.rollout_logp) <= 1e-6
        assert gap(pictures(own), pictures(other)) <= 1e-5
    assert gap(replayed, torch.cat([scores(plain, expected[1], rows) for rows in ([3], [0, 1])])) <= 1e-6


class Encoding:
    """What counts its calls: rows by themselves, or with the mean of all."""

    def __init__(self, together: bool = False) -> None:
        self.rows: list[int] = []
        self.together = together

    def __call__(self, x: Tensor, scale: float = 1.0) -> Any:
        self.rows.append(len(x))
        code = x * scale - (x.mean(0) if self.together else 0)
        return SimpleNamespace(latent=code, layers=(code, code + 1), name="code")


def test_rows_are_remembered_one_by_one_whatever_they_stand_beside() -> None:
    remember, encode, x = Conditions(), Encoding(), torch.arange(12.0).reshape(4, 3)
    for rows in ([0, 1, 2], [2, 0], [1], [3, 3]):
        found = remember("vae.encode", encode, (x[rows],), {})
        assert torch.equal(found.latent, x[rows])
        assert torch.equal(found.layers[1], x[rows] + 1)
        assert found.name == "code"
    assert encode.rows == [1, 1, 1, 3, 1], "each row once, and once all of them to see that they are alike"
    assert torch.equal(remember("vae.encode", encode, (x[:1], 2.0), {}).latent, 2 * x[:1])
    assert len(encode.rows) == 6


def test_rows_that_depend_on_each_other_are_remembered_together() -> None:
    remember, encode, x = Conditions(), Encoding(together=True), torch.arange(12.0).reshape(4, 3)
    for rows in ([0, 3], [0, 3], [1, 3]):
        assert torch.equal(remember("vae.encode", encode, (x[rows],), {}).latent, x[rows] - x[rows].mean(0))
    assert encode.rows[2:] == [2, 2, 2]


def test_what_is_handed_out_is_the_callers_own_and_gradient_is_left_alone() -> None:
    remember, encode, x = Conditions(), Encoding(), torch.ones(1, 3)
    remember("vae.encode", encode, (x,), {}).latent.zero_()
    assert torch.equal(remember("vae.encode", encode, (x,), {}).latent, x)
    assert remember("vae.encode", encode, (x.clone().requires_grad_(),), {}).latent.requires_grad


def test_the_oldest_conditions_are_forgotten(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(conditions, "CONDITION_BYTES", 3 * 3 * 4)  # one result, of three tensors of three numbers
    remember, encode = Conditions(), Encoding()
    for value in (1.0, 2.0, 2.0, 1.0):
        remember("vae.encode", encode, (torch.full((1, 3), value),), {})
    assert len(encode.rows) == 3


# ---------------------------------------------------------------------- autoencoders


def test_pictures_are_decoded_a_few_rows_at_a_time() -> None:
    pipe = families.get("flux").build()
    rows, own = [], pipe.vae.decode

    def decode(z: Tensor, *args: Any, **kwargs: Any) -> Any:
        rows.append(len(z))
        return own(z, *args, **kwargs)

    pipe.vae.decode = decode
    policy = FamilyPolicy("flux", pipe, autoencoding=Autoencoding(batch=2))
    policy.prepare(PROMPTS[0], SDE)
    rows.clear()
    found = policy.rollout(PROMPTS[:1], group_size=5, plan=SDE, seed=SEED)
    assert rows == [2, 2, 1]
    whole = FamilyPolicy("flux").rollout(PROMPTS[:1], group_size=5, plan=SDE, seed=SEED)
    assert gap(pictures(found), pictures(whole)) <= 1e-6
    assert torch.equal(found.rollout_logp, whole.rollout_logp)


def test_an_autoencoder_has_a_precision_of_its_own() -> None:
    exact = families.get("kontext").build()
    single = FamilyPolicy("kontext", exact).rollout(PROMPTS, plan=SDE, seed=SEED)
    pipe = families.get("kontext").build()
    way = Autoencoding(dtype=torch.float64)
    way.set_up(pipe)
    policy = FamilyPolicy("kontext", pipe, autoencoding=way)
    found = policy.rollout(PROMPTS, plan=SDE, seed=SEED)
    assert next(pipe.vae.parameters()).dtype == torch.float64
    assert next(pipe.transformer.parameters()).dtype == torch.float32
    assert 0 < gap(pictures(found), pictures(single)) <= 1e-4


def test_slices_and_tiles_are_the_autoencoders_own() -> None:
    pipe = families.get("flux").build()
    Autoencoding(slicing=True, tiling=True).set_up(pipe)
    assert pipe.vae.use_slicing
    assert pipe.vae.use_tiling
    with pytest.raises(PolicyError, match="no autoencoder among its components; remove vae"):
        Autoencoding(slicing=True).set_up(SimpleNamespace())
    pipe.vae = torch.nn.Linear(1, 1)
    with pytest.raises(PolicyError, match=r"vae.tiling: vae \(Linear\) cannot do that; set vae.tiling=false"):
        Autoencoding(tiling=True).set_up(pipe)


def test_a_state_that_is_stored_under_two_names_is_one_tensor() -> None:
    policy = FamilyPolicy("flux", max_rows=1)
    stored = policy.rollout(PROMPTS, plan=SDE, seed=SEED).replay
    for step in (1, 2):
        assert stored.enter[step][0].data_ptr() == stored.drawn[step - 1][0].data_ptr()
