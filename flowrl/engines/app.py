"""The HTTP side of a served policy.

OpenAI's /v1/models, /v1/completions and /v1/chat/completions, with vLLM's `return_token_ids` (token_ids of a choice,
prompt_token_ids), prompts as token ids, and its /v1/load_lora_adapter; SGLang's /generate, /get_model_info and
/update_weights_from_disk. Every answer tells the version of the weights that drew it, as `weight_version`.
"""

import hmac
import time
import uuid
from collections.abc import Callable, Sequence
from typing import Any

from fastapi import APIRouter, FastAPI, Request
from fastapi.exceptions import RequestValidationError
from fastapi.responses import JSONResponse, PlainTextResponse, Response

from flowrl.engines import protocol
from flowrl.engines.chats import chat_ids, reply
from flowrl.engines.service import Completion, PolicyService, RefusedError, plan_of
from flowrl.policies.errors import PolicyError
from flowrl.policies.language.media.inputs import Inputs

Answer = dict[str, Any]


def build_app(service: PolicyService, token: str | None = None) -> FastAPI:
    """The application. token: what requests have to carry, if anything."""
    app = FastAPI(title="flowrl serve-policy", docs_url=None, redoc_url=None, openapi_url=None)

    @app.middleware("http")
    async def authorise(request: Request, call_next: Callable[[Request], Any]) -> Response:
        scheme, _, given = request.headers.get("authorization", "").partition(" ")
        known = token is None or (scheme.lower() == "bearer" and hmac.compare_digest(given.strip(), token))
        if not known and request.url.path != "/health":
            return error_response(401, "missing or wrong token; send Authorization: Bearer TOKEN")
        return await call_next(request)

    @app.exception_handler(RefusedError)
    async def refused(request: Request, error: RefusedError) -> Response:
        return error_response(error.status, str(error))

    @app.exception_handler(PolicyError)
    async def unfit(request: Request, error: PolicyError) -> Response:
        return error_response(400, str(error))

    @app.exception_handler(RequestValidationError)
    async def invalid(request: Request, error: RequestValidationError) -> Response:
        first = error.errors()[0]
        place = ".".join(str(part) for part in first["loc"][1:])
        return error_response(400, f"{place}: {first['msg']}")

    @app.get("/health")
    def health() -> Response:
        return PlainTextResponse("")

    app.include_router(openai_routes(service))
    app.include_router(sglang_routes(service))
    return app


def openai_routes(service: PolicyService) -> APIRouter:
    """The routes of OpenAI's API, and of vLLM's beside it."""
    routes = APIRouter()

    @routes.get("/v1/models")
    def models() -> Answer:
        data = [
            {
                "id": name,
                "object": "model",
                "created": 0,
                "owned_by": "flowrl",
                "parent": None if name == service.name else service.name,
                "max_model_len": service.positions,
            }
            for name in service.names
        ]
        return {"object": "list", "data": data}

    @routes.post("/v1/completions")
    def completions(asked: protocol.CompletionRequest) -> Answer:
        choices, drawn, read, version = [], 0, 0, ""
        for ids in _prompts(service, asked):
            made, version = _draw(service, asked, ids, asked.max_tokens)
            read += len(ids)
            for one in made:
                drawn += len(one.ids)
                choices.append(_choice(service, one, len(choices), ids, asked))
        return _answer("cmpl", "text_completion", asked, service, choices, (read, drawn), version)

    @routes.post("/v1/chat/completions")
    def chat(asked: protocol.ChatRequest) -> Answer:
        tools = [] if asked.tool_choice == "none" else asked.tools or []
        ids, media = chat_ids(service, asked.messages, tools, asked.chat_template_kwargs)
        made, version = _draw(service, asked, ids, asked.max_completion_tokens or asked.max_tokens, media)
        choices = []
        for i, one in enumerate(made):
            message = reply(service, one, ids, tools)
            reason = "tool_calls" if "tool_calls" in message else one.reason
            choice: Answer = {"index": i, "message": message, "logprobs": None, "finish_reason": reason}
            choice["stop_reason"] = one.stopped_by
            if asked.logprobs:
                words = zip(_words(service, one), one.logp, strict=True)
                rows = [{"token": w, "logprob": lp, "bytes": list(w.encode()), "top_logprobs": []} for w, lp in words]
                choice["logprobs"] = {"content": rows, "refusal": None}
            choices.append(choice | ({"token_ids": one.ids} if asked.return_token_ids else {}))
        drawn = sum(len(one.ids) for one in made)
        more = {"prompt_token_ids": ids} if asked.return_token_ids else {}
        return _answer("chatcmpl", "chat.completion", asked, service, choices, (len(ids), drawn), version) | more

    @routes.post("/v1/load_lora_adapter")
    def load_lora(asked: protocol.LoadLora) -> Response:
        service.load_adapter(asked.lora_name, asked.lora_path)
        return PlainTextResponse(f"Success: LoRA adapter '{asked.lora_name}' added successfully.")

    @routes.post("/v1/unload_lora_adapter")
    def unload_lora(asked: protocol.UnloadLora) -> Response:
        service.unload_adapter(asked.lora_name)
        return PlainTextResponse(f"Success: LoRA adapter '{asked.lora_name}' removed successfully.")

    return routes


