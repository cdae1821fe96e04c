"""Do connections leave anything behind? Run in a process of its own.

Both ends of every connection are on one loop. After a warm-up of the same shape come

    --connections N   that many short ones: opened, used, and ended in each of six ways;
    --idle N          that many held open at once, each used before and after the wait.

Each time the open descriptors, the resident memory and the objects that the collector
knows must be back where they were after the warm-up.

Exit status: 0 nothing is left, 1 something is (and what), 77 the limit of descriptors is
too low for --idle.
"""

from __future__ import annotations

import argparse
import asyncio
import collections
import gc
import os
import resource
import socket
import ssl
import struct
import sys
from typing import Any

import plait

BATCH = 100
# Ports of one address pair would run out: a closed connection keeps its own for a minute.
ADDRESSES = [f"127.0.0.{i}" for i in range(1, 33)]
WAYS = ("client closes", "client resets", "client aborts", "server closes", "server resets")
WAYS += ("half closed",)


class Counts:
    """What a process holds at one moment."""

    def __init__(self) -> None:
        for _ in range(3):
            gc.collect()
        self.types = collections.Counter(type(o).__qualname__ for o in gc.get_objects())
        self.objects = self.types.total()
        self.descriptors = len(os.listdir("/proc/self/fd"))
        with open("/proc/self/statm") as file:
            self.resident = int(file.read().split()[1]) * resource.getpagesize()

    def __str__(self) -> str:
        return (
            f"{self.descriptors} descriptors, {self.objects} objects, {self.resident / 1e6:.1f} MB"
        )


def compare(what: str, before: Counts, after: Counts, slack: int) -> list[str]:
    """Say what has grown.

    Args:
        what: what was done in between.
        before: the counts then.
        after: the counts now.
        slack: how many bytes of resident memory are no leak.
    """
    problems = []
    if after.descriptors != before.descriptors:
        problems.append(f"{what}: descriptors {before.descriptors} -> {after.descriptors}")
    # One leaked object per connection would be thousands; a cache may have moved by a few.
    if after.objects > before.objects + 100:
        grown = (after.types - before.types).most_common(8)
        problems.append(f"{what}: objects {before.objects} -> {after.objects}: {grown}")
    if after.resident > before.resident + slack:
        problems.append(
            f"{what}: resident {before.resident / 1e6:.1f} -> {after.resident / 1e6:.1f} MB"
        )
    return problems


def reset(transport: Any) -> None:
    sock = transport.get_extra_info("socket")
    sock.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
    transport.abort()


class Echo(asyncio.Protocol):
    """The server's side: echoes; a first byte of b"C" or b"R" tells it to end it."""

    live = 0

    def connection_made(self, transport: Any) -> None:
        self.transport = transport
        Echo.live += 1

    def data_received(self, data: bytes) -> None:
        self.transport.write(data)
        if data[:1] == b"C":
            self.transport.close()
        elif data[:1] == b"R":
            reset(self.transport)

    def connection_lost(self, exc: Exception | None) -> None:
        Echo.live -= 1


class Client(asyncio.Protocol):
    """The other side: says when something came, and when it is over."""

    def __init__(self) -> None:
        loop = asyncio.get_running_loop()
        self.heard = loop.create_future()
        self.over = loop.create_future()

    def connection_made(self, transport: Any) -> None:
        self.transport = transport

    def data_received(self, data: bytes) -> None:
        if not self.heard.done():
            self.heard.set_result(data)

    def connection_lost(self, exc: Exception | None) -> None:
        if not self.heard.done():
            self.heard.set_result(b"")
        self.over.set_result(None)


class Server:
    """Listens on all addresses."""

    def __init__(self, tls: tuple[str, str, str] | None) -> None:
        self.server_tls = self.client_tls = None
        if tls is not None:
            ca, cert, key = tls
            self.server_tls = ssl.create_default_context(ssl.Purpose.CLIENT_AUTH)
            self.server_tls.load_cert_chain(cert, key)
            self.client_tls = ssl.create_default_context(cafile=ca)
        self.next = 0

    async def start(self) -> None:
        loop = asyncio.get_running_loop()
        self.server = await loop.create_server(
            Echo, ADDRESSES, 0, ssl=self.server_tls, backlog=1024
        )
        self.names = [s.getsockname() for s in self.server.sockets]

    async def connect(self) -> Client:
        host, port = self.names[self.next % len(self.names)]
        self.next += 1
        name = "localhost" if self.client_tls else None
        _, protocol = await asyncio.get_running_loop().create_connection(
            Client, host, port, ssl=self.client_tls, server_hostname=name
        )
        return protocol

    async def stop(self) -> None:
        while Echo.live:
            await asyncio.sleep(0)
        self.server.close()
        await self.server.wait_closed()


