"""The modules within a module, found in one pass.

`nn.Module.modules` goes through a generator within a generator for each level of depth, and makes up the names of all.
What does so once a rollout is felt on small models, whose forward passes take a few milliseconds.
"""

from torch import nn


def submodules(*modules: nn.Module) -> list[nn.Module]:
    """The modules and all modules within them, each once, in the order of `nn.Module.modules`."""
    found: dict[nn.Module, None] = {}
    waiting: list[nn.Module | None] = list(reversed(modules))
    while waiting:
        part = waiting.pop()
        if part is None or part in found:  # what is registered as None is no module
            continue
        found[part] = None
        if part._modules:
            waiting.extend(reversed(part._modules.values()))
    return list(found)
