"""A tiny random language model that talks: it says calls of tools, right and wrong ones, as single tokens."""

import os
import signal
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from PIL import Image
from transformers import PhiConfig, PhiForCausalLM

import vision_support as vision
from flowrl.contracts import Context, Environment, ModelsFault, Prompt, Said, Shown, Unavailable
from flowrl.environments.calls import Reader
from flowrl.environments.functions import Functions
from flowrl.environments.observations import Observations
from flowrl.environments.workers import Workers
from flowrl.policies.language.chat import Encoder
from flowrl.policies.language.policy import LanguagePolicy
from flowrl.policies.language.talks.conversations import Conversations
from flowrl.worlds.arithmetic.model import make_tokenizer
from samplers.tokens import Generation

PROMPTS = [Prompt("a", "12+345"), Prompt("b", "7*8"), Prompt("c", "999-11+123456")]
PLAN = Generation(320)


def call(name: str, arguments: str) -> str:
    """A call as a model writes it."""
    return f'<tool_call>{{"name": "{name}", "arguments": {arguments}}}</tool_call>'


CALLS = [
    call("add", '{"a": 1, "b": 2}'),
    call("add", '{"a": 30, "b": 4}'),
    call("add", '{"a": "one", "b": 2}'),  # of a wrong type
    call("fall", "{}"),  # a tool that is not there
    call("sulk", '{"why": "no"}'),  # a fault of the model's that the tool tells it
    "<tool_call>{nothing}</tool_call>",
]
# a template that names the tools and has messages of them, with a separator behind each turn
TEMPLATE = (
    "{{ bos_token }}{% if tools %}{% for tool in tools %}{{ '[' + tool.function.name + ']' }}{% endfor %}{% endif %}"
    "{% for message in messages %}{{ '<|' + ('user' if message.role == 'user' else 'assistant' if message.role == "
    "'assistant' else 'tool') + '|>' + message.content }}{% if message.role == 'assistant' %}{{ eos_token }}"
    "{% endif %}{{ '\\n' }}{% endfor %}{% if add_generation_prompt %}{{ '<|assistant|>' }}{% endif %}"
)


def add(a: int, b: int) -> int:
    """Adds two numbers.

    Args:
        a: the first
        b: the second
    """
    return a + b


class Counted:
    """A tool that writes down its calls, and kills the process at one of them."""

    name = "add"

    def __init__(self, path: str, last: int):
        self.path, self.last = Path(path), last

    def __call__(self, a: int, b: int) -> int:
        """Adds two numbers.

        Args:
            a: the first
            b: the second
        """
        with self.path.open("a") as file:
            file.write("x")
        if self.path.stat().st_size == self.last:
            os.kill(os.getpid(), signal.SIGKILL)
        return a + b


def shaky(context: Context, a: int, b: int) -> int:
    """Adds two numbers, but fails in one conversation of twenty, and hangs in one of a hundred, at its second call.

    Args:
        a: the first
        b: the second
    """
    number = context.state["calls"] = context.state.get("calls", 0) + 1
    chance = int(context.prompt.id) % 100
    if number == 2 and chance == 50:
        time.sleep(1e6)
    if number == 2 and chance % 20 == 7:
        raise OSError("no route to the host")
    return a + b


class Sums:
    """A game in the form of TRL's documentation ("environment_factory"): it keeps its score in attributes."""

    def __init__(self):
        self.client = object()
        self.reward = 0.0

    def reset(self, **kwargs) -> str | None:
        """Begins anew; kwargs are the columns of the data set."""
        self.reward, self.done, self.goal = 0.0, False, kwargs["goal"]
        return f" (up to {self.goal})"

    def add(self, a: int, b: int) -> str:
        """
        Adds two numbers to the sum.

        Args:
            a: The first number
            b: The second number

        Returns:
            What the sum is now.
        """
        if self.done:
            raise ValueError("Game over.")
        self.reward += a + b
        self.done = self.reward >= self.goal
        return f"The sum is {self.reward:g}."


def sulk(why: str) -> str:
    """Refuses.

    Args:
        why: what for
    """
    raise ModelsFault(f"not {why}")


def tokenizer(template: str | None = TEMPLATE) -> Any:
    """The arithmetic world's tokenizer with the calls as tokens."""
    made = make_tokenizer()
    made.chat_template, made.model_max_length = template, 512
    made.add_tokens(CALLS)
    return made


