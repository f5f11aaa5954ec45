"""Tokenizers of the shapes pipeline, made from its vocabulary alone: a CLIP-style BPE and a T5-style unigram model.

Words of the world are one token each; any other text falls back on pieces and characters, so no caption is refused.
"""

import itertools
import json
import string

from tokenizers import Tokenizer, models, pre_tokenizers, trainers
from transformers import CLIPTokenizer, T5TokenizerFast

from flowrl.worlds.shapes.captions import split

MAX_LENGTH = 16
_EXTRA_WORDS = "the of on in under next to with an one five big small picture photo image orange pink white".split()


def words() -> list[str]:
    """Every word of every caption, sorted, and a few neighbours that users will try."""
    train, heldout = split()
    scenes = itertools.chain(*train.values(), *heldout.values())
    return sorted({word for scene in scenes for word in scene.caption.split()} | set(_EXTRA_WORDS))


def clip_tokenizer() -> CLIPTokenizer:
    """A byte-pair tokenizer in CLIP's format: lower case, end-of-word marks, the two special tokens last."""
    alphabet = list(string.ascii_lowercase + string.digits + ",.-'!?")
    raw = Tokenizer(models.BPE(end_of_word_suffix="</w>", unk_token="<|endoftext|>", continuing_subword_prefix=""))
    raw.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    trainer = trainers.BpeTrainer(
        vocab_size=2000, end_of_word_suffix="</w>", initial_alphabet=alphabet, limit_alphabet=100, show_progress=False
    )
    raw.train_from_iterator(words() * 3, trainer)
    model = json.loads(raw.to_str())["model"]
    vocab = model["vocab"]
    for token in [a + end for a in alphabet for end in ("", "</w>")] + ["<|startoftext|>", "<|endoftext|>"]:
        vocab.setdefault(token, len(vocab))
    merges = [tuple(m.split(" ")) if isinstance(m, str) else tuple(m) for m in model["merges"]]
    return CLIPTokenizer(vocab=vocab, merges=merges, model_max_length=MAX_LENGTH)


def t5_tokenizer() -> T5TokenizerFast:
    """A unigram tokenizer in T5's format: whole words are likelier than the characters that spell them."""
    special = [("<pad>", 0.0), ("</s>", 0.0), ("<unk>", 0.0), ("▁", -4.0)]
    whole = [("▁" + word, -2.0) for word in words()]
    characters = [(chr(c), -6.0) for c in range(33, 127)]
    return T5TokenizerFast(vocab=special + whole + characters, extra_ids=0, model_max_length=MAX_LENGTH)
