"""The messages between `remote` and `flowrl serve-rewards`: samples there, scores back. Nothing is ever unpickled.

A request is POST /v1/score. Its head names version, rewards (all where none is named) and items: `prompt`, `id`,
`meta`, `group`, and of texts `text`, `length`, `truncated`. It is either JSON whose items hold an `image` or a list
`video` of 8 bit RGB PNGs in base64, or a safetensors file with one float tensor `images` [B, 3, H, W] or `video`
[B, T, 3, H, W], exact to the bit, and the head as JSON in its metadata under `flowrl`. Paths of media do not travel.

An answer is JSON: version, and a status, scores by name (null: none) and perhaps a reason for each item.
"""

import base64
import io
import json
import struct
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Literal

import torch
from PIL import Image
from pydantic import BaseModel, ConfigDict, Field, ValidationError
from torch import Tensor

from flowrl.contracts import Prompt, Samples
from flowrl.media.pictures import shape_fault
from reward_models.parts.inputs import as_pil
from reward_models.parts.remote.bounds import PNG, MalformedRequestError, measure, unpack
from reward_models.parts.remote.protocol import JSON, TENSORS, VERSION

__all__ = ["PNG", "ItemOutcome", "MalformedRequestError", "RequestLimits", "ScoreAnswer", "decode", "encode", "scores"]

KINDS = {"images": 4, "video": 5}  # tensors, and their axes
FLOATS = ("F32", "F16", "BF16")


@dataclass(frozen=True)
class RequestLimits:
    """How much one request may hold: items, and pixels of all its pictures and frames in total."""

    items: int
    pixels: int


class _Strict(BaseModel):
    model_config = ConfigDict(extra="forbid", strict=True, allow_inf_nan=False)


class Item(_Strict):
    """A sample without its tensors."""

    prompt: str
    group: int = Field(ge=-(2**63), lt=2**63)
    id: str = ""
    meta: dict[str, Any] = {}
    text: str | None = None
    image: str | None = None
    video: list[str] | None = Field(None, min_length=1)
    length: int | None = Field(None, ge=0, lt=2**63)
    truncated: bool | None = None


class Head(_Strict):
    """A request without its tensors."""

    version: Literal[1]
    items: list[Item] = Field(min_length=1)
    rewards: list[str] | None = Field(None, min_length=1)


class ItemOutcome(BaseModel):
    """The outcome of an item: the worst of the requested rewards. Only a reward that scored it has a number."""

    model_config = ConfigDict(strict=True, allow_inf_nan=False)
    status: Literal["ok", "unscored", "error"]
    scores: dict[str, float | None]
    reason: str = ""


class ScoreAnswer(BaseModel):
    """A server's answer to a request that it could read."""

    model_config = ConfigDict(strict=True)
    version: Literal[1]
    items: list[ItemOutcome]


def encode(samples: Samples, form: str, rewards: Sequence[str] | None = None) -> tuple[str, bytes]:
    """(content type, body) of a request; form is png or safetensors.

    Raises ValueError if the meta of a prompt is not JSON, and for sound; that of a video is left out.
    """
    if samples.audio is not None and samples.images is None and samples.video is None:
        raise ValueError("sound does not travel to a reward server: score it in this process")
    items = [_item(samples, i) for i in range(len(samples))]
    head: dict[str, object] = {"version": VERSION, "items": items}
    if rewards is not None:
        head["rewards"] = list(rewards)
    if form == "safetensors":
        from safetensors.torch import save

        given = {"images": samples.images, "video": samples.video}
        tensors = {name: _exact(value) for name, value in given.items() if value is not None}
        return TENSORS, save(tensors, {"flowrl": _dumps(head).decode()})
    for i, item in enumerate(items):
        if samples.images is not None:
            item["image"] = _png(samples.images[i])
        elif samples.video is not None:
            item["video"] = [_png(frame) for frame in samples.video[i]]
    return JSON, _dumps(head)


