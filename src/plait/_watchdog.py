"""A thread that does things at given times for a pool: ends tasks, begins tries again."""

from __future__ import annotations

import heapq
import itertools
import threading
import time
import weakref
from typing import Any

from ._daemon import Daemon

_SPARE = 256


class Watchdog:
    """Calls ``pool._on_due(what, future)`` when a time has come.

    The thread exists only while something is due. It holds the pool weakly: a pool that
    nobody refers to ends although a timeout of its is far away.
    """

    def __init__(self, pool: Any) -> None:
        self._pool = weakref.ref(pool)
        # Reentrant: a finalizer or a signal's handler may cancel while the lock is held.
        self._wake = threading.Condition(threading.RLock())
        self._heap: list[tuple[float, int, Any, Any]] = []
        self._numbers = itertools.count()
        self._thread: Daemon | None = None
        self._closed = False
        self._limit = _SPARE

    def at(self, when: float, what: Any, future: Any) -> None:
        """Have something done at a time of the monotonic clock, in seconds. Any thread."""
        with self._wake:
            if self._closed:
                return
            if len(self._heap) >= self._limit:
                # Futures that are done need no watch; without this a long timeout would keep
                # every one of them for as long as it lasts.
                self._heap = [item for item in self._heap if not item[3]._ended]
                heapq.heapify(self._heap)
                self._limit = max(_SPARE, 2 * len(self._heap))
            item = (when, next(self._numbers), what, future)
            heapq.heappush(self._heap, item)
            if self._thread is None:
                self._thread = thread = Daemon(self._run, "plait-pool-watchdog")
                try:
                    thread.start()
                except BaseException as error:
                    if thread.claim():
                        self._thread = None
                    # A RuntimeError: the interpreter is about to end, and shutdown kills.
                    if not isinstance(error, RuntimeError):
                        raise
            elif self._heap[0] is item:
                self._wake.notify_all()

    def close(self) -> None:
        """Forget everything and end the thread."""
        with self._wake:
            self._closed = True
            self._heap.clear()
            self._wake.notify_all()
            thread = self._thread
        if thread is not None and thread is not threading.current_thread():
            thread.join()

    def after_fork(self) -> None:
        """In a forked child: there is no thread, and nothing is due."""
        self.__init__(self._pool() or self)  # type: ignore[misc]
        self._closed = True

    def _run(self) -> None:
        while True:
            with self._wake:
                if not self._heap:
                    self._thread = None
                    return
                left = self._heap[0][0] - time.monotonic()
                if left > 0:
                    self._wake.wait(min(left, 3600.0))
                    continue
                _, _, what, future = heapq.heappop(self._heap)
            pool = self._pool()
            if pool is None:
                return
            try:
                pool._on_due(what, future)
            except Exception as error:
                # Nobody waits here; a future that cannot be watched must not stay silent.
                threading.excepthook(
                    threading.ExceptHookArgs((type(error), error, error.__traceback__, None))
                )
            del pool, future
