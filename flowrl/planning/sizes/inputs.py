"""What a pipeline passes to its denoisers and decoders, as shapes: its own call is made, and no module computes.

Every module is on the meta device and is asked for shapes alone; what it answers is passed on as zeros on the CPU, so
that the pipeline's own arithmetic of sizes (packing, compression, padding of texts, pictures that it is given) runs as
it does in a rollout. Nothing here knows a class of pipeline.
"""

import contextlib
import copy
import functools
import inspect
import logging
import warnings
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
import transformers
from PIL import Image
from torch import Tensor, nn
from torch.overrides import TorchFunctionMode
from torch.utils._pytree import tree_leaves, tree_map

from flowrl.contracts import Prompt
from flowrl.planning.sizes.counted import Counted
from flowrl.planning.sizes.live import Live
from flowrl.policies.pipelines.calls.arguments import call_arguments, single_prompt_arguments, takes_one_prompt
from flowrl.policies.random.models import assemble
from flowrl.untyped import JSON, Pipeline

STEPS = 12  # of a call that is watched: enough to come to each denoiser of a walk
LARGE = 2**22  # numbers of a tensor of which a pipeline needs the shape alone
JOINS = (torch.stack, torch.cat, Tensor.repeat)  # of large tensors they would take seconds and gigabytes
SIDE = 1024  # of a picture that a pipeline wants, where there are no prompts to say how large theirs are
Given = tuple[tuple, dict[str, Any]]  # the arguments of one call of a module, its tensors on meta
Pictures = Mapping[str, Sequence[Sequence[int]]]  # argument -> (width, height) of each of its pictures


@dataclass
class Recorded:
    """What a pipeline's call passed on: to each denoiser in the first step that it takes part in, to the first decoder
    (its name and arguments), and how many numbers the states of one row have, of all that are stepped at once.
    encoding: floating-point operations of the other modules; held: bytes that one of their calls makes at most at once,
    of all rows. encoded: bytes that the texts of all rows are encoded to, where the pipeline does so in
    `encode_prompt`."""

    calls: dict[str, list[Given]] = field(default_factory=dict)
    encoding: int = 0
    held: int = 0
    encoded: int = 0
    decoded: tuple[str, Given] | None = None
    latent: int = 0


class NotRecordedError(Exception):
    """The pipeline's call cannot be made without computing something; the text says what."""


def record(
    folder: Path,
    modules: Mapping[str, nn.Module],
    denoisers: Sequence[str],
    call: Mapping[str, JSON],
    *,
    rows: int,
    text: str,
    pictures: Pictures,
) -> Recorded:
    """The call of a folder's pipeline whose components with weights are these modules, on meta: of `rows` rows with
    this text as their prompt, and of pictures of these sizes. Raises NotRecordedError where it cannot be made."""
    watch = _Watch(rows)
    shells = [_Shell(name, module, watch, denoises=name in denoisers) for name, module in modules.items()]
    try:
        pipe = assemble(folder, lambda name, kind, config: modules[name])
        pipe.set_progress_bar_config(disable=True)
        watch.schedule(pipe.scheduler)
        if hasattr(pipe, "encode_prompt"):
            pipe.encode_prompt = watch.encoding(pipe.encode_prompt)
        with torch.no_grad(), _OnCpu(watch), _quiet(), contextlib.suppress(_Decoded):
            _call(pipe, _arguments(pipe, call, rows, text, pictures))
    except Exception as error:
        reason = " ".join(str(error).split())[:160]
        raise NotRecordedError(f"{type(error).__name__}: {reason}") from error
    finally:
        for shell in shells:
            shell.open()
    return watch.recorded


def _arguments(pipe: Pipeline, call: Mapping[str, JSON], rows: int, text: str, pictures: Pictures) -> dict[str, Any]:
    accepts = inspect.signature(type(pipe).__call__).parameters
    prompts = [Prompt(str(row), text) for row in range(rows)]
    arguments: dict[str, Any] = call_arguments(dict(call), prompts, accepts)
    shown = {name: [Image.new("RGB", (width, height)) for width, height in sizes] for name, sizes in pictures.items()}
    arguments |= {name: one[0] if len(one) == 1 else one for name, one in shown.items()}
    arguments |= {"num_inference_steps": STEPS, "output_type": "pt", "generator": torch.Generator()}
    arguments = single_prompt_arguments(arguments) if takes_one_prompt(type(pipe)) else arguments
    return {name: value for name, value in arguments.items() if name in accepts}


def _call(pipe: Pipeline, arguments: dict[str, Any]) -> None:
    """The pipeline's own call; where there is no picture and it does not go without, of one as large as the sample."""
    try:
        pipe(**arguments)
    except _Decoded:
        raise
    except Exception:
        if "image" in arguments or "image" not in inspect.signature(type(pipe).__call__).parameters:
            raise
        side = arguments.get("width", SIDE), arguments.get("height", SIDE)
        pipe(**arguments, image=Image.new("RGB", side))


@contextlib.contextmanager
def _quiet() -> Iterator[None]:
    """Nothing is said of texts that are cut or keys that have no effect: the run itself says it."""
    logging.disable(logging.WARNING)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            yield
    finally:
        logging.disable(logging.NOTSET)


