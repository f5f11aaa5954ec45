"""A prompt as token ids, through the chat template of the tokenizer or processor if it has one."""

import contextlib
from collections.abc import Collection, Mapping, Sequence
from typing import Any

import jinja2

from flowrl.contracts import Message, Prompt
from flowrl.media.files import MARK
from flowrl.policies.errors import PolicyError
from flowrl.policies.language.media.inputs import EMPTY, Inputs
from flowrl.policies.language.media.processing import Change, placed, processed
from flowrl.untyped import JSON, Processor, Tokenizer

MAX_UNKNOWN = 0.5  # share of a prompt's tokens that a tokenizer may not know


class Encoder:
    """Encodes prompts for one tokenizer. template: "auto" (if the tokenizer has one), True or False.

    processor: of a model that reads pictures or sounds; barred: the ids that stand for them in a text.

    system: text of a system message, for chats that have none. arguments: of the template itself. stop: ids that end a
    completion; if a tokenizer ends every text with one, it is removed. Raises PolicyError for a template, or a system
    message, that the tokenizer cannot use.
    """

    def __init__(
        self,
        tokenizer: Tokenizer,
        *,
        template: bool | str = "auto",
        system: str | None = None,
        arguments: Mapping[str, JSON] | None = None,
        processor: Processor | None = None,
        barred: Sequence[int] = (),
    ):
        has_one = any(getattr(one, "chat_template", None) is not None for one in (processor, tokenizer))
        if template is True and not has_one:
            raise PolicyError(
                "generation.chat_template: got true, but the model's tokenizer has no chat template; set it to auto"
            )
        self.tokenizer, self.system, self.arguments = tokenizer, system, dict(arguments or {})
        self.processor, self.barred = processor, tuple(barred)
        self._writes_marks: bool | None = None  # whether the processor puts placeholders into a plain text itself
        self.chat = has_one if template == "auto" else bool(template)
        if system is not None and not self.chat:
            raise PolicyError("generation.system: given, but no chat template is used that it could go into; remove it")

    def __call__(self, text: str, stop: Collection[int] = (), messages: Sequence[Message] = ()) -> list[int]:
        """Token ids of one prompt: a text, or the messages of a conversation that ends with it.

        Raises PolicyError if there are none, and for a conversation without a chat template.
        """
        if messages and not self.chat:
            raise PolicyError(
                f"prompt {text!r} is a conversation of {len(messages)} messages, but no chat template is used; give a "
                "model whose tokenizer has one, or prompts of one text"
            )
        if self.chat:
            ids = self.tokenizer(self._render(text, messages), add_special_tokens=False)["input_ids"]
        else:
            ids = self.tokenizer(text)["input_ids"]
            while ids and ids[-1] in stop:
                ids = ids[:-1]
        if not ids:
            raise PolicyError(f"prompt {text!r} has no token in this model's tokenizer; change or remove the prompt")
        return list(ids)

    def row(
        self, prompt: Prompt, stop: Collection[int] = (), change: Change | None = None
    ) -> tuple[list[int], Inputs | None]:
        """(token ids, media) of a prompt; the second is None for a model that reads text alone. See `__call__`.

        change: what is done to its media before the processor (media/processing.py).

        Raises PolicyError for media that the model cannot take, or that its processor does not show it.
        """
        if self.processor is None:
            if prompt.media:
                raise PolicyError(
                    f"prompt {prompt.text!r} has pictures or sounds ({', '.join(prompt.media)[:120]}), and the model "
                    "reads text alone; give a vision-language model, or remove that column"
                )
            return self(prompt.text, stop, prompt.messages), None
        if not prompt.media:
            return self(prompt.text, stop, prompt.messages), EMPTY
        if self.chat:
            text = self._render(prompt.text, prompt.messages, prompt.media)
            begin = self.tokenizer.bos_token
            special = False if begin is not None and text.startswith(begin) else None
            return processed(self.processor, text, prompt.media, self.barred, special=special, change=change)
        if self._writes_marks is not False and not MARK.search(prompt.text):
            with contextlib.suppress(PolicyError):
                made = processed(self.processor, prompt.text, prompt.media, self.barred, change=change)
                self._writes_marks = True
                return made
        made = processed(self.processor, self._marked(prompt), prompt.media, self.barred, change=change)
        self._writes_marks = False
        return made

    def _marked(self, prompt: Prompt) -> str:
        """A prompt's text with the processor's placeholders in it, where no chat template writes them."""
        messages = placed(prompt.messages or [{"role": "user", "content": prompt.text}], prompt.media)
        parts = [part for message in messages for part in message["content"]]
        return "".join(part.get("text") or str(getattr(self.processor, f"{part['type']}_token", "")) for part in parts)

    @property
    def writer(self) -> Tokenizer | Processor:
        """What applies the chat template: the processor, where it has one."""
        return self.processor if getattr(self.processor, "chat_template", None) is not None else self.tokenizer

    def shows_arguments(self) -> bool:
        """Whether the template writes a chat otherwise with its arguments than without."""
        options = {"system": self.system, "processor": self.processor, "barred": self.barred}
        without = Encoder(self.tokenizer, template=self.chat, **options)
        return self.chat and self._render("?", ()) != without._render("?", ())

    def _render(self, text: str, messages: Sequence[Message], media: Sequence[str] = ()) -> str:
        chat: list[Any] = list(messages) or [{"role": "user", "content": text}]
        if self.system is not None and chat[0]["role"] != "system":
            chat.insert(0, {"role": "system", "content": self.system})
        if self.processor is None:
            return self._templated(self.tokenizer, chat, text)
        template = self.writer
        shown = self._templated(template, placed(chat, media), text)
        said = MARK.split(text)[-1].strip() if media else text.strip()
        if said in shown and "'type'" not in shown:
            return shown
        if media:
            raise PolicyError(
                f"the chat template does not show the prompt {text!r} with its files ({', '.join(media)[:160]}); give "
                "a model whose template takes pictures, or set generation.chat_template=false"
            )
        return self._templated(template, chat, text)  # a template that takes contents as texts alone

    def _templated(self, template: Tokenizer | Processor, chat: Sequence[Mapping[str, JSON]], text: str) -> str:
        how = {"tokenize": False, "add_generation_prompt": True} | self.arguments
        try:
            return template.apply_chat_template(chat, **how)
        except (jinja2.TemplateError, TypeError) as error:
            reason = " ".join(str(error).split())
            raise PolicyError(
                f"the chat template refuses the prompt {text!r} ({reason}); set generation.chat_template=false or "
                "remove generation.system"
            ) from error


def check_tokens(tokenizer: Tokenizer, text: str) -> None:
    """Raises PolicyError if a text gives no tokens, or mostly unknown ones: the tokenizer loaded as another class."""
    ids = tokenizer(text, add_special_tokens=False).input_ids
    unknown = sum(i == tokenizer.unk_token_id for i in ids)
    if not ids or unknown > MAX_UNKNOWN * len(ids):
        what = f"{unknown} of {len(ids)} unknown tokens" if ids else "no token at all"
        raise PolicyError(
            f"the tokenizer, loaded as a {type(tokenizer).__name__}, makes {what} of {text[:60]!r}: not the one this "
            "model was trained with; name its class in tokenizer_config.json (tokenizer_class), or give another model"
        )
