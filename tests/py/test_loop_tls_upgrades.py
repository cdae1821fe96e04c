"""TLS over what there is already, and what rides on it: start_tls, streams, files, garbage."""

from __future__ import annotations

import asyncio
import gc
import os
import ssl
import weakref
from asyncio import sslproto
from pathlib import Path
from typing import Any

import pytest
from tls_support import LIMIT, Echo, Recorder, Side, connect, finish, serve, stop

import plait
from plait import _core


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