class _Shell:
    """A module on meta that seems to be on the CPU: it takes and gives tensors there, and computes shapes alone."""

    def __init__(self, name: str, module: nn.Module, watch: "_Watch", *, denoises: bool):
        self.name, self.module, self.watch, self.denoises = name, module, watch, denoises
        self.kind = type(module)
        self._answers: dict[str, tuple[Any, int]] = {}
        module.__class__ = _like(self.kind, {"device": torch.device("cpu")})
        self._methods = [one for one in ("forward", "encode", "decode") if callable(getattr(module, one, None))]
        for method in self._methods:
            module.__dict__[method] = self._passing(method, getattr(module, method))

    def open(self) -> None:
        """Makes the module again what it was."""
        self.module.__class__ = self.kind
        for method in self._methods:
            self.module.__dict__.pop(method, None)

    def _passing(self, method: str, compute: Callable[..., Any]) -> Callable[..., Any]:
        def passing(*args: Any, **kwargs: Any) -> Any:
            args, kwargs = tree_map(_to_meta, (args, kwargs))
            if self.denoises and method == "forward":
                self.watch.called(self.name, (args, kwargs))
            if method == "decode":
                self.watch.decoded(self.name, (args, kwargs))
            if isinstance(self.module, transformers.PreTrainedModel):  # masks and grids say nothing of shapes
                name = None if args else next(n for n, value in kwargs.items() if isinstance(value, Tensor))
                more = {n: v for n, v in kwargs.items() if not isinstance(v, Tensor) and n != "use_cache"}
                args, kwargs = args[:1], more if name is None else {name: kwargs[name], **more}
            told = f"{method} {tree_map(_told, (args, kwargs))}"
            if told not in self._answers:
                with self.watch.computing(), Counted() as counted, counted.attention, Live() as live:
                    self._answers[told] = compute(*args, **kwargs), counted.flops
                if not self.denoises and method != "decode":
                    self.watch.recorded.held = max(self.watch.recorded.held, live.peak)
            answer, flops = self._answers[told]
            self.watch.recorded.encoding += 0 if self.denoises else flops
            return tree_map(_to_zeros, answer)

        return passing


class _OnCpu(TorchFunctionMode):
    """Within, what a pipeline reads of a module's own tensors is zeros on the CPU."""

    def __init__(self, watch: "_Watch"):
        super().__init__()
        self.watch = watch

    def __torch_function__(
        self, func: Callable[..., Any], types: Sequence[type], args: tuple = (), kwargs: dict | None = None
    ) -> Any:
        """The function's own result."""
        given = (args, kwargs or {})
        if not self.watch.inside and any(isinstance(leaf, Tensor) and leaf.is_meta for leaf in tree_leaves(given)):
            given = tree_map(_to_zeros, given)
        if not self.watch.inside and func in JOINS:
            made = func(*tree_map(_to_meta, given[0]), **given[1])
            if made.numel() >= LARGE:
                return _to_zeros(made)
        return func(*given[0], **given[1])


class _Watch:
    """What becomes of a call: the first calls of each denoiser, up to a step of the scheduler."""

    def __init__(self, rows: int):
        self.recorded, self.rows = Recorded(), rows
        self.inside = False  # a module
        self._complete: set[str] = set()
        self._stepped = False

    @contextlib.contextmanager
    def computing(self) -> Iterator[None]:
        """Within, a module computes, all of whose tensors are on meta."""
        before, self.inside = self.inside, True
        try:
            yield
        finally:
            self.inside = before

    def called(self, name: str, given: Given) -> None:
        """A denoiser is called."""
        self._stepped = self._stepped or bool(self._complete)
        if name not in self._complete:
            self.recorded.calls.setdefault(name, []).append(given)

    def step(self, sample: Tensor) -> None:
        """A state is stepped, one of several where there are streams."""
        self._complete |= set(self.recorded.calls)
        if not self._stepped:
            self.recorded.latent += sample.numel() // self.rows

    def decoded(self, name: str, given: Given) -> None:
        """A decoder is called, which ends what there is to see."""
        self.recorded.decoded = name, given
        raise _Decoded

    def encoding(self, own: Callable[..., Any]) -> Callable[..., Any]:
        """A pipeline's encoding of texts, whose first result is that of the prompts."""

        @functools.wraps(own)
        def encode(*args: Any, **kwargs: Any) -> Any:
            result = own(*args, **kwargs)
            size = sum(t.numel() * t.element_size() for t in tree_leaves(result) if isinstance(t, Tensor))
            self.recorded.encoded = self.recorded.encoded or size
            return result

        return encode

    def schedule(self, scheduler: Any) -> None:
        """Watches a scheduler, and its deep copies."""
        watch = self

        def step(own: Any, model_output: Tensor, timestep: Any, sample: Tensor, *args: Any, **kwargs: Any) -> Any:
            watch.step(sample)
            return super(watched, own).step(model_output, timestep, sample, *args, **kwargs)

        kind = type(scheduler)
        step.__signature__ = inspect.signature(kind.step)  # pyright: ignore[reportFunctionMemberAccess]
        watched = _like(kind, {"step": step})
        scheduler.__class__ = watched


def _like(kind: type, overridden: dict[str, Any]) -> type:
    """A subclass that is the class itself by all its names, which transformers looks up."""
    return type(
        kind.__name__, (kind,), {"__module__": kind.__module__, "__qualname__": kind.__qualname__, **overridden}
    )


class _Decoded(Exception):
    """The samples are finished."""


def _to_meta(value: Any) -> Any:
    return value.to("meta") if isinstance(value, Tensor) else value


def _to_zeros(value: Any) -> Any:
    """Zeros for a tensor on meta, also for those that an object such as a posterior holds."""
    if isinstance(value, Tensor):
        small = value.numel() < LARGE
        return torch.zeros(value.shape if small else (), dtype=value.dtype).expand(value.shape)
    if hasattr(value, "__dict__") and any(isinstance(one, Tensor) for one in vars(value).values()):
        other = copy.copy(value)
        other.__dict__.update({name: _to_zeros(one) for name, one in vars(value).items()})
        return other
    return torch.device("cpu") if isinstance(value, torch.device) else value


def _told(value: Any) -> Any:
    return (value.shape, value.dtype) if isinstance(value, Tensor) else value
