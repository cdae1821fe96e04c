"""asyncio's streams on plait: the fast path keeps asyncio's promises, and who does not get it."""

from __future__ import annotations

import asyncio
import collections.abc
import contextlib
import gc
import socket
import sys
import warnings
import weakref
from collections.abc import Awaitable, Callable
from typing import Any
from unittest import mock

import pytest
from loop_support import polled

import plait

LIMIT = 100  # seconds for anything to happen


@pytest.fixture(params=["plait", "asyncio"])
def run(request: pytest.FixtureRequest) -> Any:
    """Run a coroutine: what holds on plait has to hold on asyncio's loop too."""
    kinds = {"plait": plait.new_event_loop, "asyncio": asyncio.SelectorEventLoop}

    def runner(coroutine: Any, debug: bool = False) -> Any:
        with asyncio.Runner(loop_factory=kinds[request.param], debug=debug) as made:
            return made.run(asyncio.wait_for(coroutine, LIMIT))

    runner.kind = request.param  # type: ignore[attr-defined]
    return runner


Talk = Callable[[asyncio.StreamReader, asyncio.StreamWriter], Awaitable[None]]


async def with_server(server_end: Talk, client_end: Talk, **kwargs: Any) -> None:
    """Run both ends of one connection, and pass on what either raises."""
    done: asyncio.Future[None] = asyncio.get_running_loop().create_future()

    async def serve(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        try:
            await server_end(reader, writer)
        except BaseException as exc:
            done.set_exception(exc)
        else:
            done.set_result(None)
        finally:
            writer.close()

    server = await asyncio.start_server(serve, "127.0.0.1", 0, **kwargs)
    reader, writer = await asyncio.open_connection(*server.sockets[0].getsockname()[:2], **kwargs)
    await client_end(reader, writer)
    writer.close()
    await writer.wait_closed()
    await done
    server.close()


async def hold(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
    """Read until the other end has ended."""
    while await reader.read(65536):
        pass


def is_fast(thing: Any) -> bool:
    """Whether it has our class; its __class__ and name do not tell."""
    return type(thing) not in (asyncio.StreamReader, asyncio.StreamWriter)


def test_looks_as_ever(run: Any) -> None:
    async def look(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        assert is_fast(reader) == is_fast(writer) == (run.kind == "plait")
        assert reader.__class__ is asyncio.StreamReader
        assert writer.__class__ is asyncio.StreamWriter
        assert isinstance(reader, asyncio.StreamReader)
        assert type(reader).__name__ == "StreamReader"
        assert type(reader).__module__ == "asyncio.streams"
        assert repr(reader).startswith("<StreamReader")
        assert repr(writer).startswith("<StreamWriter")
        assert reader._limit == 65536  # type: ignore[attr-defined]
        assert reader._buffer == bytearray()  # type: ignore[attr-defined]
        assert reader._transport is writer.transport  # type: ignore[attr-defined]
        assert reader.exception() is None
        assert not reader.at_eof()

    run(with_server(look, hold))


def test_every_way_to_read(run: Any) -> None:
    async def write(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        for piece in (b"line\nse", b"cond\n", b"12345", b"67890", b"a--", b"-b--", b"-tail"):
            writer.write(piece)
            await writer.drain()
            assert await reader.readexactly(1) == b"."  # so that the pieces stay apart

    async def read(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        def next_piece() -> None:
            writer.write(b".")

        assert await reader.readline() == b"line\n"
        next_piece()
        assert await reader.readline() == b"second\n"
        next_piece()
        five = asyncio.create_task(reader.readexactly(8))
        await asyncio.sleep(0)
        next_piece()
        assert await five == b"12345678"
        assert await reader.read(1) == b"9"
        assert await reader.read(n=10) == b"0"
        assert await reader.read(0) == b""
        next_piece()
        until = asyncio.ensure_future(reader.readuntil(b"---"))
        await asyncio.sleep(0)
        next_piece()
        assert await until == b"a---"
        next_piece()
        assert await reader.readuntil(separator=b"---") == b"b---"
        next_piece()
        assert await reader.read() == b"tail"
        assert reader.at_eof()
        assert await reader.read(5) == await reader.readline() == b""
        with pytest.raises(asyncio.IncompleteReadError) as caught:
            await reader.readexactly(3)
        assert (caught.value.partial, caught.value.expected) == (b"", 3)

    run(with_server(write, read))


def test_lines_by_iteration(run: Any) -> None:
    async def write(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        writer.writelines([b"%d\n" % i for i in range(5000)])
        await writer.drain()

    async def read(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        assert [int(line) async for line in reader] == list(range(5000))

    run(with_server(write, read))


def test_limits(run: Any) -> None:
    async def write(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        writer.write(b"x" * 100 + b"\n" + b"y" * 100)
        assert await reader.read(1) == b"."
        writer.write(b"z\nend\n")

    async def read(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        with pytest.raises(asyncio.LimitOverrunError) as caught:
            await reader.readuntil(b"\n")
        assert caught.value.consumed == 100
        with pytest.raises(ValueError, match="longer than limit") as line:
            await reader.readline()  # takes the line away
        assert isinstance(line.value.__context__, asyncio.LimitOverrunError)
        with pytest.raises(ValueError, match="exceed the limit"):
            await reader.readline()  # takes all away
        writer.write(b".")
        assert await reader.readline() == b"z\n"
        with pytest.raises(ValueError, match="less than zero"):
            await reader.readexactly(-1)
        with pytest.raises(ValueError, match="at least one-byte"):
            await reader.readuntil(b"")
        assert await reader.readline() == b"end\n"

    run(with_server(write, read, limit=50))


def test_reading_is_paused_and_goes_on(run: Any) -> None:
    size = 8_000_000

    async def write(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        writer.write(b"x" * size)
        await writer.drain()

    async def read(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        first = await reader.read(10)
        while not reader._paused:  # type: ignore[attr-defined]
            await polled()
        assert not writer.transport.is_reading()
        # More than the limit: waiting for data lets the transport go on.
        middle = await reader.readexactly(3_000_000)
        assert len(first) + len(middle) + len(await reader.read()) == size

    run(with_server(write, read, limit=1000))


def test_waiting_twice_is_refused(run: Any) -> None:
    async def read(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        waiting = asyncio.create_task(reader.read(1))
        await asyncio.sleep(0)
        for method, name in ((reader.readline, "readuntil"), (reader.read, "read")):
            with pytest.raises(RuntimeError, match=rf"{name}\(\) called while another"):
                await method()
        waiting.cancel("enough")
        with pytest.raises(asyncio.CancelledError):
            await waiting
        assert reader._waiter is None  # type: ignore[attr-defined]
        with pytest.raises(TimeoutError):
            await asyncio.wait_for(reader.read(1), 0.01)
        writer.write(b"go")
        assert await reader.read(5) == b"go"

    async def echo(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        writer.write(await reader.read(10))

    run(with_server(echo, read))


def test_what_read_returns_is_a_coroutine(run: Any) -> None:
    async def look(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        reading: Any = reader.read(1)
        assert asyncio.iscoroutine(reading)
        assert isinstance(reading, collections.abc.Coroutine)
        assert reading.__name__ == "read"
        assert reading.__qualname__ == "StreamReader.read"
        with pytest.raises(ZeroDivisionError):
            reading.throw(ZeroDivisionError("deliberate"))
        with pytest.raises(RuntimeError, match="cannot reuse"):
            await reading
        task = asyncio.create_task(reader.readline(), name="reads")
        await asyncio.sleep(0)
        assert "StreamReader.readline" in repr(task)
        task.cancel()
        await asyncio.wait([task])
        with warnings.catch_warnings(record=True) as caught:
            warnings.simplefilter("always")
            for _ in range(3):  # the next may have the memory of the one before
                forgotten: Any = reader.read(1)
                del forgotten
                gc.collect()
        told = [str(w.message) for w in caught]  # and perhaps of garbage that was collected
        assert told.count("coroutine 'StreamReader.read' was never awaited") == 3
        closed: Any = reader.read(1)
        closed.close()
        drain: Any = writer.drain()
        await asyncio.create_task(drain)

    run(with_server(look, hold))


def test_a_reset_is_raised(run: Any) -> None:
    async def reset(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        await reader.read(1)
        writer.transport._force_close(None)  # type: ignore[attr-defined]

    async def read(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        reader.set_exception(OSError("told"))
        for reading in (reader.read(1), reader.read(), reader.readline(), reader.readexactly(1)):
            with pytest.raises(OSError, match="told"):
                await reading
        with pytest.raises(OSError, match="told"):
            await writer.drain()
        writer.write(b"x")

    run(with_server(reset, read))


def test_drain_waits_while_the_peer_does_not_read(run: Any) -> None:
    order: list[str] = []

    async def flood(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        writer.write(b"x" * 20_000_000)
        order.append("waits")
        await writer.drain()
        order.append("drained")

    async def read(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        while order != ["waits"]:
            await asyncio.sleep(0)
        order.append("reads")
        assert len(await reader.read()) == 20_000_000

    run(with_server(flood, read))
    assert order == ["waits", "reads", "drained"]


def test_after_the_end_drain_raises(run: Any) -> None:
    async def leave(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        await reader.read(1)
        writer.transport.abort()
        await writer.wait_closed()
        with pytest.raises(ConnectionResetError):
            await writer.drain()

    async def wait(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        writer.write(b".")
        await reader.read()

    run(with_server(leave, wait))


def test_feeding_by_hand(run: Any) -> None:
    async def feed(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        reader.feed_data(b"by ")
        reader.feed_data(bytearray(b"hand"))
        reader._buffer += b"!"  # type: ignore[attr-defined]
        reader.feed_data(b"")
        assert await reader.read(3) == b"by "
        assert await reader.read(100) == b"hand!"
        reader.feed_eof()
        assert await reader.read() == b""
        with pytest.raises(AssertionError):
            reader.feed_data(b"late")

    run(with_server(feed, lambda r, w: asyncio.sleep(0)))


class MyReader(asyncio.StreamReader):
    pass


class MyProtocol(asyncio.StreamReaderProtocol):
    pass


@pytest.mark.parametrize(
    "unusual", ["reader class", "protocol class", "object", "class", "debug", "field"]
)
def test_the_unusual_goes_asyncios_way(unusual: str) -> None:
    fed: list[bytes] = []
    original = asyncio.StreamReader.feed_data

    def feed_data(self: asyncio.StreamReader, data: bytes) -> None:
        fed.append(bytes(data))
        original(self, data)

    async def main() -> None:
        loop = asyncio.get_running_loop()
        if unusual == "debug":
            loop.set_debug(True)

        async def greet(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
            writer.write(b"hello")
            await hold(reader, writer)
            writer.close()
            await writer.wait_closed()
            served.set_result(None)

        served: asyncio.Future[None] = loop.create_future()
        server = await asyncio.start_server(greet, "127.0.0.1", 0)
        reader = (MyReader if unusual == "reader class" else asyncio.StreamReader)(loop=loop)
        kind = MyProtocol if unusual == "protocol class" else asyncio.StreamReaderProtocol
        protocol = kind(reader, loop=loop)
        if unusual == "object":
            reader.feed_data = feed_data.__get__(reader)  # type: ignore[method-assign]
        if unusual == "field":
            reader.extra = 1  # type: ignore[attr-defined]
        address = server.sockets[0].getsockname()[:2]
        transport, _ = await loop.create_connection(lambda: protocol, *address)
        assert type(reader) in (asyncio.StreamReader, MyReader)
        assert await reader.readexactly(5) == b"hello"
        transport.close()
        await served  # or the loop would leave an open connection behind
        server.close()

    with asyncio.Runner(loop_factory=plait.new_event_loop) as runner:
        if unusual == "class":
            with mock.patch.object(asyncio.StreamReader, "feed_data", feed_data):
                runner.run(asyncio.wait_for(main(), LIMIT))
        else:
            runner.run(asyncio.wait_for(main(), LIMIT))
    if unusual in ("object", "class"):
        assert b"hello" in fed


def test_a_reader_that_nobody_holds_is_dropped(run: Any) -> None:
    async def main() -> None:
        loop = asyncio.get_running_loop()
        got: asyncio.Future[None] = loop.create_future()

        async def talk(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
            assert await reader.read(1) == b"x"
            writer.write(b"y" * 300_000)
            await writer.drain()
            writer.close()
            await writer.wait_closed()
            got.set_result(None)

        server = await asyncio.start_server(talk, "127.0.0.1", 0)
        reader = asyncio.StreamReader(limit=10, loop=loop)
        protocol = asyncio.StreamReaderProtocol(reader, loop=loop)
        address = server.sockets[0].getsockname()[:2]
        transport, _ = await loop.create_connection(lambda: protocol, *address)
        dead = weakref.ref(reader)
        del reader
        gc.collect()
        assert dead() is None
        transport.write(b"x")
        await got  # all was taken, though nobody reads
        transport.close()
        server.close()

    run(main())


def test_connections_leave_nothing_behind() -> None:
    seen: list[weakref.ref[Any]] = []

    async def talk(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        seen.append(weakref.ref(reader))
        while data := await reader.read(100):
            writer.write(data)
            await writer.drain()

    async def ask(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        writer.write(b"x" * 10)
        await reader.readexactly(10)
        writer.write_eof()
        assert await reader.read() == b""

    async def main() -> None:
        for _ in range(20):
            await with_server(talk, ask)

    plait.run(asyncio.wait_for(main(), LIMIT))
    gc.collect()
    assert len(seen) == 20
    assert [ref() for ref in seen if ref() is not None] == []


@pytest.mark.parametrize("end", ["raises", "is cancelled", "refuses"])
def test_a_handler_that_fails(run: Any, end: str) -> None:
    """An exception is told and the connection closed; a cancelled task closes it alone."""
    told: list[dict[str, Any]] = []
    trouble = ValueError("trouble")

    async def main() -> None:
        loop = asyncio.get_running_loop()
        loop.set_exception_handler(lambda _, context: told.append(context))
        made: list[asyncio.StreamWriter] = []

        async def talk(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
            made.append(writer)
            await reader.read(1)
            if end == "raises":
                raise trouble
            task = asyncio.current_task()
            assert task is not None
            task.cancel()
            await reader.read(1)

        def refuse(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
            made.append(writer)
            writer.transport.abort()
            raise trouble

        server = await asyncio.start_server(refuse if end == "refuses" else talk, "127.0.0.1", 0)
        reader, writer = await asyncio.open_connection(*server.sockets[0].getsockname()[:2])
        if end != "refuses":
            writer.write(b"x")
        with contextlib.suppress(ConnectionError):
            assert await reader.read() == b""
        await asyncio.gather(made[0].wait_closed(), return_exceptions=True)
        writer.close()
        server.close()

    if end == "is cancelled" and sys.version_info < (3, 13):
        pytest.skip("asyncio does not close it there")
    run(main())
    if end == "is cancelled":
        assert told == []
    else:
        assert [context["exception"] for context in told] == [trouble]
    if end == "raises":
        assert told[0]["message"] == "Unhandled exception in client_connected_cb"
        assert isinstance(told[0]["transport"], asyncio.Transport)


def test_a_task_factory_that_fails_is_not_taken_for_the_handler(run: Any) -> None:
    told: list[dict[str, Any]] = []
    made: list[asyncio.StreamWriter] = []
    trouble = ValueError("no task today")

    async def main() -> None:
        loop = asyncio.get_running_loop()
        heard = asyncio.Event()

        def tell(_: asyncio.AbstractEventLoop, context: dict[str, Any]) -> None:
            told.append(context)
            heard.set()

        async def talk(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
            raise AssertionError("it has no task to run in")

        def refuse(loop: asyncio.AbstractEventLoop, coro: Any, **kwargs: Any) -> Any:
            if coro.cr_code is not talk.__code__:
                return asyncio.Task(coro, loop=loop, **kwargs)
            made.append(coro.cr_frame.f_locals["writer"])
            coro.close()
            raise trouble

        loop.set_exception_handler(tell)
        server = await asyncio.start_server(talk, "127.0.0.1", 0)
        address = server.sockets[0].getsockname()[:2]
        with socket.socket() as client:
            client.setblocking(False)
            loop.set_task_factory(refuse)
            await loop.sock_connect(client, address)
            await heard.wait()
            loop.set_task_factory(None)
            made[0].close()  # it was left open: the handler has not failed
            with contextlib.suppress(ConnectionError):
                assert await loop.sock_recv(client, 1) == b""
        server.close()

    run(main())
    assert [context["exception"] for context in told] == [trouble]
    assert "connection_made" in told[0]["message"]


def test_a_handler_becomes_a_task_of_the_programs_own_class(run: Any) -> None:
    told: list[dict[str, Any]] = []
    made: list[asyncio.StreamWriter] = []

    class Own(asyncio.Task[Any]):
        def add_done_callback(self, fn: Any) -> None:  # type: ignore[override]
            super().add_done_callback(fn)

    async def main() -> None:
        loop = asyncio.get_running_loop()
        loop.set_exception_handler(lambda _, context: told.append(context))

        async def talk(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
            made.append(writer)
            assert type(asyncio.current_task()) is Own
            raise ValueError(await reader.readexactly(1))

        server = await asyncio.start_server(talk, "127.0.0.1", 0)
        loop.set_task_factory(lambda loop, coro, **kwargs: Own(coro, loop=loop, **kwargs))
        reader, writer = await asyncio.open_connection(*server.sockets[0].getsockname()[:2])
        writer.write(b"x")
        assert await reader.read() == b""
        loop.set_task_factory(None)
        await made[0].wait_closed()
        writer.close()
        await writer.wait_closed()
        server.close()

    run(main())
    assert [repr(context["exception"]) for context in told] == ["ValueError(b'x')"]


def test_a_writer_has_its_fields(run: Any) -> None:
    async def look(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        made: Any = writer
        protocol = made.transport.get_protocol()
        assert made._protocol is protocol
        assert made._reader is reader
        assert made._loop is asyncio.get_running_loop() is reader._loop  # type: ignore[attr-defined]
        assert protocol._client_connected_cb is not None
        if sys.version_info >= (3, 12):
            assert protocol._task is asyncio.current_task()
        made.note = "of the program's"
        assert made.note == "of the program's"
        weakref.ref(made)
        transport = made._transport
        written: list[bytes] = []
        made._transport = mock.Mock(write=written.append)
        made.write(b"aside")
        assert written == [b"aside"]
        del made._transport
        for method in (made.drain, made.is_closing):
            with pytest.raises(AttributeError):
                await method()
        with pytest.raises(AttributeError):
            made.write(b"nowhere")
        made._transport = transport

    run(with_server(look, hold))


@pytest.mark.parametrize("known", ["by nobody", "strongly", "weakly"])
def test_a_reader_that_others_know_stays_the_one(run: Any, known: str) -> None:
    kept: list[Any] = []

    async def main() -> None:
        loop = asyncio.get_running_loop()
        got: asyncio.Future[Any] = loop.create_future()

        async def talk(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
            got.set_result((reader, await reader.readexactly(3)))
            writer.close()

        def factory() -> asyncio.StreamReaderProtocol:
            reader = asyncio.StreamReader(loop=loop)
            if known != "by nobody":
                kept.append(reader if known == "strongly" else weakref.ref(reader))
            return asyncio.StreamReaderProtocol(reader, talk, loop=loop)

        server = await loop.create_server(factory, "127.0.0.1", 0)
        reader, writer = await asyncio.open_connection(*server.sockets[0].getsockname()[:2])
        writer.write(b"abc")
        theirs, data = await got
        assert data == b"abc"
        assert is_fast(theirs) == (run.kind == "plait")
        if known != "by nobody":
            assert theirs is (kept[0] if known == "strongly" else kept[0]())
        assert await reader.read() == b""
        writer.close()
        await writer.wait_closed()
        server.close()

    run(main())
