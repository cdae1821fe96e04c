"""What a worker can do to its pool: one task may fail, all others have their results."""

from __future__ import annotations

import concurrent.futures
import gc
import os
import pathlib
import pickle
import resource
import socket
import struct
from collections.abc import Iterator
from typing import Any

import pool_tasks as tasks
import pytest
from pool_gate import Gate
from sanitizer import needs_plain_memory
from until import until

import plait

TIMEOUT = 100.0


@pytest.fixture
def pool() -> Iterator[plait.ProcessPool]:
    with plait.ProcessPool(2) as pool:
        yield pool
        pool.shutdown(timeout=TIMEOUT)


def test_a_fault_tells_the_python_stack(pool: plait.ProcessPool) -> None:
    error = pool.options(name="the bad one").submit(tasks.segfault).exception(TIMEOUT)
    assert isinstance(error, plait.WorkerDied)
    assert error.stack is not None
    assert "in segfault" in error.stack
    assert "_worker.py" not in error.stack
    assert "the bad one" in str(error)
    assert "in segfault" in str(error)
    copy = pickle.loads(pickle.dumps(error))
    assert (copy.stack, copy.pid, str(copy)) == (error.stack, error.pid, str(error))
    killed = pool.submit(tasks.exit_with, 3).exception(TIMEOUT)
    assert isinstance(killed, plait.WorkerDied)
    assert killed.stack is None


def test_closed_descriptors(pool: plait.ProcessPool) -> None:
    for _ in range(3):
        before = [pool.submit(tasks.plus_one, i) for i in range(50)]
        assert pool.submit(tasks.close_descriptors).result(TIMEOUT) == "closed"
        after = [pool.submit(tasks.plus_one, i) for i in range(50)]
        assert [f.result(TIMEOUT) for f in before + after] == list(range(1, 51)) * 2


@pytest.mark.parametrize("fn", [tasks.fork_and_return, tasks.fork_and_raise])
def test_a_task_that_forks(pool: plait.ProcessPool, fn: Any) -> None:
    for _ in range(5):
        pids = {w.pid for w in pool._seats.values()}
        assert pool.submit(fn).result(TIMEOUT) in pids | {w.pid for w in pool._seats.values()}
        futures = [pool.submit(tasks.plus_one, i) for i in range(100)]
        assert [f.result(TIMEOUT) for f in futures] == list(range(1, 101))


# Offsets of struct pl_share: tail 128, head 192, armed 256, closing 264.
@pytest.mark.parametrize(
    ("offset", "data"),
    [
        (192, struct.pack("<Q", 2**63)),
        (192, struct.pack("<Q", 2**40 - 1)),
        (192, struct.pack("<Q", 0)),
        (128, struct.pack("<Q", 2**63)),
        (264, struct.pack("<I", 1)),
    ],
    ids=["head-far", "head-wraps", "head-zero", "tail-far", "closing"],
)
def test_garbage_on_the_board(pool: plait.ProcessPool, offset: int, data: bytes) -> None:
    for _ in range(3):
        before = [pool.submit(tasks.plus_one, i) for i in range(3000)]
        spoilt = pool.submit(tasks.spoil_board, offset, data)
        after = [pool.submit(tasks.plus_one, i) for i in range(3000)]
        error = spoilt.exception(TIMEOUT)
        assert error is None or isinstance(error, plait.WorkerDied)
        assert [f.result(TIMEOUT) for f in before + after] == list(range(1, 3001)) * 2


def test_max_tasks_per_worker() -> None:
    with plait.ProcessPool(1, max_tasks_per_worker=3) as pool:
        pids = [pool.submit(tasks.pid).result(TIMEOUT) for _ in range(10)]
        assert [pids.count(pid) for pid in dict.fromkeys(pids)] == [3, 3, 3, 1]
    with plait.ProcessPool(2, max_tasks_per_worker=1) as pool:
        futures = [pool.submit(tasks.pid) for _ in range(200)]
        assert len({f.result(TIMEOUT) for f in futures}) == 200


