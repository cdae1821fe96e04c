"""aiohttp: server and client on one loop."""

from __future__ import annotations

import asyncio
import hashlib
import io
import os
import signal
import socket
import ssl
import struct
import sys
from contextlib import asynccontextmanager
from typing import TYPE_CHECKING, Any

import pytest
from eco_support import child_environment, until_stalled

aiohttp = pytest.importorskip("aiohttp")
web = pytest.importorskip("aiohttp.web")

if TYPE_CHECKING:
    from collections.abc import AsyncIterator
    from pathlib import Path

    from eco_support import Pki

CHUNK = b"0123456789abcdef" * 4096  # 64 KiB


async def hello(request: Any) -> Any:
    return web.Response(text=f"{request.remote} {request.transport.get_extra_info('peername')[1]}")


async def echo(request: Any) -> Any:
    return web.Response(body=await request.read())


@asynccontextmanager
async def serving(
    app: Any, *, ssl_context: ssl.SSLContext | None = None, **settings: Any
) -> AsyncIterator[int]:
    """Serve the application on this loop; gives the port."""
    runner = web.AppRunner(app, access_log=None, **settings)
    await runner.setup()
    try:
        site = web.TCPSite(runner, "127.0.0.1", 0, ssl_context=ssl_context, backlog=1024)
        await site.start()
        yield runner.addresses[0][1]
    finally:
        await runner.cleanup()


def app_of(*routes: Any) -> Any:
    app = web.Application(client_max_size=1 << 30)
    app.add_routes([web.get("/", hello), web.post("/echo", echo), *routes])
    return app


def test_requests_and_keep_alive(run: Any) -> None:
    async def main() -> None:
        async with serving(app_of()) as port, aiohttp.ClientSession() as session:
            seen = set()
            for _ in range(50):
                async with session.get(f"http://127.0.0.1:{port}/") as answer:
                    seen.add(await answer.text())
            assert len(seen) == 1, "one connection serves all"
            body = os.urandom(3 << 20)
            # By name: the resolver's thread pool takes part.
            async with session.post(
                f"http://localhost:{port}/echo", data=io.BytesIO(body)
            ) as answer:
                assert await answer.read() == body

    run(main)


def test_many_concurrent_clients(run: Any) -> None:
    async def main() -> None:
        async with serving(app_of()) as port:
            connector = aiohttp.TCPConnector(limit=200)
            async with aiohttp.ClientSession(connector=connector) as session:

                async def client(i: int) -> None:
                    for j in range(5):
                        body = f"{i} {j}".encode()
                        async with session.post(
                            f"http://127.0.0.1:{port}/echo", data=body
                        ) as answer:
                            assert await answer.read() == body

                await asyncio.gather(*(client(i) for i in range(300)))

    run(main)


def test_tls_client_certificate_and_session(run: Any, pki: Pki) -> None:
    async def peer(request: Any) -> Any:
        cert = request.transport.get_extra_info("peercert")
        names = dict(part[0] for part in cert["subject"])
        sslobj = request.transport.get_extra_info("ssl_object")
        assert request.transport.get_extra_info("cipher") == sslobj.cipher()
        return web.Response(text=names["commonName"])

    async def main() -> None:
        async with serving(app_of(web.get("/peer", peer)), ssl_context=pki.mutual) as port:
            url = f"https://localhost:{port}"
            async with aiohttp.ClientSession() as session:
                async with session.get(f"{url}/peer", ssl=pki.known_client) as answer:
                    assert await answer.text() == "a known client"
                body = os.urandom(4 << 20)
                async with session.post(
                    f"{url}/echo", data=io.BytesIO(body), ssl=pki.known_client
                ) as answer:
                    assert await answer.read() == body
                with pytest.raises(aiohttp.ClientConnectorCertificateError):
                    await session.get(url, ssl=ssl.create_default_context())
                with pytest.raises(aiohttp.ClientError):  # noqa: PT012
                    await session.get(url, ssl=pki.client)
                    await session.get(url, ssl=pki.client)

    run(main)


