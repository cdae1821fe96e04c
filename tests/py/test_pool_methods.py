"""What every start method must do alike, on those that the other tests do not run on."""

from __future__ import annotations

import multiprocessing
import os
import pathlib
import signal
import subprocess
import sys
import threading
import warnings
from collections.abc import Iterator
from concurrent.futures import CancelledError
from typing import Any

import pool_tasks as tasks
import pytest
from pool_gate import Gate
from sanitizer import needs_plain_memory
from until import until, wait_for_end

import plait

TIMEOUT = 100.0
METHODS = ["fork", "spawn"]

# A pool that forks is made here beside threads of earlier tests; a test of its own has the
# warning.
pytestmark = pytest.mark.filterwarnings("ignore:this process has other threads:DeprecationWarning")


@pytest.fixture(params=METHODS)
def method(request: pytest.FixtureRequest) -> str:
    return str(request.param)


@pytest.fixture(scope="module", params=METHODS)
def shared(request: pytest.FixtureRequest) -> Iterator[plait.ProcessPool]:
    """A pool that the tests leave as they find it, for as many as can."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", DeprecationWarning)
        pool = plait.ProcessPool(2, start_method=request.param, grace=0.3)
    with pool:
        yield pool


# ---- work, deaths, stops ------------------------------------------------------------


def test_values_and_errors(shared: plait.ProcessPool) -> None:
    assert list(shared.map(tasks.plus_one, range(2000), chunksize=10)) == list(range(1, 2001))
    assert shared.submit(tasks.echo, bytes(1 << 20)).result(TIMEOUT) == bytes(1 << 20)
    with pytest.raises(ValueError, match="oh"):
        shared.submit(tasks.fail, "oh").result(TIMEOUT)


def test_shared_buffers(shared: plait.ProcessPool) -> None:
    np = pytest.importorskip("numpy")
    block = shared.share(np.arange(1 << 16, dtype=float))
    results = [shared.submit(tasks.total, block) for _ in range(4)]
    assert {future.result(TIMEOUT) for future in results} == {float(sum(range(1 << 16)))}


@pytest.mark.parametrize(
    ("fn", "args", "exitcode", "number"),
    [
        (tasks.exit_with, (3,), 3, None),
        (tasks.kill_self, (signal.SIGKILL,), None, signal.SIGKILL),
        (tasks.segfault, (), None, signal.SIGSEGV),
    ],
)
def test_a_death_fails_its_task_only(
    shared: plait.ProcessPool, fn: Any, args: Any, exitcode: int | None, number: int | None
) -> None:
    before = [shared.submit(tasks.plus_one, i) for i in range(20)]
    bad = shared.submit(fn, *args)
    after = [shared.submit(tasks.plus_one, i) for i in range(20)]
    with pytest.raises(plait.WorkerDied) as caught:
        bad.result(TIMEOUT)
    assert (caught.value.exitcode, caught.value.signal) == (exitcode, number)
    assert caught.value.peak_memory
    if number == signal.SIGSEGV:
        assert "segfault" in (caught.value.stack or "")
    assert [future.result(TIMEOUT) for future in before + after] == 2 * list(range(1, 21))


@pytest.mark.parametrize(
    ("fn", "how"), [(tasks.sleep_long, "exception"), (tasks.ignore_stop, "killed")]
)
def test_cancel_and_timeout(
    shared: plait.ProcessPool, tmp_path: pathlib.Path, fn: Any, how: str
) -> None:
    future = shared.submit(fn, str(tmp_path / "here"))
    until((tmp_path / "here").exists)
    assert future.cancel()
    with pytest.raises(CancelledError):
        future.result(TIMEOUT)
    # Slow machines may take longer than the grace for an exception, too.
    assert future.stopped == how or (how, future.stopped) == ("exception", "killed")
    late = shared.options(timeout=0.05).submit(fn, str(tmp_path / "late"))
    with pytest.raises(plait.TaskTimeout):
        late.result(TIMEOUT)
    assert shared.submit(tasks.plus_one, 1).result(TIMEOUT) == 2


def test_statistics_name_the_workers(shared: plait.ProcessPool, gate: Gate) -> None:
    (future,) = gate.hold(shared)
    pids = [worker.pid for worker in shared.statistics().workers if worker.state == "running"]
    gate.open()
    assert pids == [future.result(TIMEOUT)]


def test_more_and_fewer_workers(shared: plait.ProcessPool, gate: Gate) -> None:
    shared.resize(4)
    futures = gate.hold(shared, 4)
    gate.open()
    assert len({future.result(TIMEOUT) for future in futures}) == 4
    shared.resize(2)
    assert shared.submit(tasks.plus_one, 1).result(TIMEOUT) == 2


def test_a_killed_zygote_is_replaced(shared: plait.ProcessPool) -> None:
    assert shared.submit(tasks.plus_one, 1).result(TIMEOUT) == 2
    fd = os.pidfd_open(shared._zygote)
    os.kill(shared._zygote, signal.SIGKILL)
    wait_for_end(fd, "the zygote")
    while True:
        try:
            assert shared.submit(tasks.plus_one, 1).result(TIMEOUT) == 2
        except plait.WorkerDied:
            continue
        break
    assert shared.submit(tasks.plus_one, 2).result(TIMEOUT) == 3


# ---- limits and ends ----------------------------------------------------------------


def test_workers_are_replaced_after_some_tasks(method: str) -> None:
    with plait.ProcessPool(1, start_method=method, max_tasks_per_worker=3) as pool:
        pids = [pool.submit(tasks.pid).result(TIMEOUT) for _ in range(7)]
    assert len(set(pids)) == 3


@needs_plain_memory
def test_memory_limit(method: str) -> None:
    limit = 256 << 20
    if method == "fork":  # what is inherited counts
        pages = int(pathlib.Path("/proc/self/statm").read_text().split()[0])
        limit += pages * os.sysconf("SC_PAGE_SIZE")
    with plait.ProcessPool(1, start_method=method, memory_limit=limit) as pool:
        with pytest.raises(MemoryError):
            pool.submit(tasks.eat_memory, 2 * limit).result(TIMEOUT)
        assert pool.submit(tasks.plus_one, 1).result(TIMEOUT) == 2


def test_initializers(method: str, tmp_path: pathlib.Path) -> None:
    name = f"PLAIT_{method}"
    with plait.ProcessPool(
        1, start_method=method, initializer=tasks.set_env, initargs=(name, "yes")
    ) as pool:
        assert pool.submit(tasks.get_env, name).result(TIMEOUT) == "yes"
    with plait.ProcessPool(
        1, start_method=method, initializer=tasks.fail, initargs=("poison",)
    ) as pool:
        with pytest.raises(plait.PoolBroken) as caught:
            pool.submit(tasks.noop).result(TIMEOUT)
        assert "poison" in str(caught.value.__cause__)


def test_shutdown_in_time(method: str, tmp_path: pathlib.Path) -> None:
    pool = plait.ProcessPool(2, start_method=method)
    future = pool.submit(tasks.hang_in_c, str(tmp_path / "here"))
    until((tmp_path / "here").exists)
    fd = os.pidfd_open(int((tmp_path / "here").read_text()))
    pool.shutdown(timeout=0.05)
    assert future.cancelled()
    wait_for_end(fd, "a worker")


def test_nothing_leaks(method: str, no_leaks: None) -> None:
    for _ in range(2):
        with plait.ProcessPool(2, start_method=method) as pool:
            assert pool.submit(tasks.plus_one, 1).result(TIMEOUT) == 2


def test_a_pool_inside_of_a_worker(method: str) -> None:
    with plait.ProcessPool(1, start_method=method) as pool:
        for inner in ("zygote", method):
            assert pool.submit(tasks.nested, inner).result(TIMEOUT) == 42


@pytest.mark.parametrize("fatal", [signal.SIGKILL])
def test_a_killed_parent_leaves_nothing(
    method: str, fatal: signal.Signals, tmp_path: pathlib.Path
) -> None:
    code = (
        "import sys, time, pool_tasks as tasks, plait\n"
        "if __name__ == '__main__':\n"
        f"    pool = plait.ProcessPool(2, start_method={method!r})\n"
        "    pids = {pool.submit(tasks.pid).result() for _ in range(20)}\n"
        "    print(pool._zygote, *pids, flush=True)\n"
        "    pool.submit(tasks.sleep_long, sys.argv[1]).result()\n"
    )
    process = subprocess.Popen(
        [sys.executable, "-c", code, str(tmp_path / "here")],
        stdout=subprocess.PIPE,
        text=True,
        env={**os.environ, "PYTHONPATH": os.path.dirname(__file__)},
    )
    assert process.stdout is not None
    fds = [os.pidfd_open(int(word)) for word in process.stdout.readline().split()]
    assert len(fds) >= 2
    process.send_signal(fatal)
    process.communicate(timeout=TIMEOUT)
    for fd in fds:
        wait_for_end(fd, "a process of the pool")


# ---- what is special about each ------------------------------------------------------

state = {"is": "as it was imported"}


def first_state() -> str:
    return state["is"]


def parent_of(pid: int) -> int:
    with open(f"/proc/{pid}/stat", encoding="ascii") as file:
        return int(file.read().rsplit(")", 1)[1].split()[1])


def test_a_fork_has_the_state_of_its_making(monkeypatch: pytest.MonkeyPatch) -> None:
    """So have successors, and whoever comes later: none is forked beside threads."""
    monkeypatch.setitem(state, "is", "as the pool was made")
    with plait.ProcessPool(1, start_method="fork", initializer=lambda: None) as pool:
        state["is"] = "later"
        assert pool.submit(first_state).result(TIMEOUT) == "as the pool was made"
        with pytest.raises(plait.WorkerDied):
            pool.submit(tasks.exit_with, 1).result(TIMEOUT)
        assert pool.submit(first_state).result(TIMEOUT) == "as the pool was made"


def test_a_spawn_has_no_state_of_ours(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(state, "is", "changed")
    for method in ("spawn", "zygote"):
        with plait.ProcessPool(1, start_method=method) as pool:
            assert pool.submit(first_state).result(TIMEOUT) == "as it was imported"


def test_a_spawned_worker_is_executed() -> None:
    """Its address space was laid out anew, where a forked one has its zygote's."""
    same = {}
    for method in ("zygote", "spawn"):
        with plait.ProcessPool(1, start_method=method) as pool:
            pid = pool.submit(tasks.pid).result(TIMEOUT)
            with open(f"/proc/{pid}/cmdline", "rb") as ours:
                with open(f"/proc/{parent_of(pid)}/cmdline", "rb") as theirs:
                    same[method] = ours.read() == theirs.read()
    assert same == {"zygote": True, "spawn": False}


