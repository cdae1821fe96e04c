"""The loops that are compared, by name, and what they are called in code."""

from __future__ import annotations

import asyncio
import functools
import importlib
import importlib.metadata
from collections.abc import Callable
from typing import Any

Factory = Callable[[], asyncio.AbstractEventLoop]

#: Name to module and the name of its factory; after a hyphen the backend to ask it for.
LOOPS: dict[str, tuple[str, str]] = {
    "asyncio": ("asyncio", "SelectorEventLoop"),
    "uvloop": ("uvloop", "new_event_loop"),
    "zuvloop": ("zuvloop", "new_event_loop"),
    "rloop": ("rloop", "new_event_loop"),
    "rsloop": ("rsloop", "new_event_loop"),
    "plait": ("plait", "new_event_loop"),
    "plait-uring": ("plait", "new_event_loop"),
}


def factory(name: str) -> Factory:
    """Find a loop's factory.

    Raises:
        ImportError: the package is not installed, or has no such factory, or not this backend
            on this machine.
    """
    module, attribute = LOOPS[name]
    found = getattr(importlib.import_module(module), attribute, None)
    if found is None:
        raise ImportError(f"{module} has no {attribute}")
    result: Factory = found
    _, _, backend = name.partition("-")
    if backend:
        result = functools.partial(found, backend=backend)
        loop: Any = result()
        loop.close()
        if loop.backend != backend:
            raise ImportError(f"{module} cannot use {backend} here: plait doctor tells why")
    return result


def version(name: str) -> str | None:
    """Tell the version of a loop's package, or None where it cannot be used here."""
    try:
        factory(name)
    except ImportError:
        return None
    if name == "asyncio":
        return ""
    package = LOOPS[name][0]
    try:
        return importlib.metadata.version(package)
    except importlib.metadata.PackageNotFoundError:
        return str(getattr(importlib.import_module(package), "__version__", ""))
