"""One token of every row as a function of tensors of fixed shapes: compiled by torch.compile, recorded on a GPU.

The number of rows and of columns are free when it is compiled, so that one compilation serves all sizes. On a CUDA
device the calls of a size are recorded as a CUDA graph once it has come RUNS times, and replayed from then on; a graph
reads its inputs where they lay when it was recorded, so `StaticBuffers` keeps all of them in place. Graphs are not left
to torch's `reduce-overhead`, which keeps those of weights that have moved: adapters are merged anew for each rollout.
"""

import functools
import shutil
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor
from transformers.cache_utils import Cache, CacheLayerMixin

from flowrl.policies.compiling import COMPILERS, WAYS
from flowrl.policies.errors import PolicyError
from flowrl.policies.language.drawing.forwards import cache_argument, forward_arguments
from flowrl.untyped import LanguageModel

RUNS = 2  # of a size before it is recorded: what starts up at a first call does not belong in a graph
# what torch.compile, and models that take no such cache or mask, raise
FAULTS = (RuntimeError, TypeError, ValueError, AttributeError, LookupError)


class StaticLayer(CacheLayerMixin):
    """Keys and values [B, heads, L, size] of a layer. The new ones of row b go to column at[b], int64 [B]."""

    is_compileable = True
    is_sliding = False
    is_croppable = False

    def __init__(self, keys: Tensor, values: Tensor, at: Tensor):
        self.keys, self.values, self.at, self.is_initialized = keys, values, at, True

    def lazy_initialization(self, key_states: Tensor, value_states: Tensor) -> None:
        """Nothing: keys and values are there."""

    def update(self, key_states: Tensor, value_states: Tensor, *_: Any, **__: Any) -> tuple[Tensor, Tensor]:
        """All keys and values, with those of one further token [B, heads, 1, size]."""
        rows = torch.arange(key_states.shape[0], device=self.at.device)
        self.keys[rows, :, self.at] = key_states[:, :, 0]
        self.values[rows, :, self.at] = value_states[:, :, 0]
        return self.keys, self.values

    def get_mask_sizes(self, query_length: int) -> tuple[int, int]:
        """(columns, the first of them)."""
        return self.keys.shape[2], 0

    def get_seq_length(self) -> int:
        """All columns but one: models ask whether there is anything before the token."""
        return self.keys.shape[2] - 1

    def get_max_length(self) -> int:
        """All columns."""
        return self.keys.shape[2]


@dataclass
class StepInputs:
    """What a step reads, of B rows: token int64 [B, 1], the column `at` int64 [B] that it goes to, and each layer's
    (keys, values) [B, heads, L, size]. positions [B, ..., 1] where they are others than the columns; types [B, 1, ...],
    by the name of the argument."""

    token: Tensor
    at: Tensor
    layers: Sequence[tuple[Tensor, Tensor]]
    positions: Tensor | None
    types: Mapping[str, Tensor]


class Steps:
    """The steps of one model under the weights that it has now. backend: of torch.compile."""

    def __init__(self, model: LanguageModel, backend: str):
        self.model, self.backend, known = model, backend, forward_arguments(model)
        name = cache_argument(model)
        assert name is not None, "models without a cache are refused before"
        self.cache, self.plain = name, {"sample": False} if "sample" in known else {}
        self.plain |= {"logits_to_keep": 1} if "logits_to_keep" in known else {}
        self.additive = getattr(model.config.get_text_config(), "_attn_implementation", None) == "eager"
        self.runs: Counter[tuple[int, int]] = Counter()
        self.graphs: dict[tuple[int, int], tuple[torch.cuda.CUDAGraph, Tensor]] = {}

    def __call__(self, inputs: StepInputs) -> Tensor:
        """Logits [B, V] of the next token of each row, which stand until the next call.

        Raises PolicyError for a model that cannot be run so.
        """
        try:
            if inputs.at.device.type != "cuda":
                return self._run(inputs)
            with torch.cuda.device(inputs.at.device):
                return self._replayed(inputs)
        except torch.OutOfMemoryError:
            raise
        except FAULTS as error:
            reason = " ".join(str(error).split())[:200]
            raise PolicyError(
                f"rollout.cache: {type(self.model).__name__} draws no token with a static cache ({reason}); set "
                "rollout.cache=true"
            ) from error

    def _run(self, inputs: StepInputs) -> Tensor:
        positions = inputs.positions
        beside = [] if positions is None else [positions]
        for tensor in (inputs.token, inputs.at, *beside, *inputs.types.values()):
            torch._dynamo.maybe_mark_dynamic(tensor, 0)
        for tensor in (part for layer in inputs.layers for part in layer):
            torch._dynamo.maybe_mark_dynamic(tensor, (0, 2))
        return compiled(self.backend)(
            self.model,
            self.cache,
            self.additive,
            inputs.token,
            inputs.at,
            list(inputs.layers),
            positions,
            self.plain | dict(inputs.types),
        )

    def _replayed(self, inputs: StepInputs) -> Tensor:
        """The same, from a graph once the size has come often enough."""
        size = len(inputs.at), inputs.layers[0][0].shape[2]
        if size not in self.graphs and self.runs[size] < RUNS:
            self.runs[size] += 1
            return self._run(inputs)
        if size not in self.graphs:
            self.graphs[size] = self._recorded(inputs)
        graph, logits = self.graphs[size]
        graph.replay()
        return logits

    def _recorded(self, inputs: StepInputs) -> tuple[torch.cuda.CUDAGraph, Tensor]:
        """A graph of the step, and where it leaves its logits. Graphs, of which one runs at a time, share memory."""
        pool = next((graph.pool() for graph, _ in self.graphs.values()), None)
        graph = torch.cuda.CUDAGraph()
        with torch.cuda.graph(graph, pool=pool, capture_error_mode="thread_local"):  # rewards may run beside it
            logits = self._run(inputs)
        return graph, logits


def step(
    model: LanguageModel,
    cache: str,
    additive: bool,
    token: Tensor,
    at: Tensor,
    layers: list[tuple[Tensor, Tensor]],
    positions: Tensor | None,
    beside: dict[str, Any],
) -> Tensor:
    """Logits [B, V] behind one token of each row; its keys and values are written into the layers.

    A row sees the columns up to its own. cache: the argument's name. additive: the mask is added to the scores. Others
    as in `StepInputs`.
    """
    positions = at[:, None] if positions is None else positions.movedim(0, -2)
    held = Cache(layers=[StaticLayer(keys, values, at) for keys, values in layers])
    mask = (torch.arange(layers[0][0].shape[2], device=at.device) <= at[:, None])[:, None, None]
    if additive:
        kind = layers[0][0].dtype
        mask = torch.zeros(mask.shape, dtype=kind, device=at.device).masked_fill(~mask, torch.finfo(kind).min)
    given = {cache: held, "position_ids": positions, "attention_mask": mask, "use_cache": True}
    return model(input_ids=token, **given, **beside).logits[:, -1]


@functools.cache
def compiled(backend: str) -> Callable[..., Tensor]:
    """`step`, compiled once for each model and each way in which its adapters are used.

    Raises PolicyError where inductor has no C++ compiler for the CPU.
    """
    if backend == "inductor" and not torch.cuda.is_available() and not any(map(shutil.which, COMPILERS)):
        raise PolicyError(
            "rollout.cache: static is compiled by inductor, which needs a C++ compiler on a CPU, and none of "
            f"{', '.join(COMPILERS)} is found; install one, or set rollout.cache=true"
        )
    torch._dynamo.config.recompile_limit = max(torch._dynamo.config.recompile_limit, WAYS)
    return torch.compile(step, backend=backend)
