"""Idle connections by the ten thousand: one loop, and two servers that share a port.

The clients are plain sockets in processes of their own, for a descriptor's limit is that of a
process. All of them are told what to do by lines on their standard input.
"""

from __future__ import annotations

import asyncio
import contextlib
import gc
import os
import resource
import socket
import sys
from pathlib import Path
from typing import Any

import pytest
from conftest import open_fds
from loop_support import Echo, polled

import plait

CLIENTS = """
import resource, socket, struct, sys
wanted, first, port = map(int, sys.argv[1:])
hard = resource.getrlimit(resource.RLIMIT_NOFILE)[1]
resource.setrlimit(resource.RLIMIT_NOFILE, (hard, hard))
socks = []
for i in range(wanted):
    sock = socket.socket()
    # Half of all ports are taken: that is to be in nobody's way who listens on all addresses.
    sock.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
    # Its end is a reset: ports that stay taken for a minute would slow down what comes next.
    sock.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
    # Ports of one address pair would run out. The port is chosen by connect, which is quick.
    sock.setsockopt(socket.IPPROTO_IP, 24, 1)  # IP_BIND_ADDRESS_NO_PORT
    sock.bind((f"127.0.0.{first + i // 10000}", 0))
    sock.connect(("127.0.0.1", port))
    socks.append(sock)
print("connected", flush=True)
for line in sys.stdin:
    for sock in socks:
        sock.sendall(b"x")
    assert all(sock.recv(1) == b"x" for sock in socks)
    print("answered", flush=True)
"""

# One of several servers of a port. It answers a line with how many connections it holds, and
# how often its loop has turned; and ends with its input, when the last connection is gone.
SERVER = """
import asyncio, os, resource, sys
import plait
from loop_support import Echo
port = int(sys.argv[1])
hard = resource.getrlimit(resource.RLIMIT_NOFILE)[1]
resource.setrlimit(resource.RLIMIT_NOFILE, (hard, hard))

async def main():
    loop = asyncio.get_running_loop()
    reader = asyncio.StreamReader()
    await loop.connect_read_pipe(lambda: asyncio.StreamReaderProtocol(reader), sys.stdin)
    server = await loop.create_server(Echo, "127.0.0.1", port, reuse_port=True, backlog=1000)
    before = len(os.listdir("/proc/self/fd"))
    print("listening", flush=True)
    while await reader.readline():
        print(Echo.alive, loop.statistics()["iterations"], flush=True)
    await Echo.reached(0)
    after = len(os.listdir("/proc/self/fd"))
    server.close()
    await server.wait_closed()
    print("left", after - before, flush=True)

plait.run(main())
"""


class Child:
    """A process that is spoken to by lines."""

    def __init__(self, process: asyncio.subprocess.Process) -> None:
        assert process.stdin is not None
        assert process.stdout is not None
        self.process, self.stdin, self.stdout = process, process.stdin, process.stdout

    @classmethod
    async def start(cls, program: str, *numbers: int) -> Child:
        path = os.pathsep.join(
            [str(Path(__file__).parent), *filter(None, [os.environ.get("PYTHONPATH")])]
        )
        process = await asyncio.create_subprocess_exec(
            *(sys.executable, "-c", program, *map(str, numbers)),
            stdin=asyncio.subprocess.PIPE,
            stdout=asyncio.subprocess.PIPE,
            env={**os.environ, "PYTHONPATH": path},
        )
        return cls(process)

    async def hear(self) -> list[str]:
        return (await self.stdout.readline()).decode().split()

    async def ask(self) -> list[str]:
        self.stdin.write(b"go\n")
        return await self.hear()

    async def end(self) -> list[str]:
        """Close its input; gives what it says before it ends well."""
        self.stdin.close()
        words = await self.hear()
        assert await self.process.wait() == 0
        return words


@contextlib.contextmanager
def many_descriptors(wanted: int) -> Any:
    """Raise the limit as far as may be; gives it."""
    before = resource.getrlimit(resource.RLIMIT_NOFILE)
    with contextlib.suppress(ValueError, OSError):  # only the privileged may raise it
        resource.setrlimit(resource.RLIMIT_NOFILE, (wanted, max(before[1], wanted)))
    hard = resource.getrlimit(resource.RLIMIT_NOFILE)[1]
    resource.setrlimit(resource.RLIMIT_NOFILE, (hard, hard))
    try:
        yield hard
    finally:
        resource.setrlimit(resource.RLIMIT_NOFILE, before)


@pytest.mark.slow
def test_twenty_thousand_idle_connections() -> None:
    """One loop holds the servers' ends, as far as the limit of descriptors goes."""

    async def main(half: int) -> None:
        loop = asyncio.get_running_loop()
        server = await loop.create_server(Echo, "127.0.0.1", 0, backlog=1000)
        port = server.sockets[0].getsockname()[1]
        children = [await Child.start(CLIENTS, half, first, port) for first in (2, 4)]
        for child in children:
            assert await child.hear() == ["connected"]
        await Echo.reached(2 * half)
        # Nobody is forgotten among the idle, and idle they stay.
        for child in children:
            assert await child.ask() == ["answered"]
        turns = loop.statistics()["iterations"]  # type: ignore[attr-defined]
        await polled()
        assert loop.statistics()["iterations"] - turns < 10  # type: ignore[attr-defined]
        for child in children:
            assert await child.end() == []
        await Echo.reached(0)
        server.close()

    wanted = 20_000
    with many_descriptors(wanted + 200) as limit:
        wanted = min(wanted, limit - 100)
        if wanted < 5_000:
            pytest.skip(f"no more than {limit} descriptors here")
        gc.collect()
        open_before = open_fds()
        plait.run(main(wanted // 2))
        assert open_fds() <= open_before


@pytest.mark.slow
def test_twenty_thousand_idle_connections_of_two_servers() -> None:
    """Where one process may not have 20,000 descriptors, two that share a port hold them."""
    each = 10_000

    async def main(port: int) -> None:
        servers = [await Child.start(SERVER, port) for _ in range(2)]
        for server in servers:
            assert await server.hear() == ["listening"]
        clients = [await Child.start(CLIENTS, each, first, port) for first in (2, 4)]
        for client in clients:
            assert await client.hear() == ["connected"]
        for client in clients:
            assert await client.ask() == ["answered"]  # which tells that all are accepted

        async def held() -> list[tuple[int, int]]:
            return [(int(alive), int(turns)) for alive, turns in [await s.ask() for s in servers]]

        first = await held()
        assert sum(alive for alive, _ in first) == 2 * each
        assert min(alive for alive, _ in first) > 0  # the kernel chose both
        # Idle they stay: a loop turns for the question, and not for its connections.
        again = await held()
        assert [alive for alive, _ in again] == [alive for alive, _ in first]
        assert all(b - a < 10 for (_, a), (_, b) in zip(first, again, strict=True))
        for client in clients:
            assert await client.ask() == ["answered"]
        for client in clients:
            assert await client.end() == []
        for server in servers:
            assert await server.end() == ["left", "0"]

    limit = resource.getrlimit(resource.RLIMIT_NOFILE)[1]
    # Chance alone gives one server up to some hundreds more than the other.
    if limit < each + 1_000:
        pytest.skip(f"no more than {limit} descriptors here")
    with socket.socket() as reserved:  # bound, and never listening
        reserved.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEPORT, 1)
        reserved.bind(("127.0.0.1", 0))
        plait.run(main(reserved.getsockname()[1]))
