"""What a loop with io_uring does in the ring: connections, the rest of large writes, accepting."""

from __future__ import annotations

import asyncio
import contextlib
import errno
import socket
import subprocess
import sys
import threading
from collections.abc import Iterator
from typing import Any

import pytest

import plait

BIG = 8 << 20  # more than sockets take at once


class Sink(asyncio.Protocol):
    """Counts what comes; `ended` is done when the connection is lost."""

    def __init__(self) -> None:
        self.got = 0
        self.paused = 0
        self.resumed = 0
        self.ended: asyncio.Future[Exception | None] = asyncio.get_running_loop().create_future()

    def data_received(self, data: bytes) -> None:
        self.got += len(data)

    def pause_writing(self) -> None:
        self.paused += 1

    def resume_writing(self) -> None:
        self.resumed += 1

    def connection_lost(self, exc: Exception | None) -> None:
        self.ended.set_result(exc)


@contextlib.contextmanager
def full_listener() -> Iterator[tuple[str, int]]:
    """A listener that takes no more: connecting to it takes long."""
    with contextlib.ExitStack() as stack:
        listener = stack.enter_context(socket.socket())
        listener.bind(("127.0.0.1", 0))
        listener.listen(0)
        address = listener.getsockname()
        for _ in range(3):
            client = stack.enter_context(socket.socket())
            client.setblocking(False)
            client.connect_ex(address)
        yield address


def client_socket(family: int = socket.AF_INET) -> socket.socket:
    sock = socket.socket(family)
    sock.setblocking(False)
    return sock


# ---- connections ----------------------------------------------------------------


@pytest.mark.parametrize("host", ["127.0.0.1", "::1", "localhost"])
def test_connections_are_made(uring: plait.Loop, host: str, no_leaks: None) -> None:
    served: list[Sink] = []

    def serve() -> Sink:
        served.append(Sink())
        return served[-1]

    async def main() -> None:
        family = socket.AF_INET6 if ":" in host else socket.AF_INET
        try:
            server = await uring.create_server(serve, host, 0, family=family)
        except OSError as exc:
            pytest.skip(f"no {host} here: {exc}")
        address = server.sockets[0].getsockname()
        pairs = await asyncio.gather(
            *(uring.create_connection(Sink, host, address[1], family=family) for _ in range(40))
        )
        with client_socket(family) as sock:
            await uring.sock_connect(sock, (host, *address[1:]))
            assert sock.getpeername() == address
        for transport, protocol in pairs:
            transport.close()
            await protocol.ended
        while len(served) < 41:  # the last has not been accepted, perhaps
            await asyncio.sleep(0)
        for protocol in served:
            await protocol.ended
        server.close()

    uring.run_until_complete(main())
    uring.close()


def test_a_connection_is_begun_before_the_loop_waits(uring: plait.Loop) -> None:
    async def main() -> None:
        with socket.create_server(("127.0.0.1", 0)) as listener, client_socket() as sock:
            connecting = uring.create_task(uring.sock_connect(sock, listener.getsockname()))
            await asyncio.sleep(0)
            listener.settimeout(60)
            listener.accept()[0].close()
            await connecting

    uring.run_until_complete(main())


def test_a_refusal_reads_as_in_asyncio(uring: plait.Loop) -> None:
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))  # and nobody listens
        address = taken.getsockname()

        async def tell() -> tuple[type, int | None, str]:
            loop = asyncio.get_running_loop()
            with client_socket() as sock, pytest.raises(ConnectionRefusedError) as raised:
                await loop.sock_connect(sock, address)
            return type(raised.value), raised.value.errno, str(raised.value)

        with asyncio.Runner(loop_factory=asyncio.SelectorEventLoop) as runner:
            assert uring.run_until_complete(tell()) == runner.run(tell())


@pytest.mark.parametrize(
    ("family", "address"),
    [
        (socket.AF_INET, ("127.0.0.1", 1 << 20)),
        (socket.AF_INET, ("127.0.0.1",)),
        (socket.AF_INET, ("127.0.0.1", "no number")),
        (socket.AF_INET, ["127.0.0.1", 1]),
        (socket.AF_INET6, ("::1", 1, -1, 0)),
        (socket.AF_INET6, ("::1", 1, 0, 1 << 40)),
        (socket.AF_UNIX, "\0nobody listens there"),
    ],
)
def test_odd_addresses_fail_as_in_asyncio(uring: plait.Loop, family: int, address: Any) -> None:
    async def tell() -> type:
        with client_socket(family) as sock:
            try:
                await asyncio.get_running_loop().sock_connect(sock, address)
            except Exception as exc:
                return type(exc)
        raise AssertionError("it was connected")

    with asyncio.Runner(loop_factory=asyncio.SelectorEventLoop) as runner:
        assert uring.run_until_complete(tell()) is runner.run(tell())


