"""What requests to the policy's endpoint may hold: OpenAI's fields, with vLLM's for token ids, and SGLang's generate.

A field that is not known is refused, since it would change what is drawn: nothing is ignored in silence.
"""

from typing import Any, Literal

from pydantic import BaseModel, ConfigDict, Field


class Request(BaseModel):
    """Unknown fields are refused."""

    model_config = ConfigDict(extra="forbid", allow_inf_nan=False)


class Sampling(Request):
    """How one request's completions are drawn. What is None is as the server's recipe has it."""

    model: str | None = None
    n: int = Field(1, ge=1, le=1024)
    temperature: float | None = Field(None, ge=0, le=1000)
    top_p: float | None = Field(None, gt=0, le=1)
    top_k: int | None = Field(None, ge=-1)
    min_p: float | None = Field(None, ge=0, le=1)
    repetition_penalty: float | None = Field(None, gt=0)
    seed: int | None = Field(None, ge=-(2**63), lt=2**63)
    stop: str | list[str] | None = None
    stop_token_ids: list[int] | None = None
    include_stop_str_in_output: bool = False
    skip_special_tokens: Literal[True] = True
    stream: Literal[False] | None = None
    return_token_ids: bool = False
    user: str | None = None

    @property
    def texts(self) -> list[str]:
        """The stop texts."""
        return [self.stop] if isinstance(self.stop, str) else list(self.stop or ())


class CompletionRequest(Sampling):
    """POST /v1/completions. A prompt is a text or token ids; logprobs: of the drawn tokens alone."""

    prompt: str | list[int] | list[str] | list[list[int]]
    max_tokens: int | None = Field(None, ge=1)
    logprobs: int | None = Field(None, ge=0, le=1)
    add_special_tokens: bool = True
    echo: Literal[False] | None = None


class ChatRequest(Sampling):
    """POST /v1/chat/completions. tools go into the chat template; what is called comes back as tool_calls."""

    messages: list[dict[str, Any]] = Field(min_length=1)
    max_tokens: int | None = Field(None, ge=1)
    max_completion_tokens: int | None = Field(None, ge=1)
    logprobs: bool | None = None
    top_logprobs: Literal[0] | None = None
    tools: list[dict[str, Any]] | None = None
    tool_choice: Literal["auto", "none"] | None = None
    parallel_tool_calls: Literal[True] | None = None
    chat_template_kwargs: dict[str, Any] | None = None


class GenerateParameters(Request):
    """`sampling_params` of SGLang's generate."""

    max_new_tokens: int | None = Field(None, ge=1)
    n: int = Field(1, ge=1, le=1024)
    temperature: float | None = Field(None, ge=0, le=1000)
    top_p: float | None = Field(None, gt=0, le=1)
    top_k: int | None = Field(None, ge=-1)
    min_p: float | None = Field(None, ge=0, le=1)
    repetition_penalty: float | None = Field(None, gt=0)
    stop: str | list[str] | None = None
    stop_token_ids: list[int] | None = None
    no_stop_trim: bool = False
    skip_special_tokens: Literal[True] = True
    sampling_seed: int | None = Field(None, ge=-(2**63), lt=2**63)


class GenerateRequest(Request):
    """POST /generate, as SGLang has it, of one prompt."""

    text: str | None = None
    input_ids: list[int] | None = None
    sampling_params: GenerateParameters = Field(default_factory=GenerateParameters)
    return_logprob: bool = False
    logprob_start_len: int | None = None
    stream: Literal[False] | None = None


class LoadLora(Request):
    """POST /v1/load_lora_adapter."""

    lora_name: str = Field(min_length=1, max_length=200)
    lora_path: str = Field(min_length=1)


class UnloadLora(Request):
    """POST /v1/unload_lora_adapter."""

    lora_name: str


class UpdateFromDisk(Request):
    """POST /update_weights_from_disk."""

    model_path: str = Field(min_length=1)
    weight_version: str | None = None
    load_format: str | None = None
    flush_cache: bool = True
    abort_all_requests: bool = False
