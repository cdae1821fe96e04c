"""The rows: what is measured of each pool, in a process that measures one pool only."""

from __future__ import annotations

import asyncio
import functools
import os
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

from .peers import Peer
from .tasks import echo, noop

UNITS = {
    "round trip": "us",
    "no-op tasks, gathered": "1/s",
    "map, chunks of 1000": "M items/s",
    "64 MiB array, out and back": "GB/s",
    "1 MiB array, out and back": "us",
    "start": "ms",
    "stop": "ms",
    "run_in_executor": "us",
    "await 1000 futures": "ms",
    "16 threads, round trips": "1/s",
    "8 workers, no-op tasks": "1/s",
    "CPU while idle": "% of a core",
    "memory per worker": "MiB",
    "pickle a task and call it": "1/s",
    "futex, two cores": "us",
    "futex, one core": "us",
}
"""The rows in their order, and in what they are measured."""

LESS_IS_MORE = {"us", "ms", "% of a core", "MiB"}

Row = tuple[str, float]


def applies(kind: type[Peer], row: str) -> bool:
    """Whether a row is measured of this kind of pool."""
    if row.startswith(("64 MiB", "1 MiB", "memory")):
        return kind.processes
    if row in ("run_in_executor", "await 1000 futures"):
        return kind.awaits
    if row.startswith("16 threads"):
        return kind.from_any_thread
    if row.startswith("8 workers"):
        return kind.eight
    return not row.startswith(("futex", "pickle"))


def below(pid: int) -> list[int]:
    """The processes below one, as /proc tells."""
    found: list[int] = []
    try:
        threads = list(Path(f"/proc/{pid}/task").iterdir())
    except OSError:
        return found
    for thread in threads:
        try:
            children = (thread / "children").read_text().split()
        except OSError:
            continue
        for child in children:
            found += [int(child), *below(int(child))]
    return found


def on_processors(pids: list[int]) -> dict[str, int]:
    """For how many nanoseconds each thread of some processes has run, but for the one that asks.

    By the scheduler's own account: a look at something every second costs less than the tick in
    which /proc/PID/stat counts.
    """
    me = str(threading.get_native_id())
    found: dict[str, int] = {}
    for pid in pids:
        for task in Path(f"/proc/{pid}/task").glob("*"):
            if task.name == me:
                continue
            try:
                found[task.name] = int((task / "schedstat").read_text().split()[0])
            except OSError:
                if (task / "stat").exists():
                    raise  # this kernel keeps no such account: nothing would look like no use
                continue  # it has ended
    return found


def private_bytes(pids: list[int]) -> int:
    """Memory that these processes share with nobody, in bytes."""
    total = 0
    for pid in pids:
        try:
            lines = Path(f"/proc/{pid}/smaps_rollup").read_text().splitlines()
        except OSError:
            continue
        total += sum(int(line.split()[1]) for line in lines if line.startswith("Private")) * 1024
    return total


def timed(fn: Callable[[], Any]) -> float:
    """Seconds that a call takes."""
    start = time.perf_counter()
    fn()
    return time.perf_counter() - start


def seconds_each(fn: Callable[[], Any], budget: float, warm: int = 20) -> float:
    """Mean time of a call, from as many as the budget of seconds allows: 3 at least."""
    end = time.perf_counter() + budget / 4
    for _ in range(warm):
        fn()
        if time.perf_counter() > end:
            break
    n = 0
    start = time.perf_counter()
    while True:
        fn()
        n += 1
        now = time.perf_counter()
        if n >= 3 and now - start >= budget:
            return (now - start) / n


def rate(fn: Callable[[int], Any], budget: float, first: int, most: int) -> float:
    """Items per second of fn(n), with n so large that it takes about the budget.

    The sizes before the last warm the pool up.
    """
    n = first
    while True:
        took = timed(functools.partial(fn, n))
        if took >= budget / 2 or n >= most:
            return n / took
        grown = int(n * min(8.0, 0.8 * budget / max(took, 1e-9)))
        n = min(most, max(n + 1, grown))


def warm_up(peer: Peer, budget: float) -> None:
    """Keep the pool busy while the last of its workers start."""
    end = time.perf_counter() + 2 * budget
    while time.perf_counter() < end:
        peer.gather(20)


def awaiting(peer: Peer, budget: float) -> Iterator[Row]:
    """The rows of a loop that uses the pool as an executor."""

    async def single() -> float:
        loop = asyncio.get_running_loop()
        for _ in range(20):
            await loop.run_in_executor(peer.pool, noop)
        n = 0
        start = time.perf_counter()
        while (took := time.perf_counter() - start) < budget:
            await loop.run_in_executor(peer.pool, noop)
            n += 1
        return took / n

    async def many() -> float:
        loop = asyncio.get_running_loop()
        times: list[float] = []
        end = time.perf_counter() + budget
        while len(times) < 4 or time.perf_counter() < end:
            start = time.perf_counter()
            await asyncio.gather(*(loop.run_in_executor(peer.pool, noop) for _ in range(1000)))
            times.append(time.perf_counter() - start)
        return sum(times[1:]) / (len(times) - 1)

    yield "run_in_executor", peer.run(single()) * 1e6
    yield "await 1000 futures", peer.run(many()) * 1e3


def arrays(peer: Peer, budget: float) -> Iterator[Row]:
    """The rows of what is sent as an array and comes back."""
    try:
        import numpy as np
    except ImportError:
        return
    for row, size in (
        ("64 MiB array, out and back", 1 << 26),
        ("1 MiB array, out and back", 1 << 20),
    ):
        array = np.ones(size // 8)
        # Each result dies before the next one comes.
        each = seconds_each(functools.partial(peer.call, echo, array), budget, warm=3)
        yield row, 2 * size / each / 1e9 if size == 1 << 26 else each * 1e6


def measure(kind: type[Peer], budget: float) -> Iterator[Row]:
    """The rows of one pool, each as soon as it is known."""
    kind.version()
    start = time.perf_counter()
    peer = kind()
    peer.call(noop)
    yield "start", (time.perf_counter() - start) * 1e3
    warm_up(peer, budget)
    yield "round trip", seconds_each(lambda: peer.call(noop), budget) * 1e6
    yield "no-op tasks, gathered", rate(peer.gather, budget, 100, 100_000)
    peer.map(1000, 1000)  # whatever it sets up for this
    items = rate(lambda n: peer.map(n, 1000), budget, 2000, 4_000_000)
    yield "map, chunks of 1000", items / 1e6
    if peer.processes:
        yield from arrays(peer, budget)
    if peer.awaits:
        yield from awaiting(peer, budget)
    if peer.from_any_thread:
        yield (
            "16 threads, round trips",
            16 * rate(lambda n: peer.from_threads(16, n), budget, 5, 5000),
        )
    if peer.processes:
        held = private_bytes(below(os.getpid()))
        yield "memory per worker", held / peer.workers / (1 << 20)
    mine = [os.getpid(), *below(os.getpid())]
    time.sleep(0.2)  # spinning and the like is over
    before = on_processors(mine)
    time.sleep(4 * budget)
    used = sum(ran - before.get(name, 0) for name, ran in on_processors(mine).items())
    yield "CPU while idle", used / 1e9 / (4 * budget) * 100
    if kind.eight:
        eight = kind(8)
        warm_up(eight, budget)
        yield "8 workers, no-op tasks", rate(eight.gather, budget, 100, 100_000)
        eight.stop()
    yield "stop", timed(peer.stop) * 1e3
