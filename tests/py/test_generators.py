"""plait.generators: what the requests do, and how tasks end."""

from __future__ import annotations

import asyncio
import concurrent.futures
import contextvars
import gc
import logging
import socket
import threading
import weakref
from collections.abc import Iterator
from typing import Any

import pytest

import plait
from plait import generators as g
from plait.generators import (
    Cancelled,
    Deadlock,
    Strand,
    Task,
    accept,
    all_tasks,
    connect,
    current_task,
    join,
    recv,
    recv_into,
    run,
    send,
    sleep,
    spawn,
    start,
    timeout,
    wait,
)

pytestmark = pytest.mark.usefixtures("no_leaks")


@pytest.fixture
def pair() -> Iterator[tuple[socket.socket, socket.socket]]:
    a, b = socket.socketpair()
    with a, b:
        a.setblocking(False)
        b.setblocking(False)
        yield a, b


@pytest.fixture
def listener() -> Iterator[socket.socket]:
    with socket.create_server(("127.0.0.1", 0)) as sock:
        sock.setblocking(False)
        yield sock


def returning(value: Any) -> Strand[Any]:
    """A generator that takes one turn and returns."""
    yield sleep(0)
    return value


def raising(error: BaseException) -> Strand[None]:
    yield sleep(0)
    raise error


def forever() -> Strand[None]:
    yield sleep(1e9)


# ---- requests ----


def test_names_are_what_is_public() -> None:
    assert set(g.__all__) == {name for name in vars(g) if name in g.__all__}
    for name in g.__all__:
        if name != "Strand":
            assert getattr(g, name).__module__ == "plait.generators", name


def test_result_and_yield_from() -> None:
    def inner(n: int) -> Strand[int]:
        yield sleep(0)
        return n + 1

    def main() -> Strand[int]:
        n = yield from inner(1)
        return (yield from inner(n))

    assert run(main()) == 3


def test_deep_yield_from() -> None:
    def deep(n: int) -> Strand[int]:
        if n == 0:
            yield sleep(0)
            return 0
        return 1 + (yield from deep(n - 1))

    def main() -> Strand[int]:
        with pytest.raises(RecursionError):
            yield from deep(100_000)
        return (yield from deep(200))

    assert run(main()) == 200


def test_recv_and_send(pair: tuple[socket.socket, socket.socket]) -> None:
    a, b = pair

    def reader() -> Strand[bytes]:
        got = b""
        while data := (yield recv(a, 10)):
            got += data
        return got

    def main() -> Strand[bytes]:
        task = yield spawn(reader())
        yield sleep(0)  # it waits before there is anything
        yield send(b, b"hello ")
        yield send(b, bytearray(b"wide "))
        yield send(b, memoryview(b"world"))
        yield send(b, b"")
        b.shutdown(socket.SHUT_WR)
        return (yield join(task))

    assert run(main()) == b"hello wide world"


