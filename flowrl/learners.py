"""What learns in a run, made as a recipe says: the policy's parameters, and those of a critic."""

from typing import Any

from flowrl.contracts import Policy
from flowrl.core.learning.learner import Learner
from flowrl.core.objectives.value import ValueObjective
from flowrl.core.values import Critic, Values
from flowrl.kinds import kind_of
from flowrl.policies import adapters
from flowrl.policies.weights import weights_of
from flowrl.recipe.making import build_part
from flowrl.recipe.schema import Recipe
from flowrl.recipe.sections import Own


def build_learner(recipe: Recipe, policy: Policy) -> Learner:
    """The optimizer of a recipe over the policy's trainable parameters, and copies of these if the recipe needs any.

    The policy is told where to find them.
    """
    train = recipe.train
    learner = Learner(
        policy.trainable(),
        lr=train.lr,
        max_grad_norm=train.max_grad_norm,
        total=recipe.updates_by(train.iterations),
        average=train.ema,
        average_every=train.ema_every,
        ramp=train.ema_ramp,
        average_in_host=train.ema_in_host,
        reference=recipe.keeps_reference,
        old=any(part.train.old is not None for part in recipe.parts()),
        apart=kind_of(recipe).building.apart(policy, recipe),
        **_common(recipe),
    )
    policy.weights = weights_of(policy.modules, learner.copies, use=[one.use for one in recipe.references])
    return learner


def _common(recipe: Recipe) -> dict[str, Any]:
    """What the learners of policy and critic are given alike."""
    train = recipe.train
    return {
        "betas": (train.betas[0], train.betas[1]),
        "weight_decay": train.weight_decay,
        "optimizer": train.optimizer,
        "eps": train.adam_epsilon,
        "warmup": train.warmup,
        "schedule": build_part("lr_schedule", train.schedule) if isinstance(train.schedule, Own) else train.schedule,
        "scaled": recipe.dtype.model == "float16",
    }


def build_values(recipe: Recipe, policy: Policy) -> Values | None:
    """What gives the recipe's values; None where it has no critic."""
    return None if recipe.critic is None else kind_of(recipe).building.build_critic(policy, recipe)


def build_critic(recipe: Recipe, looks: Values | None) -> Critic | None:
    """The critic with its own learner, of what gives its values; None where the recipe has none."""
    given, train = recipe.critic, recipe.train
    if given is None or looks is None:
        return None
    epochs, updates = given.epochs or train.epochs, given.updates or train.updates
    learner = Learner(
        adapters.trainable(looks.modules),
        lr=given.lr,
        max_grad_norm=given.max_grad_norm,
        total=train.iterations * epochs * updates,
        apart=kind_of(recipe).building.apart(looks, recipe),
        **_common(recipe),
    )
    return Critic(looks, learner, ValueObjective(given.clip), epochs, updates, given.warmup)
