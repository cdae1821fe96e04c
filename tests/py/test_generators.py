"""plait.generators: what the requests do, and what tasks do with each other."""

from __future__ import annotations

import asyncio
import concurrent.futures
import gc
import socket
import threading
import time
from typing import Any

import pytest
from generator_strands import forever, raising, returning

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
    timeout,
    wait,
)

pytestmark = pytest.mark.usefixtures("no_leaks")


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


@pytest.mark.parametrize("size", [500, 1024, 4096, 8192])
def test_messages_that_are_kept_stay_as_they_are(
    size: int, pair: tuple[socket.socket, socket.socket]
) -> None:
    """The memory of a message is used again only when nobody can see it any more."""
    messages = [bytes([i]) * size for i in range(20)]
    kept: list[bytes] = []
    views: list[memoryview] = []
    hashes: list[int] = []

    def read(sock: socket.socket) -> Strand[None]:
        for i in range(len(messages)):
            message = yield recv(sock, 1 << 16)
            hashes.append(hash(message))
            if i % 5 == 1:
                kept.append(message)
            elif i % 5 == 3:
                views.append(memoryview(message)[1:])
            yield send(sock, message)

    def talk(sock: socket.socket) -> Strand[None]:
        for message in messages:
            yield send(sock, message)
            answer = b""
            while len(answer) < size:
                answer += yield recv(sock, 1 << 16)
            assert answer == message

    def both() -> Strand[None]:
        reader = yield spawn(read(pair[0]))
        yield from talk(pair[1])
        yield join(reader)

    g.run(both())
    assert kept == messages[1::5]
    assert [bytes(view) for view in views] == [message[1:] for message in messages[3::5]]
    assert hashes == [hash(message) for message in messages]


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
            got.append((yield recv(a, 100)))
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
            tasks.append((yield spawn(client(n))))
        answers = []
        for task in tasks:
            answers.append((yield join(task)))
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
                with pytest.raises(ConnectionRefusedError, match=r"127\.0\.0\.1"):
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
    begun: list[float] = []

    def sleeper(n: int, unit: float) -> Strand[None]:
        begun.append(time.monotonic())
        yield sleep(n * unit)
        order.append(n)
        begun.append(time.monotonic())

    def main(unit: float) -> Strand[None]:
        tasks = []
        for n in (3, 1, 2, 0):
            tasks.append((yield spawn(sleeper(n, unit))))
        for task in tasks:
            yield join(task)

    for unit in (0.003, 0.03, 0.3, 3.0):
        order.clear()
        begun.clear()
        run(main(unit))
        if begun[3] - begun[0] < unit / 2 and begun[4] >= begun[3]:
            break  # they began together, as far as this unit can tell
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


def test_wait_for_plaits_threads() -> None:
    with plait.ThreadPool(1) as pool:

        def main() -> Strand[None]:
            assert (yield wait(pool.submit(pow, 2, 10))) == 1024
            with pytest.raises(ZeroDivisionError):
                yield wait(pool.submit(divmod, 1, 0))
            gate = threading.Event()
            first = pool.submit(gate.wait)
            queued = pool.submit(pow, 2, 3)
            try:
                with pytest.raises(TimeoutError):
                    yield timeout(0.001, wait(queued))
                assert queued.cancelled()
            finally:
                gate.set()
            assert (yield wait(first)) is True

        run(main())


def test_wait_for_asyncio() -> None:
    async def coroutine() -> str:
        await asyncio.sleep(0)
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
        assert good.result() == 7
        assert good.exception() is None
        assert isinstance(bad.exception(), KeyError)
        assert stopped.cancelled()
        assert stopped.done()
        with pytest.raises(asyncio.CancelledError):
            stopped.result()

    run(main())


def test_many_join_one() -> None:
    def main() -> Strand[None]:
        one = yield spawn(returning("one"))
        tasks = []
        for _ in range(50):
            tasks.append((yield spawn(joiner(one))))
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
        with pytest.raises(Deadlock, match=r"main waits for .*main"):
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
        assert task.cancel()
        assert task.cancel()
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
        with pytest.raises(TimeoutError, match=r"0\.001"):
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


@pytest.mark.parametrize("method", ["__repr__", "result"])
def test_a_future_whose_methods_end_the_wait(method: str) -> None:
    tasks: list[Any] = []

    class Future(asyncio.Future):  # type: ignore[type-arg]
        def __repr__(self) -> str:
            if method == "__repr__" and tasks:
                tasks[0].cancel()
            return "<F>"

        def result(self) -> Any:
            if method == "result" and tasks:
                tasks[0].cancel()
            return super().result()

    def waiter(future: Any) -> Strand[None]:
        yield timeout(0.01 if method == "__repr__" else 20, wait(future))

    def main() -> Strand[None]:
        future: Any = Future(loop=asyncio.get_running_loop())
        tasks.append((yield spawn(waiter(future))))
        yield sleep(0)
        yield sleep(0)
        if method == "result":
            future.set_result(1)
        with pytest.raises(Cancelled):
            yield join(tasks[0])

    run(main())
