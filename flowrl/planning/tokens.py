"""A language model's part of planning: plans, costs and words of a recipe with `generation`."""

from flowrl.recipe import schema
from flowrl.recipe.schema import Recipe
from samplers.tokens import Generation


def plan(recipe: Recipe) -> Generation:
    """How the tokens of a training iteration are drawn."""
    given = _section(recipe)
    return Generation(given.max_new_tokens, given.temperature, given.top_k, given.top_p)


def eval_plan(recipe: Recipe) -> Generation:
    """How those of an evaluation are: by eval.temperature, else as in training."""
    given, heat = _section(recipe), recipe.eval.temperature
    return Generation(given.max_new_tokens, given.temperature if heat is None else heat, given.top_k, given.top_p)


def forwards(recipe: Recipe) -> dict[str, int]:
    """The costs of an iteration in token-forwards, at most.

    The exact divergence takes the reference's distributions anew in every replay: they are too large to be kept.
    """
    train, objective = recipe.train, recipe.objective
    drawn = train.prompts * train.group * _section(recipe).max_new_tokens
    passes = 1 + (train.epochs if objective.kl_kind == "exact" else 0)
    return {
        "rollout_forwards": drawn,
        "train_forwards": train.epochs * drawn,
        "reference_forwards": passes * drawn if objective.kl > 0 else 0,
    }


def lines(recipe: Recipe) -> list[str]:
    """What a dry run says about how tokens are drawn."""
    given = _section(recipe)
    chat = {"auto": "the tokenizer's chat template, where it has one", True: "the chat template", False: "no template"}
    message = "" if given.system is None else " and a system message"
    return [
        f"tokens      {words(plan(recipe))}; every one of them is trained",
        f"            {chat[given.chat_template]}{message}",
    ]


def words(plan: Generation) -> str:
    """A plan in words."""
    how = f"temperature {plan.temperature:g}" if plan.temperature else "greedy"
    cuts = [f"top {plan.top_k}"] if plan.top_k is not None else []
    cuts += [f"nucleus {plan.top_p:g}"] if plan.top_p < 1 else []
    return ", ".join([f"at most {plan.max_new_tokens} new tokens", how, *(cuts if plan.temperature else [])])


def _section(recipe: Recipe) -> schema.Generation:
    if recipe.generation is None:
        raise ValueError("the recipe has no `generation`: its decisions are denoising steps")
    return recipe.generation
