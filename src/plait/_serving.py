"""What plait.serve tells: figures, a report, and what a worker knows."""

from __future__ import annotations

import asyncio
from dataclasses import dataclass
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from . import _core
    from ._serve_setup import Setup

__all__ = ["ServeReport", "Serving", "WorkerFigures", "begin", "serving", "worker_figures"]

_STATES = ("free", "serving", "leaving")


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


class Serving:
    """What a worker of plait.serve can know of itself and of the others.

    Belongs to the thread of the worker's loop.
    """

    def __init__(self, setup: Setup, seat: int) -> None:
        self._setup = setup
        self._draining = asyncio.Event()
        self.seat = seat
        """Number of this worker; its replacement may have the same."""

    @property
    def draining(self) -> bool:
        """Whether this worker accepts no more and waits for its connections to end."""
        return self._draining.is_set()

    async def wait_draining(self) -> None:
        """Wait until this worker accepts no more: time to close what is idle."""
        await self._draining.wait()

    def statistics(self) -> tuple[WorkerFigures, ...]:
        """Tell what all workers do now, this one included."""
        return worker_figures(self._setup.rota, self._setup.seats)


_serving: Serving | None = None


def begin(setup: Setup, seat: int) -> Serving:
    """Make what serving() returns from now on: this process has become a worker."""
    global _serving
    _serving = Serving(setup, seat)
    return _serving


def serving() -> Serving | None:
    """Return what this worker of plait.serve knows, or None in any other process."""
    return _serving
