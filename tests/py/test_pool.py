"""The process pool as an Executor: results, errors, deaths, cancelling, ending."""

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
from conftest import open_fds
from pool_gate import Gate
from until import until, wait_for_end

import plait

TIMEOUT = 100.0
ISOLATED = pathlib.Path(__file__).parent.parent / "isolated"


@pytest.fixture(scope="module")
def shared() -> Iterator[plait.ProcessPool]:
    with plait.ProcessPool(2) as pool:
        yield pool


@pytest.fixture
def pool() -> Iterator[plait.ProcessPool]:
    with plait.ProcessPool(2) as pool:
        yield pool


# ---- values ------------------------------------------------------------------------


@pytest.mark.parametrize(
    "value",
    [
        None,
        True,
        False,
        0,
        -1,
        2**63 - 1,
        -(2**63),
        2**64,
        1.5,
        float("inf"),
        "",
        "käse",
        "x" * 127,
        "x" * 5000,
        "\ud800",
        b"",
        b"x" * 512,
        b"x" * 513,
        b"y" * 100_000,
        bytearray(b"z" * 100),
        bytearray(b"z" * 100_000),
        [1, 2, {"a": (3, 4)}],
        list(range(10_000)),
        range(5),
    ],
    ids=lambda v: f"{type(v).__name__}-{len(v) if hasattr(v, '__len__') else v}",
)
def test_values_survive_the_trip(shared: plait.ProcessPool, value: Any) -> None:
    result = shared.submit(tasks.echo, value).result(TIMEOUT)
    assert result == value
    assert type(result) is type(value)


def test_arguments_arrive(shared: plait.ProcessPool) -> None:
    args = tuple(range(20))
    assert shared.submit(tasks.both, *args).result(TIMEOUT) == (args, {})
    assert shared.submit(tasks.both, 1, b=2, c=[3]).result(TIMEOUT) == ((1,), {"b": 2, "c": [3]})
    assert shared.submit(tasks.both).result(TIMEOUT) == ((), {})


def test_isinstance_of_the_standard_future(shared: plait.ProcessPool) -> None:
    future = shared.submit(tasks.noop)
    assert isinstance(future, concurrent.futures.Future)
    assert isinstance(shared, concurrent.futures.Executor)
    assert future.result(TIMEOUT) is None
    assert "finished" in repr(future)


@pytest.mark.parametrize("n", [1, 999, 1024, 1025, 5000])
def test_more_tasks_than_the_board_holds(shared: plait.ProcessPool, n: int) -> None:
    futures = [shared.submit(tasks.plus_one, i) for i in range(n)]
    assert [f.result(TIMEOUT) for f in futures] == list(range(1, n + 1))


def test_backlog_drains_although_nobody_waits(pool: plait.ProcessPool) -> None:
    done = threading.Event()
    futures = [pool.submit(tasks.plus_one, i) for i in range(4000)]
    futures[-1].add_done_callback(lambda _: done.set())
    assert done.wait(TIMEOUT)
    assert futures[3999].result() == 4000


@pytest.mark.parametrize("chunksize", [1, 7, 1000])
def test_map(shared: plait.ProcessPool, chunksize: int) -> None:
    assert list(shared.map(tasks.plus_one, range(2500), chunksize=chunksize)) == list(
        range(1, 2501)
    )
    assert list(shared.map(pow, range(20), range(30), chunksize=chunksize)) == [
        a**b for a, b in zip(range(20), range(30), strict=False)
    ]


def test_map_takes_an_endless_iterable_with_a_buffer(shared: plait.ProcessPool) -> None:
    import itertools

    results = shared.map(tasks.plus_one, itertools.count(), buffersize=8)
    assert list(itertools.islice(results, 100)) == list(range(1, 101))


def test_map_raises_in_its_place(shared: plait.ProcessPool) -> None:
    results = shared.map(int, ["1", "2", "x", "4"])
    assert next(results) == 1
    assert next(results) == 2
    with pytest.raises(ValueError, match="'x'"):
        next(results)


