"""The thread pool: policy around the core's crew. Threads, the end, statistics."""

from __future__ import annotations

import itertools
import math
import os
import sys
import threading
import time
import warnings
import weakref
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from typing import Any, TypeVar

from . import _core
from ._core import stop_requested as stop_requested
from ._exceptions import PoolBroken
from ._mapper import Mapper, Way
from ._processors import either
from ._room import Room

T = TypeVar("T")

MAX_WORKERS = 4096
_INTERRUPT_GRACE = 1.0
"""Seconds that tasks get to end after Ctrl+C has ended the program."""

_crews: weakref.WeakSet[_Crew] = weakref.WeakSet()
_numbers = itertools.count()
_exiting = False


class _Crew(_core.Crew):
    """What the pool's threads and unfinished futures refer to."""

    prefix: str
    waits_at_exit: bool
    soon: Room
    """The coroutines that wait for room in the line."""

    def __init__(self, **kwargs: Any) -> None:
        super().__init__(**kwargs, start=_start_thread, watch=_start_watch, fail=_fail)
        self.threads: dict[int, _Thread] = {}
        self.watcher: _Thread | None = None

    def enlist(self, thread: _Thread) -> None:
        """Give a thread the lowest number that is free."""
        for number in itertools.count():
            if self.threads.setdefault(number, thread) is thread:
                thread.name = f"{self.prefix}_{number}"
                return

    def knows(self, thread: _Thread) -> bool:
        """Whether it is a thread of the crew that runs, or is about to."""
        return thread is self.watcher or thread in list(self.threads.values())

    def forget(self, thread: _Thread) -> None:
        """Give up its number."""
        for number, other in list(self.threads.items()):
            if other is thread:
                self.threads.pop(number, None)

    def ended(self, end: float | None) -> bool:
        """Wait until `end` (time.monotonic) for the threads, other than this one, to end."""
        me = threading.current_thread()
        threads = list(self.threads.values())
        watcher = self.watcher
        if watcher is not None and me not in threads:
            threads.append(watcher)  # it ends when they have
        return all(thread is me or _join(thread, end) for thread in threads)


def _join(thread: _Thread, end: float | None) -> bool:
    """Wait until `end` for a thread that another one may be about to start."""
    while True:
        left = None if end is None else max(0.0, end - time.monotonic())
        try:
            thread.join(left)
        except RuntimeError:
            # Not started yet; nothing but looking tells when it is, or that it will not be.
            crew = thread.crew
            if crew is None or not crew.knows(thread):
                return True
            if left == 0.0:
                return False
            time.sleep(0.001)
        else:
            return not thread.is_alive()


class _Thread(threading.Thread):
    """A thread that calls a function with itself."""

    def __init__(self, target: Callable[[_Thread], object], crew: _Crew) -> None:
        # Daemons in the eyes of the interpreter: what waits at its end is _at_exit, which can
        # give up on a thread that cannot be stopped.
        try:
            super().__init__(daemon=True)
        except RuntimeError:  # a sub-interpreter without daemon threads
            super().__init__()
        self.crew: _Crew | None = crew
        self.ticket: list[None] = []
        self._call = target

    def run(self) -> None:
        self._call(self)
        self.crew = None


def _start_thread(crew: _Crew, ticket: list[None]) -> None:
    """Start a thread of the crew.

    The ticket is for the thread to take; the crew counts it out when this fails and the ticket
    is still there. An interrupt may arrive anywhere in here.
    """
    thread: _Thread | None = None
    try:
        thread = _Thread(_work, crew)
        thread.ticket = ticket
        crew.enlist(thread)
        thread.start()
    except BaseException:
        if thread is not None and ticket:
            crew.forget(thread)
        raise


def _work(thread: _Thread) -> None:
    crew = thread.crew
    assert crew is not None
    try:
        thread.ticket.pop()
    except IndexError:  # the crew does not count on it any more
        crew.forget(thread)
        return
    try:
        if not crew.knows(thread):  # given up by who started it, but in time after all
            crew.enlist(thread)
        crew._run()
    finally:
        crew.forget(thread)


def _start_watch(crew: _Crew) -> None:
    """Start the thread that ends tasks whose time is over."""
    thread = _Thread(_watch, crew)
    thread.name = f"{crew.prefix}_deadlines"
    crew.watcher = thread
    try:
        thread.start()
    except BaseException:
        crew.watcher = None
        raise


