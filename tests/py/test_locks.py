"""Lock, Limiter and Event between threads and coroutines, and what races do to them."""

from __future__ import annotations

import asyncio
import concurrent.futures
import os
import pickle
import sys
import threading
from collections.abc import Callable
from typing import Any

import pytest
from until import until

import plait

TIMEOUT = 100.0


def test_a_lock_excludes_threads_and_coroutines_of_two_loops() -> None:
    lock = plait.Lock()
    total = 0
    rounds = 200

    def step() -> None:
        nonlocal total
        now = total
        threading.Event().wait(0)  # lets others run
        total = now + 1

    def thread() -> None:
        for _ in range(rounds):
            with lock:
                step()

    async def coroutine() -> None:
        for _ in range(rounds):
            async with lock:
                step()
            await asyncio.sleep(0)

    async def main() -> None:
        await asyncio.gather(coroutine(), coroutine())

    threads = [threading.Thread(target=thread) for _ in range(2)]
    threads += [threading.Thread(target=plait.run, args=(main(),)) for _ in range(2)]
    for each in threads:
        each.start()
    for each in threads:
        each.join(TIMEOUT)
    assert total == 6 * rounds
    assert not lock.locked()


def test_a_cancelled_wait_gives_the_lock_on() -> None:
    async def main() -> None:
        lock = plait.Lock()
        order = []

        async def one(n: int) -> None:
            async with lock:
                order.append(n)

        await lock.acquire()
        tasks = [asyncio.create_task(one(n)) for n in range(3)]
        await asyncio.sleep(0)
        lock.release()  # the first has it, and is cancelled before it runs
        tasks[0].cancel()
        tasks[1].cancel()
        await asyncio.gather(*tasks, return_exceptions=True)
        assert order == [2]
        assert not lock.locked()

    plait.run(main())


def test_timeouts_and_refusals() -> None:
    lock = plait.Lock()
    assert lock.acquire_nowait()
    assert not lock.acquire_nowait()
    assert not lock.acquire_blocking(0.01)
    assert not lock.acquire_blocking(0)
    lock.release()
    with pytest.raises(RuntimeError, match="nobody has it"):
        lock.release()
    assert lock.acquire_blocking()

    async def main() -> None:
        with pytest.raises(RuntimeError, match="block the loop"):
            lock.acquire_blocking()
        with pytest.raises(RuntimeError, match="block the loop"):
            plait.Event().wait_blocking()

    plait.run(main())
    for thing in (lock, plait.Event(), plait.Limiter(1)):
        with pytest.raises(TypeError, match="one process"):
            pickle.dumps(thing)


def test_limiter_bounds_and_counts() -> None:
    limiter = plait.Limiter(3)
    peak = now = 0
    guard = threading.Lock()

    def thread() -> None:
        nonlocal now, peak
        with limiter:
            with guard:
                now += 1
                peak = max(peak, now)
            threading.Event().wait(0.001)
            with guard:
                now -= 1

    async def main() -> None:
        async with plait.scope() as s:
            for _ in range(12):
                s.start(thread, where="thread")
            for _ in range(12):
                s.start(coroutine)

    async def coroutine() -> None:
        nonlocal now, peak
        async with limiter:
            with guard:
                now += 1
                peak = max(peak, now)
            await asyncio.sleep(0)
            with guard:
                now -= 1

    plait.run(main())
    assert peak == 3
    assert limiter.available == limiter.total == 3
    with pytest.raises(RuntimeError, match="more often"):
        limiter.release()
    for bad in (0, -1):
        with pytest.raises(ValueError, match="total"):
            plait.Limiter(bad)
    with pytest.raises(TypeError):
        plait.Limiter(1.5)  # type: ignore[arg-type]


def test_events_wake_all() -> None:
    event = plait.Event()
    woken: list[Any] = []

    def thread() -> None:
        woken.append(event.wait_blocking(TIMEOUT))

    async def coroutine() -> None:
        await event.wait()
        woken.append("coroutine")

    async def main() -> None:
        async with plait.scope() as s:
            for _ in range(3):
                s.start(thread, where="thread")
                s.start(coroutine)
            while event._waiting < 6:
                await asyncio.sleep(0)
            s.start(event.set, where="thread")

    plait.run(main())
    assert woken.count(True) == woken.count("coroutine") == 3
    assert event.is_set()
    event.clear()
    assert not event.wait_blocking(0.01)


