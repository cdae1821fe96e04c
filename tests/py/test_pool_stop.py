"""Stopping what a process pool runs: cancel, timeouts, the end of the pool."""

from __future__ import annotations

import asyncio
import concurrent.futures
import os
import pathlib
import pickle
import signal
import subprocess
import sys
import threading
from collections.abc import Callable, Iterator
from typing import Any

import pool_tasks as tasks
import pytest
from pool_gate import Gate
from until import until, wait_for_end

import plait

TIMEOUT = 100.0


@pytest.fixture
def pool() -> Iterator[plait.ProcessPool]:
    # Nothing that an exception stops is killed, however busy the machine.
    with plait.ProcessPool(2, grace=TIMEOUT) as pool:
        yield pool
        pool.shutdown(timeout=TIMEOUT)


@pytest.fixture
def impatient() -> Iterator[plait.ProcessPool]:
    """A pool for what must be killed."""
    with plait.ProcessPool(2, grace=0.3) as pool:
        yield pool
        pool.shutdown(timeout=TIMEOUT)


def wait_for_file(path: pathlib.Path) -> str:
    until(path.exists, TIMEOUT)
    return path.read_text()


STOPPABLE = [
    (tasks.sleep_long, "exception"),
    (tasks.spin_long, "exception"),
    (tasks.result_sleeps_in_pickle, "exception"),
    (tasks.ignore_stop, "killed"),
    (tasks.hang_in_c, "killed"),
]


# ---- cancel ------------------------------------------------------------------------


@pytest.fixture
def fitting(request: pytest.FixtureRequest, how: str) -> plait.ProcessPool:
    """The pool for tasks that end in the manner of the test's parameter."""
    fitting: plait.ProcessPool = request.getfixturevalue("impatient" if how == "killed" else "pool")
    return fitting


@pytest.mark.parametrize(("fn", "how"), STOPPABLE)
def test_cancel_of_a_running_task(
    fitting: plait.ProcessPool, tmp_path: pathlib.Path, fn: Callable[..., Any], how: str
) -> None:
    pool = fitting
    here = tmp_path / "here"
    future = pool.submit(fn, str(here))
    pid = int(wait_for_file(here))
    assert future.running()
    assert future.cancel()
    with pytest.raises(concurrent.futures.CancelledError):
        future.result(TIMEOUT)
    assert future.cancelled()
    assert future.stopped == how
    assert future.cancel()
    # The next tasks are not hit, and the worker is the same unless it had to be killed.
    pids = {pool.submit(tasks.pid).result(TIMEOUT) for _ in range(50)}
    if how == "killed":
        assert pid not in pids


def test_cancel_while_the_arguments_are_unpickled(
    pool: plait.ProcessPool, tmp_path: pathlib.Path
) -> None:
    here = tmp_path / "here"
    future = pool.submit(tasks.echo, tasks.SleepsInUnpickle(str(here)))
    wait_for_file(here)
    assert future.cancel()
    assert concurrent.futures.wait([future], TIMEOUT).done == {future}
    assert future.stopped == "exception"


def test_a_task_may_clean_up(pool: plait.ProcessPool, tmp_path: pathlib.Path) -> None:
    here, told = tmp_path / "here", tmp_path / "told"
    future = pool.submit(tasks.stop_slowly, str(here), str(told))
    wait_for_file(here)
    assert future.cancel()
    with pytest.raises(concurrent.futures.CancelledError):
        future.result(TIMEOUT)
    assert told.exists()


def test_a_task_that_goes_on_is_cancelled_all_the_same(
    pool: plait.ProcessPool, tmp_path: pathlib.Path
) -> None:
    here = tmp_path / "here"
    future = pool.submit(tasks.return_when_stopped, str(here))
    wait_for_file(here)
    assert future.cancel()
    with pytest.raises(concurrent.futures.CancelledError):
        future.result(TIMEOUT)
    assert future.stopped is None  # it came to its end by itself


def test_a_finished_task_is_not_changed(pool: plait.ProcessPool) -> None:
    future = pool.submit(tasks.plus_one, 1)
    assert future.result(TIMEOUT) == 2
    assert not future.cancel()
    assert future.stopped is None


def test_cancel_never_hits_the_next_task(pool: plait.ProcessPool) -> None:
    """Requests that come late: every task but the cancelled ones has its result."""
    for _ in range(20):
        futures = [pool.submit(tasks.plus_one, i) for i in range(100)]
        cancelled = {i for i in range(0, 100, 3) if futures[i].cancel()}
        for i, future in enumerate(futures):
            if i in cancelled:
                with pytest.raises(concurrent.futures.CancelledError):
                    future.result(TIMEOUT)
            else:
                assert future.result(TIMEOUT) == i + 1