def test_map_times_out(pool: plait.ProcessPool, gate: Gate) -> None:
    results = pool.map(tasks.wait_for_file, [str(gate.where / "open")], timeout=0.01)
    with pytest.raises(TimeoutError):
        next(results)
    gate.open()


@pytest.mark.parametrize(
    ("kwargs", "error"),
    [
        ({"workers": 0}, ValueError),
        ({"workers": 65}, ValueError),
        ({"workers": "2"}, TypeError),
        ({"workers": True}, TypeError),
        ({"initializer": 3}, TypeError),
        ({"shared_memory": 100}, ValueError),
    ],
)
def test_bad_arguments_are_named(kwargs: dict[str, Any], error: type[Exception]) -> None:
    with pytest.raises(error) as caught:
        plait.ProcessPool(**kwargs)
    name, value = next(iter(kwargs.items()))
    assert name in str(caught.value)
    assert str(value).strip("'") in str(caught.value)


def test_submit_wants_a_callable(shared: plait.ProcessPool) -> None:
    with pytest.raises(TypeError, match="callable"):
        shared.submit(3)  # type: ignore[arg-type]
    with pytest.raises(TypeError):
        shared.submit()  # type: ignore[call-arg]
    with pytest.raises(ValueError, match="chunksize"):
        shared.map(tasks.plus_one, [1], chunksize=0)


# ---- errors ------------------------------------------------------------------------


def test_exception_carries_the_remote_traceback(shared: plait.ProcessPool) -> None:
    future = shared.submit(tasks.fail, "oops")
    with pytest.raises(ValueError, match="oops") as caught:
        future.result(TIMEOUT)
    assert "in fail" in str(caught.value.__cause__)
    assert isinstance(future.exception(), ValueError)


@pytest.mark.parametrize(
    ("make", "error"),
    [
        (lambda p: p.submit(tasks.unpicklable_result), (AttributeError, pickle.PicklingError)),
        (lambda p: p.submit(tasks.return_bad_pickle), RuntimeError),
        (lambda p: p.submit(tasks.return_bad_unpickle), ValueError),
        (lambda p: p.submit(tasks.echo, tasks.BadPickle()), RuntimeError),
        (lambda p: p.submit(tasks.echo, tasks.BadUnpickle()), ValueError),
        (lambda p: p.submit(tasks.echo, threading.Lock()), TypeError),
        (lambda p: p.submit(tasks.raise_unsendable), plait.RemoteError),
        (lambda p: p.submit(tasks.raise_stubborn), plait.RemoteError),
        (lambda p: p.submit(tasks.system_exit), SystemExit),
        (lambda p: p.submit(tasks.plus_one, "x"), TypeError),
    ],
)
def test_an_error_fails_its_task_only(
    shared: plait.ProcessPool, make: Callable[[Any], Any], error: Any
) -> None:
    before = [shared.submit(tasks.plus_one, i) for i in range(5)]
    future = make(shared)
    after = [shared.submit(tasks.plus_one, i) for i in range(5)]
    assert isinstance(future.exception(TIMEOUT), error)
    assert [f.result(TIMEOUT) for f in before + after] == [1, 2, 3, 4, 5] * 2


def test_lambda_by_cloudpickle_or_with_advice(shared: plait.ProcessPool) -> None:
    future = shared.submit(lambda x: x * 3, 14)
    try:
        import cloudpickle  # noqa: F401
    except ImportError:
        error = future.exception(TIMEOUT)
        assert error is not None
        assert any("cloudpickle" in note for note in error.__notes__)
    else:
        assert future.result(TIMEOUT) == 42


