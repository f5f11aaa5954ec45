"""The tokenizer, the processor and the untrained model of shapes-look: a LLaVA that sees 32 x 32 pixels."""

import string

from tokenizers import AddedToken, Regex, Tokenizer, decoders, models, pre_tokenizers
from transformers import (
    CLIPImageProcessor,
    CLIPVisionConfig,
    LlamaConfig,
    LlavaConfig,
    LlavaForConditionalGeneration,
    LlavaProcessor,
    PreTrainedTokenizerFast,
)

from flowrl.untyped import Processor
from flowrl.worlds.shapes_look.corpus import CLOSE, OPEN, PLACE, call
from flowrl.worlds.shapes_look.render import PATCH
from flowrl.worlds.shapes_look.scenes import CELL, COLORS, QUADRANTS, QUESTION, SHAPES

SPECIAL = ("<pad>", "<s>", "</s>", "<unk>", "<image>", "<|system|>", "<|user|>", "<|assistant|>", "<|tool|>")
MEAN, STD = 0.5, 0.3  # of every channel of a picture
SEEN = (CELL // PATCH) ** 2  # tokens of a picture
MAX_LENGTH = 256
TOWER, TOWER_LAYERS = 96, 3
HIDDEN, LAYERS = 64, 3
# A picture stands where its part stands in the message; what a tool gives back may be pictures too.
CHAT_TEMPLATE = (
    "{{ bos_token }}{% for message in messages %}"
    "{% if message.role not in ('system', 'user', 'assistant', 'tool') %}"
    "{{ raise_exception('a message is by system, user, assistant or tool') }}{% endif %}"
    "{{ '<|' + message.role + '|>' }}"
    "{% if message.content is string %}{{ message.content }}{% else %}{% for part in message.content or [] %}"
    "{% if part.type == 'image' %}<image>{% elif part.type == 'text' %}{{ part.text }}{% endif %}"
    "{% endfor %}{% endif %}"
    '{% for call in message.tool_calls or [] %}{{ \'<tool_call>{"name": "\' + call.function.name + \'", '
    "\"arguments\": ' }}{{ call.function.arguments | tojson }}{{ '}</tool_call>' }}{% endfor %}"
    "{% if message.role == 'assistant' %}{{ eos_token }}{% endif %}"
    "{% endfor %}{% if add_generation_prompt %}{{ '<|assistant|>' }}{% endif %}"
)


def make_tokenizer() -> PreTrainedTokenizerFast:
    """A token for each piece that questions, calls and answers are made of; other text is read as characters."""
    begin, end = call("?").removeprefix("<tool_call>").removesuffix("</tool_call>").split("?")
    asked = [half for text in (QUESTION, PLACE) for half in text.split("{}")]
    pieces = ["<tool_call>", begin, end, "</tool_call>", OPEN, CLOSE, *asked, *QUADRANTS, *SHAPES, *COLORS]
    characters = string.digits + string.ascii_letters + string.punctuation + " \n"
    vocabulary = {token: i for i, token in enumerate(dict.fromkeys([*SPECIAL, *pieces, *characters]))}
    raw = Tokenizer(models.WordLevel(vocabulary, unk_token="<unk>"))
    raw.pre_tokenizer = pre_tokenizers.Split(Regex(r"[\s\S]"), "isolated")
    raw.decoder = decoders.Fuse()
    raw.add_special_tokens([AddedToken(token, special=True, normalized=False) for token in SPECIAL])
    raw.add_tokens([AddedToken(token, normalized=False) for token in dict.fromkeys(pieces)])
    return PreTrainedTokenizerFast(
        tokenizer_object=raw,
        bos_token="<s>",
        eos_token="</s>",
        pad_token="<pad>",
        unk_token="<unk>",
        model_max_length=MAX_LENGTH,
        clean_up_tokenization_spaces=False,
    )


def make_processor() -> LlavaProcessor:
    """Tokenizer, chat template, and pictures of any size reduced to 32 x 32 pixels."""
    eye = CLIPImageProcessor(
        size={"height": CELL, "width": CELL},
        do_center_crop=False,
        resample=2,  # bilinear, over all pixels that a pixel stands for
        image_mean=[MEAN] * 3,
        image_std=[STD] * 3,
    )
    return LlavaProcessor(
        image_processor=eye,
        tokenizer=make_tokenizer(),
        patch_size=PATCH,
        vision_feature_select_strategy="default",
        chat_template=CHAT_TEMPLATE,
        num_additional_image_tokens=1,
    )


def make_model(processor: Processor, *, hidden: int = HIDDEN, layers: int = LAYERS) -> LlavaForConditionalGeneration:
    """A model with random weights from the global generator."""
    tokenizer = processor.tokenizer
    config = LlavaConfig(
        vision_config=CLIPVisionConfig(
            hidden_size=TOWER,
            intermediate_size=2 * TOWER,
            num_hidden_layers=TOWER_LAYERS,
            num_attention_heads=4,
            image_size=CELL,
            patch_size=PATCH,
            hidden_act="gelu",
            projection_dim=TOWER,
        ),
        text_config=LlamaConfig(
            vocab_size=len(tokenizer),
            hidden_size=hidden,
            intermediate_size=2 * hidden,
            num_hidden_layers=layers,
            num_attention_heads=4,
            max_position_embeddings=MAX_LENGTH,
            initializer_range=hidden**-0.5,  # at transformers' 0.02 so narrow a model stays at chance for long
            tie_word_embeddings=False,
            bos_token_id=tokenizer.bos_token_id,
            eos_token_id=tokenizer.eos_token_id,
            pad_token_id=tokenizer.pad_token_id,
        ),
        image_token_index=tokenizer.convert_tokens_to_ids("<image>"),
        image_seq_length=SEEN,
        vision_feature_layer=-1,
        vision_feature_select_strategy="default",
    )
    model = LlavaForConditionalGeneration(config)
    model.generation_config.eos_token_id = [tokenizer.eos_token_id]
    return model
