"""What the TLS tests share: certificates, loops in threads of their own, protocols."""

from __future__ import annotations

import asyncio
import subprocess
import threading
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any

import plait

FACTORIES: dict[str, Callable[[], asyncio.AbstractEventLoop]] = {
    "plait": plait.new_event_loop,
    "asyncio": asyncio.SelectorEventLoop,
}
PAIRS = [("plait", "plait"), ("plait", "asyncio"), ("asyncio", "plait")]
LIMIT = 100  # seconds for anything to happen


def _openssl(*args: str, cwd: Path) -> None:
    subprocess.run(["openssl", *args], cwd=cwd, check=True, capture_output=True)


def make_certificates(where: Path) -> None:
    """Make an authority, and certificates of a server and a client by it, in a directory."""
    key = ("-newkey", "ec", "-pkeyopt", "ec_paramgen_curve:prime256v1", "-nodes")
    ca = ("req", "-x509", *key, "-subj", "/CN=ca", "-days", "2")
    ca = (*ca, "-addext", "keyUsage=critical,keyCertSign,cRLSign")
    _openssl(*ca, "-keyout", "ca.key", "-out", "ca.pem", cwd=where)
    for name, alternative in (("server", "DNS:localhost"), ("client", "DNS:client")):
        (where / f"{name}.ext").write_text(
            f"subjectAltName={alternative}\nauthorityKeyIdentifier=keyid\n"
            "subjectKeyIdentifier=hash\nkeyUsage=digitalSignature\n"
        )
        request = ("req", *key, "-subj", f"/CN={name}")
        _openssl(*request, "-keyout", f"{name}.key", "-out", f"{name}.csr", cwd=where)
        sign = ("x509", "-req", "-in", f"{name}.csr", "-CA", "ca.pem", "-CAkey", "ca.key")
        sign = (*sign, "-CAcreateserial", "-days", "2", "-extfile", f"{name}.ext")
        _openssl(*sign, "-out", f"{name}.pem", cwd=where)


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


class Data:
    """Keeps what came, and tells when that much of it is there."""

    def __init__(self) -> None:
        self.data = bytearray()
        self._wanted: tuple[int, asyncio.Future[None]] | None = None

    def came(self, data: bytes | bytearray) -> None:
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


class Recorder(Data, asyncio.Protocol):
    """Writes down what it is told."""

    def __init__(self) -> None:
        super().__init__()
        loop = asyncio.get_running_loop()
        self.told: list[str] = []
        self.made: asyncio.Future[Any] = loop.create_future()
        self.paused: asyncio.Future[None] = loop.create_future()
        self.ended: asyncio.Future[None] = loop.create_future()
        self.lost: asyncio.Future[Exception | None] = loop.create_future()
        self.transport: Any = None

    def connection_made(self, transport: Any) -> None:
        self.transport = transport
        self.told.append("made")
        self.made.set_result(transport)

    def data_received(self, data: bytes) -> None:
        assert type(data) is bytes
        self.came(data)

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


class Made(list[Any]):
    """The protocols that a server made, in order."""

    def __init__(self) -> None:
        super().__init__()
        self._waiting: dict[int, asyncio.Future[None]] = {}

    def append(self, protocol: Any) -> None:
        super().append(protocol)
        if len(self) in self._waiting:
            self._waiting.pop(len(self)).set_result(None)

    async def reached(self, count: int) -> Any:
        """Wait until there are that many, in the server's loop; gives the last of these."""
        if len(self) < count:
            self._waiting[count] = asyncio.get_running_loop().create_future()
            await self._waiting[count]
        return self[count - 1]


class Echo(Recorder):
    def data_received(self, data: bytes) -> None:
        super().data_received(data)
        self.transport.write(data)


class Buffered(Data, asyncio.BufferedProtocol):
    """Takes data in a buffer that is smaller than a record."""

    def __init__(self) -> None:
        super().__init__()
        self.buffer = bytearray(1000)
        self.transport: Any = None

    def connection_made(self, transport: Any) -> None:
        self.transport = transport

    def get_buffer(self, sizehint: int) -> memoryview:
        return memoryview(self.buffer)  # asyncio reads into slices of it

    def buffer_updated(self, nbytes: int) -> None:
        self.came(self.buffer[:nbytes])
        self.transport.write(self.buffer[:nbytes])


async def serve(factory: Callable[[], Any], context: Any, **kwargs: Any) -> tuple[Any, int, Made]:
    """Start a server; gives it, its port, and the list of its protocols to come."""
    protocols = Made()

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


async def stop(server: Any, protocols: Iterable[Any]) -> None:
    server.close()
    for protocol in protocols:
        if isinstance(protocol, Recorder) and protocol.transport is not None:
            await protocol.lost
