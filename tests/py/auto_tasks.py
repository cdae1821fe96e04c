"""Functions that the tests of placement send to workers."""

from __future__ import annotations

import os
import time
from typing import Any

import plait


def fib(n: int) -> int:
    """Compute a Fibonacci number the slow way."""
    return 1 if n <= 2 else fib(n - 1) + fib(n - 2)


@plait.task(pure=True, budget=0.008)
def compute(n: int) -> int:
    """Compute in a function of its own, so that the recursion is undisturbed."""
    return fib(n)


@plait.task(pure=True, budget=0.008)
def own_fib(n: int) -> int:
    """A task that calls itself: plain calls, on every strand."""
    return 1 if n <= 2 else own_fib(n - 1) + own_fib(n - 2)  # type: ignore[operator,return-value]


@plait.task(pure=True, budget=0.008)
def where(seconds: float) -> int:
    """Compute for so long, and tell the process."""
    end = time.thread_time() + seconds
    while time.thread_time() < end:
        pass
    return os.getpid()


@plait.task(pure=True, budget=0.008)
def fail(n: int) -> int:
    """Raise, at once or after a while."""
    fib(n)
    raise KeyError(n)


@plait.task(pure=True, budget=0.008)
def unsendable(n: int) -> Any:
    """Return what cannot be pickled."""
    fib(n)
    return lambda: n


@plait.task
def sleep(seconds: float) -> float:
    """Wait."""
    time.sleep(seconds)
    return seconds


@plait.task
def crunch(seconds: float) -> int:
    """Compute for so long, without being pure."""
    end = time.thread_time() + seconds
    while time.thread_time() < end:
        pass
    return os.getpid()


@plait.task(pure=True, budget=0.001)
def jumpy(n: int, seconds: float) -> tuple[int, float]:
    """Compute for as long as it is told."""
    end = time.perf_counter() + seconds
    while time.perf_counter() < end:
        pass
    return n, seconds
