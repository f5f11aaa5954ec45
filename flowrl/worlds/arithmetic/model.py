"""The tokenizer and the untrained model of the arithmetic world: characters, and a Qwen2 of four narrow layers."""

from transformers import PreTrainedTokenizerFast, Qwen2Config, Qwen2ForCausalLM

from flowrl.worlds.arithmetic.corpus import CLOSE, OPEN
from flowrl.worlds.characters import tokenizer_of

SPECIAL = ("<pad>", "<unk>", "<s>", "</s>", "<|user|>", "<|assistant|>")
MAX_LENGTH = 128
CHAT_TEMPLATE = (
    "{{ bos_token }}{% for message in messages %}"
    "{% if message.role not in ('user', 'assistant') %}"
    "{{ raise_exception('only user and assistant speak') }}{% endif %}"
    "{{ '<|' + message.role + '|>' + message.content }}{% if message.role == 'assistant' %}{{ eos_token }}{% endif %}"
    "{% endfor %}{% if add_generation_prompt %}{{ '<|assistant|>' }}{% endif %}"
)


def make_tokenizer() -> PreTrainedTokenizerFast:
    """A token for every printable ASCII character, for the two answer tags and for the turns of a chat."""
    return tokenizer_of(SPECIAL, (OPEN, CLOSE), length=MAX_LENGTH, begins=True, template=CHAT_TEMPLATE)


def make_model(tokenizer: PreTrainedTokenizerFast, *, width: int = 96, layers: int = 4) -> Qwen2ForCausalLM:
    """A Qwen2 with random weights from the global generator, input and output embeddings tied."""
    config = Qwen2Config(
        vocab_size=len(tokenizer),
        hidden_size=width,
        intermediate_size=width * 8 // 3,
        num_hidden_layers=layers,
        num_attention_heads=4,
        num_key_value_heads=2,
        max_position_embeddings=MAX_LENGTH,
        tie_word_embeddings=True,
        initializer_range=0.05,
        bos_token_id=tokenizer.bos_token_id,
        eos_token_id=tokenizer.eos_token_id,
        pad_token_id=tokenizer.pad_token_id,
    )
    model = Qwen2ForCausalLM(config)
    model.generation_config.eos_token_id = [tokenizer.eos_token_id]
    return model
