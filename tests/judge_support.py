"""Tiny vision-language models in the file format of real ones, servers that judge with them, and servers that fail."""

import base64
import io
import json
import re
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import torch
from PIL import Image
from tokenizers import AddedToken, Tokenizer, decoders, models, pre_tokenizers
from transformers import (
    CLIPImageProcessorPil,
    CLIPVisionConfig,
    LlamaConfig,
    LlavaConfig,
    LlavaForConditionalGeneration,
    LlavaProcessor,
    PreTrainedTokenizerFast,
)

from flowrl.contracts import Prompt, Samples

SPECIAL = ["<pad>", "<eos>", "<image>", "<|system|>", "<|user|>", "<|assistant|>"]
TEMPLATE = (
    "{% for message in messages %}<|{{ message['role'] }}|>{% for part in message['content'] %}"
    "{% if part['type'] == 'image' %}<image>{% else %}{{ part['text'] }}{% endif %}{% endfor %}{% endfor %}"
    "{% if add_generation_prompt %}<|assistant|>{% endif %}"
)


def make_tokenizer(*whole: str) -> PreTrainedTokenizerFast:
    """A byte-level BPE of single bytes, the words yes and no in their spellings, and these whole texts."""
    pieces = sorted(pre_tokenizers.ByteLevel.alphabet())
    merges = [("y", "es"), ("Y", "es"), ("e", "s"), ("n", "o"), ("N", "o"), ("Ġ", "yes"), ("Ġ", "No")]
    merges.sort(key=lambda pair: len("".join(pair)))
    words = SPECIAL + pieces + ["".join(pair) for pair in merges]
    made = Tokenizer(models.BPE({word: i for i, word in enumerate(words)}, merges))
    made.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    made.decoder = decoders.ByteLevel()
    made.add_special_tokens(SPECIAL)
    made.add_tokens([AddedToken(text, normalized=False) for text in whole])
    return PreTrainedTokenizerFast(tokenizer_object=made, pad_token="<pad>", eos_token="<eos>", model_max_length=4096)


def make_vlm(folder: Path, *, says: str | None = None, seed: int = 0) -> Path:
    """A random LLaVA of two layers, saved with its processor. says: it answers with this text, whatever it is asked.

    Such a model maps each token to the next: its blocks add nothing to the embeddings.
    """
    tokenizer = make_tokenizer(*([says] if says else []))
    vision = CLIPVisionConfig(
        hidden_size=16, intermediate_size=32, num_hidden_layers=2, num_attention_heads=2, image_size=32, patch_size=16
    )
    text = LlamaConfig(
        hidden_size=32, intermediate_size=64, num_hidden_layers=2, num_attention_heads=4, num_key_value_heads=2,
        vocab_size=len(tokenizer), max_position_embeddings=4096, pad_token_id=0, bos_token_id=None, eos_token_id=1,
    )  # fmt: skip
    torch.manual_seed(seed)
    model = LlavaForConditionalGeneration(
        LlavaConfig(
            vision_config=vision, text_config=text, image_token_index=2, image_seq_length=4, vision_feature_layer=-1
        )
    ).eval()
    language = model.model.language_model
    with torch.no_grad():
        language.norm.weight.mul_(4.0)  # uneven first tokens
        if says:
            for layer in language.layers:
                layer.self_attn.o_proj.weight.zero_()
                layer.mlp.down_proj.weight.zero_()
            for now, then in (("<|assistant|>", says), (says, "<eos>")):
                at, to = (tokenizer.convert_tokens_to_ids(word) for word in (now, then))
                model.lm_head.weight[to] = language.embed_tokens.weight[at] * 100
    model.generation_config.eos_token_id, model.generation_config.pad_token_id = 1, 0
    model.save_pretrained(folder)
    pictures = CLIPImageProcessorPil(size={"shortest_edge": 32}, crop_size={"height": 32, "width": 32})
    processor = LlavaProcessor(
        pictures, tokenizer, patch_size=16, vision_feature_select_strategy="default", chat_template=TEMPLATE,
        num_additional_image_tokens=1,
    )  # fmt: skip
    processor.save_pretrained(folder)
    return folder


def load_vlm(folder: Path) -> tuple[Any, Any]:
    """(model, processor) of such a folder."""
    model = LlavaForConditionalGeneration.from_pretrained(folder).eval()
    return model, LlavaProcessor.from_pretrained(folder)


@torch.no_grad()
def first_logits(model: Any, processor: Any, pictures: list[Any], text: str, system: str | None = None) -> torch.Tensor:
    """Logits [V] of the first token of an answer, of one prompt written out by hand."""
    written = f"<|system|>{system}" if system else ""
    written += "<|user|>" + "<image>" * len(pictures) + text + "<|assistant|>"
    inputs = processor(text=[written], images=pictures, return_tensors="pt", add_special_tokens=False)
    return model(**inputs).logits[0, -1]


