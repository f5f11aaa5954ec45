"""What passes of a language model hold at most, counted on the meta device as the policy itself makes them.

Tokens are drawn, rows are scored and values are looked at by the code that a run has, on a model without weights; what
lives at once is counted operation by operation, the backward pass included (live.py). Nothing is computed.
"""

import inspect
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager, nullcontext
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch.autograd.graph import saved_tensors_hooks
from torch.overrides import TorchFunctionMode
from torch.utils._pytree import tree_leaves, tree_map

from flowrl.contracts import View
from flowrl.core.learning.activations import LEAST
from flowrl.planning.sizes.activations import FusedAttention
from flowrl.planning.sizes.counted import backward_pass
from flowrl.planning.sizes.live import Live
from flowrl.planning.sizes.saved import storage_of
from flowrl.policies.language.critic import TokenValues
from flowrl.policies.language.drawing.heads import Head
from flowrl.policies.language.drawing.reading import Reading, read
from flowrl.policies.language.media.features import METHODS, innermost, parameters_of
from flowrl.policies.language.scores import Scores
from flowrl.untyped import LanguageModel
from samplers.tokens import Generation, draw, token_entropy, token_logp, token_squares

UNKNOWN = (RuntimeError, TypeError, ValueError, NotImplementedError, AttributeError)  # of a forward that needs values


@dataclass(frozen=True)
class Rows:
    """Rows that go through a model at once, all of them as long as the longest: tokens of the prompt, and new ones."""

    number: int
    prompt: int
    new: int


class Shapes(TorchFunctionMode):
    """Within, what is asked of values on meta (is a mask all true?) is answered with no, and numbers of the CPU, such
    as sizes of pictures, take part in what is computed on meta."""

    def __torch_function__(
        self, func: Callable[..., Any], types: Sequence[type], args: tuple = (), kwargs: dict | None = None
    ) -> Any:
        """The function's own result, as a shape."""
        given = kwargs or {}
        if func is Tensor.__bool__ and args[0].is_meta:
            return False
        where = {leaf.is_meta for leaf in tree_leaves((args, given)) if isinstance(leaf, Tensor)}
        if len(where) == 2:
            args, given = tree_map(lambda leaf: leaf.to("meta") if isinstance(leaf, Tensor) else leaf, (args, given))
        return func(*args, **given)


@contextmanager
def _counting(model: nn.Module, *others: nn.Module | None, gradient: bool) -> Iterator[Live]:
    """Within, what lives beside the weights of these models, their buffers and gradients."""
    whole = [part for part in (model, *others) if part is not None]
    known = [t for part in whole for t in (*part.parameters(), *part.buffers())]
    known += [t.grad for t in known if t.grad is not None]
    with torch.set_grad_enabled(gradient), FusedAttention(masks=True), Shapes(), Live(known) as live:
        yield live