# ---- deaths ------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("fn", "args", "exitcode", "number"),
    [
        (tasks.exit_with, (3,), 3, None),
        (tasks.exit_with, (0,), 0, None),
        (tasks.kill_self, (signal.SIGKILL,), None, signal.SIGKILL),
        (tasks.kill_self, (signal.SIGTERM,), None, signal.SIGTERM),
        (tasks.segfault, (), None, signal.SIGSEGV),
        (tasks.echo, (tasks.DiesInUnpickle(),), 9, None),
    ],
)
def test_a_death_fails_its_task_only(
    pool: plait.ProcessPool, fn: Any, args: Any, exitcode: int | None, number: int | None
) -> None:
    for _ in range(2):
        before = [pool.submit(tasks.plus_one, i) for i in range(50)]
        future = pool.submit(fn, *args)
        after = [pool.submit(tasks.plus_one, i) for i in range(50)]
        with pytest.raises(plait.WorkerDied) as caught:
            future.result(TIMEOUT)
        error = caught.value
        assert (error.exitcode, error.signal) == (exitcode, number)
        assert error.pid > 0
        assert error.task == fn.__name__
        assert error.peak_memory is not None
        assert error.peak_memory > 1 << 20
        assert fn.__name__ in str(error)
        assert [f.result(TIMEOUT) for f in before + after] == list(range(1, 51)) * 2


def test_every_worker_killed_while_idle(pool: plait.ProcessPool) -> None:
    for _ in range(3):
        pids = [w.pid for w in pool._seats.values() if w.pid]
        for pid in pids:
            os.kill(pid, signal.SIGKILL)
        assert pool.submit(tasks.plus_one, 1).result(TIMEOUT) == 2


def test_many_deaths_among_work(pool: plait.ProcessPool) -> None:
    futures = []
    for i in range(300):
        if i % 30 == 7:
            futures.append(pool.submit(tasks.exit_with, 1))
        else:
            futures.append(pool.submit(tasks.plus_one, i))
    for i, future in enumerate(futures):
        if i % 30 == 7:
            assert isinstance(future.exception(TIMEOUT), plait.WorkerDied)
        else:
            assert future.result(TIMEOUT) == i + 1


def test_a_killed_zygote_is_replaced(pool: plait.ProcessPool, gate: Gate) -> None:
    held = gate.hold(pool, 1)
    queued = [pool.submit(tasks.wait_for_file, str(gate.where / "open")) for _ in range(4)]
    os.kill(pool._zygote, signal.SIGKILL)
    assert isinstance(held[0].exception(TIMEOUT), plait.WorkerDied)
    gate.open()
    ended = [f.exception(TIMEOUT) for f in queued]
    assert all(e is None or isinstance(e, plait.WorkerDied) for e in ended)
    assert sum(e is None for e in ended) >= 3
    assert pool.submit(tasks.plus_one, 1).result(TIMEOUT) == 2


def test_initializer(tmp_path: pathlib.Path) -> None:
    with plait.ProcessPool(2, initializer=tasks.set_env, initargs=("PLAIT_TEST", "there")) as pool:
        values = [pool.submit(tasks.get_env, "PLAIT_TEST").result(TIMEOUT) for _ in range(10)]
    assert values == ["there"] * 10


@pytest.mark.parametrize(
    ("initializer", "args", "text"),
    [(tasks.fail, ("no way",), "no way"), (tasks.exit_with, (5,), "exit code 5")],
)
def test_a_poisonous_initializer_breaks_the_pool(initializer: Any, args: Any, text: str) -> None:
    pool = plait.ProcessPool(2, initializer=initializer, initargs=args)
    futures = [pool.submit(tasks.plus_one, i) for i in range(2000)]
    for future in futures:
        assert isinstance(future.exception(TIMEOUT), plait.PoolBroken)
    error = futures[0].exception()
    assert text in str(error) + str(error.__cause__)
    with pytest.raises(plait.PoolBroken):
        pool.submit(tasks.noop)
    pool.shutdown()


# ---- waiting and cancelling --------------------------------------------------------


