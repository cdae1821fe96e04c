"""uvicorn (httptools and h11, websockets and wsproto) with httpx and raw clients."""

from __future__ import annotations

import asyncio
import hashlib
import os
import signal
import socket
import ssl
import struct
import sys
from contextlib import asynccontextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest

uvicorn = pytest.importorskip("uvicorn")
httpx = pytest.importorskip("httpx")
websockets = pytest.importorskip("websockets")
pytest.importorskip("starlette")
pytest.importorskip("httptools")
pytest.importorskip("wsproto")

from eco_app import CHUNK, Log, make_app  # noqa: E402
from eco_support import child_environment, until_stalled  # noqa: E402

if TYPE_CHECKING:
    from collections.abc import AsyncIterator

    from eco_support import Pki

HTTP = pytest.mark.parametrize("http", ["httptools", "h11"])


@asynccontextmanager
async def serving(app: Any, **settings: Any) -> AsyncIterator[str]:
    """Serve the application on this loop; gives "host:port"."""
    config = uvicorn.Config(app, log_level="warning", lifespan="off", **settings)
    config.load()
    server = uvicorn.Server(config)
    server.lifespan = config.lifespan_class(config)
    sock = socket.create_server(("127.0.0.1", 0), backlog=1024)
    with sock:
        await server.startup(sockets=[sock])
        loop = asyncio.create_task(server.main_loop())
        try:
            yield f"localhost:{sock.getsockname()[1]}"
        finally:
            server.should_exit = True
            await loop
            await server.shutdown(sockets=[sock])


async def read_head(reader: asyncio.StreamReader) -> bytes:
    return await reader.readuntil(b"\r\n\r\n")


@HTTP
def test_requests_and_keep_alive(run: Any, http: str) -> None:
    async def main() -> None:
        async with serving(make_app(Log()), http=http) as at, httpx.AsyncClient() as client:
            ports = set()
            for _ in range(50):
                answer = await client.get(f"http://{at}/who")
                assert answer.status_code == 200
                ports.add(answer.text)
            assert len(ports) == 1, "one connection serves all"
            body = os.urandom(3 << 20)
            assert (await client.post(f"http://{at}/echo", content=body)).content == body
            assert (await client.get(f"http://{at}/nowhere")).status_code == 404

    run(main)


@HTTP
def test_pipelined_requests_are_answered_in_order(run: Any, http: str) -> None:
    async def main() -> None:
        async with serving(make_app(Log()), http=http) as at:
            reader, writer = await asyncio.open_connection("127.0.0.1", at.split(":")[1])
            request = b"POST /echo HTTP/1.1\r\nHost: x\r\nContent-Length: 3\r\n\r\n%03d"
            writer.write(b"".join(request % i for i in range(100)))
            for i in range(100):
                head = await read_head(reader)
                assert head.startswith(b"HTTP/1.1 200")
                assert await reader.readexactly(3) == b"%03d" % i
            # A request that arrives byte by byte, each in its own segment.
            for byte in request % 777:
                writer.write(bytes([byte]))
                await asyncio.sleep(0)
            await read_head(reader)
            assert await reader.readexactly(3) == b"777"
            writer.write(b"nonsense\r\n\r\n")
            assert (await read_head(reader)).startswith(b"HTTP/1.1 400")
            assert await reader.read() is not None
            writer.close()
            await writer.wait_closed()

    run(main)


@HTTP
def test_many_concurrent_clients(run: Any, http: str) -> None:
    async def main() -> None:
        async with serving(make_app(Log()), http=http) as at:
            port = int(at.split(":")[1])

            async def client(i: int) -> None:
                reader, writer = await asyncio.open_connection("127.0.0.1", port)
                for j in range(10):
                    body = b"%d:%d" % (i, j)
                    head = b"POST /echo HTTP/1.1\r\nHost: x\r\nContent-Length: %d\r\n\r\n"
                    writer.write(head % len(body) + body)
                    await read_head(reader)
                    assert await reader.readexactly(len(body)) == body
                writer.close()
                await writer.wait_closed()

            async with asyncio.TaskGroup() as group:
                for i in range(300):
                    group.create_task(client(i))

    run(main)