def test_a_stack_is_not_taken_for_that_of_a_later_task(pool: plait.ProcessPool) -> None:
    for _ in range(2):  # one for each worker, at least
        with pytest.raises(plait.TaskTimeout):
            pool.options(timeout=0.05).submit(tasks.burn, 600.0).result(TIMEOUT)
    for _ in range(4):
        with pytest.raises(plait.WorkerDied) as caught:
            pool.submit(os._exit, 3).result(TIMEOUT)
        assert caught.value.stack is None


FLOOD = """
import os, signal, sys
print("on", flush=True)
try:
    while True:
        for _ in range(1000):
            pass
        os.kill(int(sys.argv[1]), signal.SIGURG)
except ProcessLookupError:
    pass
"""


def test_spurious_signals_stop_nothing() -> None:
    """A stranger's signals, without end, from a worker's birth on: no task notices."""
    with plait.ProcessPool(1) as pool:
        first = pool.submit(os.getpid)
        (worker,) = pool._seats.values()
        while worker.pid == 0:
            pool._on_control()
        with subprocess.Popen(
            [sys.executable, "-S", "-c", FLOOD, str(worker.pid)], stdout=subprocess.PIPE
        ) as flood:
            assert flood.stdout is not None
            try:
                assert first.result(TIMEOUT) == worker.pid
                assert flood.stdout.readline() == b"on\n"
                for _ in range(16):
                    assert pool.submit(tasks.call_a_lot).result(TIMEOUT) == worker.pid
            finally:
                flood.kill()


@pytest.mark.parametrize("factory", [asyncio.new_event_loop, plait.new_event_loop])
def test_cancelling_an_await_stops_the_task(
    pool: plait.ProcessPool, tmp_path: pathlib.Path, factory: Any
) -> None:
    here = tmp_path / "here"

    async def main() -> None:
        future = pool.submit(tasks.sleep_long, str(here))
        wait_for_file(here)
        with pytest.raises(TimeoutError):
            async with asyncio.timeout(0.01):
                await future
        assert await asyncio.to_thread(concurrent.futures.wait, [future], TIMEOUT)
        assert future.cancelled()
        assert future.stopped == "exception"
        assert await pool.submit(tasks.plus_one, 1) == 2

    with asyncio.Runner(loop_factory=factory) as runner:
        runner.run(asyncio.wait_for(main(), TIMEOUT))


def test_callbacks_hear_of_the_stop(impatient: plait.ProcessPool, tmp_path: pathlib.Path) -> None:
    pool = impatient
    here = tmp_path / "here"
    ended = threading.Event()
    future = pool.submit(tasks.hang_in_c, str(here))
    future.add_done_callback(lambda f: ended.set())
    wait_for_file(here)
    assert future.cancel()
    assert ended.wait(TIMEOUT)
    assert future.stopped == "killed"


def test_children_of_a_killed_worker_die(pool: plait.ProcessPool, tmp_path: pathlib.Path) -> None:
    here = tmp_path / "here"
    future = pool.submit(tasks.with_child, str(here))
    worker = int(wait_for_file(here))
    child = os.pidfd_open(int(wait_for_file(tmp_path / "here.child")))
    os.kill(worker, signal.SIGKILL)
    assert isinstance(future.exception(TIMEOUT), plait.WorkerDied)
    wait_for_end(child)


# ---- timeouts ----------------------------------------------------------------------


@pytest.mark.parametrize(("fn", "how"), STOPPABLE)
def test_timeout(
    fitting: plait.ProcessPool, tmp_path: pathlib.Path, fn: Callable[..., Any], how: str
) -> None:
    pool = fitting
    limit = 0.25
    begun = False
    while not begun:  # the worker imports this module first, which can take longer
        limit *= 2
        future = pool.options(timeout=limit).submit(fn, str(tmp_path / "here"))
        error = future.exception(TIMEOUT)
        assert isinstance(error, plait.TaskTimeout)
        begun = (tmp_path / "here").exists()
    assert isinstance(error, TimeoutError)
    assert isinstance(error, plait.PlaitError)
    assert (error.task, error.timeout) == (fn.__name__, limit)
    assert future.stopped == how
    if how == "killed":
        assert error.stack is not None
        assert fn.__name__ in error.stack
        assert fn.__name__ in str(error)
    else:
        assert isinstance(error.__cause__, plait.TaskStopped)
        assert f"in {'spin_long' if fn is tasks.spin_long else 'sleep_long'}" in str(
            error.__cause__.__cause__
        )
    assert pool.submit(tasks.plus_one, 1).result(TIMEOUT) == 2
    copy = pickle.loads(pickle.dumps(error))
    assert str(copy) == str(error)


