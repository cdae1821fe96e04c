"""TLS transports, against asyncio's own at the other end: both ways round, and plait with itself."""

from __future__ import annotations

import asyncio
import contextlib
import os
import socket
import ssl
import subprocess
import threading
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from tls_support import (
    FACTORIES,
    LIMIT,
    Buffered,
    Echo,
    Recorder,
    Side,
    connect,
    finish,
    serve,
    stop,
)


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
        transport = await (await protocols.reached(2)).made
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
        for name in ("ssl_handshake_timeout", "ssl_shutdown_timeout"):
            ours, theirs = socket.socketpair()  # a refusal may close it
            with ours, theirs:
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
        await (await protocols.reached(1)).received(1)
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
        lost = await (await protocols.reached(1)).lost
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
        # An engine that has something to send at the end cannot do so.
        with contextlib.suppress(ssl.SSLEOFError, BrokenPipeError):
            while data := sock.recv(1 << 16):
                got.extend(data)

    class Writes(Recorder):
        def data_received(self, data: bytes) -> None:
            for _ in range(6):
                self.transport.write(b"y" * (size // 6))

    async def talk() -> None:
        server, port, protocols = await serve(Writes, server_context)
        thread = handshaken(port, client_context, slow)
        await (await protocols.reached(1)).lost
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
        await (await protocols.reached(1)).received(6)
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
        assert await buffered.received(len(data)) == data
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

    async def made() -> None:
        await (await protocols.reached(1)).made

    async def talk() -> None:
        protocol = await connect(port, client_context)
        # The other side hears of a connection when its handshake is over, too.
        await asyncio.wrap_future(asyncio.run_coroutine_threadsafe(made(), there.loop))
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
