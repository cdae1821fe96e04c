"""Measures process pools side by side: round trip, throughput, map, arrays, start and stop.

    python bench/pools.py [--json] [--rounds N] [--quick] [--peers plait,executor,...]

Each row is the median over the rounds; the peers take turns within a round, so that a change
of the machine's mood meets all of them. Peers that are not installed are said to be so.
"""

from __future__ import annotations

import argparse
import concurrent.futures
import importlib
import json
import multiprocessing
import statistics
import sys
import time
from collections.abc import Callable
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

    def __init__(self) -> None:
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

    def stop(self) -> None:
        self.pool.shutdown()


class Plait(Peer):
    name = "plait"
    needs = ("plait",)

    def make(self) -> Any:
        import plait

        return plait.ProcessPool(WORKERS)


class Stdlib(Peer):
    name = "executor"

    def make(self) -> Any:
        context = multiprocessing.get_context("fork")
        return concurrent.futures.ProcessPoolExecutor(WORKERS, mp_context=context)


class Loky(Peer):
    name = "loky"
    needs = ("loky",)

    def make(self) -> Any:
        import loky

        return loky.ProcessPoolExecutor(WORKERS)


class Pool(Peer):
    name = "mp.Pool"

    def make(self) -> Any:
        return multiprocessing.get_context("fork").Pool(WORKERS)

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


PEERS: dict[str, type[Peer]] = {kind.name: kind for kind in (Plait, Stdlib, Pool, Loky)}


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


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--json", action="store_true", help="print a list of objects")
    parser.add_argument("--quick", action="store_true", help="one short round")
    parser.add_argument("--rounds", type=int, default=3, metavar="N")
    parser.add_argument("--peers", default=",".join(PEERS), metavar="A,B")
    options = parser.parse_args()
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
                rows = measure(PEERS[name], 0.1 if options.quick else 1.0)
            except ImportError as error:
                missing[name] = str(error)
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
    print(f"{'':28}" + "".join(f"{name:>14}" for name in shown))
    for row, unit in units.items():
        cells = "".join(
            f"{statistics.median(found[row, name]):14,.1f}"
            if (row, name) in found
            else f"{'-':>14}"
            for name in shown
        )
        print(f"{row + ', ' + unit:28}{cells}")
    for name, why in missing.items():
        print(f"{name}: not installed ({why})")
    return 0


if __name__ == "__main__":
    sys.exit(main())
