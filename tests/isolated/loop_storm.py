"""Threads storm a loop with posts, cancels and wake-ups, while it runs.

For `make tsan-py`: only what crosses threads is here. Prints what has run.
"""

from __future__ import annotations

import asyncio
import sys
import threading

import plait

THREADS = 4
POSTS = 5_000


def storm() -> int:
    """Post from four threads, with pauses of the loop and without; every post runs once."""
    loop = plait.new_event_loop()
    seen = [0] * THREADS
    cancelled = [0] * THREADS
    ended = 0

    def mark(thread: int) -> None:
        seen[thread] += 1

    def end() -> None:
        nonlocal ended
        ended += 1
        if ended == THREADS:
            loop.stop()

    def post(thread: int) -> None:
        for n in range(POSTS):
            handle = loop.call_soon_threadsafe(mark, thread)
            if n % 7 == 0:
                handle.cancel()
                cancelled[thread] += 1
            if n % 64 == 0:
                # The loop sleeps until it is told.
                told = threading.Event()
                loop.call_soon_threadsafe(told.set)
                told.wait()
        loop.call_soon_threadsafe(end)

    threads = [threading.Thread(target=post, args=(n,)) for n in range(THREADS)]
    for thread in threads:
        thread.start()
    loop.run_forever()
    for thread in threads:
        thread.join()
    loop.close()
    for ran, gone in zip(seen, cancelled, strict=True):
        # A cancel may come after the run.
        assert POSTS - gone <= ran <= POSTS, (ran, gone)
    return sum(seen)


def executor() -> int:
    """Results of threads come back to two loops in two threads."""
    got = []

    async def main() -> int:
        loop = asyncio.get_running_loop()
        return sum(await asyncio.gather(*(loop.run_in_executor(None, int, n) for n in range(500))))

    threads = [threading.Thread(target=lambda: got.append(plait.run(main()))) for _ in range(2)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert got == [sum(range(500))] * 2, got
    return len(got)


def pools() -> int:
    """Threads share a process pool and wait in it, and a loop awaits it."""
    with plait.ProcessPool(2) as pool:
        sums = []

        def work() -> None:
            sums.append(sum(f.result() for f in [pool.submit(int, n) for n in range(300)]))

        async def main() -> int:
            loop = asyncio.get_running_loop()
            return sum(
                await asyncio.gather(*(loop.run_in_executor(pool, int, n) for n in range(300)))
            )

        threads = [threading.Thread(target=work) for _ in range(3)]
        for thread in threads:
            thread.start()
        sums.append(plait.run(main()))
        for thread in threads:
            thread.join()
        assert sums == [sum(range(300))] * 4, sums
        return len(sums)


if __name__ == "__main__":
    for part in sys.argv[1:] or ["storm", "executor", "pools"]:
        print(part, globals()[part](), flush=True)
