"""How many processors a process may use: affinity and the limits of its control group."""

from __future__ import annotations

import os

MAX_WORKERS = 64


def either(workers: int | None, max_workers: int | None) -> int | None:
    """What a pool was told by one of two names; TypeError when both were used."""
    if workers is not None and max_workers is not None:
        raise TypeError("workers and max_workers mean the same: only one of them can be given")
    return max_workers if workers is None else workers


def cpu_quota() -> float | None:
    """The CPU limit of this process's control group, in cores, or None without one."""
    try:
        with open("/proc/self/cgroup", encoding="ascii") as file:
            lines = file.read().splitlines()
    except (OSError, ValueError):
        return None
    best: float | None = None
    roots: list[tuple[str, str, str | None]]
    for line in lines:
        number, controllers, path = line.split(":", 2)
        if number == "0":
            roots = [("/sys/fs/cgroup", "cpu.max", None)]
        elif "cpu" in controllers.split(","):
            roots = [
                (f"/sys/fs/cgroup/{name}", "cpu.cfs_quota_us", "cpu.cfs_period_us")
                for name in ("cpu", controllers)
            ]
        else:
            continue
        parts = [part for part in path.split("/") if part]
        # Limits of every ancestor hold, too; inside a container the path may not exist.
        for depth in range(len(parts), -1, -1):
            for root, quota_name, period_name in roots:
                where = os.path.join(root, *parts[:depth])
                try:
                    with open(os.path.join(where, quota_name), encoding="ascii") as file:
                        words = file.read().split()
                    if period_name is not None:
                        with open(os.path.join(where, period_name), encoding="ascii") as file:
                            words.append(file.read().strip())
                    if words[0] in ("max", "-1"):
                        continue
                    cores = int(words[0]) / int(words[1])
                except (OSError, ValueError, IndexError, ZeroDivisionError):
                    continue
                best = cores if best is None else min(best, cores)
    return best


def quota_bound() -> int:
    """How many whole processors the control group's limit leaves; 0 when it sets none."""
    quota = cpu_quota()
    return 0 if quota is None else max(1, int(quota))


def default_workers() -> int:
    """As many workers as this process may use processors: affinity and control group."""
    count = len(os.sched_getaffinity(0))
    quota = cpu_quota()
    if quota is not None:
        count = min(count, max(1, round(quota)))
    return min(count, MAX_WORKERS)
