"""Measures channels, scopes and calls placed by measurement beside their peers.

    python bench/strands.py [--quick] [--rounds N] [--parts channels,processes,scope,auto] [--json]

Each row is the median over the rounds; within a round plait and its peer take turns, and a ratio
is the median of the rounds' ratios, so that a change of the machine's mood meets both. Above 1 is
faster than the peer.
"""

from __future__ import annotations

import argparse
import asyncio
import gc
import importlib
import json
import multiprocessing
import statistics
import sys
import time
from collections.abc import Callable, Coroutine
from typing import Any

import plait
from plait import call

PARTS = ("channels", "processes", "scope", "auto")
RUNNERS: dict[str, Callable[[Coroutine[Any, Any, Any]], Any]] = {
    "plait": plait.run,
    "asyncio": asyncio.run,
}
Work = Callable[[int], Coroutine[Any, Any, None]]


# ---- what is measured ----------------------------------------------------------------


def through_queue(capacity: int) -> Work:
    async def work(n: int) -> None:
        queue: asyncio.Queue[int] = asyncio.Queue(capacity)

        async def produce() -> None:
            for i in range(n):
                await queue.put(i)

        task = asyncio.create_task(produce())
        for _ in range(n):
            await queue.get()
        await task

    return work


def through_channel(capacity: int) -> Work:
    async def work(n: int) -> None:
        channel = plait.channel(capacity)

        async def produce() -> None:
            for i in range(n):
                await channel.send(i)

        task = asyncio.create_task(produce())
        for _ in range(n):
            await channel.receive()
        await task

    return work


async def trivial() -> None:
    return None


async def in_task_group(n: int) -> None:
    async with asyncio.TaskGroup() as group:
        for _ in range(n):
            group.create_task(trivial())


async def in_scope(n: int) -> None:
    async with plait.scope() as scope:
        for _ in range(n):
            scope.start(trivial)


async def in_anyio_group(n: int) -> None:
    import anyio

    async with anyio.create_task_group() as group:
        for _ in range(n):
            group.start_soon(trivial)


def same(x: int) -> int:
    return x


pure_task = plait.task(pure=True)(same)
other_task = plait.task(same)


async def plain_calls(n: int) -> None:
    for i in range(n):
        same(i & 7)


async def pure_calls(n: int) -> None:
    for i in range(n):
        await pure_task(i & 7)


async def other_calls(n: int) -> None:
    for i in range(n):
        await other_task(i & 7)


async def any_calls(n: int) -> None:
    for i in range(n):
        await call(same, i & 7)


def drain_queue(queue: Any, n: int, done: Any) -> None:
    for _ in range(n):
        queue.get()
    done.put(None)


def drain_channel(channel: Any, n: int, done: Any) -> None:
    for _ in range(n):
        channel.receive_blocking()
    done.send_blocking(None)


def queue_between_processes(n: int, item: object) -> float:
    context = multiprocessing.get_context("fork")
    queue, done = context.Queue(64), context.Queue()
    process = context.Process(target=drain_queue, args=(queue, n, done))
    process.start()
    began = time.perf_counter()
    for _ in range(n):
        queue.put(item)
    done.get()
    took = time.perf_counter() - began
    process.join()
    return took


def channel_between_processes(pool: plait.ProcessPool, n: int, item: object) -> float:
    channel, done = plait.channel(64, shared=True), plait.channel(1, shared=True)
    future = pool.submit(drain_channel, channel, n, done)
    began = time.perf_counter()
    for _ in range(n):
        channel.send_blocking(item)
    done.receive_blocking()
    took = time.perf_counter() - began
    future.result()
    return took


# ---- how -----------------------------------------------------------------------------


def timed(runner: str, work: Work, n: int) -> float:
    """Nanoseconds per operation."""

    async def main() -> float:
        began = time.perf_counter()
        await work(n)
        return (time.perf_counter() - began) / n * 1e9

    gc.collect()
    return float(RUNNERS[runner](main()))