def test_waiters_of_a_closed_loop_are_passed_over() -> None:
    lock = plait.Lock()
    lock.acquire_blocking()
    loop = plait.new_event_loop()
    task = loop.create_task(lock.acquire())
    loop.run_until_complete(asyncio.sleep(0))
    assert lock._waiting == 1
    loop.close()
    lock.release()
    assert lock.acquire_blocking(TIMEOUT)
    del task


@pytest.mark.xfail(
    sys.version_info[:2] == (3, 14),
    reason="this Python looks for exceptions between __enter__ and the block",
    strict=False,
)
@pytest.mark.parametrize("contended", [False, True])
def test_a_stop_at_any_moment_leaves_the_lock_released(contended: bool) -> None:
    """Before, in and after the block, while it waits and while it hands over."""
    lock, limiter = plait.Lock(), plait.Limiter(2)
    begun = threading.Semaphore(0)

    def work() -> None:
        begun.release()
        while True:
            with lock, limiter:
                pass

    with plait.ThreadPool(2) as pool:
        for turn in range(80):
            futures = [pool.submit(work) for _ in range(2 if contended else 1)]
            for _ in futures:
                assert begun.acquire(timeout=TIMEOUT)
            for _ in range(turn):  # another moment each time
                pass
            for future in futures:
                assert future.cancel()
            for future in futures:
                with pytest.raises(concurrent.futures.CancelledError):
                    future.result(TIMEOUT)
            assert lock._free == 1
            assert limiter.available == 2
            assert lock._waiting == limiter._waiting == 0


def test_a_lock_that_was_handed_to_a_cancelled_task_goes_on() -> None:
    async def main() -> None:
        lock = plait.Lock()
        await lock.acquire()
        tasks = [asyncio.create_task(lock.acquire()) for _ in range(3)]
        await asyncio.sleep(0)
        lock.release()  # the first one's now
        tasks[0].cancel()
        await asyncio.wait_for(tasks[1], TIMEOUT)
        assert tasks[0].cancelled()
        assert not tasks[2].done()
        lock.release()
        await asyncio.wait_for(tasks[2], TIMEOUT)
        lock.release()
        assert not lock.locked()

    plait.run(main())


def test_with_gives_back_what_it_took_whatever_is_raised() -> None:
    async def main() -> None:
        lock = plait.Lock()

        async def use(call: Callable[[], object]) -> None:
            async with lock:
                assert lock.locked()
                call()

        with pytest.raises(ZeroDivisionError):
            await use(lambda: 1 // 0)
        assert not lock.locked()
        with pytest.raises(RuntimeError, match="nobody has it"):
            lock.release()
        with pytest.raises(RuntimeError, match="nobody has it"):
            await use(lock.release)

    plait.run(main())


@pytest.mark.filterwarnings("ignore:.*fork:DeprecationWarning")
@pytest.mark.parametrize("handed", [False, True], ids=["waits", "was-handed-it"])
def test_a_forked_child_hands_nothing_to_threads_that_it_does_not_have(handed: bool) -> None:
    lock = plait.Lock()
    assert lock.acquire_nowait()

    def wait() -> None:
        with lock:
            pass

    thread = threading.Thread(target=wait)
    thread.start()
    until(lambda: lock._waiting == 1)
    if handed:
        lock.release()  # the thread cannot have run before the fork, or is through
    child = os.fork()
    if child == 0:
        if not handed:
            lock.release()
        free = lock.acquire_nowait() or lock.acquire_blocking(0.0)
        os._exit(0 if free else 3)
    if not handed:
        lock.release()
    thread.join(TIMEOUT)
    assert not thread.is_alive()
    assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == 0


def test_a_call_is_named_after_its_class() -> None:
    for what, name in ((plait.Lock(), "Lock"), (plait.Limiter(2), "Limiter")):
        call: Any = what.acquire()
        assert call.__qualname__ == f"{name}.acquire"
        assert call.__name__ == "acquire"
        call.close()


def test_a_timeout_that_is_no_number() -> None:
    lock, event = plait.Lock(), plait.Event()
    assert lock.acquire_blocking()
    with pytest.raises(ValueError, match="timeout must be a number"):
        lock.acquire_blocking(timeout=float("nan"))
    with pytest.raises(ValueError, match="timeout must be a number"):
        event.wait_blocking(timeout=float("nan"))
