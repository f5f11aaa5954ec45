"""Text encoding, once per distinct prompt: a wrapper around a pipeline's own `encode_prompt`.

A rollout asks for the same few prompts in every pass, repeated for each sample. The wrapper encodes each distinct
prompt of a call once, spreads the result over the rows, and caches it. Which outputs have a row for each prompt
is learnt once, from how they grow with the number of prompts. Text encoders are used nowhere else.

A call's prompts are encoded in one go, and what is remembered is theirs together. Where encoders are not on the device
to stay, each prompt is encoded alone and remembered by itself (see joining.py), so that other combinations of the same
prompts need no encoder; results then rest in host memory. Encoded alone, a prompt's result depends on nothing else.
"""

import inspect
from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor
from torch.utils._pytree import tree_flatten, tree_leaves, tree_map, tree_unflatten

from flowrl.policies.pipelines.calls.structures import is_tensor_list
from flowrl.policies.pipelines.encoding.content import content_key, is_plain
from flowrl.policies.pipelines.encoding.joining import Joining, find_joining
from flowrl.policies.pipelines.encoding.store import Store
from flowrl.untyped import Nest

CACHE_BYTES = 2 * 1024**3
Size = tuple[int | list[tuple[int, ...]], ...]  # a shape, or a list of the shapes of several tensors


class CachedEncoder:
    """Stands in for the bound `encode_prompt`. `before` and `after` are called when the text encoders are used.

    by_prompt: whether prompts are encoded one by one. kept: results by the arguments they are of.
    """

    def __init__(
        self,
        encode: Callable[..., Nest],
        after: Callable[[], None] = lambda: None,
        *,
        before: Callable[[], None] = lambda: None,
        by_prompt: bool = False,
    ):
        self._encode, self._before, self._after, self._alone = encode, before, after, by_prompt
        self.kept: Store[Nest] = Store()
        self._signature = inspect.signature(encode)
        self._by_row: dict[tuple, list[str] | None] = {}  # row arguments -> where each output has a row per prompt
        self._joinings: dict[tuple, Joining | None] = {}

    def __call__(self, *args: object, **kwargs: object) -> Nest:
        """What `encode_prompt` returns for these arguments."""
        bound = self._signature.bind(*args, **kwargs)
        given = bound.arguments
        per_row = {name: value for name, value in given.items() if _is_texts(value)}
        others = [value for name, value in given.items() if name not in per_row]
        if not per_row or len({len(v) for v in per_row.values()}) != 1:
            return self._encode_cached(given)
        rows = list(zip(*per_row.values(), strict=True))
        unique = list(dict.fromkeys(rows))
        if self._alone and len(rows) > 1 and (joining := self._joining(given, tuple(per_row), len(unique))) is not None:
            alone = [_with_rows(given, {n: [row[i]] for i, n in enumerate(per_row)}) for row in unique]
            return joining([self._encode_cached(one) for one in alone], [unique.index(row) for row in rows])
        if not all(map(is_plain, others)):
            return self._encode_cached(given)  # how images next to the texts belong to rows, only the family knows
        grows = self._learn(given, tuple(per_row)) if unique != rows else []
        if grows is None:
            return self._encode_cached(given)
        result = self._encode_cached(_with_rows(given, {n: [row[i] for row in unique] for i, n in enumerate(per_row)}))
        if unique == rows:
            return result
        at = [unique.index(row) for row in rows]
        leaves, tree = tree_flatten(result, is_leaf=is_tensor_list)
        return tree_unflatten([_spread(v, at, g) for v, g in zip(leaves, grows, strict=True)], tree)

    def _joining(self, given: dict, names: tuple, distinct: int) -> Joining | None:
        """How prompts that are encoded alone make a call of several; None if they do not.

        With pictures beside the texts only rows that are alike are told apart, and only where a picture is for all.
        """
        others = {name: value for name, value in given.items() if name not in (*names, "batch_size")}
        text, plain = given[names[0]][0], {name: value for name, value in others.items() if is_plain(value)}
        texts = [text, "a", "a few words that make it longer than the others"]
        if len(plain) < len(others):
            if distinct > 1 or any(isinstance(value, list) and len(value) > 1 for value in others.values()):
                return None
            texts = [text, text]
        key = (names, content_key(plain), len(texts))
        if key not in self._joinings:
            self._joinings[key] = find_joining(
                lambda some: self._encode_afresh(_with_rows(given, {name: list(some) for name in names})), texts
            )
        return self._joinings[key]

    def _learn(self, given: dict, names: tuple) -> list[str] | None:
        """Where the leaves of the result have one entry per row; None if some grow in another way.

        "rows": along a tensor or a list. "layers": along each tensor of a list. "": nowhere.
        """
        # Tried with a shorter and a longer prompt, so that there is a mask, padded to the same length both times.
        key = (names, content_key({k: v for k, v in given.items() if k not in names}))
        if key not in self._by_row:
            sizes = []
            for number in (2, 3):
                pairs = {name: [given[name][0], "a" if len(given[name][0]) > 1 else "a few words"] for name in names}
                trial = _with_rows(given, {name: (pair * 2)[:number] for name, pair in pairs.items()})
                leaves = tree_leaves(self._encode_afresh(trial), is_leaf=is_tensor_list)
                sizes.append([_size(leaf) for leaf in leaves])
            grows = [_growth(a, b) for a, b in zip(*sizes, strict=True)]
            known = [g for g in grows if g is not None]
            self._by_row[key] = known if len(known) == len(grows) else None
        return self._by_row[key]

    def _encode_cached(self, given: dict) -> Nest:
        key = content_key(given)
        if key is None:
            return self._encode_afresh(given)
        if key in self.kept:
            return tree_map(_handed_out, self.kept[key])
        result = self._encode_afresh(given)
        size = sum(leaf.numel() * leaf.element_size() for leaf in tree_leaves(result) if isinstance(leaf, Tensor))
        self.kept.put(key, tree_map(_in_host, result) if self._alone else result, size, CACHE_BYTES)
        return tree_map(_handed_out, result)  # with lists of its own, so that nobody changes those that are kept

    @torch.no_grad()
    def _encode_afresh(self, given: dict) -> Nest:
        # pipelines may write into the lists they are given (Z-Image templates its prompts in place)
        own = {name: list(value) if isinstance(value, list) else value for name, value in given.items()}
        bound = self._signature.bind_partial()
        bound.arguments.update(own)
        self._before()
        try:
            return self._encode(*bound.args, **bound.kwargs)
        finally:
            self._after()


