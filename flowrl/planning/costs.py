"""What a recipe will do and what that costs, computed without weights: the plan of each iteration, its arithmetic.

Costs are counted in forwards of the network: for a denoiser in row-forwards, one forward pass of one row of latents
(classifier-free guidance is up to the pipeline: if it runs two rows or two calls for one latent, the real work is twice
these numbers), for a language model in token-forwards.
"""

from dataclasses import dataclass
from typing import Any

from flowrl.kinds import kind_of
from flowrl.recipe.schema import Recipe


def plan_for(recipe: Recipe, iteration: int) -> Any:
    """The plan of a training iteration, counted from 0; it depends on the recipe and the number alone.

    For a denoising model, the role of every step (Plan); for a language model, how tokens are drawn (Generation).
    """
    return kind_of(recipe).planning.plan(recipe.at(iteration), iteration)


def eval_plan(recipe: Recipe) -> Any:
    """The plan of an evaluation: the pure ODE walk, or tokens at eval.temperature; every sample has its own noise."""
    return kind_of(recipe).planning.eval_plan(recipe)


def baseline_plan(recipe: Recipe, iteration: int) -> Any:
    """The plan of the one sample of each prompt whose rewards are the baseline "given"; None where there is none."""
    if recipe.advantage.baseline != "given":
        return None
    return kind_of(recipe).planning.reference_plan(recipe.at(iteration))


@dataclass(frozen=True)
class Arithmetic:
    """Sizes and costs of one iteration. Forwards are denoiser row-forwards, without the doubling of guidance.

    For a language model they are token-forwards, at most: completions that end early take fewer. Prompt tokens are not
    counted.
    """

    samples: int  # finished samples
    rows: int  # trainable chains; in a straight walk they are the samples
    rows_per_update: int
    optimizer_steps: int
    micro_batches: int  # forward-backward parts of one optimizer step, for each trained step
    rows_at_once: int  # of one call in a rollout, at most
    rollout_forwards: int
    train_forwards: int  # with gradient, all epochs; at most: rows without an advantage are skipped unless KL is used
    reference_forwards: int  # without gradient, once per iteration; 0 if no reference is needed
    corrected_forwards: int = 0  # without gradient, once per iteration: who trains where another sampled, other views
    decodes: int = 0  # of samples in training, with gradient, where the objective follows that of the rewards
    reward_gradients: int = 0  # passes back through a reward, a sample each
    value_forwards: int = 0  # of a critic without gradient, before there are advantages
    critic_forwards: int = 0  # with gradient, to fit it
    whole_row_forwards: int = 0  # without gradient, before those of training, if a ratio needs all steps of a row
    reread_forwards: int = 0  # of a rollout, on top: tokens that a model without a cache reads again for each one

    @property
    def drawing_forwards(self) -> int:
        """All that a rollout computes."""
        return self.rollout_forwards + self.reread_forwards

    @property
    def unlearned_forwards(self) -> int:
        """Those without gradient that go with updates: of the reference, and before ratios and corrections."""
        return self.reference_forwards + self.corrected_forwards + self.whole_row_forwards

    @property
    def updates_forwards(self) -> int:
        """All that go with updates: those without gradient, of training, and of a critic."""
        return self.unlearned_forwards + self.train_forwards + self.critic_forwards


def arithmetic(recipe: Recipe, iteration: int = 0) -> Arithmetic:
    """The arithmetic of an iteration. Rows are cut into updates and micro-batches in order, prompt by prompt."""
    return kind_of(recipe).planning.arithmetic(recipe.at(iteration), iteration)


def rows_at_once(recipe: Recipe, rows_per_prompt: int) -> int:
    """The largest number of rows in one call of a rollout: whole prompts, or a part of one."""
    train = recipe.train
    limit = train.rollout_batch or train.drawn * rows_per_prompt
    if limit < rows_per_prompt:
        return limit
    return min(limit // rows_per_prompt, train.drawn) * rows_per_prompt
