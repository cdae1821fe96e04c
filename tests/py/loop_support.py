"""What the loop's tests share."""

from __future__ import annotations

import asyncio
import contextlib
import os
import select
import socket
from typing import Any, ClassVar

import pytest


async def polled() -> None:
    """Return when the poller has been asked, and what it said before has been handled.

    For tests that show that something does not happen: all that was ready when this was
    called has had its callbacks.
    """
    loop = asyncio.get_running_loop()
    asked: asyncio.Future[None] = loop.create_future()
    ours, theirs = socket.socketpair()
    with ours, theirs:
        theirs.send(b"x")
        # After what is registered already; and the next time all of it is reported again.
        for _ in range(2):
            asked = loop.create_future()
            loop.add_reader(ours, asked.set_result, None)
            await asked
            loop.remove_reader(ours)


class Poller:
    """The poller of a loop on epoll, to see what it would report without taking it."""

    def __init__(self, loop: Any) -> None:
        self._poll = select.poll()
        wakes = ["tfd:", str(loop._ssock.fileno())]  # which only its own poller has
        for name in os.listdir("/proc/self/fd"):
            with contextlib.suppress(OSError), open(f"/proc/self/fdinfo/{name}") as file:
                if any(line.split()[:2] == wakes for line in file):
                    self._poll.register(int(name), select.POLLIN)
                    return
        pytest.skip("the loop waits by other means than epoll")

    def reports(self) -> bool:
        """Whether the loop would be woken at once if it went to its poller now."""
        return bool(self._poll.poll(0))


class Echo(asyncio.Protocol):
    """Sends back what comes."""

    alive = 0
    waiting: ClassVar[dict[int, asyncio.Future[None]]] = {}

    @classmethod
    def count(cls, change: int) -> None:
        cls.alive += change
        if cls.alive in cls.waiting:
            cls.waiting.pop(cls.alive).set_result(None)

    @classmethod
    async def reached(cls, alive: int) -> None:
        """Wait until so many connections are open."""
        if cls.alive != alive:
            cls.waiting[alive] = asyncio.get_running_loop().create_future()
            await cls.waiting[alive]

    def connection_made(self, transport: Any) -> None:
        self.count(1)
        self.transport = transport

    def data_received(self, data: bytes) -> None:
        self.transport.write(data)

    def connection_lost(self, exc: Exception | None) -> None:
        self.count(-1)
