"""An echo server on one of the loops, written in one of four styles.

    python -m harness.server --loop plait --style protocol

Prints the port it listens on, then serves until it is killed.
"""

from __future__ import annotations

import argparse
import asyncio
import resource
import socket
import ssl
import subprocess
import tempfile
from collections.abc import Callable, Coroutine
from typing import cast

from .loops import LOOPS, factory


class Echo(asyncio.Protocol):
    """Writes back what arrives, and stops reading while the peer does not take it."""

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        # Not every loop's transport is an instance of asyncio.Transport.
        self.transport = cast(asyncio.Transport, transport)

    def data_received(self, data: bytes) -> None:
        self.transport.write(data)

    def pause_writing(self) -> None:
        self.transport.pause_reading()

    def resume_writing(self) -> None:
        self.transport.resume_reading()


def announce(port: int) -> None:
    """Tell the harness where to connect."""
    print(f"listening on 127.0.0.1:{port}", flush=True)


async def serve_protocol() -> None:
    loop = asyncio.get_running_loop()
    server = await loop.create_server(Echo, "127.0.0.1", 0, backlog=4096)
    announce(server.sockets[0].getsockname()[1])
    # Not serve_forever, which one of the peers does not do.
    await loop.create_future()


def server_context() -> ssl.SSLContext:
    """Make a context with a certificate of its own, by the openssl command."""
    with tempfile.TemporaryDirectory() as directory:
        cert, key = f"{directory}/cert.pem", f"{directory}/key.pem"
        command = ["openssl", "req", "-x509", "-newkey", "ec", "-pkeyopt"]
        command += ["ec_paramgen_curve:prime256v1", "-nodes", "-subj", "/CN=localhost"]
        command += ["-days", "2", "-keyout", key, "-out", cert]
        subprocess.run(command, check=True, stderr=subprocess.DEVNULL)
        context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
        context.load_cert_chain(cert, key)
    return context


async def serve_tls() -> None:
    loop = asyncio.get_running_loop()
    server = await loop.create_server(Echo, "127.0.0.1", 0, backlog=4096, ssl=server_context())
    announce(server.sockets[0].getsockname()[1])
    await loop.create_future()


async def serve_streams() -> None:
    async def talk(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        try:
            while data := await reader.read(262144):
                writer.write(data)
                await writer.drain()
        except ConnectionError:
            pass
        finally:
            writer.close()

    # A limit that holds the largest message, for all loops alike.
    server = await asyncio.start_server(talk, "127.0.0.1", 0, backlog=4096, limit=262144)
    announce(server.sockets[0].getsockname()[1])
    await asyncio.get_running_loop().create_future()


async def serve_sock() -> None:
    loop = asyncio.get_running_loop()
    listener = socket.create_server(("127.0.0.1", 0), backlog=4096)
    listener.setblocking(False)
    announce(listener.getsockname()[1])

    async def talk(conn: socket.socket) -> None:
        with conn:
            conn.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
            try:
                while data := await loop.sock_recv(conn, 262144):
                    await loop.sock_sendall(conn, data)
            except ConnectionError:
                pass

    tasks = set()
    while True:
        conn, _ = await loop.sock_accept(listener)
        conn.setblocking(False)
        task = loop.create_task(talk(conn))
        tasks.add(task)
        task.add_done_callback(tasks.discard)


async def serve_generators() -> None:
    from plait import generators

    def talk(conn: socket.socket) -> generators.Strand[None]:
        with conn:
            conn.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
            receive = generators.recv(conn, 262144)  # a request may be yielded again
            try:
                while data := (yield receive):
                    yield generators.send(conn, data)
            except ConnectionError:
                pass

    def listen() -> generators.Strand[None]:
        with socket.create_server(("127.0.0.1", 0), backlog=4096) as listener:
            listener.setblocking(False)
            announce(listener.getsockname()[1])
            while True:
                conn, _ = yield generators.accept(listener)
                yield generators.spawn(talk(conn))

    await generators.start(listen())


STYLES: dict[str, Callable[[], Coroutine[None, None, None]]] = {
    "protocol": serve_protocol,
    "streams": serve_streams,
    "sock": serve_sock,
    "generators": serve_generators,
    "tls": serve_tls,
}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else None)
    parser.add_argument("--loop", choices=LOOPS, required=True)
    parser.add_argument("--style", choices=STYLES, required=True)
    args = parser.parse_args()
    hard = resource.getrlimit(resource.RLIMIT_NOFILE)[1]
    resource.setrlimit(resource.RLIMIT_NOFILE, (hard, hard))

    loop = factory(args.loop)()
    asyncio.set_event_loop(loop)
    loop.run_until_complete(STYLES[args.style]())


if __name__ == "__main__":
    main()
