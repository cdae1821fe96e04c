"""plait.ThreadPool: tasks, threads, bounds, the end."""

from __future__ import annotations

import asyncio
import concurrent.futures
import contextvars
import gc
import itertools
import pathlib
import signal
import subprocess
import sys
import threading
import time
import weakref
from collections.abc import Iterator
from types import FrameType
from typing import Any

import pytest
from until import until

import plait
from plait import _threads

ISOLATED = pathlib.Path(__file__).parent.parent / "isolated"

pytestmark = pytest.mark.usefixtures("no_leaks")


def busy(pool: plait.ThreadPool) -> set[int]:
    """The threads that run tasks."""
    return {thread.ident for thread in pool.statistics().threads if thread.task is not None}


class Gate:
    """A task that says when it has begun, and ends when it is let go."""

    def __init__(self) -> None:
        self.begun = threading.Event()
        self.go = threading.Event()

    def __call__(self, value: Any = None) -> Any:
        self.begun.set()
        assert self.go.wait(60)
        return value


def run_script(name: str, *args: str, timeout: float = 60.0) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, str(ISOLATED / name), *args],
        capture_output=True,
        text=True,
        timeout=timeout,
        check=False,
    )


# ---- arguments


@pytest.mark.parametrize(
    ("kwargs", "error", "text"),
    [
        ({"workers": 0}, ValueError, "workers must be from 1 to 4096, not 0"),
        ({"workers": -3}, ValueError, "workers"),
        ({"workers": True}, TypeError, "workers must be an int"),
        ({"workers": 2.0}, TypeError, "workers must be an int, not 2.0"),
        ({"thread_name_prefix": 3}, TypeError, "thread_name_prefix must be a str, not 3"),
        ({"initializer": 3}, TypeError, "initializer must be a callable or None, not 3"),
        ({"initargs": 3}, TypeError, "int"),
        ({"max_pending": 0}, ValueError, "max_pending must be from 1 to 2147483648, not 0"),
        ({"max_pending": "x"}, TypeError, "max_pending"),
        ({"when_full": "wait"}, ValueError, "when_full must be .* not 'wait'"),
        ({"idle_timeout": -1}, ValueError, "idle_timeout must be at least 0 seconds, not -1"),
        ({"idle_timeout": "1"}, TypeError, "idle_timeout"),
        ({"idle_timeout": float("nan")}, ValueError, "idle_timeout"),
    ],
)
def test_bad_arguments(kwargs: dict[str, Any], error: type[Exception], text: str) -> None:
    with pytest.raises(error, match=text):
        plait.ThreadPool(**kwargs)


@pytest.mark.parametrize(
    ("kwargs", "error", "text"),
    [
        ({"timeout": -1}, ValueError, "timeout must be at least 0 seconds, not -1"),
        ({"timeout": "1"}, TypeError, "timeout must be a number"),
        ({"priority": 1.5}, TypeError, "priority must be an int, not 1.5"),
        ({"priority": 2**31}, ValueError, "priority"),
        ({"retries": -1}, ValueError, "retries"),
        ({"name": 3}, TypeError, "name must be a str or None, not 3"),
    ],
)
def test_bad_options(kwargs: dict[str, Any], error: type[Exception], text: str) -> None:
    with plait.ThreadPool(1) as pool, pytest.raises(error, match=text):
        pool.options(**kwargs)


def test_submit_wants_a_callable() -> None:
    with plait.ThreadPool(1) as pool:
        with pytest.raises(TypeError, match="fn must be callable, not int"):
            pool.submit(3)  # type: ignore[arg-type]
        with pytest.raises(TypeError, match="needs a callable"):
            pool.submit()  # type: ignore[call-arg]
        assert pool.statistics().submitted == 0


# ---- tasks


