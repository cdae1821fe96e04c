"""What the supervisor and its workers both know: the settings of a call."""

from __future__ import annotations

import socket
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    import ssl

    from . import _core

__all__ = [
    "COMMAND",
    "PROGRAM",
    "Setup",
    "Words",
    "counted",
]


@dataclass(frozen=True)
class Words:
    """What messages call settings, by where the reader has written them."""

    factory: str
    kind: str
    options: str


PROGRAM = Words("factory=True", "kind=", "options")
COMMAND = Words("--factory", "--kind", "--option")


@dataclass(frozen=True)
class Setup:
    """The settings of one call of plait.serve; workers inherit it by fork."""

    target: Any
    kind: str | None
    factory: bool
    workers: int
    sockets: tuple[socket.socket, ...]
    backlog: int
    ssl: Callable[[], ssl.SSLContext] | None
    grace: float
    timeout: float | None
    start_timeout: float | None
    max_restarts: int
    options: Mapping[str, Any]
    rota: _core.Rota
    seats: int
    words: Words


def counted(count: int, what: str) -> str:
    """Write a number of things: "1 worker", "2 workers"."""
    return f"{count} {what}" if count == 1 else f"{count} {what}s"