def test_forking_beside_threads_warns() -> None:
    done = threading.Event()
    thread = threading.Thread(target=done.wait)
    thread.start()
    try:
        with pytest.warns(DeprecationWarning, match="other threads") as caught:
            plait.ProcessPool(1, start_method="fork").shutdown()
        assert caught[0].filename == __file__
        with warnings.catch_warnings():
            warnings.simplefilter("error")
            with pytest.raises(DeprecationWarning):
                plait.ProcessPool(1, start_method="fork")
            with plait.ProcessPool(1) as pool:  # the others do not mind
                assert pool.submit(tasks.plus_one, 1).result(TIMEOUT) == 2
    finally:
        done.set()
        thread.join()


def test_a_fork_of_a_loaded_parent() -> None:
    """Handlers, standard streams and exit functions are the parent's and stay so."""
    code = (
        "import atexit, os, signal, sys, plait\n"
        "atexit.register(print, 'exit of', os.getpid())\n"
        "signal.signal(signal.SIGTERM, lambda *_: print('handler in', os.getpid()))\n"
        "sys.stdout.write('once ')\n"
        "pool = plait.ProcessPool(1, start_method='fork')\n"
        "pid = pool.submit(os.getpid).result()\n"
        "assert pool.submit(input).exception() is not None\n"
        "try: pool.submit(signal.raise_signal, signal.SIGTERM).result()\n"
        "except plait.WorkerDied as error: print(error.signal == signal.SIGTERM)\n"
        "pool.shutdown()\n"
        "print(os.getpid())\n"
    )
    done = subprocess.run(
        [sys.executable, "-c", code],
        input="from the parent's input",
        capture_output=True,
        text=True,
        timeout=TIMEOUT,
        check=True,
    )
    once, died, pid, *end = done.stdout.split()
    assert (once, died, end) == ("once", "True", ["exit", "of", pid])
    assert done.stderr == ""


