"""How the media of rows are put together: what each id has of its own, lists, indices that count on."""

import pytest
import torch

from flowrl.policies.errors import PolicyError
from flowrl.policies.language.media.inputs import Inputs, Piece, tensors_of, types_of
from flowrl.policies.language.media.processing import layout_of

CPU = torch.device("cpu")


class Processor:
    """Four placeholders a picture; indices into the pictures of all texts, and a mask with a place for each id."""

    def __call__(self, text: list[str], images: list[list[int]]) -> dict[str, object]:
        width = 4 + len(text[0])
        pixels = torch.arange(6.0 * len(text)).reshape(-1, 3, 1)
        index = torch.arange(0, 6, 2) if len(text) == 1 else torch.tensor([0, 2, 4, 6, 8, 10])
        mask = torch.zeros(len(text), width, 1, dtype=torch.int64)
        mask[:, 2:] = 1
        return {
            "input_ids": torch.zeros(len(text), width, dtype=torch.int64),
            "pixel_values": pixels,
            "pooling": torch.where(index == 2, -1, index),
            "cross_mask": mask,
        }


def test_a_processor_is_asked_how_its_tensors_lie():
    processor, given = Processor(), {"text": ["what"], "images": [[1]]}
    tensors = {k: v for k, v in processor(**given).items() if k != "input_ids"}
    layout = layout_of(processor, given, 8, tensors)
    assert layout.types == {"cross_mask"} and layout.indices == {"pooling": ("pixel_values", 2)}


def test_indices_count_on_behind_those_of_earlier_rows_and_lists_stay_lists():
    pieces = [
        Piece.of(
            length=2,
            tensors={"pooling": torch.tensor([0, -1, n]), "grid": torch.tensor([[n, 1]])},
            types={},
            lists=["grid"],
            counts={"pooling": n + 1},
        )
        for n in (4, 6, 2)
    ]
    made = tensors_of([Inputs((piece,)) for piece in pieces], CPU, torch.float32)
    assert made["pooling"].tolist() == [0, -1, 4, 5, -1, 11, 12, -1, 14]
    assert made["grid"] == [[4, 1], [6, 1], [2, 1]]
    third = Inputs((pieces[2],))
    kept = Inputs.of_state(third.state())
    assert tensors_of([kept], CPU, torch.float32)["pooling"].tolist() == [0, -1, 2]
    assert kept.key == third.key and kept.pieces[0].lists == {"grid"} and kept.pieces[0].counts == {"pooling": 3}


def test_ids_behind_a_prompt_have_what_its_last_id_has():
    """Rows begin at different places; the second has one picture more, which the first does not see."""
    one, two = torch.tensor([[0], [1], [1]]), torch.tensor([[0, 0], [1, 0], [1, 1], [1, 1]])
    rows = [Inputs((Piece(0, 1, {}, {"cross_mask": value}),)) for value in (one, two)]
    attention = torch.tensor([[0, 0, 1, 1, 1], [1, 1, 1, 1, 1]])
    made = types_of(rows, "cross_mask", attention, behind=1)
    assert made.shape == (2, 6, 2)
    assert made[0, :, 0].tolist() == [0, 0, 0, 1, 1, 1] and not made[0, :, 1].any()
    assert made[1, :, 1].tolist() == [0, 0, 1, 1, 1, 1]
    after = types_of(rows[1:], "cross_mask", torch.ones(1, 5), behind=1, drawn=7)
    assert after[0, :, 1].tolist() == [0, 0, 1, 7, 7, 7]
    with pytest.raises(PolicyError, match="tells which picture each token sees"):
        types_of([rows[0].then(rows[0], 3)], "cross_mask", torch.ones(1, 8))


def test_an_older_checkpoint_has_no_entry_for_the_ids_that_follow():
    saved = {"begin": 0, "length": 3, "tensors": {}, "types": {"token_type_ids": torch.tensor([0, 1, 1])}, "along": {}}
    row = Inputs.of_state([saved])
    assert types_of([row], "token_type_ids", torch.ones(1, 5)).tolist() == [[0, 1, 1, 0, 0]]
