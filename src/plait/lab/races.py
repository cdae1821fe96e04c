"""A counter that several strands count up at once: who loses counts, and what a lock costs.

``counter = step(counter)`` is three things: read, compute, write. Whoever reads between the
read and the write of another overwrites what that one has written, and its step is lost.
Each way below does the same number of steps; what is missing at the end was lost so.
"""

from __future__ import annotations

import asyncio
import fcntl
import mmap
import os
import sys
import threading
import time
from collections.abc import Callable
from dataclasses import dataclass

import plait

__all__ = ["Race", "explain", "measure"]

STRANDS = 4
WORKERS = 2
SWITCH_INTERVAL = 1e-4
"""Seconds: threads change more often than usual here, so that a second shows what otherwise
takes a day. The race is the same."""

counter = 0
"""The plain global of a process: every process has one of its own."""


@dataclass(frozen=True)
class Race:
    """What came of one way.

    Attributes:
        name: The way.
        wanted: How many steps were made.
        counted: What the counter says.
        step_ns: Time of a step, in nanoseconds, from first to last of all of them.
    """

    name: str
    wanted: int
    counted: int
    step_ns: float

    @property
    def lost(self) -> int:
        """How many steps left no trace."""
        return self.wanted - self.counted


def step(value: int) -> int:
    """Compute the next value."""
    return value + 1


