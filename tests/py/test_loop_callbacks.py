"""Callbacks and timers: order, contexts, delays, threads, errors, stopping, debug mode."""

from __future__ import annotations

import asyncio
import contextvars
import logging
import math
import re
import socket
import sys
import threading
from typing import Any

import pytest

import plait

_variable: contextvars.ContextVar[str] = contextvars.ContextVar("variable", default="outside")


def run_briefly(loop: plait.Loop, turns: int = 1) -> None:
    """Run that many iterations."""
    for _ in range(turns):
        loop.call_soon(loop.stop)
        loop.run_forever()


# ---- contexts ----


def test_each_callback_has_the_context_of_its_call(loop: plait.Loop) -> None:
    seen = []

    def note() -> None:
        seen.append(_variable.get())
        _variable.set("changed")

    token = _variable.set("first")
    loop.call_soon(note)
    _variable.set("second")
    loop.call_later(0, note)
    loop.call_soon_threadsafe(note)
    _variable.reset(token)
    other = contextvars.copy_context()
    other.run(_variable.set, "given")
    loop.call_soon(note, context=other)
    loop.call_soon(note, context=other)
    loop.call_later(0.001, loop.stop)
    loop.run_forever()
    assert sorted(seen) == ["changed", "first", "given", "second", "second"]
    assert _variable.get() == "outside"
    assert other[_variable] == "changed"


def test_a_context_in_use_is_told_and_the_loop_goes_on(
    loop: plait.Loop, caplog: pytest.LogCaptureFixture
) -> None:
    got: list[int] = []
    context = contextvars.copy_context()

    def enter_again() -> None:
        handle = loop.call_soon(got.append, 1, context=context)
        handle._run()  # type: ignore[attr-defined]
        handle.cancel()

    loop.call_soon(enter_again, context=context)
    loop.call_soon(got.append, 2)
    run_briefly(loop)
    assert got == [2]
    assert "is already entered" in caplog.text


def test_each_connection_has_a_context_of_its_own(loop: plait.Loop) -> None:
    seen = []

    class Protocol(asyncio.Protocol):
        def connection_made(self, transport: Any) -> None:
            self.transport = transport
            seen.append(("made", _variable.get()))

        def data_received(self, data: bytes) -> None:
            seen.append((data.decode(), _variable.get()))
            _variable.set(data.decode())
            self.transport.write(data)

        def connection_lost(self, exc: Exception | None) -> None:
            seen.append(("lost", _variable.get()))

    async def main() -> None:
        _variable.set("server")
        server = await loop.create_server(Protocol, "127.0.0.1", 0)
        host, port = server.sockets[0].getsockname()
        for name in "ab":
            reader, writer = await asyncio.open_connection(host, port)
            for _ in range(2):
                writer.write(name.encode())
                await reader.readexactly(1)
            writer.close()
            await writer.wait_closed()
        server.close()
        await server.wait_closed()
        while [what for what, _ in seen].count("lost") < 2:
            await asyncio.sleep(0)

    loop.run_until_complete(main())
    assert [x for x in seen if x[0] == "a"] == [("a", "server"), ("a", "a")]
    assert [x for x in seen if x[0] == "b"] == [("b", "server"), ("b", "b")]
    assert sorted(x[1] for x in seen if x[0] == "lost") == ["a", "b"]


# ---- order and delays ----


def test_equal_deadlines_run_in_the_order_of_the_calls(loop: plait.Loop) -> None:
    when = loop.time() + 0.002
    got: list[int] = []
    handles = [loop.call_at(when, got.append, i) for i in range(500)]
    for i in range(0, 500, 3):
        handles[i].cancel()
    loop.call_at(when, loop.stop)
    loop.run_forever()
    assert got == [i for i in range(500) if i % 3]


def test_what_a_callback_schedules_runs_in_the_next_iteration(loop: plait.Loop) -> None:
    got: list[str] = []

    def first() -> None:
        got.append("first")
        loop.call_soon(got.append, "third")

    loop.call_soon(first)
    loop.call_soon(got.append, "second")
    run_briefly(loop)
    assert got == ["first", "second"]
    run_briefly(loop)
    assert got == ["first", "second", "third"]


def test_a_post_made_before_a_call_soon_runs_before_it(loop: plait.Loop) -> None:
    got: list[int] = []
    for i in range(0, 100, 2):
        thread = threading.Thread(target=loop.call_soon_threadsafe, args=(got.append, i))
        thread.start()
        thread.join()
        loop.call_soon(got.append, i + 1)
    run_briefly(loop)
    assert got == list(range(100))


