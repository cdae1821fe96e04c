"""Every crash at every stage, with honest work all around: one crash fails one task."""

from __future__ import annotations

import os
import pickle
import random
import select
import signal
import subprocess
import sys
import textwrap
import threading
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torture_tasks as tasks
from soak import named

import plait

TIMEOUT = 100.0
THREADS = 16
ROUNDS = 1 if os.environ.get("TORTURE") == "short" else 3
HERE = Path(__file__).parent
STAGES = ["before_start", "unpickle", "running", "result", "idle", "shutting_down"]

UNSENDABLE = (TypeError, AttributeError, pickle.PicklingError)


def wait_until(condition: Callable[[], bool]) -> None:
    """Look until it holds; only for what no event tells."""
    end = time.monotonic() + TIMEOUT
    while not condition():
        assert time.monotonic() < end, "it did not come to be"
        time.sleep(0.001)


def wait_for_ends(fds: list[int], what: str) -> None:
    """Wait until the processes of these pidfds have ended, and close them."""
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
    assert not left, what


def honest(pool: plait.ProcessPool, n: int) -> str | None:
    """One honest task; what is wrong with its end, if anything."""
    try:
        if n % 16 == 0:
            future, right = pool.submit(tasks.blob, n, 40_000), tasks.blob(n, 40_000)
        else:
            future, right = pool.submit(tasks.square, n), n * n
        return None if future.result(TIMEOUT) == right else f"task {n} has a wrong result"
    except BaseException as error:
        return f"task {n}: {error!r}"


class Crowd:
    """Sixteen threads that submit honest work and check it."""

    def __init__(self, pool: plait.ProcessPool, tasks_each: int | None = None) -> None:
        self.pool = pool
        self.errors: list[str] = []
        self.stop = threading.Event()
        self.tasks_each = tasks_each
        self.threads = [threading.Thread(target=self.run, args=(k,)) for k in range(THREADS)]

    def run(self, n: int) -> None:
        done = 0
        while not self.stop.is_set() and done != self.tasks_each and len(self.errors) < 100:
            error = honest(self.pool, n + done * THREADS)
            done += 1
            if error is not None:
                self.errors.append(error)

    def __enter__(self) -> Crowd:
        for thread in self.threads:
            thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        if self.tasks_each is None:
            self.stop.set()
        for thread in self.threads:
            thread.join(TIMEOUT)
            assert not thread.is_alive(), "a thread waits for ever"


# ---- the cells -----------------------------------------------------------------------


def ends(stage: str, name: str) -> Any:
    """What a task may end with whose crash comes at a stage of its own."""
    if name in tasks.FATAL:
        return plait.WorkerDied
    if name == "hang":
        return plait.TaskTimeout
    if name in ("raise_error", "system_exit"):
        return ValueError if name == "raise_error" else SystemExit
    if name == "unpicklable" and stage != "unpickle":
        return UNSENDABLE
    return None


def crash_in_a_task(stage: str, name: str) -> None:
    """During unpickle, running, during the result: the task fails, or survives, and no other."""
    with plait.ProcessPool(2, grace=0.1) as pool, Crowd(pool) as crowd:
        options = pool.options(timeout=0.2) if name == "hang" else pool
        for _ in range(ROUNDS):
            if stage == "unpickle":
                future = options.submit(tasks.take, tasks.CrashInUnpickle(name))
            elif stage == "running":
                future = options.submit(tasks.crash, name)
            else:
                future = options.submit(tasks.give, name)
            error = future.exception(TIMEOUT)
            expected = ends(stage, name)
            if expected is None:
                assert error is None, error
                assert future.result(0) == "survived"
            else:
                assert isinstance(error, expected), repr(error)
            assert crowd.errors == []
    assert crowd.errors == []


def crash_before_start(name: str) -> None:
    """In the initializer: what cannot start breaks the pool, for everyone and not for ever."""
    pool = plait.ProcessPool(2, initializer=tasks.before_start, initargs=(name,))
    if name == "hang":
        # Nobody can tell it from one that takes its time; but the end comes when it is asked for.
        futures = [pool.submit(tasks.square, k) for k in range(THREADS)]
        start = time.monotonic()
        pool.shutdown(timeout=0.2)
        assert time.monotonic() - start < TIMEOUT / 2
        assert all(future.cancelled() for future in futures)
        return
    survived = ("unpicklable", "fork_and_leave", "fork_and_return")
    with pool, Crowd(pool, 4) as crowd:
        pass
    if name in survived:
        assert crowd.errors == []
    elif name == "garbage":
        # It shows when the ring is read: before the worker has begun a task, during one, or when
        # it has done one, whose result counts. So some get through, and each worker has an end.
        assert all("PoolBroken" in error or "WorkerDied" in error for error in crowd.errors), (
            crowd.errors
        )
    else:
        assert len(crowd.errors) == 4 * THREADS
        assert all("PoolBroken" in error for error in crowd.errors), crowd.errors[0]


