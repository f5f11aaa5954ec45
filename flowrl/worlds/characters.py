"""The tokenizer of two worlds: some pieces of text are one token each, and all else is read by its characters."""

import string
from collections.abc import Sequence

from tokenizers import AddedToken, Regex, Tokenizer, decoders, models, pre_tokenizers, processors
from transformers import PreTrainedTokenizerFast


def tokenizer_of(
    special: Sequence[str], pieces: Sequence[str], *, length: int, begins: bool = False, template: str | None = None
) -> PreTrainedTokenizerFast:
    """A token for each special one, each piece and each printable ASCII character, in this order.

    length: the most tokens of a text. begins: whether <s> is put before a text. template: of its chats.
    """
    characters = string.digits + string.ascii_letters + string.punctuation + " \n"
    vocabulary = {token: i for i, token in enumerate(dict.fromkeys([*special, *pieces, *characters]))}
    raw = Tokenizer(models.WordLevel(vocabulary, unk_token="<unk>"))
    raw.pre_tokenizer = pre_tokenizers.Split(Regex(r"[\s\S]"), "isolated")
    raw.decoder = decoders.Fuse()
    raw.add_special_tokens([AddedToken(token, special=True, normalized=False) for token in special])
    raw.add_tokens([AddedToken(token, normalized=False) for token in dict.fromkeys(pieces)])
    if begins:
        raw.post_processor = processors.TemplateProcessing(single="<s> $A", special_tokens=[("<s>", vocabulary["<s>"])])
    return PreTrainedTokenizerFast(
        tokenizer_object=raw,
        bos_token="<s>",
        eos_token="</s>",
        pad_token="<pad>",
        unk_token="<unk>",
        model_max_length=length,
        clean_up_tokenization_spaces=False,
        **({} if template is None else {"chat_template": template}),
    )
