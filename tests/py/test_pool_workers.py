"""How workers are started; more and fewer of them while a process pool runs."""

from __future__ import annotations

import os
import pathlib
import subprocess
import sys
import threading
from typing import Any

import pool_tasks as tasks
import pytest
from pool_gate import Gate
from sanitizer import needs_plain_memory
from until import wait_for_end

import plait

TIMEOUT = 100.0


def test_a_worker_begins_with_little() -> None:
    """What a worker imports before its first task is time that each pool's start takes."""
    script = (
        "import plait\n"
        "with plait.ProcessPool(1) as pool:\n"
        "    print(*pool.submit(eval, '[*__import__(\"sys\").modules]').result())\n"
    )
    # A program of its own: one that uses multiprocessing has its workers load that.
    done = subprocess.run(
        [sys.executable, "-c", script], capture_output=True, text=True, timeout=TIMEOUT, check=True
    )
    bare = subprocess.run(
        [sys.executable, "-c", "import sys; print(*sys.modules)"],
        capture_output=True,
        text=True,
        timeout=TIMEOUT,
        check=True,
    )
    assert "plait._worker" in done.stdout.split()
    loaded = set(done.stdout.split()) - set(bare.stdout.split())  # a .pth file may load a lot
    heavy = {"asyncio", "concurrent.futures", "enum", "logging", "re", "threading", "traceback"}
    assert not loaded & heavy


def test_more_workers_run_more_tasks(tmp_path: pathlib.Path) -> None:
    gate = Gate(tmp_path)
    with plait.ProcessPool(1) as pool:
        pool.resize(4)
        held = gate.hold(pool, 4)  # returns once all four run
        gate.open()
        assert len({f.result(TIMEOUT) for f in held}) == 4


def test_fewer_workers_and_nothing_is_lost(tmp_path: pathlib.Path) -> None:
    gate = Gate(tmp_path)
    with plait.ProcessPool(4) as pool:
        held = gate.hold(pool, 4)
        waiting = [pool.submit(tasks.plus_one, i) for i in range(500)]
        fds = {w.pid: os.pidfd_open(w.pid) for w in pool.statistics().workers}
        pool.resize(1)
        gate.open()
        pids = [f.result(TIMEOUT) for f in held]
        assert len(set(pids)) == 4
        assert [f.result(TIMEOUT) for f in waiting] == list(range(1, 501))
        (stays,) = {pool.submit(tasks.pid).result(TIMEOUT) for _ in range(50)}
        os.close(fds.pop(stays))
        for fd in fds.values():
            wait_for_end(fd, "a worker")
        assert pool.submit(tasks.pid).result(TIMEOUT) == stays
        # What ends as it was told to is no death that counts against the pool.
        with pytest.raises(plait.WorkerDied):
            pool.submit(tasks.exit_with, 3).result(TIMEOUT)
        assert pool.submit(tasks.plus_one, 1).result(TIMEOUT) == 2


def test_resizing_all_the_time() -> None:
    with plait.ProcessPool(2) as pool:
        ended = threading.Event()
        errors: list[BaseException] = []

        def resize() -> None:
            try:
                for n in [1, 6, 2, 8, 3, 1] * 5:
                    pool.resize(n)
            except BaseException as error:
                errors.append(error)
            finally:
                ended.set()

        thread = threading.Thread(target=resize)
        thread.start()
        rounds = 0
        while rounds < 20 or not ended.is_set():
            rounds += 1
            futures = [pool.submit(tasks.plus_one, i) for i in range(200)]
            assert [f.result(TIMEOUT) for f in futures] == list(range(1, 201))
        thread.join()
        assert not errors


@pytest.mark.parametrize(
    ("workers", "error"),
    [(0, ValueError), (-1, ValueError), (65, ValueError), (1.5, TypeError), (True, TypeError)],
)
def test_bad_sizes(workers: Any, error: type[Exception]) -> None:
    with plait.ProcessPool(1) as pool:
        with pytest.raises(error, match="workers must be"):
            pool.resize(workers)
        assert len(pool._seats) == 1
    with pytest.raises(RuntimeError, match="shut down"):
        pool.resize(2)


LIMITED = """
import resource
resource.setrlimit(resource.RLIMIT_AS, (4 << 30, 4 << 30))
import plait
with plait.ProcessPool(2) as pool:
    room = pool._room
    assert room >= 2 and pool.submit(len, bytes(5 << 20)).result(30) == 5 << 20
    pool.resize(room)
    try:
        pool.resize(room + 1)
    except ValueError as error:
        assert "from 1 to" in str(error)
    assert pool.submit(abs, -1).result(30) == 1
"""


@needs_plain_memory
def test_little_address_space() -> None:
    subprocess.run([sys.executable, "-c", LIMITED], check=True, timeout=60)
