"""The keys of credit of single decisions, and of a critic."""

from typing import Annotated, Literal

from pydantic import BeforeValidator

from flowrl.recipe.base import Strict, key

# kind of credit -> the keys that it reads
CREDIT_KEYS: dict[str, tuple[str, ...]] = {
    "broadcast": (),
    "reward_to_go": ("gamma", "holes"),
    "gae": ("gamma", "lam", "lam_critic", "alpha"),
    "two_level": ("gamma", "lam", "turn_gamma"),
    "optimal_token": ("gamma",),
    "step": (),
    "flow": ("lam",),
    "prefix": (),
    "trees": (),
    "values": (),
    "nodes": (),
}
OF_TREES = ("prefix", "trees", "values", "nodes")  # kinds that recipe/keys/begun.py checks


class CreditKeys(Strict):
    """How the reward of a sample reaches its decisions, after `baseline` and `scale`; `whiten` then is over decisions.

    broadcast: all get the same. reward_to_go: each the rewards that follow it, discounted by gamma, which with a
    divergence in the reward (objective.kl_in) differ between decisions (REINFORCE++). gae: generalised advantage
    estimation with the values of a `critic` (PPO); lam, and lam_critic for what the critic is fitted to (VC-PPO; null:
    lam); alpha: in place of lam, 1 - 1 / (alpha l) for a row of l decisions (VAPO: 0.05). two_level: over turns with
    turn_gamma, then within them (StarPO). optimal_token: of language models, returns less the baseline of least
    variance at each position of a group's rows. step: of language models, rewards of steps normalised over all steps of
    a group, of which a token gets the sum of those from it on; what values whole answers is one step, at the end (GRPO
    with process supervision). The others take rewards of steps as they are. Rewards pass through what the model did not
    say; holes: restart begins anew there, as verl's REINFORCE++ did. Of trees of tokens: prefix, less the means of all
    that share a prefix (TreePO), or trees, within the tree and within the prompt (Tree-GRPO). values: the change of a
    step's value (VinePPO), nodes: the value of a segment that a search found (DeepSearch). flow: of objective.loss of
    kind sub_balance, how the logarithm of a text's flow, given by a `critic`, grows by a token; lam: as of gae, of what
    the critic is fitted to.
    """

    kind: Literal[
        "broadcast",
        "reward_to_go",
        "gae",
        "two_level",
        "optimal_token",
        "step",
        "flow",
        "prefix",
        "trees",
        "values",
        "nodes",
    ] = key(
        "broadcast",
        "broadcast, reward_to_go, gae, two_level, optimal_token, step, flow, prefix, trees, values or nodes",
    )
    gamma: float = key(1.0, "a number in (0, 1]", gt=0, le=1)
    lam: float = key(1.0, "a number in [0, 1]", ge=0, le=1)
    lam_critic: float | None = key(None, "a number in [0, 1] or null", ge=0, le=1)
    alpha: float | None = key(None, "a number > 0 or null", gt=0)
    turn_gamma: float = key(0.95, "a number in (0, 1]", gt=0, le=1)
    holes: Literal["skip", "restart"] = key("skip", "skip or restart")


Credit = Annotated[CreditKeys, BeforeValidator(lambda v: {"kind": v} if isinstance(v, str) else v)]


class CriticKeys(Strict):
    """What expects the return of each token, for advantage.credit of kind gae, two_level or flow; a second model.

    use: copy, a copy of `model` whose weights all learn; model, so one from `path`, with the same tokens, such as a
    reward model's; lora, a frozen copy with adapters of this rank. Each has a linear head that begins at 0. lr, clip
    (of values around those of the rollout; null: none), epochs, updates (null: those of train) and max_grad_norm are
    its own; optimizer, adam_epsilon, betas, weight_decay, schedule and the steps of warmup are those of train. warmup:
    iterations at the run's beginning that fit the critic alone (value pretraining of VC-PPO).
    """

    use: Literal["copy", "model", "lora"] = key("copy", "copy, model or lora")
    path: str | None = key(None, "a hub id or a folder, or null", min_length=1)
    rank: int = key(32, "a whole number >= 1", ge=1)
    lr: float = key(1e-5, "a number > 0", gt=0)
    clip: float | None = key(0.5, "a number > 0 or null", gt=0)
    epochs: int | None = key(None, "a whole number >= 1 or null", ge=1)
    updates: int | None = key(None, "a whole number >= 1 or null", ge=1)
    warmup: int = key(0, "a whole number >= 0", ge=0)
    max_grad_norm: float | None = key(1.0, "a number > 0 or null", gt=0)