@HTTP
def test_tls_demands_a_client_certificate(run: Any, http: str, pki: Pki) -> None:
    async def main() -> None:
        async with serving(
            make_app(Log()),
            http=http,
            ssl_certfile=pki.cert_file,
            ssl_keyfile=pki.key_file,
            ssl_ca_certs=pki.ca_file,
            ssl_cert_reqs=ssl.CERT_REQUIRED,
        ) as at:
            async with httpx.AsyncClient(verify=pki.known_client) as client:
                first = (await client.get(f"https://{at}/who")).text
                assert first.endswith(" https")
                assert (await client.get(f"https://{at}/who")).text == first
                body = os.urandom(2 << 20)
                assert (await client.post(f"https://{at}/echo", content=body)).content == body
            async with httpx.AsyncClient(verify=pki.client) as client:
                with pytest.raises(httpx.TransportError):
                    await client.get(f"https://{at}/who")
            async with httpx.AsyncClient() as client:
                with pytest.raises(httpx.ConnectError, match=r"(?i)verify failed"):
                    await client.get(f"https://{at}/who")

    run(main)


@HTTP
def test_slow_reader_stops_the_stream(run: Any, http: str) -> None:
    async def main() -> None:
        log = Log()
        async with serving(make_app(log), http=http) as at, httpx.AsyncClient() as client:
            total = 1024  # 64 MiB, far more than sockets hold
            async with client.stream("GET", f"http://{at}/stream?chunks={total}") as answer:
                await until_stalled(lambda: log.chunks_made)
                assert log.chunks_made < total
                received = 0
                async for part in answer.aiter_raw():
                    received += len(part)
            assert received == total * len(CHUNK)
            assert await log.ended.get() == "complete"

    run(main)


@HTTP
def test_slow_handler_stops_the_upload(run: Any, http: str) -> None:
    async def main() -> None:
        log = Log()
        sent = 0
        total = 1024

        async def body() -> AsyncIterator[bytes]:
            nonlocal sent
            for _ in range(total):
                sent += 1
                yield CHUNK

        async with serving(make_app(log), http=http) as at, httpx.AsyncClient() as client:
            upload = asyncio.create_task(client.post(f"http://{at}/take", content=body()))
            await until_stalled(lambda: sent)
            assert sent < total
            log.may_take.set()
            assert (await upload).text == str(total * len(CHUNK))

    run(main)


@HTTP
def test_static_files(run: Any, http: str, tmp_path: Path) -> None:
    async def main() -> None:
        data = os.urandom(5 << 20)
        (tmp_path / "blob.bin").write_bytes(data)
        async with serving(make_app(Log(), str(tmp_path)), http=http) as at:
            async with httpx.AsyncClient() as client:
                answers = await asyncio.gather(
                    *(client.get(f"http://{at}/static/blob.bin") for _ in range(4))
                )
                want = hashlib.sha256(data).digest()
                assert {hashlib.sha256(a.content).digest() for a in answers} == {want}
                part = await client.get(
                    f"http://{at}/static/blob.bin", headers={"Range": "bytes=1000-1999"}
                )
                assert (part.status_code, part.content) == (206, data[1000:2000])

    run(main)