def test_time_in_the_queue_does_not_count(
    pool: plait.ProcessPool, gate: Gate, tmp_path: pathlib.Path
) -> None:
    held = gate.hold(pool, 2)
    futures = [pool.options(timeout=TIMEOUT).submit(tasks.plus_one, i) for i in range(20)]
    short = [pool.options(timeout=0.5).submit(tasks.noop) for _ in range(20)]
    with plait.ProcessPool(1) as other:  # meanwhile their time passes, and more
        late = other.options(timeout=0.7).submit(tasks.spin_long, str(tmp_path / "late"))
        assert isinstance(late.exception(TIMEOUT), plait.TaskTimeout)
    gate.open()
    # A task may lose its core for half a second; but not all of them.
    assert None in [future.exception(TIMEOUT) for future in short]
    assert [f.result(TIMEOUT) for f in futures] == list(range(1, 21))
    assert all(f.result(TIMEOUT) > 0 for f in held)


def test_stack_of_an_earlier_task_is_not_told() -> None:
    """A task that was asked for its stack may end by itself after all, and its worker live on."""
    # Within this grace no busy machine has the worker asked for its stack.
    with plait.ProcessPool(1, grace=TIMEOUT) as pool:
        stopped, limit = None, 0.1
        while stopped != "killed":  # it may have been stopped before its first line
            limit *= 2
            pool.submit(tasks.noop).result(TIMEOUT)
            (worker,) = pool._seats.values()
            os.write(worker.stackfd, b'Stack:\n  File "old.py", line 1 in earlier\n')
            future = pool.options(timeout=limit).submit(tasks.exit_when_stopped)
            with pytest.raises(plait.TaskTimeout) as told:
                future.result(TIMEOUT)
            stopped = future.stopped
        assert told.value.stack is None


def test_timeouts_need_nobody_who_waits(
    impatient: plait.ProcessPool, tmp_path: pathlib.Path
) -> None:
    """Nobody waits for the first tasks: others run all the same once they are stopped."""
    pool = impatient
    for i in range(2):
        pool.options(timeout=0.05).submit(tasks.hang_in_c, str(tmp_path / f"hang{i}"))
    pool.submit(tasks.announce, str(tmp_path / "after"))
    wait_for_file(tmp_path / "after")


def test_no_import_is_cut_in_half(tmp_path: pathlib.Path) -> None:
    """A stop waits for the end of an import: the next task finds whole modules."""
    (tmp_path / "takes_its_time.py").write_text(
        "import pathlib, time\n"
        f"pathlib.Path({str(tmp_path / 'here')!r}).touch()\n"
        "end = time.monotonic() + 0.3\n"
        "while time.monotonic() < end: pass\n"
        "VALUE = 42\n"
    )
    with plait.ProcessPool(1, grace=TIMEOUT) as pool:
        future = pool.submit(tasks.import_then_sleep, str(tmp_path), "takes_its_time")
        wait_for_file(tmp_path / "here")
        assert future.cancel()
        with pytest.raises(concurrent.futures.CancelledError):
            future.result(TIMEOUT)
        assert future.stopped == "exception"
        assert pool.submit(tasks.value_of, "takes_its_time").result(TIMEOUT) == 42


def test_map_with_options(pool: plait.ProcessPool, tmp_path: pathlib.Path) -> None:
    options = pool.options(timeout=TIMEOUT)
    assert list(options.map(tasks.plus_one, range(10), chunksize=3)) == list(range(1, 11))
    with pytest.raises(plait.TaskTimeout):
        list(pool.options(timeout=0.1).map(tasks.sleep_long, [str(tmp_path / "here")]))


def test_long_timeouts_keep_no_futures(pool: plait.ProcessPool) -> None:
    options = pool.options(timeout=3600.0)
    for _ in range(20):
        for future in [options.submit(tasks.noop) for _ in range(200)]:
            future.result(TIMEOUT)
    assert len(pool._watchdog._heap) < 1000


