"""Two million tasks while a worker is killed at random every 50 ms.

    make soak                       # SOAK_ARGS="--seconds 30 --seed 7"

Every future ends exactly once, with the right result or with WorkerDied; memory stays flat; no
descriptor, process or name in /dev/shm is left.
"""

from __future__ import annotations

import argparse
import contextlib
import dataclasses
import gc
import os
import random
import signal
import sys
import threading
import time
from pathlib import Path
from typing import Any

import torture_tasks as tasks

import plait

WINDOW = 512
THREADS = 4
BLOB = 30_000


@dataclasses.dataclass
class Report:
    """What a soak counted."""

    submitted: int = 0
    ended: int = 0
    died: int = 0
    wrong: int = 0
    twice: int = 0
    kills: int = 0
    seconds: float = 0.0
    rss_early: int = 0
    rss_late: int = 0


def resident(pid: int | str = "self") -> int:
    """Resident memory of a process that is not shared, in bytes."""
    for line in Path(f"/proc/{pid}/status").read_text().splitlines():
        if line.startswith("RssAnon:"):
            return int(line.split()[1]) * 1024
    return 0


def descriptors() -> set[str]:
    """What this process has open, by name."""
    found = set()
    for name in os.listdir("/proc/self/fd"):
        try:
            found.add(f"{name} {os.readlink(f'/proc/self/fd/{name}')}")
        except OSError:
            continue
    return found


def named() -> set[str]:
    """What has a name in shared memory; other programs may come and go with theirs."""
    return {name for name in os.listdir("/dev/shm") if "plait" in name}


def children() -> set[int]:
    """The children of this process."""
    found = set()
    for task in Path("/proc/self/task").iterdir():
        with contextlib.suppress(FileNotFoundError, ProcessLookupError):  # a thread that has ended
            found |= {int(pid) for pid in (task / "children").read_text().split()}
    return found


def run(
    pool: plait.ProcessPool,
    first: int,
    n: int,
    until: float,
    report: Report,
    lock: threading.Lock,
) -> None:
    """Keep a window of tasks under way; check each."""
    submitted = ended = died = wrong = twice = 0
    called = threading.Semaphore(0)

    def check(i: int, future: Any) -> None:
        nonlocal ended, died, wrong, twice
        try:
            value = future.result(120)
        except plait.WorkerDied:
            died += 1
        else:
            right: Any = tasks.blob(i, BLOB) if i % 64 == 0 else i * i
            wrong += value != right
        ended += 1
        if i % 97 == 0:
            # The callback runs, and runs once; it may be about to, elsewhere.
            twice += not called.acquire(timeout=120) or called.acquire(blocking=False)

    window: list[tuple[int, Any]] = []
    for i in range(first, first + n):
        if time.monotonic() > until:
            break
        submitted += 1
        future = pool.submit(tasks.blob, i, BLOB) if i % 64 == 0 else pool.submit(tasks.square, i)
        if i % 97 == 0:
            # Alone in flight, so that the count is its own.
            for item in window:
                check(*item)
            window.clear()
            future.add_done_callback(lambda _: called.release())
            check(i, future)
            continue
        window.append((i, future))
        if len(window) == WINDOW:
            for item in window:
                check(*item)
            window.clear()
    for item in window:
        check(*item)
    with lock:
        report.submitted += submitted
        report.ended += ended
        report.died += died
        report.wrong += wrong
        report.twice += twice


def soak(
    tasks: int, seconds_between_kills: float, seed: int, seconds: float = float("inf")
) -> Report:
    """Run it.

    Args:
        tasks: how many, over all threads, at most.
        seconds_between_kills: a random worker dies each time this is over.
        seed: of the choice of victims.
        seconds: nothing is submitted after so many.

    Returns:
        Report: what was counted.

    Raises:
        AssertionError: something was left behind.
    """
    dice = random.Random(seed)
    report = Report()
    gc.collect()
    fds, shm, before = descriptors(), named(), children()
    start = time.monotonic()
    with plait.ProcessPool(2) as pool:
        lock = threading.Lock()
        share = tasks // THREADS
        threads = [
            threading.Thread(
                target=run, args=(pool, k * share, share, start + seconds, report, lock)
            )
            for k in range(THREADS)
        ]
        for thread in threads:
            thread.start()
        marks: list[int] = []
        seen = -1
        while alive := [thread for thread in threads if thread.is_alive()]:
            alive[0].join(seconds_between_kills)
            marks.append(resident())
            # On a machine so busy that nothing is done between two kills, nothing ever would be.
            finished = pool._figures()["finished"]
            if finished == seen:
                continue
            seen = finished
            victims = [worker.pid for worker in list(pool._seats.values()) if worker.pid]
            if victims:
                try:
                    os.kill(dice.choice(victims), signal.SIGKILL)
                    report.kills += 1
                except ProcessLookupError:
                    pass
        for thread in threads:
            thread.join()
    report.seconds = time.monotonic() - start
    early = marks[len(marks) // 10 : len(marks) // 5] or marks
    late = marks[-max(1, len(marks) // 10) :]
    report.rss_early, report.rss_late = max(early), max(late)
    del pool, threads
    gc.collect()
    assert descriptors() == fds, descriptors() ^ fds
    assert named() <= shm
    assert children() <= before, "processes were left"
    return report


def main() -> int:
    """Run the soak as the command line asks."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--tasks", type=int, default=2_000_000, metavar="N")
    parser.add_argument("--seconds", type=float, default=float("inf"), metavar="S")
    parser.add_argument("--kill-every", type=float, default=0.05, metavar="SECONDS")
    parser.add_argument("--seed", type=int, default=random.randrange(1 << 30))
    options = parser.parse_args()
    print(f"soak: {options.tasks} tasks, seed {options.seed}", flush=True)
    report = soak(options.tasks, options.kill_every, options.seed, options.seconds)
    print(report)
    grown = report.rss_late - report.rss_early
    bad = (
        report.ended != report.submitted
        or report.ended == 0
        or report.wrong != 0
        or report.twice != 0
        or grown > 32 << 20
    )
    if bad:
        print(f"soak: FAILED (memory grew by {grown} bytes)", file=sys.stderr)
    return int(bad)


if __name__ == "__main__":
    sys.exit(main())
