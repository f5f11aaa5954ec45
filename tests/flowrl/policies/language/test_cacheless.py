"""Models whose cache gives other numbers than reading all at once: refused with what helps, and read whole with it."""

import copy

import pytest
import torch
from transformers import NemotronHConfig, NemotronHForCausalLM

from flowrl.build import build_policy
from flowrl.policies.errors import PolicyError
from flowrl.policies.language.drawing.forwards import read_whole
from flowrl.policies.language.drawing.low_precision import low_precision
from flowrl.policies.language.policy import LanguagePolicy
from flowrl.recipe.load import load
from flowrl.worlds.arithmetic.model import make_tokenizer
from language_support import PLAN, PROMPTS, replayed

PARTS = [[2], [0, 1], [5, 3, 4]]


@pytest.fixture(scope="module")
def network() -> NemotronHForCausalLM:
    """Its recurrent layers have a least time step where they read at once, and none where they go on from a cache."""
    torch.manual_seed(0)
    shape = {"hidden_size": 16, "intermediate_size": 32, "num_attention_heads": 2, "num_key_value_heads": 2}
    shape |= {"head_dim": 8, "mamba_num_heads": 4, "mamba_head_dim": 8, "n_groups": 1, "ssm_state_size": 8}
    kinds = ["linear_attention", "full_attention", "mlp"]
    ends = {"bos_token_id": 2, "eos_token_id": 3, "pad_token_id": 0}
    config = NemotronHConfig(
        vocab_size=len(make_tokenizer()), layers_block_type=kinds, time_step_min=2.0, **shape, **ends
    )
    made = NemotronHForCausalLM(config).float().eval()
    with torch.no_grad():
        for parameter in made.parameters():
            if parameter.dim() > 1:
                parameter.normal_(0, 0.4)
    return made


def subject(network: NemotronHForCausalLM, *, whole: bool, **options: bool) -> LanguagePolicy:
    made = LanguagePolicy(copy.deepcopy(network), make_tokenizer(), **options)
    assert not read_whole(made.model, whole)
    return made


def test_it_is_refused_and_told_that_its_cache_does_not_work(network: NemotronHForCausalLM):
    with pytest.raises(PolicyError, match="its cache does not work, set rollout.cache=false: each token then reads"):
        subject(network, whole=False).prepare(PROMPTS[0], PLAN)


def test_read_whole_a_replay_is_the_rollout(network: NemotronHForCausalLM):
    made = subject(network, whole=True)
    read: list[int] = []
    hook = lambda _, given, named: read.append(named["input_ids"].shape[1])  # noqa: E731
    rollout = made.rollout(PROMPTS[:3], group_size=2, plan=PLAN, seed=0)
    gap = (replayed(made, rollout, PARTS).logp - rollout.rollout_logp).abs()[rollout.mask]
    assert float(gap.max()) < 1e-5
    made.model.register_forward_pre_hook(hook, with_kwargs=True)
    made.rollout(PROMPTS[:1], plan=PLAN, seed=0)
    assert read == list(range(read[0], read[0] + len(read))) and len(read) > 2
    assert read_whole(low_precision(made.model, "bfloat16")) and not read_whole(network, False)


def test_a_recipe_says_so_and_rollouts_are_the_same(tmp_path):
    """Of a model whose cache works, the same tokens and log-probs to the last few bits."""
    rollouts = []
    for more in ([], ["rollout.cache=false"]):
        policy = build_policy(load("tiny_lm_grpo", more))
        rollouts.append(policy.rollout(PROMPTS, group_size=2, plan=PLAN, seed=0))
    assert torch.equal(rollouts[0].replay.tokens, rollouts[1].replay.tokens)
    torch.testing.assert_close(rollouts[0].rollout_logp, rollouts[1].rollout_logp, rtol=0, atol=1e-5)
    assert not torch.equal(rollouts[0].rollout_logp, rollouts[1].rollout_logp)
