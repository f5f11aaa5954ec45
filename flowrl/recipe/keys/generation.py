"""The keys of how a language model's completions are drawn."""

from typing import Literal

from flowrl.recipe.base import Strict, key
from flowrl.recipe.keys.begun import DrawAgain, Force, TokenTree
from flowrl.untyped import JSON


class GenerationKeys(Strict):
    """How a language model's completions are drawn. max_new_tokens: where one that has not ended is cut off.

    top_k, top_p, min_p: draw from the likeliest tokens only; repetition_penalty lowers what was said before; they are
    scored without all that (samplers/tokens.py). stop: texts that end a completion, and stay in it. chat_template: auto
    uses the tokenizer's where it has one; chat_arguments go to it ({enable_thinking: false} of Qwen3). system: the
    system message of chats that have none. processor: what the processor of a model of pictures or sounds is loaded
    with ({max_pixels: 401408} or {fps: 2} of Qwen's), in place of what its folder says. tree: completions that share
    their first tokens; again: what is drawn once completions have been scored; force: a text at the end of long ones
    (see recipe/keys/begun.py); partial: an iteration draws at most so many tokens of a completion, which goes on in the
    next. These four are of training; evaluations draw plainly.
    """

    max_new_tokens: int = key(..., "a whole number >= 1", ge=1)
    temperature: float = key(1.0, "a number > 0 (eval.temperature may be 0)", gt=0, curve=True)
    top_k: int | None = key(None, "a whole number >= 1 or null", ge=1)
    top_p: float = key(1.0, "a number in (0, 1]", gt=0, le=1)
    min_p: float = key(0.0, "a number in [0, 1]", ge=0, le=1)
    repetition_penalty: float = key(1.0, "a number > 0", gt=0)
    stop: list[str] = key([], "a list of texts")
    chat_template: Literal["auto"] | bool = key("auto", "auto, true or false")
    chat_arguments: dict[str, JSON] = key({}, "a mapping of argument names to values")
    processor: dict[str, JSON] = key({}, "a mapping of argument names to values")
    system: str | None = key(None, "a text or null", min_length=1)
    tree: TokenTree | None = key(None, "a mapping with kind, or null")
    again: DrawAgain | None = key(None, "a mapping with kind, or null")
    force: Force | None = key(None, "a mapping with text and left, or null")
    partial: int | None = key(None, "a whole number >= 1 or null", ge=1)