@pytest.mark.parametrize("shut", [False, True], ids=["dropped", "shut"])
def test_workers_are_replaced_when_nobody_has_the_pool(shut: bool) -> None:
    """Its tasks keep it: each is done, by a worker of its own."""
    pool = plait.ProcessPool(1, max_tasks_per_worker=1)
    futures = [pool.submit(tasks.pid) for _ in range(20)]
    if shut:
        pool.shutdown(wait=False)
    del pool
    gc.collect()
    assert len({future.result(TIMEOUT) for future in futures}) == 20


def take_descriptors(pool: plait.ProcessPool) -> tuple[int, int]:
    """Have no worker born from now on; what gives it back."""
    now = resource.prlimit(pool._zygote, resource.RLIMIT_NOFILE)
    resource.prlimit(pool._zygote, resource.RLIMIT_NOFILE, (3, now[1]))
    return now


def test_births_are_tried_again_while_the_system_lacks_something() -> None:
    with plait.ProcessPool(1) as pool:
        pid = pool.submit(tasks.pid).result(TIMEOUT)
        limits = take_descriptors(pool)
        assert isinstance(pool.submit(os._exit, 1).exception(TIMEOUT), plait.WorkerDied)
        until(lambda: pool._stillborn > 5, TIMEOUT)  # so many other failures would break it
        resource.prlimit(pool._zygote, resource.RLIMIT_NOFILE, limits)
        assert pool.submit(tasks.pid).result(TIMEOUT) != pid


def test_births_that_keep_failing_break_the_pool_with_the_reason() -> None:
    with plait.ProcessPool(1) as pool:
        assert pool.submit(tasks.plus_one, 1).result(TIMEOUT) == 2
        take_descriptors(pool)
        pool._stillborn = 13  # two more are too many
        assert isinstance(pool.submit(os._exit, 1).exception(TIMEOUT), plait.WorkerDied)
        with pytest.raises(plait.PoolBroken, match=r"did not start.*Too many open files"):
            pool.submit(tasks.plus_one, 1).result(TIMEOUT)


@needs_plain_memory
def test_memory_limit() -> None:
    with plait.ProcessPool(1, memory_limit=256 << 20) as pool:
        pid = pool.submit(os.getpid).result(TIMEOUT)
        error = pool.submit(tasks.eat_memory, 512 << 20).exception(TIMEOUT)
        assert isinstance(error, MemoryError)
        assert pool.submit(tasks.eat_memory, 32 << 20).result(TIMEOUT) == 32 << 20
        assert pool.submit(os.getpid).result(TIMEOUT) == pid


@pytest.mark.parametrize(
    ("kwargs", "error"),
    [
        ({"max_tasks_per_worker": 0}, ValueError),
        ({"max_tasks_per_worker": "3"}, TypeError),
        ({"memory_limit": 1000}, ValueError),
        ({"memory_limit": 1.5}, TypeError),
        ({"grace": -1}, ValueError),
        ({"grace": "1"}, TypeError),
    ],
)
def test_bad_limits_are_named(kwargs: dict[str, Any], error: type[Exception]) -> None:
    with pytest.raises(error, match=next(iter(kwargs))):
        plait.ProcessPool(1, **kwargs)


def test_a_worker_whose_descriptors_were_lost_is_stopped_all_the_same(
    monkeypatch: pytest.MonkeyPatch, tmp_path: pathlib.Path
) -> None:
    """A process that has too many descriptors gets the message without them."""
    receive = socket.recv_fds
    lost = []

    def lose(*args: Any) -> Any:
        message, fds, *rest = receive(*args)
        for fd in fds:
            os.close(fd)
        lost.extend(fds)
        return message, [], *rest

    monkeypatch.setattr(socket, "recv_fds", lose)
    gate = Gate(tmp_path)
    with plait.ProcessPool(1) as pool:
        assert pool.submit(tasks.plus_one, 1).result(TIMEOUT) == 2
        (held,) = gate.hold(pool)
        assert held.cancel()
        with pytest.raises(concurrent.futures.CancelledError):
            held.result(TIMEOUT)
        with pytest.raises(plait.WorkerDied):
            pool.submit(tasks.exit_with, 3).result(TIMEOUT)
        assert pool.submit(tasks.plus_one, 2).result(TIMEOUT) == 3
    assert len(lost) == 4
