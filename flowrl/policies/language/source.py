"""A language model as it was loaded, which writes itself."""

from dataclasses import dataclass
from pathlib import Path

from flowrl.policies import adapters
from flowrl.untyped import LanguageModel, Processor, Tokenizer


@dataclass(frozen=True)
class LanguageSource:
    """A model with its tokenizer, or with the processor that has it; it writes itself (see adapters.save)."""

    model: LanguageModel
    tokenizer: Tokenizer | Processor

    def save_weights(self, folder: Path) -> None:
        """Writes the adapters alone, for `peft.PeftModel.from_pretrained`; without any, the whole model.

        Those of further roles have folders of their own within.
        """
        if getattr(self.model, "_hf_peft_config_loaded", False):
            adapters.save_peft(self.model, folder)
            for other in adapters.other_adapters(self.model):
                adapters.save_peft(self.model, folder / other, other)
        else:
            self.model.save_pretrained(folder)
            self.tokenizer.save_pretrained(folder)
