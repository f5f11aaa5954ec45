"""The tokens of a vocabulary that say yes, and those that say no."""

from flowrl.untyped import Tokenizer


def word_tokens(tokenizer: Tokenizer, reward: str, *, fold: bool = True) -> tuple[list[int], list[int]]:
    """The ids of the tokens for yes, and of those for no, ignoring blanks and case; at least one each.

    fold False: exactly Yes and No. Raises ValueError, naming the reward, if the vocabulary has none.
    """
    ids: dict[str, list[int]] = {"yes": [], "no": []}
    for token, number in tokenizer.get_vocab().items():
        if "yes" in token.lower() or "no" in token.lower():
            read = tokenizer.decode([number])
            word = read.strip().lower() if fold else read
            key = word if fold else {"Yes": "yes", "No": "no"}.get(word, "")
            if key in ids:
                ids[key].append(number)
    if not all(ids.values()):
        raise ValueError(f"{reward}: the vocabulary has no token for yes, or none for no; accepted is a model that has")
    return sorted(ids["yes"]), sorted(ids["no"])