def test_result_times_out(pool: plait.ProcessPool, gate: Gate) -> None:
    (held,) = gate.hold(pool)
    with pytest.raises(TimeoutError):
        held.result(timeout=0.01)
    with pytest.raises(TimeoutError):
        held.exception(0)
    gate.open()
    assert held.result(TIMEOUT) > 0


def test_one_long_task_holds_nobody_back(pool: plait.ProcessPool, gate: Gate) -> None:
    for _ in range(200):  # the pool has learnt that tasks are short
        pool.submit(tasks.noop).result(TIMEOUT)
    (held,) = gate.hold(pool)
    assert [pool.submit(tasks.plus_one, i).result(TIMEOUT) for i in range(20)] == list(range(1, 21))
    assert held.running()
    gate.open()


def test_cancel(pool: plait.ProcessPool, gate: Gate) -> None:
    held = gate.hold(pool, 2)
    seen: list[Any] = []
    queued = [pool.submit(tasks.plus_one, i) for i in range(3000)]
    queued[0].add_done_callback(seen.append)
    for future in queued[::2]:
        assert future.cancel()
        assert future.cancel()
    assert seen == [queued[0]]
    assert queued[0].stopped == "queued"
    gate.open()
    assert all(f.result(TIMEOUT) > 0 for f in held)
    for i, future in enumerate(queued):
        if i % 2 == 0:
            assert future.cancelled()
            assert future.done()
            with pytest.raises(concurrent.futures.CancelledError):
                future.result(TIMEOUT)
        else:
            assert future.result(TIMEOUT) == i + 1
    assert not queued[1].cancel()


def test_standard_wait_and_as_completed(pool: plait.ProcessPool, gate: Gate) -> None:
    futures = [pool.submit(tasks.plus_one, i) for i in range(200)]
    done, pending = concurrent.futures.wait(futures, timeout=TIMEOUT)
    assert len(done) == 200
    assert not pending
    (held,) = gate.hold(pool)
    futures = [pool.submit(tasks.plus_one, i) for i in range(200)]
    first, _ = concurrent.futures.wait(
        [held, *futures], timeout=TIMEOUT, return_when=concurrent.futures.FIRST_COMPLETED
    )
    assert first
    assert held not in first
    got = {f.result() for f in concurrent.futures.as_completed(futures, timeout=TIMEOUT)}
    assert got == set(range(1, 201))
    bad = pool.submit(tasks.fail, "x")
    done, pending = concurrent.futures.wait(
        [held, bad], timeout=TIMEOUT, return_when=concurrent.futures.FIRST_EXCEPTION
    )
    assert done == {bad}
    assert pending == {held}
    gate.open()


def test_callbacks(pool: plait.ProcessPool, caplog: pytest.LogCaptureFixture) -> None:
    seen: list[int] = []
    ended = threading.Event()

    def wrong(future: Any) -> None:
        raise RuntimeError("in callback")

    future = pool.submit(tasks.plus_one, 1)
    future.add_done_callback(wrong)
    future.add_done_callback(lambda f: seen.append(f.result()))
    future.add_done_callback(lambda f: ended.set())
    assert ended.wait(TIMEOUT)
    assert seen == [2]
    assert "in callback" in caplog.text
    future.add_done_callback(lambda f: seen.append(3))
    assert seen == [2, 3]


def test_callback_that_waits_for_another_task(pool: plait.ProcessPool) -> None:
    seen: list[int] = []
    ended = threading.Event()

    def chain(future: Any) -> None:
        seen.append(pool.submit(tasks.plus_one, future.result()).result(TIMEOUT))
        ended.set()

    pool.submit(tasks.plus_one, 1).add_done_callback(chain)
    assert ended.wait(TIMEOUT)
    assert seen == [3]


