"""What libraries count on beyond asyncio's documentation; the same on both loops."""

from __future__ import annotations

import asyncio
import gc
import os
import signal
import socket
import sys
import threading
import weakref
from typing import TYPE_CHECKING, Any
from unittest import mock

import pytest

import plait

if TYPE_CHECKING:
    from collections.abc import Callable, Coroutine, Iterator


@pytest.fixture(params=[plait.new_event_loop, asyncio.SelectorEventLoop], ids=["plait", "asyncio"])
def run(request: pytest.FixtureRequest) -> Iterator[Callable[[Coroutine[Any, Any, Any]], Any]]:
    with asyncio.Runner(loop_factory=request.param) as runner:
        yield runner.run


class LastWords(asyncio.Protocol):
    """Answers and ends the connection by force, in one callback."""

    def __init__(self, end: Callable[[asyncio.Transport], None]) -> None:
        self.end = end

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        assert isinstance(transport, asyncio.Transport)
        self.transport = transport

    def data_received(self, data: bytes) -> None:
        self.transport.write(b"last ")
        self.transport.write(b"words")
        self.end(self.transport)


def raise_error(transport: asyncio.Transport) -> None:
    raise ValueError("a defect of the protocol")


@pytest.mark.parametrize("end", [asyncio.Transport.abort, raise_error])
def test_what_is_written_before_a_forced_end_is_sent(run: Any, end: Any) -> None:
    def end_it(transport: asyncio.Transport) -> None:
        if end is raise_error:
            raise_error(transport)
        transport.abort()

    async def main() -> None:
        loop = asyncio.get_running_loop()
        told: list[dict[str, Any]] = []
        loop.set_exception_handler(lambda _loop, context: told.append(context))
        server = await loop.create_server(lambda: LastWords(end_it), "127.0.0.1", 0)
        host, port = server.sockets[0].getsockname()
        reader, writer = await asyncio.open_connection(host, port)
        writer.write(b"?")
        assert await reader.read() == b"last words"
        assert len(told) == (1 if end is raise_error else 0)
        writer.close()
        await writer.wait_closed()
        server.close()
        await server.wait_closed()

    run(main())


def test_an_abort_drops_what_the_kernel_does_not_take(run: Any) -> None:
    async def main() -> None:
        a, b = socket.socketpair()
        a.setblocking(False)
        _, writer = await asyncio.open_connection(sock=a)
        writer.write(b"x" * (64 << 20))
        await asyncio.sleep(0)
        writer.transport.abort()
        await asyncio.sleep(0)
        with pytest.raises(ConnectionError):
            await writer.drain()
        with b:
            b.settimeout(60)
            received = 0
            while data := b.recv(1 << 20):
                received += len(data)
        assert 0 < received < 64 << 20

    run(main())


def test_one_read_brings_a_quarter_of_a_mebibyte_at_most(run: Any) -> None:
    total = 16 << 20

    class Sizes(asyncio.Protocol):
        def __init__(self) -> None:
            self.sizes: list[int] = []
            self.over = asyncio.get_running_loop().create_future()

        def data_received(self, data: bytes) -> None:
            self.sizes.append(len(data))

        def connection_lost(self, exc: Exception | None) -> None:
            self.over.set_result(exc)

    async def main() -> None:
        ours, theirs = socket.socketpair()
        for each, option in ((ours, socket.SO_RCVBUF), (theirs, socket.SO_SNDBUF)):
            each.setsockopt(socket.SOL_SOCKET, option, 4 << 20)

        def send() -> None:
            with theirs:
                theirs.sendall(b"x" * total)

        thread = threading.Thread(target=send)
        thread.start()
        _, protocol = await asyncio.get_running_loop().create_connection(Sizes, sock=ours)
        assert await protocol.over is None
        thread.join()
        assert sum(protocol.sizes) == total
        assert max(protocol.sizes) <= 256 << 10

    run(main())


def test_a_wakeup_descriptor_that_was_closed_is_nobodys(run: Any) -> None:
    r, w = os.pipe()
    os.set_blocking(w, False)
    old = signal.set_wakeup_fd(w)
    try:
        os.close(w)

        async def main() -> str:
            await asyncio.sleep(0)
            return "ran"

        assert run(main()) == "ran"
    finally:
        os.close(r)
        signal.set_wakeup_fd(old)


def test_debug_mode_takes_what_has_a_truth_value(run: Any) -> None:
    async def main() -> None:
        loop = asyncio.get_running_loop()
        for value in (1, 0, "yes", None):
            loop.set_debug(value)  # type: ignore[arg-type]
            assert bool(loop.get_debug()) is bool(value)

    run(main())


def test_a_transports_method_may_be_replaced(loop: plait.Loop) -> None:
    """As tests of programs do, with asyncio's transports, which are Python objects."""

    async def main() -> None:
        written: list[bytes] = []
        server = await asyncio.start_server(lambda _, writer: writer.close(), "127.0.0.1", 0)
        reader, writer = await asyncio.open_connection(*server.sockets[0].getsockname())
        transport = writer.transport
        assert vars(transport) == {}
        with mock.patch.object(transport, "write", written.append):
            writer.write(b"caught")
            transport.write(b"twice")
            with mock.patch.object(transport, "is_closing", return_value=True):
                assert writer.is_closing()
        assert written == [b"caught", b"twice"]
        transport.note = "mine"  # type: ignore[attr-defined]
        assert vars(transport) == {"note": "mine"}
        assert await reader.read() == b""
        writer.close()
        await writer.wait_closed()
        server.close()

    loop.run_until_complete(main())