def decode(kind: str, body: bytes, limits: RequestLimits) -> tuple[Samples, list[str] | None]:
    """(samples, names of the requested rewards or None) of a request; raises MalformedRequestError for others."""
    if kind == TENSORS:
        text, tensors = _split(body)
        head = _head(text, limits)
        pixels = _load_tensors(body, tensors, len(head.items), limits)
    elif kind == JSON:
        head = _head(body, limits)
        pixels = {}
    else:
        raise MalformedRequestError(415, f"content type {kind[:80]!r}; accepted: {JSON} or {TENSORS}")
    items, budget = head.items, [limits.pixels]
    for item in items:
        if len(pixels) + sum(given is not None for given in (item.image, item.video, item.text)) != 1:
            raise MalformedRequestError(422, "an item that is not exactly one of image, video and text")
    clips = [([item.image] if item.image is not None else item.video) for item in items]
    if (held := _all_or_none(clips, "image or video")) is not None:
        pictures = _stack([_stack([_picture(data, budget) for data in clip]) for clip in held])
        still = _all_or_none([item.image for item in items], "image") is not None
        pixels |= {"images": pictures[:, 0]} if still else {"video": pictures}
    texts = _all_or_none([item.text for item in items], "text")
    lengths = _all_or_none([item.length for item in items], "length")
    truncated = _all_or_none([item.truncated for item in items], "truncated")
    samples = Samples(
        prompts=[Prompt(item.id, item.prompt, meta=item.meta) for item in items],
        group=torch.tensor([item.group for item in items], dtype=torch.int64),
        texts=texts,
        lengths=None if lengths is None else torch.tensor(lengths, dtype=torch.int64),
        truncated=None if truncated is None else torch.tensor(truncated),
        images=pixels.get("images"),
        video=pixels.get("video"),
    )
    return samples, head.rewards


def scores(body: bytes, number: int, name: str) -> list[ItemOutcome]:
    """The outcomes of `number` items, scored by the reward `name` alone. Raises ValueError for any other answer."""
    try:
        items = ScoreAnswer.model_validate_json(body).items
    except ValidationError as error:
        raise ValueError(f"an answer that is none ({_first(error)})") from None
    if len(items) != number:
        raise ValueError(f"an answer for {len(items)} items where {number} were sent")
    for item in items:
        if set(item.scores) != {name} or (item.scores[name] is None) == (item.status == "ok"):
            raise ValueError(f"an answer with status {item.status!r} and scores {str(item.scores)[:80]}")
    return items


def _item(samples: Samples, i: int) -> dict[str, object]:
    prompt = samples.prompts[i]
    item: dict[str, object] = {"prompt": prompt.text, "group": int(samples.group[i]), "id": prompt.id}
    item["meta"] = prompt.meta
    if samples.texts is not None:
        item["text"] = samples.texts[i]
    if samples.lengths is not None:
        item["length"] = int(samples.lengths[i])
    if samples.truncated is not None:
        item["truncated"] = bool(samples.truncated[i])
    return item


def _dumps(head: dict[str, object]) -> bytes:
    try:
        return json.dumps(head, ensure_ascii=False, allow_nan=False).encode()
    except (TypeError, ValueError) as error:
        raise ValueError(f"prompts cannot be sent: meta has to be JSON ({error}); correct the prompt file") from None


def _exact(pixels: Tensor) -> Tensor:
    """The tensor as a safetensors file holds it; float64 has no use that float32 has not."""
    narrow = pixels.float() if pixels.dtype not in (torch.float16, torch.bfloat16) else pixels
    return narrow.detach().cpu().contiguous()


def _png(picture: Tensor) -> str:
    """A picture [3, H, W] in [0, 1] as the base64 of a PNG."""
    buffer = io.BytesIO()
    as_pil(picture.unsqueeze(0))[0].save(buffer, format="PNG", compress_level=1)
    return base64.b64encode(buffer.getvalue()).decode()


def _head(text: bytes, limits: RequestLimits) -> Head:
    measure(text, limits.items)
    try:
        return Head.model_validate_json(text)
    except ValidationError as error:
        if any(detail["loc"][:1] == ("version",) for detail in error.errors(include_input=False, include_url=False)):
            raise MalformedRequestError(
                400, f"missing or unknown protocol version; this server speaks {VERSION}"
            ) from None
        raise MalformedRequestError(422, _first(error)) from None


