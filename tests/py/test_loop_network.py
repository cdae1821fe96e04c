"""Names, connections, servers and datagrams: what asyncio documents, on both loops."""

from __future__ import annotations

import asyncio
import contextlib
import errno
import gc
import os
import resource
import socket
import struct
import sys
import threading
import weakref
from collections.abc import Callable, Iterator
from typing import Any

import pytest
from conftest import open_fds
from loop_support import Poller, polled

import plait

Factory = Callable[[], asyncio.AbstractEventLoop]


def run_on(factory: Factory, coroutine: Any) -> Any:
    with asyncio.Runner(loop_factory=factory) as runner:
        return runner.run(asyncio.wait_for(coroutine, 100))


class Told(asyncio.DatagramProtocol):
    """Writes down what a datagram endpoint is told."""

    def __init__(self) -> None:
        self.got: asyncio.Queue[tuple[bytes, Any]] = asyncio.Queue()
        self.errors: asyncio.Queue[Exception] = asyncio.Queue()
        self.lost = asyncio.get_running_loop().create_future()
        self.paused = self.resumed = 0

    def datagram_received(self, data: bytes, addr: Any) -> None:
        self.got.put_nowait((data, addr))

    def error_received(self, exc: Exception) -> None:
        self.errors.put_nowait(exc)

    def pause_writing(self) -> None:
        self.paused += 1

    def resume_writing(self) -> None:
        self.resumed += 1

    def connection_lost(self, exc: Exception | None) -> None:
        self.lost.set_result(exc)


# ---- names ----


def outcome(call: Callable[[], Any]) -> Any:
    """What a call returns, or the class and code of its error."""
    try:
        return call()
    except Exception as error:
        return type(error), error.args[:1]


LITERALS = [
    ("127.0.0.1", 80),
    ("::1", 80),
    ("fe80::1%1", 443),
    ("fe80::1%lo", 443),
    ("::ffff:1.2.3.4", 1),
    ("127.1", 80),
    ("", 80),
    (None, 80),
    ("127.0.0.1", "http"),
    ("127.0.0.1", None),
    (b"127.0.0.1", b"80"),
    ("256.1.1.1", 80),
    ("fe80::1%nosuchzone", 80),
    ("localhost", 80),
    ("1.2.3.4\0", 80),
]


@pytest.mark.parametrize("where", LITERALS, ids=repr)
@pytest.mark.parametrize("kind", [0, socket.SOCK_STREAM, socket.SOCK_DGRAM])
def test_literals_are_what_the_stdlib_says(loop: plait.Loop, where: Any, kind: int) -> None:
    host, port = where
    expected = outcome(lambda: socket.getaddrinfo(host, port, type=kind))
    assert outcome(lambda: loop.run_until_complete(loop.getaddrinfo(host, port, type=kind))) == (
        expected
    )


def test_zones_reach_the_socket(any_loop_factory: Factory) -> None:
    """A link-local address without its zone names no interface."""

    async def main() -> None:
        loop = asyncio.get_running_loop()
        index = socket.if_nametoindex("lo")
        infos = await loop.getaddrinfo("fe80::1%lo", 9, type=socket.SOCK_STREAM)
        assert infos[0][4] == ("fe80::1%lo", 9, 0, index) or infos[0][4][3] == index
        host, service = await loop.getnameinfo(
            ("fe80::1", 9, 0, index), socket.NI_NUMERICHOST | socket.NI_NUMERICSERV
        )
        assert (host, service) == ("fe80::1%lo", "9")

    try:
        run_on(any_loop_factory, main())
    except socket.gaierror as error:  # a machine without IPv6
        pytest.skip(str(error))


ADDRESSES = [
    ("127.0.0.1", 80),
    ("127.0.0.1", 1),
    ("::1", 443, 0, 0),
    ("fe80::1%lo", 9, 0, 1),
    ("localhost", 80),
    ("127.0.0.1", 70000),
    ("127.0.0.1",),
    "127.0.0.1",
    ("not.a.literal.", 80),
]


