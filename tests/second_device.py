"""A device other than the CPU, on any machine: it holds its tensors in host memory, and refuses what a GPU refuses.

`register` makes it known to torch, for the rest of the process, by a name that torch leaves to other makers. A tensor
on it is a `Held`, which computes with a CPU tensor, so that numbers are those of a CPU. An operation on tensors of both
places is an error, as on a GPU: only numbers (tensors without dimensions) and indices may come from the CPU. `moves`
counts what crosses. What it cannot show: kernels, precision, speed, memory, and anything that is done for CUDA alone.
"""

from collections import Counter
from collections.abc import Callable, Iterator
from types import ModuleType
from typing import Any

import torch
from torch import Tensor
from torch.utils._pytree import tree_flatten, tree_map_only

NAME = "npu"
moves: Counter[str] = Counter()
aten = torch.ops.aten
INDEXED = {aten.index.Tensor, aten.index_put_.default, aten.index_put.default, aten._index_put_impl_.default}
KEPT: list[torch.library.Library] = []


class Held(Tensor):
    """A tensor on the second device."""

    held: Tensor

    @staticmethod
    def __new__(cls, held: Tensor) -> "Held":
        """held: the CPU tensor that it computes with."""
        made = Tensor._make_wrapper_subclass(
            cls,
            held.shape,
            strides=held.stride(),
            storage_offset=held.storage_offset(),
            dtype=held.dtype,
            device=f"{NAME}:0",
        )
        made.held = held
        return made

    def __repr__(self) -> str:
        return f"Held({self.held!r})"

    def untyped_storage(self) -> torch.UntypedStorage:
        """Where the numbers lie, for those who ask whether two tensors share them."""
        return self.held.untyped_storage()

    def data_ptr(self) -> int:
        """The place of the first number."""
        return self.held.data_ptr()

    def tolist(self) -> Any:
        """The values, which wait for the device; torch has no such method for other types of tensor."""
        moves["to the host"] += 1
        return self.held.tolist()

    @classmethod
    def __torch_dispatch__(cls, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs = kwargs or {}
        if func is aten._to_copy.default:
            return _moved(args, kwargs)
        if func is aten.copy_.default:
            return _copied(*args)
        if func is aten._local_scalar_dense.default:
            return _number(args[0])
        _same_place(func, args, kwargs)
        to = kwargs.get("device")
        away = to is not None and torch.device(to).type != NAME
        plain = tree_map_only(Held, lambda t: t.held, (args, kwargs))
        if "device" in plain[1]:
            plain[1]["device"] = torch.device("cpu")
        if plain[1].get("pin_memory"):
            plain[1]["pin_memory"] = False
        out = _computed(func, *plain)
        if away:
            return out
        written = _written(func, args, kwargs)
        if written:
            return written[0] if len(written) == 1 else type(out)(written)
        return tree_map_only(Tensor, Held, out)


def _computed(func: Any, args: Any, kwargs: Any) -> Any:
    """What CPU tensors give; a GPU also counts whole numbers into bins."""
    if func is aten.histc.default and not args[0].is_floating_point():
        return func(args[0].double(), *args[1:], **kwargs).to(args[0].dtype)
    return func(*args, **kwargs)


def _number(one: Held) -> Any:
    """The number that a tensor holds, for which the host waits."""
    moves["numbers to the host"] += 1
    return aten._local_scalar_dense.default(one.held)


def _written(func: Any, args: Any, kwargs: Any) -> list[Tensor]:
    """The arguments that an operation writes into and gives back."""
    names = [a.name for a in func._schema.arguments]
    given = dict(zip(names, args, strict=False)) | kwargs
    back = {str(r.alias_info.before_set) for r in func._schema.returns if r.alias_info and r.alias_info.is_write}
    written = [
        given[a.name]
        for a in func._schema.arguments
        if a.alias_info and a.alias_info.is_write and str(a.alias_info.before_set) in back
    ]
    for t in written:
        if t.shape != t.held.shape or t.stride() != t.held.stride():
            raise NotImplementedError(f"{func} changes the shape of a tensor in its place")
    return written


def _same_place(func: Any, args: Any, kwargs: Any) -> None:
    """Raises RuntimeError where a tensor with dimensions lies on the CPU beside those of the device."""
    seen = args[:1] if func in INDEXED else (args, kwargs)
    for t in tree_flatten(seen)[0]:
        if isinstance(t, Tensor) and not isinstance(t, Held) and t.dim():
            raise RuntimeError(
                f"{func}: all tensors have to be on one device, found {NAME} and {t.device} {[*t.shape]}"
            )


def _moved(args: Any, kwargs: Any) -> Tensor:
    """A copy in another precision, layout or place."""
    source, to = args[0], kwargs.get("device")
    there = torch.device(to).type == NAME if to is not None else isinstance(source, Held)
    here = isinstance(source, Held)
    _count(source, here, there)
    options = {k: v for k, v in kwargs.items() if k not in ("device", "pin_memory")}
    out = aten._to_copy.default(source.held if here else source, **options)
    return Held(out) if there else out


def _copied(target: Tensor, source: Tensor, non_blocking: bool = False) -> Tensor:
    """source, written into target, wherever each is."""
    here, there = isinstance(source, Held), isinstance(target, Held)
    _count(source, here, there)
    (target.held if there else target).copy_(source.held if here else source)
    return target


def _count(source: Tensor, here: bool, there: bool) -> None:
    """Counts what crosses, from the device (here) or to it."""
    if here != there:
        place = "to the device" if there else "to the host"
        moves[place] += 1
        moves[f"bytes {place}"] += source.numel() * source.element_size()


def _factories() -> Iterator[tuple[str, Any]]:
    """Operations that make a tensor of none, on a device that is an argument."""
    for name in torch._C._dispatch_get_all_op_names():
        space, _, full = name.partition("::")
        operation, _, overload = full.partition(".")
        packet = getattr(aten, operation, None) if space == "aten" else None
        found = getattr(packet, overload or "default", None)
        if found is None:
            continue
        schema = found._schema
        if not any(a.name == "device" for a in schema.arguments) or any(
            "Tensor" in str(a.type) for a in schema.arguments
        ):
            continue
        if len(schema.returns) == 1 and str(schema.returns[0].type) == "Tensor":
            yield full, found


def _factory(operation: Any) -> Callable[..., Held]:
    def make(*args: Any, **kwargs: Any) -> Held:
        kwargs |= {"device": torch.device("cpu")}
        if "pin_memory" in kwargs:
            kwargs["pin_memory"] = False
        return Held(operation(*args, **kwargs))

    return make


def _set_data(self: Tensor, value: Tensor) -> None:
    """`self.data = value`, also where it takes the tensor to another device."""
    if not isinstance(self, Held) and not isinstance(value, Held):
        torch._C.TensorBase.data.__set__(self, value)
    elif isinstance(self, Held) and isinstance(value, Held) and (self.shape, self.dtype) == (value.shape, value.dtype):
        self.held = value.held
    elif isinstance(self, torch.nn.Parameter):
        torch.utils.swap_tensors(self, torch.nn.Parameter(value.detach(), requires_grad=self.requires_grad))
    elif not isinstance(self, Held):
        torch.utils.swap_tensors(self, value.detach())
    # and a buffer stays on the device: while a view of it is alive it cannot be exchanged


def _copy_from(source: Tensor, target: Tensor, non_blocking: bool = False) -> Tensor:
    return _copied(target, source)


def register() -> None:
    """Makes the device known to torch, once a process."""
    if KEPT:
        return
    module = ModuleType(NAME)
    answers: dict[str, Any] = {
        "is_available": True, "is_initialized": True, "device_count": 1, "current_device": 0, "_is_in_bad_fork": False,
        "synchronize": None, "set_device": None, "manual_seed": None, "manual_seed_all": None, "empty_cache": None,
        "get_amp_supported_dtype": [torch.bfloat16, torch.float16],
    }  # fmt: skip
    for key, answer in answers.items():
        setattr(module, key, lambda *args, _answer=answer, **kwargs: _answer)
    torch.utils.backend_registration._setup_privateuseone_for_python_backend(NAME, backend_module=module)
    library = torch.library.Library("aten", "IMPL")
    for name, operation in _factories():
        library.impl(name, _factory(operation), "PrivateUse1")
    library.impl("_copy_from", _copy_from, "PrivateUse1")
    library.impl("_local_scalar_dense", _number, "PrivateUse1")  # of torch.tensor([number])
    KEPT.append(library)
    Tensor.data = property(lambda self: self.detach(), _set_data)
    torch.__future__.set_swap_module_params_on_conversion(True)