def _first(error: ValidationError) -> str:
    detail = error.errors(include_input=False, include_url=False, include_context=False)[0]
    place = ".".join(map(str, detail["loc"])) or "body"
    return f"{place}: {detail['msg']}"


def _split(body: bytes) -> tuple[bytes, dict[str, dict]]:
    """(the head as JSON, what the header says of each tensor) of a safetensors file."""
    try:
        (length,) = struct.unpack_from("<Q", body)
        measure(body[8 : 8 + length])
        header = json.loads(body[8 : 8 + length])
        text = header.pop("__metadata__")["flowrl"]
        return text.encode(), {str(name): dict(value) for name, value in header.items()}
    except MalformedRequestError:
        raise
    except (struct.error, ValueError, KeyError, TypeError, AttributeError, RecursionError, OverflowError) as error:
        reason = f"no safetensors file with the metadata `flowrl` ({type(error).__name__})"
        raise MalformedRequestError(422, reason) from None


def _load_tensors(body: bytes, tensors: dict[str, dict], number: int, limits: RequestLimits) -> dict[str, Tensor]:
    """The tensors of a body, checked before they are loaded."""
    for name, told in tensors.items():
        shape, axes = told.get("shape"), KINDS.get(name)
        if axes is None or told.get("dtype") not in FLOATS or not isinstance(shape, list) or len(shape) != axes:
            raise MalformedRequestError(
                422, f"tensor {name[:40]!r}: accepted: images [B, 3, H, W] or video [B, T, 3, H, W], float"
            )
        if not all(type(n) is int and n > 0 for n in shape) or shape[0] != number or shape[-3] != 3:
            raise MalformedRequestError(422, f"{name} of shape {shape}; accepted: {number} items of RGB, none empty")
        pixels = shape[0] * shape[-1] * shape[-2] * (shape[1] if axes == 5 else 1)
        if pixels > limits.pixels:
            raise MalformedRequestError(413, f"{pixels} pixels; accepted: at most {limits.pixels} a request")
    from safetensors.torch import load

    try:
        loaded = load(body)
    except Exception as error:  # of whatever kind: the bytes are a stranger's
        raise MalformedRequestError(422, f"a damaged safetensors file ({error})") from None
    for pixels in loaded.values():
        if (wrong := shape_fault(pixels)) is not None:
            raise MalformedRequestError(422, wrong)
    return loaded


def _picture(data: str, budget: list[int]) -> Tensor:
    """A PNG as float32 [3, H, W] in [0, 1]. Its size is subtracted from the budget before a pixel is unpacked."""
    try:
        file = base64.b64decode(data, validate=True)
    except ValueError:
        raise MalformedRequestError(422, "a picture that is no base64") from None
    width, height, plain = unpack(file)
    budget[0] -= width * height
    if budget[0] < 0:
        raise MalformedRequestError(413, f"too many pixels, a picture of {width}x{height} among them")
    try:
        with Image.open(io.BytesIO(plain), formats=["PNG"]) as image:
            unpacked = bytearray(image.convert("RGB").tobytes())
        if len(unpacked) != 3 * width * height:
            raise ValueError
    except Exception as error:  # of whatever kind: the bytes are a stranger's
        raise MalformedRequestError(422, f"a damaged PNG ({type(error).__name__})") from None
    pixels = torch.frombuffer(unpacked, dtype=torch.uint8).view(height, width, 3).permute(2, 0, 1).float() / 255
    if (wrong := shape_fault(pixels[None])) is not None:
        raise MalformedRequestError(422, wrong)
    return pixels


def _all_or_none(values: list, what: str) -> list | None:
    """The values if all items have one, None if none has. Raises MalformedRequestError if only some have."""
    given = [value for value in values if value is not None]
    if given and len(given) < len(values):
        raise MalformedRequestError(422, f"some items have {what}, some do not; accepted: all or none")
    return given or None


def _stack(parts: list[Tensor]) -> Tensor:
    if len({part.shape for part in parts}) > 1:
        raise MalformedRequestError(
            422, "pictures of several sizes, or videos of several lengths; accepted: one a request"
        )
    return torch.stack(parts)