def test_a_closed_socket_is_refused(uring: plait.Loop) -> None:
    sock = client_socket()
    sock.close()

    async def main() -> None:
        with pytest.raises(OSError) as raised:
            await uring.sock_connect(sock, ("127.0.0.1", 1))
        assert raised.value.errno == errno.EBADF

    uring.run_until_complete(main())


def test_audit_hooks_hear_of_connections() -> None:
    code = (
        "import asyncio, socket, sys, plait\n"
        "sys.addaudithook(lambda name, args: name == 'socket.connect' and print(args[1]))\n"
        "async def main():\n"
        "    with socket.socket() as sock:\n"
        "        sock.setblocking(False)\n"
        "        try:\n"
        "            await asyncio.get_running_loop().sock_connect(sock, ('127.0.0.1', 1))\n"
        "        except OSError:\n"
        "            pass\n"
        "plait.run(main(), backend='uring')\n"
    )
    done = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, timeout=60, check=True
    )
    assert done.stdout == "('127.0.0.1', 1)\n"


def test_a_cancelled_connection_gives_the_socket_back(uring: plait.Loop) -> None:
    async def main() -> None:
        with full_listener() as address:
            for _ in range(20):
                with client_socket() as sock:
                    # A port of its own, which connections of others cannot share.
                    # On an address of its own, where nobody else finds it free.
                    sock.bind(("127.0.0.77", 0))
                    with pytest.raises(TimeoutError):
                        async with asyncio.timeout(0.005):
                            await uring.sock_connect(sock, address)
                    port = sock.getsockname()[1]
                # Nobody holds its file any more: the port is free, after no wait at all.
                with socket.socket() as again:
                    again.bind(("127.0.0.77", port))
            with pytest.raises(TimeoutError):
                async with asyncio.timeout(0.005):
                    await uring.create_connection(Sink, *address)

    uring.run_until_complete(main())


def test_a_connection_outlasts_the_run(uring: plait.Loop) -> None:
    """The ring is given up between two runs; the connection is made all the same."""
    with socket.socket() as listener, client_socket() as sock:
        listener.bind(("127.0.0.1", 0))
        listener.listen(0)
        fillers = [client_socket() for _ in range(3)]
        for filler in fillers:
            filler.connect_ex(listener.getsockname())
        connecting = uring.create_task(uring.sock_connect(sock, listener.getsockname()))
        for _ in range(3):
            uring.run_until_complete(asyncio.sleep(0))
        assert not connecting.done()
        listener.setblocking(True)
        for filler in fillers:
            filler.close()
        accepting = threading.Thread(
            target=lambda: [listener.accept()[0].close() for _ in range(2)]
        )
        accepting.start()
        uring.run_until_complete(asyncio.wait_for(connecting, 60))
        assert sock.getpeername() == listener.getsockname()
        accepting.join()


def test_the_loop_ends_while_it_connects(no_leaks: None) -> None:
    loop = plait.Loop(backend="uring")
    with full_listener() as address, client_socket() as sock:
        connecting = loop.create_task(loop.sock_connect(sock, address))
        loop.run_until_complete(asyncio.sleep(0))
        loop.run_until_complete(asyncio.sleep(0))
        assert not connecting.done()
        connecting.cancel()
        loop.close()
        del connecting


# ---- large writes ---------------------------------------------------------------


async def connected(loop: plait.Loop) -> tuple[Any, Sink, socket.socket]:
    """A transport, its protocol, and the other end, which does not read."""
    ours, theirs = socket.socketpair()
    theirs.setblocking(False)
    transport, protocol = await loop.create_connection(Sink, sock=ours)
    return transport, protocol, theirs


async def read_all(loop: plait.Loop, sock: socket.socket, n: int) -> bytes:
    parts = bytearray()
    while len(parts) < n:
        data = await loop.sock_recv(sock, 1 << 20)
        assert data
        parts += data
    return bytes(parts)


def test_large_writes_arrive_in_order(uring: plait.Loop) -> None:
    async def main() -> None:
        transport, protocol, theirs = await connected(uring)
        with theirs:
            expected = bytearray()
            for i in range(200):
                piece = bytes([i]) * (i * 997)
                transport.write(piece)
                expected += piece
            transport.write_eof()
            assert transport.get_write_buffer_size() > 0
            assert protocol.paused == 1
            assert await read_all(uring, theirs, len(expected)) == expected
            assert await uring.sock_recv(theirs, 1) == b""
            assert transport.get_write_buffer_size() == 0
            assert (protocol.paused, protocol.resumed) == (1, 1)
            transport.close()
            assert await protocol.ended is None

    uring.run_until_complete(main())


