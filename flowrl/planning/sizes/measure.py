"""The sizes of a model, measured on its modules: they are built on the meta device, which loads the big libraries."""

import functools
import json
from collections.abc import Callable, Sequence
from dataclasses import asdict, astuple, replace
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils._pytree import tree_map

from flowrl.known.places import config_place, cut
from flowrl.planning.sizes.activations import measure_activations, saved_weights
from flowrl.planning.sizes.components import components, num_parameters, parameter_bytes
from flowrl.planning.sizes.counted import count_flops
from flowrl.planning.sizes.few_bits import quantised_bytes
from flowrl.planning.sizes.inputs import NotRecordedError, Recorded, record
from flowrl.planning.sizes.live import peak_live
from flowrl.planning.sizes.query import MeasuredSizes, SizeQuery
from flowrl.planning.sizes.repeated import of_blocks
from flowrl.policies import adapters
from flowrl.policies.blocks import repeated_blocks
from flowrl.policies.computing import compute_as_inputs
from flowrl.policies.merging import touched_bytes
from flowrl.policies.recomputing import checkpoint_gradients
from flowrl.recipe.keys.fitting import QuantizeKeys
from flowrl.recipe.models import pipeline_class
from flowrl.untyped import Network

ROWS = 2  # of the call that is made to see what is passed on


