"""The keys of a server that draws the samples of training."""

from typing import Annotated, Literal

from pydantic import Field

from flowrl.recipe.base import Strict, key

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
