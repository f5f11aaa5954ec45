"""Which callables a recipe may name by a dotted path: those that declare themselves parts of a run.

A part is taken by its signature, as its contract has it anyway: a reward is called with samples, a step with
(x, v, s, s_next), a tracker is a subclass of accelerate's. Anything else, such as `subprocess.Popen`, is refused before
it is called. What has another signature, such as a function behind a wrapper, is declared with `part`.
"""

import inspect
from collections.abc import Callable
from typing import Any, TypeVar

Thing = TypeVar("Thing", bound=Callable[..., Any])
_MARK = "__flowrl_part__"
# kind -> names of its first parameters, how it is annotated: by its first parameter or by what it returns, and in words
_SIGNATURES: dict[str, tuple[tuple[str, ...], str, str]] = {
    "reward": (("samples",), "Samples", "a function (samples, ...) or a class with __call__(self, samples)"),
    "step": (("x", "v", "s", "s_next"), "Gaussian", "a function (x, v, s, s_next, *, ...)"),
}
_TRACKER = ("accelerate.tracking", "GeneralTracker")


def part(kind: str) -> Callable[[Thing], Thing]:
    """Declares a function or class to be a part, whatever its signature: `@part("reward")` or `@part("step")`."""
    if kind not in _SIGNATURES:
        raise ValueError(f"part({kind!r}): accepted: {', '.join(_SIGNATURES)}")

    def declare(thing: Thing) -> Thing:
        setattr(thing, _MARK, kind)
        return thing

    return declare


def refusal(thing: Any, kind: str) -> str | None:
    """Why an object is no part of a kind (reward, step or tracker), and what to do; None where it is. Calls nothing."""
    if not callable(thing):
        return f"is a {type(thing).__name__}; accepted: a path to a function or class"
    if kind == "tracker":
        bases = inspect.getmro(thing) if inspect.isclass(thing) else ()
        if any((base.__module__, base.__name__) == _TRACKER for base in bases):
            return None
        return "is no tracker; accepted: a subclass of accelerate.tracking.GeneralTracker"
    if getattr(thing, _MARK, None) == kind or any(_fits(call, kind) for call in _calls(thing)):
        return None
    words = _SIGNATURES[kind][2]
    return f'is no {kind}; accepted: {words}; name one, or declare it with @flowrl.parts.part("{kind}")'


def _calls(thing: Any) -> list[Any]:
    """What is called of a function, or of an object of a class: written in Python, bound to nothing yet."""
    if not inspect.isclass(thing):
        return [thing]
    found = [inspect.getattr_static(thing, name, None) for name in ("__call__", "forward")]  # the second of nn.Module
    return [call for call in found if inspect.isfunction(call)]


def _fits(call: Any, kind: str) -> bool:
    """Whether a call begins with a kind's parameters, or is annotated with what only this kind takes or returns."""
    leading, annotation, _ = _SIGNATURES[kind]
    try:
        signature = inspect.signature(call)
    except (ValueError, TypeError):  # written in C without a signature
        return False
    given = [p for p in signature.parameters.values() if p.kind in (p.POSITIONAL_ONLY, p.POSITIONAL_OR_KEYWORD)]
    given = given[1:] if given and given[0].name == "self" else given
    said = given[0].annotation if kind == "reward" and given else signature.return_annotation
    return tuple(p.name for p in given[: len(leading)]) == leading or _name(said) == annotation


def _name(annotation: Any) -> str:
    """The last part of an annotation's name, be it a class or a text."""
    return str(getattr(annotation, "__name__", annotation)).rpartition(".")[2].strip("'\"")
