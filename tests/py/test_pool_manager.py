"""Arguments that speak to a manager of multiprocessing's, a server in another process."""

from __future__ import annotations

import multiprocessing

import pool_tasks as tasks
import pytest

import plait


@pytest.mark.slow
@pytest.mark.isolated
def test_a_managers_queue_is_an_argument() -> None:
    with plait.ProcessPool(2) as pool:
        with multiprocessing.get_context("spawn").Manager() as manager:
            queue = manager.Queue()
            for future in [pool.submit(tasks.put, queue, i) for i in range(8)]:
                future.result(30)
            assert sorted(queue.get_nowait() for _ in range(8)) == list(range(8))
            # What an initializer is given speaks to it as well.
            with plait.ProcessPool(1, initializer=tasks.put, initargs=(queue, "born")) as other:
                other.submit(tasks.noop).result(30)
            assert queue.get_nowait() == "born"
