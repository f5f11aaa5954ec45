"""Networks compiled by torch.compile: their repeated blocks one by one, or each as a whole.

Blocks of a class share what is compiled, as diffusers' `compile_repeated_blocks` has it: each class is compiled once
for each way in which it is called (with gradient and without, with adapters and without), and again for the first
other batch, from which on sizes are free. What decodes with a cache of keys and values is not compiled here: the cache
has another length at each token, and another place at each layer, so that every layer would be compiled by itself. With
a static cache it is, as a whole (language/static_steps.py).
"""

import shutil
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import torch
from torch import nn

from flowrl.policies.errors import PolicyError

CACHES = ("cache", "past_key_values")  # what transformers calls the argument, newest name first
WAYS = 64  # in which a class of blocks may be called before torch leaves it uncompiled; torch's own default is 8
COMPILERS = ("g++", "clang++", "c++", "cl")


@dataclass(frozen=True)
class Compiled:
    """What torch has compiled in this process. graphs: one for each way in which something is called. breaks: places
    where a call goes on outside of a graph."""

    graphs: int
    breaks: int

    @classmethod
    def now(cls) -> "Compiled":
        """The counts since the process began."""
        from torch._dynamo.utils import counters

        return cls(counters["stats"]["unique_graphs"], sum(counters["graph_break"].values()))

    def since(self, before: "Compiled") -> "Compiled":
        """What came after other counts."""
        return Compiled(self.graphs - before.graphs, self.breaks - before.breaks)


def compile_networks(
    modules: Mapping[str, nn.Module], *, mode: str = "default", regional: bool = True, backend: str = "inductor"
) -> None:
    """Compiles each module's repeated blocks, or the module, once they are called. mode, backend: torch.compile's.

    Raises PolicyError where a module has no such blocks, and where inductor has no C++ compiler for the CPU.
    """
    if backend == "inductor" and not torch.cuda.is_available() and not any(map(shutil.which, COMPILERS)):
        raise PolicyError(
            "compile: inductor needs a C++ compiler on a CPU, and none of g++, clang++, c++, cl is found; install one, "
            "or set compile=null"
        )
    torch._dynamo.config.recompile_limit = max(torch._dynamo.config.recompile_limit, WAYS)
    for name, module in modules.items():
        parts = [module]
        if regional:
            parts = repeated(module)
        if not parts:
            raise PolicyError(
                f"compile.regional: neither diffusers nor transformers names repeated blocks of {name} "
                f"({type(module).__name__}); set compile.regional=false"
            )
        for part in parts:
            part.compile(mode=mode if backend == "inductor" else None, backend=backend)
            part._compiled_call_impl = _unless_cached(part)


def repeated(module: nn.Module) -> list[nn.Module]:
    """The blocks of classes that diffusers says are repeated, or that transformers keeps in one piece."""
    named = getattr(module, "_repeated_blocks", None) or getattr(module, "_no_split_modules", None) or ()
    return [part for part in module.modules() if type(part).__name__ in named and part is not module]


def _unless_cached(part: nn.Module) -> Callable[..., Any]:
    compiled, plain = part._compiled_call_impl, part._call_impl
    assert compiled is not None

    def call(*args: Any, **kwargs: Any) -> Any:
        run = plain if any(kwargs.get(name) is not None for name in CACHES) else compiled
        return run(*args, **kwargs)

    return call


@contextmanager
def uncompiled() -> Iterator[None]:
    """Within, everything runs as it would without."""
    with torch.compiler.set_stance("force_eager"):
        yield