def test_arguments_and_results() -> None:
    def show(*args: Any, **kwargs: Any) -> Any:
        return args, kwargs

    with plait.ThreadPool(2) as pool:
        assert pool.submit(show).result() == ((), {})
        assert pool.submit(show, 1, 2, a=3, self=4).result() == ((1, 2), {"a": 3, "self": 4})
        assert pool.submit(pow, 2, 10).result() == 1024
        assert pool.submit("a-b".split, "-").result() == ["a", "b"]
        result = object()
        assert pool.submit(lambda: result).result() is result
        assert list(pool.map(pow, [1, 2, 3], [2, 2, 2])) == [1, 4, 9]


def test_errors_keep_their_traceback() -> None:
    def fail() -> None:
        raise ValueError("no")

    with plait.ThreadPool(1) as pool:
        future = pool.submit(fail)
        error = future.exception()
        assert isinstance(error, ValueError)
        assert error.__traceback__ is not None
        assert error.__traceback__.tb_frame.f_code.co_name == "fail"
        with pytest.raises(ValueError, match="no") as caught:
            future.result()
        assert caught.value is error
        assert isinstance(pool.submit(sys.exit, 3).exception(), SystemExit)


def test_the_future_is_a_concurrent_future() -> None:
    gate = Gate()
    with plait.ThreadPool(1) as pool:
        future = pool.submit(gate, 5)
        assert isinstance(future, concurrent.futures.Future)
        gate.begun.wait()
        second = pool.submit(pow, 2, 3)
        assert future.running()
        assert not second.running()
        assert not future.done()
        with pytest.raises(TimeoutError):
            future.result(0.01)
        seen: list[Any] = []
        future.add_done_callback(seen.append)
        futures: list[Any] = [future, second]
        done, pending = concurrent.futures.wait(futures, timeout=0)
        assert (done, pending) == (set(), {future, second})
        gate.go.set()
        assert set(concurrent.futures.as_completed(futures)) == {future, second}
        assert seen == [future]
        assert future.stopped is None
        late: list[Any] = []
        future.add_done_callback(late.append)
        assert late == [future]