def test_tls_through_a_proxy(run: Any, pki: Pki) -> None:
    """CONNECT, then start_tls on the connection that the proxy carries on."""
    passed = 0

    async def pump(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        nonlocal passed
        while data := await reader.read(65536):
            passed += len(data)
            writer.write(data)
            await writer.drain()
        writer.close()

    async def proxy(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        head = await reader.readuntil(b"\r\n\r\n")
        host, port = head.split()[1].decode().rsplit(":", 1)
        up_reader, up_writer = await asyncio.open_connection(host, int(port))
        writer.write(b"HTTP/1.1 200 Connected\r\n\r\n")
        async with asyncio.TaskGroup() as group:
            group.create_task(pump(reader, up_writer))
            group.create_task(pump(up_reader, writer))
        for each in (writer, up_writer):
            try:
                await each.wait_closed()
            except ConnectionError:
                pass

    async def main() -> None:
        server = await asyncio.start_server(proxy, "127.0.0.1", 0)
        via = f"http://127.0.0.1:{server.sockets[0].getsockname()[1]}"
        async with serving(app_of(), ssl_context=pki.server) as port:
            body = os.urandom(2 << 20)
            async with (
                aiohttp.ClientSession() as session,
                session.post(
                    f"https://localhost:{port}/echo",
                    data=io.BytesIO(body),
                    ssl=pki.client,
                    proxy=via,
                ) as answer,
            ):
                assert await answer.read() == body
        assert passed > 2 * len(body)
        server.close()
        await server.wait_closed()

    run(main)


@pytest.mark.parametrize("tls", [False, True], ids=["plain", "tls"])
def test_files_go_by_sendfile(run: Any, tls: bool, pki: Pki, tmp_path: Path) -> None:
    async def main() -> None:
        data = os.urandom(20 << 20)
        (tmp_path / "big.bin").write_bytes(data)
        (tmp_path / "empty.txt").write_bytes(b"")
        loop = asyncio.get_running_loop()
        calls = []
        inner = loop.sendfile

        async def counted(*args: Any, **kwargs: Any) -> int:
            calls.append(args)
            return await inner(*args, **kwargs)

        loop.sendfile = counted  # type: ignore[method-assign]
        scheme = "https" if tls else "http"
        async with serving(
            app_of(web.static("/files", tmp_path)), ssl_context=pki.server if tls else None
        ) as port:
            async with aiohttp.ClientSession() as session:

                async def fetch(path: str, **headers: str) -> bytes:
                    async with session.get(
                        f"{scheme}://localhost:{port}/files/{path}",
                        ssl=pki.client if tls else True,
                        headers=headers,
                    ) as answer:
                        return bytes(await answer.read())

                got = await asyncio.gather(*(fetch("big.bin") for _ in range(4)))
                want = hashlib.sha256(data).digest()
                assert {hashlib.sha256(g).digest() for g in got} == {want}
                assert await fetch("big.bin", Range="bytes=70000-99999") == data[70000:100000]
                assert await fetch("empty.txt") == b""
        assert tls or len(calls) >= 5

    run(main)


def test_sendfile_to_a_reader_that_leaves(run: Any, tmp_path: Path) -> None:
    async def main() -> None:
        with (tmp_path / "big.bin").open("wb") as file:
            file.truncate(200 << 20)
        async with serving(app_of(web.static("/files", tmp_path))) as port:
            for _ in range(5):
                reader, writer = await asyncio.open_connection("127.0.0.1", port)
                writer.write(b"GET /files/big.bin HTTP/1.1\r\nHost: x\r\n\r\n")
                await reader.readexactly(1 << 20)
                sock = writer.get_extra_info("socket")
                sock.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
                writer.transport.abort()
                try:
                    await writer.wait_closed()
                except ConnectionError:
                    pass
            async with aiohttp.ClientSession() as session:
                async with session.get(f"http://127.0.0.1:{port}/") as answer:
                    assert answer.status == 200

    run(main)


@pytest.mark.parametrize("tls", [False, True], ids=["plain", "tls"])
def test_slow_reader_stops_the_stream(run: Any, tls: bool, pki: Pki) -> None:
    made = 0
    total = 512

    async def stream(request: Any) -> Any:
        nonlocal made
        response = web.StreamResponse()
        await response.prepare(request)
        for _ in range(total):
            await response.write(CHUNK)
            made += 1
        await response.write_eof()
        return response

    async def main() -> None:
        context = pki.server if tls else None
        async with serving(app_of(web.get("/stream", stream)), ssl_context=context) as port:
            url = f"{'https' if tls else 'http'}://localhost:{port}/stream"
            async with (
                aiohttp.ClientSession() as session,
                session.get(url, ssl=pki.client if tls else True) as answer,
            ):
                await until_stalled(lambda: made)
                assert made < total
                received = 0
                async for part in answer.content.iter_any():
                    received += len(part)
                assert received == total * len(CHUNK)

    run(main)


def test_slow_handler_stops_the_upload(run: Any) -> None:
    go_on = asyncio.Event()
    sent = 0
    total = 1024

    async def take(request: Any) -> Any:
        await go_on.wait()
        taken = 0
        async for part in request.content.iter_chunked(65536):
            taken += len(part)
        return web.Response(text=str(taken))

    async def body() -> AsyncIterator[bytes]:
        nonlocal sent
        for _ in range(total):
            sent += 1
            yield CHUNK

    async def main() -> None:
        async with (
            serving(app_of(web.post("/take", take))) as port,
            aiohttp.ClientSession() as session,
        ):
            task = asyncio.create_task(session.post(f"http://127.0.0.1:{port}/take", data=body()))
            await until_stalled(lambda: sent)
            assert sent < total
            go_on.set()
            async with await task as answer:
                assert await answer.text() == str(total * len(CHUNK))

    run(main)


def test_client_that_resets_cancels_the_handler(run: Any) -> None:
    ended: asyncio.Queue[str] = asyncio.Queue()
    begun: asyncio.Queue[None] = asyncio.Queue()

    async def wait(request: Any) -> Any:
        begun.put_nowait(None)
        try:
            await asyncio.Event().wait()
        except asyncio.CancelledError:
            ended.put_nowait("cancelled")
            raise

    async def main() -> None:
        async with serving(app_of(web.get("/wait", wait)), handler_cancellation=True) as port:
            for _ in range(20):
                reader, writer = await asyncio.open_connection("127.0.0.1", port)
                writer.write(b"GET /wait HTTP/1.1\r\nHost: x\r\n\r\n")
                await begun.get()
                sock = writer.get_extra_info("socket")
                sock.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
                writer.transport.abort()
                assert await ended.get() == "cancelled"
                assert await reader.read() == b""

    run(main)


def test_client_timeouts_and_cancellation(run: Any) -> None:
    begun: asyncio.Queue[None] = asyncio.Queue()

    async def wait(request: Any) -> Any:
        begun.put_nowait(None)
        await asyncio.Event().wait()

    async def main() -> None:
        async with serving(
            app_of(web.get("/wait", wait)), handler_cancellation=True, shutdown_timeout=0.1
        ) as port:
            url = f"http://127.0.0.1:{port}/wait"
            async with aiohttp.ClientSession() as session:
                with pytest.raises(TimeoutError):
                    await session.get(url, timeout=aiohttp.ClientTimeout(total=0.05))
                with pytest.raises(aiohttp.SocketTimeoutError):
                    await session.get(url, timeout=aiohttp.ClientTimeout(sock_read=0.05))
                while not begun.empty():
                    begun.get_nowait()
                task = asyncio.create_task(session.get(url))
                await begun.get()
                task.cancel()
                with pytest.raises(asyncio.CancelledError):
                    await task
                async with session.get(f"http://127.0.0.1:{port}/") as answer:
                    assert answer.status == 200

    run(main)


def test_graceful_shutdown_waits_for_requests(run: Any) -> None:
    go_on = asyncio.Event()
    begun = asyncio.Event()

    async def wait(request: Any) -> Any:
        begun.set()
        await go_on.wait()
        return web.Response(text="done")

    async def main() -> None:
        runner = web.AppRunner(app_of(web.get("/wait", wait)), shutdown_timeout=30)
        await runner.setup()
        site = web.TCPSite(runner, "127.0.0.1", 0)
        await site.start()
        port = runner.addresses[0][1]
        async with aiohttp.ClientSession() as session:
            task = asyncio.create_task(session.get(f"http://127.0.0.1:{port}/wait"))
            await begun.wait()
            closing = asyncio.create_task(runner.cleanup())
            while runner.addresses:
                await asyncio.sleep(0)
            with pytest.raises(OSError):
                await asyncio.open_connection("127.0.0.1", port)
            assert not closing.done()
            go_on.set()
            async with await task as answer:
                assert await answer.text() == "done"
            await closing

    run(main)


@pytest.mark.parametrize("tls", [False, True], ids=["plain", "tls"])
def test_websockets(run: Any, tls: bool, pki: Pki) -> None:
    async def talk(request: Any) -> Any:
        ws = web.WebSocketResponse(max_msg_size=0)
        await ws.prepare(request)
        async for message in ws:
            await ws.send_bytes(message.data)
        return ws

    async def main() -> None:
        context = pki.server if tls else None
        async with serving(app_of(web.get("/ws", talk)), ssl_context=context) as port:
            url = f"{'wss' if tls else 'ws'}://localhost:{port}/ws"
            connector = aiohttp.TCPConnector(limit=0)
            async with aiohttp.ClientSession(connector=connector) as session:

                async def client(i: int) -> None:
                    async with session.ws_connect(
                        url, max_msg_size=0, ssl=pki.client if tls else True
                    ) as ws:
                        for size in (1, 1000, 70_000, (2 << 20) if i == 0 else 10):
                            data = os.urandom(size)
                            await ws.send_bytes(data)
                            assert await ws.receive_bytes() == data

                await asyncio.gather(*(client(i) for i in range(50)))

    run(main)


def test_unix_socket(run: Any, tmp_path: Path) -> None:
    async def main() -> None:
        async def where(request: Any) -> Any:
            return web.Response(text=str(request.transport.get_extra_info("sockname")))

        app = web.Application()
        app.add_routes([web.get("/", where)])
        runner = web.AppRunner(app)
        await runner.setup()
        path = str(tmp_path / "http")
        await web.UnixSite(runner, path).start()
        async with aiohttp.ClientSession(connector=aiohttp.UnixConnector(path)) as session:
            async with session.get("http://local/") as answer:
                assert await answer.text() == path
        await runner.cleanup()

    run(main)


CHILD = """
import asyncio, sys
from aiohttp import web
import plait

async def hello(request):
    return web.Response(text=type(asyncio.get_running_loop()).__qualname__)

app = web.Application()
app.add_routes([web.get("/", hello)])

async def cleaned(app):
    print("cleaned", flush=True)

app.on_cleanup.append(cleaned)
loop = asyncio.SelectorEventLoop() if sys.argv[1] == "asyncio" else plait.new_event_loop()
sock = __import__("socket").create_server(("127.0.0.1", 0))
print(sock.getsockname()[1], flush=True)
web.run_app(app, sock=sock, loop=loop, print=None, access_log=None)
print("returned", flush=True)
"""


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT], ids=lambda n: n.name)
def test_run_app_ends_by_signal(run: Any, loop_name: str, number: signal.Signals) -> None:
    async def main() -> None:
        process = await asyncio.create_subprocess_exec(
            *(sys.executable, "-c", CHILD, loop_name),
            stdout=asyncio.subprocess.PIPE,
            stderr=asyncio.subprocess.PIPE,
            env=child_environment(loop_name),
        )
        assert process.stdout is not None
        port = int(await process.stdout.readline())
        async with aiohttp.ClientSession() as session:
            async with session.get(f"http://127.0.0.1:{port}/") as answer:
                name = await answer.text()
                assert name == ("_UnixSelectorEventLoop" if loop_name == "asyncio" else "Loop")
            process.send_signal(number)
            out, err = await process.communicate()
        assert (out, err, process.returncode) == (b"cleaned\nreturned\n", b"", 0)

    run(main)
