"""What the pools are given to do: a module of its own, so that every kind of worker finds it."""

from __future__ import annotations

from typing import Any


def noop() -> None:
    """Do nothing."""
    return


def plus_one(x: int) -> int:
    """Next to nothing."""
    return x + 1


def echo(x: Any) -> Any:
    """Return what was sent."""
    return x
