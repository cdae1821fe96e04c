"""What the tests of scopes share."""

from __future__ import annotations

import asyncio
import collections
import operator
import threading
from collections.abc import Callable, Coroutine
from typing import Any

import plait

FOREVER = 3600.0
"""Seconds: longer than any test."""
AMPLE = 60.0
"""Seconds: the grace of what stops by itself, on however busy a machine."""
Run = Callable[[Coroutine[Any, Any, Any]], Any]


async def value(n: int, turns: int = 1) -> int:
    for _ in range(turns):
        await asyncio.sleep(0)
    return n


async def fail(error: BaseException, turns: int = 1) -> None:
    for _ in range(turns):
        await asyncio.sleep(0)
    raise error


async def forever() -> None:
    await asyncio.sleep(FOREVER)


class Held:
    """One call in C that nothing stops, and that is known to have begun."""

    def __init__(self) -> None:
        self._began = threading.Lock()
        self._hold = threading.Lock()
        self._began.acquire()
        self._hold.acquire()

    def __call__(self) -> None:
        # No step of Python's comes between the two, so no stop does.
        steps = (self._began.release, self._hold.acquire)
        collections.deque(map(operator.call, steps), maxlen=0)

    def wait(self) -> None:
        """Wait until it has begun."""
        assert self._began.acquire(timeout=AMPLE)

    async def begun(self) -> None:
        """Wait until it has begun."""
        await plait.to_thread(self.wait)

    def let_go(self) -> None:
        self._hold.release()


def cancelling() -> int:
    task = asyncio.current_task()
    assert task is not None
    return task.cancelling()