def crash_while_idle(name: str, where: Path) -> None:
    """Nobody has a task, so none is lost."""
    with plait.ProcessPool(2, grace=0.1) as pool:
        for _ in range(ROUNDS):
            pids: set[int] = set()
            end = time.monotonic() + TIMEOUT
            while len(pids) < 2:  # each worker has had one
                assert time.monotonic() < end
                armed = [pool.submit(tasks.arm_idle, name, str(where)) for _ in range(64)]
                pids |= {future.result(TIMEOUT) for future in armed}
            wait_until(lambda: pool._figures()["parked"] == 2)
            for pid in pids:
                os.kill(pid, signal.SIGUSR1)
            wait_until(lambda pids=pids: all((where / str(pid)).exists() for pid in pids))
            with Crowd(pool, 4) as crowd:
                pass
            # Garbage is found when the next task is looked for, and that one may be taken along.
            lost = [e for e in crowd.errors if name == "garbage" and "WorkerDied" in e]
            assert crowd.errors == lost
            assert len(lost) <= len(pids)


def crash_while_shutting_down(name: str) -> None:
    """What was submitted is done; the end comes, whatever a worker does at its own."""
    pool = plait.ProcessPool(2)
    for _ in range(4):
        pool.submit(tasks.arm_end, name).result(TIMEOUT)
    with Crowd(pool, 4) as crowd:
        pass
    work = [pool.submit(tasks.square, i) for i in range(50)]
    fds = [os.pidfd_open(worker.pid) for worker in pool.statistics().workers]
    pool.shutdown(timeout=TIMEOUT)
    assert crowd.errors == []
    assert [f.result(0) for f in work] == [i * i for i in range(50)]
    wait_for_ends(fds, "a worker outlived its pool")


@pytest.mark.parametrize("name", tasks.CRASHES)
@pytest.mark.parametrize("stage", STAGES)
def test_a_crash(tmp_path: Path, stage: str, name: str) -> None:
    """All cells of the table: each crash at each stage, under sixteen submitting threads."""
    if stage == "before_start":
        crash_before_start(name)
    elif stage == "idle":
        crash_while_idle(name, tmp_path)
    elif stage == "shutting_down":
        crash_while_shutting_down(name)
    else:
        crash_in_a_task(stage, name)


# ---- the parent's own end ------------------------------------------------------------


def below(pid: int) -> set[int]:
    """The processes below one, as /proc tells."""
    children: dict[int, list[int]] = {}
    for entry in Path("/proc").iterdir():
        if not entry.name.isdecimal():
            continue
        try:
            fields = (entry / "stat").read_text().rsplit(")", 1)[1].split()
        except OSError:
            continue
        if fields[0] != "Z":
            children.setdefault(int(fields[1]), []).append(int(entry.name))
    found: set[int] = set()
    todo = [pid]
    while todo:
        for child in children.get(todo.pop(), []):
            found.add(child)
            todo.append(child)
    return found


PARENT = """
import os, pathlib, plait, signal, sys, threading, torture_tasks as tasks

def reached(n):
    while len(list(pathlib.Path(where).iterdir())) < n:
        os.sched_yield()

def work(pool):
    for i in range(10**9):
        pool.submit(tasks.square, i).result()

if __name__ == "__main__":
    stage, where = {stage!r}, {where!r}
    pool = plait.ProcessPool(2)
    if stage != "before_start":
        pool.submit(tasks.square, 2).result()
    if stage == "unpickle":
        futures = [pool.submit(tasks.take, tasks.Announces(where, "unpickle")) for _ in range(2)]
        reached(2)
    if stage in ("running", "shutting_down"):
        futures = [pool.submit(tasks.announce_and_sleep, where) for _ in range(4)]
        reached(2)
    if stage == "result":
        futures = [pool.submit(tasks.give_slowly, where) for _ in range(2)]
        reached(2)
    if stage == "busy":
        for _ in range({threads}):
            threading.Thread(target=work, args=(pool,), daemon=True).start()
    if stage == "shutting_down":
        threading.Thread(target=pool.shutdown, daemon=True).start()
        while not pool._closed:
            os.sched_yield()
    print("ready", flush=True)
    signal.pause()
"""


@pytest.mark.parametrize("stage", [*STAGES, "busy"])
def test_a_killed_parent_leaves_nothing(tmp_path: Path, stage: str) -> None:
    shm = named()
    code = textwrap.dedent(PARENT).format(stage=stage, where=str(tmp_path), threads=THREADS)
    parent = subprocess.Popen(
        [sys.executable, "-c", code],
        stdout=subprocess.PIPE,
        env={**os.environ, "PYTHONPATH": str(HERE)},
    )
    assert parent.stdout is not None
    try:
        assert parent.stdout.readline() == b"ready\n"
        children = below(parent.pid)
        assert children
        fds = []
        for pid in children:
            try:
                fds.append(os.pidfd_open(pid))
            except ProcessLookupError:
                continue
    finally:
        parent.kill()
        parent.wait(TIMEOUT)
        parent.stdout.close()
    wait_for_ends(fds, "processes outlived the killed parent")
    assert named() <= shm


def test_soak_short() -> None:
    """The soak of `make soak`, for a moment."""
    import soak

    report = soak.soak(tasks=20_000, seconds_between_kills=0.05, seed=random.randrange(1 << 30))
    assert report.kills > 0
    assert report.ended == report.submitted == 20_000
    assert report.wrong == 0
