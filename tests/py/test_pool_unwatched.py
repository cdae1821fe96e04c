"""What happens to a pool while nobody looks at it, and what looking costs."""

from __future__ import annotations

import mmap
import os
import pathlib
import signal
import struct
import time
from typing import Any

import pool_tasks as tasks
import pytest
from pool_gate import Gate
from until import until, wait_for_end

import plait

TIMEOUT = 100.0

# Offsets in struct pl_share.
PARKED, SPINNING = 320, 384
SLOT_SIZE, READY = 512, 1


def workers_of(pool: plait.ProcessPool) -> set[int]:
    """Its workers, as the kernel tells, without asking the pool."""
    path = pathlib.Path(f"/proc/{pool._zygote}/task/{pool._zygote}/children")
    return {int(pid) for pid in path.read_text().split()}


def parked(pool: plait.ProcessPool) -> bool:
    return bool(pool._figures()["parked"] == pool._workers)


# ---- deaths --------------------------------------------------------------------------


def test_a_death_while_nobody_waits_has_a_successor() -> None:
    with plait.ProcessPool(2) as pool:
        assert pool.submit(tasks.plus_one, 1).result(TIMEOUT) == 2
        until(lambda: parked(pool))
        for _ in range(3):
            old = workers_of(pool)
            for pid in old:
                os.kill(pid, signal.SIGKILL)
            # Nothing here touches the pool.
            until(lambda old=old: len(workers_of(pool) - old) == 2)  # type: ignore[misc]
        assert pool.submit(tasks.plus_one, 1).result(TIMEOUT) == 2


def test_work_that_nobody_waits_for_goes_on_after_deaths(tmp_path: pathlib.Path) -> None:
    with plait.ProcessPool(2) as pool:
        for _ in range(5):
            pool.submit(tasks.exit_with, 3)
        pool.submit(tasks.announce, str(tmp_path / "here"))
        until((tmp_path / "here").exists)


def test_a_retry_that_nobody_waits_for_is_made(tmp_path: pathlib.Path) -> None:
    with plait.ProcessPool(1) as pool:
        pool.options(retries=3).submit(tasks.raise_then, str(tmp_path / "tries"), 1)
        until(lambda: pool.statistics().done == 1)
        assert pool.statistics().retried == 1


def test_a_pool_that_nobody_refers_to_ends() -> None:
    """Its helper sleeps without holding it."""
    pool = plait.ProcessPool(1)
    pool.submit(tasks.plus_one, 1).result(TIMEOUT)
    zygote = os.pidfd_open(pool._zygote)
    del pool
    wait_for_end(zygote, "the zygote")


def test_workers_that_end_before_they_begin_a_task_break_the_pool() -> None:
    with plait.ProcessPool(1, initializer=tasks.end_once_ready) as pool:
        error = pool.submit(tasks.plus_one, 1).exception(TIMEOUT)
        assert isinstance(error, plait.PoolBroken)
        assert "before they began a task" in str(error)
        assert "exit code 9" in str(error)
        with pytest.raises(plait.PoolBroken):
            pool.submit(tasks.plus_one, 1)


def test_tasks_that_each_kill_their_worker_all_end() -> None:
    with plait.ProcessPool(2) as pool:
        futures = [pool.submit(tasks.exit_with, 3) for _ in range(12)]
        errors = [future.exception(TIMEOUT) for future in futures]
        assert all(isinstance(error, plait.WorkerDied) for error in errors)
        assert pool.submit(tasks.plus_one, 1).result(TIMEOUT) == 2


# ---- a spoilt board ------------------------------------------------------------------


@pytest.mark.parametrize(
    ("offset", "data"),
    [(PARKED, bytes(32)), (PARKED, b"\xff" * 32), (SPINNING, b"\xff" * 32)],
    ids=["nobody-is-parked", "all-are-parked", "all-spin"],
)
def test_a_worker_is_found_whatever_the_board_says(
    tmp_path: pathlib.Path, offset: int, data: bytes
) -> None:
    """Both workers come to have a task although the words by which they are woken are wrong."""
    gate = Gate(tmp_path)
    with plait.ProcessPool(2) as pool:
        assert pool.submit(tasks.plus_one, 1).result(TIMEOUT) == 2
        until(lambda: parked(pool))
        assert pool.submit(tasks.spoil_board, offset, data).result(TIMEOUT) == "spoilt"
        try:
            futures = gate.hold(pool, 2)
        finally:
            gate.open()
        for future in futures:
            future.result(TIMEOUT)


def spoil_waiting(pool: plait.ProcessPool) -> int:
    """Overwrite the words of the tasks that no worker has begun; how many these are."""
    with mmap.mmap(pool._fds[0], 0) as board:
        nslots = struct.unpack_from("<I", board, 12)[0]
        slots_at = struct.unpack_from("<Q", board, 40)[0]
        places = range(slots_at, slots_at + nslots * SLOT_SIZE, SLOT_SIZE)
        waiting = [at for at in places if board[at] == READY]
        for at in waiting:
            board[at : at + 8] = b"\xff" * 8
        return len(waiting)


