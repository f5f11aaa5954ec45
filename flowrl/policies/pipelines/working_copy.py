"""A working copy of a pipeline: scheduler intercepted, modules gated, text encoding cached, idle modules offloaded.

The copy is shallow and its class a subclass made on the fly, so that the user's pipeline stays as it is and isinstance
still holds. The only other thing overridden is `_execution_device`, which would look at offloaded modules.
"""

import copy
import functools
import inspect
from collections.abc import Callable, Collection

import torch
from torch import nn

from flowrl.policies.errors import PolicyError
from flowrl.policies.pipelines.arguments import single_prompt_arguments, takes_one_prompt
from flowrl.policies.pipelines.gates import GateKeeper, ModuleGate
from flowrl.policies.pipelines.intercepted_step import Session, intercept
from flowrl.policies.pipelines.prompt_cache import CachedEncoder
from flowrl.untyped import Nest, Pipeline, PipelineOutput


class WorkingCopy:
    """The copy, in `pipe`, and how to call it.

    With `offload`, modules that are not in `trained` are on the device only while they are used; a denoiser that is not
    trained stays once it was fetched. Raises PolicyError if the pipeline cannot be intercepted.
    """

    def __init__(
        self,
        source: Pipeline,
        session: Session,
        keeper: GateKeeper,
        device: torch.device,
        *,
        trained: Collection[str],
        offload: bool,
    ):
        self.device, self.keeper = device, keeper
        self._call = call_without_no_grad(type(source))
        self.accepts = set(inspect.signature(self._call).parameters)
        self._one = takes_one_prompt(type(source))
        self._fetched: dict[str, nn.Module] = {}
        self.pipe = copy.copy(source)
        self.pipe.__class__ = type(
            type(source).__name__,
            (type(source),),
            {"_execution_device": property(lambda _: device), "__module__": type(source).__module__},
        )
        self.pipe.__dict__["scheduler"] = intercept(source.scheduler, session)
        for name, module in modules_of(source).items():
            away = offload and name not in trained
            fetch = functools.partial(self._fetch, name, module) if away else None
            self.pipe.__dict__[name] = ModuleGate(module, name, keeper.call, fetch, keeper.writer)
            module.to("cpu" if away else device)
        if hasattr(source, "encode_prompt"):
            self.pipe.__dict__["encode_prompt"] = CachedEncoder(self.pipe.encode_prompt, self.park)
        self.pipe._progress_bar_config = {"disable": True}

    def __call__(self, arguments: dict[str, Nest], *, grad: bool) -> PipelineOutput:
        """The pipeline's output, with or without gradient, for those of the arguments that it accepts."""
        arguments = single_prompt_arguments(arguments) if self._one else arguments
        with torch.set_grad_enabled(grad):
            return self._call(self.pipe, **{k: v for k, v in arguments.items() if k in self.accepts})

    def park(self) -> None:
        """Sends what was fetched back to the CPU."""
        for name in [n for n in self._fetched if n not in self.keeper.denoisers]:
            self._fetched.pop(name).to("cpu")

    def _fetch(self, name: str, module: nn.Module) -> None:
        if name not in self._fetched:
            module.to(self.device)
            self._fetched[name] = module


def modules_of(pipe: Pipeline) -> dict[str, nn.Module]:
    """The pipeline's components that are modules, by name."""
    return {name: part for name, part in pipe.components.items() if isinstance(part, nn.Module)}


def call_without_no_grad(pipeline: type) -> Callable:
    """The pipeline's `__call__` without its `torch.no_grad` decorator.

    Raises PolicyError if there is no such decorator.
    """
    call: Callable = pipeline.__call__
    if not hasattr(call, "__wrapped__"):
        raise PolicyError(
            f"{pipeline.__name__}.__call__ is not wrapped by torch.no_grad(), so that gradient cannot be enabled"
        )
    return inspect.unwrap(call)
