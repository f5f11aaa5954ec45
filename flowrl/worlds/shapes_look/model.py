"""The tokenizer, the processor and the untrained model of shapes-look: a LLaVA that sees 32 x 32 pixels."""

from transformers import LlavaForConditionalGeneration, LlavaProcessor, PreTrainedTokenizerFast

from flowrl.untyped import Processor
from flowrl.worlds import llava
from flowrl.worlds.characters import tokenizer_of
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
    return tokenizer_of(SPECIAL, pieces, length=MAX_LENGTH)


def make_processor() -> LlavaProcessor:
    """Tokenizer, chat template, and pictures of any size reduced to 32 x 32 pixels."""
    return llava.processor_of(
        make_tokenizer(),
        CHAT_TEMPLATE,
        side=CELL,
        patch=PATCH,
        resample=2,  # bilinear, over all pixels that a pixel stands for
        mean=[MEAN] * 3,
        std=[STD] * 3,
    )


def make_model(processor: Processor, *, hidden: int = HIDDEN, layers: int = LAYERS) -> LlavaForConditionalGeneration:
    """A model with random weights from the global generator."""
    sizes = {"tower": (TOWER, TOWER_LAYERS), "language": (hidden, layers)}
    model = llava.untrained(processor, side=CELL, length=MAX_LENGTH, **sizes)
    model.generation_config.eos_token_id = [processor.tokenizer.eos_token_id]
    return model
