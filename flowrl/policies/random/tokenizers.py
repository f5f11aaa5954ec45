"""Small tokenizers of our own for models of random weights, with the control tokens of the published ones.

They know some hundred words and spell the others: a prompt has about as many tokens as with the published tokenizer,
and two prompts never the same ones. Control tokens have the published ids, which configs and pipelines refer to.
"""

import functools
import json
import string
from collections.abc import Callable
from typing import Any

import transformers
from tokenizers import Tokenizer as Trained
from tokenizers import models, pre_tokenizers, trainers

from flowrl.untyped import JSON, Processor, Tokenizer

WORDS = """Describe a about above across action after against all along also alter an and angle animal animation
another any are around arrow as aspects assistant at atmosphere away back background bear beautiful because bed
before behind below beneath beside between bicycle big bird black blue board boat book both bottle bottom bowl box
bridge bright brown building bus but by cake camera car card cat center chair characters child circle city clear
clock close cloud coat color colors colour content corner could count cup dark day describe detailed detailing
details did dish do does dog door down drawing each eight empty environment equals events every explain eye face far
features field fire first fish five floor flower following footage for four fox from front fruit full game garden
generate give glass go gold good grass gray great green grey ground group had hair hand has hat have he head her
high hill his holding horse house how huge if image in input inside instruction into is it item its key kind lake
lamp large left letter light like line little location long look looks made main maintaining man many map meets
metal middle mirror modify moon more morning most mountain mountains mouth movement moves moving much name near new
next night nine no not now number object objects of off old on one only open or orange original other out outside
over painting paper park part people person photo photograph physical picture pink place plain plate please plus
portrait professional purple quantity question rain read reading red relationships requirements right river road
room round run sand scene sea seven shake shape she shine shoes shop should show showing shows side sign silver
sitting six size sky small snow soft some spatial square standing star stone street style sun system table tall
temporal ten text texture than that the their them then there these they thing think this three through time to top
toy train tree triangle two under up user very video view visual walking wall was water way we wearing were what
when where which while white who wide will wind window with without woman wood wooden word world would write yellow
yes you young your zero zoom"""
CHAT = (
    "{% for m in messages %}<|im_start|>{{ m['role'] }}\n"
    "{% if m['content'] is string %}{{ m['content'] }}{% else %}{% for c in m['content'] %}"
    "{% if c['type'] == 'text' %}{{ c['text'] }}{% elif c['type'] == 'video' %}"
    "<|vision_start|><|video_pad|><|vision_end|>{% elif c['type'] == 'image' %}"
    "<|vision_start|><|image_pad|><|vision_end|>{% endif %}{% endfor %}{% endif %}<|im_end|>\n{% endfor %}"
    "{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
)
_QWEN = {
    "<|endoftext|>": 151643,
    "<|im_start|>": 151644,
    "<|im_end|>": 151645,
    "<|vision_start|>": 151652,
    "<|vision_end|>": 151653,
    "<|vision_pad|>": 151654,
    "<|image_pad|>": 151655,
    "<|video_pad|>": 151656,
}
_LLAMA = {
    "<|begin_of_text|>": 128000,
    "<|end_of_text|>": 128001,
    "<|start_header_id|>": 128006,
    "<|end_header_id|>": 128007,
    "<|eot_id|>": 128009,
    "<pad>": 128258,
}
_MISTRAL = {"<unk>": 0, "<s>": 1, "</s>": 2, "[INST]": 3, "[/INST]": 4, "<pad>": 11, "[SYSTEM_PROMPT]": 17}
_GEMMA = {"<pad>": 0, "<eos>": 1, "<bos>": 2, "<unk>": 3}
_FIRST = 256  # ids below are those of control tokens


