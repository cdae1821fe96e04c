"""Who wakes whom: no task waits for a worker that sleeps."""

from __future__ import annotations

import pathlib

import pool_tasks as tasks
import pytest
from until import until

import plait

TIMEOUT = 100.0


@pytest.mark.parametrize("burst", [1, 200])
def test_a_long_task_at_the_end_of_a_burst_holds_nobody_back(
    tmp_path: pathlib.Path, burst: int
) -> None:
    """A worker that was not woken, since tasks had been short, is woken for a long one."""
    here, there, gate = (tmp_path / name for name in ("here", "there", "gate"))
    with plait.ProcessPool(2) as pool:
        for _ in range(10):
            for future in [pool.submit(tasks.noop) for _ in range(burst)]:
                future.result(TIMEOUT)
        until(lambda: pool._figures()["parked"] == 2)
        futures = [
            pool.submit(tasks.announce_and_wait, str(where), str(gate)) for where in (here, there)
        ]
        # Nothing here touches the pool while it waits for the second task to begin.
        try:
            until(lambda: here.exists() and there.exists())
        finally:
            gate.touch()
        for future in futures:
            future.result(TIMEOUT)
