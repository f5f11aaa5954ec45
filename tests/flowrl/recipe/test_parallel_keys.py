"""Keys of runs whose ranks hold parts of the weights."""

import pytest

from flowrl.recipe.errors import RecipeError
from flowrl.recipe.load import load


def test_parts_are_asked_for_by_one_key():
    recipe = load("tiny_flow_grpo", ["parallel.kind=fsdp", "parallel.sampling=sharded", "parallel.ranks=2"])
    assert recipe.parallel.reshard and recipe.parallel.mixed_precision is None


def test_a_critic_and_another_model_as_reference_go_with_parts():
    load("tiny_lm_grpo", ["parallel.kind=fsdp", "objective.preset=ppo"])
    load("tiny_lm_grpo", ["parallel.kind=fsdp", "objective.kl=0.1", "reference={use: model, path: arithmetic-qwen2}"])
    load("tiny_debate", ["parallel.kind=fsdp"])
    load("tiny_lm_grpo", ["parallel.kind=fsdp", "dtype.model=float16"])


@pytest.mark.parametrize(
    ("name", "keys", "problem"),
    [
        (
            "quickstart",
            ["parallel.sampling=sharded"],
            "parallel.sampling: got 'sharded', but every rank holds all weights",
        ),
        ("quickstart", ["parallel.reshard=false"], "parallel.reshard: got False, but every rank"),
        (
            "quickstart",
            ["parallel.kind=fsdp", "compile={regional: false, backend: eager}"],
            "compile.regional: got False beside parallel.kind=fsdp",
        ),
        ("quickstart", ["parallel.kind=fsdp", "offload=true"], "offload: given, but it moves whole weights"),
        (
            "quickstart",
            ["parallel.kind=fsdp", "train.ema=0.9", "train.ema_in_host=true"],
            "train.ema_in_host: given, but it would part the average from the weights",
        ),
        (
            "quickstart",
            ["parallel={kind: fsdp, mixed_precision: float16}"],
            "parallel.mixed_precision: got 'float16', accepted: bfloat16 or null",
        ),
        (
            "tiny_lm_grpo",
            ["parallel.kind=fsdp", "rollout.dtype=bfloat16"],
            "rollout.dtype: given, but it makes its copy of whole weights",
        ),
        (
            "tiny_lm_grpo",
            ["parallel.kind=fsdp", "parallel.ranks=2", "environment={agent: my_agent.solve}"],
            "environment.agent: given, but its calls come whenever they do",
        ),
        (
            "tiny_lm_grpo",
            ["parallel={ranks: 2, kind: fsdp}", "rollout.engine={use: sglang, url: ['http://127.0.0.1:1']}"],
            "rollout.engine.use: got 'sglang', which is given a model with the adapters merged into whole weights",
        ),
        (
            "tiny_lm_grpo",
            ["parallel.kind=fsdp", "train.prompts=2", "parallel.ranks=3"],
            "train.prompts: got 2, but 3 ranks share out the weights, and one would draw nothing",
        ),
    ],
)
def test_what_does_not_go_with_parts_is_one_line(name, keys, problem):
    with pytest.raises(RecipeError) as error:
        load(name, keys)
    assert str(error.value).startswith(problem) and "\n" not in str(error.value)
