"""The maths of a token: the plan of a completion, the draw of its next token, log-probabilities and divergence.

A token is drawn from softmax(logits / temperature), cut to the top_k likeliest, to the smallest set that holds top_p of
the probability, and to those at least min_p times as likely as the likeliest; a repetition_penalty lowers what was said
before. It is scored under softmax(logits / temperature) BEFORE all that, in the rollout as in every replay:
a later policy may rank a drawn token out of its own cut, where the cut distribution would give it probability 0 and a
ratio without meaning. With top_k null and top_p 1 both are the same; with a cut the ratio is that of the uncut
policies, as in verl and TRL. (DeepSeek-V3.2 keeps the rollout's cut instead, a mask of vocabulary size for each token.)
"""

import math
from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor
from torch.utils.checkpoint import checkpoint

PRECISIONS = ("bfloat16", "float16", "int8")
CHUNK = 2**24  # float32 numbers of vocabulary size that are held at once, 64 MiB


@dataclass(frozen=True, slots=True)
class Generation:
    """How completions are drawn. temperature 0 takes the likeliest token: an evaluation, which cannot be trained on.
    precision: of a copy of the model that draws (PRECISIONS; None: the model itself).

    force: (text, n): a completion that has n tokens left and has not written this text is given it. min_p: tokens less
    likely than that share of the likeliest are not drawn (arXiv:2407.01082). repetition_penalty: logits of tokens of
    the prompt and the completion so far are divided by it, those below 0 multiplied (CTRL, arXiv:1909.05858); of greedy
    completions too.
    Raises ValueError for values outside max_new_tokens >= 1, temperature >= 0, top_k >= 1, 0 < top_p <= 1, 0 <= min_p
    <= 1 and repetition_penalty > 0.
    """

    max_new_tokens: int
    temperature: float = 1.0
    top_k: int | None = None
    top_p: float = 1.0
    force: tuple[str, int] | None = None
    min_p: float = 0.0
    repetition_penalty: float = 1.0
    precision: str | None = None

    def __post_init__(self) -> None:
        if (
            self.max_new_tokens < 1
            or self.temperature < 0
            or not 0 < self.top_p <= 1
            or not (self.top_k is None or self.top_k >= 1)
            or not (0 <= self.min_p <= 1 and self.repetition_penalty > 0)
        ):
            raise ValueError(
                f"{self}: need max_new_tokens >= 1, temperature >= 0, top_k >= 1, 0 < top_p <= 1, 0 <= min_p <= 1 and "
                "repetition_penalty > 0"
            )

    @property
    def scale(self) -> float:
        """What logits are divided by before they are scored: the temperature, 1 for greedy completions."""
        return self.temperature or 1.0


def draw(logits: Tensor, uniform: Tensor, plan: Generation) -> Tensor:
    """Tokens int64 [R] from logits [R, V], by inverting the cumulative distribution at uniform [R] in [0, 1)."""
    if plan.temperature == 0:
        return logits.argmax(-1)
    kept = cut(logits.float() / plan.temperature, plan.top_k, plan.top_p, plan.min_p)
    # in float64 where there is one: 150,000 float32 terms would move the boundaries by more than a rare token's share
    wide = torch.float32 if logits.device.type == "mps" else torch.float64
    cdf = kept.softmax(-1).to(wide).cumsum(-1)
    total = cdf[:, -1:]
    target = uniform.to(cdf)[:, None] * total
    target = torch.minimum(target, torch.nextafter(total, torch.zeros_like(total)))  # never beyond the last token
    return torch.searchsorted(cdf, target, right=True).squeeze(-1)


def penalised(logits: Tensor, seen: Tensor, penalty: float) -> Tensor:
    """The logits [R, V] of what was said before, bool seen [R, V], divided by the penalty, those below 0 multiplied."""
    return torch.where(seen, torch.where(logits > 0, logits / penalty, logits * penalty), logits)


def cut(logits: Tensor, top_k: int | None, top_p: float, min_p: float = 0.0) -> Tensor:
    """The logits [R, V] with those outside the top_k, then outside the nucleus of top_p, then below min_p, at -inf."""
    if top_k is not None and top_k < logits.shape[-1]:
        least = logits.topk(top_k).values[:, -1:]
        logits = logits.masked_fill(logits < least, -torch.inf)
    if top_p < 1:
        ordered, index = logits.softmax(-1).sort(descending=True)
        before = ordered.cumsum(-1) - ordered  # the likeliest token always stays
        logits = logits.masked_fill((before >= top_p).gather(-1, index.argsort(-1)), -torch.inf)
    if min_p > 0:
        logits = logits.masked_fill(logits < logits.amax(-1, keepdim=True) + math.log(min_p), -torch.inf)
    return logits