def test_the_clock_may_be_replaced(loop: plait.Loop) -> None:
    """Timers are counted from what time() says; they run by the real clock."""
    with mock.patch.object(loop, "time", return_value=1000.0):
        assert loop.call_later(2, print).when() == 1002
        ran = loop.create_future()
        loop.call_at(999, ran.set_result, None)
        loop.run_until_complete(ran)
    real = loop.time()
    assert real != 1000
    assert loop.call_later(2, print).when() >= real + 2

    class Slower(plait.Loop):
        def time(self) -> float:
            return super().time() / 2

    slow = Slower()
    before = slow.time()
    handle = slow.call_later(10, print)
    assert before + 10 <= handle.when() <= slow.time() + 10
    slow.close()


def test_tasks_and_futures_are_asyncios_of_the_moment(loop: plait.Loop) -> None:
    class Task(asyncio.tasks._PyTask):  # type: ignore[name-defined,misc]
        pass

    class Future(asyncio.Future):  # type: ignore[type-arg]
        pass

    async def main() -> str:
        return "done"

    with mock.patch.object(asyncio.tasks, "Task", Task):
        task = loop.create_task(main(), name="x")
        assert type(task) is Task
        assert loop.run_until_complete(task) == "done"
    with mock.patch.object(asyncio.futures, "Future", Future):
        assert type(loop.create_future()) is Future
    assert type(loop.create_future()) is asyncio.Future


def test_classes_of_programs_are_called_as_classes_are(loop: plait.Loop) -> None:
    calls: list[tuple[Any, ...]] = []
    plain = asyncio.tasks.Task

    class Meta(type):
        def __call__(cls, *args: Any, **kwargs: Any) -> Any:
            calls.append((cls, args, kwargs))
            return super().__call__(*args, **kwargs)

    class Called(asyncio.Task, metaclass=Meta):  # type: ignore[type-arg]
        pass

    class Made(asyncio.Task):  # type: ignore[type-arg]
        def __new__(cls, *args: Any, **kwargs: Any) -> Any:
            calls.append((cls, args, kwargs))
            return super().__new__(cls)

    class Initialised(asyncio.Task):  # type: ignore[type-arg]
        def __init__(self, *args: Any, **kwargs: Any) -> None:
            calls.append((type(self), args, kwargs))
            with mock.patch.object(asyncio.tasks, "Task", plain):
                inner.append(loop.create_task(number(-1)))  # in the midst of another
            super().__init__(*args, **kwargs)

    async def number(n: int) -> int:
        return n

    inner: list[asyncio.Task[int]] = []
    expected = []
    for n, cls in enumerate((plain, Called, plain, Made, plain, Initialised, plain)):
        coroutine = number(n)
        if cls is not plain:
            expected.append((cls, (coroutine,), {"loop": loop}))
        with mock.patch.object(asyncio.tasks, "Task", cls):
            task = loop.create_task(coroutine)
        assert type(task) is cls
        assert loop.run_until_complete(task) == n
    assert calls == expected  # and what they have kept of a call is as it was
    assert loop.run_until_complete(inner[0]) == -1
    for wrong in (number, None, (number,)):
        with pytest.raises(TypeError):
            loop.create_task(wrong)  # type: ignore[arg-type]


def test_arguments_that_a_class_keeps_are_the_collectors(loop: plait.Loop) -> None:
    class Keeper(Exception):  # its __new__ keeps the tuple that it is called with
        def __init__(self, *args: Any, **kwargs: Any) -> None:
            pass

    async def nothing() -> None:
        pass

    loop.run_until_complete(loop.create_task(nothing()))
    gc.collect()  # tuples of nothing but None are none of its business
    coroutine = nothing()
    with mock.patch.object(asyncio.tasks, "Task", Keeper):
        made: Any = loop.create_task(coroutine)
    assert made.args == (coroutine,)
    assert gc.is_tracked(made.args)
    coroutine.close()


def test_arguments_that_the_collector_has_shown_are_not_used_again(loop: plait.Loop) -> None:
    async def number(n: int) -> int:
        return n

    def found() -> list[tuple[Any, ...]]:
        return [o for o in gc.get_referents(loop) if type(o) is tuple]

    tasks = [loop.create_task(number(0))]
    held = found()
    assert (None,) in held
    tasks += [loop.create_task(number(n)) for n in (1, 2)]
    assert (None,) in held
    assert loop.run_until_complete(asyncio.gather(*tasks)) == [0, 1, 2]


def test_handles_are_asyncios(loop: plait.Loop) -> None:
    soon = loop.call_soon(print)
    later = loop.call_later(60, print)
    other = loop.call_soon_threadsafe(print)
    for handle in (soon, later, other):
        assert isinstance(handle, asyncio.Handle)
        assert isinstance(handle, asyncio.TimerHandle) == (handle is later)
        assert weakref.ref(handle)() is handle
        handle.cancel()
        with pytest.raises(TypeError):
            type(handle)()
    assert later > loop.call_later(1, print)
    assert hash(later) == hash(later)


def test_another_thread_waits_for_the_run_of_its_handle(loop: plait.Loop) -> None:
    """From 3.14 on: what it is told about cancellation is then true for good."""
    started, go_on = threading.Event(), threading.Event()
    told: list[object] = []

    def callback() -> None:
        started.set()
        go_on.wait(60)
        told.append("ran")

    def ask() -> None:
        handle = loop.call_soon_threadsafe(callback)
        started.wait(60)
        asking = threading.Thread(target=lambda: told.append(handle.cancelled()))
        asking.start()
        go_on.set()
        asking.join(60)
        handle.cancel()
        told.append(handle.cancelled())
        loop.call_soon_threadsafe(loop.stop)

    thread = threading.Thread(target=ask)
    thread.start()
    loop.run_forever()
    thread.join(60)
    assert True in told
    if sys.version_info >= (3, 14):
        assert told == ["ran", False, True]
