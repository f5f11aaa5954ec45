"""The keys of `prompts`: where they come from, and which of them a run chooses; and of samples beyond a group's."""

from collections.abc import Mapping
from typing import ClassVar, Literal

from flowrl.recipe.base import Strict, key, part
from flowrl.recipe.sections import Own, keys_of, open_to
from flowrl.untyped import JSON


class Choose(keys_of("choice", "shuffle")):
    """Which prompts are passed over: kinds and keys are functions of flowrl/reading/choices.py and their arguments."""


class OwnChoice(Own):
    """A choice of prompts by a function of the user's own."""

    part: ClassVar[str] = "choice"
    beside: ClassVar[Mapping[str, JSON]] = dict.fromkeys(Choose.model_fields)


class Budget(Strict):
    """Samples beyond train.group for prompts that were hard in this iteration: DARS (arXiv:2508.13755).

    kind: the same summed deviation for every prompt (equal_treatment), or more of it the harder it is
    (hardness_weighted). limit: the most samples of a prompt. std: of samples by their standard deviation, where it is
    not their mean absolute deviation. Accuracy is the mean of the reward that prompts.remember names, which lies
    between 0 and 1.
    """

    kind: Literal["equal_treatment", "hardness_weighted"] = key(
        "hardness_weighted", "equal_treatment or hardness_weighted"
    )
    limit: int = key(32, "a whole number above train.group", ge=2)
    std: bool = key(False, "true or false")


class Prompts(Strict):
    """Sources: a file (.txt, .jsonl, .json, .csv, .tsv, .parquet), a folder, a `datasets` name (NAME, NAME:SPLIT or
    NAME@CONFIGURATION:SPLIT), or WORLD/train and WORLD/heldout.

    columns: the names of the file's own columns, where they differ from those that are read (prompt: query, answer:
    solution); messages, or a prompt that is a list of messages, are a conversation, whose last answer is not shown.
    limit: only the first so many training prompts. balance: a key of the prompts' meta; each iteration draws its values
    equally often. shuffle: a new order in every pass; false keeps the file's. source: how to get published prompts that
    do not ship, a command or an address, which is told where they are not here. choose: which prompts are passed over
    when their turn comes, by what the run remembers of them. remember: the reward whose mean and std are remembered of
    each prompt (null: the weighted sum of all).
    """

    train: str = key(..., "a prompt source", min_length=1)
    heldout: str | None = key(None, "a prompt source or null (no evaluation)", min_length=1)
    limit: int | None = key(None, "a whole number >= 1 or null", ge=1)
    columns: dict[str, str] = key({}, "a mapping of names that are read to columns of the file")
    balance: str | None = key(None, "a key of the prompts' meta or null", min_length=1)
    shuffle: bool = key(True, "true or false")
    choose: open_to(Choose, OwnChoice) = part(Choose)  # pyright: ignore[reportInvalidTypeForm]
    remember: str | None = key(None, "the name of a reward, or null", min_length=1)
    source: str | None = key(None, "how to get the files, a text, or null", min_length=1)
