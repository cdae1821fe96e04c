"""The default pools behind scopes and bridges, and a clock for code without a loop.

Each is made when it is first wanted, once per process. A forked child makes its own.
"""

from __future__ import annotations

import atexit
import heapq
import itertools
import os
import threading
import time
from collections.abc import Callable

from ._pool import ProcessPool
from ._processors import default_workers
from ._threads import ThreadPool

__all__ = ["Timer", "later", "processes", "threads"]

MAX_THREADS = 256
"""Threads are made as they are wanted. Scopes in threads wait for other threads: few would do
for speed, but tasks that wait for each other must all have one."""


class Timer:
    """A call that is to be made later; `cancel` takes it back."""

    __slots__ = ("call",)

    def __init__(self, call: Callable[[], object]) -> None:
        self.call: Callable[[], object] | None = call

    def cancel(self) -> None:
        """Do not make the call, unless that is under way."""
        self.call = None


class _Clock:
    """One thread that makes calls when their time has come."""

    def __init__(self) -> None:
        self._due: list[tuple[float, int, Timer]] = []
        self._order = itertools.count()
        self._change = threading.Condition()
        self._thread: threading.Thread | None = None

    def later(self, seconds: float, call: Callable[[], object]) -> Timer:
        timer = Timer(call)
        with self._change:
            when = time.monotonic() + max(0.0, seconds)
            heapq.heappush(self._due, (when, next(self._order), timer))
            if self._thread is None:
                thread = threading.Thread(target=self._run, name="plait-clock", daemon=True)
                try:
                    thread.start()
                except BaseException:
                    timer.cancel()
                    raise
                self._thread = thread  # only now: one that failed must not be counted on
            self._change.notify()
        return timer

    def _run(self) -> None:
        while True:
            with self._change:
                while self._due and self._due[0][2].call is None:
                    heapq.heappop(self._due)
                if not self._due:
                    # Ends when it has nothing to do for a while: nobody has to stop it.
                    if not self._change.wait(1.0) and not self._due:
                        self._thread = None
                        return
                    continue
                wait = self._due[0][0] - time.monotonic()
                if wait > 0:
                    self._change.wait(min(wait, threading.TIMEOUT_MAX))
                    continue
                timer = heapq.heappop(self._due)[2]
            call, timer.call = timer.call, None
            if call is not None:
                try:
                    call()
                except Exception:  # the other calls are still to be made
                    import logging

                    logging.getLogger("plait").exception("a call of the clock failed: %r", call)


class _Strands:
    """What this process has made so far."""

    def __init__(self) -> None:
        self.lock = threading.Lock()
        self.threads: ThreadPool | None = None
        self.processes: ProcessPool | None = None
        self.clock = _Clock()


_strands = _Strands()


def threads() -> ThreadPool:
    """The default thread pool, made on first use. Any thread may ask."""
    pool = _strands.threads
    if pool is None:
        with _strands.lock:
            pool = _strands.threads
            if pool is None:
                pool = _strands.threads = ThreadPool(
                    MAX_THREADS, thread_name_prefix="plait", daemon=True
                )
    return pool


def processes() -> ProcessPool:
    """The default process pool, made on first use. Any thread may ask."""
    pool = _strands.processes
    if pool is None or pool._closed:
        with _strands.lock:
            pool = _strands.processes
            if pool is None or pool._closed:
                pool = _strands.processes = ProcessPool(default_workers())
    return pool


def later(seconds: float, call: Callable[[], object]) -> Timer:
    """Make a call in a thread of its own kind after some seconds. It must not block."""
    return _strands.clock.later(seconds, call)


def _at_exit() -> None:
    # Scopes have waited for what they started: what still runs was given up.
    if _strands.processes is not None:
        _strands.processes._terminate()


def _after_fork_in_child() -> None:
    global _strands
    _strands = _Strands()


atexit.register(_at_exit)
os.register_at_fork(after_in_child=_after_fork_in_child)
