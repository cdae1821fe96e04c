"""What the supervisor and its workers both know: settings and figures."""

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
    "ServeReport",
    "Setup",
    "WorkerFigures",
    "Words",
    "counted",
    "worker_figures",
]

_STATES = ("free", "serving", "leaving")


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


@dataclass(frozen=True)
class WorkerFigures:
    """What is known of one worker.

    Attributes:
        seat: its number; a worker that replaces it may have the same.
        state: "serving", "leaving", or "ended".
        connections: how many it has accepted.
        open: descriptors that its loop watches: connections, and a few of its own.
        pid: its process, or None where only the board was looked at.
        exitcode: of one that has ended: its exit code, or the negative number of a signal.
    """

    seat: int
    state: str
    connections: int
    open: int
    pid: int | None = None
    exitcode: int | None = None


@dataclass(frozen=True)
class ServeReport:
    """What came of a call of plait.serve.

    Attributes:
        connections: accepted by all workers together.
        restarts: workers that were replaced because they ended, or hung.
        reloads: how often all workers were replaced on request.
        workers: the workers of the end, and at most 1000 that ended before them.
    """

    connections: int
    restarts: int
    reloads: int
    workers: tuple[WorkerFigures, ...]


def worker_figures(rota: _core.Rota, seats: int) -> tuple[WorkerFigures, ...]:
    """Read the board: all seats that somebody has."""
    found = []
    for seat in range(seats):
        state, watched, connections, _ = rota.read(seat)
        if state != 0:
            found.append(WorkerFigures(seat, _STATES[state], connections, watched))
    return tuple(found)


def counted(count: int, what: str) -> str:
    """Write a number of things: "1 worker", "2 workers"."""
    return f"{count} {what}" if count == 1 else f"{count} {what}s"
