"""Measures process pools side by side: round trip, throughput, map, arrays, start and stop.

    python bench/pools.py [--json] [--rounds N] [--quick] [--peers plait,executor,...]

Each row is the median over the rounds; the peers take turns within a round, so that a change
of the machine's mood meets all of them. Peers that are not installed are said to be so.
"""

from __future__ import annotations

import argparse
import asyncio
import concurrent.futures
import importlib
import json
import multiprocessing
import os
import statistics
import subprocess
import sys
import threading
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

WORKERS = 2


def noop() -> None:
    return None


def plus_one(x: int) -> int:
    return x + 1


def echo(x: Any) -> Any:
    return x


class Peer:
    """One pool, with the few things that are measured."""

    name = ""
    needs: tuple[str, ...] = ()
    processes = True
    from_any_thread = True

    def __init__(self, workers: int = WORKERS) -> None:
        self.workers = workers
        self.pool = self.make()

    def make(self) -> Any:
        raise NotImplementedError

    def call(self, fn: Callable[..., Any], *args: Any) -> Any:
        return self.pool.submit(fn, *args).result()

    def gather(self, n: int) -> None:
        for future in [self.pool.submit(noop) for _ in range(n)]:
            future.result()

    def map(self, n: int, chunk: int) -> None:
        for _ in self.pool.map(plus_one, range(n), chunksize=chunk):
            pass

    def from_threads(self, threads: int, n: int) -> None:
        """Each of the threads makes n calls, one after the other."""
        each = [
            threading.Thread(target=lambda: [self.call(noop) for _ in range(n)])
            for _ in range(threads)
        ]
        for thread in each:
            thread.start()
        for thread in each:
            thread.join()

    async def await_all(self, n: int) -> None:
        """As a loop's user does: n futures at once."""
        loop = asyncio.get_running_loop()
        await asyncio.gather(*(loop.run_in_executor(self.pool, noop) for _ in range(n)))

    def run(self, main: Any) -> None:
        """Run a coroutine on the loop that goes with the pool."""
        asyncio.run(main)

    def stop(self) -> None:
        self.pool.shutdown()


class Plait(Peer):
    name = "plait"
    needs = ("plait",)

    def make(self) -> Any:
        import plait

        return plait.ProcessPool(self.workers)

    def run(self, main: Any) -> None:
        import plait

        plait.run(main)


class PlaitThreads(Plait):
    name = "plait threads"
    processes = False

    def make(self) -> Any:
        import plait

        if not hasattr(plait, "ThreadPool"):
            raise ImportError("this build of plait has no ThreadPool")
        return plait.ThreadPool(self.workers)


class StdlibThreads(Peer):
    name = "threads"
    processes = False

    def make(self) -> Any:
        return concurrent.futures.ThreadPoolExecutor(self.workers)


class Interpreters(Peer):
    name = "interpreters"
    processes = False

    def make(self) -> Any:
        kind = getattr(concurrent.futures, "InterpreterPoolExecutor", None)
        if kind is None:
            raise ImportError("this Python has no InterpreterPoolExecutor")
        return kind(self.workers)


class Stdlib(Peer):
    name = "executor"

    def make(self) -> Any:
        context = multiprocessing.get_context("fork")
        return concurrent.futures.ProcessPoolExecutor(self.workers, mp_context=context)


class Loky(Peer):
    name = "loky"
    needs = ("loky",)

    def make(self) -> Any:
        import loky

        return loky.ProcessPoolExecutor(self.workers)


class Pool(Peer):
    name = "mp.Pool"

    def make(self) -> Any:
        return multiprocessing.get_context("fork").Pool(self.workers)

    def call(self, fn: Callable[..., Any], *args: Any) -> Any:
        return self.pool.apply(fn, args)

    def gather(self, n: int) -> None:
        for result in [self.pool.apply_async(noop) for _ in range(n)]:
            result.get()

    def map(self, n: int, chunk: int) -> None:
        self.pool.map(plus_one, range(n), chunksize=chunk)

    def stop(self) -> None:
        self.pool.close()
        self.pool.join()