def measure(query: SizeQuery) -> MeasuredSizes:
    """The sizes of a model whose configs are available. Raises PolicyError for a LoRA that does not fit it."""
    known = components(query.model) or {}
    dtype = getattr(torch, query.dtype)
    modules = {name: part.build(dtype) for name, part in known.items()}
    parameters = {name: num_parameters(module) for name, module in modules.items()}
    frozen = {name: parameter_bytes(module) for name, module in modules.items()}
    trained = list(_trained(query, modules))
    del modules
    recorded, rows, unknown = _recorded(query)
    learns, kept, fixed = [0, 0, 0], [], [0]
    for name in trained:

        def numbers(module: nn.Module, name: str = name) -> list[int]:
            before = parameter_bytes(module)
            _make_trainable(query, {name: module})
            learning = list(adapters.trainable({name: module}))
            state = sum(p.numel() * p.element_size() for p in learning)
            found = [sum(p.numel() for p in learning), state, parameter_bytes(module) - before]
            if name in recorded.calls:
                bytes_kept = measure_activations(module, recorded.calls[name])
                found += [bytes_kept.fixed, bytes_kept.whole, bytes_kept.block, *bytes_kept.moments]
            return found

        found = of_blocks(known[name], dtype, query.lora, numbers)
        learns = [a + b for a, b in zip(learns, found[:3], strict=True)]
        fixed += found[3:4]
        if found[3:]:
            whole, block, *moments = found[4:]
            kept.append([whole // rows, max(moments) // rows, block // rows])
    return MeasuredSizes(
        parameters=parameters,
        frozen=frozen,
        trained=trained,
        learning=learns[0],
        state=learns[1],
        added=learns[2],
        pipeline=str(pipeline_class(query.model)),
        latent=recorded.latent or None,
        kept=kept,
        fixed=max(fixed),
        unknown=unknown,
    )


def measure_recomputing(query: SizeQuery, every: int) -> list[int]:
    """Bytes that each denoiser keeps of a row where each so many-th of its blocks computes again."""
    recorded, rows, _ = _recorded(query)
    found = []
    for name, part in _trained(query, components(query.model) or {}).items():
        if name in recorded.calls:

            def numbers(module: nn.Module, name: str = name) -> Sequence[int]:
                _make_trainable(query, {name: module})
                return measure_activations(module, recorded.calls[name], every).moments

            moments = of_blocks(part, getattr(torch, query.dtype), query.lora, numbers, every)
            found.append(max(moments) // rows)
    return found


def measure_flops(query: SizeQuery, again: int, *, tiling: bool) -> dict[str, int] | None:
    """Floating-point operations of a row: `forward` of the denoiser, without gradient, `training` forward and backward,
    `encoding` of all that is called before it, `decoding`. again: so many-th blocks compute again, 0: none. Of several
    denoisers that of the most. None where the calls are not known."""
    recorded, rows, _ = _recorded(query)
    known, forward, training = components(query.model) or {}, [0], [0]
    for name, part in _trained(query, known).items():

        def numbers(module: nn.Module, name: str = name) -> list[int]:
            _make_trainable(query, {name: module})

            def compute() -> list[Any]:
                return [module(*args, **kwargs) for args, kwargs in recorded.calls.get(name, [])]

            whole = count_flops(compute)
            if again:
                checkpoint_gradients({name: module}, again)
            return [whole, count_flops(compute, backward=True)]

        found = of_blocks(part, getattr(torch, query.dtype), query.lora, numbers, again or 1)
        forward.append(found[0] // rows)
        training.append(found[1] // rows)
    if not recorded.calls or recorded.decoded is None:
        return None
    decoding = count_flops(_decoding(query, recorded, rows, query.dtype, tiling=tiling))
    found = {"forward": max(forward), "training": max(training)}
    return found | {"encoding": recorded.encoding // rows, "decoding": decoding}


def measure_encoded(query: SizeQuery) -> int:
    """Bytes of what a prompt's texts are encoded to; 0 where that is not known, or not asked for in one place."""
    recorded, rows, _ = _recorded(query)
    return recorded.encoded // rows


def measure_merged(query: SizeQuery) -> int:
    """Bytes of the weights that a LoRA touches: what merged ones take beside them."""

    def numbers(module: nn.Module) -> list[int]:
        _make_trainable(query, {"": module})
        return [touched_bytes({"": module})]

    parts = _trained(query, components(query.model) or {}).values()
    return sum(of_blocks(part, getattr(torch, query.dtype), query.lora, numbers)[0] for part in parts)


def _trained(query: SizeQuery, parts: dict[str, Any]) -> dict[str, Any]:
    """Those of the components that learn."""
    wanted = query.lora["modules"] if query.lora is not None else None
    return {n: parts[n] for n in (adapters.DENOISERS if wanted is None else wanted) if n in parts}


def _make_trainable(query: SizeQuery, trained: dict[str, Network]) -> None:
    with torch.device("meta"):
        if query.lora is not None:
            options = {name: value for name, value in query.lora.items() if name not in ("modules", "as_model")}
            adapters.add_lora(trained, **options)
            if query.lora.get("as_model"):
                compute_as_inputs(trained)
        else:
            adapters.train_full(trained)


def measure_encoding(query: SizeQuery) -> list[int] | None:
    """Bytes that the other modules make at most at once before the denoiser is called, for one prompt and what it comes
    with; None where the call is not known."""
    recorded, rows, _ = _recorded(query)
    return [recorded.held // rows] if recorded.calls else None


def measure_decoding(query: SizeQuery, dtype: str, *, tiling: bool) -> int | None:
    """Bytes that decoding one sample makes at most at once, in dtype; None where its shapes are not known."""
    recorded, rows, _ = _recorded(query)
    if recorded.decoded is None:
        return None
    return peak_live(_decoding(query, recorded, rows, dtype, tiling=tiling))


def _decoding(query: SizeQuery, recorded: Recorded, rows: int, dtype: str, *, tiling: bool) -> Callable[[], object]:
    """What decodes one row of a recorded call."""
    assert recorded.decoded is not None
    name, (args, kwargs) = recorded.decoded
    precision = getattr(torch, dtype)
    vae: Network = (components(query.model) or {})[name].build(precision)
    if tiling:
        vae.enable_tiling()

    def one_row(value: object) -> object:
        return value[: max(1, len(value) // rows)].to(precision) if isinstance(value, Tensor) else value

    args, kwargs = tree_map(one_row, (args, kwargs))
    return lambda: vae.decode(*args, **kwargs)


def _recorded(query: SizeQuery) -> tuple[Recorded, int, str | None]:
    """(what the pipeline passes on, of how many rows, why nothing is known): two rows where it takes two prompts."""
    return _recorded_once(json.dumps(asdict(replace(query, lora=None))), str(config_place(query.model)))


@functools.lru_cache(maxsize=4)
def _recorded_once(text: str, folder: str) -> tuple[Recorded, int, str | None]:
    """The same, of a query's JSON. Denoisers have one block of each kind: all are passed the same."""
    query, reason = SizeQuery(**json.loads(text)), None
    known = components(query.model) or {}
    denoisers = [name for name in adapters.DENOISERS if name in known]
    known |= {name: replace(known[name], config=cut(known[name].config, 1)) for name in denoisers}
    modules = {name: part.build(getattr(torch, query.dtype)) for name, part in known.items()}
    for rows in (ROWS, 1):
        try:
            given = {"rows": rows, "text": query.text, "pictures": query.pictures}
            return record(Path(folder), modules, denoisers, query.pipeline, **given), rows, None
        except NotRecordedError as error:
            reason = str(error)
    return Recorded(), 1, reason


def measure_blocks(query: SizeQuery, trained: list[str]) -> list[list[int]]:
    """Bytes of all repeated blocks of each denoiser, and of its largest, before anything is added to them."""
    known, found = components(query.model) or {}, []
    for name in trained:
        blocks = [parameter_bytes(one) for one in repeated_blocks(known[name].build(getattr(torch, query.dtype)))]
        found.append([sum(blocks), max(blocks, default=0)])
    return found


def measure_quantised(query: SizeQuery, keys: QuantizeKeys) -> list[list[int]]:
    """See `quantised_bytes`: of each denoiser (spared, copies, block)."""
    recorded, _, _ = _recorded(query)
    found = []
    for name, part in _trained(query, components(query.model) or {}).items():

        def numbers(module: nn.Module, name: str = name) -> list[int]:
            _make_trainable(query, {name: module})
            saved = saved_weights(module, recorded.calls.get(name, []))
            return list(astuple(quantised_bytes(module, keys, saved)))

        # what a file holds is that of all blocks
        wholly = keys.weights == "gguf"
        part_of = numbers(part.build(getattr(torch, query.dtype))) if wholly else None
        found.append(part_of or of_blocks(part, getattr(torch, query.dtype), query.lora, numbers))
    return found
