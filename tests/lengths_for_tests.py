"""A reward of one's own, by dotted path: random models are never right, but some of their completions are shorter."""

import torch


def fewer(samples):
    """Minus the number of characters."""
    return torch.tensor([-float(len(text)) for text in samples.texts])