@HTTP
@pytest.mark.parametrize("how", ["close", "reset", "cancel"])
def test_client_leaves_a_stream(run: Any, http: str, how: str) -> None:
    async def main() -> None:
        log = Log()
        async with serving(make_app(log), http=http) as at:
            port = int(at.split(":")[1])
            if how == "cancel":
                async with httpx.AsyncClient() as client:
                    task = asyncio.create_task(client.get(f"http://{at}/wait"))
                    await log.started.get()
                    task.cancel()
                    with pytest.raises(asyncio.CancelledError):
                        await task
                    # The client's pool has dropped that connection, and is of use.
                    assert (await client.get(f"http://{at}/")).text == "Hello, world"
                log.go_on.set()
                return
            for _ in range(10):
                reader, writer = await asyncio.open_connection("127.0.0.1", port)
                writer.write(b"GET /stream?chunks=100000&watch=1 HTTP/1.1\r\nHost: x\r\n\r\n")
                await read_head(reader)
                if how == "reset":
                    sock = writer.get_extra_info("socket")
                    linger = struct.pack("ii", 1, 0)
                    sock.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, linger)
                    writer.transport.abort()
                else:
                    writer.close()
                try:
                    await writer.wait_closed()
                except ConnectionError:
                    pass
                assert await log.ended.get() == "disconnected"

    run(main)


def test_handler_that_fails(run: Any, caplog: pytest.LogCaptureFixture) -> None:
    async def main() -> None:
        app = make_app(Log())
        async with serving(app, log_config=None) as at, httpx.AsyncClient() as client:
            assert (await client.get(f"http://{at}/fail")).status_code == 500
            assert (await client.get(f"http://{at}/")).text == "Hello, world"
        assert "this handler fails" in caplog.text

    run(main)


def test_idle_connection_is_closed_after_its_time(run: Any) -> None:
    async def main() -> None:
        async with serving(make_app(Log()), timeout_keep_alive=1) as at:
            reader, writer = await asyncio.open_connection("127.0.0.1", at.split(":")[1])
            writer.write(b"GET / HTTP/1.1\r\nHost: x\r\n\r\n")
            await read_head(reader)
            assert await reader.read() == b"Hello, world"  # ends when the server closes
            writer.close()
            await writer.wait_closed()

    run(main)


@pytest.mark.parametrize("ws", ["websockets", "websockets-sansio", "wsproto"])
@pytest.mark.parametrize("tls", [False, True], ids=["plain", "tls"])
@pytest.mark.filterwarnings("ignore:The .websockets. implementation:UserWarning")
def test_websockets(run: Any, ws: str, tls: bool, pki: Pki) -> None:
    async def main() -> None:
        log = Log()
        settings: dict[str, Any] = {"ws": ws}
        if tls:
            settings |= {"ssl_certfile": pki.cert_file, "ssl_keyfile": pki.key_file}
        async with serving(make_app(log), **settings) as at:
            url = f"{'wss' if tls else 'ws'}://{at}/ws"
            options = {"ssl": pki.client} if tls else {}

            async def client(i: int) -> None:
                async with websockets.connect(url, max_size=None, **options) as sock:
                    for size in (1, 1000, 70_000, 900_000 if i == 0 else 10):
                        data = os.urandom(size)
                        await sock.send(data)
                        assert await sock.recv() == data

            async with asyncio.TaskGroup() as group:
                for i in range(50):
                    group.create_task(client(i))
            for _ in range(50):
                assert await log.ended.get() == "websocket 1000"

    run(main)


# ---- a server in a process of its own ----


class Child:
    """uvicorn's command in a child process."""

    def __init__(self, process: asyncio.subprocess.Process, port: int) -> None:
        self.process = process
        self.port = port
        self.log: list[str] = []

    @classmethod
    async def start(cls, loop_name: str, *options: str) -> Child:
        loop = "asyncio" if loop_name == "asyncio" else "plait:new_event_loop"
        process = await asyncio.create_subprocess_exec(
            *(sys.executable, "-m", "uvicorn", "eco_app:child_app", "--factory"),
            *("--loop", loop, "--port", "0", "--lifespan", "off", *options),
            cwd=Path(__file__).parent,
            stdin=asyncio.subprocess.DEVNULL,
            stdout=asyncio.subprocess.DEVNULL,
            stderr=asyncio.subprocess.PIPE,
            env=child_environment(loop_name),
        )
        child = cls(process, 0)
        await child.wait_for_log("Uvicorn running on")
        child.port = int(child.log[-1].split("127.0.0.1:")[1].split()[0])
        return child

    async def wait_for_log(self, text: str) -> None:
        assert self.process.stderr is not None
        while line := (await self.process.stderr.readline()).decode():
            self.log.append(line)
            if text in line:
                return
        raise AssertionError(f"{text!r} was never logged:\n{''.join(self.log)}")

    async def end(self) -> int:
        assert self.process.stderr is not None
        self.log.append((await self.process.stderr.read()).decode())
        return await self.process.wait()


