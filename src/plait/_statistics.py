"""What a pool tells about itself."""

from __future__ import annotations

import os
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any


@dataclass(frozen=True, slots=True)
class WorkerStatistics:
    """A worker of a pool.

    Attributes:
        pid: its process id, 0 while it is being started.
        state: "starting", "idle" or "running".
        task: name of the task that it runs, or None.
        run_time: seconds for which it has run that task, or None.
        memory: its resident size in bytes, or None if it cannot be read.
    """

    pid: int
    state: str
    task: str | None
    run_time: float | None
    memory: int | None


@dataclass(frozen=True, slots=True)
class PoolStatistics:
    """How a pool stands; numbers of tasks since it was made, unless said.

    Attributes:
        queued: tasks that no worker has begun, now.
        running: tasks that workers run, now.
        done: those that returned.
        failed: those that raised, or whose worker died.
        cancelled: those that were cancelled, before or while they ran.
        timed_out: those that ran for longer than they were given.
        retried: how often a task was tried again.
        queue_wait: percentiles (50, 90, 99, 100) of the seconds from submission to begin; an
            approximation: each is the middle of a bucket a quarter of a doubling wide.
        run_time: the same of the seconds that tasks ran.
        wake_up: seconds that waking a worker takes, as measured; how long one who runs dry may
            look on before it sleeps.
        spins: how often one of the present workers, or a thread that waited for results, did so.
        spins_met: how often that found something. It is left out where it would not.
        workers: the workers, in the order of their seats.
    """

    queued: int
    running: int
    done: int
    failed: int
    cancelled: int
    timed_out: int
    retried: int
    queue_wait: Mapping[int, float]
    run_time: Mapping[int, float]
    wake_up: float
    spins: int
    spins_met: int
    workers: tuple[WorkerStatistics, ...]


def resident(pid: int) -> int | None:
    """The resident size of a process in bytes."""
    try:
        with open(f"/proc/{pid}/statm", encoding="ascii") as file:
            return int(file.read().split()[1]) * os.sysconf("SC_PAGE_SIZE")
    except (OSError, ValueError, IndexError):
        return None


def gather(pool: Any) -> PoolStatistics:
    """Put a process pool's figures together."""
    figures = pool._figures()
    running = {seat: (future, ns) for seat, future, ns in pool._running()}
    workers = []
    with pool._lock:
        seats = sorted(pool._seats.items())
    for seat, worker in seats:
        task = run_time = None
        state = "idle" if worker.pid else "starting"
        if seat in running:
            future, ns = running[seat]
            state, task = "running", future._task_name
            run_time = ns / 1e9 if ns >= 0 else 0.0
        memory = resident(worker.pid) if worker.pid else None
        workers.append(WorkerStatistics(worker.pid, state, task, run_time, memory))
    return PoolStatistics(
        queued=max(0, figures["outstanding"] - len(running)),
        running=len(running),
        done=figures["done"],
        failed=figures["failed"],
        cancelled=figures["cancelled"],
        timed_out=figures["timed_out"],
        retried=figures["retried"],
        queue_wait=figures["waited"],
        run_time=figures["ran"],
        wake_up=figures["wake_ns"] / 1e9,
        spins=figures["spins"],
        spins_met=figures["spins_met"],
        workers=tuple(workers),
    )