class Pebble(Peer):
    name = "pebble"
    needs = ("pebble",)

    def make(self) -> Any:
        import pebble

        context = multiprocessing.get_context("fork")
        return pebble.ProcessPool(self.workers, context=context)

    def call(self, fn: Callable[..., Any], *args: Any) -> Any:
        return self.pool.schedule(fn, args=args).result()

    def gather(self, n: int) -> None:
        for future in [self.pool.schedule(noop) for _ in range(n)]:
            future.result()

    def map(self, n: int, chunk: int) -> None:
        for _ in self.pool.map(plus_one, range(n), chunksize=chunk).result():
            pass

    def stop(self) -> None:
        self.pool.close()
        self.pool.join()


class Mpire(Peer):
    name = "mpire"
    needs = ("mpire",)
    from_any_thread = False

    def make(self) -> Any:
        import mpire

        return mpire.WorkerPool(self.workers, start_method="fork")

    def call(self, fn: Callable[..., Any], *args: Any) -> Any:
        return self.pool.apply(fn, args)

    def gather(self, n: int) -> None:
        for result in [self.pool.apply_async(noop) for _ in range(n)]:
            result.get()

    def map(self, n: int, chunk: int) -> None:
        for _ in self.pool.imap(plus_one, range(n), chunk_size=chunk):
            pass

    def stop(self) -> None:
        self.pool.stop_and_join()


PEERS: dict[str, type[Peer]] = {
    kind.name: kind
    for kind in (
        Plait,
        Stdlib,
        Pool,
        Loky,
        Pebble,
        Mpire,
        PlaitThreads,
        StdlibThreads,
        Interpreters,
    )
}
AWAITS = {"plait", "plait threads", "executor", "loky", "threads", "interpreters"}
"""What a loop's run_in_executor takes."""


def below(pid: int) -> list[int]:
    """The processes below one, as /proc tells."""
    found: list[int] = []
    for task in Path(f"/proc/{pid}/task").iterdir():
        try:
            children = (task / "children").read_text().split()
        except OSError:
            continue
        for child in children:
            found += [int(child), *below(int(child))]
    return found


def cpu_seconds(pids: list[int]) -> float:
    """User and system time of processes, in seconds."""
    ticks = 0
    for pid in pids:
        try:
            fields = Path(f"/proc/{pid}/stat").read_text().rsplit(")", 1)[1].split()
        except OSError:
            continue
        ticks += int(fields[11]) + int(fields[12])
    return ticks / os.sysconf("SC_CLK_TCK")


def private_bytes(pids: list[int]) -> int:
    """Memory that these processes share with nobody, in bytes."""
    total = 0
    for pid in pids:
        try:
            lines = Path(f"/proc/{pid}/smaps_rollup").read_text().splitlines()
        except OSError:
            continue
        total += sum(int(line.split()[1]) for line in lines if line.startswith("Private")) * 1024
    return total


def timed(fn: Callable[[], Any]) -> float:
    start = time.perf_counter()
    fn()
    return time.perf_counter() - start