@pytest.mark.parametrize("address", ADDRESSES, ids=repr)
@pytest.mark.parametrize("flags", [0, socket.NI_NUMERICSERV, socket.NI_DGRAM])
def test_names_are_what_the_stdlib_says(loop: plait.Loop, address: Any, flags: int) -> None:
    flags |= socket.NI_NUMERICHOST  # nobody is asked for a name
    expected = outcome(lambda: socket.getnameinfo(address, flags))
    assert outcome(lambda: loop.run_until_complete(loop.getnameinfo(address, flags))) == expected


def test_the_name_of_this_machine(loop: plait.Loop) -> None:
    expected = socket.getnameinfo(("127.0.0.1", 80), 0)
    assert loop.run_until_complete(loop.getnameinfo(("127.0.0.1", 80))) == expected


# ---- connections ----


def link_local() -> Any:
    """An address of this machine that needs a zone, or None; connections stay within it."""
    with contextlib.suppress(OSError), open("/proc/net/if_inet6") as file:
        for line in file:
            digits, index = line.split()[:2]
            if digits.startswith("fe80"):
                text = socket.inet_ntop(socket.AF_INET6, bytes.fromhex(digits))
                return text, 0, 0, int(index, 16)
    return None


@pytest.mark.skipif(link_local() is None, reason="no link-local address")
def test_a_zone_is_no_part_of_the_host(any_loop_factory: Factory) -> None:
    async def main() -> None:
        told: asyncio.Future[Any] = asyncio.get_running_loop().create_future()

        def accepted(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
            told.set_result(
                (
                    writer.get_extra_info("peername"),
                    writer.get_extra_info("socket").getpeername(),
                )
            )
            writer.close()

        with socket.socket(socket.AF_INET6) as listening:
            listening.bind(link_local())
            server = await asyncio.start_server(accepted, sock=listening)
            with socket.socket(socket.AF_INET6) as client:
                client.connect(listening.getsockname())
                peer, expected = await told
                assert peer == expected == client.getsockname()
            server.close()
            await server.wait_closed()

    run_on(any_loop_factory, main())


def test_arguments_of_create_connection(any_loop_factory: Factory) -> None:
    async def main() -> None:
        loop = asyncio.get_running_loop()
        server = await asyncio.start_server(lambda _, writer: writer.close(), "127.0.0.1", 0)
        port = server.sockets[0].getsockname()[1]
        more: dict[str, Any] = {"happy_eyeballs_delay": 0.05, "interleave": 1}
        if sys.version_info >= (3, 12):
            more["all_errors"] = True
        transport, _ = await loop.create_connection(
            asyncio.Protocol,
            "localhost",
            port,
            family=socket.AF_INET,
            proto=socket.IPPROTO_TCP,
            flags=0,
            local_addr=("127.0.0.3", 0),
            **more,
        )
        assert transport.get_extra_info("sockname")[0] == "127.0.0.3"
        transport.close()
        with pytest.raises(OSError, match=r"address|Multiple"):
            await loop.create_connection(
                asyncio.Protocol, "127.0.0.1", port, local_addr=("127.0.0.1", port)
            )
        for wrong in (
            {"host": "x", "port": 1, "sock": socket.socket},
            {},
            {"ssl": False, "server_hostname": "x", "host": "x", "port": 1},
            {"host": "x", "port": 1, "ssl_handshake_timeout": 1},
            {"host": "x", "port": 1, "ssl_shutdown_timeout": 1},
        ):
            with pytest.raises(ValueError, match=r"specified|meaningful|needed|only|set"):
                await loop.create_connection(asyncio.Protocol, **wrong)  # type: ignore[call-overload]
        server.close()
        await server.wait_closed()
        with pytest.raises(ConnectionRefusedError):
            await loop.create_connection(asyncio.Protocol, "127.0.0.1", port)
        if sys.version_info >= (3, 12):
            with pytest.raises(ExceptionGroup, match="create_connection failed"):
                await loop.create_connection(asyncio.Protocol, "127.0.0.1", port, all_errors=True)

    run_on(any_loop_factory, main())


@contextlib.contextmanager
def silent_address() -> Iterator[tuple[str, int]]:
    """An address where connections neither succeed nor fail: its queue is full."""
    with contextlib.ExitStack() as stack:
        listening = stack.enter_context(socket.create_server(("127.0.0.1", 0), backlog=0))
        for _ in range(4):
            client = stack.enter_context(socket.socket())
            client.setblocking(False)
            client.connect_ex(listening.getsockname())
        yield listening.getsockname()


def test_happy_eyeballs(any_loop_factory: Factory) -> None:
    """The second address has its turn while the first one is silent."""

    async def main() -> None:
        loop = asyncio.get_running_loop()
        server = await asyncio.start_server(lambda _, writer: writer.close(), "127.0.0.2", 0)
        good = server.sockets[0].getsockname()
        with silent_address() as silent:

            async def getaddrinfo(host: str, port: int, **kwargs: Any) -> Any:
                kind = (socket.AF_INET, socket.SOCK_STREAM, 6, "")
                return [(*kind, silent), (*kind, good)]

            loop.getaddrinfo = getaddrinfo  # type: ignore[method-assign, assignment]
            gc.collect()
            fds = open_fds()
            transport, _ = await loop.create_connection(
                asyncio.Protocol, "two.addresses", 1, happy_eyeballs_delay=0.01
            )
            assert transport.get_extra_info("peername") == good
            transport.abort()
            await polled()
            # The attempt at the silent one was given up.
            assert open_fds() <= fds
            with pytest.raises(TimeoutError):  # one after the other: it stays with the first
                async with asyncio.timeout(0.05):
                    await loop.create_connection(asyncio.Protocol, "two.addresses", 1)
            await polled()
            assert open_fds() <= fds
        server.close()
        await server.wait_closed()

    run_on(any_loop_factory, main())


@pytest.mark.parametrize("kind", ["path", "abstract"])
def test_unix_connections(any_loop_factory: Factory, tmp_path: Any, kind: str) -> None:
    path = str(tmp_path / "socket") if kind == "path" else f"\0plait {os.getpid()} {id(tmp_path)}"
    data = os.urandom(3_000_000)

    async def main() -> None:
        async def echo(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
            credentials = writer.get_extra_info("socket").getsockopt(
                socket.SOL_SOCKET, socket.SO_PEERCRED, struct.calcsize("3i")
            )
            assert struct.unpack("3i", credentials)[0] == os.getpid()
            while chunk := await reader.read(1 << 20):
                writer.write(chunk)
                await writer.drain()
            writer.close()

        server = await asyncio.start_unix_server(echo, path, backlog=3, limit=1000)
        for _ in range(3):
            reader, writer = await asyncio.open_unix_connection(path)
            assert writer.get_extra_info("socket").family == socket.AF_UNIX
            writer.write(data)
            writer.write_eof()
            assert await reader.read() == data
            writer.close()
            await writer.wait_closed()
        if kind == "path":
            with pytest.raises(OSError, match="in use"):
                await asyncio.start_unix_server(echo, tmp_path)
        server.close()
        await server.wait_closed()
        with pytest.raises((FileNotFoundError, ConnectionRefusedError)):
            await asyncio.open_unix_connection(path)
        loop = asyncio.get_running_loop()
        with pytest.raises(ValueError, match=r"no path|path and sock|were specified"):
            await loop.create_unix_connection(asyncio.Protocol)
        with pytest.raises(ValueError, match=r"path was not|specified"):
            await loop.create_unix_server(asyncio.Protocol)

    run_on(any_loop_factory, main())


def test_a_reset_with_linger_reaches_both_sides(any_loop_factory: Factory) -> None:
    async def main() -> None:
        made: asyncio.Queue[Any] = asyncio.Queue()
        server = await asyncio.start_server(
            lambda reader, writer: made.put_nowait((reader, writer)), "127.0.0.1", 0
        )
        port = server.sockets[0].getsockname()[1]
        reader, writer = await asyncio.open_connection("127.0.0.1", port)
        theirs, their_writer = await made.get()
        sock = writer.get_extra_info("socket")
        sock.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
        writer.write(b"lost")
        writer.transport.abort()
        with pytest.raises(ConnectionResetError):
            await theirs.readexactly(100)
        their_writer.close()
        with contextlib.suppress(ConnectionError):
            await their_writer.wait_closed()
        with contextlib.suppress(ConnectionError):
            await writer.wait_closed()
        assert await reader.read() == b""
        server.close()

    run_on(any_loop_factory, main())


def test_a_connection_is_cancelled_at_each_step(any_loop_factory: Factory) -> None:
    async def main() -> None:
        loop = asyncio.get_running_loop()
        server = await asyncio.start_server(lambda _, writer: writer.close(), "127.0.0.1", 0)
        port = server.sockets[0].getsockname()[1]
        for steps in range(12):
            task = asyncio.create_task(loop.create_connection(asyncio.Protocol, "127.0.0.1", port))
            for _ in range(steps):
                await asyncio.sleep(0)
            task.cancel()
            try:
                transport, _ = await task
            except asyncio.CancelledError:
                continue
            transport.close()
        server.close()
        await server.wait_closed()
        for _ in range(5):
            await polled()

    gc.collect()
    before = open_fds()
    run_on(any_loop_factory, main())
    gc.collect()
    assert open_fds() <= before


# ---- servers ----


def test_arguments_of_create_server(any_loop_factory: Factory) -> None:
    async def main() -> None:
        loop = asyncio.get_running_loop()
        more: dict[str, Any] = {"keep_alive": True} if sys.version_info >= (3, 13) else {}
        server = await loop.create_server(
            asyncio.Protocol,
            ["127.0.0.1", "127.0.0.2"],
            0,
            family=socket.AF_INET,
            flags=socket.AI_PASSIVE,
            backlog=7,
            reuse_address=True,
            reuse_port=True,
            start_serving=False,
            **more,
        )
        assert len(server.sockets) == 2
        assert not server.is_serving()
        for sock in server.sockets:
            assert sock.getsockopt(socket.SOL_SOCKET, socket.SO_REUSEPORT)
            assert sock.getsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR)
            assert bool(sock.getsockopt(socket.SOL_SOCKET, socket.SO_KEEPALIVE)) == bool(more)
        address = server.sockets[0].getsockname()
        with socket.socket() as client, pytest.raises(ConnectionRefusedError):
            client.connect(address)
        await server.start_serving()
        assert server.is_serving()
        second = await loop.create_server(asyncio.Protocol, *address, reuse_port=True)
        _, writer = await asyncio.open_connection(*address)
        writer.close()
        second.close()
        server.close()
        server.close()
        assert not server.is_serving()
        assert server.sockets == ()
        await server.wait_closed()
        with pytest.raises(RuntimeError, match="closed"):
            await server.serve_forever()
        with socket.create_server(("127.0.0.1", 0)) as taken, pytest.raises(OSError) as caught:
            await loop.create_server(asyncio.Protocol, *taken.getsockname())
        assert caught.value.errno == errno.EADDRINUSE

    run_on(any_loop_factory, main())


@pytest.mark.skipif(sys.version_info < (3, 13), reason="Python 3.13 has these first")
def test_a_server_ends_its_clients(any_loop_factory: Factory) -> None:
    class Keeps(asyncio.Protocol):
        def connection_made(self, transport: asyncio.BaseTransport) -> None:
            transport.write(b"x" * (8 << 20))  # type: ignore[attr-defined]

    async def main() -> None:
        loop = asyncio.get_running_loop()
        for end, whole in (("close_clients", True), ("abort_clients", False)):
            server = await loop.create_server(Keeps, "127.0.0.1", 0)
            reader, writer = await asyncio.open_connection(*server.sockets[0].getsockname())
            assert await reader.readexactly(1) == b"x"
            server.close()
            getattr(server, end)()
            got = 1
            with contextlib.suppress(ConnectionResetError):
                while data := await reader.read(1 << 20):
                    got += len(data)
            assert (got == 8 << 20) == whole
            await server.wait_closed()
            writer.close()
            with contextlib.suppress(ConnectionError):
                await writer.wait_closed()

    run_on(any_loop_factory, main())


def test_closing_from_callbacks(any_loop_factory: Factory) -> None:
    """A server closed by a connection that it makes; a loop that a callback tries to close."""

    async def main() -> None:
        loop = asyncio.get_running_loop()
        refused: asyncio.Future[str] = loop.create_future()

        class Closes(asyncio.Protocol):
            def connection_made(self, transport: asyncio.BaseTransport) -> None:
                server.close()
                transport.abort()  # type: ignore[attr-defined]
                try:
                    loop.close()
                except RuntimeError as error:
                    refused.set_result(str(error))

        server = await loop.create_server(Closes, "127.0.0.1", 0)
        address = server.sockets[0].getsockname()
        reader, writer = await asyncio.open_connection(*address)
        assert "running event loop" in await refused
        with contextlib.suppress(ConnectionResetError):
            assert await reader.read() == b""
        writer.close()
        with contextlib.suppress(ConnectionError):
            await writer.wait_closed()
        await server.wait_closed()

    run_on(any_loop_factory, main())


@pytest.mark.isolated
def test_accepting_goes_on_after_a_flood_of_emfile(loop: plait.Loop) -> None:
    """Out of descriptors twice: each time it backs off, tells once a second, and goes on."""

    async def main() -> None:
        told: list[dict[str, Any]] = []
        starved = asyncio.Event()

        def hear(_: Any, context: dict[str, Any]) -> None:
            told.append(context)
            starved.set()

        loop.set_exception_handler(hear)
        server = await asyncio.start_server(lambda _, writer: writer.close(), "127.0.0.1", 0)
        address = server.sockets[0].getsockname()
        poller = Poller(loop)
        began = loop.time()
        for _ in range(2):
            clients = [socket.socket() for _ in range(5)]
            fill = []
            try:
                with contextlib.suppress(OSError):
                    while True:
                        fill.append(os.dup(0))
                starved.clear()
                for client in clients:
                    client.setblocking(False)
                    await loop.sock_connect(client, address)
                await starved.wait()
                looks = 0
                for _ in range(100):
                    await asyncio.sleep(0)
                    looks += poller.reports()  # of connections that it cannot accept
                assert looks < 50  # it tries again after a while
            finally:
                for fd in fill:
                    os.close(fd)
            for client in clients:
                assert await loop.sock_recv(client, 1) == b""
                client.close()
        assert len(told) < 10 + loop.time() - began
        assert all(one["exception"].errno == errno.EMFILE for one in told)
        server.close()
        await server.wait_closed()

    before = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (100, before[1]))
    try:
        loop.run_until_complete(asyncio.wait_for(main(), 100))
    finally:
        resource.setrlimit(resource.RLIMIT_NOFILE, before)