class Table:
    """Rows of medians and ratios."""

    def __init__(self, rounds: int) -> None:
        self.rounds = rounds
        self.rows: list[dict[str, Any]] = []

    def compare(
        self, what: str, ours: Callable[[], float], peers: dict[str, Callable[[], float]]
    ) -> None:
        """Measure plait and its peers in turns. Times in nanoseconds per operation."""
        names = ["plait", *peers]
        figures: dict[str, list[float]] = {name: [] for name in names}
        for _ in range(self.rounds):
            figures["plait"].append(ours())
            for name, peer in peers.items():
                figures[name].append(peer())
        row: dict[str, Any] = {"what": what, "ns": {}, "ratio": {}}
        for name in names:
            row["ns"][name] = statistics.median(figures[name])
        for name in peers:
            row["ratio"][name] = statistics.median(
                b / a for a, b in zip(figures["plait"], figures[name], strict=True)
            )
        self.rows.append(row)
        print(f"{what:<44} plait {row['ns']['plait']:9.0f} ns", end="")
        for name in peers:
            print(f"   {name} {row['ns'][name]:9.0f} ns, x {row['ratio'][name]:.2f}", end="")
        print(flush=True)

    def overhead(self, what: str, ours: Callable[[], float], base: Callable[[], float]) -> None:
        """Measure what plait adds to something, in nanoseconds per operation."""
        added: list[float] = []
        for _ in range(self.rounds):
            added.append(ours() - base())
        median = statistics.median(added)
        self.rows.append({"what": what, "added_ns": median})
        print(f"{what:<44} adds  {median:9.0f} ns", flush=True)


def measure(parts: list[str], table: Table, scale: float) -> None:
    items = int(50_000 * scale)
    if "channels" in parts:
        for runner in RUNNERS:
            for capacity in (1, 10, 1000):
                queue, channel = through_queue(capacity), through_channel(capacity)
                table.compare(
                    f"channel, capacity {capacity}, {runner}'s loop",
                    lambda runner=runner, work=channel: timed(runner, work, items),  # type: ignore[misc]
                    {"asyncio.Queue": lambda runner=runner, work=queue: timed(runner, work, items)},  # type: ignore[misc]
                )
    if "processes" in parts:
        with plait.ProcessPool(1) as pool:
            pool.submit(same, 1).result()
            for name, item in (("an int", 7), ("1 KiB", b"x" * 1024)):
                table.compare(
                    f"between processes, {name}",
                    lambda item=item: (  # type: ignore[misc]
                        channel_between_processes(pool, items, item) / items * 1e9
                    ),
                    {
                        "multiprocessing.Queue": lambda item=item: (  # type: ignore[misc]
                            queue_between_processes(items, item) / items * 1e9
                        )
                    },
                )
    if "scope" in parts:
        started = max(100, int(10_000 * scale))
        groups = {"asyncio.TaskGroup": in_task_group}
        try:
            importlib.import_module("anyio")
            groups["anyio"] = in_anyio_group
        except ImportError:
            print("anyio is not installed", file=sys.stderr)
        for runner in RUNNERS:
            table.compare(
                f"start and wait, {started} coroutines, {runner}'s loop",
                lambda runner=runner: timed(runner, in_scope, started),  # type: ignore[misc]
                {
                    name: lambda runner=runner, work=work: timed(runner, work, started)  # type: ignore[misc]
                    for name, work in groups.items()
                },
            )
    if "auto" in parts:
        for name, work in (
            ("await task(x), pure, inline", pure_calls),
            ("await task(x), inline", other_calls),
            ("await call(fn, x), inline", any_calls),
        ):
            for _ in range(3):
                timed("plait", work, 1000)  # so that it is known to be short
            table.overhead(
                name,
                lambda work=work: timed("plait", work, items),  # type: ignore[misc]
                lambda: timed("plait", plain_calls, items),
            )


def main() -> None:
    parser = argparse.ArgumentParser(prog="strands", description=__doc__.partition("\n")[0])
    parser.add_argument("--quick", action="store_true", help="short rounds, for a first look")
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--parts", default=",".join(PARTS), metavar="A,B")
    parser.add_argument("--json", action="store_true", help="print everything as JSON at the end")
    args = parser.parse_args()
    parts = args.parts.split(",")
    for part in parts:
        if part not in PARTS:
            parser.error(f"--parts: {part!r} is none of {', '.join(PARTS)}")
    if args.rounds < 1:
        parser.error(f"--rounds must be at least 1, not {args.rounds}")
    table = Table(args.rounds)
    measure(parts, table, 0.1 if args.quick else 1.0)
    if args.json:
        json.dump(table.rows, sys.stdout, indent=1)
        print()


if __name__ == "__main__":
    main()
