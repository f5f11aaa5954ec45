"""What ends a completion: tokens, and texts that it has written."""

from collections.abc import Sequence

import torch
from torch import Tensor

from flowrl.untyped import LanguageModel, Tokenizer


class Stop(tuple[int, ...]):
    """The ids of tokens that end a completion; texts: what also ends it, once it stands at the end of what was drawn.

    A text ends a completion with the token that completes it, which is kept, as what was written is.
    """

    texts: tuple[str, ...]
    tokenizer: Tokenizer | None

    def __new__(cls, ids: Sequence[int], texts: Sequence[str] = (), tokenizer: Tokenizer | None = None) -> "Stop":
        """Raises ValueError for a text without a character."""
        made = super().__new__(cls, ids)
        made.texts, made.tokenizer = tuple(texts), tokenizer
        if not all(texts):
            raise ValueError("generation.stop: got an empty text; accepted: texts of a character or more")
        return made

    def ends(self, ids: Sequence[int]) -> bool:
        """Whether a completion of these tokens, at least one, ends with the last of them."""
        return ids[-1] in self or self.written(ids)

    def written(self, ids: Sequence[int]) -> bool:
        """Whether the last of these tokens completes one of the texts."""
        if not self.texts:
            return False
        longest = max(len(text.encode()) for text in self.texts)  # a token is at least one byte
        tail = list(ids[-longest - 1 :])
        now, before = (self._read(part) for part in (tail, tail[:-1]))
        return any(text in now and text not in before for text in self.texts)

    def complete(self, tokens: Tensor, length: Tensor) -> Tensor:
        """Which completions, of the first tokens int64 [R, K] of each row, length int64 [R], have ended, bool [R]."""
        ended = torch.isin(tokens.gather(1, length[:, None] - 1)[:, 0], torch.tensor(self, dtype=torch.int64))
        if self.texts:
            rows = zip(tokens, length.tolist(), strict=True)
            ended |= torch.tensor([self.written(row[:n].tolist()) for row, n in rows])
        return ended

    def _read(self, ids: Sequence[int]) -> str:
        assert self.tokenizer is not None, "texts are written by a tokenizer"
        return self.tokenizer.decode(ids, skip_special_tokens=True, clean_up_tokenization_spaces=False)


def stop_ids(model: LanguageModel, tokenizer: Tokenizer) -> tuple[int, ...]:
    """The ids that end a completion: those of the model's generation config, else the tokenizer's, if any."""
    ids = getattr(model.generation_config, "eos_token_id", None)
    ids = tokenizer.eos_token_id if ids is None else ids
    if ids is None:
        return ()
    return tuple(ids) if isinstance(ids, list | tuple) else (int(ids),)