def byte_level(control: dict[str, int], pad: str, end: str, *, length: int, begin: str | None = None) -> Tokenizer:
    """A byte-level tokenizer with these control tokens; length: the longest text."""
    vocabulary, merges = _merges(None)
    whole = {token: _FIRST + number for token, number in vocabulary.items()} | control
    named: dict[str, Any] = {"unk_token": None, "pad_token": pad, "eos_token": end, "bos_token": begin}
    made = transformers.Qwen2Tokenizer(
        vocab=whole, merges=merges, chat_template=CHAT, model_max_length=length, padding_side="right", **named
    )
    made.add_special_tokens({"additional_special_tokens": [token for token in control if token not in (pad, end)]})
    return made


def clip() -> Tokenizer:
    """CLIP's: 77 tokens, of which the first begins the text and the last ends it."""
    vocabulary, merges = _merges("</w>")
    ends = {"<|startoftext|>": 49406, "<|endoftext|>": 49407}
    return transformers.CLIPTokenizer(vocab=vocabulary | ends, merges=merges, model_max_length=77)


def t5() -> Tokenizer:
    """T5's: whole words, other texts letter by letter."""
    pieces = ["▁", *string.ascii_letters, *string.digits, *string.punctuation]
    scores = [(f"▁{word}", -3.0) for word in WORDS.split()] + [(piece, -10.0) for piece in pieces]
    vocabulary = [("<pad>", 0.0), ("</s>", 0.0), ("<unk>", 0.0), *scores]
    return transformers.T5Tokenizer(vocab=vocabulary, extra_ids=0, model_max_length=512)


def _qwen() -> Tokenizer:
    return byte_level(_QWEN, "<|endoftext|>", "<|im_end|>", length=32768)


# class in a pipeline's index, without "Fast" -> one of our own
TOKENIZERS: dict[str, Callable[[], Tokenizer]] = {
    "CLIPTokenizer": clip,
    "T5Tokenizer": t5,
    "Qwen2Tokenizer": _qwen,
    "LlamaTokenizer": lambda: byte_level(_LLAMA, "<pad>", "<|eot_id|>", length=8192, begin="<|begin_of_text|>"),
    "PixtralProcessor": lambda: byte_level(_MISTRAL, "<pad>", "</s>", length=8192, begin="<s>"),
    "GemmaTokenizer": lambda: byte_level(_GEMMA, "<pad>", "<eos>", length=8192, begin="<bos>"),
}


def qwen_vl_processor(**arguments: JSON) -> Processor:
    """The processor of Qwen2-VL and Qwen2.5-VL; arguments: of its part for pictures."""
    return transformers.Qwen2VLProcessor(
        image_processor=transformers.Qwen2VLImageProcessor(**arguments),
        tokenizer=_qwen(),
        video_processor=transformers.Qwen2VLVideoProcessor(),
        chat_template=CHAT,
    )


@functools.cache
def _merges(suffix: str | None) -> tuple[dict[str, int], Any]:
    """Vocabulary and merges by which each word is one token, alone and behind a space, and all bytes are known."""
    words, level = WORDS.split(), pre_tokenizers.ByteLevel(add_prefix_space=False)
    ends: dict[str, Any] = {} if suffix is None else {"end_of_word_suffix": suffix}
    trained = Trained(models.BPE(**ends))
    trained.pre_tokenizer = level if suffix is None else pre_tokenizers.Whitespace()
    letters = sorted(pre_tokenizers.ByteLevel.alphabet())
    trainer = trainers.BpeTrainer(
        vocab_size=6000, min_frequency=1, initial_alphabet=letters, show_progress=False, **ends
    )
    trained.train_from_iterator(words if suffix is not None else [*words, *(f" {word}" for word in words)], trainer)
    model = json.loads(trained.to_str())["model"]
    vocabulary: dict[str, int] = model["vocab"]
    if suffix is not None:
        missing = [f"{letter}{suffix}" for letter in letters if f"{letter}{suffix}" not in vocabulary]
        vocabulary |= {token: len(vocabulary) + number for number, token in enumerate(missing)}
    return vocabulary, [tuple(pair) for pair in model["merges"]]
