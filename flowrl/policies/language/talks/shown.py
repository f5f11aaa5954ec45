"""What an environment shows as the tokens and media that a row goes on from."""

from collections.abc import Sequence
from dataclasses import replace
from typing import Any

from flowrl.contracts import Shown
from flowrl.environments.observations import ANSWER, Observations
from flowrl.media.pictures import as_image
from flowrl.policies.errors import PolicyError
from flowrl.policies.language.media.inputs import Inputs
from flowrl.policies.language.media.processing import processed


def written(
    observe: Observations, policy: Any, messages: Sequence[Shown], last: int
) -> tuple[list[int], Inputs | None]:
    """(ids, media or None) of messages behind a row whose last token is `last`.

    Pictures go through the processor in the text that the template writes around them, behind an answer that is cut off
    again. Raises PolicyError where the model reads text alone, or its processor does not take them.
    """
    pictures = [as_image(picture) for message in messages for picture in message.pictures]
    if not pictures:
        return observe.ids(messages, last, policy.stop), None
    if policy.processor is None:
        raise PolicyError(
            "environment: the model was shown a picture, and reads text alone; give a vision-language model, or tools "
            "that answer in words"
        )
    ids, media = processed(policy.processor, ANSWER + observe.suffix(messages), pictures, policy.barred, special=False)
    before = list(observe.tokenizer(ANSWER, add_special_tokens=False)["input_ids"])
    cut = len(before)
    if ids[:cut] != before:
        raise PolicyError(
            "environment: the tokens of an answer change with what stands behind it, so that a picture cannot be shown "
            "exactly; give another model"
        )
    cut += last in policy.stop and ids[cut] in policy.stop
    pieces = tuple(
        replace(p, length=p.length - cut, types={name: value[cut:] for name, value in p.types.items()})
        for p in media.pieces
    )
    return ids[cut:], Inputs(pieces)
