"""One computation over many numbers: a loop, threads, processes, and no loop at all.

Before a computation is spread over processors, ask whether it has to be a loop. NumPy does
the same to a whole array in compiled code, one call for all numbers.
"""

from __future__ import annotations

import importlib.util
import time
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from typing import Any

import plait

__all__ = ["Way", "explain", "measure"]

WORKERS = 2


@dataclass(frozen=True)
class Way:
    """How long one way took.

    Attributes:
        name: The way.
        ms: The best of a few runs, in milliseconds.
        right: Whether the result was that of the loop.
    """

    name: str
    ms: float
    right: bool


def smooth(values: Sequence[float]) -> float:
    """Compute the sum of a polynomial over all values, one by one."""
    total = 0.0
    for x in values:
        total += 0.5 * x * x - 1.5 * x + 2.0
    return total


def smooth_array(values: Any) -> float:
    """Compute the same of an array at once."""
    return float((0.5 * values * values - 1.5 * values + 2.0).sum())


def measure(*, numbers: int = 400_000, rounds: int = 3) -> list[Way]:
    """Compute the same in every way.

    Args:
        numbers: How many.
        rounds: How often each way has its turn.

    Returns:
        The ways; those with NumPy are left out where it is not installed.
    """
    values = [(i % 1000) / 1000 for i in range(numbers)]
    middle = numbers // 2
    halves = [values[:middle], values[middle:]]
    with plait.ProcessPool(WORKERS) as processes, ThreadPoolExecutor(WORKERS) as threads:
        list(processes.map(smooth, [[1.0]] * WORKERS, chunksize=1))
        ways: list[tuple[str, Callable[[], float]]] = [
            ("a loop", lambda: smooth(values)),
            ("2 threads", lambda: sum(threads.map(smooth, halves))),
            ("2 processes", lambda: sum(processes.map(smooth, halves, chunksize=1))),
        ]
        if importlib.util.find_spec("numpy") is not None:
            import numpy as np

            array = np.array(values)
            pieces = [array[:middle], array[middle:]]
            list(processes.map(smooth_array, pieces, chunksize=1))  # They have imported it.
            ways += [
                ("NumPy, with the list made an array", lambda: smooth_array(np.array(values))),
                ("NumPy", lambda: smooth_array(array)),
                (
                    "NumPy in 2 processes",
                    lambda: sum(processes.map(smooth_array, pieces, chunksize=1)),
                ),
            ]
        expected = smooth(values)
        best = dict.fromkeys((name for name, _ in ways), float("inf"))
        right = dict.fromkeys(best, True)
        for _ in range(rounds):
            for name, way in ways:
                start = time.perf_counter()
                result = way()
                best[name] = min(best[name], (time.perf_counter() - start) * 1e3)
                right[name] &= abs(result - expected) <= 1e-6 * abs(expected)
    return [Way(name, ms, right[name]) for name, ms in best.items()]


def explain(ways: list[Way], *, gil: bool, processors: int) -> list[str]:
    """Say what the times show, in sentences that follow them.

    Args:
        ways: What `measure` gave.
        gil: Whether the interpreter has its global lock.
        processors: How many may be used.
    """
    ms = {way.name: way.ms for way in ways}
    loop = ms.get("a loop", 0.0)
    if not loop:
        return []
    told = []
    if "2 threads" in ms:
        gain = loop / ms["2 threads"]
        if gain < 1.25:
            told.append(
                f"Two threads make the loop {gain:.2f} times as fast: "
                + ("one lock, one of them computes." if gil else "something else is in the way.")
            )
        else:
            told.append(f"Two threads make the loop {gain:.1f} times as fast.")
    if "2 processes" in ms:
        gain = loop / ms["2 processes"]
        told.append(
            f"Two processes make it {gain:.2f} times as fast"
            + (
                ", the way of the numbers to them included."
                if gain >= 1.25
                else f": on {processors} processor(s), sending the numbers costs what is gained, or "
                "the machine is busy."
            )
        )
    if "NumPy" in ms:
        gain = loop / ms["NumPy"]
        told.append(
            f"NumPy makes it {gain:.0f} times as fast, in one thread: no Python runs for each "
            "number."
            if gain >= 2
            else f"NumPy makes it only {gain:.1f} times as fast here."
        )
        made = ms.get("NumPy, with the list made an array")
        if made and made > 2 * ms["NumPy"]:
            told.append(
                f"Making an array of the list takes most of the {made:.1f} ms where that is part "
                "of it: numbers that live in arrays from the start are what pays."
            )
        spread = ms.get("NumPy in 2 processes")
        if spread:
            told.append(
                "Spreading the arrays over processes on top of that is slower than not doing it."
                if spread > ms["NumPy"]
                else "Processes on top of that still gain something."
            )
    else:
        told.append("NumPy is not installed, so the best way of all was not measured.")
    wrong = [way.name for way in ways if not way.right]
    if wrong:
        told.append(f"Wrong results came from: {', '.join(wrong)}.")
    return told
