"""Importing what only an extra brings, with a sentence for those who lack it."""

from __future__ import annotations

import importlib
from typing import Any

__all__ = ["LAB", "ExtraMissing", "need"]

LAB = ("rich", "matplotlib", "jinja2")
"""What the extra ``plait[lab]`` brings."""


class ExtraMissing(Exception):
    """Something is not installed, and the text says how to install it."""


def need(module: str, extra: str) -> Any:
    """Import a module of an extra.

    Args:
        module: Its full name.
        extra: The extra that brings it.

    Raises:
        ExtraMissing: It is not installed.
    """
    try:
        return importlib.import_module(module)
    except ModuleNotFoundError as error:
        # Only its own absence is forgiven: a broken installation keeps its traceback.
        if error.name is None or error.name.split(".")[0] != module.split(".")[0]:
            raise
        raise ExtraMissing(
            f"this command needs {module.split('.')[0]}, which is not installed: "
            f"pip install 'plait[{extra}]'"
        ) from None
