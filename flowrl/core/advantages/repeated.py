"""What several samples of a prompt say together: pass@k of what is right or wrong, and the majority's answer."""

import math
import re
from collections import Counter
from collections.abc import Mapping, Sequence

import torch
from torch import Tensor

ANSWERS = (
    re.compile(r"<answer>(.*?)</answer>", re.DOTALL),
    re.compile(r"\\boxed\{([^{}]*)\}"),
    re.compile(r"(-?\d[\d,]*(?:\.\d+)?)"),
)


def pass_at_k(right: Tensor, k: int) -> Tensor:
    """The chance that one of k samples is right, float64 [P], of bool right [P, n]: 1 - C(n - c, k) / C(n, k).

    Chen et al. (arXiv:2107.03374, eq. 1). Raises ValueError unless 1 <= k <= n.
    """
    n = right.shape[1]
    if not 1 <= k <= n:
        raise ValueError(f"k={k}: accepted is 1 to {n}, the samples of a prompt")
    return torch.tensor([1 - math.comb(n - c, k) / math.comb(n, k) for c in right.sum(1).tolist()], dtype=torch.float64)


def answer_of(text: str) -> str | None:
    r"""What a completion answers, in one spelling: the last <answer>...</answer>, else the last \boxed{...}, else the
    last number; None without any of these."""
    for pattern in ANSWERS:
        if found := pattern.findall(text):
            return " ".join(found[-1].replace(",", "").split()).casefold().removesuffix(".")
    return None


def majority(scores: Tensor, texts: Sequence[str]) -> Tensor:
    """The mean score of the completions that give the most frequent answer, [P]; scores [P, n], texts P * n of them.

    Of answers that are equally frequent, that of the earliest; completions without an answer have no say, and where
    none has one the score is NaN (self-consistency, arXiv:2203.11171).
    """
    values = []
    for row, said in zip(scores, torch.arange(len(texts)).view(len(scores), -1).tolist(), strict=True):
        answers = [answer_of(texts[int(i)]) for i in said]
        votes = Counter(answer for answer in answers if answer is not None)
        chosen = max(votes, key=lambda answer: votes[answer], default=None)
        mine = [v for v, answer in zip(row, answers, strict=True) if answer == chosen and chosen is not None]
        values.append(torch.stack(mine).nanmean() if mine else row.new_tensor(torch.nan))
    return torch.stack(values)


def repeated(scores: Mapping[str, Tensor], n: int, texts: Sequence[str] | None) -> dict[str, Tensor]:
    """Of each reward, by name, numbers of each prompt [P]: REWARD/pass@k, k in powers of two up to n, where its scores
    [P * n] are 0 or 1, and of texts REWARD/majority."""
    found: dict[str, Tensor] = {}
    for name, values in scores.items():
        each = values.detach().cpu().view(-1, n)
        if texts is not None:
            found[f"{name}/majority"] = majority(each, texts)
        if torch.isin(each, torch.tensor([0.0, 1.0])).all():
            ks = [2**i for i in range(1, n.bit_length()) if 2**i <= n]
            found |= {f"{name}/pass@{k}": pass_at_k(each > 0.5, k) for k in ks}
    return found
