"""TLS transports, against asyncio's own at the other end: both ways round, and plait with itself."""

from __future__ import annotations

import asyncio
import contextlib
import gc
import os
import socket
import ssl
import subprocess
import threading
import weakref
from asyncio import sslproto
from collections.abc import Awaitable, Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

import plait
from plait import _core

FACTORIES: dict[str, Callable[[], asyncio.AbstractEventLoop]] = {
    "plait": plait.new_event_loop,
    "asyncio": asyncio.SelectorEventLoop,
}
LIMIT = 30  # seconds for anything to happen


def openssl(*args: str, cwd: Path) -> None:
    subprocess.run(["openssl", *args], cwd=cwd, check=True, capture_output=True)


@pytest.fixture(scope="module")
def certs(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Make an authority, and certificates of a server and a client by it."""
    where = tmp_path_factory.mktemp("certs")
    key = ("-newkey", "ec", "-pkeyopt", "ec_paramgen_curve:prime256v1", "-nodes")
    ca = ("req", "-x509", *key, "-subj", "/CN=ca", "-days", "2")
    ca = (*ca, "-addext", "keyUsage=critical,keyCertSign,cRLSign")
    openssl(*ca, "-keyout", "ca.key", "-out", "ca.pem", cwd=where)
    for name, alternative in (("server", "DNS:localhost"), ("client", "DNS:client")):
        (where / f"{name}.ext").write_text(
            f"subjectAltName={alternative}\nauthorityKeyIdentifier=keyid\n"
            "subjectKeyIdentifier=hash\nkeyUsage=digitalSignature\n"
        )
        request = ("req", *key, "-subj", f"/CN={name}")
        openssl(*request, "-keyout", f"{name}.key", "-out", f"{name}.csr", cwd=where)
        sign = ("x509", "-req", "-in", f"{name}.csr", "-CA", "ca.pem", "-CAkey", "ca.key")
        sign = (*sign, "-CAcreateserial", "-days", "2", "-extfile", f"{name}.ext")
        openssl(*sign, "-out", f"{name}.pem", cwd=where)
    return where


@pytest.fixture
def server_context(certs: Path) -> ssl.SSLContext:
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.load_cert_chain(certs / "server.pem", certs / "server.key")
    return context


@pytest.fixture
def client_context(certs: Path) -> ssl.SSLContext:
    return ssl.create_default_context(cafile=str(certs / "ca.pem"))


class Side:
    """A loop in a thread of its own."""

    def __init__(self, kind: str) -> None:
        self.loop = FACTORIES[kind]()
        self.thread = threading.Thread(target=self.loop.run_forever)
        self.thread.start()

    def run(self, coroutine: Any) -> Any:
        return asyncio.run_coroutine_threadsafe(coroutine, self.loop).result(LIMIT)

    def close(self) -> None:
        async def finish() -> None:
            tasks = [t for t in asyncio.all_tasks() if t is not asyncio.current_task()]
            for task in tasks:
                task.cancel()
            await asyncio.gather(*tasks, return_exceptions=True)
            await self.loop.shutdown_default_executor()

        self.run(finish())
        self.loop.call_soon_threadsafe(self.loop.stop)
        self.thread.join(LIMIT)
        self.loop.close()


PAIRS = [("plait", "plait"), ("plait", "asyncio"), ("asyncio", "plait")]


@pytest.fixture(params=PAIRS, ids=lambda pair: f"{pair[0]}-serves-{pair[1]}")
def sides(request: pytest.FixtureRequest) -> Iterator[tuple[Side, Side]]:
    """Give (server's, client's) loops, one of them plait's at least."""
    made = [Side(kind) for kind in request.param]
    yield made[0], made[1]
    for side in made:
        side.close()


@pytest.fixture
def mine(loop: Any) -> Callable[[Awaitable[Any]], Any]:
    """Run a coroutine on a plait loop in this thread."""

    def run(coroutine: Awaitable[Any]) -> Any:
        return loop.run_until_complete(asyncio.wait_for(coroutine, LIMIT))

    return run


class Recorder(asyncio.Protocol):
    """Writes down what it is told."""

    def __init__(self) -> None:
        loop = asyncio.get_running_loop()
        self.data = bytearray()
        self.told: list[str] = []
        self.made: asyncio.Future[Any] = loop.create_future()
        self.paused: asyncio.Future[None] = loop.create_future()
        self.ended: asyncio.Future[None] = loop.create_future()
        self.lost: asyncio.Future[Exception | None] = loop.create_future()
        self.transport: Any = None
        self._wanted: tuple[int, asyncio.Future[None]] | None = None

    def connection_made(self, transport: Any) -> None:
        self.transport = transport
        self.told.append("made")
        self.made.set_result(transport)

    def data_received(self, data: bytes) -> None:
        assert type(data) is bytes
        self.data += data
        if self._wanted is not None and len(self.data) >= self._wanted[0]:
            self._wanted[1].set_result(None)
            self._wanted = None

    async def received(self, count: int) -> bytes:
        """Wait for that many bytes in all."""
        if len(self.data) < count:
            self._wanted = count, asyncio.get_running_loop().create_future()
            await self._wanted[1]
        return bytes(self.data)

    def eof_received(self) -> None:
        self.told.append("eof")
        self.ended.set_result(None)

    def pause_writing(self) -> None:
        self.told.append("pause")
        if not self.paused.done():
            self.paused.set_result(None)

    def resume_writing(self) -> None:
        self.told.append("resume")

    def connection_lost(self, exc: Exception | None) -> None:
        self.told.append("lost")
        self.lost.set_result(exc)


class Echo(Recorder):
    def data_received(self, data: bytes) -> None:
        super().data_received(data)
        self.transport.write(data)


class Buffered(asyncio.BufferedProtocol):
    """Takes data in a buffer that is smaller than a record."""

    def __init__(self) -> None:
        self.buffer = bytearray(1000)
        self.data = bytearray()
        self.transport: Any = None

    def connection_made(self, transport: Any) -> None:
        self.transport = transport

    def get_buffer(self, sizehint: int) -> memoryview:
        return memoryview(self.buffer)  # asyncio reads into slices of it

    def buffer_updated(self, nbytes: int) -> None:
        self.data += self.buffer[:nbytes]
        self.transport.write(self.buffer[:nbytes])


async def serve(factory: Callable[[], Any], context: Any, **kwargs: Any) -> tuple[Any, int, list]:
    """Start a server; gives it, its port, and the list of its protocols to come."""
    protocols: list[Any] = []

    def make() -> Any:
        protocols.append(factory())
        return protocols[-1]

    loop = asyncio.get_running_loop()
    server = await loop.create_server(make, "127.0.0.1", 0, ssl=context, **kwargs)
    return server, server.sockets[0].getsockname()[1], protocols


async def connect(
    port: int, context: Any, factory: Callable[[], Any] = Recorder, **kwargs: Any
) -> Any:
    kwargs.setdefault("server_hostname", "localhost")
    loop = asyncio.get_running_loop()
    return (await loop.create_connection(factory, "127.0.0.1", port, ssl=context, **kwargs))[1]


async def finish(protocol: Any) -> Exception | None:
    protocol.transport.close()
    lost: Exception | None = await protocol.lost
    return lost


async def stop(server: Any, protocols: list[Any]) -> None:
    server.close()
    for protocol in protocols:
        if isinstance(protocol, Recorder) and protocol.transport is not None:
            await protocol.lost


@pytest.mark.parametrize("version", [ssl.TLSVersion.TLSv1_2, ssl.TLSVersion.TLSv1_3])
def test_echo_of_all_sizes(
    sides: tuple[Side, Side],
    server_context: ssl.SSLContext,
    client_context: ssl.SSLContext,
    version: ssl.TLSVersion,
) -> None:
    client_context.maximum_version = client_context.minimum_version = version
    there, here = sides
    server, port, protocols = there.run(serve(Echo, server_context))

    async def talk() -> None:
        protocol = await connect(port, client_context)
        sent = b""
        for size in (1, 2, 1000, 16383, 16384, 16385, 100_000, 2_000_000):
            data = os.urandom(size)
            sent += data
            protocol.transport.write(data)
            assert await protocol.received(len(sent)) == sent
        protocol.transport.writelines([b"a", bytearray(b"b"), memoryview(b"c"), b""])
        assert (await protocol.received(len(sent) + 3))[-3:] == b"abc"
        assert await finish(protocol) is None

    here.run(talk())
    there.run(stop(server, protocols))
    assert protocols[0].told[0] == "made"
    assert protocols[0].told[-2:] == ["eof", "lost"]


def test_small_messages_in_one_callback(
    sides: tuple[Side, Side], server_context: ssl.SSLContext, client_context: ssl.SSLContext
) -> None:
    there, here = sides
    server, port, protocols = there.run(serve(Echo, server_context))

    async def talk() -> None:
        protocol = await connect(port, client_context)
        pieces = [b"%06d" % i for i in range(5000)]
        for piece in pieces:
            protocol.transport.write(piece)
        assert await protocol.received(30_000) == b"".join(pieces)
        assert await finish(protocol) is None

    here.run(talk())
    there.run(stop(server, protocols))


def test_what_is_known_is_as_in_asyncio(
    server_context: ssl.SSLContext, client_context: ssl.SSLContext
) -> None:
    server_context.set_alpn_protocols(["h2", "http/1.1"])
    client_context.set_alpn_protocols(["http/1.1"])
    names: list[str | None] = []
    server_context.sni_callback = lambda _sock, name, _context: names.append(name)
    there = Side("asyncio")
    server, port, protocols = there.run(serve(Recorder, server_context))
    found: list[dict[str, Any]] = []

    async def look() -> None:
        protocol = await connect(port, client_context)
        transport = protocol.transport
        assert isinstance(transport, asyncio.Transport)
        info = transport.get_extra_info
        assert info("sslcontext") is client_context
        assert isinstance(info("ssl_object"), ssl.SSLObject)
        assert info("ssl_object").selected_alpn_protocol() == "http/1.1"
        assert info("nothing", 5) == 5
        values: dict[str, Any] = {k: info(k) for k in ("peercert", "cipher", "compression")}
        values["peer"] = info("peername")
        values["eof"] = transport.can_write_eof()
        values["limits"] = transport.get_write_buffer_limits()
        values["reading"] = transport.is_reading(), transport.is_closing()
        with pytest.raises(NotImplementedError):
            transport.write_eof()
        with pytest.raises(TypeError):
            transport.write("text")
        found.append(values)
        assert await finish(protocol) is None
        assert transport.is_closing()

    for kind in FACTORIES:
        here = Side(kind)
        here.run(look())
        here.close()
    there.run(stop(server, protocols))
    there.close()
    assert found[0] == found[1]
    assert found[0]["peercert"]["subject"] == ((("commonName", "server"),),)
    assert names == ["localhost"] * 2


def test_client_certificates(
    sides: tuple[Side, Side],
    certs: Path,
    server_context: ssl.SSLContext,
    client_context: ssl.SSLContext,
) -> None:
    server_context.verify_mode = ssl.CERT_REQUIRED
    server_context.load_verify_locations(certs / "ca.pem")
    there, here = sides
    server, port, protocols = there.run(serve(Recorder, server_context))

    async def talk(refused: bool) -> None:
        # With TLS 1.3 the client's handshake is over before the server refuses.
        protocol = None
        with contextlib.suppress(OSError):
            protocol = await connect(port, client_context)
        if refused:
            if protocol is not None:
                await protocol.lost
            return
        assert protocol is not None
        protocol.transport.write(b"x")
        await protocol.ended
        await protocol.lost

    here.run(talk(True))
    assert protocols[0].transport is None  # never made: nobody is told
    client_context.load_cert_chain(certs / "client.pem", certs / "client.key")

    async def greeted() -> dict[str, Any]:
        while len(protocols) < 2:
            await asyncio.sleep(0.01)
        transport = await protocols[1].made
        await protocols[1].received(1)
        transport.close()
        certificate: dict[str, Any] = transport.get_extra_info("peercert")
        return certificate

    greeting = asyncio.run_coroutine_threadsafe(greeted(), there.loop)
    here.run(talk(False))
    assert greeting.result(LIMIT)["subject"] == ((("commonName", "client"),),)
    there.run(stop(server, protocols[1:]))


def test_wrong_name_is_refused(
    sides: tuple[Side, Side], server_context: ssl.SSLContext, client_context: ssl.SSLContext
) -> None:
    there, here = sides
    server, port, protocols = there.run(serve(Recorder, server_context))
    with pytest.raises(ssl.SSLCertVerificationError):
        here.run(connect(port, client_context, server_hostname="elsewhere"))
    there.run(stop(server, []))
    assert all(p.transport is None for p in protocols)


def test_bad_arguments(mine: Any, server_context: ssl.SSLContext) -> None:
    async def try_all() -> None:
        loop = asyncio.get_running_loop()
        ours, theirs = socket.socketpair()
        with ours, theirs:
            for name in ("ssl_handshake_timeout", "ssl_shutdown_timeout"):
                with pytest.raises(ValueError, match=name):
                    await loop.create_connection(
                        Recorder, sock=ours, ssl=server_context, server_hostname="x", **{name: 0}
                    )
        ours, theirs = socket.socketpair()
        with theirs:
            transport, protocol = await loop.create_connection(Recorder, sock=ours)
            with pytest.raises(TypeError, match="SSLContext"):
                await loop.start_tls(transport, protocol, None)  # type: ignore[arg-type]
            await finish(protocol)

    mine(try_all())


def test_handshake_timeout(mine: Any, client_context: ssl.SSLContext) -> None:
    with socket.create_server(("127.0.0.1", 0)) as silent:

        async def talk() -> None:
            with pytest.raises(ConnectionAbortedError, match=r"longer than 0\.1 seconds"):
                await connect(silent.getsockname()[1], client_context, ssl_handshake_timeout=0.1)

        mine(talk())


def test_handshake_with_something_else(mine: Any, client_context: ssl.SSLContext) -> None:
    async def talk() -> None:
        server, port, protocols = await serve(Echo, None)
        with pytest.raises(ssl.SSLError):
            await connect(port, client_context)
        await stop(server, protocols)

        def hang_up(_reader: Any, writer: asyncio.StreamWriter) -> None:
            writer.close()

        other = await asyncio.start_server(hang_up, "127.0.0.1", 0)
        with pytest.raises(ConnectionResetError):
            await connect(other.sockets[0].getsockname()[1], client_context)
        other.close()

    mine(talk())


def handshaken(
    port: int, context: ssl.SSLContext, answer: Callable[[ssl.SSLSocket], None]
) -> threading.Thread:
    """Run a blocking client of the ssl module's in a thread."""

    def run() -> None:
        with socket.create_connection(("127.0.0.1", port), LIMIT) as raw:
            with context.wrap_socket(
                raw, server_hostname="localhost", suppress_ragged_eofs=True
            ) as sock:
                answer(sock)

    thread = threading.Thread(target=run)
    thread.start()
    return thread


def test_shutdown_timeout(
    mine: Any, server_context: ssl.SSLContext, client_context: ssl.SSLContext
) -> None:
    done = threading.Event()

    def never_answers(sock: ssl.SSLSocket) -> None:
        sock.sendall(b"x")
        done.wait(LIMIT)

    async def talk() -> None:
        server, port, protocols = await serve(Recorder, server_context, ssl_shutdown_timeout=0.1)
        thread = handshaken(port, client_context, never_answers)
        while not protocols:
            await asyncio.sleep(0.01)
        await protocols[0].received(1)
        lost = await finish(protocols[0])
        assert isinstance(lost, TimeoutError)
        assert "shutdown timed out" in str(lost)
        done.set()
        thread.join(LIMIT)
        server.close()

    mine(talk())


@pytest.mark.parametrize("kind", FACTORIES)
@pytest.mark.parametrize("end", ["ragged", "notified"])
def test_end_of_stream(
    kind: str, end: str, server_context: ssl.SSLContext, client_context: ssl.SSLContext
) -> None:
    """A peer that leaves without close_notify is an ordinary end, as in asyncio."""

    def leave(sock: ssl.SSLSocket) -> None:
        sock.sendall(b"x" * 40_000)
        if end == "notified":
            sock.unwrap()
        else:
            sock.detach_me = socket.socket(fileno=os.dup(sock.fileno()))  # type: ignore[attr-defined]
            sock.detach_me.shutdown(socket.SHUT_WR)  # type: ignore[attr-defined]
            sock.detach_me.close()  # type: ignore[attr-defined]

    side = Side(kind)

    async def wait() -> tuple[bytes, list[str], Exception | None]:
        server, port, protocols = await serve(Recorder, server_context)
        thread = handshaken(port, client_context, leave)
        while not protocols:
            await asyncio.sleep(0.01)
        lost = await protocols[0].lost
        server.close()
        await asyncio.get_running_loop().run_in_executor(None, thread.join, LIMIT)
        return bytes(protocols[0].data), protocols[0].told, lost

    assert side.run(wait()) == (b"x" * 40_000, ["made", "eof", "lost"], None)
    side.close()


def test_all_is_sent_after_the_peers_end(
    mine: Any, server_context: ssl.SSLContext, client_context: ssl.SSLContext
) -> None:
    """What was held back by flow control goes out before TLS is shut down."""
    size = 6_000_000
    got = bytearray()

    def slow(sock: ssl.SSLSocket) -> None:
        sock.sendall(b"go")
        raw = socket.socket(fileno=os.dup(sock.fileno()))
        raw.shutdown(socket.SHUT_WR)
        raw.close()
        with contextlib.suppress(ssl.SSLEOFError):
            while data := sock.recv(1 << 16):
                got.extend(data)

    class Writes(Recorder):
        def data_received(self, data: bytes) -> None:
            for _ in range(6):
                self.transport.write(b"y" * (size // 6))

    async def talk() -> None:
        server, port, protocols = await serve(Writes, server_context)
        thread = handshaken(port, client_context, slow)
        while not protocols:
            await asyncio.sleep(0.01)
        await protocols[0].lost
        server.close()
        await asyncio.get_running_loop().run_in_executor(None, thread.join, LIMIT)

    mine(talk())
    assert got == b"y" * size


def test_renegotiation_is_refused(mine: Any, server_context: ssl.SSLContext) -> None:
    server_context.maximum_version = ssl.TLSVersion.TLSv1_2

    async def talk() -> None:
        server, port, protocols = await serve(Recorder, server_context)
        client = await asyncio.create_subprocess_exec(
            *("openssl", "s_client", "-connect", f"127.0.0.1:{port}", "-tls1_2"),
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
        )
        assert client.stdin is not None
        client.stdin.write(b"hello\n")
        while not protocols:
            await asyncio.sleep(0.01)
        await protocols[0].received(6)
        client.stdin.write(b"R\n")  # a command of s_client's
        output, _ = await client.communicate()
        assert b"RENEGOTIATING" in output
        await protocols[0].lost
        assert protocols[0].data == b"hello\n"
        server.close()

    mine(talk())


def test_flow_control_of_large_writes(
    sides: tuple[Side, Side], server_context: ssl.SSLContext, client_context: ssl.SSLContext
) -> None:
    there, here = sides
    size = 24_000_000

    class Stalls(Recorder):
        def connection_made(self, transport: Any) -> None:
            super().connection_made(transport)
            transport.pause_reading()

    server, port, protocols = there.run(serve(Stalls, server_context))

    async def write() -> Recorder:
        protocol: Recorder = await connect(port, client_context)
        piece = bytes(range(256)) * 4000
        for _ in range(size // len(piece) + 1):
            protocol.transport.write(piece)
        await protocol.paused
        assert protocol.transport.get_write_buffer_size() > 0
        return protocol

    async def drain() -> int:
        protocols[0].transport.resume_reading()
        return len(await protocols[0].received(size))

    client = here.run(write())
    assert there.run(drain()) >= size
    assert here.run(finish(client)) is None
    there.run(stop(server, protocols))
    expected = (bytes(range(256)) * 4000) * (size // 1_024_000 + 1)
    assert protocols[0].data == expected
    assert client.told.count("pause") == client.told.count("resume")


def test_marks(mine: Any, server_context: ssl.SSLContext, client_context: ssl.SSLContext) -> None:
    async def talk() -> None:
        server, port, protocols = await serve(Recorder, server_context)
        protocol = await connect(port, client_context)
        transport = protocol.transport
        transport.set_write_buffer_limits(high=1000)
        assert transport.get_write_buffer_limits() == (250, 1000)
        transport.set_read_buffer_limits(low=10)
        assert transport.get_read_buffer_limits() == (10, 40)
        assert transport.get_read_buffer_size() == 0
        with pytest.raises(ValueError, match="must be >="):
            transport.set_write_buffer_limits(high=1, low=2)
        await finish(protocol)
        await stop(server, protocols)

    mine(talk())


def test_pause_and_resume(
    sides: tuple[Side, Side], server_context: ssl.SSLContext, client_context: ssl.SSLContext
) -> None:
    there, here = sides

    class OneAtATime(Echo):
        def data_received(self, data: bytes) -> None:
            super().data_received(data)
            self.transport.pause_reading()
            assert not self.transport.is_reading()
            asyncio.get_running_loop().call_later(0.001, self.transport.resume_reading)

    server, port, protocols = there.run(serve(OneAtATime, server_context))

    async def talk() -> None:
        protocol = await connect(port, client_context, OneAtATime)
        data = os.urandom(200_000)
        protocol.data_received = lambda data: Recorder.data_received(protocol, data)
        protocol.transport.set_protocol(protocol)
        protocol.transport.write(data)
        assert await protocol.received(len(data)) == data
        await finish(protocol)

    here.run(talk())
    there.run(stop(server, protocols))


def test_buffered_protocol_and_switching(
    sides: tuple[Side, Side], server_context: ssl.SSLContext, client_context: ssl.SSLContext
) -> None:
    there, here = sides
    server, port, protocols = there.run(serve(Buffered, server_context))

    async def talk() -> None:
        protocol = await connect(port, client_context)
        data = os.urandom(50_000)
        protocol.transport.write(data)
        assert await protocol.received(len(data)) == data
        buffered = Buffered()
        buffered.connection_made(protocol.transport)
        buffered.transport = type("Sink", (), {"write": lambda self, data: None})()
        protocol.transport.set_protocol(buffered)
        assert protocol.transport.get_protocol() is buffered
        protocol.transport.write(data)
        while len(buffered.data) < len(data):
            await asyncio.sleep(0.001)
        assert buffered.data == data
        protocol.transport.set_protocol(protocol)
        await finish(protocol)

    here.run(talk())
    there.run(stop(server, protocols))


def test_close_during_the_handshake(mine: Any, client_context: ssl.SSLContext) -> None:
    async def talk() -> None:
        loop = asyncio.get_running_loop()
        ours, theirs = socket.socketpair()
        with theirs:
            theirs.setblocking(False)
            attempt = loop.create_task(
                loop.create_connection(
                    Recorder, sock=ours, ssl=client_context, server_hostname="localhost"
                )
            )
            assert await loop.sock_recv(theirs, 5)  # its hello is on the way
            attempt.cancel()
            with pytest.raises(asyncio.CancelledError):
                await attempt
            with contextlib.suppress(ConnectionResetError):
                while await loop.sock_recv(theirs, 65536):
                    pass

    mine(talk())


def test_abort(
    sides: tuple[Side, Side], server_context: ssl.SSLContext, client_context: ssl.SSLContext
) -> None:
    there, here = sides
    server, port, protocols = there.run(serve(Recorder, server_context))

    async def talk() -> None:
        protocol = await connect(port, client_context)
        protocol.transport.write(b"x")
        protocol.transport.abort()
        protocol.transport.write(b"into the void")
        assert await protocol.lost is None
        assert protocol.transport.is_closing()
        protocol.transport.close()

    here.run(talk())
    there.run(stop(server, protocols))
    assert protocols[0].told[-1] == "lost"


def test_protocol_that_raises(
    mine: Any, loop: Any, server_context: ssl.SSLContext, client_context: ssl.SSLContext
) -> None:
    class Raises(Recorder):
        def data_received(self, data: bytes) -> None:
            raise ZeroDivisionError("deliberate")

    told: list[dict[str, Any]] = []
    loop.set_exception_handler(lambda _loop, context: told.append(context))

    async def talk() -> None:
        server, port, protocols = await serve(Raises, server_context)
        protocol = await connect(port, client_context)
        protocol.transport.write(b"x")
        assert isinstance(await protocols[0].lost, ZeroDivisionError)
        await protocol.lost
        server.close()

    mine(talk())
    assert [str(context["exception"]) for context in told] == ["deliberate"]
    assert told[0]["message"] == "Fatal error on SSL protocol"


def upgrades(context: ssl.SSLContext) -> type[Echo]:
    """Make an echo protocol that upgrades itself to TLS when it is asked to."""

    class Upgrades(Echo):
        task: asyncio.Task[None] | None = None
        early = b""  # what came before the task knew its new transport

        def data_received(self, data: bytes) -> None:
            if self.task is None:
                assert data == b"STARTTLS"
                self.task = asyncio.get_running_loop().create_task(self.upgrade())
            elif not self.task.done():
                self.early += data
            else:
                super().data_received(data)

        async def upgrade(self) -> None:
            loop = asyncio.get_running_loop()
            # Before the client's hello can come.
            upgrade = loop.create_task(
                loop.start_tls(self.transport, self, context, server_side=True)
            )
            await asyncio.sleep(0)
            self.transport.write(b"OK")
            self.transport = await upgrade
            self.transport.write(self.early)

    return Upgrades


async def upgrade(protocol: Recorder, context: ssl.SSLContext) -> None:
    """Upgrade the client's end, exchange some, and close."""
    loop = asyncio.get_running_loop()
    protocol.transport.write(b"STARTTLS")
    assert await protocol.received(2) == b"OK"
    secure = await loop.start_tls(
        protocol.transport, protocol, context, server_hostname="localhost"
    )
    assert secure is not protocol.transport
    assert isinstance(secure, asyncio.Transport)
    assert secure.get_extra_info("sslcontext") is context
    protocol.transport = secure
    data = os.urandom(300_000)
    secure.write(data)
    assert await protocol.received(300_002) == b"OK" + data
    assert protocol.told == ["made"]  # not made again
    assert await finish(protocol) is None


def test_start_tls_both_ways(
    sides: tuple[Side, Side], server_context: ssl.SSLContext, client_context: ssl.SSLContext
) -> None:
    there, here = sides
    server, port, protocols = there.run(serve(upgrades(server_context), None))

    async def talk() -> None:
        await upgrade(await connect(port, None, server_hostname=None), client_context)

    here.run(talk())
    there.run(stop(server, protocols))


@pytest.mark.parametrize("stock", [True, False])
def test_a_hello_that_came_before_start_tls(
    loop: plait.Loop,
    server_context: ssl.SSLContext,
    client_context: ssl.SSLContext,
    stock: bool,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """A stream's server has received it already; and what came with it is no plaintext."""
    if not stock:

        class Other(sslproto.SSLProtocol):
            pass

        monkeypatch.setattr(sslproto, "SSLProtocol", Other)

    async def talk() -> None:
        heard: asyncio.Future[bytes] = loop.create_future()

        async def serve(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
            assert await reader.readline() == b"STARTTLS\n"
            if not reader._buffer:  # type: ignore[attr-defined]
                await reader._wait_for_data("talk")  # type: ignore[attr-defined]
            await writer.start_tls(server_context)
            heard.set_result(await reader.readline())
            writer.write(b"pong\n")
            writer.close()

        server = await asyncio.start_server(serve, "127.0.0.1", 0)
        reader, writer = await asyncio.open_connection(*server.sockets[0].getsockname())
        writer.write(b"STARTTLS\n")
        await writer.start_tls(client_context, server_hostname="localhost")
        writer.write(b"ping\n")
        assert await heard == b"ping\n"
        assert await reader.readline() == b"pong\n"
        writer.close()
        server.close()

    loop.run_until_complete(asyncio.wait_for(talk(), LIMIT))


def test_tls_within_tls(
    sides: tuple[Side, Side], server_context: ssl.SSLContext, client_context: ssl.SSLContext
) -> None:
    there, here = sides
    server, port, protocols = there.run(serve(upgrades(server_context), server_context))

    async def talk() -> None:
        await upgrade(await connect(port, client_context), client_context)

    here.run(talk())
    there.run(stop(server, protocols))


def test_streams_over_tls(
    sides: tuple[Side, Side], server_context: ssl.SSLContext, client_context: ssl.SSLContext
) -> None:
    there, here = sides

    async def talk_back(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        assert await reader.readline() == b"upgrade\n"
        writer.write(b"go\n")
        await writer.start_tls(server_context)
        while line := await reader.readline():
            writer.write(line.upper())
            await writer.drain()
        writer.close()

    async def start() -> Any:
        return await asyncio.start_server(talk_back, "127.0.0.1", 0)

    server = there.run(start())

    async def talk() -> None:
        port = server.sockets[0].getsockname()[1]
        reader, writer = await asyncio.open_connection("127.0.0.1", port)
        writer.write(b"upgrade\n")
        assert await reader.readline() == b"go\n"
        await writer.start_tls(client_context, server_hostname="localhost")
        for i in range(200):
            writer.write(b"line %d\n" % i)
            await writer.drain()
            assert await reader.readline() == b"LINE %d\n" % i
        writer.close()
        await writer.wait_closed()

    async def end() -> None:
        server.close()

    here.run(talk())
    there.run(end())


def test_sendfile(
    mine: Any, tmp_path: Path, server_context: ssl.SSLContext, client_context: ssl.SSLContext
) -> None:
    path = tmp_path / "file"
    path.write_bytes(os.urandom(700_000))

    async def talk() -> None:
        server, port, protocols = await serve(Recorder, server_context)
        protocol = await connect(port, client_context)
        loop = asyncio.get_running_loop()
        with path.open("rb") as file:
            assert await loop.sendfile(protocol.transport, file) == 700_000
        assert await protocols[0].received(700_000) == path.read_bytes()
        await finish(protocol)
        await stop(server, protocols)

    mine(talk())


def test_an_sslobject_class_of_the_programs_own(
    mine: Any, server_context: ssl.SSLContext, client_context: ssl.SSLContext
) -> None:
    calls: list[str] = []

    class Mine(ssl.SSLObject):
        def read(self, len: int = 1024, buffer: Any = None) -> Any:
            calls.append("read")
            return super().read(len, buffer)

        def write(self, data: Any) -> int:
            calls.append("write")
            return super().write(data)

    server_context.sslobject_class = Mine

    async def talk() -> None:
        server, port, protocols = await serve(Echo, server_context)
        protocol = await connect(port, client_context)
        data = os.urandom(100_000)
        protocol.transport.write(data)
        assert await protocol.received(len(data)) == data
        assert isinstance(protocols[0].transport.get_extra_info("ssl_object"), Mine)
        await finish(protocol)
        await stop(server, protocols)

    mine(talk())
    assert {"read", "write"} <= set(calls)


def test_a_replaced_protocol_class_is_used(
    mine: Any,
    monkeypatch: pytest.MonkeyPatch,
    server_context: ssl.SSLContext,
    client_context: ssl.SSLContext,
) -> None:
    made: list[Any] = []

    class Mine(sslproto.SSLProtocol):
        def connection_made(self, transport: Any) -> None:
            made.append(transport)
            super().connection_made(transport)

    async def talk() -> None:
        server, port, protocols = await serve(Echo, server_context)
        monkeypatch.setattr(sslproto, "SSLProtocol", Mine)
        protocol = await connect(port, client_context)
        protocol.transport.write(b"x" * 100_000)
        await protocol.received(100_000)
        await finish(protocol)
        await stop(server, protocols)

    mine(talk())
    assert len(made) == 2  # both ends


def test_nothing_is_left(
    mine: Any, server_context: ssl.SSLContext, client_context: ssl.SSLContext
) -> None:
    """No cycle keeps a closed connection, and the collector finds one that was dropped."""
    seen: list[weakref.ref[Any]] = []

    async def talk(close: bool) -> None:
        server, port, protocols = await serve(Recorder, server_context)
        for _ in range(5):
            protocol = await connect(port, client_context)
            seen.append(weakref.ref(protocol.transport))
            seen.append(weakref.ref(protocol))
            if close:
                await finish(protocol)
            else:
                protocol.transport.abort()
                await protocol.lost
        await stop(server, protocols)

    for close in (True, False):
        mine(talk(close))
        mine(asyncio.sleep(0))
        gc.collect()
        assert [ref() for ref in seen if ref() is not None] == []
        seen.clear()


def test_resuming_after_the_loop_was_closed(client_context: ssl.SSLContext) -> None:
    """It is refused, as by asyncio, and the loop keeps nothing."""
    loop = plait.new_event_loop()

    async def make() -> Any:
        running = asyncio.get_running_loop()
        return _core.SSLTransport(
            running, Recorder(), client_context, None, False, "localhost", True, 60.0, 30.0
        )

    transport = loop.run_until_complete(make())
    transport.pause_reading()
    loop.close()
    with pytest.raises(RuntimeError, match="Event loop is closed"):
        transport.resume_reading()
    transport.abort()
    seen = weakref.ref(loop)
    del loop, transport
    gc.collect()
    assert seen() is None