@torch.no_grad()
def drawing(
    model: LanguageModel, rows: Rows, prompts: int, plan: Generation, *, cached: bool = True, kept: Sequence[str] = ()
) -> int:
    """Bytes at most as rows of so many prompts are drawn: when the prompts have been read and the first token is
    drawn, or as the last one is. cached: there is a key-value cache; without one all is read again for each token.
    kept: statistics of a token (`entropy`, `squares`)."""
    whole = rows.prompt + rows.new - 1  # of these a cache holds all but the last
    with _counting(model, gradient=False) as live:
        reading = read(model, [[1] * rows.prompt] * prompts, pad=0)
        reading.select(torch.arange(rows.number) * prompts // rows.number)
        _token(reading, rows.number, plan, kept)
        del reading
    if not cached or whole == rows.prompt:
        with _counting(model, gradient=False) as last:
            _token(read(model, [[1] * whole] * rows.number, pad=0), rows.number, plan, kept)
        return max(live.peak, last.peak)
    with _counting(model, gradient=False):
        reading = read(model, [[1] * (whole - 1)] * rows.number, pad=0)
    with _counting(model, gradient=False) as last:
        for layer in reading.cache.layers if reading.cache is not None else ():
            for value in vars(layer).values():
                if isinstance(value, Tensor):
                    last.note(value)
        token = _token(reading, rows.number, plan, kept)
        reading.step(model, token)
        _token(reading, rows.number, plan, kept)
    return max(live.peak, last.peak)


def _token(reading: Reading, rows: int, plan: Generation, kept: Sequence[str]) -> Tensor:
    """The next token of each row, and what is scored of it."""
    logits = reading.logits
    token = draw(logits, torch.zeros(rows, dtype=torch.float64, device="meta"), plan)
    token_logp(logits[:, None], token[:, None], plan.scale)
    for name, find in (("entropy", token_entropy), ("squares", token_squares)):
        if name in kept:
            find(logits[:, None], plan.scale)
    return token


def learning(
    model: LanguageModel,
    rows: Rows,
    view: View,
    precision: torch.dtype,
    *,
    teacher: LanguageModel | None = None,
    alone: bool = False,
    in_host: bool = False,
) -> int:
    """Bytes at most of rows that are looked at and differentiated, beside weights and gradients that are there already.

    Gradients that are made (`grad` None) are among them. teacher: another model, which a divergence is measured from.
    alone: each row goes through the model by itself; in_host: what is saved for the backward pass rests in the host.
    """
    scores = Scores(model, 0, precision, nullcontext, alone)
    scores._heads = {True: head(model), False: None if teacher is None else head(teacher)}
    tokens = torch.zeros(rows.number, rows.new, dtype=torch.int64)
    length, prompts = torch.full((rows.number,), rows.new), [[1] * rows.prompt] * rows.number
    weights = {storage_of(t) for t in (*model.parameters(), *model.buffers())}
    with _counting(model, teacher, gradient=True) as live, _saving(weights, in_host=in_host):
        found = scores.at(
            prompts, tokens, length, torch.arange(rows.number), 1.0, view, model if teacher is None else teacher
        )
        total = torch.stack([part.sum().to(precision) for part in found if part is not None]).sum()
        del found
        backward_pass([total])
    return live.peak


def valuing(critic: LanguageModel, rows: Rows, *, in_host: bool = False) -> int:
    """The same of rows whose values a critic is fitted to."""
    values = TokenValues(critic, device="meta", pad=0)
    tokens = torch.zeros(rows.number, rows.new, dtype=torch.int64)
    length, prompts = torch.full((rows.number,), rows.new), [[1] * rows.prompt] * rows.number
    weights = {storage_of(t) for t in (*critic.parameters(), *critic.buffers())}
    with _counting(critic, *values.heads, gradient=True) as live, _saving(weights, in_host=in_host):
        total = values.heads[0](values._hidden(prompts, tokens, length, None).float()).sum()
        backward_pass([total])
    return live.peak


def _saving(weights: set[int], *, in_host: bool) -> Any:
    """Within, what autograd saves leaves the device, as with `core.activations.activations_in_host`."""
    if not in_host:
        return nullcontext()

    def pack(tensor: Tensor) -> Tensor | tuple[torch.Size, torch.dtype]:
        stays = tensor.nbytes < LEAST or storage_of(tensor) in weights
        return tensor if stays else (tensor.shape, tensor.dtype)

    def unpack(packed: Any) -> Tensor:
        return packed if isinstance(packed, Tensor) else torch.empty(packed[0], dtype=packed[1], device="meta")

    return saved_tensors_hooks(pack, unpack)


@torch.no_grad()
def head(model: LanguageModel) -> Head | None:
    """What `heads.head_of` finds of a model with weights: its head, where logits are what that makes of the last
    layer's states and nothing is done to either."""
    base, own = model.base_model, model.get_output_embeddings()
    if base is model or own is None or getattr(model, "called_whole", False):
        return None
    seen: dict[str, set[int]] = {"states": set(), "given": set(), "made": set()}

    def note(name: str, value: Any) -> None:
        value = getattr(value, "last_hidden_state", value)
        seen[name] |= {storage_of(one) for one in (value if isinstance(value, tuple) else (value,))[:1]}
        held.append(value)  # so that no identity is reused

    held: list[Any] = []
    hooks = [
        base.register_forward_hook(lambda _, given, made: note("states", made)),
        own.register_forward_hook(lambda _, given, made: (note("given", given), note("made", made))[2:] or None),
    ]
    try:
        with Shapes(), FusedAttention():
            logits = model(input_ids=torch.ones(1, 2, dtype=torch.int64, device="meta"), use_cache=False).logits
    finally:
        for hook in hooks:
            hook.remove()
    plain = seen["given"] == seen["states"] and seen["made"] == {storage_of(logits)}
    return Head(own, logits.shape[-1]) if plain else None


@dataclass(frozen=True)
class Seen:
    """What the media of one prompt take, in bytes. tensors: what the processor made of them; features: what the model's
    tower makes of those; making: at most while it does, without gradient; kept: what a backward pass through the tower
    needs, where it learns, else 0."""

    tensors: int
    features: int
    making: int
    kept: int


def seeing(model: LanguageModel, tensors: Mapping[str, Tensor]) -> Seen:
    """What media take, of which the processor made these tensors: on meta, those of whole numbers with their values."""
    size = sum(t.nbytes if t.dtype != torch.float32 else t.numel() * model.dtype.itemsize for t in tensors.values())
    features = making = kept = 0
    for name in METHODS:
        for module in innermost(model, name):
            method = getattr(module, name)
            own = {n: t for n, t in tensors.items() if n in arguments_of(method)}
            if not own or next(iter(arguments_of(method))) not in own:
                continue
            own = {n: t.to(model.dtype) if t.is_floating_point() else t for n, t in own.items()}

            def call(method: Callable[..., Any] = method, own: Mapping[str, Tensor] = own) -> Any:
                return method(**own)

            with Shapes(), FusedAttention():
                learns = any(p.requires_grad for p in parameters_of(module, call))
            with _counting(model, gradient=learns) as live:
                made = call()
                left, number = live.now, _bytes_of(made)
            features, making = features + number, max(making, live.peak)
            kept += left if learns else 0
    return Seen(size, features, making, kept)


def arguments_of(method: Callable[..., Any]) -> list[str]:
    """The names of a method's arguments, in order."""
    return list(inspect.signature(method).parameters)


def _bytes_of(value: Any) -> int:
    storages = {storage_of(leaf): leaf.untyped_storage().nbytes() for leaf in _tensors(value)}
    return sum(storages.values())


def _tensors(value: Any) -> list[Tensor]:
    return [leaf for leaf in tree_leaves(dict(value) if hasattr(value, "keys") else value) if isinstance(leaf, Tensor)]