@dataclass(frozen=True)
class States:
    """What logits are made of by `head`, [..., D] to [..., V], a chunk at a time: values [r, k, D], size V.

    It takes the place of logits [r, k, V] below, so that they never stand whole.
    """

    values: Tensor
    head: Callable[[Tensor], Tensor]
    size: int


Logits = Tensor | States


def token_logp(logits: Logits, tokens: Tensor, scale: float, dtype: torch.dtype = torch.float32) -> Tensor:
    """Log-probabilities [r, k] of tokens int64 [r, k] under softmax(logits / scale), logits [r, k, V], in `dtype`."""

    def one(part: Tensor, drawn: Tensor) -> Tensor:
        scaled = _scaled(part, scale, dtype)
        return scaled.gather(-1, drawn[..., None]).squeeze(-1) - scaled.logsumexp(-1)

    return _in_chunks(one, logits, tokens)


def token_kl(
    logits: Logits,
    reference: Logits,
    scale: float,
    dtype: torch.dtype = torch.float32,
    *,
    kind: str = "exact",
    mix: float = 0.5,
) -> Tensor:
    """Divergence [r, k] over the vocabulary, of softmax(logits / scale) each; logits are [r, k, V].

    With policy p, reference q and m = mix q + (1 - mix) p: exact, KL(p || q); forward, KL(q || p); jsd, mix KL(q || m)
    + (1 - mix) KL(p || m), the generalised Jensen-Shannon divergence of GKD (arXiv:2306.13649, eq. 1, its beta is mix).
    """

    def one(part: Tensor, other: Tensor) -> Tensor:
        logp, ref = (_scaled(each, scale, dtype).log_softmax(-1) for each in (part, other))
        if kind == "exact":
            return (logp.exp() * (logp - ref)).sum(-1)
        if kind == "forward":
            return (ref.exp() * (ref - logp)).sum(-1)
        middle = torch.logaddexp(ref + math.log(mix), logp + math.log1p(-mix))
        return (mix * ref.exp() * (ref - middle) + (1 - mix) * logp.exp() * (logp - middle)).sum(-1)

    return _in_chunks(one, logits, reference)


def token_entropy(logits: Logits, scale: float, dtype: torch.dtype = torch.float32) -> Tensor:
    """Entropy in nats, [r, k], of the whole distribution softmax(logits / scale), logits [r, k, V], in `dtype`."""

    def one(part: Tensor) -> Tensor:
        scaled = _scaled(part, scale, dtype)
        if not torch.is_grad_enabled():
            return torch.special.entr(scaled.softmax(-1)).sum(-1)
        logp = scaled.log_softmax(-1)  # the gradient of entr is infinite where a probability is 0
        return -(logp.exp() * logp).sum(-1)

    return _in_chunks(one, logits)


@torch.no_grad()
def token_squares(logits: Logits, scale: float) -> Tensor:
    """Sum of squared probabilities, [r, k], of softmax(logits / scale), logits [r, k, V]. No gradient."""

    def one(part: Tensor) -> Tensor:
        return _scaled(part, scale, torch.float32).softmax(-1).square().sum(-1)

    return _in_chunks(one, logits)


def _scaled(logits: Tensor, scale: float, dtype: torch.dtype) -> Tensor:
    """logits / scale in `dtype`; at a scale of 1 that is the logits, without a pass over all of them."""
    return logits.to(dtype) if scale == 1 else logits.to(dtype) / scale


def _in_chunks(one: Callable[..., Tensor], *sources: Logits) -> Tensor:
    """`one` over as many decisions as CHUNK allows. Of several chunks, none keeps its float32 for the backward pass.

    sources: logits first, then what is [r, k] or [r, k, V] beside them. Logits of States are made chunk by chunk.
    """
    values = [source.values if isinstance(source, States) else source for source in sources]
    heads = [source.head if isinstance(source, States) else None for source in sources]
    first = sources[0]
    size = max(1, CHUNK // (first.size if isinstance(first, States) else first.shape[-1]))

    def of(*parts: Tensor) -> Tensor:
        made = [part if head is None else head(part) for part, head in zip(parts, heads, strict=True)]
        return one(*made)

    chunks = list(zip(*(value.flatten(0, 1).split(size) for value in values), strict=True))
    if len(chunks) == 1 or not (torch.is_grad_enabled() and values[0].requires_grad):
        parts = [of(*chunk) for chunk in chunks]
    else:
        parts = [checkpoint(of, *chunk, use_reentrant=False, preserve_rng_state=False) for chunk in chunks]
    return torch.cat(parts).unflatten(0, values[0].shape[:2])
