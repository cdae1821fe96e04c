"""Every crash at every stage, with honest work all around: one crash fails one task."""

from __future__ import annotations

import os
import random
import signal
import subprocess
import sys
import textwrap
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torture_tasks as tasks

import plait

TIMEOUT = 60.0
THREADS = 16
HERE = Path(__file__).parent


def expect(future: Any, name: str) -> None:
    """The task has the one end that its crash allows."""
    error = future.exception(TIMEOUT)
    if name in tasks.SURVIVED:
        assert error is None, error
        assert future.result(TIMEOUT) == "survived"
    elif name in tasks.RAISED:
        assert isinstance(error, tasks.RAISED[name]), error
    else:
        assert isinstance(error, plait.WorkerDied), error


def honest(pool: plait.ProcessPool, stop: threading.Event, errors: list[str]) -> None:
    """Submit and check until told to stop; a death beside it must not be seen."""
    n = 0
    while not stop.is_set() and not errors:
        n += 1
        if n % 16 == 0:
            future, right = pool.submit(tasks.blob, n, 40_000), tasks.blob(n, 40_000)
        else:
            future, right = pool.submit(tasks.square, n), n * n
        try:
            if future.result(TIMEOUT) != right:
                errors.append(f"task {n} has a wrong result")
        except BaseException as error:
            errors.append(f"task {n}: {error!r}")


@pytest.fixture
def crowd() -> Iterator[tuple[plait.ProcessPool, list[str]]]:
    """A pool that 16 threads submit honest work to."""
    errors: list[str] = []
    stop = threading.Event()
    with plait.ProcessPool(2) as pool:
        threads = [
            threading.Thread(target=honest, args=(pool, stop, errors)) for _ in range(THREADS)
        ]
        for thread in threads:
            thread.start()
        try:
            yield pool, errors
        finally:
            stop.set()
            for thread in threads:
                thread.join(TIMEOUT)
    assert errors == []


@pytest.mark.parametrize("name", tasks.CRASHES)
@pytest.mark.parametrize("stage", ["unpickle", "running", "result"])
def test_a_crash_fails_its_task_only(
    crowd: tuple[plait.ProcessPool, list[str]], stage: str, name: str
) -> None:
    pool, errors = crowd
    for _ in range(3):
        if stage == "unpickle":
            future = pool.submit(tasks.take, tasks.CrashInUnpickle(name))
        elif stage == "running":
            future = pool.submit(tasks.crash, name)
        else:
            future = pool.submit(tasks.give, name)
        expect(future, name)
        assert errors == []


@pytest.mark.parametrize("name", ["segfault", "leave", "killed", "abort"])
def test_a_crash_before_start(name: str) -> None:
    """An initializer that crashes breaks the pool, with an error, and not for ever."""
    with plait.ProcessPool(2, initializer=tasks.crash, initargs=(name,)) as pool:
        error = pool.submit(tasks.square, 2).exception(TIMEOUT)
        assert isinstance(error, plait.PoolBroken), error


def test_killed_while_idle(crowd: tuple[plait.ProcessPool, list[str]]) -> None:
    """Beside honest work, a worker that is killed may have had one task: nothing is lost else."""
    pool, _ = crowd
    with plait.ProcessPool(2) as idle:
        for _ in range(5):
            pids = {idle.submit(os.getpid).result(TIMEOUT) for _ in range(8)}
            for pid in pids:
                os.kill(pid, signal.SIGKILL)
            for i in range(20):
                future = idle.submit(tasks.square, i)
                error = future.exception(TIMEOUT)
                # It may have been given to a worker in the moment of its death.
                assert error is None or isinstance(error, plait.WorkerDied)
    assert pool.submit(tasks.square, 5).result(TIMEOUT) == 25


@pytest.mark.parametrize("name", ["segfault", "leave", "killed"])
def test_a_crash_while_shutting_down(name: str) -> None:
    pool = plait.ProcessPool(2)
    crashes = [pool.submit(tasks.crash, name) for _ in range(3)]
    work = [pool.submit(tasks.square, i) for i in range(50)]
    pool.shutdown()
    for future in crashes:
        expect(future, name)
    assert [f.result(0) for f in work] == [i * i for i in range(50)]


def group(pid: int) -> set[int]:
    """The processes below one, as /proc tells."""
    below: dict[int, list[int]] = {}
    for entry in Path("/proc").iterdir():
        if not entry.name.isdecimal():
            continue
        try:
            fields = (entry / "stat").read_text().rsplit(")", 1)[1].split()
        except OSError:
            continue
        if fields[0] != "Z":
            below.setdefault(int(fields[1]), []).append(int(entry.name))
    found: set[int] = set()
    todo = [pid]
    while todo:
        for child in below.get(todo.pop(), []):
            found.add(child)
            todo.append(child)
    return found


@pytest.mark.parametrize("stage", ["starting", "idle", "running", "stopping"])
def test_a_killed_parent_leaves_nothing(stage: str) -> None:
    shm = set(os.listdir("/dev/shm"))
    code = textwrap.dedent(
        f"""
        import plait, signal, sys, threading, time, torture_tasks
        stage = {stage!r}
        if __name__ == "__main__":
            pool = plait.ProcessPool(2)
            if stage != "starting":
                pool.submit(torture_tasks.square, 2).result()
            if stage in ("running", "stopping"):
                futures = [pool.submit(time.sleep, 600) for _ in range(4)]
                while sum(f.running() for f in futures) < 2:
                    pass
            if stage == "stopping":
                threading.Thread(target=pool.shutdown, daemon=True).start()
            print("ready", flush=True)
            signal.pause()
        """
    )
    parent = subprocess.Popen(
        [sys.executable, "-c", code],
        stdout=subprocess.PIPE,
        env={**os.environ, "PYTHONPATH": str(HERE)},
    )
    assert parent.stdout is not None
    try:
        assert parent.stdout.readline() == b"ready\n"
        children = group(parent.pid)
        assert children
    finally:
        parent.kill()
        parent.wait(TIMEOUT)
        parent.stdout.close()
    fds = []
    for pid in children:
        try:
            fds.append(os.pidfd_open(pid))
        except ProcessLookupError:
            continue
    import select

    poll = select.poll()
    for fd in fds:
        poll.register(fd, select.POLLIN)
    end = time.monotonic() + TIMEOUT
    left = set(fds)
    while left and time.monotonic() < end:
        for fd, _ in poll.poll(1000):
            poll.unregister(fd)
            left.discard(fd)
    for fd in fds:
        os.close(fd)
    assert not left, "processes outlived the killed parent"
    assert set(os.listdir("/dev/shm")) <= shm


def test_soak_short() -> None:
    """The soak of `make soak`, for a moment."""
    import soak

    report = soak.soak(tasks=20_000, seconds_between_kills=0.05, seed=random.randrange(1 << 30))
    assert report.kills > 0
    assert report.ended == 20_000
    assert report.wrong == 0