@pytest.mark.parametrize(
    ("kwargs", "error"),
    [
        ({"timeout": 0}, ValueError),
        ({"timeout": -1.0}, ValueError),
        ({"timeout": float("nan")}, ValueError),
        ({"timeout": "1"}, TypeError),
        ({"retries": -1}, ValueError),
        ({"retries": 1.5}, TypeError),
        ({"priority": 1.5}, TypeError),
        ({"priority": 2**40}, ValueError),
        ({"name": 3}, TypeError),
    ],
)
def test_bad_options_are_named(
    pool: plait.ProcessPool, kwargs: dict[str, Any], error: type[Exception]
) -> None:
    with pytest.raises(error, match=next(iter(kwargs))):
        pool.options(**kwargs)


# ---- tries -------------------------------------------------------------------------


def test_retries_after_deaths(pool: plait.ProcessPool, tmp_path: pathlib.Path) -> None:
    path = str(tmp_path / "tries")
    assert pool.options(retries=3).submit(tasks.die_then, path, 2).result(TIMEOUT) == 3
    future = pool.options(retries=1, name="deadly").submit(tasks.die_then, path, 99)
    error = future.exception(TIMEOUT)
    assert isinstance(error, plait.WorkerDied)
    assert error.task == "deadly"
    assert "deadly" in str(error)
    assert os.path.getsize(path) == 5


def test_retries_after_exceptions(pool: plait.ProcessPool, tmp_path: pathlib.Path) -> None:
    path = str(tmp_path / "tries")
    assert pool.options(retries=3).submit(tasks.raise_then, path, 2).result(TIMEOUT) == 3
    future = pool.options(retries=2).submit(tasks.raise_then, path, 99)
    error = future.exception(TIMEOUT)
    assert isinstance(error, ValueError)
    assert str(error) == "try 6"
    future = pool.options(retries=2).submit(tasks.system_exit)
    assert isinstance(future.exception(TIMEOUT), SystemExit)  # no Exception: not tried again


def test_tries_go_on_while_nobody_waits(pool: plait.ProcessPool, tmp_path: pathlib.Path) -> None:
    path = tmp_path / "tries"
    future = pool.options(retries=3).submit(tasks.raise_then, str(path), 2)
    until(lambda: path.exists() and path.stat().st_size == 3)
    assert future.result(TIMEOUT) == 3


def test_what_waits_for_its_next_try_can_be_cancelled(
    pool: plait.ProcessPool, tmp_path: pathlib.Path
) -> None:
    path = tmp_path / "tries"
    future = pool.options(retries=1000).submit(tasks.raise_then, str(path), 10**6)
    while not path.exists() or path.stat().st_size < 6:
        concurrent.futures.wait([future], 0.01)
    # Too late for an attempt that has just ended; but there is none after it.
    expected = concurrent.futures.CancelledError if future.cancel() else ValueError
    with pytest.raises(expected):
        future.result(TIMEOUT)
    assert pool.submit(tasks.plus_one, 1).result(TIMEOUT) == 2


# ---- priorities --------------------------------------------------------------------


def test_priorities(pool: plait.ProcessPool, gate: Gate, tmp_path: pathlib.Path) -> None:
    held = gate.hold(pool, 2)
    log = str(tmp_path / "log")
    futures = []
    order = [0, 5, -3, 0, 9, 5, -3, 0, 1]
    with plait.ProcessPool(1) as single:
        (first,) = gate.hold(single)
        for i, priority in enumerate(order):
            futures.append(single.options(priority=priority).submit(tasks.write_line, log, str(i)))
        gate.open()
        assert first.result(TIMEOUT) > 0
        for future in futures:
            future.result(TIMEOUT)
    lines = [int(line) for line in pathlib.Path(log).read_text().split()]
    assert lines == sorted(range(len(order)), key=lambda i: (-order[i], i))
    assert all(f.result(TIMEOUT) > 0 for f in held)


def test_priorities_among_thousands(pool: plait.ProcessPool, gate: Gate) -> None:
    gate.hold(pool, 2)
    plain = [pool.submit(tasks.plus_one, i) for i in range(2500)]
    urgent = [pool.options(priority=i % 7 - 3).submit(tasks.plus_one, i) for i in range(1000)]
    for future in [*plain[::5], *urgent[::5]]:
        assert future.cancel()
    gate.open()
    for futures in (plain, urgent):
        for i, future in enumerate(futures):
            if i % 5 == 0:
                assert future.cancelled()
            else:
                assert future.result(TIMEOUT) == i + 1


# ---- the end of the pool -----------------------------------------------------------