@pytest.mark.parametrize("how", ["abort", "peer", "loop"])
def test_what_is_on_its_way_is_kept_and_then_let_go(how: str, no_leaks: None) -> None:
    """The bytes are the kernel's until it has answered, and nobody's afterwards."""
    loop = plait.Loop(backend="uring")
    data = bytes(BIG)
    held = sys.getrefcount(data)

    async def main() -> None:
        transport, protocol, theirs = await connected(loop)
        transport.write(data)
        await asyncio.sleep(0)
        assert sys.getrefcount(data) > held
        if how == "abort":
            transport.abort()
            await protocol.ended
            # The descriptor is closed, though it was being sent to.
            while theirs.recv(1 << 20):
                pass
        elif how == "peer":
            theirs.close()
            assert isinstance(await protocol.ended, ConnectionError)
        theirs.close()

    async def begin() -> list[Any]:
        transport, _, theirs = await connected(loop)
        transport.write(data)
        await asyncio.sleep(0)
        return [transport, theirs]

    if how == "loop":
        kept = loop.run_until_complete(begin())
        loop.close()
        kept.pop().close()
        with pytest.warns(ResourceWarning, match="unclosed transport"):
            kept.clear()
    else:
        loop.run_until_complete(main())
        loop.run_until_complete(asyncio.sleep(0))
        assert sys.getrefcount(data) == held
        loop.close()
    assert sys.getrefcount(data) == held


def test_a_run_may_end_in_the_middle(uring: plait.Loop) -> None:
    async def begin() -> Any:
        transport, protocol, theirs = await connected(uring)
        transport.write(bytes(BIG))
        await asyncio.sleep(0)
        return transport, protocol, theirs

    transport, protocol, theirs = uring.run_until_complete(begin())
    with theirs:
        transport.write(b"between")
        got: list[bytes] = []

        def finish() -> None:
            got.append(uring.run_until_complete(read_all(uring, theirs, BIG + 7)))

        thread = threading.Thread(target=finish)
        thread.start()
        thread.join()
        assert got[0][-7:] == b"between"
        transport.close()

        async def end() -> None:
            await protocol.ended

        uring.run_until_complete(end())


# ---- accepting ------------------------------------------------------------------


def test_runs_in_one_thread_after_the_other(uring: plait.Loop, no_leaks: None) -> None:
    """A new thread mostly has the number of the one that has ended, and not its ring."""
    pairs = [socket.socketpair() for _ in range(8)]
    for pair in pairs:
        for sock in pair:
            sock.setblocking(False)
    ended: list[BaseException] = []

    async def copy(ours: socket.socket, theirs: socket.socket) -> int:
        transport, sink = await uring.create_connection(Sink, sock=ours)
        transport.write(bytes(BIG))
        transport.close()
        got = 0
        while data := await uring.sock_recv(theirs, 1 << 16):
            got += len(data)
        await sink.ended
        return got

    async def all_of_them() -> list[int]:
        return await asyncio.gather(*(copy(*pair) for pair in pairs))

    def run_a_while() -> None:
        try:
            uring.call_later(0.002, uring.stop)
            uring.run_forever()
        except BaseException as exc:
            ended.append(exc)

    task = uring.create_task(all_of_them())
    while not task.done() and not ended:
        thread = threading.Thread(target=run_a_while)
        thread.start()
        thread.join()
    assert ended == []
    assert task.result() == [BIG] * len(pairs)
    for pair in pairs:
        pair[1].close()


def test_a_socket_of_the_programs_is_shared(uring: plait.Loop) -> None:
    """Other processes may accept from it: none has what another one could take."""
    busy = plait.Loop(backend="uring")
    taken: list[str] = []

    class Taker(asyncio.Protocol):
        def connection_made(self, transport: asyncio.BaseTransport) -> None:
            taken.append("taken")
            transport.abort()  # type: ignore[attr-defined]

    with socket.create_server(("127.0.0.1", 0)) as listener, contextlib.closing(busy):

        async def serve(loop: plait.Loop) -> asyncio.Server:
            mine = listener.dup()
            server = await loop.create_server(Taker, sock=mine)
            await asyncio.sleep(0)
            return server

        # The first that asks the kernel is also the first to be busy.
        servers = [busy.run_until_complete(serve(busy)), uring.run_until_complete(serve(uring))]

        async def main() -> None:
            for i in range(5):
                with client_socket() as sock:
                    await uring.sock_connect(sock, listener.getsockname())
                    assert await uring.sock_recv(sock, 1) == b""
                assert len(taken) == i + 1

        uring.run_until_complete(asyncio.wait_for(main(), 60))
        for server in servers:
            server.close()
        uring.run_until_complete(asyncio.sleep(0))
        busy.run_until_complete(asyncio.sleep(0))
