"""websockets: client and server on one loop."""

from __future__ import annotations

import asyncio
import os
import socket
import struct
from typing import TYPE_CHECKING, Any

import pytest
from eco_support import until_stalled

if TYPE_CHECKING:
    from pathlib import Path

    from eco_support import Pki

websockets = pytest.importorskip("websockets")
client = pytest.importorskip("websockets.asyncio.client")
server = pytest.importorskip("websockets.asyncio.server")


async def echo(ws: Any) -> None:
    async for message in ws:
        await ws.send(message)


def url_of(srv: Any, scheme: str = "ws", host: str = "127.0.0.1") -> str:
    return f"{scheme}://{host}:{srv.sockets[0].getsockname()[1]}/"


def reset(transport: asyncio.BaseTransport) -> None:
    """Close a connection so that the peer gets a reset."""
    sock = transport.get_extra_info("socket")
    sock.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
    transport.abort()  # type: ignore[attr-defined]


def test_messages_of_every_size(run: Any) -> None:
    async def main() -> None:
        async with server.serve(echo, "127.0.0.1", 0, max_size=None) as srv:
            async with client.connect(url_of(srv), max_size=None) as ws:
                for size in (0, 1, 125, 126, 65535, 65536, 3 << 20):
                    data = os.urandom(size)
                    await ws.send(data)
                    assert await ws.recv() == data
                await ws.send("text äöü")
                assert await ws.recv() == "text äöü"
                assert await (await ws.ping()) >= 0
                # In fragments, from an iterator.
                await ws.send(str(i) for i in range(1000))
                assert await ws.recv() == "".join(str(i) for i in range(1000))
            assert ws.close_code == 1000

    run(main)


def test_tls_with_client_certificate(run: Any, pki: Pki) -> None:
    names: list[Any] = []

    async def handler(ws: Any) -> None:
        tls = ws.transport.get_extra_info("ssl_object")
        names.append((tls.getpeercert()["subject"], tls.selected_alpn_protocol()))
        assert ws.transport.get_extra_info("peercert")["subject"] == names[-1][0]
        await echo(ws)

    async def main() -> None:
        async with server.serve(handler, "127.0.0.1", 0, ssl=pki.mutual) as srv:
            url = url_of(srv, "wss", "localhost")
            async with client.connect(url, ssl=pki.known_client) as ws:
                data = os.urandom(1 << 19)
                await ws.send(data)
                assert await ws.recv() == data
            with pytest.raises((OSError, websockets.WebSocketException)):
                async with client.connect(url, ssl=pki.client) as ws:
                    await ws.recv()
        assert [dict(part[0] for part in subject)["commonName"] for subject, _ in names] == [
            "a known client"
        ]

    run(main)


def test_unix_socket(run: Any, tmp_path: Path) -> None:
    async def main() -> None:
        path = str(tmp_path / "ws")
        async with server.unix_serve(echo, path):
            async with client.unix_connect(path) as ws:
                await ws.send("here")
                assert await ws.recv() == "here"

    run(main)


def test_many_clients_and_broadcast(run: Any) -> None:
    connected: set[Any] = set()

    async def handler(ws: Any) -> None:
        connected.add(ws)
        await ws.wait_closed()

    async def main() -> None:
        async with server.serve(handler, "127.0.0.1", 0) as srv:

            async def listen() -> list[str]:
                async with client.connect(url_of(srv), compression=None) as ws:
                    return [await ws.recv() for _ in range(20)]

            tasks = [asyncio.create_task(listen()) for _ in range(200)]
            while len(connected) < 200:
                await asyncio.sleep(0)
            for i in range(20):
                server.broadcast(connected, f"{i}")
            for got in await asyncio.gather(*tasks):
                assert got == [str(i) for i in range(20)]

    run(main)


def test_slow_reader_stops_the_sender(run: Any) -> None:
    sent = 0
    total = 512

    async def flood(ws: Any) -> None:
        nonlocal sent
        for _ in range(total):
            await ws.send(b"x" * 65536)
            sent += 1

    async def main() -> None:
        async with server.serve(flood, "127.0.0.1", 0, compression=None) as srv:
            async with client.connect(url_of(srv), max_queue=4, compression=None) as ws:
                await until_stalled(lambda: sent)
                assert sent < total
                received = 0
                async for message in ws:
                    received += len(message)
                assert received == total * 65536

    run(main)


def test_client_that_resets(run: Any) -> None:
    outcome: asyncio.Queue[Exception] = asyncio.Queue()

    async def handler(ws: Any) -> None:
        try:
            await ws.recv()
            await ws.recv()
        except websockets.ConnectionClosed as exc:
            await outcome.put(exc)

    async def main() -> None:
        async with server.serve(handler, "127.0.0.1", 0) as srv:
            for _ in range(20):
                ws = await client.connect(url_of(srv))
                await ws.send("hello")
                reset(ws.transport)
                with pytest.raises(websockets.ConnectionClosedError):
                    await ws.recv()
                assert isinstance(await outcome.get(), websockets.ConnectionClosedError)

    run(main)


def test_cancellation_and_timeouts(run: Any) -> None:
    async def main() -> None:
        async with server.serve(echo, "127.0.0.1", 0) as srv:
            async with client.connect(url_of(srv)) as ws:
                with pytest.raises(TimeoutError):
                    async with asyncio.timeout(0.02):
                        await ws.recv()
                task = asyncio.create_task(ws.recv())
                await asyncio.sleep(0)
                task.cancel()
                with pytest.raises(asyncio.CancelledError):
                    await task
                await ws.send("still there")
                assert await ws.recv() == "still there"
        # A server that takes the connection and says nothing.
        with socket.create_server(("127.0.0.1", 0)) as silent:
            port = silent.getsockname()[1]
            with pytest.raises(TimeoutError):
                await client.connect(f"ws://127.0.0.1:{port}/", open_timeout=0.05)

    run(main)


def test_keepalive_closes_a_dead_connection(run: Any) -> None:
    async def main() -> None:
        async with server.serve(echo, "127.0.0.1", 0, ping_interval=None) as srv:
            ws = await client.connect(
                url_of(srv), ping_interval=0.05, ping_timeout=0.1, close_timeout=0.1
            )
            for peer in srv.connections:
                peer.transport.pause_reading()  # no pong comes
            with pytest.raises(websockets.ConnectionClosedError, match="keepalive"):
                await ws.recv()
            for peer in srv.connections:
                peer.transport.resume_reading()  # and so learns that it is over

    run(main)


def test_server_close_tells_the_clients(run: Any) -> None:
    async def main() -> None:
        srv = await server.serve(echo, "127.0.0.1", 0)
        clients = [await client.connect(url_of(srv)) for _ in range(50)]
        srv.close()
        await srv.wait_closed()
        for ws in clients:
            with pytest.raises(websockets.ConnectionClosedOK):
                await ws.recv()
            assert ws.close_code == 1001

    run(main)
