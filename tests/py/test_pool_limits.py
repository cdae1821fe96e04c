"""Bounded submission, and what a pool tells about itself."""

from __future__ import annotations

import asyncio
import threading
from typing import Any

import pool_tasks as tasks
import pytest
from pool_gate import Gate

import plait

TIMEOUT = 100.0


def test_full_pool_raises(gate: Gate) -> None:
    with plait.ProcessPool(1, max_pending=3, when_full="raise") as pool:
        gate.hold(pool)
        pool.submit(tasks.noop)
        last = pool.submit(tasks.noop)
        with pytest.raises(plait.PoolFull, match="max_pending"):
            pool.submit(tasks.noop)
        assert last.cancel()
        again = pool.submit(tasks.plus_one, 1)
        gate.open()
        assert again.result(TIMEOUT) == 2


def test_full_pool_blocks(gate: Gate) -> None:
    with plait.ProcessPool(2, max_pending=4) as pool:
        gate.hold(pool, 2)
        results: list[Any] = []

        def work() -> None:
            for i in range(200):
                future = pool.submit(tasks.plus_one, i)
                assert pool._outstanding <= 4 + 4  # each of four may be between look and submit
                results.append(future)

        threads = [threading.Thread(target=work) for _ in range(4)]
        for thread in threads:
            thread.start()
        gate.open()
        for thread in threads:
            thread.join(TIMEOUT)
            assert not thread.is_alive()
        assert sorted(f.result(TIMEOUT) for f in results) == sorted([*range(1, 201)] * 4)


def test_full_pool_is_awaited(gate: Gate) -> None:
    async def main() -> None:
        with plait.ProcessPool(1, max_pending=2, when_full="await") as pool:
            gate.hold(pool)
            await pool.submit_soon(tasks.noop)
            with pytest.raises(plait.PoolFull, match="submit_soon"):
                pool.submit(tasks.noop)
            soon = asyncio.ensure_future(pool.submit_soon(tasks.plus_one, 1))
            await asyncio.sleep(0)
            assert not soon.done()
            gate.open()
            assert await (await soon) == 2

    asyncio.run(asyncio.wait_for(main(), TIMEOUT))


def test_a_full_pool_does_not_block_a_loop(gate: Gate) -> None:
    async def main() -> None:
        loop = asyncio.get_running_loop()
        with plait.ProcessPool(1, max_pending=2) as pool:
            gate.hold(pool)
            first = loop.run_in_executor(pool, tasks.noop)
            with pytest.raises(plait.PoolFull, match="submit_soon"):
                pool.submit(tasks.noop)
            waiting = [loop.run_in_executor(pool, tasks.plus_one, n) for n in range(5)]
            dropped = loop.run_in_executor(pool, tasks.noop)
            dropped.cancel()
            await asyncio.sleep(0)
            assert not any(future.done() for future in [first, *waiting])
            gate.open()
            assert await first is None
            assert await asyncio.gather(*waiting) == [1, 2, 3, 4, 5]
            assert dropped.cancelled()
        with plait.ProcessPool(1, max_pending=1, when_full="raise") as pool:
            pool.submit(tasks.noop)
            with pytest.raises(plait.PoolFull):
                loop.run_in_executor(pool, tasks.noop)

    plait.run(asyncio.wait_for(main(), TIMEOUT))


def test_many_coroutines_wait_for_room() -> None:
    async def main() -> None:
        with plait.ProcessPool(1, max_pending=4) as pool:
            order: list[int] = []

            async def one(n: int) -> int:
                future = await pool.submit_soon(tasks.plus_one, n)
                order.append(n)
                return int(await asyncio.wrap_future(future))

            jobs = [asyncio.ensure_future(one(n)) for n in range(300)]
            for job in jobs[100:300:7]:
                job.cancel()
            found = await asyncio.gather(*jobs, return_exceptions=True)
            assert [x for x in found if isinstance(x, int)] == [n + 1 for n in order]
            assert order == sorted(order)
            assert sum(isinstance(x, asyncio.CancelledError) for x in found) == 29

    asyncio.run(asyncio.wait_for(main(), TIMEOUT))


def test_the_end_of_the_pool_reaches_those_who_wait_for_room(gate: Gate) -> None:
    async def main() -> None:
        pool = plait.ProcessPool(1, max_pending=1)
        gate.hold(pool)
        soon = [asyncio.ensure_future(pool.submit_soon(tasks.noop)) for _ in range(3)]
        await asyncio.sleep(0)
        pool.shutdown(wait=False, cancel_futures=True)
        gate.open()
        for job in soon:
            with pytest.raises(RuntimeError, match="shutdown"):
                await job
        pool.shutdown()

    asyncio.run(asyncio.wait_for(main(), TIMEOUT))


@pytest.mark.parametrize(
    ("kwargs", "error"),
    [
        ({"max_pending": 0}, ValueError),
        ({"max_pending": "1"}, TypeError),
        ({"when_full": "explode"}, ValueError),
    ],
)
def test_bad_bounds_are_named(kwargs: dict[str, Any], error: type[Exception]) -> None:
    with pytest.raises(error, match=next(iter(kwargs))):
        plait.ProcessPool(1, **kwargs)


def test_statistics(gate: Gate, tmp_path: Any) -> None:
    with plait.ProcessPool(2) as pool:
        for i in range(100):
            pool.submit(tasks.plus_one, i).result(TIMEOUT)
        pool.submit(tasks.fail, "x").exception(TIMEOUT)
        pool.options(timeout=0.05).submit(tasks.sleep_long, str(tmp_path / "here")).exception(
            TIMEOUT
        )
        path = str(tmp_path / "tries")
        pool.options(retries=2).submit(tasks.raise_then, path, 2).result(TIMEOUT)
        held = gate.hold(pool, 2)
        queued = [pool.submit(tasks.noop) for _ in range(5)]
        assert queued[0].cancel()
        now = pool.statistics()
        assert (now.queued, now.running) == (4, 2)
        assert (now.done, now.failed, now.cancelled) == (101, 1, 1)
        assert (now.timed_out, now.retried) == (1, 2)
        assert list(now.queue_wait) == list(now.run_time) == [50, 90, 99, 100]
        assert list(now.run_time.values()) == sorted(now.run_time.values())
        assert 0 < now.run_time[50] < 0.05 < now.run_time[100]
        assert len(now.workers) == 2
        for worker in now.workers:
            assert worker.state == "running"
            assert worker.task == "announce_and_wait"
            assert worker.run_time is not None
            assert worker.run_time > 0
            assert worker.memory is not None
            assert worker.memory > 1 << 20
        gate.open()
        for future in held + queued[1:]:
            future.result(TIMEOUT)
        assert pool.statistics().done == 107