def _watch(thread: _Thread) -> None:
    crew = thread.crew
    assert crew is not None
    crew._watch()
    if crew.watcher is thread:
        crew.watcher = None


def _fail(crew: _Crew, error: BaseException) -> BaseException:
    """What a crew whose initializer raised `error` is broken by."""
    import logging

    logging.getLogger("concurrent.futures").critical("Exception in initializer:", exc_info=error)
    broken = PoolBroken("the initializer of the thread pool failed: no task can be run any more")
    broken.__cause__ = error
    return broken


@dataclass(frozen=True)
class ThreadStatistics:
    """One thread of a pool.

    Attributes:
        name: its name.
        ident: its identifier, as threading.get_ident gives it.
        task: name of the function that it runs, or None while it is idle.
        seconds: how long it has run that.
        stopping: whether the task has been asked to stop. One that stays so cannot be
            stopped from outside: it is in a call that does not come back to Python.
        done: tasks that it has ended.
    """

    name: str
    ident: int
    task: str | None
    seconds: float
    stopping: bool
    done: int


@dataclass(frozen=True)
class Times:
    """Half, 95 and 99 of a hundred measured times took at most this many seconds."""

    p50: float
    p95: float
    p99: float


@dataclass(frozen=True)
class ThreadPoolStatistics:
    """What a thread pool has done and does.

    Attributes:
        workers: how many threads there may be.
        threads: those that there are.
        queued: tasks that no thread has begun.
        running: tasks that have begun.
        submitted: tasks that were accepted, ever.
        done: tasks that have ended with a result or an exception.
        failed: of these, with an exception.
        cancelled: tasks that were cancelled.
        timed_out: of the failed, those whose time was over.
        retried: times that a task was run again after an exception.
        unstarted: threads that the system refused.
        queue_wait: times from submit to the start.
        run_time: times from start to end.
    """

    workers: int
    threads: tuple[ThreadStatistics, ...]
    queued: int
    running: int
    submitted: int
    done: int
    failed: int
    cancelled: int
    timed_out: int
    retried: int
    unstarted: int
    queue_wait: Times
    run_time: Times


def _seconds(name: str, value: Any, *, least: float = 0.0) -> float:
    if isinstance(value, bool) or not isinstance(value, (int, float)):
        raise TypeError(f"{name} must be a number of seconds or None, not {value!r}")
    if math.isnan(value) or value < least:
        raise ValueError(f"{name} must be at least {least:g} seconds, not {value!r}")
    return float(value)


def _count(name: str, value: Any, least: int, most: int) -> int:
    if isinstance(value, bool) or not isinstance(value, int):
        raise TypeError(f"{name} must be an int, not {value!r}")
    if not least <= value <= most:
        raise ValueError(f"{name} must be from {least} to {most}, not {value}")
    return value


class ThreadOptions(Mapper):
    """A thread pool with options for what is submitted: made by ThreadPool.options."""

    __slots__ = ("__weakref__", "_pool", "_spec")

    def __init__(self, pool: ThreadPool, spec: tuple[int, int, int, str | None]) -> None:
        self._pool = pool
        self._spec = spec

    def submit(self, fn: Callable[..., T], /, *args: Any, **kwargs: Any) -> _core.Future[T]:
        """As ThreadPool.submit, with these options."""
        return self._pool._submit_with(self._spec, fn, *args, **kwargs)

    def _how_to_map(self, fn: Callable[..., Any], chunksize: int) -> Way:
        return self.submit, 1, None  # threads have no use for chunks


