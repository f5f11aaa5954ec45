"""The tokens that a chat template adds for what a model is shown: what follows an answer in its place.

An answer that stands for the model's is put into a chat, what the model is shown behind it, and the template writes
both. Everything behind the answer is what the model has to be given: the end of its turn, the separator, the message,
and the begin of its next turn. What it drew is never written again. Where a tokenizer has no template, a frame of the
recipe's stands in its place.
"""

from collections.abc import Collection, Mapping, Sequence
from typing import Any

import jinja2

from flowrl.contracts import Shown
from flowrl.names import UserError
from flowrl.untyped import JSON, Processor, Tokenizer

ANSWER, OTHER, PROBE = "zqanswerqz", "zqotherqz", "zqshownqz"  # words that no template says
ROLES = ("tool", "user")
REMEDY = (
    "give environment.frame, a text with {text} in it that takes its place, or a model whose template has one of them"
)


class Observations:
    """Writes messages as one tokenizer's template does, in the role that it is exact in.

    role: tool, user, or None for the first of both. arguments: of the template. system: text of a system message.
    frame: a text with {text} in it, in place of any template. writer: what applies the template, where it is not the
    tokenizer, and then shows pictures too. Raises UserError where the template is exact in neither
    role, or has none and there is no frame.
    """

    def __init__(
        self,
        tokenizer: Tokenizer,
        *,
        role: str | None = None,
        arguments: Mapping[str, JSON] | None = None,
        system: str | None = None,
        frame: str | None = None,
        writer: Tokenizer | Processor | None = None,
    ):
        self.tokenizer, self.arguments, self.system, self.frame = tokenizer, dict(arguments or {}), system, frame
        self.role, self.parts, self.sees = "user", False, writer is not None
        self.writer = tokenizer if writer is None else writer
        if frame is not None:
            return
        if getattr(self.writer, "chat_template", None) is None:
            raise UserError(
                "environment: the model's tokenizer has no chat template that could say how it is shown something; "
                "give environment.frame, a text with {text} in it"
            )
        reasons: dict[str, str] = {}
        kinds = (True,) if self.sees else (False, True)  # texts as they are, or as lists of parts
        for self.role in ROLES if role is None else (role,):
            for self.parts in kinds:
                if (wrong := self._inexact()) is None:
                    return
                reasons.setdefault(self.role, wrong)
        told = "; ".join(f"as {role}: {wrong}" for role, wrong in reasons.items())
        raise UserError(
            f"environment: the chat template cannot show the model something behind its answer ({told}); {REMEDY}"
        )

    def ids(self, messages: Sequence[Shown], last: int | None = None, stop: Collection[int] = ()) -> list[int]:
        """The tokens behind an answer whose last token is `last`, which is not said twice where it ended the turn.

        stop: the tokens that end a turn.
        """
        if self.frame is not None:
            text = self.frame.replace("{text}", "\n".join(message.text for message in messages))
            return list(self.tokenizer(text, add_special_tokens=False)["input_ids"])
        ids = self._encoded(self.suffix(messages))
        return ids[1:] if last in stop and ids and ids[0] in stop else ids

    def suffix(self, messages: Sequence[Shown], before: Sequence[str] = ()) -> str:
        """The text behind an answer. before: earlier answers of the chat, each with something shown behind it.

        Raises jinja2.TemplateError where the template refuses it, ValueError where it does not write the answer.
        """
        chat: list[dict[str, Any]] = [{"role": "user", "content": self._content("?")}]
        if self.system is not None:
            chat.insert(0, {"role": "system", "content": self._content(self.system)})
        for answer in before:
            chat += [{"role": "assistant", "content": self._content(answer)}, *self._messages([Shown("-")])]
        chat += [{"role": "assistant", "content": self._content(ANSWER)}, *self._messages(messages)]
        how = {"tokenize": False, "add_generation_prompt": True} | self.arguments
        text = self.writer.apply_chat_template(chat, **how)
        return text[text.rindex(ANSWER) + len(ANSWER) :]

    def _messages(self, messages: Sequence[Shown]) -> list[dict[str, Any]]:
        if self.role == "tool" and all(message.role == "tool" for message in messages):
            named = [{} if message.name is None else {"name": message.name} for message in messages]
            return [
                {"role": "tool", "content": self._content(message.text, len(message.pictures)), **name}
                for message, name in zip(messages, named, strict=True)
            ]
        text, pictures = "\n".join(m.text for m in messages if m.text), sum(len(m.pictures) for m in messages)
        return [{"role": "user", "content": self._content(text, pictures)}]

    def _content(self, text: str, pictures: int = 0) -> str | list[dict[str, str]]:
        if not self.parts:
            return text
        return [{"type": "image"}] * pictures + ([{"type": "text", "text": text}] if text or not pictures else [])

    def _inexact(self) -> str | None:
        """Why the template does not say what is shown, in half a sentence; None where it does."""
        try:
            shown = self.suffix([Shown(PROBE, name="probe")])
            later = self.suffix([Shown(PROBE, name="probe")], before=[OTHER])
        except (jinja2.TemplateError, TypeError, ValueError, KeyError, AttributeError) as error:
            return " ".join(str(error).split())[:80] or type(error).__name__
        if shown.count(PROBE) != 1:
            return "it leaves out what is shown" if PROBE not in shown else "it says what is shown twice"
        if "'type'" in shown or '"type"' in shown:
            return "it takes no parts"
        if shown != later:
            return "it says it otherwise in a later turn"
        if self.sees and self.suffix([Shown(PROBE, (None,), name="probe")]) == shown:
            return "it leaves out pictures"
        return None

    def _encoded(self, text: str) -> list[int]:
        """The ids of a text behind an answer, as they are where both are encoded together, if the answer's stay."""
        alone, both = (self.tokenizer(t, add_special_tokens=False)["input_ids"] for t in (ANSWER, ANSWER + text))
        if list(both[: len(alone)]) == list(alone):
            return list(both[len(alone) :])
        return list(self.tokenizer(text, add_special_tokens=False)["input_ids"])
