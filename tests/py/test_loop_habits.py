"""What libraries count on beyond asyncio's documentation; the same on both loops."""

from __future__ import annotations

import asyncio
import os
import signal
import socket
import threading
from typing import TYPE_CHECKING, Any

import pytest

import plait

if TYPE_CHECKING:
    from collections.abc import Callable, Coroutine, Iterator


@pytest.fixture(params=[plait.new_event_loop, asyncio.SelectorEventLoop], ids=["plait", "asyncio"])
def run(request: pytest.FixtureRequest) -> Iterator[Callable[[Coroutine[Any, Any, Any]], Any]]:
    with asyncio.Runner(loop_factory=request.param) as runner:
        yield runner.run


class LastWords(asyncio.Protocol):
    """Answers and ends the connection by force, in one callback."""

    def __init__(self, end: Callable[[asyncio.Transport], None]) -> None:
        self.end = end

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        assert isinstance(transport, asyncio.Transport)
        self.transport = transport

    def data_received(self, data: bytes) -> None:
        self.transport.write(b"last ")
        self.transport.write(b"words")
        self.end(self.transport)


def raise_error(transport: asyncio.Transport) -> None:
    raise ValueError("a defect of the protocol")


@pytest.mark.parametrize("end", [asyncio.Transport.abort, raise_error])
def test_what_is_written_before_a_forced_end_is_sent(run: Any, end: Any) -> None:
    def end_it(transport: asyncio.Transport) -> None:
        if end is raise_error:
            raise_error(transport)
        transport.abort()

    async def main() -> None:
        loop = asyncio.get_running_loop()
        told: list[dict[str, Any]] = []
        loop.set_exception_handler(lambda _loop, context: told.append(context))
        server = await loop.create_server(lambda: LastWords(end_it), "127.0.0.1", 0)
        host, port = server.sockets[0].getsockname()
        reader, writer = await asyncio.open_connection(host, port)
        writer.write(b"?")
        assert await reader.read() == b"last words"
        assert len(told) == (1 if end is raise_error else 0)
        writer.close()
        await writer.wait_closed()
        server.close()
        await server.wait_closed()

    run(main())


def test_an_abort_drops_what_the_kernel_does_not_take(run: Any) -> None:
    async def main() -> None:
        a, b = socket.socketpair()
        a.setblocking(False)
        _, writer = await asyncio.open_connection(sock=a)
        writer.write(b"x" * (64 << 20))
        await asyncio.sleep(0)
        writer.transport.abort()
        await asyncio.sleep(0)
        with pytest.raises(ConnectionError):
            await writer.drain()
        with b:
            b.settimeout(30)
            received = 0
            while data := b.recv(1 << 20):
                received += len(data)
        assert 0 < received < 64 << 20

    run(main())


def test_one_read_brings_a_quarter_of_a_mebibyte_at_most(run: Any) -> None:
    total = 16 << 20

    class Sizes(asyncio.Protocol):
        def __init__(self) -> None:
            self.sizes: list[int] = []
            self.over = asyncio.get_running_loop().create_future()

        def data_received(self, data: bytes) -> None:
            self.sizes.append(len(data))

        def connection_lost(self, exc: Exception | None) -> None:
            self.over.set_result(exc)

    async def main() -> None:
        ours, theirs = socket.socketpair()
        for each, option in ((ours, socket.SO_RCVBUF), (theirs, socket.SO_SNDBUF)):
            each.setsockopt(socket.SOL_SOCKET, option, 4 << 20)

        def send() -> None:
            with theirs:
                theirs.sendall(b"x" * total)

        thread = threading.Thread(target=send)
        thread.start()
        _, protocol = await asyncio.get_running_loop().create_connection(Sizes, sock=ours)
        assert await protocol.over is None
        thread.join()
        assert sum(protocol.sizes) == total
        assert max(protocol.sizes) <= 256 << 10

    run(main())


def test_a_wakeup_descriptor_that_was_closed_is_nobodys(run: Any) -> None:
    r, w = os.pipe()
    os.set_blocking(w, False)
    old = signal.set_wakeup_fd(w)
    try:
        os.close(w)

        async def main() -> str:
            await asyncio.sleep(0)
            return "ran"

        assert run(main()) == "ran"
    finally:
        os.close(r)
        signal.set_wakeup_fd(old)


def test_debug_mode_takes_what_has_a_truth_value(run: Any) -> None:
    async def main() -> None:
        loop = asyncio.get_running_loop()
        for value in (1, 0, "yes", None):
            loop.set_debug(value)  # type: ignore[arg-type]
            assert bool(loop.get_debug()) is bool(value)

    run(main())
