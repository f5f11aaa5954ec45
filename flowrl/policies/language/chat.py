"""A prompt's text as token ids, through the tokenizer's chat template if it has one."""

from collections.abc import Collection, Mapping, Sequence

import jinja2

from flowrl.contracts import Message
from flowrl.policies.errors import PolicyError
from flowrl.untyped import JSON, Tokenizer

MAX_UNKNOWN = 0.5  # share of a prompt's tokens that a tokenizer may not know


class Encoder:
    """Encodes prompts for one tokenizer. template: "auto" (if the tokenizer has one), True or False.

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
    ):
        has_one = getattr(tokenizer, "chat_template", None) is not None
        if template is True and not has_one:
            raise PolicyError(
                "generation.chat_template: got true, but the model's tokenizer has no chat template; set it to auto"
            )
        self.tokenizer, self.system, self.arguments = tokenizer, system, dict(arguments or {})
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

    def _render(self, text: str, messages: Sequence[Message]) -> str:
        chat = list(messages) or [{"role": "user", "content": text}]
        if self.system is not None and chat[0]["role"] != "system":
            chat.insert(0, {"role": "system", "content": self.system})
        how = {"tokenize": False, "add_generation_prompt": True} | self.arguments
        try:
            return self.tokenizer.apply_chat_template(chat, **how)
        except jinja2.TemplateError as error:
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