async def short_one(server: Server, way: str) -> None:
    client = await server.connect()
    transport = client.transport
    first = {"server closes": b"C", "server resets": b"R"}.get(way, b"x")
    transport.write(first + b"y" * 200)
    answer = await client.heard
    if way == "client closes":
        transport.close()
    elif way == "client resets":
        reset(transport)
    elif way == "client aborts":
        transport.write(b"z" * 100_000)
        transport.abort()
    elif way == "half closed":
        if transport.can_write_eof():
            transport.write_eof()
        else:
            transport.close()
    if way != "server resets" and answer[:1] != first:
        raise AssertionError(f"{way}: got {answer[:10]!r}")
    await client.over


async def many_short(server: Server, count: int) -> None:
    for done in range(0, count, BATCH):
        async with asyncio.TaskGroup() as group:
            for i in range(min(BATCH, count - done)):
                group.create_task(short_one(server, WAYS[(done + i) % len(WAYS)]))
    while Echo.live:
        await asyncio.sleep(0)


async def many_idle(server: Server, count: int) -> Counts:
    """Hold that many; gives the counts of that moment."""
    clients: list[Client] = []
    for done in range(0, count, BATCH):
        size = min(BATCH, count - done)
        clients += await asyncio.gather(*(server.connect() for _ in range(size)))
    while Echo.live < count:
        await asyncio.sleep(0)
    for client in clients:
        client.transport.write(b"one")
    for client in clients:
        if await client.heard != b"one":
            raise AssertionError("an idle connection did not answer")
    held = Counts()
    for client in clients:
        client.heard = asyncio.get_running_loop().create_future()
        client.transport.write(b"two")
    for client in clients:
        if await client.heard != b"two":
            raise AssertionError("an idle connection did not answer after the wait")
    if Echo.live != count:
        raise AssertionError(f"{count - Echo.live} of {count} idle connections went away")
    for i, client in enumerate(clients):
        (reset if i % 2 else type(client.transport).close)(client.transport)
    for client in clients:
        await client.over
    while Echo.live:
        await asyncio.sleep(0)
    return held


async def work(options: argparse.Namespace) -> list[str]:
    server = Server(options.tls)
    await server.start()
    problems: list[str] = []
    if options.connections:
        await many_short(server, max(600, options.connections // 10))
        before = Counts()
        await many_short(server, options.connections)
        after = Counts()
        print(f"{options.connections} short connections: {before} -> {after}")
        # 16 bytes lost per connection would show from about 100,000 on.
        problems += compare("short connections", before, after, 1_500_000)
    if options.idle:
        for _ in range(2):  # until the allocator's blocks lie where they will stay
            await many_idle(server, options.idle)
        before = Counts()
        held = await many_idle(server, options.idle)
        after = Counts()
        each = (held.resident - before.resident) / options.idle
        print(f"{options.idle} idle connections: {before} -> {held} -> {after}")
        print(f"about {each / 1000:.1f} kB per idle connection, both ends together")
        if held.descriptors != before.descriptors + 2 * options.idle:
            problems.append(f"idle: {held.descriptors} descriptors while held")
        problems += compare("idle connections", before, after, 6_000_000)
    await server.stop()
    return problems


def main() -> int:
    """Run it; see the module's text."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--connections", type=int, default=20_000, metavar="N")
    parser.add_argument("--idle", type=int, default=5_000, metavar="N")
    parser.add_argument("--loop", choices=("plait", "asyncio"), default="plait")
    parser.add_argument("--tls", nargs=3, metavar=("CA", "CERT", "KEY"))
    options = parser.parse_args()
    need = 2 * max(options.idle, BATCH) + 500
    _, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    if hard != resource.RLIM_INFINITY and hard < need:
        print(f"needs {need} descriptors, and the limit is {hard}")
        return 77
    resource.setrlimit(resource.RLIMIT_NOFILE, (need, hard))
    told: list[str] = []

    async def main() -> list[str]:
        asyncio.get_running_loop().set_exception_handler(
            lambda _loop, context: told.append(repr(context))
        )
        return await work(options)

    outside = Counts()
    factory = plait.new_event_loop if options.loop == "plait" else asyncio.SelectorEventLoop
    with asyncio.Runner(loop_factory=factory) as runner:
        problems = runner.run(main())
    del runner
    after = Counts()
    if after.descriptors != outside.descriptors:
        problems.append(f"descriptors left by the loop: {outside} -> {after}")
    problems += [f"told to the exception handler: {text}" for text in told[:5]]
    for problem in problems:
        print("LEFT BEHIND", problem)
    return 1 if problems else 0


if __name__ == "__main__":
    sys.exit(main())