@pytest.mark.parametrize(
    ("kind", "method"), [("fork", "fork"), ("spawn", "spawn"), ("forkserver", "zygote")]
)
def test_contexts_of_multiprocessing(kind: str, method: str) -> None:
    context: Any = multiprocessing.get_context(kind)
    with plait.ProcessPool(1, mp_context=context) as pool:
        assert pool._method == method
        assert pool.submit(tasks.plus_one, 1).result(TIMEOUT) == 2
    with plait.ProcessPool(1, mp_context=context, start_method=method) as pool:
        assert pool._method == method
    others = {"fork": "spawn", "spawn": "zygote", "zygote": "fork"}
    with pytest.raises(ValueError, match=f"start_method '{others[method]}' and mp_context"):
        plait.ProcessPool(1, mp_context=context, start_method=others[method])


@pytest.mark.parametrize(
    ("kwargs", "error", "text"),
    [
        ({"start_method": "thread"}, ValueError, "not 'thread'"),
        ({"start_method": "forkserver"}, ValueError, "'zygote'"),
        ({"start_method": 3}, TypeError, "start_method must be a str or None, not 3"),
        ({"mp_context": "spawn"}, TypeError, "mp_context must be a multiprocessing context"),
    ],
)
def test_ways_that_there_are_not(kwargs: dict[str, Any], error: type[Exception], text: str) -> None:
    with pytest.raises(error, match=text):
        plait.ProcessPool(1, **kwargs)


def test_pools_of_all_methods_beside_each_other() -> None:
    """Copies hold copies of the others' sockets; each pool ends in its own time."""
    pools = [
        plait.ProcessPool(1, start_method=name) for name in ("fork", "zygote", "fork", "spawn")
    ]
    for pool in pools:
        assert pool.submit(tasks.plus_one, 1).result(TIMEOUT) == 2
    for pool in pools:
        fd = os.pidfd_open(pool.submit(tasks.pid).result(TIMEOUT))
        pool.shutdown()
        wait_for_end(fd, "a worker")
