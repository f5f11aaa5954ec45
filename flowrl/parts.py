"""Which callables a recipe may name by a dotted path: those that declare themselves parts of a run.

A part is recognised by the signature that its contract requires: a reward is called with samples, a step with
(x, v, s, s_next), a window with num_steps, a tracker is a subclass of accelerate's. All other arguments are keys of the
recipe, with their defaults. Anything else, such as `subprocess.Popen`, is refused before it is called. A part with
another signature, such as a wrapped function, is declared with `part`.
"""

import inspect
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, TypeVar

Thing = TypeVar("Thing", bound=Callable[..., Any])
_MARK = "__flowrl_part__"


@dataclass(frozen=True)
class PartKind:
    """A kind of part. leading: the names of its leading parameters. shipped: where the shipped ones are (a package to
    search, or MODULE:TABLE). words: what a part is, in words. annotation: a type that only this kind takes first or
    returns, which identifies it too. given: further arguments that the run fills in if a part takes them. typed:
    whether every argument has to have a type, and the function a docstring. methods: those of which a class has to have
    one set."""

    leading: tuple[str, ...]
    shipped: str
    words: str
    annotation: str = ""
    given: tuple[str, ...] = ()
    typed: bool = False
    methods: tuple[tuple[str, ...], ...] = ()


KINDS: dict[str, PartKind] = {
    "reward": PartKind(
        ("samples",),
        "reward_models",
        "a function (samples, ...) or a class with __call__(self, samples)",
        annotation="Samples",
    ),
    "step": PartKind(
        ("x", "v", "s", "s_next"), "samplers", "a function (x, v, s, s_next, *, ...)", "Gaussian", ("noise", "s_cap")
    ),
    "window": PartKind(
        ("num_steps",), "samplers.windows:WINDOWS", "a function (num_steps, *, ...)", given=("seed", "iteration")
    ),
    "schedule": PartKind(("levels",), "samplers.tables:SCHEDULES", "a function (levels, *, ...)", given=("base",)),
    "solver": PartKind(
        ("x", "x0", "s", "s_next"),
        "samplers.solvers:SOLVERS",
        "a function (x, x0, s, s_next, previous, *, ...)",
        given=("previous",),
    ),
    "advantage": PartKind(
        ("rewards", "rollout"),
        "flowrl.core.advantages.combined:ADVANTAGES",
        "a function (rewards, rollout, *, ...) that gives advantages of rows, [R], or of decisions, [R, K]",
        given=("weights", "asked", "lengths", "given"),
    ),
    "objective": PartKind(
        ("seen", "batch"),
        "flowrl.core.objectives.grpo:OBJECTIVES",
        "a function (seen, batch, *, ...) or a class with __call__(self, seen, batch)",
        given=("clip_low", "clip_high", "correction", "covariance", "perception"),
    ),
    "lr_schedule": PartKind(("left",), "flowrl.core.learning.lr_schedules:LR_SCHEDULES", "a function (left, *, ...)"),
    "rule": PartKind(
        ("metrics",), "", "a function (metrics, *, ...) that gives a text where something is wrong, or None"
    ),
    "policy": PartKind(
        (),
        "",
        "a subclass of a policy that ships",
        given=("pipe", "modules", "dynamics", "call", "device", "max_rows", "offload", "keep_means")
        + (
            "guidance_gradient",
            "autoencoding",
            "model",
            "tokenizer",
            "template",
            "system",
            "chat_arguments",
            "stop",
            "precision",
            "keep_entropy",
            "keep_squares",
            "keep_ends",
            "batch_invariant",
        ),
    ),
    "choice": PartKind(
        ("turn",),
        "flowrl.reading.choices:CHOICES",
        "a function (turn, *, ...) that gives the chance, in [0, 1], that a prompt is drawn, and a word why it is not",
    ),
    "tool": PartKind(
        (),
        "flowrl.environments.tools",
        "a function with a docstring whose arguments have types, or a class with such a __call__",
        typed=True,
    ),
    "environment": PartKind(
        (),
        "flowrl.environments.plugins",
        "a class with tools() and start(prompt, seed), or with reset(...) and public methods as tools",
        methods=(("tools", "start"), ("reset",)),
    ),
    "agent": PartKind(
        ("base_url", "prompt"),
        "flowrl.environments.plugins",
        "a function (base_url, prompt, *, ...) that asks the endpoint at base_url, and gives numbers or None",
    ),
    "tree": PartKind(("walk",), "samplers.growth:TREES", "a function (walk, *, ...) that gives a Tree", "Tree"),
}
# kinds that are recognised by their base class: module and name, so that nothing needs to be imported
BASES = {
    "tracker": (("accelerate.tracking", "GeneralTracker"),),
    "policy": (
        ("flowrl.policies.pipelines.policy", "PipelinePolicy"),
        ("flowrl.policies.language.policy", "LanguagePolicy"),
    ),
}