# ---- datagrams ----


def test_datagram_endpoints(any_loop_factory: Factory) -> None:
    async def main() -> None:
        loop = asyncio.get_running_loop()
        one, at_one = await loop.create_datagram_endpoint(Told, local_addr=("127.0.0.1", 0))
        address = one.get_extra_info("sockname")
        two, at_two = await loop.create_datagram_endpoint(Told, remote_addr=address)
        assert two.get_extra_info("peername") == address
        two.sendto(b"to one")
        data, source = await at_one.got.get()
        assert (data, source) == (b"to one", two.get_extra_info("sockname"))
        one.sendto(b"back", source)
        assert await at_two.got.get() == (b"back", address)
        two.sendto(bytearray(b"with the address"), address)
        assert (await at_one.got.get())[0] == b"with the address"
        with pytest.raises(ValueError, match="Invalid address"):
            two.sendto(b"x", ("127.0.0.1", 1))
        with pytest.raises(TypeError):
            one.sendto("text", source)  # type: ignore[arg-type]
        # Nobody there: a connected endpoint hears of it.
        one.close()
        await at_one.lost
        two.sendto(b"to nobody")
        assert isinstance(await at_two.errors.get(), ConnectionRefusedError)
        two.abort()
        assert await at_two.lost is None

    run_on(any_loop_factory, main())


