"""The keys of a server that draws the samples of training, and what does not go along with it."""

from collections.abc import Iterator
from typing import TYPE_CHECKING, Annotated, Literal

from pydantic import Field

from flowrl.recipe.base import Strict, key
from flowrl.recipe.errors import RecipeError, show

if TYPE_CHECKING:
    from flowrl.recipe.generation import GenerationKeys
    from flowrl.recipe.schema import Recipe


Url = Annotated[str, Field(pattern=r"^https?://[^/\s]+(/\S*)?$")]


class EngineKeys(Strict):
    """A server that draws the completions of training in the place of the model; evaluations use the model itself.

    Prompts go there as token ids; token ids and log-probs come back. use: whose API the server at url speaks; url may
    be a list of several alike, which completions are spread over. model: what it calls the model (null: as the recipe
    does). weights: a folder that this machine writes and the server reads, under the same path, in which each
    iteration's weights go there (null: a temporary one, of this machine): with vllm as adapters, with sglang as a whole
    model, adapters merged into it. concurrent: requests at once, of all ranks together. timeout: seconds that one may
    take; retries: how often it is sent again where no usable answer comes. token_env: the environment variable that
    holds the server's token. Over several ranks (docs/scale.md) rank 0 brings the weights, and each rank asks for the
    completions of its own prompts.
    """

    use: Literal["vllm", "sglang"] = key(..., "vllm or sglang")
    url: Url | list[Url] = key(..., "http://HOST:PORT or https://..., or a list of such")
    model: str | None = key(None, "a text or null", min_length=1)
    weights: str | None = key(None, "a folder or null", min_length=1)
    concurrent: int = key(64, "a whole number >= 1", ge=1)
    timeout: float = key(600.0, "a number > 0", gt=0)
    retries: int = key(6, "a whole number >= 0", ge=0)
    token_env: str | None = key(None, "the name of an environment variable or null", pattern=r"^[A-Za-z_]\w*$")

    @property
    def urls(self) -> list[str]:
        """The addresses of all servers."""
        return [self.url] if isinstance(self.url, str) else self.url

    def __hash__(self) -> int:
        return hash(self.model_dump_json())


def check_engine(recipe: "Recipe", generation: "GenerationKeys") -> Iterator[RecipeError]:
    """What a server cannot draw, or cannot tell of what it drew."""
    engine = recipe.rollout.engine
    if engine is None:
        return
    place, off = "rollout.engine", "set rollout.engine=null"
    for name in ("tree", "again", "force", "partial"):
        if getattr(generation, name) is not None:
            problem = f"got {engine.use!r}, but with generation.{name} the model here draws in more than one go"
            yield RecipeError(place, problem, f"{off}, or generation.{name}=null")
    if recipe.rollout.dtype is not None:
        problem = f"got {engine.use!r} beside rollout.dtype={show(recipe.rollout.dtype)}, a copy that draws here"
        yield RecipeError(place, problem, "set rollout.dtype=null: a server's precision is its own affair")
    if engine.use == "vllm" and recipe.full:
        problem = "got 'vllm' with full: true, but it takes the weights of a run as adapters"
        yield RecipeError(f"{place}.use", problem, "train a lora, or set rollout.engine.use=sglang")
    objective, credit = recipe.objective, recipe.advantage.credit
    needs = {
        "objective.entropy_share": getattr(objective, "entropy_share", None) is not None,
        "objective.weight=inverse_entropy": getattr(objective, "weight", None) == "inverse_entropy",
        "advantage.credit=optimal_token": credit.kind == "optimal_token",
    }
    for name, wanted in needs.items():
        if wanted:
            problem = f"got {engine.use!r}, but {name} reads the distributions of drawn tokens, which no server tells"
            yield RecipeError(place, problem, off)
