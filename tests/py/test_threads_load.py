"""plait.ThreadPool under load: many who submit, many who wait, pools that come and go."""

from __future__ import annotations

import asyncio
import concurrent.futures
import random
import threading
import time
from typing import Any

import pytest
from until import until

import plait

pytestmark = pytest.mark.usefixtures("no_leaks")


def run_in_threads(count: int, target: Any) -> None:
    """Run target(number) in so many threads; what one of them raises is raised here."""
    errors: list[BaseException] = []

    def run(number: int) -> None:
        try:
            target(number)
        except BaseException as error:
            errors.append(error)

    threads = [threading.Thread(target=run, args=(n,)) for n in range(count)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    if errors:
        raise errors[0]


@pytest.mark.slow
@pytest.mark.parametrize("workers", [1, 4, 20])
@pytest.mark.parametrize("pending", [None, 3])
def test_sixteen_threads_submit(workers: int, pending: int | None) -> None:
    seen: set[tuple[int, int]] = set()

    def note(thread: int, n: int) -> tuple[int, int]:
        seen.add((thread, n))
        return thread, n

    with plait.ThreadPool(workers, max_pending=pending, idle_timeout=0.001) as pool:

        def submit(thread: int) -> None:
            source = random.Random(thread)
            for round_ in range(10):
                futures = []
                for i in range(50):
                    n = round_ * 50 + i
                    options = pool.options(priority=source.randrange(-1, 2))
                    futures.append((n, options.submit(note, thread, n)))
                source.shuffle(futures)
                for n, future in futures:
                    assert future.result(60) == (thread, n)

        run_in_threads(16, submit)
        assert len(seen) == 16 * 500
        assert pool.statistics().submitted == 16 * 500


@pytest.mark.slow
def test_sixteen_threads_wait_for_the_same_futures() -> None:
    with plait.ThreadPool(2) as pool:
        futures = [pool.submit(pow, 2, n) for n in range(200)]
        gate = threading.Event()
        late = pool.submit(gate.wait, 60)

        all_late = threading.Barrier(16)

        def wait(thread: int) -> None:
            source = random.Random(thread)
            with pytest.raises(TimeoutError):
                late.result(source.random() / 50)
            all_late.wait(60)
            for n, future in enumerate(futures):
                assert future.result(60) == 2**n
            if thread == 15:
                gate.set()
            assert late.result(60) is True
            assert len(concurrent.futures.wait([*futures, late]).done) == 201

        run_in_threads(16, wait)


@pytest.mark.slow
def test_results_that_come_as_the_wait_times_out() -> None:
    def nap(seconds: float) -> float:
        end = time.perf_counter() + seconds
        while time.perf_counter() < end:
            pass
        return seconds

    source = random.Random(5)
    with plait.ThreadPool(2) as pool:
        late = 0
        for _ in range(3000):
            future = pool.submit(nap, source.random() * 1e-4)
            try:
                future.result(source.random() * 1e-4)
            except TimeoutError:
                late += 1
                future.result()
        assert late > 0


@pytest.mark.slow
def test_loops_and_threads_together() -> None:
    with plait.ThreadPool(4) as pool:

        async def main() -> None:
            loop = asyncio.get_running_loop()
            for _ in range(5):
                values = await asyncio.gather(
                    *[loop.run_in_executor(pool, pow, 2, n) for n in range(200)],
                    *[asyncio.wrap_future(pool.submit(pow, 3, n)) for n in range(200)],
                )
                assert values == [2**n for n in range(200)] + [3**n for n in range(200)]

        def work(thread: int) -> None:
            if thread % 2:
                plait.run(main())
            else:
                for n in range(1000):
                    assert pool.submit(pow, 5, n % 50).result(60) == 5 ** (n % 50)

        run_in_threads(6, work)


@pytest.mark.slow
def test_pools_come_and_go() -> None:
    def churn(thread: int) -> None:
        source = random.Random(thread)
        for _ in range(40):
            pool = plait.ThreadPool(source.randint(1, 5), idle_timeout=source.random() / 1000)
            futures = [pool.submit(pow, 2, n) for n in range(source.randint(0, 30))]
            how = source.randrange(4)
            if how == 0:
                pool.shutdown()
            elif how == 1:
                pool.shutdown(wait=False)
            elif how == 2:
                pool.shutdown(cancel_futures=True)
            del pool
            for n, future in enumerate(futures):
                if how == 2 and future.cancelled():
                    continue
                assert future.result(60) == 2**n

    before = threading.active_count()
    run_in_threads(6, churn)
    until(lambda: threading.active_count() <= before)


@pytest.mark.slow
def test_size_changes_under_load() -> None:
    with plait.ThreadPool(1) as pool:
        stop = threading.Event()

        def work(thread: int) -> None:
            if thread == 0:
                source = random.Random(1)
                while not stop.is_set():
                    pool.resize(source.randint(1, 9))
                return
            try:
                for n in range(2000):
                    assert pool.submit(pow, 2, n % 64).result(60) == 2 ** (n % 64)
            finally:
                if thread == 1:
                    stop.set()

        run_in_threads(5, work)


@pytest.mark.stress
@pytest.mark.timeout(600)
def test_two_million_tasks() -> None:
    with plait.ThreadPool(4) as pool:

        def submit(thread: int) -> None:
            for _ in range(25):
                futures = [pool.submit(pow, n, 2) for n in range(5000)]
                for n, future in enumerate(futures):
                    assert future.result(60) == n * n

        run_in_threads(16, submit)


# ---- loops that come and go -----------------------------------------------------------


def test_loops_end_while_threads_call_them() -> None:
    """Tasks end while the loop that waits for them sleeps, wakes or is closed already."""

    async def ask(pool: plait.ThreadPool, count: int) -> int:
        loop = asyncio.get_running_loop()
        asked = [loop.run_in_executor(pool, abs, -n) for n in range(count)]
        done, _ = await asyncio.wait(asked, return_when=asyncio.FIRST_COMPLETED)
        return len(done)

    with plait.ThreadPool(3) as pool:
        for round_ in range(200):
            loop = plait.new_event_loop()
            try:
                assert loop.run_until_complete(ask(pool, round_ % 7 + 1)) >= 1
            finally:
                loop.close()
        assert pool.submit(abs, -1).result(60) == 1


def test_an_own_call_soon_threadsafe_is_used() -> None:
    """A loop of a program's own class is told by the method that it has."""
    told: list[str] = []

    class Loop(plait.Loop):
        def call_soon_threadsafe(self, callback: Any, *args: Any, context: Any = None) -> Any:
            told.append(threading.current_thread().name)
            return super().call_soon_threadsafe(callback, *args, context=context)

    async def main() -> bool:
        begun = threading.Event()
        loop = asyncio.get_running_loop()
        loop.call_soon(begun.set)
        return await loop.run_in_executor(pool, begun.wait, 60)

    with plait.ThreadPool(1, thread_name_prefix="own") as pool:
        loop = Loop()
        try:
            assert loop.run_until_complete(main())
        finally:
            loop.close()
    assert told == ["own_0"]