def test_options_of_datagram_endpoints(any_loop_factory: Factory) -> None:
    async def main() -> None:
        loop = asyncio.get_running_loop()
        one, at_one = await loop.create_datagram_endpoint(
            Told, local_addr=("127.0.0.1", 0), reuse_port=True, allow_broadcast=True
        )
        sock = one.get_extra_info("socket")
        assert sock.getsockopt(socket.SOL_SOCKET, socket.SO_BROADCAST)
        assert sock.getsockopt(socket.SOL_SOCKET, socket.SO_REUSEPORT)
        two, at_two = await loop.create_datagram_endpoint(
            Told, local_addr=one.get_extra_info("sockname"), reuse_port=True
        )
        with pytest.raises(OSError) as caught:
            await loop.create_datagram_endpoint(Told, local_addr=one.get_extra_info("sockname"))
        assert caught.value.errno == errno.EADDRINUSE
        for transport, protocol in ((one, at_one), (two, at_two)):
            transport.close()
            await protocol.lost
        with pytest.raises(ValueError, match="unexpected address family"):
            await loop.create_datagram_endpoint(Told)

    run_on(any_loop_factory, main())


def test_broadcasts_are_asked_for(any_loop_factory: Factory) -> None:
    async def main() -> None:
        loop = asyncio.get_running_loop()
        one, at_one = await loop.create_datagram_endpoint(Told, local_addr=("0.0.0.0", 0))
        everybody = ("127.255.255.255", one.get_extra_info("sockname")[1])
        may_not, at_may_not = await loop.create_datagram_endpoint(Told, family=socket.AF_INET)
        may, at_may = await loop.create_datagram_endpoint(
            Told, family=socket.AF_INET, allow_broadcast=True
        )
        may_not.sendto(b"refused", everybody)
        may.sendto(b"to all", everybody)
        assert (await at_one.got.get())[0] == b"to all"
        assert isinstance(await at_may_not.errors.get(), PermissionError)
        for transport, protocol in ((one, at_one), (may, at_may), (may_not, at_may_not)):
            transport.close()
            await protocol.lost

    run_on(any_loop_factory, main())


