"""Generators that the tests of plait.generators run."""

from __future__ import annotations

from typing import Any

from plait.generators import Strand, sleep


def returning(value: Any) -> Strand[Any]:
    """Take one turn and return."""
    yield sleep(0)
    return value


def raising(error: BaseException) -> Strand[None]:
    """Take one turn and raise."""
    yield sleep(0)
    raise error


def forever() -> Strand[None]:
    """Wait until it is closed."""
    yield sleep(1e9)