def test_the_loops_own_posts_are_in_line_with_all_others(loop: plait.Loop) -> None:
    got: list[int] = []

    def fill() -> None:
        for i in range(0, 90, 3):
            thread = threading.Thread(target=loop.call_soon_threadsafe, args=(got.append, i))
            thread.start()
            thread.join()
            loop.call_soon_threadsafe(got.append, i + 1)
            loop.call_soon(got.append, i + 2)
        assert got == []

    loop.call_soon(fill)
    run_briefly(loop, 2)
    assert got == list(range(90))


@pytest.mark.parametrize("delay", [-1e300, -1, -0.0, 0, 0.0, -math.inf, False])
def test_a_delay_of_nothing_runs_at_once(loop: plait.Loop, delay: float) -> None:
    loop.call_later(delay, loop.stop)
    loop.run_forever()


@pytest.mark.parametrize("delay", [math.inf, 1e308, 10**400, 2**62, 1e10])
def test_a_huge_delay_waits_and_can_be_cancelled(loop: plait.Loop, delay: float) -> None:
    handle = loop.call_later(delay, pytest.fail, "it ran")
    assert handle.when() > loop.time() + 1e9
    loop.call_later(0.001, loop.stop)
    loop.run_forever()
    handle.cancel()
    assert handle.cancelled()


@pytest.mark.parametrize("method", ["call_later", "call_at"])
@pytest.mark.parametrize(
    ("value", "error"),
    [(math.nan, ValueError), (None, TypeError), ("1", TypeError), (1j, TypeError)],
)
def test_a_time_that_is_none_is_refused(
    loop: plait.Loop, method: str, value: Any, error: type[Exception]
) -> None:
    before = loop.statistics()
    with pytest.raises(error):
        getattr(loop, method)(value, print)
    assert loop.statistics() == before


def test_a_timer_is_never_early(loop: plait.Loop) -> None:
    late = []

    def check(when: float) -> None:
        late.append(loop.time() - when)

    for i in range(50):
        when = loop.time() + i * 0.0003
        loop.call_at(when, check, when)
    loop.call_later(0.02, loop.stop)
    loop.run_forever()
    assert len(late) == 50
    assert min(late) >= 0


def test_many_timers_started_and_cancelled_leave_none(loop: plait.Loop) -> None:
    handles = [loop.call_later(3600 + i % 7, print) for i in range(20_000)]
    for handle in handles[::2] + handles[1::2]:
        handle.cancel()
    assert loop.statistics()["timers"] == 0


# ---- threads ----


def test_a_storm_of_calls_from_eight_threads(loop: plait.Loop) -> None:
    threads, calls = 8, 5_000
    got: list[list[int]] = [[] for _ in range(threads)]
    done = 0

    def finished() -> None:
        nonlocal done
        done += 1
        if done == threads:
            loop.stop()

    def work(k: int) -> None:
        for i in range(calls):
            loop.call_soon_threadsafe(got[k].append, i)
        loop.call_soon_threadsafe(finished)

    workers = [threading.Thread(target=work, args=(k,)) for k in range(threads)]
    for worker in workers:
        worker.start()
    loop.run_forever()
    for worker in workers:
        worker.join()
    assert all(one == list(range(calls)) for one in got)


def test_a_sleeping_loop_is_woken_each_time(loop: plait.Loop) -> None:
    asked, answered = threading.Semaphore(0), []

    def work() -> None:
        for i in range(500):
            loop.call_soon_threadsafe(answer, i)
            asked.acquire()
        loop.call_soon_threadsafe(loop.stop)

    def answer(i: int) -> None:
        answered.append(i)
        asked.release()

    worker = threading.Thread(target=work)
    worker.start()
    loop.run_forever()
    worker.join()
    assert answered == list(range(500))


def test_threads_that_call_while_the_loop_closes(no_leaks: None) -> None:
    interval = sys.getswitchinterval()
    sys.setswitchinterval(1e-4)  # the loop has its turn sooner, and is met in more places
    try:
        close_while_threads_call(20)
    finally:
        sys.setswitchinterval(interval)


def close_while_threads_call(rounds: int) -> None:
    for _ in range(rounds):
        loop = plait.new_event_loop()
        refused = []

        def work(loop: plait.Loop = loop, refused: list[str] = refused) -> None:
            try:
                while True:
                    loop.call_soon_threadsafe(int)
            except RuntimeError as error:
                refused.append(str(error))

        workers = [threading.Thread(target=work) for _ in range(3)]
        for worker in workers:
            worker.start()
        run_briefly(loop, 3)
        loop.close()
        for worker in workers:
            worker.join()
        assert refused == ["Event loop is closed"] * 3