@pytest.mark.parametrize("size", [1, 4096, 1 << 16, 5_000_000])
def test_sends_all_and_receives_any_size(
    pair: tuple[socket.socket, socket.socket], size: int
) -> None:
    a, b = pair
    message = bytes(range(256)) * (size // 256 + 1)

    def reader() -> Strand[bytes]:
        got = bytearray()
        while len(got) < len(message):
            data = yield recv(a, 1 << 20)
            assert data
            got += data
        return bytes(got)

    def main() -> Strand[bytes]:
        task = yield spawn(reader())
        assert (yield send(b, message)) is None
        return (yield join(task))

    assert run(main()) == message


def test_recv_into(pair: tuple[socket.socket, socket.socket]) -> None:
    a, b = pair
    buffer = bytearray(8)

    def main() -> Strand[None]:
        task = yield spawn(reader())
        yield sleep(0)
        with pytest.raises(BufferError):
            buffer.extend(b"x")  # locked while the task waits
        yield send(b, b"abcdef")
        assert (yield join(task)) == 3
        assert bytes(buffer) == b"abc" + bytes(5)
        assert (yield recv_into(a, memoryview(buffer)[3:])) == 3
        buffer.extend(b"x")
        assert bytes(buffer) == b"abcdef" + bytes(2) + b"x"
        with pytest.raises(BufferError):
            yield recv_into(a, b"constant")

    def reader() -> Strand[int]:
        return (yield recv_into(a, buffer, 3))

    run(main())


def test_datagrams_are_not_merged() -> None:
    a, b = socket.socketpair(socket.AF_UNIX, socket.SOCK_DGRAM)

    def main() -> Strand[None]:
        reader = yield spawn(read())
        for n in range(40):
            yield send(b, b"%d" % n)
        assert (yield join(reader)) == [b"%d" % n for n in range(40)]

    def read() -> Strand[list[bytes]]:
        got = []
        for _ in range(40):
            got.append((yield recv(a, 100)))  # noqa: PERF401
        return got

    with a, b:
        run(main())


def test_accept_and_connect(listener: socket.socket) -> None:
    def client(n: int) -> Strand[bytes]:
        with socket.socket() as sock:
            sock.setblocking(False)
            yield connect(sock, listener.getsockname())
            yield send(sock, b"%d" % n)
            return (yield recv(sock, 100))

    def serve(conn: socket.socket) -> Strand[None]:
        with conn:
            yield send(conn, b"got " + (yield recv(conn, 100)))

    def server() -> Strand[None]:
        while True:
            conn, address = yield accept(listener)
            assert not conn.getblocking()
            assert address == conn.getpeername()
            yield spawn(serve(conn))

    def main() -> Strand[list[bytes]]:
        serving = yield spawn(server())
        tasks = []
        for n in range(20):
            tasks.append((yield spawn(client(n))))  # noqa: PERF401
        answers = []
        for task in tasks:
            answers.append((yield join(task)))  # noqa: PERF401
        serving.cancel()
        return answers

    assert run(main()) == [b"got %d" % n for n in range(20)]


def test_connect_errors() -> None:
    with socket.socket() as unused:
        unused.bind(("127.0.0.1", 0))
        address = unused.getsockname()

        def main() -> Strand[None]:
            with socket.socket() as sock:
                sock.setblocking(False)
                with pytest.raises(ConnectionRefusedError, match="127.0.0.1"):
                    yield connect(sock, address)
            with socket.socket() as sock:
                sock.setblocking(False)
                with pytest.raises(ValueError, match=r"'localhost'.*resolve"):
                    yield connect(sock, ("localhost", 80))
                with pytest.raises(TypeError):
                    yield connect(sock, 5)

        run(main())


def test_a_blocking_socket_is_read_without_blocking() -> None:
    a, b = socket.socketpair()

    def main() -> Strand[bytes]:
        task = yield spawn(returning(None))
        reader = yield spawn(read())
        yield join(task)  # would never come if recv blocked
        yield send(b, b"x")
        return (yield join(reader))

    def read() -> Strand[bytes]:
        return (yield recv(a, 1))

    with a, b:
        assert run(main()) == b"x"


def test_sleep_orders_by_time() -> None:
    order: list[int] = []

    def sleeper(n: int) -> Strand[None]:
        yield sleep(n * 0.003)
        order.append(n)

    def main() -> Strand[None]:
        tasks = []
        for n in (3, 1, 2, 0):
            tasks.append((yield spawn(sleeper(n))))  # noqa: PERF401
        for task in tasks:
            yield join(task)

    run(main())
    assert order == [0, 1, 2, 3]


def test_a_request_can_be_yielded_again(pair: tuple[socket.socket, socket.socket]) -> None:
    a, b = pair

    def main() -> Strand[None]:
        reading, sending = recv(a, 10), send(b, b"again")
        for _ in range(40):
            yield sending
            assert (yield reading) == b"again"

    run(main())


def test_a_request_is_one_tasks_at_a_time(pair: tuple[socket.socket, socket.socket]) -> None:
    a, b = pair
    reading = recv(a, 10)

    def reader() -> Strand[bytes]:
        return (yield reading)

    def main() -> Strand[None]:
        first = yield spawn(reader())
        second = yield spawn(reader())
        with pytest.raises(RuntimeError, match="another task"):
            yield join(second)
        yield send(b, b"x")
        assert (yield join(first)) == b"x"

    run(main())


def test_two_readers_of_one_socket(pair: tuple[socket.socket, socket.socket]) -> None:
    a, b = pair

    def reader() -> Strand[bytes]:
        return (yield recv(a, 10))

    def main() -> Strand[None]:
        first = yield spawn(reader(), name="first")
        second = yield spawn(reader())
        with pytest.raises(RuntimeError, match="first waits for the same socket"):
            yield join(second)
        yield send(a, b"a writer beside the reader is well")
        yield send(b, b"x")
        assert (yield join(first)) == b"x"

    run(main())


# ---- futures ----


def test_wait_for_a_thread() -> None:
    with concurrent.futures.ThreadPoolExecutor(2) as pool:

        def main() -> Strand[None]:
            assert (yield wait(pool.submit(pow, 2, 10))) == 1024
            with pytest.raises(ZeroDivisionError):
                yield wait(pool.submit(divmod, 1, 0))
            done: concurrent.futures.Future[int] = concurrent.futures.Future()
            done.set_result(5)
            assert (yield wait(done)) == 5

        run(main())


def test_wait_for_a_process() -> None:
    with plait.ProcessPool(1) as pool:

        def main() -> Strand[None]:
            assert (yield wait(pool.submit(pow, 2, 10))) == 1024
            with pytest.raises(ZeroDivisionError):
                yield wait(pool.submit(divmod, 1, 0))
            future = pool.submit(pow, 3, 2)
            future.result()
            assert (yield wait(future)) == 9

        run(main())


def test_wait_for_asyncio() -> None:
    async def coroutine() -> str:
        await asyncio.sleep(0.001)
        return "awaited"

    def main() -> Strand[None]:
        loop = asyncio.get_running_loop()
        assert (yield wait(loop.create_task(coroutine()))) == "awaited"
        future = loop.create_future()
        loop.call_soon(future.set_exception, KeyError("k"))
        with pytest.raises(KeyError):
            yield wait(future)
        cancelled = loop.create_future()
        loop.call_soon(cancelled.cancel)
        with pytest.raises(Cancelled):
            yield wait(cancelled)
        other = asyncio.SelectorEventLoop()
        with pytest.raises(ValueError, match="another loop"):
            yield wait(other.create_future())
        other.close()

    run(main())


def test_a_future_is_cancelled_with_its_wait() -> None:
    def main() -> Strand[None]:
        loop = asyncio.get_running_loop()
        future = loop.create_future()
        with pytest.raises(TimeoutError):
            yield timeout(0.001, wait(future))
        assert future.cancelled()
        shielded = loop.create_future()
        with pytest.raises(TimeoutError):
            yield timeout(0.001, wait(shielded, shield=True))
        assert not shielded.done()
        assert not shielded._callbacks  # nothing is left behind
        shielded.set_result(1)
        foreign: concurrent.futures.Future[int] = concurrent.futures.Future()
        task = yield spawn(waiting(foreign))
        yield sleep(0)
        task.cancel()
        with pytest.raises(Cancelled):
            yield join(task)
        assert foreign.cancelled()

    def waiting(future: concurrent.futures.Future[int]) -> Strand[int]:
        return (yield wait(future))

    run(main())


def test_a_thread_that_ends_after_the_loop() -> None:
    future: concurrent.futures.Future[int] = concurrent.futures.Future()

    def main() -> Strand[None]:
        yield spawn(waiting())
        yield sleep(0)

    def waiting() -> Strand[None]:
        yield wait(future, shield=True)

    run(main())
    future.set_result(1)


# ---- tasks ----


def test_join_gives_value_error_or_cancelled() -> None:
    def main() -> Strand[None]:
        good = yield spawn(returning(7))
        bad = yield spawn(raising(KeyError("k")))
        stopped = yield spawn(forever(), "stopped")
        stopped.cancel()
        for _ in range(2):  # the second time they are done already
            assert (yield join(good)) == 7
            with pytest.raises(KeyError):
                yield join(bad)
            with pytest.raises(Cancelled, match="stopped"):
                yield join(stopped)
        assert (yield wait(good)) == 7
        assert good.result() == 7 and good.exception() is None
        assert isinstance(bad.exception(), KeyError)
        assert stopped.cancelled() and stopped.done()
        with pytest.raises(asyncio.CancelledError):
            stopped.result()

    run(main())


def test_many_join_one() -> None:
    def main() -> Strand[None]:
        one = yield spawn(returning("one"))
        tasks = []
        for _ in range(50):
            tasks.append((yield spawn(joiner(one))))  # noqa: PERF401
        for task in tasks:
            assert (yield join(task)) == "one"

    def joiner(task: Task[str]) -> Strand[str]:
        return (yield join(task))

    run(main())


def test_deadlocks_are_told() -> None:
    def joiner(tasks: list[Task[Any]], n: int) -> Strand[Any]:
        return (yield join(tasks[n]))

    def main() -> Strand[None]:
        me = current_task()
        assert me is not None
        with pytest.raises(Deadlock, match="main waits for .*main"):
            yield join(me)
        tasks: list[Task[Any]] = []
        for n in range(3):
            tasks.append((yield spawn(joiner(tasks, (n + 1) % 3), f"t{n}")))
        with pytest.raises(Deadlock, match="t2 waits for t0, which waits for t1, which waits"):
            yield join(tasks[0])

    run(main())


def test_an_owned_generator_cannot_join_its_owner() -> None:
    def main() -> Strand[None]:
        me = current_task()
        assert me is not None
        with pytest.raises(Deadlock):
            yield timeout(5, joining(me))

    def joining(task: Task[Any]) -> Strand[None]:
        yield join(task)

    run(main())


def test_cancel_runs_finally_blocks() -> None:
    order = []

    def inner() -> Strand[None]:
        try:
            yield sleep(1e9)
        finally:
            order.append("inner")

    def outer() -> Strand[None]:
        try:
            yield from inner()
        except GeneratorExit:
            order.append("outer")
            raise

    def main() -> Strand[None]:
        task = yield spawn(outer())
        yield sleep(0)
        assert task.cancel() and task.cancel()
        assert order == []  # at its turn
        with pytest.raises(Cancelled):
            yield join(task)
        assert not task.cancel()
        fresh = yield spawn(outer())
        assert fresh.cancel()  # before its first step
        with pytest.raises(Cancelled):
            yield join(fresh)

    run(main())
    assert order == ["inner", "outer"]


def test_cancelling_oneself() -> None:
    reached = []

    def suicide() -> Strand[None]:
        me = current_task()
        assert me is not None
        me.cancel()
        reached.append(1)
        yield sleep(0)
        reached.append(2)

    def main() -> Strand[None]:
        with pytest.raises(Cancelled):
            yield join((yield spawn(suicide())))

    run(main())
    assert reached == [1]


def test_a_finally_block_cannot_wait() -> None:
    def stubborn(times: int) -> Strand[None]:
        try:
            yield sleep(1e9)
        finally:
            for _ in range(times):
                try:
                    yield sleep(0)
                except RuntimeError:
                    if times == 1:
                        raise

    def main() -> Strand[None]:
        task = yield spawn(stubborn(1), "stubborn")
        yield sleep(0)
        task.cancel()
        with pytest.raises(RuntimeError, match=r"cannot wait: stubborn yielded sleep"):
            yield join(task)
        assert not task.cancelled()

    run(main())


def test_a_generator_that_never_gives_in_is_given_up(
    recwarn: pytest.WarningsRecorder, monkeypatch: pytest.MonkeyPatch
) -> None:
    unraisable: list[Any] = []
    monkeypatch.setattr("sys.unraisablehook", unraisable.append)

    def endless() -> Strand[None]:
        while True:
            try:
                yield sleep(1e9)
            except BaseException:
                if len(unraisable) > 0:
                    return

    def main() -> Strand[None]:
        task = yield spawn(endless())
        yield sleep(0)
        task.cancel()
        with pytest.raises(RuntimeError, match="cannot wait"):
            yield join(task)

    run(main())
    assert "GeneratorExit" in str(unraisable[0].exc_value)
    unraisable.clear()


def test_throw() -> None:
    class Stop(Exception):
        pass

    def patient() -> Strand[str]:
        try:
            yield sleep(1e9)
        except Stop:
            yield sleep(0)  # this end may take its time
            return "stopped"
        return "slept"

    def main() -> Strand[None]:
        task = yield spawn(patient())
        yield sleep(0)
        assert task.throw(Stop())
        assert (yield join(task)) == "stopped"
        assert not task.throw(Stop())
        me = current_task()
        assert me is not None
        with pytest.raises(RuntimeError, match="itself"):
            me.throw(Stop())
        with pytest.raises(TypeError, match="instance"):
            task.throw(Stop)  # type: ignore[arg-type]

    run(main())


# ---- timeouts ----


def test_timeout_of_requests(pair: tuple[socket.socket, socket.socket]) -> None:
    a, b = pair

    def main() -> Strand[None]:
        with pytest.raises(TimeoutError, match=r"recv\(socket \d+, 5\) took longer than 0.001"):
            yield timeout(0.001, recv(a, 5))
        yield send(b, b"x")
        assert (yield timeout(0.0, recv(a, 5))) == b"x"  # what is there comes
        with pytest.raises(TimeoutError):
            yield timeout(0.001, sleep(5))
        assert (yield timeout(5, sleep(0.001))) is None
        assert (yield timeout(None, sleep(0.001))) is None
        with pytest.raises(TimeoutError, match="0.001"):
            yield timeout(5, timeout(0.001, recv(a, 5)))
        other = yield spawn(forever())
        with pytest.raises(TimeoutError):
            yield timeout(0.001, join(other))
        assert not other.done()  # joining is looking only
        with pytest.raises(TimeoutError):
            yield timeout(0.001, send(b, bytes(50_000_000)))

    run(main())


def test_timeout_of_a_generator() -> None:
    closed = []

    def slow() -> Strand[None]:
        try:
            yield sleep(1e9)
        finally:
            closed.append("slow")

    def nested() -> Strand[None]:
        try:
            yield timeout(100, slow())
        finally:
            closed.append("nested")

    def failing() -> Strand[None]:
        try:
            yield sleep(1e9)
        finally:
            raise KeyError("while closing")

    def main() -> Strand[None]:
        assert (yield timeout(5, returning(3))) == 3
        with pytest.raises(KeyError):
            yield timeout(5, raising(KeyError()))
        with pytest.raises(TimeoutError, match="nested"):
            yield timeout(0.001, nested())
        assert closed == ["slow", "nested"]
        with pytest.raises(KeyError, match="while closing"):
            yield timeout(0.001, failing())
        assert len(all_tasks()) == 1

    run(main())


def test_cancelling_reaches_what_a_timeout_runs() -> None:
    closed = []

    def slow(depth: int) -> Strand[None]:
        try:
            if depth == 0:
                yield sleep(1e9)
            else:
                yield timeout(100, slow(depth - 1))
        finally:
            closed.append(depth)

    def main() -> Strand[None]:
        task = yield spawn(slow(3))
        for _ in range(5):
            yield sleep(0)
        assert len(all_tasks()) == 5
        task.cancel()
        with pytest.raises(Cancelled):
            yield join(task)
        assert closed == [0, 1, 2, 3]

    run(main())


def test_an_error_is_not_lost_with_its_joiner(caplog: pytest.LogCaptureFixture) -> None:
    def failing() -> Strand[None]:
        try:
            yield sleep(1e9)
        finally:
            raise KeyError("while closing")

    def owner() -> Strand[None]:
        yield timeout(100, failing())

    def joiner(task: Task[None]) -> Strand[None]:
        yield join(task)

    def main() -> Strand[None]:
        task = yield spawn(owner())
        for _ in range(3):
            yield sleep(0)
        task.cancel()
        with pytest.raises(Cancelled):
            yield join(task)
        assert caplog.text.count("while closing") > 0
        caplog.clear()
        # The error is on its way to the joiner, and the joiner is closed before it arrives.
        bad = yield spawn(raising(KeyError("on its way")))
        late = yield spawn(joiner(bad))
        while not bad.done():
            yield sleep(0)
        late.cancel()
        with pytest.raises(Cancelled):
            yield join(late)
        del bad, late
        yield sleep(0)
        gc.collect()
        assert "on its way" in caplog.text

    run(main())


def test_a_deep_chain_of_timeouts_is_closed_without_recursion() -> None:
    depth = 20_000
    closed = []
    reached = []

    def link(n: int) -> Strand[None]:
        try:
            if n > 0:
                yield timeout(1000, link(n - 1))
            else:
                reached.append(n)
                yield sleep(1e9)
        finally:
            closed.append(n)

    def main() -> Strand[None]:
        task = yield spawn(link(depth))
        while not reached:
            yield sleep(0)
        yield sleep(0)
        task.cancel()
        with pytest.raises(Cancelled):
            yield join(task)

    run(main())
    assert closed == list(range(depth + 1))


# ---- wrong use ----


@pytest.mark.parametrize(
    ("value", "hint"),
    [
        (5, "5"),
        (None, "None"),
        ("read", "'read'"),
        (("read", 3), "read"),
        (forever(), "yield from"),
        (concurrent.futures.Future(), r"wait\(\)"),
    ],
    ids=str,
)
def test_wrong_things_yielded(value: Any, hint: str) -> None:
    def main() -> Strand[str]:
        with pytest.raises(TypeError, match=hint):
            yield value
        yield sleep(0)
        return "goes on"

    assert run(main()) == "goes on"


def test_a_generator_that_insists_on_wrong_things_starves_nobody() -> None:
    def wrong() -> Strand[None]:
        while True:
            try:
                yield 5  # type: ignore[misc]
            except TypeError:
                pass

    def main() -> Strand[None]:
        task = yield spawn(wrong())
        yield sleep(0.001)
        task.cancel()

    run(main())


def test_wrong_arguments(pair: tuple[socket.socket, socket.socket]) -> None:
    a, _ = pair
    no: Any = object()
    with socket.socket() as blocking:
        cases: list[tuple[type[Exception], str, Any]] = [
            (TypeError, "sock must be a socket.socket, not 7", lambda: recv(no and 7, 5)),
            (ValueError, "n must be 1 or more, not 0", lambda: recv(a, 0)),
            (TypeError, "takes 2 arguments, got 1", lambda: recv(a)),  # type: ignore[call-arg]
            (TypeError, "keyword", lambda: recv(a, n=5)),  # type: ignore[call-arg]
            (TypeError, "integer", lambda: recv(a, "5")),  # type: ignore[arg-type]
            (ValueError, "n must be 0 or more", lambda: recv_into(a, bytearray(5), -1)),
            (TypeError, "buffer", lambda: recv_into(a, 5)),  # type: ignore[arg-type]
            (TypeError, "data must be bytes, not 'x'", lambda: send(a, "x")),  # type: ignore[arg-type]
            (ValueError, "setblocking", lambda: accept(blocking)),
            (ValueError, "setblocking", lambda: connect(blocking, ("127.0.0.1", 1))),
            (TypeError, "seconds must be a number", lambda: sleep(None)),  # type: ignore[arg-type]
            (ValueError, "nan", lambda: sleep(float("nan"))),
            (ValueError, "nan", lambda: timeout(float("nan"), sleep(1))),
            (TypeError, "what must be", lambda: timeout(1, 5)),  # type: ignore[arg-type]
            (TypeError, "future or task, not 5", lambda: wait(5)),  # type: ignore[arg-type]
            (TypeError, "call the function", lambda: spawn(forever)),  # type: ignore[arg-type]
            (TypeError, "name must be a string", lambda: spawn(forever(), 5)),  # type: ignore[arg-type]
            (TypeError, r"start it by spawn\(\)", lambda: join(forever())),  # type: ignore[arg-type]
            (RuntimeError, "no loop runs", lambda: start(forever())),
            (RuntimeError, "no loop runs", all_tasks),
            (TypeError, "gen must be a generator", lambda: run(5)),  # type: ignore[arg-type]
        ]
        for error, text, call in cases:
            with pytest.raises(error, match=text):
                call()
    with pytest.raises(TypeError):
        g.Request()
    with pytest.raises(TypeError):
        g.Task()
    assert current_task() is None


def test_tls_sockets_are_refused() -> None:
    ssl = pytest.importorskip("ssl")
    context = ssl.create_default_context()
    a, b = socket.socketpair()
    with b, context.wrap_socket(
        a, server_hostname="x", do_handshake_on_connect=False
    ) as tls, pytest.raises(TypeError, match="TLS"):
        recv(tls, 5)


def test_generators_that_have_run() -> None:
    def main() -> Strand[None]:
        begun = returning(1)
        next(begun)
        ended = returning(2)
        list(ended)
        for bad, text in ((begun, "started"), (ended, "ended"), (me, "running")):
            with pytest.raises(ValueError, match=text):
                spawn(bad)
        twice = returning(3)
        first = yield spawn(twice)
        second = yield spawn(twice)
        assert (yield join(first)) == 3
        with pytest.raises(ValueError, match="already"):
            yield join(second)

    me = main()
    run(me)
    with pytest.raises(ValueError, match="ended"):
        run(me)


def test_run_within_a_loop() -> None:
    async def main() -> None:
        generator = forever()
        with pytest.raises(RuntimeError, match="running event loop"):
            run(generator)

    plait.run(main())


def test_other_loops_are_refused() -> None:
    async def main() -> None:
        with pytest.raises(RuntimeError, match="plait's loop"):
            start(forever())

    asyncio.run(main())


def test_tasks_belong_to_the_loops_thread() -> None:
    def main() -> Strand[None]:
        task = yield spawn(forever())
        with concurrent.futures.ThreadPoolExecutor(1) as pool:
            for call in (task.cancel, lambda: task.throw(KeyError())):
                with pytest.raises(RuntimeError, match="call_soon_threadsafe"):
                    yield wait(pool.submit(call))
            loop = asyncio.get_running_loop()
            yield wait(pool.submit(loop.call_soon_threadsafe, task.cancel))
        with pytest.raises(Cancelled):
            yield join(task)

    run(main())


# ---- errors that nobody takes ----


def test_an_error_that_nobody_joins_is_logged(caplog: pytest.LogCaptureFixture) -> None:
    def main() -> Strand[None]:
        yield spawn(raising(KeyError("lost")), "loser")
        kept = yield spawn(raising(KeyError("kept")))
        for _ in range(4):
            yield sleep(0)
        assert "nobody joined its task loser" in caplog.text
        assert "KeyError: 'lost'" in caplog.text
        assert "kept" not in caplog.text  # it can be joined still
        with pytest.raises(KeyError):
            yield join(kept)

    with caplog.at_level(logging.ERROR):
        run(main())
    assert "kept" not in caplog.text


def test_an_error_is_logged_once_and_late(caplog: pytest.LogCaptureFixture) -> None:
    def main() -> Strand[Task[None]]:
        task = yield spawn(raising(KeyError("late")))
        for _ in range(3):
            yield sleep(0)
        return task

    with caplog.at_level(logging.ERROR):
        task = run(main())
        assert not caplog.records
        del task
        gc.collect()
        assert len(caplog.records) == 1


@pytest.mark.parametrize("error", [KeyboardInterrupt, SystemExit])
def test_what_ends_programs_ends_the_run(error: type[BaseException]) -> None:
    closed = []

    def other() -> Strand[None]:
        try:
            yield sleep(1e9)
        finally:
            closed.append(1)

    def main() -> Strand[None]:
        yield spawn(other())
        yield spawn(raising(error()))
        yield sleep(1e9)

    with pytest.raises(error):
        run(main())
    assert closed == [1]


# ---- the end of a run ----


def test_what_still_runs_is_closed_youngest_first() -> None:
    closed = []

    def strand(n: int) -> Strand[None]:
        try:
            yield sleep(1e9)
        finally:
            closed.append(n)
            with pytest.raises(RuntimeError, match="being closed"):
                start(forever())

    def main() -> Strand[str]:
        for n in range(5):
            yield spawn(strand(n))
        yield sleep(0)
        return "done"

    loop_errors: list[Any] = []
    assert run(main()) == "done"
    assert closed == [4, 3, 2, 1, 0]
    assert not loop_errors


def test_errors_of_closing_are_logged(caplog: pytest.LogCaptureFixture) -> None:
    def bad() -> Strand[None]:
        try:
            yield sleep(1e9)
        finally:
            raise KeyError("in finally")

    def main() -> Strand[None]:
        yield spawn(bad())
        yield sleep(0)

    run(main())
    gc.collect()
    assert "in finally" in caplog.text


def test_closing_a_loop_closes_its_generators() -> None:
    closed = []

    def strand() -> Strand[None]:
        try:
            yield sleep(1e9)
        finally:
            closed.append(1)

    async def main() -> None:
        start(strand())
        await asyncio.sleep(0)

    loop = plait.new_event_loop()
    loop.run_until_complete(main())
    assert not closed
    loop.close()
    assert closed == [1]


def test_a_dropped_loop_is_collected_with_its_generators(
    pair: tuple[socket.socket, socket.socket],
) -> None:
    class Mark:
        pass

    mark = Mark()
    gone = weakref.ref(mark)

    def strand(mark: Mark, request: g.Request[Any]) -> Strand[None]:
        yield request

    async def main(mark: Mark) -> None:
        one = start(strand(mark, sleep(1e9)))
        start(strand(mark, recv(pair[0], 5)))
        start(strand(mark, join(one)))
        start(strand(mark, wait(asyncio.get_running_loop().create_future())))
        start(strand(mark, timeout(1e6, strand(mark, sleep(1e9)))))
        for _ in range(3):
            await asyncio.sleep(0)

    loop = plait.new_event_loop()
    loop.run_until_complete(main(mark))
    for other in (loop._ssock, loop._csock):  # the interpreter warns of what is not closed
        assert other is not None
    del mark
    with pytest.warns(ResourceWarning):
        del loop, other
        gc.collect()
    assert gone() is None


def test_a_cycle_through_a_task_is_collected() -> None:
    class Mark:
        pass

    refs = []

    def strand(box: list[Any]) -> Strand[Any]:
        mark = Mark()
        box.append(mark)
        refs.append(weakref.ref(mark))
        yield sleep(0)
        return box

    def main() -> Strand[None]:
        box: list[Any] = []
        task = yield spawn(strand(box))
        box.append(task)
        yield join(task)
        del task, box
        yield sleep(0)
        gc.collect()
        assert refs[0]() is None

    run(main())


def test_a_long_chain_of_results_is_freed() -> None:
    def link(before: Any) -> Strand[Any]:
        yield sleep(0)
        return before

    def main() -> Strand[None]:
        last = None
        for _ in range(50_000):
            task = yield spawn(link(last))
            yield join(task)
            last = task
        del task
        last = None  # noqa: F841

    run(main())


# ---- sockets that close, and numbers that come back ----


def test_closing_a_socket_that_is_waited_for(pair: tuple[socket.socket, socket.socket]) -> None:
    a, _ = pair

    def reader() -> Strand[bytes]:
        return (yield recv(a, 5))

    def main() -> Strand[None]:
        task = yield spawn(reader())
        yield sleep(0.001)
        a.close()
        with pytest.raises(OSError, match="closed while a task waited"):
            yield timeout(30, join(task))
        with pytest.raises(OSError, match=r"recv\(\): the socket is closed"):
            yield recv(a, 5)

    run(main())


def test_reused_descriptors() -> None:
    def talk(sock: socket.socket) -> Strand[bytes]:
        return (yield recv(sock, 5))

    def main() -> Strand[None]:
        numbers = set()
        for n in range(20):
            a, b = socket.socketpair()
            numbers.add((a.fileno(), b.fileno()))
            task = yield spawn(talk(a))
            yield sleep(0)
            if n % 3 == 0:
                a.close()  # while a task waits: the next one gets its number
            else:
                yield send(b, b"%d" % n)
                assert (yield join(task)) == b"%d" % n
                a.close()
            b.close()
            if n % 3 == 0:
                c, d = socket.socketpair()
                with c, d:
                    other = yield spawn(talk(c))
                    yield sleep(0)
                    with pytest.raises(OSError, match="closed while"):
                        yield join(task)
                    yield send(d, b"new")
                    assert (yield join(other)) == b"new"
        assert len(numbers) < 20  # numbers did come back

    run(main())


def test_a_transport_may_take_a_descriptor_over() -> None:
    async def main() -> None:
        loop = asyncio.get_running_loop()
        a, b = socket.socketpair()
        for sock in (a, b):
            sock.setblocking(False)

        def receive() -> Strand[bytes]:
            return (yield recv(a, 5))

        task = start(receive())
        await asyncio.sleep(0)
        b.send(b"x")
        assert await task == b"x"  # its registration stays, and gives way
        loop.call_soon(b.send, b"y")
        assert await loop.sock_recv(a, 5) == b"y"
        b.send(b"z")
        assert await start(receive()) == b"z"
        reader, writer = await asyncio.open_connection(sock=a)
        b.send(b"stream")
        assert await reader.readexactly(6) == b"stream"
        with pytest.raises(RuntimeError, match="transport"):
            await start(receive())
        writer.close()
        await writer.wait_closed()
        b.close()

    plait.run(main())


def test_data_that_nobody_waits_for_does_not_spin(
    pair: tuple[socket.socket, socket.socket],
) -> None:
    a, b = pair

    def main() -> Strand[None]:
        loop = asyncio.get_running_loop()
        task = yield spawn(receive())
        yield sleep(0)
        yield send(b, b"one")
        assert (yield join(task)) == b"one"
        yield send(b, b"two")
        before = loop.statistics()["polls"]  # type: ignore[attr-defined]
        yield sleep(0.05)
        assert loop.statistics()["polls"] - before < 10  # type: ignore[attr-defined]
        assert (yield from receive()) == b"two"

    def receive() -> Strand[bytes]:
        return (yield recv(a, 100))

    run(main())


def test_one_hot_socket_starves_nobody(pair: tuple[socket.socket, socket.socket]) -> None:
    a, b = pair
    turns = []

    def hot() -> Strand[None]:
        while True:  # never has to wait
            yield send(b, b"x")
            yield recv(a, 1)

    def other() -> Strand[None]:
        for _ in range(5):
            yield sleep(0)
            turns.append(1)

    def main() -> Strand[None]:
        yield spawn(hot())
        yield join((yield spawn(other())))

    run(main())
    assert len(turns) == 5


# ---- asyncio ----


def test_tasks_are_awaitable() -> None:
    async def main() -> None:
        assert await start(returning(1)) == 1
        assert await asyncio.gather(start(returning(2)), start(returning(3))) == [2, 3]
        assert asyncio.isfuture(start(returning(4)))
        with pytest.raises(KeyError):
            await start(raising(KeyError()))
        task = start(forever())
        with pytest.raises(TimeoutError):
            await asyncio.wait_for(task, 0.001)
        assert task.cancelled()
        done, pending = await asyncio.wait([start(returning(5)), start(forever())], timeout=0.01)
        assert [t.result() for t in done] == [5]
        assert len(pending) == 1
        with pytest.raises(asyncio.InvalidStateError):
            next(iter(pending)).result()
        results = await asyncio.gather(
            start(raising(OSError("o"))), start(returning(6)), return_exceptions=True
        )
        assert [type(r) for r in results] == [OSError, int]
        ended = start(returning(7))
        assert await asyncio.shield(ended) == 7
        assert await ended == 7
        assert await start(returning((8, 9))) == (8, 9)

    plait.run(main())


def test_cancelling_who_awaits() -> None:
    closed = []

    def strand() -> Strand[None]:
        try:
            yield sleep(1e9)
        finally:
            closed.append(1)

    async def outer() -> None:
        await start(strand())

    async def main() -> None:
        task = asyncio.create_task(outer())
        await asyncio.sleep(0.001)
        task.cancel()
        with pytest.raises(asyncio.CancelledError):
            await task
        assert task.cancelled()
        assert closed == [1]  # before, not after

    plait.run(main())


def test_done_callbacks() -> None:
    called: list[Any] = []
    variable: contextvars.ContextVar[int] = contextvars.ContextVar("variable", default=0)

    async def main() -> None:
        context = contextvars.copy_context()
        context.run(variable.set, 5)
        task = start(returning(1))
        task.add_done_callback(called.append)
        task.add_done_callback(lambda t: called.append(variable.get()), context=context)
        task.add_done_callback(print)
        assert task.remove_done_callback(print) == 1
        assert task.remove_done_callback(print) == 0
        await task
        await asyncio.sleep(0)
        assert called == [task, 5]
        task.add_done_callback(called.append)
        await asyncio.sleep(0)
        assert called == [task, 5, task]

    plait.run(main())


def test_contexts() -> None:
    variable: contextvars.ContextVar[int] = contextvars.ContextVar("variable")

    def child() -> Strand[int]:
        seen = variable.get()
        variable.set(seen + 1)
        yield sleep(0)
        assert variable.get() == seen + 1
        return seen

    def main() -> Strand[None]:
        variable.set(1)
        tasks = []
        for _ in range(3):
            tasks.append((yield spawn(child())))  # noqa: PERF401
        for task in tasks:
            assert (yield join(task)) == 1
        assert variable.get() == 1

    run(main())
    assert variable.get(None) is None


# ---- debugging ----


def test_reprs(pair: tuple[socket.socket, socket.socket]) -> None:
    a, _ = pair
    number = a.fileno()

    def reader() -> Strand[None]:
        yield from inner()

    def inner() -> Strand[None]:
        yield recv(a, 5)

    def main() -> Strand[None]:
        task = yield spawn(reader(), "reader")
        assert "Task reader ready at " in repr(task)
        yield sleep(0)
        line = inner.__code__.co_firstlineno + 1
        assert repr(task) == (
            f"<plait.generators.Task reader waits: recv(socket {number}, 5) at {__file__}:{line}>"
        )
        assert task in all_tasks()
        task.cancel()
        assert "to be closed" in repr(task)
        with pytest.raises(Cancelled):
            yield join(task)
        assert "reader cancelled" in repr(task)
        good = yield spawn(returning(3))
        yield join(good)
        assert repr(good).endswith("returning returned 3>")
        bad = yield spawn(raising(KeyError("k")))
        with pytest.raises(KeyError):
            yield join(bad)
        assert repr(bad).endswith("raising failed: KeyError('k')>")
        assert repr(current_task()).endswith("main running>")
        assert repr(join(good)) == "join(test_reprs.<locals>.returning)" or "returning" in repr(
            join(good)
        )
        assert repr(send(a, b"xyz")) == f"send(socket {number}, <3 items>)"
        assert repr(timeout(1, sleep(2))) == "timeout(1.0, sleep(2.0))"
        assert repr(timeout(None, sleep(2))) == "timeout(None, sleep(2.0))"

    run(main())


def test_slow_steps_are_reported_in_debug_mode(caplog: pytest.LogCaptureFixture) -> None:
    def main() -> Strand[None]:
        asyncio.get_running_loop().slow_callback_duration = 0.0
        yield sleep(0)
        threading.Event().wait(0.001)
        yield sleep(0)

    run(main(), debug=True)
    assert "main" in caplog.text and "seconds" in caplog.text