def test_shutdown_with_a_timeout(tmp_path: pathlib.Path) -> None:
    pool = plait.ProcessPool(2)
    done = pool.submit(tasks.plus_one, 1)
    assert done.result(TIMEOUT) == 2
    running = [pool.submit(tasks.hang_in_c, str(tmp_path / f"here{i}")) for i in range(2)]
    pids = [os.pidfd_open(int(wait_for_file(tmp_path / f"here{i}"))) for i in range(2)]
    queued = [pool.submit(tasks.plus_one, i) for i in range(3000)]
    pool.shutdown(timeout=0.05)
    assert all(f.cancelled() for f in running + queued)
    assert {f.stopped for f in running} == {"killed"}
    assert {f.stopped for f in queued} == {"queued"}
    assert done.result() == 2
    for fd in pids:
        wait_for_end(fd)


def test_shutdown_with_a_timeout_in_the_background(tmp_path: pathlib.Path) -> None:
    pool = plait.ProcessPool(1)
    running = pool.submit(tasks.hang_in_c, str(tmp_path / "here"))
    wait_for_file(tmp_path / "here")
    pool.shutdown(wait=False, timeout=0.05)
    assert not running.done()
    assert concurrent.futures.wait([running], TIMEOUT).done
    assert running.stopped == "killed"


def test_shutdown_refuses_a_negative_timeout(pool: plait.ProcessPool) -> None:
    with pytest.raises(ValueError, match="timeout"):
        pool.shutdown(timeout=-1)


def test_shutdown_in_time_does_everything() -> None:
    pool = plait.ProcessPool(2)
    futures = [pool.submit(tasks.plus_one, i) for i in range(2000)]
    pool.shutdown(timeout=TIMEOUT)
    assert [f.result(0) for f in futures] == list(range(1, 2001))


def test_shutdown_after_an_interrupt_waits_for_nobody(tmp_path: pathlib.Path) -> None:
    """As a fixture's pool meets it: the interrupt is handled before the pool is ended."""
    pool = plait.ProcessPool(1)
    future = pool.submit(tasks.sleep_long, str(tmp_path / "here"))
    wait_for_file(tmp_path / "here")

    def interrupt() -> None:
        os.kill(os.getpid(), signal.SIGINT)

    with pytest.raises(KeyboardInterrupt):  # noqa: PT012
        threading.Timer(0.05, interrupt).start()
        future.result(TIMEOUT)
    pool.shutdown()
    assert future.cancelled()


def test_an_interrupted_shutdown_ends_everything(tmp_path: pathlib.Path) -> None:
    pool = plait.ProcessPool(1)
    future = pool.submit(tasks.hang_in_c, str(tmp_path / "here"))
    child = os.pidfd_open(int(wait_for_file(tmp_path / "here")))
    main = threading.get_ident()

    def interrupt() -> None:
        until(lambda: pool._closed)  # so it is in there
        signal.pthread_kill(main, signal.SIGINT)

    thread = threading.Thread(target=interrupt)
    with pytest.raises(KeyboardInterrupt):  # noqa: PT012
        thread.start()
        pool.shutdown()
    thread.join()
    assert future.cancelled()
    wait_for_end(child)


# ---- the end by force ----------------------------------------------------------------


@pytest.mark.parametrize(
    ("end", "number"),
    [
        (plait.ProcessPool.terminate_workers, signal.SIGTERM),
        (plait.ProcessPool.kill_workers, signal.SIGKILL),
    ],
)
def test_workers_are_ended_by_force(
    end: Callable[[plait.ProcessPool], None], number: int, tmp_path: pathlib.Path
) -> None:
    with plait.ProcessPool(1) as pool:
        running = pool.options(retries=3).submit(tasks.sleep_long, str(tmp_path / "here"))
        waiting = [pool.submit(tasks.plus_one, i) for i in range(10)]
        fd = os.pidfd_open(int(wait_for_file(tmp_path / "here")))
        end(pool)
        with pytest.raises(RuntimeError, match="after shutdown"):
            pool.submit(tasks.plus_one, 1)
        error = running.exception(TIMEOUT)
        assert isinstance(error, plait.WorkerDied)
        assert error.signal == number
        assert all(future.cancelled() for future in waiting)
        wait_for_end(fd)
        end(pool)  # once more, while it ends
    end(pool)  # and afterwards


@pytest.mark.parametrize("end", ["terminate_workers", "kill_workers"])
def test_ending_by_force_what_has_not_begun(end: str) -> None:
    pool = plait.ProcessPool(2)
    getattr(pool, end)()
    pool.shutdown()
    assert pool.statistics().workers == ()
