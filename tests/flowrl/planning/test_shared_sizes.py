"""What the dry run says of one of several ranks that share out the weights."""

import pytest

from flowrl.kinds import kind_of
from flowrl.planning.sizes.text import describe_sizes
from flowrl.recipe.load import load

PARTS = ["parallel.kind=fsdp", "parallel.ranks=4"]


@pytest.mark.parametrize("name", ["quickstart", "tiny_lm_grpo"])
def test_a_rank_holds_its_part(name):
    def phases(*keys: str) -> dict:
        recipe = load(name, list(keys))
        return {phase.name: phase for phase in kind_of(recipe).planning.sizes(recipe, []).phases}

    alone, whole, sharded = phases(), phases(*PARTS), phases(*PARTS, "parallel.sampling=sharded")
    saved = alone["training"].weights - whole["training"].weights
    part = whole["rollout"].weights - alone["rollout"].weights  # beside all that is gathered
    assert saved == pytest.approx(3 * part, abs=4) and part > 0
    assert sharded["rollout"].weights == alone["rollout"].weights - saved
    assert whole["training"].optimizer == -(-alone["training"].optimizer // 4)
    assert whole["training"].activations == alone["training"].activations


@pytest.mark.parametrize("kind", ["replicate", "fsdp"])
def test_a_rank_stores_the_trajectories_of_its_prompts(kind):
    """Of 16 prompts three ranks have six at most."""

    def stored(*keys: str) -> list[int]:
        recipe = load("tiny_flow_grpo", ["objective.kl=0.1", *keys])
        assert recipe.train.drawn == 16
        return [phase.trajectory for phase in kind_of(recipe).planning.sizes(recipe, []).phases]

    alone = stored()
    assert stored(f"parallel.kind={kind}", "parallel.ranks=3") == [one * 6 // 16 for one in alone] and alone[-1] > 0


def test_of_a_policy_and_its_critic_one_is_whole_at_a_time():
    def rollout(*keys: str) -> int:
        recipe = load("tiny_lm_grpo", ["objective.preset=ppo", "critic.use=copy", *keys])
        return kind_of(recipe).planning.sizes(recipe, []).phases[0].weights

    alone, whole, sharded = rollout(), rollout(*PARTS), rollout(*PARTS, "parallel.sampling=sharded")
    assert sharded == -(-alone // 4) < whole - sharded < alone  # all of them are the model's and the critic's


def test_the_text_says_what_a_rank_holds():
    said = describe_sizes(load("quickstart", PARTS), [])
    assert "of each of 4 ranks: it holds 1/4 of weights" in said and "all of them are gathered while it samples" in said
    assert "none is gathered" in describe_sizes(load("quickstart", [*PARTS, "parallel.sampling=sharded"]), [])
    assert "parallel.ranks shows what one of them holds" in describe_sizes(load("quickstart", PARTS[:1]), [])
    assert "ranks" not in describe_sizes(load("quickstart"), [])