def test_sixteen_threads(pool: plait.ProcessPool) -> None:
    errors: list[BaseException] = []

    def work(base: int) -> None:
        try:
            for i in range(base, base + 100):
                assert pool.submit(tasks.plus_one, i).result(TIMEOUT) == i + 1
            futures = [pool.submit(tasks.plus_one, i) for i in range(base, base + 200)]
            assert [f.result(TIMEOUT) for f in futures] == list(range(base + 1, base + 201))
        except BaseException as error:
            errors.append(error)

    threads = [threading.Thread(target=work, args=(1000 * i,)) for i in range(16)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(TIMEOUT)
        assert not thread.is_alive()
    assert not errors


# ---- loops -------------------------------------------------------------------------

LOOPS = [asyncio.new_event_loop, plait.new_event_loop]


@pytest.mark.parametrize("factory", LOOPS, ids=["asyncio", "plait"])
def test_await(pool: plait.ProcessPool, factory: Any) -> None:
    async def main() -> None:
        threads = set(threading.enumerate())
        assert await pool.submit(tasks.plus_one, 1) == 2
        values = await asyncio.gather(*(await_one(i) for i in range(3000)))
        assert values == list(range(1, 3001))
        with pytest.raises(ValueError, match="oops"):
            await pool.submit(tasks.fail, "oops")
        with pytest.raises(plait.WorkerDied):
            await pool.submit(tasks.exit_with, 1)
        assert await pool.submit(tasks.plus_one, 1) == 2
        finished = pool.submit(tasks.plus_one, 1)
        finished.result(TIMEOUT)
        assert await finished == 2
        target = pool._submit_to_loop(asyncio.get_running_loop(), tasks.plus_one, 4)
        assert await target == 5
        assert len(set(threading.enumerate()) - threads) <= 1

    async def await_one(i: int) -> int:
        return await pool.submit(tasks.plus_one, i)  # type: ignore[no-any-return]

    with asyncio.Runner(loop_factory=factory) as runner:
        runner.run(asyncio.wait_for(main(), TIMEOUT))
    assert pool.submit(tasks.plus_one, 1).result(TIMEOUT) == 2


def test_await_starts_no_thread(pool: plait.ProcessPool) -> None:
    async def main() -> None:
        assert await pool.submit(tasks.plus_one, 0) == 1  # the pool's helper comes with it
        threads = set(threading.enumerate())
        for i in range(20):
            assert await pool.submit(tasks.plus_one, i) == i + 1
        assert set(threading.enumerate()) <= threads

    asyncio.run(asyncio.wait_for(main(), TIMEOUT))


@pytest.mark.parametrize("factory", LOOPS, ids=["asyncio", "plait"])
def test_wrap_future_and_run_in_executor(pool: plait.ProcessPool, factory: Any) -> None:
    async def main() -> None:
        loop = asyncio.get_running_loop()
        assert await asyncio.wrap_future(pool.submit(tasks.plus_one, 1)) == 2
        assert await loop.run_in_executor(pool, tasks.plus_one, 2) == 3
        values = await asyncio.gather(
            *(loop.run_in_executor(pool, tasks.plus_one, i) for i in range(200))
        )
        assert values == list(range(1, 201))

    with asyncio.Runner(loop_factory=factory) as runner:
        runner.run(asyncio.wait_for(main(), TIMEOUT))


def test_cancelling_an_await_cancels_what_has_not_begun(
    pool: plait.ProcessPool, gate: Gate
) -> None:
    async def main() -> None:
        gate.hold(pool, 2)
        future = pool.submit(tasks.plus_one, 1)
        with pytest.raises(TimeoutError):
            async with asyncio.timeout(0.01):
                await future
        assert future.cancelled()
        running = pool.submit(tasks.plus_one, 2)
        gate.open()
        assert await running == 3

    asyncio.run(asyncio.wait_for(main(), TIMEOUT))


def test_two_loops_and_a_thread(pool: plait.ProcessPool) -> None:
    errors: list[BaseException] = []

    async def main() -> None:
        for i in range(200):
            assert await pool.submit(tasks.plus_one, i) == i + 1

    def run() -> None:
        try:
            asyncio.run(asyncio.wait_for(main(), TIMEOUT))
        except BaseException as error:
            errors.append(error)

    threads = [threading.Thread(target=run) for _ in range(2)]
    for thread in threads:
        thread.start()
    for i in range(200):
        assert pool.submit(tasks.plus_one, i).result(TIMEOUT) == i + 1
    for thread in threads:
        thread.join(TIMEOUT)
        assert not thread.is_alive()
    assert not errors


# ---- ending ------------------------------------------------------------------------


def test_shutdown_does_what_was_submitted() -> None:
    pool = plait.ProcessPool(2)
    futures = [pool.submit(tasks.plus_one, i) for i in range(3000)]
    futures[0].result(TIMEOUT)
    pids = [w.pid for w in pool._seats.values() if w.pid] + [pool._zygote]
    fds = [os.pidfd_open(pid) for pid in pids]
    pool.shutdown()
    assert [f.result(0) for f in futures] == list(range(1, 3001))
    with pytest.raises(RuntimeError, match="after shutdown"):
        pool.submit(tasks.noop)
    pool.shutdown()
    for fd in fds:
        wait_for_end(fd, "a process of the pool")


def test_shutdown_without_waiting(tmp_path: pathlib.Path) -> None:
    pool = plait.ProcessPool(1)
    held = pool.submit(tasks.wait_for_file, str(tmp_path / "open"))
    pool.shutdown(wait=False)
    with pytest.raises(RuntimeError):
        pool.submit(tasks.noop)
    (tmp_path / "open").touch()
    assert held.result(TIMEOUT) > 0


def test_shutdown_can_cancel(pool: plait.ProcessPool, gate: Gate) -> None:
    held = gate.hold(pool, 2)
    queued = [pool.submit(tasks.plus_one, i) for i in range(2000)]
    left = len(queued)

    def ended(_: Any) -> None:
        nonlocal left
        left -= 1
        if left == 0:
            gate.open()

    for future in queued:
        future.add_done_callback(ended)
    pool.shutdown(cancel_futures=True)
    assert all(f.cancelled() for f in queued)
    assert all(f.result(0) > 0 for f in held)


def test_a_dropped_pool_ends() -> None:
    pool = plait.ProcessPool(1)
    assert pool.submit(tasks.plus_one, 1).result(TIMEOUT) == 2
    fd = os.pidfd_open(pool._zygote)
    del pool
    wait_for_end(fd, "the zygote")


def test_descriptors_and_threads_do_not_leak() -> None:
    def cycle() -> None:
        with plait.ProcessPool(1) as pool:
            assert pool.submit(tasks.plus_one, 1).result(TIMEOUT) == 2
            with pytest.raises(plait.WorkerDied):
                pool.submit(tasks.exit_with, 1).result(TIMEOUT)

    cycle()
    fds, threads = open_fds(), set(threading.enumerate())
    for _ in range(3):
        cycle()
    # Threads of earlier tests may end meanwhile.
    until(lambda: set(threading.enumerate()) <= threads)
    assert open_fds() <= fds


# Threads that other tests' pools had for a while may not be through: Python 3.12 and later warn.
@pytest.mark.filterwarnings("ignore:This process .* is multi-threaded:DeprecationWarning")
def test_a_forked_child_is_told(pool: plait.ProcessPool) -> None:
    assert pool.submit(tasks.plus_one, 1).result(TIMEOUT) == 2
    read, write = os.pipe()
    pid = os.fork()
    if pid == 0:
        text = b"nothing raised"
        try:
            try:
                pool.submit(tasks.noop)
            except RuntimeError as error:
                text = str(error).encode()
            with plait.ProcessPool(1) as own:
                text += b"|%d" % own.submit(tasks.plus_one, 1).result(TIMEOUT)
        except BaseException as error:
            text += repr(error).encode()
        finally:
            os.write(write, text)
            os._exit(0)
    os.close(write)
    with os.fdopen(read, "rb") as file:
        text = file.read()
    os.waitpid(pid, 0)
    assert b"parent process" in text
    assert text.endswith(b"|2")
    assert pool.submit(tasks.plus_one, 1).result(TIMEOUT) == 2


def test_a_pool_inside_of_a_worker(pool: plait.ProcessPool) -> None:
    assert pool.submit(tasks.nested).result(TIMEOUT) == 42


# ---- whole programs ----------------------------------------------------------------


def run_script(name: str, *args: str, timeout: float = TIMEOUT) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, str(ISOLATED / name), *args],
        capture_output=True,
        text=True,
        timeout=timeout,
        check=False,
    )


