"""Finding the executables that are installed inside the package."""

from __future__ import annotations

import importlib.resources
import os

__all__ = ["ExecutableMissing", "executable"]


class ExecutableMissing(Exception):
    """An executable of plait's is not where it was installed."""


def executable(name: str) -> str:
    """Find an executable of plait's.

    Args:
        name: Its file name: "fib_load" or "fib_server".

    Returns:
        Its path.

    Raises:
        ExecutableMissing: It is not there, or may not be run.
    """
    try:
        with importlib.resources.as_file(
            importlib.resources.files("plait").joinpath("_bin", name)
        ) as path:
            found = str(path)
    except FileNotFoundError:
        raise ExecutableMissing(f"the executable {name} is not installed with plait") from None
    if not os.access(found, os.X_OK):
        raise ExecutableMissing(f"the executable {found} is missing or may not be run")
    return found