def test_a_task_whose_word_was_overwritten_is_done_all_the_same(tmp_path: pathlib.Path) -> None:
    """No worker can take it as it is; nobody dies, and others come and go meanwhile."""
    gate = Gate(tmp_path)
    with plait.ProcessPool(2) as pool:
        assert pool.submit(tasks.plus_one, 1).result(TIMEOUT) == 2
        before = workers_of(pool)
        try:
            held = gate.hold(pool, 2)
            waiting = [pool.submit(tasks.plus_one, n) for n in range(2)]
            assert spoil_waiting(pool) == 2
        finally:
            gate.open()
        for future in held:
            future.result(TIMEOUT)
        until(
            lambda: (
                pool.submit(tasks.plus_one, 4).result(TIMEOUT) == 5
                and all(future.done() for future in waiting)
            )
        )
        assert [future.result(TIMEOUT) for future in waiting] == [1, 2]
        assert workers_of(pool) == before


# ---- finalizers ----------------------------------------------------------------------


class WaitsAtItsEnd:
    """A callable whose last reference is its task's, and which waits for another task then."""

    def __init__(self, pool: plait.ProcessPool, seen: list[Any]) -> None:
        self.pool = pool
        self.seen = seen

    def __call__(self) -> None:
        """Stands for what is called in the worker."""

    def __reduce__(self) -> Any:
        return (tasks.noop_of, ())

    def __del__(self) -> None:
        try:
            self.seen.append(self.pool.submit(tasks.plus_one, 1).result(TIMEOUT / 2))
        except BaseException as error:
            self.seen.append(error)


@pytest.mark.parametrize("stage", ["done", "died"])
def test_a_finalizer_may_wait_for_the_pool(tmp_path: pathlib.Path, stage: str) -> None:
    seen: list[Any] = []
    gate = Gate(tmp_path)
    with plait.ProcessPool(1) as pool:
        for _ in range(3):
            held = gate.hold(pool)
            future = pool.submit(WaitsAtItsEnd(pool, seen))
            if stage == "died":
                os.kill(next(iter(workers_of(pool))), signal.SIGKILL)
            del future
            gate.open()
            last = pool.submit(tasks.plus_one, 2)
            assert last.result(TIMEOUT) == 3
            held[0].exception(TIMEOUT)
            (tmp_path / "open").unlink()
        del held
        until(lambda: len(seen) == 3)
    assert seen == [2, 2, 2]


# ---- memory --------------------------------------------------------------------------


def test_results_that_nobody_reads_are_freed() -> None:
    """Many times more than the shared memory holds is returned, and dropped unread."""
    with plait.ProcessPool(1, shared_memory=16 << 20) as pool:
        for _ in range(40):
            pool.submit(tasks.zeros, 4 << 20)
        until(lambda: pool.statistics().done + pool.statistics().failed == 40)
        assert pool.statistics().failed == 0
        assert len(pool.submit(tasks.zeros, 15 << 20).result(TIMEOUT)) == 15 << 20


# ---- what it costs -------------------------------------------------------------------


def switches(task: pathlib.Path) -> tuple[int, int, bool]:
    """Nanoseconds on a processor, how often it was given one, and whether it wants one."""
    on, _, slices = (task / "schedstat").read_text().split()
    wants = (task / "stat").read_text().rpartition(")")[2].split()[0] == "R"
    return int(on), int(slices), wants


def test_an_idle_pool_costs_nothing() -> None:
    with plait.ProcessPool(2) as pool:
        for _ in range(200):
            pool.submit(tasks.noop).result(TIMEOUT)
        me = str(os.getpid())
        own = [
            pathlib.Path(f"/proc/{me}/task/{thread.native_id}")
            for thread in (pool._helper.thread,)  # type: ignore[union-attr]
        ]
        processes = [*workers_of(pool), pool._zygote]
        everyone = own + [pathlib.Path(f"/proc/{pid}/task/{pid}") for pid in processes]
        until(lambda: parked(pool) and pool._outstanding == 0)

        def still() -> bool:
            before = [switches(task) for task in everyone]
            # It is the passing of time that is looked at: more than the second after which the
            # helper looks again while it is up.
            time.sleep(1.5)
            after = [switches(task) for task in everyone]
            return after == before and not any(wants for *_, wants in after)

        # The helper stays up for some milliseconds after the last task, and longer where it has
        # no turn.
        until(still)


def test_statistics_tell_of_spinning() -> None:
    with plait.ProcessPool(1) as pool:
        for _ in range(100):
            pool.submit(tasks.noop).result(TIMEOUT)
        figures = pool.statistics()
        assert 0 < figures.wake_up <= 0.0001
        assert 0 <= figures.spins_met <= figures.spins


def test_nobody_spins_when_there_are_more_workers_than_processors() -> None:
    with plait.ProcessPool(min(64, 4 * len(os.sched_getaffinity(0)))) as pool:
        for _ in range(200):
            pool.submit(tasks.noop).result(TIMEOUT)
        until(lambda: parked(pool))
        # A pool that has not all its workers yet may have room to spin.
        before = pool.statistics().spins
        for _ in range(200):
            pool.submit(tasks.noop).result(TIMEOUT)
        assert pool.statistics().spins == before