def measure(kind: type[Peer], scale: float) -> dict[str, tuple[float, str]]:
    """One round of one peer: row -> (value, unit)."""
    rows: dict[str, tuple[float, str]] = {}
    for module in kind.needs:
        importlib.import_module(module)
    start = time.perf_counter()
    peer = kind()
    peer.call(noop)
    rows["start"] = ((time.perf_counter() - start) * 1e3, "ms")
    try:
        for _ in range(20):
            peer.call(noop)
        n = int(3000 * scale)
        rows["round trip"] = (timed(lambda: [peer.call(noop) for _ in range(n)]) / n * 1e6, "us")
        n = int(20000 * scale)
        rows["no-op tasks"] = (n / timed(lambda: peer.gather(n)), "1/s")
        n = int(1_000_000 * scale)
        rows["map, chunks of 1000"] = (n / timed(lambda: peer.map(n, 1000)) / 1e6, "M items/s")
        if peer.from_any_thread:
            n = int(200 * scale)
            took = timed(lambda: peer.from_threads(16, n))
            rows["16 threads, round trips"] = (16 * n / took, "1/s")
        if peer.name in AWAITS:
            times = max(1, int(5 * scale))

            async def many() -> None:
                await peer.await_all(1000)  # warms the loop's side
                for _ in range(times):
                    await peer.await_all(1000)

            took = timed(lambda: peer.run(many())) / (times + 1)
            rows["await 1000 futures"] = (took * 1e3, "ms")
        if peer.processes:
            rows["memory per worker"] = (
                private_bytes(below(os.getpid())) / peer.workers / (1 << 20),
                "MiB",
            )
        mine = [os.getpid(), *below(os.getpid())]
        time.sleep(0.2)  # so that spinning and the like is over
        start = cpu_seconds(mine)
        time.sleep(2 * scale)
        rows["CPU while idle"] = ((cpu_seconds(mine) - start) / (2 * scale) * 100, "% of a core")
        eight = kind(8)
        try:
            eight.call(noop)
            n = int(10000 * scale)
            eight.gather(n // 10)
            rows["no-op tasks, 8 workers"] = (n / timed(lambda: eight.gather(n)), "1/s")
        finally:
            eight.stop()
        if not peer.processes:
            return rows
        try:
            import numpy as np
        except ImportError:
            return rows
        for name, size, times in (("64 MiB array", 1 << 26, 6), ("1 MiB array", 1 << 20, 100)):
            array = np.ones(size // 8)
            peer.call(echo, array)
            peer.call(echo, array)
            times = max(3, int(times * scale))
            start = time.perf_counter()
            for _ in range(times):
                peer.call(echo, array)  # each result dies before the next one comes
            took = (time.perf_counter() - start) / times
            if size == 1 << 26:
                rows[f"{name}, out and back"] = (2 * size / took / 1e9, "GB/s")
            else:
                rows[f"{name}, out and back"] = (took * 1e6, "us")
    finally:
        rows["stop"] = (timed(peer.stop) * 1e3, "ms")
    return rows


def measure_apart(name: str, scale: float) -> dict[str, tuple[float, str]]:
    """As measure, in a process of its own, so that no peer inherits what another left."""
    done = subprocess.run(
        [sys.executable, __file__, "--one", name, "--scale", str(scale)],
        stdout=subprocess.PIPE,
        text=True,
        timeout=180,
        check=False,
    )
    try:
        rows: dict[str, tuple[float, str]] = json.loads(done.stdout.splitlines()[-1])
    except (ValueError, IndexError):
        raise RuntimeError(f"ended with status {done.returncode}") from None
    if "missing" in rows:
        raise ImportError(rows["missing"])
    return rows


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--json", action="store_true", help="print a list of objects")
    parser.add_argument("--quick", action="store_true", help="one short round")
    parser.add_argument("--rounds", type=int, default=3, metavar="N")
    parser.add_argument("--peers", default=",".join(PEERS), metavar="A,B")
    parser.add_argument("--one", choices=PEERS, help=argparse.SUPPRESS)
    parser.add_argument("--scale", type=float, default=1.0, help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.one is not None:
        try:
            print(json.dumps(measure(PEERS[options.one], options.scale)))
        except ImportError as error:
            print(json.dumps({"missing": str(error)}))
        return 0
    names = options.peers.split(",")
    for name in names:
        if name not in PEERS:
            parser.error(f"unknown peer {name!r}; known are {', '.join(PEERS)}")
    rounds = 1 if options.quick else max(1, options.rounds)
    found: dict[tuple[str, str], list[float]] = {}
    units: dict[str, str] = {}
    missing: dict[str, str] = {}
    for _ in range(rounds):
        for name in names:
            if name in missing:
                continue
            try:
                rows = measure_apart(name, 0.1 if options.quick else 1.0)
            except ImportError as error:
                missing[name] = str(error)
                continue
            except Exception as error:
                missing[name] = f"failed: {type(error).__name__}: {error}"
                continue
            for row, (value, unit) in rows.items():
                found.setdefault((row, name), []).append(value)
                units[row] = unit
    result = [
        {"row": row, "peer": name, "value": statistics.median(values), "unit": units[row]}
        for (row, name), values in found.items()
    ]
    result += [{"row": "", "peer": n, "value": None, "unit": why} for n, why in missing.items()]
    if options.json:
        json.dump(result, sys.stdout, indent=1)
        print()
        return 0
    shown = [name for name in names if name not in missing]
    print("| | " + " | ".join(shown) + " |")
    print("|---|" + "---:|" * len(shown))
    for row, unit in units.items():
        cells = " | ".join(
            f"{statistics.median(found[row, name]):,.1f}" if (row, name) in found else "-"
            for name in shown
        )
        print(f"| {row}, {unit} | {cells} |")
    for name, why in missing.items():
        print(f"\n{name}: not measured ({why})")
    return 0


if __name__ == "__main__":
    sys.exit(main())
