"""What several callbacks of one turn write: sent together, in order, and never after the turn."""

from __future__ import annotations

import asyncio
import os
import socket
from collections.abc import Callable, Iterator
from typing import Any

import pytest
from transport_support import Recorder, connect, in_thread, receive, receive_all

import plait

CALLBACKS = 12  # in one turn: enough for the loop to go on before it sends
ATTEMPTS = 5000  # turns; on a busy machine many are interrupted, which ends the waiting


@pytest.fixture
def pair() -> Iterator[tuple[socket.socket, socket.socket]]:
    """A connected pair: a non-blocking end for the loop, and a plain one."""
    ours, theirs = socket.socketpair()
    with ours, theirs:
        ours.setblocking(False)
        theirs.settimeout(100)
        yield ours, theirs


def nothing() -> None:
    """Stand in a turn, so that others have company."""


async def turn(*callbacks: Callable[[], Any]) -> None:
    """Run these in one turn, with others behind them, and return in the next."""
    loop = asyncio.get_running_loop()
    for callback in callbacks:
        loop.call_soon(callback)
    for _ in range(CALLBACKS):
        loop.call_soon(nothing)
    await asyncio.sleep(0)
    await asyncio.sleep(0)


async def held(transport: Any, *then: Callable[[], Any]) -> bool:
    """Write "text" and run callbacks in the same turn; whether they found it in the buffer."""
    sizes: list[int] = []
    await turn(
        lambda: transport.write(b"text"),
        lambda: sizes.append(transport.get_write_buffer_size()),
        *then,
    )
    assert sizes[0] in (0, 4)
    return sizes[0] == 4


async def until_held(transport: Any, theirs: socket.socket) -> None:
    """Try turns until one holds what it writes."""
    for _ in range(ATTEMPTS):
        found = await held(transport)
        assert transport.get_write_buffer_size() == 0  # the turn is over
        assert await in_thread(receive, theirs, 4) == b"text"
        if found:
            return
    pytest.fail("no turn held anything")


def test_it_is_held_for_the_turn_and_no_longer(mine: Any, pair: Any) -> None:
    async def main() -> None:
        ours, theirs = pair
        transport, protocol = await connect(Recorder, ours)
        await until_held(transport, theirs)
        assert protocol.told == ["made"]  # flow control has no part in it
        transport.abort()
        await protocol.lost

    mine(main())


def test_in_debug_mode(loop: plait.Loop, mine: Any, pair: Any) -> None:
    loop.set_debug(True)

    async def main() -> None:
        transport, protocol = await connect(Recorder, pair[0])
        for _ in range(20):
            await held(transport)
            assert await in_thread(receive, pair[1], 4) == b"text"
        transport.close()
        await protocol.lost

    mine(main())


def test_the_order_of_bytes_over_callbacks(mine: Any, pair: Any) -> None:
    """Of one transport, whatever it is given by."""

    async def main() -> None:
        ours, theirs = pair
        transport, protocol = await connect(Recorder, ours)
        changed = bytearray(b"c" * 10)

        def change() -> None:
            changed[:] = b"X" * 10

        large = b"l" * 70_000
        await turn(
            lambda: transport.write(b"a"),
            lambda: transport.writelines([b"b", memoryview(b"b"), bytearray(b"b")]),
            lambda: transport.write(changed),
            change,
            lambda: transport.write(memoryview(changed)[:2]),
            lambda: transport.write(large),
            lambda: transport.write(b"z"),
            transport.write_eof,
        )
        data = await in_thread(receive_all, theirs)
        assert data == b"a" + b"bbb" + b"c" * 10 + b"XX" + large + b"z"
        transport.close()
        await protocol.lost

    mine(main())


@pytest.mark.parametrize("end", ["close", "abort", "write_eof"])
def test_an_end_in_the_same_turn(mine: Any, pair: Any, end: str) -> None:
    """What was written goes out before it, as from a transport that sends at once."""

    async def main() -> None:
        ours, theirs = pair
        transport, protocol = await connect(Recorder, ours)
        await held(transport, getattr(transport, end))
        assert await in_thread(receive_all, theirs) == b"text"
        if end == "write_eof":
            transport.close()
        assert await protocol.lost is None

    mine(main())


