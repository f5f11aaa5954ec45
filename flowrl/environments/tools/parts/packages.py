"""Packages that only some tools need, with one clear line where one is missing."""

from importlib import import_module
from types import ModuleType

from flowrl.contracts import Unavailable


def require(who: str, package: str, extra: str) -> ModuleType:
    """The package. Raises Unavailable, naming what installs it, if it does not import."""
    try:
        return import_module(package)
    except ImportError as error:
        said = f"{who} needs the package {package!r}, which does not import ({error})"
        raise Unavailable(f'{said}; pip install "flowrl-toolkit[{extra}]"') from error