@pytest.mark.parametrize("case", ["main", "exit", "unjoined"])
def test_scripts(case: str) -> None:
    done = run_script("pool_script.py", case)
    assert done.returncode == 0, done.stderr
    assert done.stdout.strip() == f"{case} ok", done.stderr


def test_guard_is_asked_for() -> None:
    done = run_script("pool_no_guard.py")
    assert "__name__ == '__main__'" in done.stdout, done.stderr
    assert done.returncode == 0, done.stderr


def test_dash_c() -> None:
    code = (
        "import plait\n"
        "def f(x): return x * 2\n"
        "p = plait.ProcessPool(1)\n"
        "print(p.submit(abs, -3).result(60))\n"
        "e = p.submit(f, 2).exception(60)\n"
        "print('advice' if e and any('cloudpickle' in n for n in e.__notes__) else e)\n"
    )
    done = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, timeout=TIMEOUT, check=False
    )
    assert done.returncode == 0, done.stderr
    first, second = done.stdout.split()
    assert first == "3"
    try:
        import cloudpickle  # noqa: F401
    except ImportError:
        assert second == "advice"
    else:
        assert second == "None"


def test_a_killed_parent_leaves_nothing() -> None:
    process = subprocess.Popen(
        [sys.executable, str(ISOLATED / "pool_victim.py")],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
    )
    fds = []
    try:
        assert process.stdout is not None
        pids = [int(word) for word in process.stdout.readline().split()]
        assert len(pids) == 3
        fds = [os.pidfd_open(pid) for pid in pids]
        process.kill()
        process.wait()
        while fds:
            wait_for_end(fds.pop(), "a process that had a parent")
        assert not [name for name in os.listdir("/dev/shm") if "plait" in name]
    finally:
        for fd in fds:
            os.close(fd)
        process.kill()
        process.communicate()


def test_ctrl_c_in_a_burst() -> None:
    """The shell's Ctrl+C goes to the whole foreground group; the parent alone handles it."""
    process = subprocess.Popen(
        [sys.executable, str(ISOLATED / "pool_burst.py")],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        start_new_session=True,
    )
    assert process.stdout is not None
    fds = [os.pidfd_open(int(word)) for word in process.stdout.readline().split()]
    os.killpg(process.pid, signal.SIGINT)
    _, errors = process.communicate(timeout=TIMEOUT)
    assert process.returncode in (-signal.SIGINT, 130, 1)
    assert "KeyboardInterrupt" in errors
    assert errors.count("KeyboardInterrupt") == 1, errors
    for fd in fds:
        wait_for_end(fd, "a worker")


def test_a_worker_does_not_load_asyncio() -> None:
    """Half of a pool's start would be that import."""
    with plait.ProcessPool(1) as pool:
        loaded = pool.submit(eval, "'asyncio' in __import__('sys').modules").result()
        assert loaded is False
        # Whoever needs the rest of plait there gets it.
        assert pool.submit(eval, "__import__('plait').Loop.__name__").result() == "Loop"
