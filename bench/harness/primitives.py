"""What single operations of a loop cost, in nanoseconds.

    python -m harness.primitives --loop plait [--scale 0.2]

Prints a JSON object with the fastest of a few runs of each, in this process: what makes a run
of some milliseconds slower is something else on the machine. The harness calls it in
alternating rounds and takes medians.
"""

from __future__ import annotations

import argparse
import asyncio
import gc
import json
import socket
import sys
import time
from collections.abc import Awaitable, Callable
from concurrent.futures import Executor, ThreadPoolExecutor

from .loops import LOOPS, factory

clock = time.perf_counter_ns
Measure = Callable[[int], Awaitable[int]]
NAMES: dict[str, tuple[str, int, Measure]] = {}
#: How often each row is run, if it then still does a few thousand operations in a run.
RUNS = 5


def row(name: str, label: str, count: int) -> Callable[[Measure], Measure]:
    """Register a measurement: its row, what it counts, and how often it is done."""

    def register(function: Measure) -> Measure:
        NAMES[name] = (label, count, function)
        return function

    return register


def nothing() -> None:
    """Do nothing."""


@row("call_soon_chained", "call_soon, chained", 200_000)
async def call_soon_chained(n: int) -> int:
    loop = asyncio.get_running_loop()
    done = loop.create_future()
    left = n

    def step() -> None:
        nonlocal left
        left -= 1
        if left:
            loop.call_soon(step)
        else:
            done.set_result(clock())

    start = clock()
    loop.call_soon(step)
    return int(await done) - start


@row("call_soon_batch", "call_soon, batch", 200_000)
async def call_soon_batch(n: int) -> int:
    loop = asyncio.get_running_loop()
    total = 0
    for _ in range(n // 1000):
        done = loop.create_future()
        start = clock()
        for _ in range(999):
            loop.call_soon(nothing)
        loop.call_soon(done.set_result, None)
        await done
        total += clock() - start
    return total


@row("sleep0", "await sleep(0)", 100_000)
async def sleep0(n: int) -> int:
    sleep = asyncio.sleep
    start = clock()
    for _ in range(n):
        await sleep(0)
    return clock() - start


async def coroutine() -> None:
    """Finish at once."""


@row("create_task", "create_task and await", 50_000)
async def create_task(n: int) -> int:
    loop = asyncio.get_running_loop()
    start = clock()
    for _ in range(n):
        await loop.create_task(coroutine())
    return clock() - start


@row("gather", "gather of 2000 tasks, per task", 40_000)
async def gather(n: int) -> int:
    start = clock()
    for _ in range(n // 2000):
        await asyncio.gather(*[coroutine() for _ in range(2000)])
    return clock() - start


@row("future", "future set by call_soon", 50_000)
async def future(n: int) -> int:
    loop = asyncio.get_running_loop()
    start = clock()
    for _ in range(n):
        waiter = loop.create_future()
        loop.call_soon(waiter.set_result, None)
        await waiter
    return clock() - start


@row("timer_cancel", "timer, schedule and cancel", 100_000)
async def timer_cancel(n: int) -> int:
    loop = asyncio.get_running_loop()
    start = clock()
    for i in range(n):
        loop.call_later(60, nothing).cancel()
        if not i % 5000:
            await asyncio.sleep(0)
    return clock() - start


@row("timer_fires", "timer, fires", 50_000)
async def timer_fires(n: int) -> int:
    loop = asyncio.get_running_loop()
    total = 0
    for _ in range(n // 1000):
        done = loop.create_future()
        start = clock()
        when = loop.time()
        for _ in range(999):
            loop.call_at(when, nothing)
        loop.call_at(when, done.set_result, None)
        await done
        total += clock() - start
    return total


@row("wait_for", "wait_for", 30_000)
async def wait_for(n: int) -> int:
    start = clock()
    for _ in range(n):
        await asyncio.wait_for(coroutine(), 60)
    return clock() - start


@row("threadsafe", "call_soon_threadsafe", 100_000)
async def threadsafe(n: int) -> int:
    loop = asyncio.get_running_loop()
    total = 0
    for _ in range(n // 1000):
        done = loop.create_future()
        start = clock()
        for _ in range(999):
            loop.call_soon_threadsafe(nothing)
        loop.call_soon_threadsafe(done.set_result, None)
        await done
        total += clock() - start
    return total


async def calls_in_executor(n: int, pool: Executor | None) -> int:
    loop = asyncio.get_running_loop()
    await loop.run_in_executor(pool, nothing)
    start = clock()
    for _ in range(n):
        await loop.run_in_executor(pool, nothing)
    return clock() - start


@row("executor", "run_in_executor, the loop's own", 4_000)
async def executor(n: int) -> int:
    return await calls_in_executor(n, None)


@row("executor_given", "run_in_executor, ThreadPoolExecutor", 4_000)
async def executor_given(n: int) -> int:
    with ThreadPoolExecutor(1) as pool:
        return await calls_in_executor(n, pool)


@row("sock", "sock ping-pong over a socketpair", 5_000)
async def sock(n: int) -> int:
    loop = asyncio.get_running_loop()
    a, b = socket.socketpair()
    with a, b:
        a.setblocking(False)
        b.setblocking(False)

        async def answer() -> None:
            while data := await loop.sock_recv(b, 64):
                await loop.sock_sendall(b, data)

        task = loop.create_task(answer())
        await asyncio.sleep(0)
        start = clock()
        for _ in range(n):
            await loop.sock_sendall(a, b"ping")
            await loop.sock_recv(a, 64)
        took = clock() - start
        a.shutdown(socket.SHUT_WR)
        await task
    return took


async def run_all(scale: float) -> dict[str, float | str]:
    """Measure every row; a row that fails says why instead of a figure."""
    results: dict[str, float | str] = {}
    for name, (_, count, measure) in NAMES.items():
        unit = 2000
        units = max(1, int(count * scale) // unit)
        runs = min(units, RUNS)
        n = units // runs * unit
        try:
            await measure(unit)  # warm: caches, free lists, specialised bytecode
            gc.collect()
            gc.disable()
            results[name] = min([await measure(n) for _ in range(runs)]) / n
        except (NotImplementedError, AttributeError, OSError, RuntimeError) as exc:
            results[name] = f"{type(exc).__name__}: {exc}"
        finally:
            gc.enable()
    return results


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("--loop", choices=LOOPS, required=True)
    parser.add_argument("--scale", type=float, default=1.0)
    args = parser.parse_args()
    loop = factory(args.loop)()
    asyncio.set_event_loop(loop)
    try:
        json.dump(loop.run_until_complete(run_all(args.scale)), sys.stdout)
    finally:
        loop.close()


if __name__ == "__main__":
    main()
