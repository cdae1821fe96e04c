"""The loops that are compared, by name, and what they are called in code."""

from __future__ import annotations

import asyncio
import importlib
import importlib.metadata
from collections.abc import Callable

Factory = Callable[[], asyncio.AbstractEventLoop]

#: Name to module and the name of its factory.
LOOPS: dict[str, tuple[str, str]] = {
    "asyncio": ("asyncio", "SelectorEventLoop"),
    "uvloop": ("uvloop", "new_event_loop"),
    "zuvloop": ("zuvloop", "new_event_loop"),
    "rloop": ("rloop", "new_event_loop"),
    "rsloop": ("rsloop", "new_event_loop"),
    "plait": ("plait", "new_event_loop"),
}


def factory(name: str) -> Factory:
    """Find a loop's factory.

    Raises:
        ImportError: the package is not installed, or has no such factory.
    """
    module, attribute = LOOPS[name]
    found = getattr(importlib.import_module(module), attribute, None)
    if found is None:
        raise ImportError(f"{module} has no {attribute}")
    result: Factory = found
    return result


def version(name: str) -> str | None:
    """Tell the version of a loop's package, or None where it cannot be used here."""
    try:
        factory(name)
    except ImportError:
        return None
    if name == "asyncio":
        return ""
    try:
        return importlib.metadata.version(name)
    except importlib.metadata.PackageNotFoundError:
        return str(getattr(importlib.import_module(name), "__version__", ""))