def sglang_routes(service: PolicyService) -> APIRouter:
    """The routes of SGLang's own API."""
    routes = APIRouter()

    @routes.get("/get_model_info")
    def info() -> Answer:
        return {"model_path": service.name, "is_generation": True, "weight_version": service.version}

    @routes.post("/generate")
    def generate(asked: protocol.GenerateRequest) -> Any:
        if (asked.text is None) == (asked.input_ids is None):
            raise RefusedError(400, "text: give exactly one of text and input_ids")
        how = asked.sampling_params
        text = asked.text or ""
        ids = service.policy.tokenizer(text)["input_ids"] if asked.input_ids is None else asked.input_ids
        number = service.room(ids, how.max_new_tokens)
        made, version = service.complete(
            ids,
            plan_of(how, service.plan, number),
            number=how.n,
            seed=how.sampling_seed,
            stop=[how.stop] if isinstance(how.stop, str) else how.stop or (),
            stop_ids=how.stop_token_ids or (),
            keep_stop=how.no_stop_trim,
        )
        answers = []
        for one in made:
            finish = {"type": one.reason} | ({"matched": one.stopped_by} if one.reason == "stop" else {})
            meta: Answer = {"id": uuid.uuid4().hex, "finish_reason": finish, "weight_version": version}
            meta |= {"prompt_tokens": len(ids), "completion_tokens": len(one.ids)}
            if asked.return_logprob:
                meta["output_token_logprobs"] = [[lp, i, None] for lp, i in zip(one.logp, one.ids, strict=True)]
                meta["input_token_logprobs"] = [[None, i, None] for i in ids]
            answers.append({"text": one.text, "output_ids": one.ids, "meta_info": meta})
        return answers if how.n > 1 else answers[0]

    @routes.post("/update_weights_from_disk")
    def update(asked: protocol.UpdateFromDisk) -> Answer:
        service.load_weights(asked.model_path, asked.weight_version)
        return {"success": True, "message": "Succeeded to update model weights.", "num_paused_requests": 0}

    return routes


def error_response(status: int, reason: str) -> Response:
    """An error in OpenAI's form."""
    kind = "invalid_request_error" if status < 500 else "server_error"
    return JSONResponse({"error": {"message": reason, "type": kind, "param": None, "code": status}}, status)


def _prompts(service: PolicyService, asked: protocol.CompletionRequest) -> list[list[int]]:
    """The prompts of a request as token ids."""
    given = asked.prompt
    if not given:
        raise RefusedError(400, "prompt: got no token; give at least one")
    if isinstance(given, str) or (given and isinstance(given[0], int)):
        given = [given]  # pyright: ignore[reportAssignmentType]
    tokenizer, special = service.policy.tokenizer, asked.add_special_tokens
    return [
        tokenizer(one, add_special_tokens=special)["input_ids"] if isinstance(one, str) else list(one)  # pyright: ignore
        for one in given
    ]


def _draw(
    service: PolicyService,
    asked: protocol.Sampling,
    ids: Sequence[int],
    wanted: int | None,
    media: Inputs | None = None,
) -> tuple[list[Completion], str]:
    return service.complete(
        ids,
        plan_of(asked, service.plan, service.room(ids, wanted)),
        model=asked.model,
        number=asked.n,
        seed=asked.seed,
        stop=asked.texts,
        stop_ids=asked.stop_token_ids or (),
        keep_stop=asked.include_stop_str_in_output,
        media=media,
    )


def _choice(
    service: PolicyService, one: Completion, index: int, ids: list[int], asked: protocol.CompletionRequest
) -> Answer:
    choice: Answer = {"index": index, "text": one.text, "logprobs": None, "finish_reason": one.reason}
    choice["stop_reason"] = one.stopped_by
    if asked.logprobs is not None:
        choice["logprobs"] = {"tokens": _words(service, one), "token_logprobs": one.logp, "top_logprobs": None}
    return choice | ({"token_ids": one.ids, "prompt_token_ids": ids} if asked.return_token_ids else {})


def _words(service: PolicyService, one: Completion) -> list[str]:
    return service.policy.tokenizer.batch_decode([[i] for i in one.ids], clean_up_tokenization_spaces=False)


def _answer(
    prefix: str,
    kind: str,
    asked: protocol.Sampling,
    service: PolicyService,
    choices: list[Answer],
    tokens: tuple[int, int],
    version: str,
) -> Answer:
    read, drawn = tokens
    return {
        "id": f"{prefix}-{uuid.uuid4().hex}",
        "object": kind,
        "created": int(time.time()),
        "model": asked.model or service.name,
        "choices": choices,
        "usage": {"prompt_tokens": read, "completion_tokens": drawn, "total_tokens": read + drawn},
        "weight_version": version,
    }
