"""What the tests of stream transports share: a protocol that writes down, and blocking ends."""

from __future__ import annotations

import asyncio
import contextlib
import socket
from collections.abc import Callable
from typing import Any


class Recorder(asyncio.Protocol):
    """Writes down what it is told."""

    def __init__(self) -> None:
        self.transport: Any = None
        self.data = bytearray()
        self.told: list[str] = []
        self._waiters: dict[str, asyncio.Future[None]] = {}
        self.lost: asyncio.Future[Exception | None] = asyncio.get_running_loop().create_future()

    def tell(self, word: str) -> None:
        self.told.append(word)
        waiter = self._waiters.pop(word, None)
        if waiter is not None:
            waiter.set_result(None)

    async def heard(self, word: str) -> None:
        """Wait until it has been told this."""
        if word not in self.told:
            self._waiters[word] = asyncio.get_running_loop().create_future()
            await self._waiters[word]

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self.transport = transport
        self.tell("made")

    def data_received(self, data: bytes) -> None:
        assert type(data) is bytes
        self.data += data
        if self.told[-1] != "data":
            self.tell("data")

    def eof_received(self) -> bool | None:
        self.tell("eof")
        return None

    def pause_writing(self) -> None:
        self.tell("pause")

    def resume_writing(self) -> None:
        self.tell("resume")

    def connection_lost(self, exc: Exception | None) -> None:
        self.tell("lost")
        self.lost.set_result(exc)


class KeepsOpen(Recorder):
    """Stays half open after the peer's end of stream."""

    def eof_received(self) -> bool:
        super().eof_received()
        return True


async def connect(factory: Callable[[], Any], sock: socket.socket) -> tuple[Any, Any]:
    """Give a connected socket a transport and a protocol."""
    return await asyncio.get_running_loop().connect_accepted_socket(factory, sock)


def in_thread(function: Callable[..., Any], *args: Any) -> asyncio.Future[Any]:
    """Run blocking socket calls beside the loop."""
    return asyncio.get_running_loop().run_in_executor(None, function, *args)


def receive(sock: socket.socket, size: int) -> bytes:
    """Read this many bytes, or less at the end of the stream."""
    data = bytearray()
    while len(data) < size and (part := sock.recv(size - len(data))):
        data += part
    return bytes(data)


def receive_all(sock: socket.socket, size: int = 1 << 20) -> bytes:
    """Read until the end of the stream."""
    parts = []
    with contextlib.suppress(ConnectionResetError):  # by an abort
        while part := sock.recv(size):
            parts.append(part)
    return b"".join(parts)
