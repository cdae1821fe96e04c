"""The default pools behind scopes and bridges, and a clock for code without a loop.

Each is made when it is first wanted, once per process. A forked child makes its own.
"""

from __future__ import annotations

import atexit
import concurrent.futures as cf
import ctypes
import heapq
import itertools
import os
import threading
import time
from collections.abc import Callable
from typing import Any

from ._exceptions import TaskStopped
from ._pool import ProcessPool, default_workers

__all__ = ["Timer", "later", "processes", "threads"]

MAX_THREADS = 64


class _Stoppable(cf.Future[Any]):
    """A thread's future whose cancel() also reaches a function that runs."""

    def __init__(self) -> None:
        super().__init__()
        self._ident: int | None = None
        self._guard = threading.Lock()
        self._stopping = False

    def cancel(self) -> bool:
        if super().cancel():
            return True
        with self._guard:
            if self._ident is None:
                return False
            if not self._stopping:
                self._stopping = True
                _raise_in(self._ident, TaskStopped)
            return True

    def run(self, fn: Callable[..., Any], args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
        """Call fn in this thread and keep what comes of it."""
        if not self.set_running_or_notify_cancel():
            return
        result: Any = None
        error: BaseException | None = None
        try:
            try:
                with self._guard:
                    self._ident = threading.get_ident()
                result = fn(*args, **kwargs)
            finally:
                with self._guard:
                    ident, self._ident = self._ident, None
                    if self._stopping and ident is not None:
                        _raise_in(ident, None)
        except BaseException as caught:
            error = caught
        if isinstance(error, TaskStopped) and self._stopping:
            with self._condition:
                self._state = "CANCELLED_AND_NOTIFIED"
                for waiter in self._waiters:
                    waiter.add_cancelled(self)
                self._condition.notify_all()
            self._invoke_callbacks()
        elif error is not None:
            self.set_exception(error)
        else:
            self.set_result(result)


def _raise_in(ident: int, error: type[BaseException] | None) -> None:
    what = ctypes.py_object(error) if error is not None else None
    ctypes.pythonapi.PyThreadState_SetAsyncExc(ctypes.c_ulong(ident), what)


class _Threads:
    """A thread pool whose futures can be stopped."""

    def __init__(self) -> None:
        self._pool = cf.ThreadPoolExecutor(MAX_THREADS, thread_name_prefix="plait-thread")

    def submit(self, fn: Callable[..., Any], /, *args: Any, **kwargs: Any) -> cf.Future[Any]:
        """Run fn(*args, **kwargs) in a thread."""
        future = _Stoppable()
        self._pool.submit(future.run, fn, args, kwargs)
        return future

    def shutdown(self, wait: bool = True) -> None:
        """End the threads once they are idle."""
        self._pool.shutdown(wait)


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
                self._thread = threading.Thread(target=self._run, name="plait-clock", daemon=True)
                self._thread.start()
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
                call()


class _Strands:
    """What this process has made so far."""

    def __init__(self) -> None:
        self.lock = threading.Lock()
        self.threads: _Threads | None = None
        self.processes: ProcessPool | None = None
        self.clock = _Clock()


_strands = _Strands()


def threads() -> _Threads:
    """The default thread pool, made on first use. Any thread may ask."""
    pool = _strands.threads
    if pool is None:
        with _strands.lock:
            pool = _strands.threads
            if pool is None:
                pool = _strands.threads = _Threads()
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
    for pool in (_strands.threads, _strands.processes):
        if pool is not None:
            pool.shutdown(wait=False)


def _after_fork_in_child() -> None:
    global _strands
    _strands = _Strands()


atexit.register(_at_exit)
os.register_at_fork(after_in_child=_after_fork_in_child)