def _is_texts(value: object) -> bool:
    return isinstance(value, list) and bool(value) and all(isinstance(item, str) for item in value)


def _size(leaf: object) -> Size:
    """A tensor's shape, the shapes of a list of them, nothing for anything else."""
    if isinstance(leaf, list):
        return ([tuple(one.shape) if isinstance(one, Tensor) else () for one in leaf],)
    return tuple(leaf.shape) if isinstance(leaf, Tensor) else ()


def _growth(two: Size, three: Size) -> str | None:
    """Where a leaf has a row per prompt, from its sizes for two prompts and for three; None if it grows otherwise."""
    if two and isinstance(two[0], list) and isinstance(three[0], list):
        if (len(two[0]), len(three[0])) == (2, 3):
            return "rows"
        each = {_growth(a, b) for a, b in zip(two[0], three[0], strict=False)}
        if len(two[0]) != len(three[0]) or len(each) != 1:
            return None
        (growth,) = each
        return "layers" if growth == "rows" else growth
    if (two[:1], three[:1]) == ((2,), (3,)) and two[1:] == three[1:]:
        return "rows"
    return "" if two == three else None


def _with_rows(given: dict, texts: dict[str, list[str]]) -> dict:
    """The arguments for other texts; some pipelines also pass the number of texts."""
    number = len(next(iter(texts.values())))
    return given | texts | ({"batch_size": number} if "batch_size" in given else {})


def _spread(leaf: Nest, at: list[int], grows: str) -> Nest:
    if not grows:
        return leaf
    if isinstance(leaf, list):
        return [leaf[i] for i in at] if grows == "rows" else [_spread(one, at, "rows") for one in leaf]
    return None if leaf is None else leaf[torch.tensor(at, device=leaf.device)]  # a mask of ones may be left out


@dataclass(frozen=True)
class _Resting:
    """A tensor in host memory, and where it belongs."""

    host: Tensor
    device: torch.device


def _in_host(leaf: Nest) -> Nest:
    return _Resting(leaf.cpu(), leaf.device) if isinstance(leaf, Tensor) else leaf


def _handed_out(leaf: Nest) -> Nest:
    return leaf.host.to(leaf.device) if isinstance(leaf, _Resting) else leaf