def model(seed: int = 0, *, calls: float = 3.5, end: float = 5.0) -> Any:
    """A random model that says mostly digits, calls and the end of its turn; calls, end: how much it likes these."""
    torch.manual_seed(seed)
    told = tokenizer()
    shape: dict[str, Any] = {"hidden_size": 16, "intermediate_size": 32, "num_hidden_layers": 2}
    heads: dict[str, Any] = {"num_attention_heads": 2, "max_position_embeddings": 512}
    ends: dict[str, Any] = {"bos_token_id": 2, "eos_token_id": 3, "pad_token_id": 0}
    made = PhiForCausalLM(PhiConfig(vocab_size=len(told), **shape, **heads, **ends)).eval()
    with torch.no_grad():
        made.lm_head.weight.mul_(8)
        bias = made.lm_head.bias
        bias.fill_(-30.0)
        bias[8:18], bias[3] = 2.0, end
        bias[-len(CALLS) :] = calls
    return made


def saved(path: Path) -> Path:
    """A folder with the model and its tokenizer."""
    made = model()
    made.save_pretrained(path)
    tokenizer().save_pretrained(path)
    return path


def conversations(environment: Environment, told: Any, **options: Any) -> Conversations:
    """How a policy with this tokenizer talks to an environment."""
    schemas = list(environment.tools())
    observe = Observations(told, arguments={"tools": schemas} if schemas else {})
    workers = options.pop("workers", Workers(4, None))
    return Conversations(environment, observe, Reader(told, schemas), workers, **{"turns": 4, **options})


def policy(environment: Environment | None = None, *, made: Any = None, talk: Mapping[str, Any] = {}, **options: Any):
    """The model as a policy that talks to an environment, by default to the tools `add` and `sulk`."""
    told = tokenizer()
    subject = LanguagePolicy(model() if made is None else made, told, **options)
    environment = Functions([add, sulk]) if environment is None else environment
    subject.encode = Encoder(told, arguments={"tools": list(environment.tools()) or None})
    subject.conversations = conversations(environment, told, **talk)
    return subject


class Counting:
    """An environment that answers every turn with its number; `last` is final. outcome: how many there were."""

    def __init__(self, last: int = 3, opening: str = ""):
        self.last, self.opening = last, opening

    def tools(self) -> list[Any]:
        """None."""
        return []

    def start(self, prompt: Prompt, seed: int) -> "CountingEpisode":
        """A count from 1."""
        return CountingEpisode(self)


class CountingEpisode:
    """An episode of `Counting`."""

    def __init__(self, of: Counting):
        self.of, self.count, self.opening = of, 0, of.opening

    def step(self, said: Said) -> Shown | None:
        """The number of the turn."""
        self.count += 1
        return None if self.count == self.of.last else Shown(str(self.count))

    def outcome(self) -> dict[str, float]:
        """How many turns there were."""
        return {"turns": float(self.count)}


class Album(Counting):
    """Shows a picture behind the first turn, but to the prompt `one` a text.

    openings: the prompts of these conversations, in the order in which they are begun, end with these.
    """

    def __init__(self, openings: Sequence[str] = ()):
        super().__init__()
        self.openings = list(openings)

    def start(self, prompt: Prompt, seed: int) -> "Page":
        """A conversation about a picture."""
        made = Page(self, prompt.id == "one")
        made.opening = self.openings.pop(0) if self.openings else ""
        return made


class Page(CountingEpisode):
    """An episode of `Album`."""

    def __init__(self, of: Counting, plain: bool):
        super().__init__(of)
        self.plain = plain

    def step(self, said: Said) -> Shown | None:
        """The number of the turn, and the picture."""
        shown = super().step(said)
        return shown if shown is None or self.plain else Shown(shown.text, (Image.new("RGB", (56, 84), (9, 99, 9)),))


def seeing(folder: Path, environment: Environment, *, alone: bool = True, **options: Any) -> LanguagePolicy:
    """A model of vision_support that talks to an environment; alone: each turn of each row by itself."""
    subject = vision.policy(folder, batch_invariant=alone)
    observe = Observations(subject.tokenizer, writer=subject.encode.writer)
    reader = Reader(subject.tokenizer)
    subject.conversations = Conversations(environment, observe, reader, Workers(1), turns=3, **options)
    return subject


class Moody(Counting):
    """Counts from where the last conversation stopped."""

    def start(self, prompt: Prompt, seed: int) -> CountingEpisode:
        """Another one each time."""
        made = CountingEpisode(self)
        self.moods = getattr(self, "moods", 0) + 1
        made.count = self.moods * 100
        return made


class Failing(Counting):
    """Fails in every third conversation."""

    def __init__(self) -> None:
        super().__init__(last=2)
        self.started = 0

    def start(self, prompt: Prompt, seed: int) -> "CountingEpisode":
        """One that may fail."""
        self.started += 1
        return FailingEpisode(self) if self.started % 3 == 0 else CountingEpisode(self)


class FailingEpisode(CountingEpisode):
    """Fails at once."""

    def step(self, said: Said) -> Shown | None:
        """Never answers."""
        raise OSError("the line is dead")


class Lacking(Counting):
    """An environment that cannot be made here."""

    def __init__(self) -> None:
        raise Unavailable("no table: bring one")