def part(kind: str) -> Callable[[Thing], Thing]:
    """Declares a function or class as a part, whatever its signature: `@part("reward")` or `@part("step")`."""
    if kind not in KINDS:
        raise ValueError(f"part({kind!r}): accepted: {', '.join(KINDS)}")

    def declare(thing: Thing) -> Thing:
        setattr(thing, _MARK, kind)
        return thing

    return declare


def refusal(thing: Any, kind: str) -> str | None:
    """Why an object is not a part of a kind (of KINDS, or a tracker), and what to do; None if it is. Calls nothing."""
    if not callable(thing):
        return f"is a {type(thing).__name__}; accepted: a path to a function or class"
    if kind in BASES:
        above = inspect.getmro(thing) if inspect.isclass(thing) else ()
        if any((base.__module__, base.__name__) in BASES[kind] for base in above):
            return None
        return f"is not a valid {kind}; accepted: a subclass of {' or '.join('.'.join(base) for base in BASES[kind])}"
    if kind in KINDS and (sets := KINDS[kind].methods):
        found = inspect.isclass(thing) and any(all(hasattr(thing, name) for name in names) for names in sets)
        return None if found else f"is not a valid {kind}; accepted: {KINDS[kind].words}"
    if getattr(thing, _MARK, None) == kind or any(_fits(call, kind) for call in _calls(thing)):
        return None
    words, declared = KINDS[kind].words, f'@flowrl.parts.part("{kind}")'
    return f"is not a valid {kind}; accepted: {words}; name one, or declare it with {declared}"


def _calls(thing: Any) -> list[Any]:
    """The callables to check: the function itself, or the Python methods by which an object of the class is called."""
    if not inspect.isclass(thing):
        return [thing]
    found = [inspect.getattr_static(thing, name, None) for name in ("__call__", "forward")]  # the second of nn.Module
    return [call for call in found if inspect.isfunction(call)]


def _fits(call: Any, kind: str) -> bool:
    """Whether a callable begins with a kind's parameters, or is annotated with a type that only this kind has."""
    leading, annotation = KINDS[kind].leading, KINDS[kind].annotation
    try:
        signature = inspect.signature(call)
    except (ValueError, TypeError):  # written in C without a signature
        return False
    given = [p for p in signature.parameters.values() if p.kind in (p.POSITIONAL_ONLY, p.POSITIONAL_OR_KEYWORD)]
    given = given[1:] if given and given[0].name == "self" else given
    if KINDS[kind].typed:
        own = [p for p in signature.parameters.values() if p.name != "self"]
        return bool(inspect.getdoc(call)) and all(p.annotation is not p.empty for p in own)
    said = given[0].annotation if kind == "reward" and given else signature.return_annotation
    return tuple(p.name for p in given[: len(leading)]) == leading or (annotation != "" and _name(said) == annotation)


def _name(annotation: Any) -> str:
    """The last part of an annotation's name, for a class or a text."""
    return str(getattr(annotation, "__name__", annotation)).rpartition(".")[2].strip("'\"")