def test_callbacks_that_raise_are_logged(caplog: pytest.LogCaptureFixture) -> None:
    gate = Gate()
    called = threading.Event()
    with plait.ThreadPool(1) as pool:
        future = pool.submit(gate)
        future.add_done_callback(lambda future: 1 // 0)
        future.add_done_callback(lambda future: called.set())
        gate.go.set()
        assert called.wait(60)
    assert "exception calling callback" in caplog.text


def test_references_are_dropped_when_a_task_has_ended() -> None:
    class Thing:
        pass

    with plait.ThreadPool(1) as pool:
        thing = Thing()
        gone = weakref.ref(thing)
        pool.submit(isinstance, thing, int).result()
        del thing
        until(lambda: gone() is None)


def test_name_and_priority() -> None:
    gate = Gate()
    order: list[str] = []
    with plait.ThreadPool(1) as pool:
        first = pool.options(name="the gate").submit(gate)
        assert gate.begun.wait(60)
        assert pool.statistics().threads[0].task == "the gate"
        futures = [
            pool.options(priority=priority).submit(order.append, text)
            for text, priority in [("c", 0), ("a", 7), ("e", -2), ("b", 7), ("d", 0)]
        ]
        gate.go.set()
        concurrent.futures.wait([first, *futures])
    assert order == list("abcde")


def test_retries() -> None:
    def fail(times: list[int]) -> int:
        times.append(1)
        if len(times) < 3:
            raise OSError(len(times))
        return len(times)

    def leave(times: list[int]) -> None:
        times.append(1)
        raise SystemExit(1)

    with plait.ThreadPool(1) as pool:
        assert pool.options(retries=2).submit(fail, []).result() == 3
        error = pool.options(retries=1).submit(fail, []).exception()
        assert isinstance(error, OSError)
        assert error.args == (2,)
        times: list[int] = []
        assert isinstance(pool.options(retries=5).submit(leave, times).exception(), SystemExit)
        assert times == [1]
        assert pool.statistics().retried == 3


def test_context_variables() -> None:
    variable: contextvars.ContextVar[str] = contextvars.ContextVar("variable", default="none")

    def swap(value: str) -> str:
        old = variable.get()
        variable.set(value)
        return old

    token = variable.set("mine")
    try:
        with plait.ThreadPool(1, context=True) as pool:
            assert pool.submit(swap, "theirs").result() == "mine"
            assert pool.submit(variable.get).result() == "mine"
            assert pool.options(retries=1).submit(variable.get).result() == "mine"
        with plait.ThreadPool(1) as pool:
            assert pool.submit(variable.get).result() == "none"
    finally:
        variable.reset(token)


def test_map_over_a_generator_without_an_end() -> None:
    taken = 0

    def endless() -> Iterator[int]:
        nonlocal taken
        while True:
            taken += 1
            yield taken

    with plait.ThreadPool(2) as pool:
        results = pool.map(abs, endless(), buffersize=8)
        assert list(itertools.islice(results, 100)) == list(range(1, 101))
        results.close()  # type: ignore[attr-defined]
        assert taken <= 109
        assert sorted(pool.map(abs, range(50), unordered=True)) == list(range(50))
        options = pool.options(name="x")
        assert len(list(itertools.islice(options.map(abs, endless()), 3))) == 3
        with pytest.raises(ValueError, match="chunksize"):
            pool.map(abs, [1], chunksize=0)


def test_map_options_and_timeout() -> None:
    gate = Gate()
    with plait.ThreadPool(2) as pool:
        assert list(pool.options(name="x").map(abs, [-1, -2])) == [1, 2]
        with pytest.raises(TimeoutError):
            next(pool.map(gate, [1], timeout=0.01))
        gate.go.set()


# ---- threads


def test_threads_start_when_needed_and_the_last_idle_one_is_used() -> None:
    with plait.ThreadPool(8, thread_name_prefix="t") as pool:
        assert pool.statistics().threads == ()
        for _ in range(50):
            pool.submit(int).result()
        assert [thread.name for thread in pool.statistics().threads] == ["t_0"]
        gates = [Gate() for _ in range(3)]
        futures = [pool.submit(gate) for gate in gates]
        for gate in gates:
            assert gate.begun.wait(60)
        assert len(pool.statistics().threads) == 3
        # They come to rest one after the other: whoever did so last does all that follows.
        last = 0
        for gate, future in zip(gates, futures, strict=True):
            before = busy(pool)
            gate.go.set()
            future.result()
            until(lambda before=before: busy(pool) != before)
            (last,) = before - busy(pool)
        # The last one to get there may still be on its way.
        until(lambda: pool.submit(threading.get_ident).result() == last)
        assert {pool.submit(threading.get_ident).result() for _ in range(50)} == {last}


def test_idle_threads_end_and_come_again() -> None:
    with plait.ThreadPool(4, idle_timeout=0.02) as pool:
        gates = [Gate() for _ in range(4)]
        futures = [pool.submit(gate) for gate in gates]
        for gate in gates:
            gate.begun.wait()
            gate.go.set()
        concurrent.futures.wait(futures)
        until(lambda: pool.statistics().threads == ())
        until(lambda: pool._threads == set())
        assert pool.submit(pow, 2, 2).result() == 4


def test_resize() -> None:
    with plait.ThreadPool(1) as pool:
        gates = [Gate() for _ in range(4)]
        futures = [pool.submit(gate) for gate in gates]
        assert gates[0].begun.wait(60)
        assert not gates[1].begun.is_set()
        pool.resize(3)
        assert gates[1].begun.wait(60)
        assert gates[2].begun.wait(60)
        assert pool.statistics().workers == 3
        pool.resize(1)
        for gate in gates:
            gate.go.set()
        concurrent.futures.wait(futures)
        until(lambda: len(pool.statistics().threads) == 1)
        assert pool.submit(pow, 2, 2).result() == 4
        for bad in (0, 5000):
            with pytest.raises(ValueError, match="workers must be from 1 to 4096"):
                pool.resize(bad)


def test_initializer_runs_once_in_each_thread() -> None:
    local = threading.local()
    calls: list[int] = []
    gates = [Gate() for _ in range(3)]

    def prepare(value: int) -> None:
        calls.append(value)
        local.value = value

    def look(gate: Gate) -> int:
        gate()
        return int(local.value)

    with plait.ThreadPool(3, initializer=prepare, initargs=[7]) as pool:
        futures = [pool.submit(look, gate) for gate in gates]
        for gate in gates:
            assert gate.begun.wait(60)
            gate.go.set()
        assert [future.result() for future in futures] == [7, 7, 7]
        assert pool.submit(lambda: local.value).result() == 7
    assert calls == [7, 7, 7]


def test_initializer_that_fails_breaks_the_pool(caplog: pytest.LogCaptureFixture) -> None:
    gate = Gate()

    def prepare() -> None:
        gate()
        raise LookupError("nothing there")

    with plait.ThreadPool(1, initializer=prepare) as pool:
        futures = [pool.submit(pow, 2, n) for n in range(3)]
        assert gate.begun.wait(60)
        gate.go.set()
        for future in futures:
            error = future.exception()
            assert isinstance(error, plait.PoolBroken)
            assert isinstance(error, concurrent.futures.BrokenExecutor)
            assert isinstance(error.__cause__, LookupError)
        with pytest.raises(plait.PoolBroken):
            pool.submit(pow, 2, 2)
        until(lambda: pool._threads == set())
    assert "Exception in initializer" in caplog.text


def test_a_thread_that_cannot_start(monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(self: threading.Thread) -> None:
        raise RuntimeError("can't start new thread")

    with plait.ThreadPool(2) as pool:
        with monkeypatch.context() as patch:
            patch.setattr(threading.Thread, "start", refuse)
            with pytest.raises(RuntimeError, match="can't start new thread"):
                pool.submit(pow, 2, 2)
        assert pool.statistics().queued == 0
        gate = Gate()
        first = pool.submit(gate)
        assert gate.begun.wait(60)
        with monkeypatch.context() as patch:
            patch.setattr(threading.Thread, "start", refuse)
            second = pool.submit(pow, 2, 2)  # the thread that there is will do it
        assert pool.statistics().unstarted == 2
        gate.go.set()
        assert second.result() == 4
        first.result()


# ---- the bound


def test_full_line_raises() -> None:
    gate = Gate()
    with plait.ThreadPool(1, max_pending=2, when_full="raise") as pool:
        first = pool.submit(gate)
        assert gate.begun.wait(60)
        waiting = [pool.submit(pow, 2, n) for n in range(2)]
        with pytest.raises(plait.PoolFull, match="2 tasks are waiting"):
            pool.submit(pow, 2, 2)
        assert waiting[0].cancel()
        last = pool.submit(pow, 2, 5)
        gate.go.set()
        assert [waiting[1].result(), last.result()] == [2, 32]
        first.result()
        assert pool.statistics().submitted == 4


def test_full_line_blocks_until_there_is_room() -> None:
    gate = Gate()
    with plait.ThreadPool(1, max_pending=1) as pool:
        pool.submit(gate)
        assert gate.begun.wait(60)
        pool.submit(int)
        through: list[int] = []

        def submit(n: int) -> None:
            pool.submit(int)
            through.append(n)

        threads = [threading.Thread(target=submit, args=(n,)) for n in range(5)]
        for thread in threads:
            thread.start()
        assert through == []
        gate.go.set()
        for thread in threads:
            thread.join()
        assert sorted(through) == [0, 1, 2, 3, 4]


def test_tasks_of_the_pool_are_not_blocked_by_its_bound() -> None:
    with plait.ThreadPool(1, max_pending=1) as pool:

        def spread() -> list[Any]:
            return [pool.submit(pow, 2, n) for n in range(10)]

        assert [f.result() for f in pool.submit(spread).result()] == [2**n for n in range(10)]


def test_shutdown_frees_those_that_wait_for_room() -> None:
    gate = Gate()
    pool = plait.ThreadPool(1, max_pending=1)
    pool.submit(gate)
    assert gate.begun.wait(60)
    pool.submit(int)
    outcome: list[Any] = []

    def submit() -> None:
        try:
            outcome.append(pool.submit(int))
        except RuntimeError as error:
            outcome.append(str(error))

    thread = threading.Thread(target=submit)
    thread.start()
    pool.shutdown(wait=False)
    thread.join()
    gate.go.set()
    pool.shutdown()
    assert outcome == ["cannot schedule new futures after shutdown"]


# ---- loops


def test_await_and_run_in_executor(any_loop_factory: Any) -> None:
    async def main(pool: plait.ThreadPool) -> None:
        loop = asyncio.get_running_loop()
        assert await loop.run_in_executor(pool, pow, 2, 3) == 8
        assert await pool.submit(pow, 2, 4) == 16
        assert await asyncio.wrap_future(pool.submit(pow, 2, 5)) == 32
        with pytest.raises(ZeroDivisionError):
            await loop.run_in_executor(pool, divmod, 1, 0)
        with pytest.raises(RuntimeError, match="StopIteration"):
            await pool.submit(next, iter(()))
        results = await asyncio.gather(*[loop.run_in_executor(pool, pow, 2, n) for n in range(500)])
        assert results == [2**n for n in range(500)]
        done = pool.submit(pow, 2, 6)
        done.result()
        assert await done == 64

    with plait.ThreadPool(3) as pool, asyncio.Runner(loop_factory=any_loop_factory) as runner:
        runner.run(main(pool))


def test_as_default_executor(any_loop_factory: Any) -> None:
    async def main() -> tuple[int, str]:
        asyncio.get_running_loop().set_default_executor(
            plait.ThreadPool(2, thread_name_prefix="mine")
        )
        name = await asyncio.to_thread(lambda: threading.current_thread().name)
        return await asyncio.to_thread(pow, 2, 3), name

    with asyncio.Runner(loop_factory=any_loop_factory) as runner:
        assert runner.run(main()) == (8, "mine_0")


def test_the_default_executor_of_a_loop_leaves_running_tasks_alone(loop: Any) -> None:
    gate = Gate()
    flags: list[bool] = []

    def task() -> None:
        gate()
        flags.append(plait.stop_requested())

    async def main() -> None:
        name = await asyncio.to_thread(lambda: threading.current_thread().name)
        assert name == "asyncio_0"
        future = loop.run_in_executor(None, task)
        await loop.run_in_executor(None, gate.begun.wait, 60)
        future.cancel()
        with pytest.raises(asyncio.CancelledError):
            await future
        await asyncio.sleep(0)  # the task hears of it
        gate.go.set()
        await loop.shutdown_default_executor()
        with pytest.raises(RuntimeError, match="Executor shutdown has been called"):
            await loop.run_in_executor(None, int)

    loop.run_until_complete(main())
    assert flags == [True]


def test_a_loop_is_not_blocked_by_the_bound(loop: Any) -> None:
    gate = Gate()

    async def main(pool: plait.ThreadPool) -> list[Any]:
        first = loop.run_in_executor(pool, gate)
        waiting = [loop.run_in_executor(pool, pow, 2, n) for n in range(5)]
        gate.go.set()
        await first
        return await asyncio.gather(*waiting)

    with plait.ThreadPool(1, max_pending=1) as pool:
        assert loop.run_until_complete(main(pool)) == [1, 2, 4, 8, 16]


@pytest.mark.parametrize("when_full", ["block", "raise", "await"])
def test_submit_in_a_loop_does_not_block(when_full: str) -> None:
    gate = Gate()

    async def main(pool: plait.ThreadPool) -> None:
        first = await pool.submit_soon(gate)
        await asyncio.to_thread(gate.begun.wait)
        second = pool.submit(pow, 2, 1)
        with pytest.raises(plait.PoolFull):
            pool.submit(pow, 2, 2)
        soon = [asyncio.ensure_future(pool.submit_soon(pow, 2, n)) for n in range(20)]
        soon[7].cancel()
        await asyncio.sleep(0)
        assert not any(job.done() for job in soon if job is not soon[7])
        gate.go.set()
        del soon[7]
        futures = await asyncio.gather(*soon)
        assert [await asyncio.wrap_future(f) for f in futures] == [
            2**n for n in range(20) if n != 7
        ]
        assert await asyncio.wrap_future(second) == 2
        await asyncio.wrap_future(first)

    with plait.ThreadPool(1, max_pending=1, when_full=when_full) as pool:
        asyncio.run(asyncio.wait_for(main(pool), 60))


def test_cancelling_the_coroutine_stops_the_task(any_loop_factory: Any) -> None:
    begun = threading.Event()
    ended: list[str] = []

    def task() -> None:
        try:
            while True:
                begun.set()
        except plait.TaskStopped:
            ended.append("stopped")
            raise

    async def main(pool: plait.ThreadPool) -> None:
        future = pool.submit(task)

        async def wait() -> None:
            await future

        waiting = asyncio.ensure_future(wait())
        await asyncio.get_running_loop().run_in_executor(None, begun.wait)
        await asyncio.sleep(0)  # it may have been over at once: `waiting` begins to wait
        waiting.cancel()
        with pytest.raises(asyncio.CancelledError):
            await waiting
        with pytest.raises(asyncio.CancelledError):
            await future

    with plait.ThreadPool(1) as pool:
        with asyncio.Runner(loop_factory=any_loop_factory) as runner:
            runner.run(main(pool))
        assert ended == ["stopped"]


def test_two_loops_wait_for_one_task() -> None:
    gate = Gate()
    results: list[int] = []
    with plait.ThreadPool(1) as pool:
        future = pool.submit(gate, 5)

        async def wait() -> None:
            results.append(await future)

        threads = [threading.Thread(target=plait.run, args=(wait(),)) for _ in range(2)]
        for thread in threads:
            thread.start()
        assert gate.begun.wait(60)
        gate.go.set()
        for thread in threads:
            thread.join()
    assert results == [5, 5]


# ---- the end


def test_shutdown_does_what_was_submitted() -> None:
    gate = Gate()
    pool = plait.ThreadPool(1)
    futures = [pool.submit(gate, 0)] + [pool.submit(int, n) for n in range(10)]
    pool.shutdown(wait=False)
    with pytest.raises(RuntimeError, match="after shutdown"):
        pool.submit(int)
    gate.go.set()
    pool.shutdown()
    assert all(future.done() for future in futures)
    assert futures[10].result() == 9
    pool.shutdown()  # again is allowed


def test_shutdown_cancels_what_waits() -> None:
    gate = Gate()
    pool = plait.ThreadPool(1)
    first = pool.submit(gate, "done")
    assert gate.begun.wait(60)
    waiting = [pool.submit(int) for _ in range(5)]
    pool.shutdown(wait=False, cancel_futures=True)
    assert all(future.cancelled() for future in waiting)
    assert waiting[0].stopped == "queued"
    gate.go.set()
    pool.shutdown()
    assert first.result() == "done"


def test_shutdown_returns_in_time_and_names_what_runs_on() -> None:
    locks = [threading.Lock() for _ in range(2)]
    for lock in locks:
        lock.acquire()
    pool = plait.ThreadPool(2)
    stuck = pool.options(name="stuck").submit(locks[0].acquire)
    waiting = [pool.submit(locks[1].acquire), pool.submit(int)]
    until(lambda: pool.statistics().running == 2)
    before = time.monotonic()
    with pytest.warns(RuntimeWarning, match="asked to stop: stuck, .*acquire|acquire, stuck"):
        pool.shutdown(timeout=0.05)
    assert time.monotonic() - before < 60
    assert waiting[1].cancelled()
    assert stuck.running()
    assert all(thread.stopping for thread in pool.statistics().threads)
    locks[0].release()
    with pytest.raises(concurrent.futures.CancelledError):
        stuck.result(60)
    locks[1].release()
    pool.shutdown()
    assert stuck.cancelled()
    assert stuck.stopped is None  # nothing was raised in it: it came back by itself


def test_shutdown_by_a_task_of_the_pool() -> None:
    pool = plait.ThreadPool(2)
    pool.submit(pool.shutdown).result(60)
    pool.shutdown()


def test_a_dropped_pool_does_its_work_and_ends() -> None:
    gate = Gate()
    pool = plait.ThreadPool(2)
    threads = pool._threads
    futures = [pool.submit(gate, n) for n in range(4)]
    threads = pool._threads
    gone = weakref.ref(pool)
    del pool
    gc.collect()
    assert gone() is None
    gate.go.set()
    assert [future.result() for future in futures] == [0, 1, 2, 3]
    for thread in threads:
        thread.join(60)
        assert not thread.is_alive()


def test_with_block_left_by_an_interrupt() -> None:
    lock = threading.Lock()
    lock.acquire()
    waiting: list[Any] = []

    def interrupted() -> None:
        with plait.ThreadPool(1) as pool:
            running = pool.submit(lock.acquire)
            waiting.append(pool.submit(int))
            until(running.running)
            waiting[0].add_done_callback(lambda _: lock.release())
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        interrupted()
    assert waiting[0].cancelled()


def test_an_interrupt_while_a_thread_starts(monkeypatch: pytest.MonkeyPatch) -> None:
    start = threading.Thread.start

    def interrupted_before(self: threading.Thread) -> None:
        raise KeyboardInterrupt

    def interrupted_after(self: threading.Thread) -> None:
        start(self)
        raise KeyboardInterrupt

    done = threading.Event()
    with plait.ThreadPool(1) as pool:
        with monkeypatch.context() as patch:
            patch.setattr(threading.Thread, "start", interrupted_before)
            with pytest.raises(KeyboardInterrupt):
                pool.submit(done.set)
        assert pool.statistics().queued == 0
        assert pool.statistics().submitted == 0
        with monkeypatch.context() as patch:
            patch.setattr(threading.Thread, "start", interrupted_after)
            with pytest.raises(KeyboardInterrupt):
                pool.submit(done.wait, 0.01)
        # The thread that came is the pool's, and its only one.
        assert pool.submit(pow, 2, 3).result(60) == 8
        assert len(pool.statistics().threads) == 1
    assert not done.is_set()


@pytest.mark.skipif(
    sys.version_info < (3, 12), reason="3.11 can hang in itself when a trace function raises"
)
def test_an_interrupt_at_any_line_of_a_start_costs_no_thread() -> None:
    def submit_interrupted_at(step: int, pool: plait.ThreadPool) -> bool:
        left = step
        code = _threads._start_thread.__code__
        inside = False

        def trace(frame: FrameType, event: str, arg: Any) -> Any:
            nonlocal left, inside
            inside = inside or frame.f_code is code
            # What threading does itself is not proof against interrupts everywhere.
            if not inside or left < 0 or frame.f_code.co_filename != _threads.__file__:
                return None
            left -= 1
            if left < 0:
                raise KeyboardInterrupt
            return trace

        sys.settrace(trace)
        try:
            pool.submit(int).result(60)
        except KeyboardInterrupt:
            return True
        finally:
            sys.settrace(None)
        return left < 0

    for step in itertools.count():
        with plait.ThreadPool(1) as pool:
            interrupted = submit_interrupted_at(step, pool)
            assert pool.submit(pow, 2, 3).result(60) == 8, step
            assert len(pool.statistics().threads) == 1, step
            until(lambda pool=pool: len(pool._threads) == 1)
        if not interrupted:
            break
    assert step > 10


def test_a_thread_that_comes_when_there_are_to_be_fewer(monkeypatch: pytest.MonkeyPatch) -> None:
    start = threading.Thread.start
    with plait.ThreadPool(3) as pool:
        gates = [Gate() for _ in range(2)]
        futures: list[Any] = [pool.submit(gate) for gate in gates]
        for gate in gates:
            assert gate.begun.wait(60)

        def resized(self: threading.Thread) -> None:
            pool.resize(1)
            start(self)

        with monkeypatch.context() as patch:
            patch.setattr(threading.Thread, "start", resized)
            futures.append(pool.submit(pow, 2, 3))
        until(lambda: len(pool._threads) == 2)
        for gate in gates:
            gate.go.set()
        assert futures[2].result(60) == 8


def test_shutdown_while_a_thread_is_being_started(monkeypatch: pytest.MonkeyPatch) -> None:
    start = threading.Thread.start
    starting, go = threading.Event(), threading.Event()

    def slow(self: threading.Thread) -> None:
        if isinstance(self, _threads._Thread):
            starting.set()
            assert go.wait(60)
        start(self)

    pool = plait.ThreadPool(1)
    futures: list[Any] = []
    with monkeypatch.context() as patch:
        patch.setattr(threading.Thread, "start", slow)
        other = threading.Thread(target=lambda: futures.append(pool.submit(pow, 2, 3)))
        other.start()
        assert starting.wait(60)
        pool.shutdown(timeout=0.0)
        closer = threading.Thread(target=pool.shutdown)
        closer.start()
        go.set()
        closer.join(60)
        assert not closer.is_alive()
    other.join(60)
    assert futures[0].cancelled()


@pytest.mark.isolated
def test_interpreter_exit_waits_for_tasks() -> None:
    done = run_script("threads_exit.py", "wait")
    assert (done.stdout, done.stderr, done.returncode) == ("begun\nended\n", "", 0)


@pytest.mark.isolated
def test_interpreter_exit_leaves_a_daemons_tasks() -> None:
    done = run_script("threads_exit.py", "daemon")
    assert (done.stdout, done.stderr, done.returncode) == ("begun\n", "", 0)


@pytest.mark.isolated
@pytest.mark.parametrize("how", ["with", "plain"])
def test_ctrl_c_ends_the_program_whatever_runs(how: str) -> None:
    with subprocess.Popen(
        [sys.executable, str(ISOLATED / "threads_interrupted.py"), how],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    ) as process:
        assert process.stdout is not None
        assert process.stdout.readline() == "running\n"
        process.send_signal(signal.SIGINT)
        out, err = process.communicate(timeout=60)
    assert process.returncode == -signal.SIGINT
    assert err.strip().splitlines()[-1].startswith("KeyboardInterrupt")
    assert "Fatal" not in err
    assert out == ""


@pytest.mark.isolated
def test_fork_detaches_the_childs_copy() -> None:
    done = run_script("threads_fork.py")
    assert done.stderr == ""
    assert done.stdout.splitlines() == [
        "submit: this pool belongs to the parent process: make a new one after fork",
        "result: this pool belongs to the parent process: make a new one after fork",
        "cancel: False",
        "new pool: 8",
        "shutdown",
        "child: 0",
        "child of a task: 0",
        "parent: 16",
    ]


def test_statistics() -> None:
    gate = Gate()
    with plait.ThreadPool(2) as pool:
        pool.submit(divmod, 1, 0).exception()
        first = pool.submit(gate)
        assert gate.begun.wait(60)
        second = pool.submit(gate)
        until(lambda: pool.statistics().running == 2)
        third = pool.submit(int)
        now = pool.statistics()
        assert (now.workers, now.queued, now.running) == (2, 1, 2)
        assert (now.submitted, now.done, now.failed) == (4, 1, 1)
        assert all(t.seconds >= 0 and t.task is not None for t in now.threads)
        assert third.cancel()
        gate.go.set()
        concurrent.futures.wait([first, second])
        until(lambda: pool.statistics().running == 0)
        now = pool.statistics()
        assert (now.done, now.cancelled, now.timed_out) == (3, 1, 0)
        assert sum(t.done for t in now.threads) == 3
        assert 0 < now.run_time.p50 <= now.run_time.p95 <= now.run_time.p99
        assert 0 < now.queue_wait.p50 <= now.queue_wait.p99
        with pytest.raises(AttributeError):
            now.done = 5  # type: ignore[misc]
