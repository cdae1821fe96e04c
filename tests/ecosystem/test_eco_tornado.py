"""tornado: its IOLoop, HTTP server and client, websockets and processes on the loop."""

from __future__ import annotations

import asyncio
import os
import socket
import ssl
import struct
import threading
from functools import partial
from typing import TYPE_CHECKING, Any

import pytest
from eco_support import until_stalled

pytest.importorskip("tornado")

from tornado import (
    gen,
    httpclient,
    httpserver,
    ioloop,
    iostream,
    locks,
    netutil,
    process,
    simple_httpclient,
    tcpclient,
    tcpserver,
    web,
    websocket,
)

if TYPE_CHECKING:
    from pathlib import Path

    from eco_support import Pki

CHUNK = b"0123456789abcdef" * 4096  # 64 KiB


class Hello(web.RequestHandler):
    def get(self) -> None:
        self.write(type(asyncio.get_running_loop()).__qualname__)

    def post(self) -> None:
        self.write(self.request.body)


def serve(
    *handlers: Any, ssl_options: Any = None, **settings: Any
) -> tuple[httpserver.HTTPServer, int]:
    server = httpserver.HTTPServer(
        web.Application([("/", Hello), *handlers], log_function=lambda _: None, **settings),
        ssl_options=ssl_options,
        max_buffer_size=1 << 28,
    )
    sockets = netutil.bind_sockets(0, "127.0.0.1", backlog=1024)
    server.add_sockets(sockets)
    return server, sockets[0].getsockname()[1]


async def settled() -> None:
    """Let what a close leaves behind end, in callbacks of its own."""
    for _ in range(20):
        await asyncio.sleep(0)


async def stop(server: httpserver.HTTPServer, client: Any = None) -> None:
    if client is not None:
        client.close()
    server.stop()
    await server.close_all_connections()
    await settled()


def new_client(**kwargs: Any) -> Any:
    return simple_httpclient.SimpleAsyncHTTPClient(
        force_instance=True, max_clients=400, max_buffer_size=1 << 28, **kwargs
    )


@pytest.mark.parametrize("tls", [False, True], ids=["plain", "tls"])
def test_http(run: Any, loop_name: str, tls: bool, pki: Pki) -> None:
    async def main() -> None:
        server, port = serve(ssl_options=pki.server if tls else None)
        client = new_client(defaults={"ssl_options": pki.client} if tls else None)
        url = f"{'https' if tls else 'http'}://localhost:{port}/"
        answer = await client.fetch(url)
        assert answer.body == (b"Loop" if loop_name == "plait" else b"_UnixSelectorEventLoop")
        body = os.urandom(5 << 20)
        kind = {"Content-Type": "application/octet-stream"}
        post = partial(client.fetch, url, method="POST", headers=kind)
        assert (await post(body=body)).body == body
        many = [post(body=f"{i}") for i in range(200)]
        assert [a.body for a in await asyncio.gather(*many)] == [b"%d" % i for i in range(200)]
        if tls:
            with pytest.raises(ssl.SSLCertVerificationError):
                await client.fetch(url, ssl_options=ssl.create_default_context())
        await stop(server, client)

    run(main)


def test_keep_alive_and_reset(run: Any) -> None:
    async def main() -> None:
        server, port = serve()
        for _ in range(10):
            reader, writer = await asyncio.open_connection("127.0.0.1", port)
            for _ in range(10):
                writer.write(b"GET / HTTP/1.1\r\nHost: x\r\n\r\n")
                head = await reader.readuntil(b"\r\n\r\n")
                length = int(head.lower().split(b"content-length: ")[1].split()[0])
                await reader.readexactly(length)
            writer.write(b"GET / HTTP/1.1\r\n")
            sock = writer.get_extra_info("socket")
            sock.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
            writer.transport.abort()
        client = new_client()
        assert (await client.fetch(f"http://127.0.0.1:{port}/")).code == 200
        await stop(server, client)

    run(main)


def test_static_file(run: Any, tmp_path: Path) -> None:
    async def main() -> None:
        data = os.urandom(5 << 20)
        (tmp_path / "big.bin").write_bytes(data)
        server, port = serve((r"/files/(.*)", web.StaticFileHandler, {"path": str(tmp_path)}))
        client = new_client()
        url = f"http://127.0.0.1:{port}/files/big.bin"
        assert (await client.fetch(url)).body == data
        part = await client.fetch(url, headers={"Range": "bytes=5-104"})
        assert (part.code, part.body) == (206, data[5:105])
        await stop(server, client)

    run(main)


def test_slow_reader_stops_the_stream(run: Any) -> None:
    made = 0
    total = 512
    ended: asyncio.Queue[str] = asyncio.Queue()

    class Stream(web.RequestHandler):
        async def get(self) -> None:
            nonlocal made
            try:
                for _ in range(total):
                    self.write(CHUNK)
                    await self.flush()
                    made += 1
            except iostream.StreamClosedError:
                ended.put_nowait("closed")
                raise

    async def main() -> None:
        server, port = serve(("/stream", Stream))
        reader, writer = await asyncio.open_connection("127.0.0.1", port, limit=1024)
        writer.write(b"GET /stream HTTP/1.1\r\nHost: x\r\nConnection: close\r\n\r\n")
        await until_stalled(lambda: made)
        assert made < total
        received = 0
        while data := await reader.read(1 << 20):
            received += len(data)
        assert received > total * len(CHUNK)
        writer.close()
        await writer.wait_closed()
        # One that leaves in the middle.
        reader, writer = await asyncio.open_connection("127.0.0.1", port)
        writer.write(b"GET /stream HTTP/1.1\r\nHost: x\r\n\r\n")
        await reader.readexactly(1000)
        writer.transport.abort()
        assert await ended.get() == "closed"
        await stop(server)

    run(main)


