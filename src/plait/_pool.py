"""The process pool: an Executor over worker processes."""

from __future__ import annotations

import atexit
import contextlib
import os
import signal
import sys
import threading
import time
import warnings
import weakref
from collections.abc import Callable, Sequence
from concurrent.futures import Executor
from typing import Any, TypeVar

from . import _worker
from ._daemon import Daemon
from ._exceptions import PoolFull
from ._helper import Helper
from ._mapper import Mapper, Way
from ._options import Options
from ._processors import MAX_WORKERS, default_workers, either, quota_bound
from ._room import Room, in_loop
from ._sending import Sender, find_cloudpickle, main_module
from ._sending import decode_exception as decode_exception
from ._sending import log_callback_error as log_callback_error
from ._staff import RESULTS_GRACE
from ._start import choose_method, frozen, threads_run
from ._statistics import PoolStatistics, gather
from ._stops import Stopper
from ._watchdog import Watchdog

T = TypeVar("T")

MEMORY_LEAST = 64 << 20

_pools: weakref.WeakSet[ProcessPool] = weakref.WeakSet()


class ProcessPool(Stopper, Sender, Mapper, Executor):
    """A pool of worker processes: an Executor whose futures can be awaited.

    Tasks and results travel through shared memory. A worker's death fails the task that it
    ran, with `WorkerDied`, and nothing else.

    Args:
        workers: how many processes; None for as many as this process may use processors.
        max_workers: the same under the name that it has in concurrent.futures.
        initializer: called in each worker before its first task.
        initargs: its arguments.
        mp_context: for programs that are written for concurrent.futures: None, or a context of
            multiprocessing, whose start method is meant: "spawn" and "fork" under their names,
            "forkserver" as "zygote". Nothing else of the context is used.
        start_method: how workers begin; successors of dead ones begin alike.
            "zygote" (or None): a clean process with one thread is executed, and forks them. They
            inherit no memory, locks or threads, and take about a millisecond each.
            "spawn": each is executed afresh, and shares no memory with others but the pool's.
            "fork": a process with one thread forks them that is a copy of this one, made now.
            They begin with the modules, globals and open files that this process has now, and
            initargs need not be pickled. Locks that other threads hold at this moment stay
            locked in them for ever, hence the warning. Signal handlers are the default ones.
        grace: seconds that a task has to end after it was asked to (`Future.cancel`, a timeout);
            then its process is killed.
        max_tasks_per_worker: a worker ends after so many tasks, and another takes its place.
        memory_limit: bound in bytes of a worker's private memory (its heap and stacks, the
            interpreter included; not what lies in the pool's shared memory). An allocation
            beyond it raises MemoryError in the task; the worker goes on.
        max_pending: so many tasks may be unfinished at once; None for no bound.
        when_full: what submit does beyond that: "block" waits for room, "raise" raises
            `PoolFull`, and so does "await", for programs on a loop that submit with
            ``await pool.submit_soon(...)``, which waits for room without blocking the loop.
            An event loop is never blocked: in its thread "block" raises, too, and the
            ``run_in_executor`` of a loop of plait's waits for room in its future.
        shared_memory: bound in bytes of what tasks, and the results of each worker, may have
            in shared memory at once; None for half of the machine's memory.

    Raises:
        ValueError: an argument is out of range.
        TypeError: an argument has the wrong type; workers and max_workers are both given.
        RuntimeError: made while a worker imports the parent's script; in a frozen program that
            did not call `freeze_support`.

    Warns:
        DeprecationWarning: start_method is "fork" and this process has other threads.

    Example:
        >>> import plait
        >>> with plait.ProcessPool(2) as pool:
        ...     pool.submit(pow, 2, 10).result()
        1024
    """

    def __init__(
        self,
        workers: int | None = None,
        *,
        initializer: Callable[..., object] | None = None,
        initargs: Sequence[Any] = (),
        mp_context: Any = None,
        start_method: str | None = None,
        shared_memory: int | None = None,
        grace: float = 1.0,
        max_tasks_per_worker: int | None = None,
        memory_limit: int | None = None,
        max_pending: int | None = None,
        when_full: str = "block",
        max_workers: int | None = None,
    ) -> None:
        workers = either(workers, max_workers)
        if workers is None:
            workers = default_workers()
        if isinstance(workers, bool) or not isinstance(workers, int):
            raise TypeError(f"workers must be an int or None, not {workers!r}")
        if not 1 <= workers <= MAX_WORKERS:
            raise ValueError(f"workers must be from 1 to {MAX_WORKERS}, not {workers}")
        if initializer is not None and not callable(initializer):
            raise TypeError(f"initializer must be callable, not {initializer!r}")
        if shared_memory is not None and shared_memory < 1 << 20:
            raise ValueError(f"shared_memory must be at least 1 MiB, not {shared_memory} bytes")
        if isinstance(grace, bool) or not isinstance(grace, int | float):
            raise TypeError(f"grace must be a number of seconds, not {grace!r}")
        if not 0 <= grace < float("inf"):
            raise ValueError(f"grace must be finite and at least 0 seconds, not {grace}")
        for what, value, least in (
            ("max_tasks_per_worker", max_tasks_per_worker, 1),
            ("memory_limit", memory_limit, MEMORY_LEAST),
            ("max_pending", max_pending, 1),
        ):
            if value is None:
                continue
            if isinstance(value, bool) or not isinstance(value, int):
                raise TypeError(f"{what} must be an int or None, not {value!r}")
            if not least <= value < 1 << 63:
                raise ValueError(f"{what} must be at least {least}, not {value}")
        if when_full not in ("block", "raise", "await"):
            raise ValueError(f"when_full must be 'block', 'raise' or 'await', not {when_full!r}")
        method = choose_method(start_method, mp_context)
        if _worker.importing_main:
            raise RuntimeError(
                "a pool is made while a worker imports the main script: put the code that starts "
                "it under `if __name__ == '__main__':`"
            )
        if method == "fork" and threads_run():
            warnings.warn(
                "this process has other threads: a pool of start_method 'fork' copies the locks "
                "that they hold, which nobody releases in the copies",
                DeprecationWarning,
                stacklevel=2,
            )
        self._main = main_module()
        self._own_main = method == "fork" or frozen()
        # What a worker makes of the script's classes says that it comes from there.
        sys.modules.setdefault("__mp_main__", sys.modules["__main__"])
        setup: Any = (initializer, tuple(initargs))
        if method != "fork":
            setup = self._pickle(setup)
        self._loops: dict[int, Any] = {}
        self._grace = float(grace)
        self._max_pending = max_pending or 0
        self._on_full = when_full
        self._soon = Room(self)
        self._watchdog = Watchdog(self)
        self._stopped = False
        self._stopper: threading.Thread | None = None
        self._ended = threading.Event()
        by_value = self._main[0] == "none" and find_cloudpickle() is not None
        memfd, eventfd, self._waitfd = self._open(
            workers,
            MAX_WORKERS,
            0,
            shared_memory or 0,
            by_value,
            self._max_pending,
            quota_bound(),
        )
        told = {
            "main": ("own", None) if self._own_main else self._main,
            "setup": setup,
            "by_value": by_value,
            "most": max_tasks_per_worker or 0,
            "memory_limit": memory_limit or 0,
        }
        try:
            self._hire(method, workers, (memfd, eventfd), told)
        except BaseException:
            self._stopped = True
            self._close()
            raise
        _pools.add(self)

    # ---- audiences -----------------------------------------------------------------

    def _start_helper(self) -> None:
        """Start the thread that looks after the pool when no one waits for it."""
        with self._lock:
            if self._helper is not None or self._stopped or self._forked:
                return
            self._helper = helper = Helper(self)
            if self._control is not None:
                helper.watch(self._control.fileno())
            self._helper_is(helper.nudge)
            try:
                helper.thread.start()
            except BaseException as error:
                if helper.thread.claim():
                    self._helper = None
                    self._helper_is(-1)
                    helper.close()
                # A RuntimeError: the interpreter is about to end, and shutdown collects.
                if not isinstance(error, RuntimeError):
                    raise

    def _attach(self, loop: Any) -> None:
        """Have a loop look at results."""
        with self._lock:
            for key, known in list(self._loops.items()):
                if known.is_closed():
                    del self._loops[key]
            if id(loop) in self._loops:
                return
            loop.add_reader(self._waitfd, self._on_ready)
            self._loops[id(loop)] = loop

    def _detach(self, loop: Any) -> None:
        if not loop.is_closed():
            loop.remove_reader(self._waitfd)

    def _detach_loops(self) -> None:
        with self._lock:
            loops = list(self._loops.values())
            self._loops.clear()
            self._forget_loop()
        for loop in loops:
            asyncio = sys.modules["asyncio"]
            if asyncio._get_running_loop() is loop or not loop.is_running():
                with contextlib.suppress(RuntimeError):
                    self._detach(loop)
            else:
                with contextlib.suppress(RuntimeError):  # closed meanwhile
                    loop.call_soon_threadsafe(self._detach, loop)

    # ---- Executor ------------------------------------------------------------------

    def resize(self, workers: int) -> None:
        """Change how many worker processes there are.

        New ones are started at once. Those in excess end when the task that they run is done,
        idle ones first; this does not wait for them. Any thread may call it.

        Args:
            workers: how many, at most 64, or fewer where the address space is limited.

        Raises:
            TypeError: workers is not an int.
            ValueError: workers is out of range.
            RuntimeError: the pool was shut down, or belongs to another process.
        """
        if isinstance(workers, bool) or not isinstance(workers, int):
            raise TypeError(f"workers must be an int, not {workers!r}")
        if not 1 <= workers <= self._room:
            raise ValueError(f"workers must be from 1 to {self._room}, not {workers}")
        with self._lock:
            if self._closed or self._stopping or self._forked:
                raise RuntimeError(
                    "cannot resize a pool that was shut down or is another process's"
                )
            self._on_control()  # the seats of those that have ended are free
            busy = {entry[0] for entry in self._running()}
            staying = [seat for seat, worker in self._seats.items() if not worker.leaving]
            staying.sort(key=lambda seat: (seat in busy, self._seats[seat].ready), reverse=True)
            excess = staying[workers:]
            self._workers = workers
            for seat in excess:
                self._seats[seat].leaving = True
            self._resize(workers, excess)
            self._fill()

    def statistics(self) -> PoolStatistics:
        """How the pool stands: tasks by state and outcome, workers, waiting and running times.

        Any thread may call this; it stops nobody.

        Raises:
            RuntimeError: the pool belongs to another process.
        """
        if not (self._forked or self._stopped):
            self._on_control()  # births that nobody has read of yet
        return gather(self)

    def _when_full(self) -> None:
        """Called by submit, in its thread, when there is no room."""
        if self._on_full == "block" and not in_loop():
            self._wait_room()
            return
        advice = ""
        if self._on_full == "await":
            advice = "; use `await pool.submit_soon(fn, ...)`"
        elif self._on_full == "block":
            advice = (
                ", and waiting for room would block this thread's event loop: "
                "use `await pool.submit_soon(fn, ...)`"
            )
        raise PoolFull(
            f"{self._outstanding} tasks are unfinished, as many as max_pending allows{advice}"
        )

    def _wait_room(self) -> None:
        while self._outstanding >= self._max_pending and not self._closed:
            self._wait_idle(-1.0)

    def _places(self) -> int:
        return self._max_pending - self._outstanding

    async def submit_soon(self, fn: Callable[..., T], /, *args: Any, **kwargs: Any) -> Any:
        """Submit as soon as there is room, without blocking the event loop.

        Returns:
            Future: of the task, not yet awaited.

        Raises:
            RuntimeError: the pool was shut down.
        """
        return await self._soon.submit(self.submit, fn, *args, **kwargs)

    def _submit_when_room(self, loop: Any, fn: Callable[..., T], args: tuple[Any, ...]) -> Any:
        """What run_in_executor of a loop of plait's does when there is no room."""
        if self._on_full != "block":
            self._when_full()

        async def later() -> Any:
            return await (await self.submit_soon(fn, *args))

        return loop.create_task(later())

    def options(
        self,
        *,
        timeout: float | None = None,
        priority: int = 0,
        name: str | None = None,
        retries: int = 0,
    ) -> Options:
        """Submit with options: ``pool.options(timeout=2.0).submit(fn, x)``.

        Args:
            timeout: seconds that a task may run, counted from when a worker begins it; then it
                is stopped, as `Future.cancel` stops it, and fails with `TaskTimeout`.
            priority: tasks with a higher one are begun first.
            name: stands for the task in errors and figures; None for the function's name.
            retries: how many times a task that raises an Exception, or whose worker dies, is
                tried again; after 10 ms, and each further time after twice as long, up to 2 s.
                Its arguments are pickled anew for each try. What was stopped is not tried again.

        Returns:
            Options: with ``submit`` and ``map``; it may be kept and used many times.

        Raises:
            TypeError: an argument has the wrong type.
            ValueError: timeout is not more than 0, retries is negative.
        """
        return Options(self, timeout, priority, name, retries)

    def shutdown(
        self, wait: bool = True, *, cancel_futures: bool = False, timeout: float | None = None
    ) -> None:
        """End the pool; what was submitted is done first.

        A Ctrl+C while this waits, or while a thread waited for a result and nothing has been
        submitted since, ends the pool at once.

        Args:
            wait: return when the tasks are done and the workers have ended; otherwise that
                goes on in the background.
            cancel_futures: cancel the tasks that no worker has begun.
            timeout: seconds after which what is still there is ended: tasks that wait are
                cancelled, those that run are killed with their workers, and their futures are
                cancelled. 0 ends everything at once. None waits for as long as it takes.

        Raises:
            ValueError: timeout is negative.
        """
        if timeout is not None and not timeout >= 0:
            raise ValueError(f"timeout must be at least 0 seconds or None, not {timeout}")
        if self._forked:
            return
        self._close()
        if cancel_futures:
            self._cancel_waiting()
        end = None if timeout is None else time.monotonic() + timeout
        if self._interrupted:
            end = time.monotonic()
        if wait:
            try:
                self._finish(end)
            except KeyboardInterrupt:
                self._terminate()
                raise
        elif not self._stopped:
            threading.Thread(target=self._finish, args=(end,), name="plait-pool-shutdown").start()

    def terminate_workers(self) -> None:
        """End the pool, and ask the workers to end by SIGTERM, which most programs heed.

        Tasks that wait are cancelled; those that run fail with `WorkerDied`. A worker that
        handles or ignores the signal ends when its task does. This waits for nobody, and
        does nothing to a pool that has ended. Any thread may call it.
        """
        self._force_shutdown(signal.SIGTERM)

    def kill_workers(self) -> None:
        """End the pool, and kill the workers.

        Tasks that wait are cancelled; those that run fail with `WorkerDied`. This waits for
        nobody, and does nothing to a pool that has ended. Any thread may call it.
        """
        self._force_shutdown(signal.SIGKILL)

    def _force_shutdown(self, number: signal.Signals) -> None:
        if self._forked or self._stopped:
            return
        self._close()
        with self._lock:
            self._stopping = self._stopping or True  # nobody is to succeed those that end
            self._cancel_waiting()
            self._on_control()  # births that nobody has read of yet
            for worker in self._seats.values():
                self._kill(worker, number)
        self.shutdown(wait=False, cancel_futures=True)

    def _how_to_map(self, fn: Callable[..., Any], chunksize: int) -> Way:
        return self.submit, chunksize, self._submit_each

    def _cancel_waiting(self) -> None:
        for future in [*self._recall(), *self._resting]:
            if self._withdraw(future):
                self._cancel_now(future)

    def _finish(self, end: float | None = None) -> None:
        while self._outstanding > 0 and not self._stopped:
            left = -1.0 if end is None else end - time.monotonic()
            if end is not None and left <= 0:
                self._terminate()
                return
            self._wait_idle(left)
        grace = RESULTS_GRACE
        if end is not None:
            grace = min(grace, max(0.1, end - time.monotonic()))
        self._stop(grace)

    def _stop(self, grace: float) -> None:
        """Dismiss the workers, kill what stays for longer than `grace` seconds, clean up.

        When another thread does so already, wait for that.
        """
        me = threading.current_thread()
        with self._lock:
            other = self._stopper not in (None, me)
            if not (other or self._ended.is_set()):
                self._stopper = me
                self._stopped = True
                self._stopping = self._stopping or True
        if other and not isinstance(me, Daemon):  # the other one may wait for this thread
            self._ended.wait(grace + 1.0)
        if other or self._ended.is_set():
            return
        try:
            self._dismiss_all(grace)
            self._watchdog.close()
            self._detach_loops()
            if self._helper is not None:
                self._wake_helper()
                self._helper_is(-1)  # its descriptors are about to be closed
                self._helper.stop()
            _pools.discard(self)
            self._ended.set()
        finally:
            self._stopper = None  # after an interrupt the next one goes on with it

    def _terminate(self) -> None:
        """End at once: cancel what waits, kill what runs."""
        self._close()
        with self._lock:
            self._stopping = "kill"
            self._cancel_waiting()
            for future in self._recall():
                self._ask_stop(future, None)  # what runs ends as cancelled when it is killed
            for worker in self._seats.values():
                self._kill(worker)
            self._hang_up()
        self._stop(1.0)

    def __exit__(self, exc_type: Any, exc_val: Any, exc_tb: Any) -> bool | None:
        if exc_type is not None and issubclass(exc_type, KeyboardInterrupt):
            if not self._forked:
                self._terminate()
        else:
            self.shutdown(wait=True)
        return None

    def __del__(self) -> None:
        # Work that is under way holds a reference, so nobody wants anything any more.
        if getattr(self, "_stopped", True) or self._forked:
            return
        with contextlib.suppress(Exception):
            self._stop(0.2)


def at_exit() -> None:
    """End the pools that there are; for the end of the interpreter."""
    interrupted = isinstance(getattr(sys, "last_value", None), KeyboardInterrupt)
    for pool in list(_pools):
        if pool._forked:
            continue
        if interrupted:
            pool._terminate()
        else:
            pool.shutdown(wait=True)


def _after_fork_in_child() -> None:
    for pool in list(_pools):
        pool._after_fork()
        if pool._helper is not None:
            pool._helper.close()
        pool._watchdog.after_fork()
        pool._let_go()
    _pools.clear()


atexit.register(at_exit)
os.register_at_fork(after_in_child=_after_fork_in_child)