def test_flow_control_of_datagrams(any_loop_factory: Factory, tmp_path: Any) -> None:
    """A Unix datagram socket's peer that does not read makes the endpoint wait."""

    async def main() -> None:
        loop = asyncio.get_running_loop()
        path = str(tmp_path / "socket")
        with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as reader:
            reader.bind(path)
            transport, protocol = await loop.create_datagram_endpoint(
                Told, remote_addr=path, family=socket.AF_UNIX
            )
            transport.set_write_buffer_limits(high=100_000)
            sent = 0
            while not protocol.paused:
                transport.sendto(b"%05d" % sent + bytes(10_000))
                sent += 1
                assert sent < 10_000
            assert transport.get_write_buffer_size() > 100_000
            reader.setblocking(False)
            for number in range(sent):
                data = await loop.sock_recv(reader, 20_000)
                assert data[:5] == b"%05d" % number
            while not protocol.resumed:
                await polled()
            assert transport.get_write_buffer_size() < 1000
            assert protocol.paused == protocol.resumed == 1
            transport.close()
            await protocol.lost

    run_on(any_loop_factory, main())


# ---- pipes and terminals ----


class PipeReader(asyncio.Protocol):
    def __init__(self) -> None:
        loop = asyncio.get_running_loop()
        self.data = bytearray()
        self.some: asyncio.Event = asyncio.Event()
        self.lost: asyncio.Future[Any] = loop.create_future()

    def data_received(self, data: bytes) -> None:
        self.data += data
        self.some.set()

    def connection_lost(self, exc: Exception | None) -> None:
        self.some.set()
        self.lost.set_result(exc)

    async def until(self, wanted: bytes) -> None:
        while wanted not in self.data and not self.lost.done():
            self.some.clear()
            await self.some.wait()
        assert wanted in self.data