def test_a_loop_in_each_thread() -> None:
    results = []

    async def main(k: int) -> int:
        server = await asyncio.start_server(echo, "127.0.0.1", 0)
        reader, writer = await asyncio.open_connection(*server.sockets[0].getsockname())
        writer.write(b"x" * k)
        writer.write_eof()
        data = await reader.read()
        writer.close()
        server.close()
        return len(data)

    async def echo(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        writer.write(await reader.read())
        writer.close()

    threads = [
        threading.Thread(target=lambda k=k: results.append(plait.run(main(k)) == k))
        for k in range(1, 9)
    ]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert results == [True] * 8


# ---- stop, close, run again ----


def test_stop_finishes_the_iteration(loop: plait.Loop) -> None:
    got: list[int] = []
    loop.call_soon(got.append, 1)
    loop.call_soon(loop.stop)
    loop.call_soon(got.append, 2)
    loop.call_soon(lambda: loop.call_soon(got.append, 3))
    loop.run_forever()
    assert got == [1, 2]
    run_briefly(loop)
    assert got == [1, 2, 3]


def test_stop_before_the_run_makes_one_iteration(loop: plait.Loop) -> None:
    got: list[int] = []
    loop.call_soon(got.append, 1)
    loop.stop()
    loop.run_forever()
    assert got == [1]


def test_a_running_loop_refuses_to_run_and_to_close(loop: plait.Loop) -> None:
    other = plait.new_event_loop()
    errors = []

    def try_all() -> None:
        for act in (loop.run_forever, loop.close, other.run_forever):
            try:
                act()
            except RuntimeError as error:
                errors.append(str(error))

    loop.call_soon(try_all)
    run_briefly(loop)
    other.close()
    assert errors == [
        "This event loop is already running",
        "Cannot close a running event loop",
        "Cannot run the event loop while another loop is running",
    ]


def test_a_closed_loop_refuses_everything() -> None:
    loop = plait.new_event_loop()
    handle = loop.call_later(60, print)
    soon = loop.call_soon(print)
    loop.close()
    loop.close()
    assert loop.is_closed()
    handle.cancel()
    soon.cancel()
    refused = [
        lambda: loop.call_soon(print),
        lambda: loop.call_soon_threadsafe(print),
        lambda: loop.call_later(1, print),
        lambda: loop.call_at(1, print),
        lambda: loop.run_forever(),
        lambda: loop._add_reader(0, print),
        lambda: loop.run_in_executor(None, print),
    ]
    for act in refused:
        with pytest.raises(RuntimeError, match="Event loop is closed"):
            act()
    coroutine = asyncio.sleep(0)
    with pytest.raises(RuntimeError, match="Event loop is closed"):
        loop.create_task(coroutine)
    coroutine.close()
    assert loop.remove_reader(0) is False


# ---- errors ----


@pytest.mark.parametrize("error", [KeyboardInterrupt, SystemExit])
def test_the_two_that_leave_the_loop(loop: plait.Loop, error: type[BaseException]) -> None:
    got: list[int] = []

    def leave() -> None:
        raise error("now")

    loop.call_soon(got.append, 1)
    loop.call_soon(leave)
    loop.call_soon(got.append, 2)
    with pytest.raises(error, match="now") as info:
        loop.run_forever()
    assert any(entry.name == "leave" for entry in info.traceback)
    assert not loop.is_running()
    run_briefly(loop)
    assert got == [1, 2]


def test_what_a_protocol_raises_leaves_the_loop_too(loop: plait.Loop) -> None:
    class Protocol(asyncio.Protocol):
        def data_received(self, data: bytes) -> None:
            raise SystemExit(3)

    ours, theirs = socket.socketpair()
    ours.setblocking(False)
    transport, _ = loop.run_until_complete(loop.connect_accepted_socket(Protocol, ours))
    theirs.send(b"x")
    with pytest.raises(SystemExit) as info:
        loop.run_forever()
    assert info.value.code == 3
    transport.abort()
    run_briefly(loop, 2)
    theirs.close()


def test_an_exception_handler_hears_of_errors(loop: plait.Loop) -> None:
    told: list[dict[str, Any]] = []
    loop.set_exception_handler(lambda _loop, context: told.append(context))
    handle = loop.call_soon(lambda: 1 / 0)
    loop.call_later(0, lambda: {}["missing"])
    run_briefly(loop, 2)
    assert told[0]["handle"] is handle
    assert [type(one["exception"]) for one in told] == [ZeroDivisionError, KeyError]
    assert told[0]["message"].startswith("Exception in callback ")


def test_an_exception_handler_that_raises(
    loop: plait.Loop, caplog: pytest.LogCaptureFixture
) -> None:
    def handler(_loop: Any, _context: Any) -> None:
        raise LookupError("in the handler")

    got: list[int] = []
    loop.set_exception_handler(handler)
    loop.call_soon(lambda: 1 / 0)
    loop.call_soon(got.append, 1)
    run_briefly(loop)
    assert got == [1]
    assert "Unhandled error in exception handler" in caplog.text


def test_an_exception_handler_that_leaves_the_loop(loop: plait.Loop) -> None:
    def handler(_loop: Any, _context: Any) -> None:
        raise SystemExit("from the handler")

    loop.set_exception_handler(handler)
    loop.call_soon(lambda: 1 / 0)
    with pytest.raises(SystemExit, match="from the handler"):
        loop.run_forever()


# ---- debug mode ----


def test_debug_names_a_slow_callback(loop: plait.Loop, caplog: pytest.LogCaptureFixture) -> None:
    loop.set_debug(True)
    loop.slow_callback_duration = 0.0

    def dawdle() -> None:
        """Take its time."""

    async def dawdling_task() -> None:
        pass

    with caplog.at_level(logging.WARNING, logger="asyncio"):
        loop.call_soon(dawdle)
        loop.run_until_complete(dawdling_task())
    assert "dawdle" in caplog.text
    assert "dawdling_task" in caplog.text
    assert re.search(r"took \d+\.\d{3} seconds", caplog.text)


def test_debug_refuses_the_wrong_thread_and_what_cannot_be_called(loop: plait.Loop) -> None:
    loop.set_debug(True)
    errors: list[BaseException] = []

    def work() -> None:
        for act in (loop.call_soon, lambda f: loop.call_later(0, f), lambda f: loop.call_at(0, f)):
            try:
                act(print)
            except RuntimeError as error:
                errors.append(error)
        loop.call_soon_threadsafe(loop.stop)

    thread = threading.Thread(target=work)
    loop.call_soon(thread.start)
    loop.run_forever()
    thread.join()
    assert len(errors) == 3
    assert all("Non-thread-safe operation" in str(error) for error in errors)

    async def coroutine_function() -> None:
        pass

    for wrong in (1, None, coroutine_function):
        with pytest.raises(TypeError):
            loop.call_soon(wrong)  # type: ignore[arg-type]
        with pytest.raises(TypeError):
            loop.call_later(1, wrong)  # type: ignore[arg-type]
    assert loop.statistics()["timers"] == 0


def test_debug_keeps_where_a_handle_was_made(loop: plait.Loop) -> None:
    loop.set_debug(True)
    told: list[dict[str, Any]] = []
    loop.set_exception_handler(lambda _loop, context: told.append(context))
    loop.call_soon(lambda: 1 / 0)
    run_briefly(loop)
    assert any(
        frame.name == "test_debug_keeps_where_a_handle_was_made"
        for frame in told[0]["source_traceback"]
    )


# ---- handles ----


def test_a_handle_forgets_what_it_would_have_called(loop: plait.Loop) -> None:
    import weakref

    class Target:
        def __call__(self, _argument: object) -> None:
            pytest.fail("it ran")

    target, argument = Target(), Target()
    gone = [weakref.ref(target), weakref.ref(argument)]
    soon, later = loop.call_soon(target, argument), loop.call_later(60, target, argument)
    soon.cancel()
    later.cancel()
    del target, argument
    assert [one() for one in gone] == [None, None]
    assert "cancelled" in repr(soon)
    assert "cancelled" in repr(later)
    run_briefly(loop)


def test_a_handle_cancelled_by_its_own_callback(loop: plait.Loop) -> None:
    got: list[object] = []

    def act(*args: object) -> None:
        handle.cancel()
        got.extend(args)

    handle = loop.call_soon(act, 1, 2, 3, 4, 5)
    run_briefly(loop)
    assert got == [1, 2, 3, 4, 5]
    assert handle.cancelled()


@pytest.mark.parametrize("count", [0, 1, 3, 4, 40])
def test_any_number_of_arguments(loop: plait.Loop, count: int) -> None:
    got: list[tuple[int, ...]] = []
    loop.call_soon(lambda *args: got.append(args), *range(count))
    loop.call_later(0, lambda *args: got.append(args), *range(count))
    run_briefly(loop, 2)
    assert got == [tuple(range(count))] * 2
    with pytest.raises(TypeError, match="unexpected keyword argument 'nonsense'"):
        loop.call_soon(print, nonsense=1)  # type: ignore[call-arg]