@contextmanager
def transformers_serve(log: Path) -> Iterator[str]:
    """The address of `transformers serve` in a process of its own; it loads the folder that a request names."""
    command = [sys.executable, "-m", "transformers.cli.transformers", "serve", "--host", "127.0.0.1", "--port", "0"]
    with log.open("wb") as out:
        process = subprocess.Popen([*command, "--device", "cpu"], stdout=out, stderr=subprocess.STDOUT)
    try:
        found, end = None, time.monotonic() + 120
        while found is None:
            found = re.search(r"running on (http://127\.0\.0\.1:\d+)", log.read_text(errors="replace"))
            assert process.poll() is None and time.monotonic() < end, log.read_text(errors="replace")
            threading.Event().wait(0.05)
        yield f"{found[1]}/v1"
    finally:
        process.terminate()
        process.wait(timeout=30)


class Handler(BaseHTTPRequestHandler):
    """Reads a request, has `reply(body, handler)` answer it: with a dict as JSON, (status, bytes), or by itself."""

    protocol_version = "HTTP/1.1"
    reply: Callable[[Any, "Handler"], Any]

    def do_POST(self) -> None:  # noqa: N802 - the library's name
        body = json.loads(self.rfile.read(int(self.headers["content-length"])))
        said = type(self).reply(body, self)
        if said is not None:
            status, content = said if isinstance(said, tuple) else (200, json.dumps(said).encode())
            self.send(status, content)

    def send(
        self, status: int, content: bytes, *, length: int | None = None, kind: str = "application/json", **headers
    ):
        self.send_response(status)
        for name, value in {"content-type": kind, "content-length": str(length or len(content)), **headers}.items():
            self.send_header(name.replace("_", "-"), value)
        self.end_headers()
        self.wfile.write(content)
        self.wfile.flush()

    def log_message(self, format: str, *args: Any) -> None:  # noqa: A002
        pass


class Quiet(ThreadingHTTPServer):
    """A server whose clients may go away without a traceback."""

    daemon_threads = True
    request_queue_size = 64

    def handle_error(self, request: Any, client_address: Any) -> None:
        pass


@contextmanager
def serving(reply: Callable[[Any, Handler], Any]) -> Iterator[str]:
    """The address of a server on loopback that answers chat completions with what `reply` says."""
    server = Quiet(("127.0.0.1", 0), type("Replying", (Handler,), {"reply": staticmethod(reply)}))
    thread = threading.Thread(target=server.serve_forever, args=(0.01,), daemon=True)
    thread.start()
    try:
        yield f"http://127.0.0.1:{server.server_port}/v1"
    finally:
        server.shutdown()
        server.server_close()
        thread.join()


def closed() -> str:
    """An address that nobody listens at."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        return f"http://127.0.0.1:{free.getsockname()[1]}/v1"


def completion(text: Any, *, top: Any = None, finish: str = "stop") -> dict[str, Any]:
    """A chat completion as servers send it; top: the likeliest first tokens with their log-probabilities."""
    choice: dict[str, Any] = {"index": 0, "message": {"role": "assistant", "content": text}, "finish_reason": finish}
    if top is not None:
        listed = [{"token": token, "logprob": logprob, "bytes": None} for token, logprob in top]
        choice["logprobs"] = {"content": [{**listed[0], "top_logprobs": listed}]}
    return {"id": "x", "object": "chat.completion", "created": 0, "model": "m", "choices": [choice]}


def pictures_in(body: Any) -> list[Image.Image]:
    """The pictures in a request, decoded."""
    urls = [part["image_url"]["url"] for part in body["messages"][-1]["content"] if part["type"] == "image_url"]
    assert all(url.startswith("data:image/png;base64,") for url in urls)
    return [Image.open(io.BytesIO(base64.b64decode(url.partition(",")[2]))) for url in urls]


def text_in(body: Any) -> str:
    """The last text in a request."""
    return body["messages"][-1]["content"][-1]["text"]


def samples(images: torch.Tensor, *captions: str, group: list[int] | None = None) -> Samples:
    """Images [B, 3, H, W] or video [B, T, 3, H, W] with these captions, or 'a red circle'."""
    number = len(images)
    prompts = [Prompt(str(i), text) for i, text in enumerate(captions or ["a red circle"] * number)]
    at = torch.tensor(group if group is not None else list(range(number)), dtype=torch.int64)
    return Samples(prompts, at, **{"images" if images.ndim == 4 else "video": images})