def test_a_fifo(any_loop_factory: Factory, tmp_path: Any) -> None:
    path = str(tmp_path / "fifo")
    os.mkfifo(path)

    async def main() -> None:
        loop = asyncio.get_running_loop()
        reading = open(os.open(path, os.O_RDONLY | os.O_NONBLOCK), "rb", 0)  # noqa: SIM115
        transport, reader = await loop.connect_read_pipe(PipeReader, reading)
        writing = open(os.open(path, os.O_WRONLY | os.O_NONBLOCK), "wb", 0)  # noqa: SIM115
        sender, end = await loop.connect_write_pipe(PipeReader, writing)
        sender.write(bytes(300_000) + b"end")
        await reader.until(b"end")
        assert len(reader.data) == 300_003
        transport.pause_reading()
        sender.write(b"later")
        await polled()
        assert not reader.data.endswith(b"later")
        transport.resume_reading()
        await reader.until(b"later")
        sender.close()
        assert await end.lost is None
        assert await reader.lost is None

    run_on(any_loop_factory, main())


def test_a_terminal(any_loop_factory: Factory) -> None:
    async def main() -> None:
        loop = asyncio.get_running_loop()
        ours, theirs = os.openpty()
        transport, reader = await loop.connect_read_pipe(
            PipeReader,
            open(ours, "rb", 0),  # noqa: SIM115
        )
        sender, end = await loop.connect_write_pipe(
            PipeReader,
            open(theirs, "wb", 0),  # noqa: SIM115
        )
        sender.write(b"a line\n")
        await reader.until(b"a line\r\n")
        sender.close()
        assert await end.lost is None
        # The other side of a terminal ends with EIO, which is its end of stream.
        exc = await reader.lost
        assert exc is None or exc.errno == errno.EIO
        transport.close()

    run_on(any_loop_factory, main())


