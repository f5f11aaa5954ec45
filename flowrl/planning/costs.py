"""What a recipe will do and what that costs, worked out without weights: the plan of each iteration, its arithmetic.

Costs are counted in forwards of the network: of a denoiser in row-forwards, one row of latents through it once
(classifier-free guidance is the pipeline's own matter: where it runs two rows or two calls for one latent, the real
work is twice these numbers), of a language model in token-forwards.
"""

from dataclasses import dataclass
from typing import Any

from flowrl.kinds import kind_of
from flowrl.recipe.schema import Recipe


def plan_for(recipe: Recipe, iteration: int) -> Any:
    """What a training iteration, counted from 0, does. Depends on the recipe and the number alone.

    Of a denoising model it is the role of every step (Plan), of a language model how tokens are drawn (Generation).
    """
    return kind_of(recipe).planning.plan(recipe.at(iteration), iteration)


def eval_plan(recipe: Recipe) -> Any:
    """An evaluation: the pure ODE walk, or tokens at eval.temperature; every sample has its own noise."""
    return kind_of(recipe).planning.eval_plan(recipe)


@dataclass(frozen=True)
class Arithmetic:
    """Sizes and costs of one iteration. Forwards are denoiser row-forwards, without the doubling of guidance.

    Of a language model they are token-forwards, at most: completions that end early take fewer. Those of the prompts
    come on top.
    """

    samples: int  # finished ones
    rows: int  # trainable chains; in a straight walk they are the samples
    rows_per_update: int
    optimizer_steps: int
    micro_batches: int  # forward-backward parts of one optimizer step, for each trained step
    rows_at_once: int  # of a rollout, at most
    rollout_forwards: int
    train_forwards: int  # with gradient, all epochs; at most: rows without an advantage are skipped unless KL is paid
    reference_forwards: int  # without gradient, once an iteration; 0 when no reference is needed
    whole_row_forwards: int = 0  # without gradient, before those of training, where a ratio needs all steps of a row


def arithmetic(recipe: Recipe, iteration: int = 0) -> Arithmetic:
    """The arithmetic of an iteration. Rows are cut into updates and micro-batches in order, prompt by prompt."""
    return kind_of(recipe).planning.arithmetic(recipe.at(iteration), iteration)


def rows_at_once(recipe: Recipe, rows_per_prompt: int) -> int:
    """Rows that one call of a rollout holds at most: whole prompts, or a part of one."""
    train = recipe.train
    limit = train.rollout_batch or train.prompts * rows_per_prompt
    if limit < rows_per_prompt:
        return limit
    return min(limit // rows_per_prompt, train.prompts) * rows_per_prompt
