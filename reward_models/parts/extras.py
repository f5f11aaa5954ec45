"""Packages that only some rewards need: imported when such a reward is set up, with one clear line without them."""

from importlib import import_module
from types import ModuleType


def require_package(reward: str, package: str, extra: str) -> ModuleType:
    """The package. Raises ValueError, naming the reward and the extra that holds the package, if it is missing."""
    try:
        return import_module(package)
    except ImportError as error:
        raise ValueError(
            f'{reward}: the package {package!r} does not import ({error}); pip install "flowrl-toolkit[{extra}]"'
        ) from error