# ---- several loops ----


def test_a_second_loop_in_another_thread(loop: plait.Loop) -> None:
    """Two loops talk over sockets and through futures, each in its thread."""
    second = plait.new_event_loop()
    thread = threading.Thread(target=second.run_forever)
    thread.start()
    try:

        async def echo(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
            while data := await reader.read(1000):
                writer.write(data)
                await writer.drain()
            writer.close()

        async def serve() -> tuple[asyncio.Server, int]:
            server = await asyncio.start_server(echo, "127.0.0.1", 0)
            return server, server.sockets[0].getsockname()[1]

        async def main() -> None:
            server, port = await asyncio.wrap_future(
                asyncio.run_coroutine_threadsafe(serve(), second)
            )
            reader, writer = await asyncio.open_connection("127.0.0.1", port)
            for n in range(200):
                writer.write(b"%04d" % n)
                assert await reader.readexactly(4) == b"%04d" % n
            writer.close()
            await writer.wait_closed()

            async def stop() -> None:
                server.close()

            await asyncio.wrap_future(asyncio.run_coroutine_threadsafe(stop(), second))
            foreign = second.create_future()
            with pytest.raises(RuntimeError, match="attached to a different loop"):
                await foreign

        loop.run_until_complete(asyncio.wait_for(main(), 100))
    finally:
        second.call_soon_threadsafe(second.stop)
        thread.join(100)
        second.run_until_complete(polled())
        second.close()


# ---- garbage ----


def test_abandoned_cycles_cost_no_memory(loop: plait.Loop) -> None:
    """Transport, protocol, future and task refer to each other, and go with the connection."""

    class Knot(asyncio.Protocol):
        def connection_made(self, transport: asyncio.BaseTransport) -> None:
            self.transport = transport
            self.future = asyncio.get_running_loop().create_future()
            self.task = asyncio.get_running_loop().create_task(self.wait())
            self.future.add_done_callback(lambda _: self)

        async def wait(self) -> None:
            with contextlib.suppress(asyncio.CancelledError):
                await self.future

        def connection_lost(self, exc: Exception | None) -> None:
            self.future.cancel()

    async def main() -> None:
        gone: list[weakref.ref[Any]] = []
        for _ in range(100):
            a, b = socket.socketpair()
            a.setblocking(False)
            transport, protocol = await loop.connect_accepted_socket(Knot, a)
            gone += [weakref.ref(x) for x in (transport, protocol, protocol.task)]
            b.close()
            del transport, protocol, a, b
        for _ in range(5):
            await polled()
        gc.collect()
        assert [one() for one in gone] == [None] * 300

    loop.run_until_complete(main())