def test_websockets(run: Any) -> None:
    closed: asyncio.Queue[Any] = asyncio.Queue()

    class Echo(websocket.WebSocketHandler):
        async def on_message(self, message: Any) -> None:
            await self.write_message(message, binary=isinstance(message, bytes))

        def on_close(self) -> None:
            closed.put_nowait(self.close_code)

    async def main() -> None:
        server, port = serve(("/ws", Echo), websocket_max_message_size=1 << 26)

        async def client(i: int) -> None:
            conn = await websocket.websocket_connect(
                f"ws://127.0.0.1:{port}/ws", max_message_size=1 << 26
            )
            for size in (1, 1000, 70_000, (2 << 20) if i == 0 else 10):
                data = os.urandom(size)
                await conn.write_message(data, binary=True)
                assert await conn.read_message() == data
            await conn.write_message("text")
            assert await conn.read_message() == "text"
            conn.close(1000)
            assert await conn.read_message() is None

        await asyncio.gather(*(client(i) for i in range(50)))
        assert [await closed.get() for _ in range(50)] == [1000] * 50
        await stop(server)

    run(main)


def test_streams_start_tls(run: Any, pki: Pki) -> None:
    class Server(tcpserver.TCPServer):
        async def handle_stream(self, stream: Any, address: Any) -> None:
            assert await stream.read_until(b"\n") == b"starttls\n"
            await stream.write(b"go\n")
            secure = await stream.start_tls(True, pki.server)
            try:
                while True:
                    await secure.write(await secure.read_until(b"\n", max_bytes=1 << 24))
            except iostream.StreamClosedError:
                pass

    async def main() -> None:
        server = Server()
        sockets = netutil.bind_sockets(0, "127.0.0.1")
        server.add_sockets(sockets)
        client = tcpclient.TCPClient()
        stream = await client.connect("127.0.0.1", sockets[0].getsockname()[1])
        await stream.write(b"starttls\n")
        assert await stream.read_until(b"\n") == b"go\n"
        secure = await stream.start_tls(False, pki.client, "localhost")
        for size in (1, 100_000, 3_000_000):
            line = b"q" * size + b"\n"
            sending = asyncio.ensure_future(secure.write(line))
            assert await secure.read_until(b"\n", max_bytes=1 << 24) == line
            await sending
        secure.close()
        client.close()
        server.stop()
        await settled()

    run(main)


def test_ioloop(run: Any) -> None:
    async def main() -> None:
        loop = ioloop.IOLoop.current()
        order: list[Any] = []
        done = locks.Event()
        thread = threading.get_ident()

        def finish() -> None:
            order.append("thread")
            assert threading.get_ident() == thread
            done.set()

        loop.add_callback(order.append, "callback")
        late = loop.call_later(0.01, order.append, "never")
        loop.remove_timeout(late)
        periodic = ioloop.PeriodicCallback(lambda: order.append("tick"), 1)
        periodic.start()
        while order.count("tick") < 5:
            await asyncio.sleep(0)
        periodic.stop()
        other = threading.Thread(target=lambda: loop.add_callback(finish))
        other.start()
        await done.wait()
        other.join()
        assert order[0] == "callback"
        assert "never" not in order
        assert await loop.run_in_executor(None, threading.get_ident) != thread
        with pytest.raises(gen.TimeoutError):
            await gen.with_timeout(loop.time() + 0.01, asyncio.get_running_loop().create_future())
        # A descriptor under add_handler, both ways.
        a, b = socket.socketpair()
        events: asyncio.Queue[int] = asyncio.Queue()
        a.setblocking(False)
        loop.add_handler(a, lambda _fd, event: events.put_nowait(event), ioloop.IOLoop.WRITE)
        assert await events.get() == ioloop.IOLoop.WRITE
        loop.update_handler(a, ioloop.IOLoop.READ)
        while not events.empty():
            events.get_nowait()
        b.send(b"x")
        assert await events.get() == ioloop.IOLoop.READ
        loop.remove_handler(a)
        a.close()
        b.close()

    run(main)


def test_subprocess_pipes(run: Any) -> None:
    async def main() -> None:
        child = process.Subprocess(
            ["cat"], stdin=process.Subprocess.STREAM, stdout=process.Subprocess.STREAM
        )
        data = os.urandom(3 << 20)
        writing = asyncio.ensure_future(child.stdin.write(data))
        assert await child.stdout.read_bytes(len(data)) == data
        await writing
        child.stdin.close()
        assert await child.stdout.read_until_close() == b""
        assert await child.wait_for_exit() == 0
        with pytest.raises(process.CalledProcessError):
            await process.Subprocess(["false"]).wait_for_exit()
        process.Subprocess.uninitialize()  # its SIGCHLD handler knows this loop

    run(main)


def test_request_timeout(run: Any) -> None:
    class Never(web.RequestHandler):
        async def get(self) -> None:
            await asyncio.Event().wait()

    async def main() -> None:
        server, port = serve(("/never", Never))
        client = new_client()
        with pytest.raises(httpclient.HTTPError, match="Timeout"):
            await client.fetch(f"http://127.0.0.1:{port}/never", request_timeout=0.05)
        assert (await client.fetch(f"http://127.0.0.1:{port}/")).code == 200
        await stop(server, client)
        # The handler that never ends is cancelled with the loop.

    run(main)
