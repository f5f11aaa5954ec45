"""Text that a pipeline has a language model write inside its call: once a sample, by the sample's own randomness.

Some pipelines rewrite prompts (ERNIE-Image, LongCat-Image, FLUX.2), or draw a sketch as tokens (GLM-Image), by a
component's `generate`, which draws from the global generator. A replay makes the same call again: the text must be the
rollout's, whatever rows share the call. So each row is written by itself, without the padding of the others, under a
seed of its sample, and remembered.
"""

import hashlib
from collections import OrderedDict
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import torch
from torch import Tensor

from flowrl.policies.errors import PolicyError
from flowrl.policies.noise import Key

LARGEST = 100_000  # texts that are kept; one that was dropped is written again, alike

# Switches of pipelines that write in ways that rows cannot be told apart in, and what to do instead.
_JOINT = {
    "prompt_upsampling": "Ideogram4",  # draws the writer's seed from the first row's generator
    "enable_prompt_enhancement": "LTX2",  # writes one text for a list of prompts
    "system_prompt": "LTX2",
}


class Writer:
    """Stands between a pipeline and the `generate` of its components. `starts` are the keys of the rows of the pass."""

    def __init__(self) -> None:
        self.starts: Sequence[Key] = ()
        self._calls: dict[str, int] = {}
        self._kept: OrderedDict[tuple[Any, ...], Tensor] = OrderedDict()

    def begin(self, starts: Sequence[Key]) -> None:
        """Starts a pass over rows of these samples."""
        self.starts = starts
        self._calls.clear()

    def __call__(self, name: str, generate: Callable[..., Any], args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
        """What `generate` of the component `name` returns: ids int64 [r, L], the r prompts with what was added."""
        if not self.starts:
            return generate(*args, **kwargs)
        kwargs = kwargs | ({"input_ids": args[0]} if args else {})
        ids = kwargs.get("input_ids")
        if not isinstance(ids, Tensor) or len(args) > 1:
            raise PolicyError(f"{name}.generate is called without input_ids: its text cannot be told apart by rows")
        number, ordinal = len(ids), self._calls.get(name, 0)
        self._calls[name] = ordinal + 1
        if number not in (1, len(self.starts)):
            raise PolicyError(f"{name}.generate is called for {number} texts of {len(self.starts)} rows")
        keys = self.starts if number == len(self.starts) else [self.starts[ordinal % len(self.starts)]]
        uses = ordinal // len(self.starts) if number == 1 else ordinal
        rows = [self._written(name, generate, _row(name, kwargs, i, number), key, uses) for i, key in enumerate(keys)]
        return torch.cat([ids, _padded(rows, kwargs.get("pad_token_id") or 0).to(ids)], 1)

    def _written(self, name: str, generate: Callable[..., Any], given: dict[str, Any], key: Key, uses: int) -> Tensor:
        """The ids [L] that are added for one row."""
        place = (name, key, uses, _digest(given))
        if place not in self._kept:
            device = given["input_ids"].device
            with torch.random.fork_rng([device] if device.type == "cuda" else []), torch.no_grad():
                torch.manual_seed(key.number("writer", name, uses))
                found = generate(**given)
            if not isinstance(found, Tensor):
                raise PolicyError(f"{name}.generate returned a {type(found).__name__}; token ids are accepted")
            self._kept[place] = found[0, given["input_ids"].shape[1] :].cpu()
            while len(self._kept) > LARGEST:
                self._kept.popitem(last=False)
        return self._kept[place]


def check_writing(pipe: Any, call: Mapping[str, Any]) -> None:
    """Raises PolicyError for an argument that has texts written jointly for the rows of a call."""
    for name, family in _JOINT.items():
        if type(pipe).__name__.startswith(family) and call.get(name):
            raise PolicyError(
                f"pipeline.{name}: {type(pipe).__name__} rewrites the prompts of a call jointly: a sample would "
                "depend on its company: remove it, and write the long prompts in the prompt file"
            )


def _row(name: str, kwargs: dict[str, Any], i: int, number: int) -> dict[str, Any]:
    """The arguments of row i alone, without its padding. Raises PolicyError where they cannot be taken apart."""
    ids, mask = kwargs["input_ids"], kwargs.get("attention_mask")
    real = slice(None) if mask is None else mask[i].bool()
    found: dict[str, Any] = {}
    for key, value in kwargs.items():
        if not isinstance(value, Tensor):
            found[key] = value
        elif value.shape == ids.shape:
            found[key] = value[i : i + 1, real]
        elif number == 1:
            found[key] = value
        elif key.endswith("grid_thw") and len(value) % number == 0:
            each = len(value) // number
            found[key] = value[i * each : (i + 1) * each]
        else:
            raise PolicyError(
                f"{name}.generate is given {key} for {number} rows at once, which cannot be told apart; set "
                "train.rollout_batch=1 and train.micro_batch=1, or switch the rewriting of prompts off under `pipeline`"
            )
    return found


def _padded(rows: Sequence[Tensor], pad: int) -> Tensor:
    return torch.nn.utils.rnn.pad_sequence(list(rows), batch_first=True, padding_value=pad)


def _digest(given: Mapping[str, Any]) -> bytes:
    """Of all that the text depends on but the weights and the seed."""
    digest = hashlib.blake2b(digest_size=16)
    for key, value in sorted(given.items()):
        digest.update(key.encode())
        if isinstance(value, Tensor):
            digest.update(f"{value.dtype}{tuple(value.shape)}".encode())
            digest.update(value.detach().cpu().contiguous().flatten().view(torch.uint8).numpy().tobytes())
        else:
            digest.update(repr(value).encode() if isinstance(value, str | int | float | None) else b"?")
    return digest.digest()
