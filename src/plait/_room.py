"""Room in a full pool, for coroutines: they wait for it without blocking their loop."""

from __future__ import annotations

import contextlib
import sys
import threading
import weakref
from collections import deque
from collections.abc import Callable
from typing import Any, Protocol

from ._exceptions import PoolFull

PATIENCE = 0.1
"""Seconds that a coroutine has to use the room that it was told of."""


def in_loop() -> bool:
    """Whether an event loop runs in this thread: then nothing may block here."""
    asyncio = sys.modules.get("asyncio.events")
    return asyncio is not None and asyncio._get_running_loop() is not None


class Pool(Protocol):
    """What a pool tells of its room."""

    def _wait_room(self) -> object:
        """Return when there is room, or when there is never to be any again."""

    def _places(self) -> int:
        """How many tasks there is room for."""


class Room:
    """The coroutines that wait for room in one pool, in their order.

    One thread waits for all of them, and only while there are some. Any loop's thread may use it.

    Args:
        pool: borrowed; those who wait keep it.
    """

    def __init__(self, pool: Pool) -> None:
        self._pool = weakref.ref(pool)
        self._lock = threading.Lock()
        self._waiting: deque[tuple[Any, Any]] = deque()
        self._thread: threading.Thread | None = None
        self._called: set[Any] = set()  # were told of room, and have not used it yet
        self._used = threading.Condition(self._lock)

    async def submit(self, submit: Callable[..., Any], /, *args: Any, **kwargs: Any) -> Any:
        """Call submit when there is room.

        Args:
            submit: raises PoolFull when somebody else has taken the room.
            args: its arguments.
            kwargs: and its keyword arguments.
        """
        import asyncio

        if not self._waiting:
            with contextlib.suppress(PoolFull):
                return submit(*args, **kwargs)
        loop = asyncio.get_running_loop()
        while True:
            call: Any = loop.create_future()
            with self._lock:
                self._waiting.append((loop, call))
                if self._thread is None:
                    self._thread = threading.Thread(
                        target=self._run, name="plait-pool-room", daemon=True
                    )
                    self._thread.start()
            try:
                await call
                with contextlib.suppress(PoolFull):
                    return submit(*args, **kwargs)
            finally:
                self._settle(loop, call)

    def _settle(self, loop: Any, call: Any) -> None:
        """One that waited has used its room, or does not want it any more."""
        with self._lock:
            if call in self._called:
                self._called.discard(call)
                self._used.notify()
            elif not call.done() or call.cancelled():
                with contextlib.suppress(ValueError):
                    self._waiting.remove((loop, call))

    def _wait(self) -> int:
        """Wait for room, or for the pool's end: for how many tasks there is some, 1 at least."""
        pool = self._pool()
        if pool is not None:
            with contextlib.suppress(Exception):  # submit will tell what is wrong
                pool._wait_room()
                return max(1, pool._places())
        return 1

    def _run(self) -> None:
        while True:
            free = self._wait()
            with self._lock:
                for _ in range(free):
                    if not self._waiting:
                        break
                    loop, call = self._waiting.popleft()
                    # A closed loop takes nothing: whoever waited there is gone.
                    with contextlib.suppress(RuntimeError):
                        loop.call_soon_threadsafe(_wake, call)
                        self._called.add(call)
                while self._called and self._used.wait(PATIENCE):
                    pass
                # A loop that stands still does not use its room: the next ones may.
                self._called.clear()
                if not self._waiting:
                    self._thread = None
                    return


def _wake(call: Any) -> None:
    if not call.done():
        call.set_result(None)
