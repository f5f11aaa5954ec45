"""What the LLaVAs of two worlds have in common (arXiv:2304.08485): small pictures at one size, a narrow Llama."""

from collections.abc import Sequence

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


def processor_of(
    tokenizer: PreTrainedTokenizerFast,
    template: str,
    *,
    side: int,
    patch: int,
    resample: int,
    mean: Sequence[float],
    std: Sequence[float],
) -> LlavaProcessor:
    """Tokenizer, chat template, and pictures of `side` x `side` pixels, to which larger ones are reduced by `resample`
    of PIL. mean, std: of each channel."""
    eye = CLIPImageProcessor(
        size={"height": side, "width": side},
        do_center_crop=False,
        resample=resample,
        image_mean=list(mean),
        image_std=list(std),
    )
    return LlavaProcessor(
        image_processor=eye,
        tokenizer=tokenizer,
        patch_size=patch,
        vision_feature_select_strategy="default",
        chat_template=template,
        num_additional_image_tokens=1,
    )


def untrained(
    processor: Processor,
    *,
    side: int,
    tower: tuple[int, int],
    language: tuple[int, int],
    length: int,
) -> LlavaForConditionalGeneration:
    """A model with random weights from the global generator, four heads in each layer.

    tower, language: width and layers of the part that sees and of the part that writes. side: pixels of a picture.
    length: the most tokens of a row.
    """
    tokenizer, patch = processor.tokenizer, processor.patch_size
    config = LlavaConfig(
        vision_config=CLIPVisionConfig(
            hidden_size=tower[0],
            intermediate_size=2 * tower[0],
            num_hidden_layers=tower[1],
            num_attention_heads=4,
            image_size=side,
            patch_size=patch,
            hidden_act="gelu",
            projection_dim=tower[0],
        ),
        text_config=LlamaConfig(
            vocab_size=len(tokenizer),
            hidden_size=language[0],
            intermediate_size=2 * language[0],
            num_hidden_layers=language[1],
            num_attention_heads=4,
            max_position_embeddings=length,
            initializer_range=language[0] ** -0.5,  # at transformers' 0.02 so narrow a model stays at chance for long
            tie_word_embeddings=False,
            bos_token_id=tokenizer.bos_token_id,
            eos_token_id=tokenizer.eos_token_id,
            pad_token_id=tokenizer.pad_token_id,
        ),
        image_token_index=tokenizer.convert_tokens_to_ids("<image>"),
        image_seq_length=(side // patch) ** 2,
        vision_feature_layer=-1,
        vision_feature_select_strategy="default",
    )
    return LlavaForConditionalGeneration(config)
