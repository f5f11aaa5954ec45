"""How pictures and captions are shown to a judge, and what is recorded if there is no usable answer."""

import base64
import io
import math
import warnings
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, fields

import torch
from PIL import Image
from torch import Tensor

from flowrl.contracts import Samples
from flowrl.untyped import JSON
from reward_models.parts import inputs
from reward_models.parts.frames import evenly
from reward_models.parts.judge import judging
from reward_models.parts.judge.openai_client import Answer, Client, Failure, JudgeServer, ServerArguments

View = Sequence[Image.Image]  # what one sample shows: a picture, or frames of a video


def pictures_shown(reward: str, samples: Samples, frames: int | None) -> list[View | None]:
    """What each sample shows: its picture, or `frames` frames of its video, see frames.evenly (None: all).

    None for a sample with pixels that are not finite. Raises ValueError, naming the reward, for samples other than
    images and video.
    """
    pixels = inputs.frames(reward, samples)
    picked = pixels[:, evenly(pixels.shape[1], frames)]
    broken = inputs.is_unscorable(pixels).tolist()
    return [None if bad else inputs.as_pil(clip) for bad, clip in zip(broken, picked, strict=True)]


def data_url(picture: Image.Image, max_side: int | None = None) -> str:
    """The picture as a PNG in a data URL: lossless, since JPEG artefacts would change the score.

    max_side: a larger picture is first scaled down to this many pixels on its longer side.
    """
    if max_side is not None and max(picture.size) > max_side:
        scale = max_side / max(picture.size)
        size = (max(1, round(picture.width * scale)), max(1, round(picture.height * scale)))
        picture = picture.resize(size, Image.Resampling.LANCZOS)
    buffer = io.BytesIO()
    picture.save(buffer, format="PNG", compress_level=1)
    return "data:image/png;base64," + base64.b64encode(buffer.getvalue()).decode()


def messages(system: str | None, *content: str | Mapping[str, JSON]) -> list[dict[str, JSON]]:
    """A chat with one user message: texts, and parts that are passed on as they are. system: None for none.

    The system message is plain text, which every server accepts.
    """
    parts = [{"type": "text", "text": part} if isinstance(part, str) else dict(part) for part in content]
    head = [] if system is None else [{"role": "system", "content": system}]
    return [*head, {"role": "user", "content": parts}]


def image_part(url: str) -> dict[str, JSON]:
    """The part of a message that shows a picture."""
    return {"type": "image_url", "image_url": {"url": url}}


@dataclass(kw_only=True, eq=False)
class Asking:
    """What all judges share; its fields are arguments of each.

    guard: a system message says what is data. refuse_orders: nothing is asked about a text that tells the judge what to
    say. failures: number of questions without a usable answer so far, by kind of reason.
    """

    guard: bool = True
    refuse_orders: bool = True

    def __post_init__(self) -> None:
        self.name = type(self).__name__
        self.system = judging.GUARD if self.guard else None
        self.failures: Counter[str] = Counter()

    def note_missing(self, kind: str, reason: str) -> float:
        """NaN; records the reason, and warns the first time."""
        self.failures[kind] += 1
        if self.failures[kind] == 1:
            warnings.warn(f"{self.name}: a question is not scored: {kind}: {reason}", stacklevel=4)
        return math.nan


@dataclass(kw_only=True, eq=False)
class Judge(Asking):
    """The base of judges of pictures; its fields are arguments of each.

    frames: how many frames of a video are shown (None: all).
    """

    frames: int | None = 8

    def __post_init__(self) -> None:
        super().__post_init__()
        frames = self.frames
        if frames is not None and (isinstance(frames, bool) or not isinstance(frames, int) or frames < 1):
            raise ValueError(f"{self.name}: frames={frames!r}; accepted is 1 or more, or null for all of a video")

    def views(self, samples: Samples) -> list[View | None]:
        """What each sample shows; None, and recorded, if its caption gives the judge orders that are refused."""
        views = pictures_shown(self.name, samples, self.frames)
        for i, prompt in enumerate(samples.prompts):
            if self.refuse_orders and judging.gives_orders(prompt.text):
                views[i] = None
                text = f"{prompt.text!r:.200} would tell the judge what to say; refuse_orders: false asks anyway"
                self.note_missing("the caption gives orders", text)
        return views


@dataclass(kw_only=True, eq=False)
class AsksServer(Asking, ServerArguments):
    """A judge behind a server.

    max_tokens: of an answer. extra_body: further fields of a request.
    """

    max_tokens: int = 512
    extra_body: Mapping[str, JSON] | None = None

    def __post_init__(self) -> None:
        arguments = {field.name: getattr(self, field.name) for field in fields(ServerArguments)}
        server = JudgeServer(reward=type(self).__name__, **arguments)
        super().__post_init__()
        check_count(self.name, "max_tokens", self.max_tokens)
        self._client = Client(server)

    def ask(self, bodies: Sequence[Mapping[str, JSON]], score: Callable[[Answer], float | str]) -> list[float]:
        """The score of the answer to each request; NaN, with the reason recorded, if there is none.

        score returns a text "kind: what to do" if an answer cannot be used.
        """
        common: dict[str, JSON] = {"max_completion_tokens": self.max_tokens}
        common |= {"extra_body": dict(self.extra_body)} if self.extra_body else {}
        scores = []
        for outcome in self._client.ask([common | dict(body) for body in bodies]):
            if isinstance(outcome, Failure):
                scores.append(self.note_missing(outcome.kind, outcome.reason))
                continue
            value = score(outcome)
            if isinstance(value, str):
                kind, _, more = value.partition(": ")
                value = self.note_missing(kind, more)
            elif math.isnan(value):
                value = self.note_missing("the answer is no score", f"{outcome.text!r:.200}")
            scores.append(value)
        return scores


@dataclass(kw_only=True, eq=False)
class ServerJudge(AsksServer, Judge):
    """A judge of pictures behind a server.

    max_side: a larger picture is scaled down to this many pixels on its longer side.
    """

    max_side: int | None = None

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.max_side is not None:
            check_count(self.name, "max_side", self.max_side)

    def urls(self, pictures: View) -> list[str]:
        """The pictures as data URLs."""
        return [data_url(picture, self.max_side) for picture in pictures]


def check_count(reward: str, name: str, value: object) -> None:
    """Raises ValueError for an argument that is no whole number of 1 or more."""
    if not isinstance(value, int) or value < 1:
        raise ValueError(f"{reward}: {name}={value!r}; accepted is 1 or more")


def scatter(values: Sequence[float], at: Sequence[int], number: int) -> Tensor:
    """Float32 [number] with values[k] at position at[k] and NaN elsewhere."""
    scores = torch.full((number,), math.nan)
    scores[list(at)] = torch.tensor(list(values), dtype=torch.float32)
    return scores