class ThreadPool(_core.ThreadPoolBase, Mapper, ThreadPoolExecutor):
    """A pool of threads: an Executor whose futures can be awaited.

    Threads are started when tasks need them. Idle ones are used last in, first out, and end
    after a while. It passes for a concurrent.futures.ThreadPoolExecutor, so that event loops
    take it as their default executor. All methods may be called by any thread.

    A task that runs can be asked to stop: by its future's cancel(), by a timeout, by the end
    of the pool. Then `plait.stop_requested()` is true in its thread, and the exception
    `plait.TaskStopped` is raised there at the next step that is Python's. What is in a call
    that does not return to Python (a blocking read, a lock, time.sleep, a long computation in
    C) goes on until that returns: nothing in a process can end a thread from outside. Its
    future stays running, statistics() shows it as stopping, and shutdown(timeout=) names it.

    Args:
        workers: at most so many threads; None for the number of processors that this
            process may use plus 4, and at most 32.
        max_workers: the same under the name that it has in concurrent.futures.
        thread_name_prefix: threads are named with this and a number.
        initializer: called in each thread before its first task. When it raises, the pool is
            broken.
        initargs: its arguments.
        max_pending: at most so many tasks may wait for a thread; None for no bound. Tasks of
            the pool itself, and event loops, may exceed it: they must not block.
        when_full: what submit does then: "block" until there is room, or "raise" PoolFull, as
            "await" does, for programs that use ``await pool.submit_soon(...)``. An event loop
            is never blocked: in its thread "block" raises, too.
        idle_timeout: seconds after which an idle thread ends; None for never.
        daemon: whether the interpreter's end leaves running tasks behind and cancels waiting
            ones, instead of waiting for all. After Ctrl+C waiting tasks are cancelled, and
            running ones have a second to stop, in either case.
        context: whether a task runs in a copy of the context (contextvars) of its submit.

    Raises:
        ValueError: an argument is out of range.
        TypeError: an argument has the wrong type; workers and max_workers are both given.

    Example:
        >>> import plait
        >>> with plait.ThreadPool(4) as pool:
        ...     pool.submit(pow, 2, 10).result()
        1024
    """

    def __init__(
        self,
        workers: int | None = None,
        *,
        thread_name_prefix: str = "",
        initializer: Callable[..., object] | None = None,
        initargs: Sequence[Any] = (),
        max_pending: int | None = None,
        when_full: str = "block",
        idle_timeout: float | None = 30.0,
        daemon: bool = False,
        context: bool = False,
        max_workers: int | None = None,
        _gentle: bool = False,
    ) -> None:
        workers = either(workers, max_workers)
        if workers is None:
            workers = min(32, _processors() + 4)
        _count("workers", workers, 1, MAX_WORKERS)
        if not isinstance(thread_name_prefix, str):
            raise TypeError(f"thread_name_prefix must be a str, not {thread_name_prefix!r}")
        if initializer is not None and not callable(initializer):
            raise TypeError(f"initializer must be a callable or None, not {initializer!r}")
        if max_pending is not None:
            _count("max_pending", max_pending, 1, 2**31)
        if when_full not in ("block", "raise", "await"):
            raise ValueError(f'when_full must be "block", "raise" or "await", not {when_full!r}')
        idle = -1.0 if idle_timeout is None else _seconds("idle_timeout", idle_timeout)
        crew = _Crew(
            workers=workers,
            max_pending=max_pending or 0,
            refuse=when_full != "block",
            idle_timeout=idle,
            context=context,
            gentle=_gentle,
            initializer=initializer,
            initargs=tuple(initargs),
        )
        crew.prefix = thread_name_prefix or f"ThreadPool-{next(_numbers)}"
        crew.waits_at_exit = not daemon
        if _exiting:
            crew._close(True)
        crew.soon = Room(crew)
        self._open(crew)
        _crews.add(crew)

    # ---- what ThreadPoolExecutor shows of itself, and programs look at

    @property
    def _max_workers(self) -> int:  # type: ignore[override]
        return int(self._crew._max)

    @property
    def _threads(self) -> set[threading.Thread]:  # type: ignore[override]
        return set(self._crew.threads.values())

    @property
    def _broken(self) -> BaseException | None:  # type: ignore[override]
        broken: BaseException | None = self._crew._broken
        return broken

    @property
    def _shutdown(self) -> bool:  # type: ignore[override]
        return bool(self._crew._closed)

    # ---- tasks

    async def submit_soon(self, fn: Callable[..., T], /, *args: Any, **kwargs: Any) -> Any:
        """Submit as soon as there is room, without blocking the event loop.

        Returns:
            Future: of the task, not yet awaited.

        Raises:
            RuntimeError: the pool was shut down.
            PoolBroken: the initializer failed.
        """
        return await self._crew.soon.submit(self.submit, fn, *args, **kwargs)

    def options(
        self,
        *,
        timeout: float | None = None,
        priority: int = 0,
        name: str | None = None,
        retries: int = 0,
    ) -> ThreadOptions:
        """Make a view of this pool whose submit and map use options.

        Args:
            timeout: seconds that a task may run, counted from its start. Then it is asked to
                stop, and its future ends with TaskTimeout when it has.
            priority: tasks with a higher one begin first; equal ones in order.
            name: what statistics and errors call the task.
            retries: how many times a task that raised an Exception is run again.

        Returns:
            ThreadOptions: cheap to make and to keep.

        Raises:
            ValueError: an option is out of range.
            TypeError: an option has the wrong type.
        """
        ns = 0
        if timeout is not None:
            ns = max(1, int(min(_seconds("timeout", timeout), 1e9) * 1e9))
        _count("priority", priority, -(2**31), 2**31 - 1)
        _count("retries", retries, 0, 2**31)
        if name is not None and not isinstance(name, str):
            raise TypeError(f"name must be a str or None, not {name!r}")
        return ThreadOptions(self, (ns, priority, retries, name))

    def _how_to_map(self, fn: Callable[..., Any], chunksize: int) -> Way:
        return self.submit, 1, None

    def resize(self, workers: int) -> None:
        """Change how many threads there may be; those in excess end after their task.

        Raises:
            ValueError: workers is out of range.
        """
        self._crew._resize(_count("workers", workers, 1, MAX_WORKERS))

    def statistics(self) -> ThreadPoolStatistics:
        """Tell what the pool has done and does now."""
        crew = self._crew
        names = {thread.ident: thread.name for thread in list(crew.threads.values())}
        threads = tuple(
            ThreadStatistics(names.get(ident, "?"), ident, task, seconds, stopping, done)
            for ident, done, task, seconds, stopping in crew._table()
        )
        figures = crew._figures()
        del figures["calls"]
        waits, runs = figures.pop("waits"), figures.pop("runs")
        return ThreadPoolStatistics(
            threads=threads, queue_wait=Times(*waits), run_time=Times(*runs), **figures
        )

    # ---- the end

    def shutdown(
        self, wait: bool = True, *, cancel_futures: bool = False, timeout: float | None = None
    ) -> None:
        """End the pool; what was submitted is done first.

        Args:
            wait: return when the tasks are done and the threads have ended; otherwise that
                goes on in the background.
            cancel_futures: cancel the tasks that no thread has begun.
            timeout: seconds to wait at most. Then waiting tasks are cancelled and running
                ones asked to stop; a RuntimeWarning names those that had not ended.
        """
        if timeout is not None:
            timeout = _seconds("timeout", timeout)
        crew = self._crew
        if crew._forked:
            return
        crew._close(False)
        if cancel_futures:
            crew._cancel_line()
        if not wait:
            return
        if crew.ended(None if timeout is None else time.monotonic() + timeout):
            return
        crew._cancel_line()
        names = crew._stop_running()
        if names:
            warnings.warn(
                f"the thread pool was shut down while tasks were running, which have been asked "
                f"to stop: {', '.join(names)}",
                RuntimeWarning,
                stacklevel=2,
            )

    def __exit__(self, exc_type: Any, exc_val: Any, exc_tb: Any) -> bool | None:
        if exc_type is not None and issubclass(exc_type, KeyboardInterrupt):
            _terminate(self._crew, _INTERRUPT_GRACE)
        else:
            self.shutdown(wait=True)
        return None