def test_marks_of_nothing(mine: Any, pair: Any) -> None:
    """A writer that wants each byte sent is paused and resumed within the turn."""

    async def main() -> None:
        ours, theirs = pair
        transport, protocol = await connect(Recorder, ours)
        transport.set_write_buffer_limits(high=0)
        await held(transport)
        assert protocol.told in (["made", "pause", "resume"], ["made"])
        assert await in_thread(receive, theirs, 4) == b"text"
        transport.close()
        await protocol.lost

    mine(main())


def test_a_sendfile_in_the_same_turn(mine: Any, pair: Any, tmp_path: Any) -> None:
    (tmp_path / "file").write_bytes(b"content" * 1000)

    async def main(file: Any) -> None:
        ours, theirs = pair
        loop = asyncio.get_running_loop()
        transport, protocol = await connect(Recorder, ours)
        sending: list[Any] = []
        await held(
            transport,
            lambda: sending.append(asyncio.ensure_future(loop.sendfile(transport, file))),
        )
        assert await sending[0] == 7000
        assert await in_thread(receive, theirs, 7004) == b"text" + b"content" * 1000
        transport.close()
        await protocol.lost

    with open(tmp_path / "file", "rb") as file:
        mine(main(file))


def test_a_peer_that_is_gone(mine: Any, pair: Any) -> None:
    async def main() -> None:
        ours, theirs = pair
        transport, protocol = await connect(Recorder, ours)
        transport.pause_reading()
        theirs.close()
        await held(transport)
        assert isinstance(await protocol.lost, (BrokenPipeError, ConnectionResetError))

    mine(main())


@pytest.mark.parametrize("leaves", [SystemExit, KeyboardInterrupt])
def test_an_exception_that_leaves_the_loop(
    loop: plait.Loop, mine: Any, pair: Any, leaves: type[BaseException]
) -> None:
    """It ends the turn early, and what had been written is sent."""
    ours, theirs = pair
    transport, protocol = mine(connect(Recorder, ours))

    def leave() -> None:
        raise leaves

    loop.call_soon(transport.write, b"last words")
    loop.call_soon(leave)
    for _ in range(CALLBACKS):
        loop.call_soon(nothing)
    with pytest.raises(leaves):
        loop.run_forever()
    assert receive(theirs, 10) == b"last words"
    transport.abort()
    loop.run_until_complete(protocol.lost)


@pytest.mark.filterwarnings("ignore:This process .* is multi-threaded:DeprecationWarning")
def test_a_fork_in_the_same_turn(mine: Any, pair: Any) -> None:
    """The parent sends it, and the child does not, even when its run ends in order."""
    parent = os.getpid()

    async def main() -> None:
        ours, theirs = pair
        transport, protocol = await connect(Recorder, ours)
        children: list[int] = []

        def fork() -> None:
            children.append(os.fork())
            if children[0] == 0:
                transport.write(b"of the child")
                raise SystemExit

        await held(transport, fork)
        os.waitpid(children[0], 0)
        transport.close()
        await protocol.lost
        assert await in_thread(receive_all, theirs) == b"text"

    try:
        mine(main())
    finally:
        if os.getpid() != parent:
            os._exit(0)


def test_many_answers_of_two_pieces(mine: Any) -> None:
    """A server whose tasks write headers and body: each answer is whole, and each gets its own."""
    requests, clients = 50, 40

    async def answer(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        while line := await reader.readline():
            writer.write(b"head of ")
            writer.write(line)
            await writer.drain()
        writer.close()
        await writer.wait_closed()

    async def ask(port: int, number: int) -> None:
        reader, writer = await asyncio.open_connection("127.0.0.1", port)
        for i in range(requests):
            writer.write(b"%d-%d\n" % (number, i))
            assert await reader.readline() == b"head of %d-%d\n" % (number, i)
        writer.close()
        await writer.wait_closed()

    async def main() -> None:
        server = await asyncio.start_server(answer, "127.0.0.1", 0)
        async with server:
            port = server.sockets[0].getsockname()[1]
            await asyncio.gather(*(ask(port, n) for n in range(clients)))

    mine(main())
