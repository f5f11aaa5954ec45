"""A prompt's text as token ids, through the tokenizer's chat template if it has one."""

from collections.abc import Collection

import jinja2

from flowrl.policies.errors import PolicyError
from flowrl.untyped import Tokenizer


class Encoder:
    """Encodes prompts for one tokenizer. template: "auto" (if the tokenizer has one), True or False.

    system: text of a system message. stop: ids that end a completion; if a tokenizer ends every text with one, it is
    removed. Raises PolicyError for a template, or a system message, that the tokenizer cannot use.
    """

    def __init__(self, tokenizer: Tokenizer, *, template: bool | str = "auto", system: str | None = None):
        has_one = getattr(tokenizer, "chat_template", None) is not None
        if template is True and not has_one:
            raise PolicyError(
                "generation.chat_template: got true, but the model's tokenizer has no chat template; set it to auto"
            )
        self.tokenizer, self.system = tokenizer, system
        self.chat = has_one if template == "auto" else bool(template)
        if system is not None and not self.chat:
            raise PolicyError("generation.system: given, but no chat template is used that it could go into; remove it")

    def __call__(self, text: str, stop: Collection[int] = ()) -> list[int]:
        """Token ids of one prompt. Raises PolicyError if there are none."""
        if self.chat:
            ids = self.tokenizer(self._render(text), add_special_tokens=False)["input_ids"]
        else:
            ids = self.tokenizer(text)["input_ids"]
            while ids and ids[-1] in stop:
                ids = ids[:-1]
        if not ids:
            raise PolicyError(f"prompt {text!r} has no token in this model's tokenizer; change or remove the prompt")
        return list(ids)

    def _render(self, text: str) -> str:
        messages = [] if self.system is None else [{"role": "system", "content": self.system}]
        messages.append({"role": "user", "content": text})
        try:
            return self.tokenizer.apply_chat_template(messages, tokenize=False, add_generation_prompt=True)
        except jinja2.TemplateError as error:
            reason = " ".join(str(error).split())
            raise PolicyError(
                f"the chat template refuses the prompt {text!r} ({reason}); set generation.chat_template=false or "
                "remove generation.system"
            ) from error