def _processors() -> int:
    if sys.version_info >= (3, 13):
        return os.process_cpu_count() or 1
    return len(os.sched_getaffinity(0))


def _terminate(crew: _Crew, grace: float) -> None:
    """End at once: cancel what waits, ask what runs to stop, leave what does not."""
    if crew._forked:
        return
    crew._close(_exiting)
    crew._cancel_line()
    crew._stop_running()
    crew.ended(time.monotonic() + grace)


def _at_exit() -> None:
    global _exiting
    _exiting = True
    interrupted = isinstance(getattr(sys, "last_value", None), KeyboardInterrupt)
    crews = [crew for crew in list(_crews) if not crew._forked]
    for crew in crews:
        crew._close(True)
        if interrupted or not crew.waits_at_exit:
            crew._cancel_line()
    for crew in crews:
        if interrupted:
            _terminate(crew, _INTERRUPT_GRACE)
        elif crew.waits_at_exit:
            crew.ended(None)


def _after_fork_in_child() -> None:
    for crew in list(_crews):
        crew._after_fork()
        crew.threads.clear()
    _crews.clear()


# Before the interpreter waits for threads that are no daemons, which is before atexit: they
# may be waiting for ours.
try:
    threading._register_atexit(_at_exit)  # type: ignore[attr-defined]
except RuntimeError:  # imported while the interpreter ends
    _exiting = True
os.register_at_fork(after_in_child=_after_fork_in_child)
