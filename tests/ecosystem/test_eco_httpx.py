"""httpx against hypercorn: HTTP/2 by ALPN, SNI, trailing limits of its pool."""

from __future__ import annotations

import asyncio
import os
import socket
import ssl
from contextlib import asynccontextmanager
from typing import TYPE_CHECKING, Any

import pytest

httpx = pytest.importorskip("httpx")
pytest.importorskip("h2")
pytest.importorskip("starlette")
hypercorn_asyncio = pytest.importorskip("hypercorn.asyncio")
hypercorn_config = pytest.importorskip("hypercorn.config")

from eco_app import CHUNK, Log, make_app  # noqa: E402
from eco_support import until_stalled  # noqa: E402

if TYPE_CHECKING:
    from collections.abc import AsyncIterator

    from eco_support import Pki


@asynccontextmanager
async def serving(app: Any, pki: Pki) -> AsyncIterator[str]:
    """Serve the application by HTTP/1.1 and HTTP/2 over TLS; gives "host:port"."""
    sock = socket.create_server(("127.0.0.1", 0), backlog=1024)
    config = hypercorn_config.Config()
    config.bind = [f"fd://{sock.detach()}"]
    config.certfile, config.keyfile = pki.cert_file, pki.key_file
    config.alpn_protocols = ["h2", "http/1.1"]
    config.errorlog = None
    config.graceful_timeout = 5.0
    port = socket.socket(fileno=os.dup(int(config.bind[0][5:])))
    number = port.getsockname()[1]
    port.close()
    over = asyncio.Event()
    task = asyncio.create_task(hypercorn_asyncio.serve(app, config, shutdown_trigger=over.wait))
    try:
        yield f"localhost:{number}"
    finally:
        over.set()
        await task


@pytest.mark.parametrize("http2", [True, False], ids=["h2", "h1"])
def test_protocol_is_chosen_by_alpn(run: Any, pki: Pki, http2: bool) -> None:
    async def main() -> None:
        async with (
            serving(make_app(Log()), pki) as at,
            httpx.AsyncClient(verify=pki.client, http2=http2) as client,
        ):
            answer = await client.get(f"https://{at}/")
            assert answer.http_version == ("HTTP/2" if http2 else "HTTP/1.1")
            assert answer.text == "Hello, world"
            body = os.urandom(2 << 20)
            assert (await client.post(f"https://{at}/echo", content=body)).content == body
            many = [client.post(f"https://{at}/echo", content=f"{i}") for i in range(80)]
            answers = await asyncio.gather(*many)
            assert [a.text for a in answers] == [str(i) for i in range(80)]
            ports = {(await client.get(f"https://{at}/who")).text for _ in range(5)}
            assert len(ports) == 1

    run(main)


def test_http2_stream_is_paced_by_its_reader(run: Any, pki: Pki) -> None:
    async def main() -> None:
        log = Log()
        total = 512
        async with (
            serving(make_app(log), pki) as at,
            httpx.AsyncClient(verify=pki.client, http2=True) as client,
            client.stream("GET", f"https://{at}/stream?chunks={total}") as answer,
        ):
            await until_stalled(lambda: log.chunks_made)
            assert log.chunks_made < total
            received = 0
            async for part in answer.aiter_raw():
                received += len(part)
            assert received == total * len(CHUNK)

    run(main)


def test_timeouts(run: Any, pki: Pki) -> None:
    async def main() -> None:
        log = Log()
        async with (
            serving(make_app(log), pki) as at,
            httpx.AsyncClient(verify=pki.client) as client,
        ):
            with pytest.raises(httpx.ReadTimeout):
                await client.get(f"https://{at}/wait", timeout=httpx.Timeout(5, read=0.05))
            assert (await client.get(f"https://{at}/")).text == "Hello, world"
            log.go_on.set()
            with socket.create_server(("127.0.0.1", 0)) as silent:
                port = silent.getsockname()[1]
                with pytest.raises(httpx.ConnectTimeout):  # in the TLS handshake
                    await client.get(f"https://localhost:{port}/", timeout=0.1)
        limits = httpx.Limits(max_connections=1)
        async with (
            serving(make_app(log), pki) as at,
            httpx.AsyncClient(verify=pki.client, limits=limits) as client,
            client.stream("GET", f"https://{at}/stream?chunks=4") as answer,
        ):
            with pytest.raises(httpx.PoolTimeout):
                await client.get(f"https://{at}/", timeout=httpx.Timeout(5, pool=0.05))
            await answer.aread()

    run(main)


def test_server_name_chooses_the_certificate(run: Any, authority: Any, pki: Pki) -> None:
    """SNI: one listener, a certificate for each name, on the bare loop."""
    asked: list[str | None] = []
    contexts = {}
    for name in ("localhost", "other.test"):
        contexts[name] = ssl.create_default_context(ssl.Purpose.CLIENT_AUTH)
        contexts[name].set_alpn_protocols(["second", "first"])
        authority.issue_cert(name).configure_cert(contexts[name])

    def choose(sslobj: Any, name: str | None, _context: ssl.SSLContext) -> None:
        asked.append(name)
        sslobj.context = contexts[name or "localhost"]

    contexts["localhost"].sni_callback = choose

    async def answer(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        chosen = writer.get_extra_info("ssl_object").selected_alpn_protocol()
        writer.write(f"{chosen}".encode())
        writer.close()
        await writer.wait_closed()

    async def main() -> None:
        server = await asyncio.start_server(answer, "127.0.0.1", 0, ssl=contexts["localhost"])
        port = server.sockets[0].getsockname()[1]
        client = ssl.create_default_context()
        authority.configure_trust(client)
        client.set_alpn_protocols(["first", "none"])
        for name in ("localhost", "other.test"):
            reader, writer = await asyncio.open_connection(
                "127.0.0.1", port, ssl=client, server_hostname=name
            )
            cert = writer.get_extra_info("peercert")
            assert cert["subjectAltName"] == (("DNS", name),)
            assert writer.get_extra_info("ssl_object").selected_alpn_protocol() == "first"
            assert writer.get_extra_info("sslcontext") is client
            assert await reader.read() == b"first"
            writer.close()
            await writer.wait_closed()
        server.close()
        await server.wait_closed()
        assert asked == ["localhost", "other.test"]

    run(main)