def test_terminated_server_finishes_what_it_began(run: Any, loop_name: str) -> None:
    async def main() -> None:
        child = await Child.start(loop_name)
        base = f"127.0.0.1:{child.port}"
        async with httpx.AsyncClient() as client:
            expected = "asyncio.unix_events" if loop_name == "asyncio" else "plait.Loop"
            assert (await client.get(f"http://{base}/loop")).text.startswith(expected)
            async with (
                websockets.connect(f"ws://{base}/release") as hold,
                client.stream("GET", f"http://{base}/announce") as answer,
            ):
                lines = answer.aiter_lines()
                assert await anext(lines) == "begun"
                child.process.send_signal(signal.SIGTERM)
                # The server closes its websockets when it shuts down: that releases the
                # stream, which it must still bring to its end.
                with pytest.raises(websockets.ConnectionClosed):
                    await hold.recv()
                with pytest.raises(httpx.ConnectError):
                    async with httpx.AsyncClient() as late:
                        await late.get(f"http://{base}/")
                assert await anext(lines) == "ended"
                assert [line async for line in lines] == []
        code = await child.end()
        assert code in (0, -signal.SIGTERM), child.log
        assert "Traceback" not in "".join(child.log)
        assert "Finished server process" in "".join(child.log)

    run(main)


def test_second_interrupt_ends_it_at_once(run: Any, loop_name: str) -> None:
    async def main() -> None:
        child = await Child.start(loop_name)
        async with httpx.AsyncClient() as client:
            with pytest.raises(httpx.TransportError):  # noqa: PT012
                async with client.stream(
                    "GET", f"http://127.0.0.1:{child.port}/announce"
                ) as answer:
                    lines = answer.aiter_lines()
                    assert await anext(lines) == "begun"
                    child.process.send_signal(signal.SIGINT)
                    await child.wait_for_log("Waiting for connections to close")
                    child.process.send_signal(signal.SIGINT)
                    await anext(lines)
        assert await child.end() in (0, 130, -signal.SIGINT), child.log

    run(main)


def test_several_workers(run: Any, loop_name: str) -> None:
    async def main() -> None:
        from eco_support import free_port

        port = free_port()
        loop = "asyncio" if loop_name == "asyncio" else "plait:new_event_loop"
        process = await asyncio.create_subprocess_exec(
            *(sys.executable, "-m", "uvicorn", "eco_app:child_app", "--factory"),
            *("--loop", loop, "--port", str(port), "--lifespan", "off", "--workers", "2"),
            cwd=Path(__file__).parent,
            stdin=asyncio.subprocess.DEVNULL,
            stdout=asyncio.subprocess.DEVNULL,
            stderr=asyncio.subprocess.PIPE,
            env=child_environment(loop_name),
        )
        child = Child(process, port)
        await child.wait_for_log("Started server process")
        await child.wait_for_log("Started server process")
        expected = "asyncio.unix_events" if loop_name == "asyncio" else "plait.Loop"
        pids = set()
        try:
            for _ in range(2000):  # which of the two accepts is the kernel's choice
                # What a client costs is mostly the certificates that it reads: none are needed.
                async with httpx.AsyncClient(verify=False) as client:
                    name, pid = (await client.get(f"http://127.0.0.1:{port}/loop")).text.split()
                assert name.startswith(expected)
                pids.add(pid)
                if len(pids) == 2:
                    break
        finally:
            process.send_signal(signal.SIGTERM)
        assert await child.end() in (0, -signal.SIGTERM), child.log
        for pid in pids:
            assert not Path(f"/proc/{pid}").exists()

    run(main)
