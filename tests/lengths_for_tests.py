"""A reward of one's own, by dotted path: random models are never right, but some of their completions are shorter."""

import torch


def fewer(samples):
    """Minus the number of characters."""
    return torch.tensor([-float(len(text)) for text in samples.texts])


def place(samples):
    """Which sample of its batch it is: no two have the same."""
    return torch.arange(len(samples.texts)).float()
