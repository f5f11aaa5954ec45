"""A working copy of a pipeline: scheduler intercepted, modules gated, text encoding cached, idle modules offloaded.

The copy is shallow and its class a subclass made on the fly, so that the user's pipeline stays as it is and isinstance
still holds. The only other thing overridden is `_execution_device`, which would look at offloaded modules.
"""

import contextlib
import copy
import functools
import inspect
from collections.abc import Callable, Collection, Iterator
from dataclasses import replace

import torch
from torch import nn

from flowrl.policies.errors import PolicyError
from flowrl.policies.hosting import Hosted, hosted
from flowrl.policies.pipelines.calls.arguments import single_prompt_arguments, takes_one_prompt
from flowrl.policies.pipelines.calls.autoencoders import NAMES, Autoencoding
from flowrl.policies.pipelines.calls.gates import GateKeeper, ModuleGate, Use
from flowrl.policies.pipelines.encoding.conditions import Conditions
from flowrl.policies.pipelines.encoding.prompt_cache import CachedEncoder
from flowrl.policies.pipelines.encoding.store import Store
from flowrl.policies.pipelines.steps.intercepted import Session, intercept
from flowrl.untyped import Nest, Pipeline, PipelineOutput

PLAIN = Autoencoding()


class WorkingCopy:
    """The copy, in `pipe`, and how to call it.

    With `offload`, modules that are not in `trained` are on the device only while they are used; a denoiser that is not
    trained stays once it was fetched. While prompts are encoded, no denoiser is there. Raises PolicyError if the
    pipeline cannot be intercepted.
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
        autoencoding: Autoencoding = PLAIN,
    ):
        self.device, self.keeper = device, keeper
        self._call = call_without_no_grad(type(source))
        self.accepts = set(inspect.signature(self._call).parameters)
        self._one = takes_one_prompt(type(source))
        self._fetched: dict[str, Hosted] = {}  # beside what is trained
        self._away: list[Hosted] = []  # denoisers that make room
        self._together = False
        self.pipe = copy.copy(source)
        self.pipe.__class__ = type(
            type(source).__name__,
            (type(source),),
            {"_execution_device": property(lambda _: device), "__module__": type(source).__module__},
        )
        self.pipe.__dict__["scheduler"] = intercept(source.scheduler, session)
        self._trained: list[Hosted] = []
        self.conditions = Conditions()
        for name, module in modules_of(source).items():
            away = offload and name not in trained
            rests = hosted(module, device)
            use = Use(write=keeper.writer, remember=None if name in trained else self.conditions)
            if away:
                use = replace(use, fetch=functools.partial(self._fetch, name, rests), device=device)
            if name in NAMES:
                use = replace(use, decode=autoencoding.decode, dtype=autoencoding.dtype)
            self.pipe.__dict__[name] = ModuleGate(module, name, keeper, use)
            if away:
                rests.park()
            else:
                rests.fetch()
                self._trained += [rests] if offload else []
        self.encoder: CachedEncoder | None = None
        if hasattr(source, "encode_prompt"):
            self._offload = offload
            self.encoder = CachedEncoder(
                self.pipe.encode_prompt, self._encoded, before=self._before_encoding, by_prompt=offload
            )
            self.pipe.__dict__["encode_prompt"] = self.encoder
        self.pipe._progress_bar_config = {"disable": True}

    @property
    def stores(self) -> list[Store]:
        """Where results of encoders are kept."""
        return [self.conditions.kept, *([] if self.encoder is None else [self.encoder.kept])]

    def __call__(self, arguments: dict[str, Nest], *, grad: bool) -> PipelineOutput:
        """The pipeline's output, with or without gradient, for those of the arguments that it accepts."""
        arguments = single_prompt_arguments(arguments) if self._one else arguments
        with torch.set_grad_enabled(grad):
            return self._call(self.pipe, **{k: v for k, v in arguments.items() if k in self.accepts})

    def park(self) -> None:
        """Frees the device of what was fetched, and brings back the denoisers that made room for it."""
        if self._together:
            return
        for name in [n for n in self._fetched if n not in self.keeper.denoisers]:
            self._fetched.pop(name).park()
        for denoiser in self._away:
            denoiser.fetch()
        self._away = []

    @contextlib.contextmanager
    def encoding(self) -> Iterator[None]:
        """Within, what is fetched stays and has the device to itself, so that it travels once for many prompts."""
        self._together = True
        try:
            yield
        finally:
            self._together = False
            self.park()

    def _before_encoding(self) -> None:
        self.conditions.paused = True
        if self._offload:
            self._make_room()

    def _encoded(self) -> None:
        self.conditions.paused = False
        self.park()

    def _make_room(self) -> None:
        """Sends the denoisers away, but for quantised ones: they are small, and may not be pointed elsewhere."""
        if self._away:
            return
        others = [rests for name, rests in self._fetched.items() if name in self.keeper.denoisers]
        self._away = [rests for rests in (*self._trained, *others) if rests.is_plain]
        for denoiser in self._away:
            denoiser.park()

    def _fetch(self, name: str, rests: Hosted) -> None:
        if name not in self._fetched:
            if self._together:
                self._make_room()
            rests.fetch()
            self._fetched[name] = rests


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
