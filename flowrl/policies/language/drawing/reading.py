"""Rows that a causal language model has read, and how it reads on: with a key-value cache, or all again for each token.

Models that take no cache, and those that ask for a row's pictures with each of its tokens, are read anew: a token then
costs what all before it cost.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from weakref import WeakKeyDictionary

import torch
from torch import Tensor
from transformers import DynamicCache

from flowrl.policies.language.drawing.forwards import Then, beside, cache_argument, forward, left_padded
from flowrl.policies.language.drawing.prefixes import Prefix, cache_of, joined, prefix_of, select
from flowrl.policies.language.media.inputs import Inputs
from flowrl.untyped import LanguageModel

GOING_ON: "WeakKeyDictionary[LanguageModel, bool]" = WeakKeyDictionary()  # models, whether a cache holds their media
ASKED = (ValueError, TypeError)  # what models raise that ask for their media with every token


@dataclass
class Reading:
    """Rows whose contexts have been read: logits [R, V] of their next token, attention [R, N] of the cache.

    then: what goes beside that token where the model reads pictures; others count positions from what attention shows.
    cache: None where the model reads all again for each token: it takes no cache, or asks for its media each time.
    """

    logits: Tensor
    attention: Tensor
    cache: DynamicCache | None
    contexts: Sequence[Sequence[int]]
    then: Then | None = None
    inputs: Sequence[Inputs] | None = None
    pad: int = 0

    def select(self, index: Tensor) -> None:
        """Goes on with these rows, int64, some of them more than once."""
        self.logits = self.logits[index]
        self.keep(index)

    def keep(self, index: Tensor) -> None:
        """The same of what the next forward needs."""
        self.attention = self.attention[index]
        own = index.tolist()
        self.contexts = [self.contexts[i] for i in own]
        self.inputs = None if self.inputs is None else [self.inputs[i] for i in own]
        if self.cache is not None:
            select(self.cache, index)
        if self.then is not None:
            self.then = self.then.keep(index)

    def join(self, fresh: "Reading") -> None:
        """Takes the rows of another reading behind its own, both padded on the left; see `prefixes.joined`."""
        if self.cache is None or fresh.cache is None:
            self.attention = self.attention.new_ones(len(self.contexts) + len(fresh.contexts), 1)
        else:
            self.attention = joined(self.cache, self.attention, fresh.cache, fresh.attention)
        self.inputs = None if self.inputs is None else [*self.inputs, *(fresh.inputs or ())]
        self.logits, self.contexts = torch.cat([self.logits, fresh.logits]), [*self.contexts, *fresh.contexts]
        if self.then is not None and fresh.then is not None:
            self.then = self.then.join(fresh.then)

    def prefix(self, row: int) -> Prefix | None:
        """Keys and values of one row, as far as the cache has read it; None where it does not hold every token."""
        return prefix_of(self.cache, row, self.attention[row])

    def step(self, model: LanguageModel, token: Tensor) -> None:
        """Reads one further token int64 [R] of each row."""
        if self.cache is None or not self._gone_on(model, token):
            contexts = [[*ids, one] for ids, one in zip(self.contexts, token.tolist(), strict=True)]
            fresh = read(model, contexts, pad=self.pad, inputs=self.inputs)
            self.logits, self.attention, self.cache = fresh.logits, fresh.attention, fresh.cache
            self.contexts, self.then = fresh.contexts, fresh.then

    def _gone_on(self, model: LanguageModel, token: Tensor) -> bool:
        """Whether the model read the token beside its cache; it is tried with the first that stands behind media."""
        self.attention = torch.cat([self.attention, self.attention.new_ones(len(token), 1)], 1)
        shown = None if self.then is None else self.then.following()
        try:
            self.logits = forward(model, token[:, None], self.attention, 1, self.cache, shown)[:, 0]
        except ASKED:
            read_before = [len(ids) + 1 for ids in self.contexts] == self.attention.sum(1).tolist()
            if not any(self.inputs or ()) or GOING_ON.get(model) or not read_before:
                raise
            GOING_ON[model] = False
            return False
        if any(self.inputs or ()):
            GOING_ON[model] = True
        self.then = None if shown is None else shown.then
        return True


@torch.no_grad()
def read(
    model: LanguageModel,
    contexts: Sequence[Sequence[int]],
    *,
    pad: int,
    prefixes: Sequence[Prefix | None] = (),
    inputs: Sequence[Inputs] | None = None,
) -> Reading:
    """The contexts, read in one forward. prefixes: what is known of each, which then is not computed again.

    inputs: the media of each; None for a model that reads text alone. A prefix that ends before the last of them is
    not used.
    """
    if inputs is not None and prefixes:
        prefixes = [p if p is None or len(p) >= own.end else None for p, own in zip(prefixes, inputs, strict=True)]
    ids, attention = left_padded(contexts, pad, model.device)
    shown = beside(model, contexts, inputs, attention)
    if not any(prefix is not None for prefix in prefixes):
        cached = cache_argument(model) is not None and (GOING_ON.get(model) is not False or not any(inputs or ()))
        cache = DynamicCache(config=model.config) if cached else None
    else:
        cache, known = cache_of(model, prefixes)
        left = [list(ids[0 if p is None else len(p) :]) for ids, p in zip(contexts, prefixes, strict=True)]
        ids, attention = left_padded(left, pad, model.device)
        attention = torch.cat([known, attention], 1)
        if shown is not None and inputs is not None:
            unread = [own for own, p in zip(inputs, prefixes, strict=True) if p is None]
            shown = shown.last(ids.shape[1], unread, model.device, model.dtype)
    logits = forward(model, ids, attention, 1, cache, shown)[:, 0]
    return Reading(logits, attention, cache, contexts, None if shown is None else shown.then, inputs, pad)
