"""The set in which a server has its transports: what asyncio's own does with it."""

from __future__ import annotations

import asyncio
import contextlib
import gc
import socket
import sys
import weakref
from typing import Any, cast

import pytest
from loop_support import Echo

import plait

pytestmark = pytest.mark.skipif(
    sys.version_info < (3, 13), reason="servers know their transports from Python 3.13 on"
)


async def served(count: int, protocol: Any = Echo) -> tuple[Any, list[socket.socket]]:
    """Start a server and connect so many sockets, each of which has had an answer."""
    loop = asyncio.get_running_loop()
    server = await loop.create_server(protocol, "127.0.0.1", 0)
    peers = []
    for _ in range(count):
        peer = socket.socket()
        peer.setblocking(False)
        await loop.sock_connect(peer, server.sockets[0].getsockname())
        await loop.sock_sendall(peer, b"x")
        assert await loop.sock_recv(peer, 1) == b"x"
        peers.append(peer)
    return cast(Any, server), peers


@contextlib.contextmanager
def closing(peers: list[socket.socket]) -> Any:
    try:
        yield
    finally:
        for peer in peers:
            peer.close()


@pytest.fixture(params=["epoll", "uring"])
def runner(request: pytest.FixtureRequest) -> Any:
    with asyncio.Runner(loop_factory=lambda: plait.Loop(backend=request.param)) as runner:
        yield runner


def test_the_set_knows_who_is_connected(runner: Any) -> None:
    async def main() -> None:
        server, peers = await served(3)
        other, strangers = await served(2)
        with closing(peers + strangers):
            clients = server._clients
            assert type(clients).__name__ == "Clients"
            assert len(clients) == 3
            assert len(other._clients) == 2
            members = clients.copy()
            assert {t.get_extra_info("peername") for t in members} == {
                p.getsockname() for p in peers
            }
            assert set(clients) == members
            assert all(t in clients and t not in other._clients for t in members)
            for transport in members:  # they are in no second time, and nobody else's
                clients.add(transport)
                other._clients.discard(transport)
            assert len(clients) == 3
            peers[0].close()
            await Echo.reached(4)
            await asyncio.sleep(0)  # it is detached when its protocol has been told
            assert len(clients) == 2
            other.close_clients()
            await Echo.reached(2)
            other.close()
            await other.wait_closed()
            assert len(other._clients) == 0
            assert len(clients) == 2
            waiter = asyncio.ensure_future(server.wait_closed())
            server.close()
            await asyncio.sleep(0)
            assert not waiter.done()
            server.abort_clients()
            await waiter
            assert not clients.copy()

    runner.run(main())


class Slow(asyncio.Protocol):
    """Writes more than the peer takes."""

    def data_received(self, data: bytes) -> None:
        self.transport.write(data + b"." * (32 << 20))

    def connection_made(self, transport: Any) -> None:
        self.transport = transport


def test_who_still_sends_is_a_client_and_can_be_aborted(runner: Any) -> None:
    async def main() -> None:
        server, peers = await served(1, Slow)
        with closing(peers):
            server.close_clients()
            (transport,) = server._clients
            assert transport.is_closing()
            server.close()
            server.abort_clients()
            await server.wait_closed()
            assert len(server._clients) == 0

    runner.run(main())


def test_what_is_no_transport_of_the_loop_is_kept_weakly(runner: Any) -> None:
    class Thing:
        def close(self) -> None:
            closed.append(self)

    closed: list[Any] = []

    async def main() -> None:
        server, peers = await served(1)
        with closing(peers):
            clients = server._clients
            thing = Thing()
            clients.discard(thing)
            server._attach(thing)
            assert thing in clients
            assert len(clients) == 2
            assert thing in clients.copy()
            server.close_clients()
            assert closed == [thing]
            closed.clear()
            del thing
            gc.collect()
            await Echo.reached(0)
            server.close()
            await server.wait_closed()
            assert len(clients) == 0
            with pytest.raises(TypeError):
                clients.add(1)

    runner.run(main())


def test_other_servers_and_sets_are_left_alone(
    runner: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    class Server(asyncio.base_events.Server):
        pass

    async def main() -> None:
        monkeypatch.setattr(asyncio.base_events, "Server", Server)
        server, peers = await served(1)
        with closing(peers):
            assert type(server._clients) is weakref.WeakSet
            assert len(server._clients) == 1
            server.close()
            server.close_clients()
            await server.wait_closed()

    runner.run(main())


def test_a_server_that_nobody_has_goes(runner: Any) -> None:
    async def main() -> tuple[Any, Any]:
        server, peers = await served(1)
        with closing(peers):
            clients = server._clients
            server.close()
        await server.wait_closed()
        return weakref.ref(server), clients

    server, clients = runner.run(main())
    gc.collect()
    assert server() is None
    assert len(clients) == 0
    runner.close()
    assert clients.copy() == set()


def test_a_loop_that_closes_leaves_them_to_their_owners(runner: Any) -> None:
    async def main() -> tuple[Any, list[socket.socket]]:
        return await served(2)

    server, peers = runner.run(main())
    with closing(peers):
        Echo.alive -= 2  # which nobody tells that the connection is lost
        runner.close()
        assert server._clients.copy() == set()
        with pytest.warns(ResourceWarning, match="unclosed"):
            gc.collect()
        assert len(server._clients) == 0
        for sock in server._sockets:
            sock.close()