def measure(*, steps: int = 40_000) -> list[Race]:
    """Let every way count.

    Args:
        steps: For each strand.
    """
    ways: list[tuple[str, Callable[[int], tuple[int, int]]]] = [
        ("threads", lambda steps: _threads(steps, None)),
        ("threads, with a lock", lambda steps: _threads(steps, threading.Lock())),
        ("coroutines, no await between", lambda steps: _coroutines(steps, 0, None)),
        ("coroutines, an await between", lambda steps: _coroutines(steps // 8, 1, None)),
        ("coroutines, await and lock", lambda steps: _coroutines(steps // 8, 1, asyncio.Lock())),
    ]
    races = []
    interval = sys.getswitchinterval()
    sys.setswitchinterval(SWITCH_INTERVAL)
    try:
        for name, way in ways:
            start = time.perf_counter_ns()
            wanted, counted = way(steps)
            races.append(Race(name, wanted, counted, (time.perf_counter_ns() - start) / wanted))
    finally:
        sys.setswitchinterval(interval)
    with plait.ProcessPool(WORKERS) as pool:
        list(pool.map(step, range(WORKERS)))  # They have started.
        races += _processes(pool, steps)
    return races


def _threads(steps: int, lock: threading.Lock | None) -> tuple[int, int]:
    value = 0

    def count() -> None:
        nonlocal value
        for _ in range(steps):
            value = step(value)

    def count_locked(lock: threading.Lock) -> None:
        nonlocal value
        for _ in range(steps):
            with lock:
                value = step(value)

    threads = [
        threading.Thread(target=count_locked, args=(lock,))
        if lock
        else threading.Thread(target=count)
        for _ in range(STRANDS)
    ]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    return STRANDS * steps, value


def _coroutines(steps: int, pause: int, lock: asyncio.Lock | None) -> tuple[int, int]:
    value = 0

    async def once() -> None:
        nonlocal value
        seen = value
        if pause:
            await asyncio.sleep(0)
        value = step(seen)

    async def count() -> None:
        for _ in range(steps):
            if lock:
                async with lock:
                    await once()
            else:
                await once()

    async def main() -> None:
        await asyncio.gather(*(count() for _ in range(STRANDS)))

    plait.run(main())
    return STRANDS * steps, value


def _processes(pool: plait.ProcessPool, steps: int) -> list[Race]:
    global counter
    counter = 0
    races = []
    start = time.perf_counter_ns()
    done = sum(pool.map(count_global, [steps] * WORKERS, chunksize=1))
    took = time.perf_counter_ns() - start
    races.append(Race("processes, a global", done, counter, took / done))
    shared = os.memfd_create("plait-race", os.MFD_CLOEXEC)
    try:
        os.ftruncate(shared, mmap.PAGESIZE)
        path = f"/proc/{os.getpid()}/fd/{shared}"
        for name, locked in (
            ("processes, shared memory", False),
            ("processes, shared memory and a lock", True),
        ):
            os.pwrite(shared, bytes(8), 0)
            share = steps // 4 if locked else steps
            start = time.perf_counter_ns()
            jobs = [pool.submit(count_shared, path, share, locked) for _ in range(WORKERS)]
            for job in jobs:
                job.result()
            took = time.perf_counter_ns() - start
            counted = int.from_bytes(os.pread(shared, 8, 0), sys.byteorder)
            races.append(Race(name, WORKERS * share, counted, took / (WORKERS * share)))
    finally:
        os.close(shared)
    return races


def count_global(steps: int) -> int:
    """Count up the global of the process that this runs in; return how often."""
    global counter
    for _ in range(steps):
        counter = step(counter)
    return steps


def count_shared(path: str, steps: int, locked: bool) -> None:
    """Count up a number in shared memory, with a lock of the system or without one."""
    with open(path, "r+b", buffering=0) as file, mmap.mmap(file.fileno(), mmap.PAGESIZE) as memory:
        view = memoryview(memory).cast("Q")
        try:
            for _ in range(steps):
                if locked:
                    fcntl.lockf(file, fcntl.LOCK_EX)
                view[0] = step(view[0])
                if locked:
                    fcntl.lockf(file, fcntl.LOCK_UN)
        finally:
            view.release()


def explain(races: list[Race], *, gil: bool) -> list[str]:
    """Say what the counts show, in sentences that follow them.

    Args:
        races: What `measure` gave.
        gil: Whether the interpreter has its global lock.
    """
    by_name = {race.name: race for race in races}
    told = []
    threads = by_name.get("threads")
    if threads:
        why = (
            "The GIL lets one thread run at a time, but it may change between any two "
            "instructions, also between reading and writing"
            if gil
            else "Without a GIL they read and write at the same instant"
        )
        if threads.lost > 0:
            told.append(f"Threads lost {_part(threads)}. {why}.")
        else:
            told.append(f"Threads lost nothing this time, which proves nothing. {why}.")
    locked = by_name.get("threads, with a lock")
    if locked and threads:
        told.append(
            ("A lock loses nothing" if locked.lost == 0 else "Even the lock lost steps")
            + f", and a step takes {locked.step_ns:,.0f} ns with it instead of "
            f"{threads.step_ns:,.0f} ns."
        )
    straight = by_name.get("coroutines, no await between")
    paused = by_name.get("coroutines, an await between")
    if straight and straight.lost == 0:
        told.append(
            "Coroutines need no lock as long as no await comes between reading and writing: "
            "nobody else runs there."
        )
    if paused:
        told.append(
            f"With an await between, they lose {_part(paused)}: the same race, in one thread, "
            "and here it is no accident but certain."
            if paused.lost > 0
            else "With an await between, this run lost nothing."
        )
    own = by_name.get("processes, a global")
    if own and own.counted == 0:
        told.append(
            f"Processes made {own.wanted:,} steps, and the counter of the parent still says 0: "
            "each counted in a memory of its own. What they find has to be sent."
        )
    shared = by_name.get("processes, shared memory")
    if shared:
        told.append(
            f"In memory that they share they lost {_part(shared)}."
            if shared.lost > 0
            else "In memory that they share they lost nothing this time, by luck."
        )
    both = by_name.get("processes, shared memory and a lock")
    if both and shared and both.lost == 0:
        told.append(
            f"A lock between processes loses nothing; a step takes {both.step_ns:,.0f} ns with it "
            f"instead of {shared.step_ns:,.0f} ns."
        )
    return told


def _part(race: Race) -> str:
    return f"{race.lost:,} of {race.wanted:,} steps ({race.lost / race.wanted:.1%})"
