"""plait.generators: wrong use, errors, ends, descriptors that return, asyncio."""

from __future__ import annotations

import asyncio
import concurrent.futures
import contextvars
import gc
import logging
import signal
import socket
import subprocess
import sys
import textwrap
import threading
import weakref
from typing import Any

import pytest
from generator_strands import forever, raising, returning

import plait
from plait import generators as g
from plait.generators import (
    Cancelled,
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
    with (
        b,
        context.wrap_socket(a, server_hostname="x", do_handshake_on_connect=False) as tls,
        pytest.raises(TypeError, match="TLS"),
    ):
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
    del mark, loop
    with pytest.warns(ResourceWarning):  # of the loop, which was not closed
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
        last = None

    run(main())


# ---- signals and forks ----


def child_program(text: str) -> subprocess.CompletedProcess[str]:
    """Run a program of its own, and return how it ended."""
    return subprocess.run(
        [sys.executable, "-c", textwrap.dedent(text)], capture_output=True, text=True, timeout=60
    )


@pytest.mark.isolated
def test_sockets_of_a_class_put_in_the_place_of_socket_socket() -> None:
    ended = child_program("""
        import asyncio, socket, ssl, _socket
        class Own:
            def __init__(self, family=-1, type=-1, proto=-1, fileno=None):
                self._sock = _socket.socket(family, type, proto, fileno)
            def __getattr__(self, name):
                return getattr(self._sock, name)
        socket.socket = Own
        from plait.generators import recv, run, send
        a, b = socket.socketpair()
        def main():
            yield send(a, b"abc")
            return (yield recv(b, 10))
        print(run(main()))
    """)
    assert (ended.returncode, ended.stdout) == (0, "b'abc'\n"), ended.stderr


@pytest.mark.isolated
def test_ctrl_c_closes_what_runs() -> None:
    ended = child_program("""
        import os, signal
        from plait.generators import run, sleep, spawn
        def other():
            try:
                yield sleep(1e9)
            finally:
                print("closed", flush=True)
        def main():
            yield spawn(other())
            yield sleep(0)
            os.kill(os.getpid(), signal.SIGINT)
            yield sleep(1e9)
        run(main())
    """)
    assert ended.returncode == -signal.SIGINT
    assert ended.stdout == "closed\n"
    assert ended.stderr.rstrip().endswith("KeyboardInterrupt")


@pytest.mark.isolated
def test_a_forked_child_leaves_the_parents_generators_alone() -> None:
    ended = child_program("""
        import os, socket, sys, warnings
        from plait.generators import recv, run, send, sleep, spawn, join, start
        warnings.simplefilter("ignore")
        a, b = socket.socketpair()
        def reader():
            try:
                return (yield recv(a, 5))
            finally:
                print("reader ends in", "parent" if os.getpid() == parent else "child", flush=True)
        def main():
            task = yield spawn(reader())
            yield sleep(0)
            pid = os.fork()
            if pid == 0:
                try:
                    start(reader())
                except RuntimeError as error:
                    assert "another process" in str(error), error
                else:
                    os._exit(2)
                yield sleep(1)
                os._exit(3)
            yield send(b, b"x")
            assert (yield join(task)) == b"x"
            return os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1])
        parent = os.getpid()
        try:
            code = run(main())
        except RuntimeError as error:
            assert os.getpid() != parent
            assert "another process" in str(error), error
            os._exit(7)
        print("child's code", code)
    """)
    assert ended.stderr == ""
    assert ended.stdout == "reader ends in parent\nchild's code 7\n"


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
        await asyncio.sleep(0)
        await asyncio.sleep(0)
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
            tasks.append((yield spawn(child())))
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
    assert "main" in caplog.text
    assert "seconds" in caplog.text
