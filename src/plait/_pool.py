"""The process pool: policy around the core's rings. Workers, deaths, shutdown, map."""

from __future__ import annotations

import atexit
import contextlib
import marshal
import os
import pickle
import select
import signal
import socket
import sys
import threading
import time
import weakref
from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent.futures import Executor
from typing import Any, TypeVar

from . import _core, _worker
from ._exceptions import (
    PlaitError,
    PoolBroken,
    PoolFull,
    RemoteError,
    RemoteTraceback,
    TaskTimeout,
    WorkerDied,
)
from ._helper import Helper
from ._map import map_tasks
from ._options import Options, Order, name_of
from ._statistics import PoolStatistics, gather
from ._watchdog import Watchdog
from ._zygote import HEAD

T = TypeVar("T")

MAX_WORKERS = 64
STILLBORN_MAX = 5
"""So many workers in a row may end before they are ready; then the pool is broken."""

STACK_MAX = 65536
MEMORY_LEAST = 64 << 20
STABLE = 1.0
"""A worker that lived for so many seconds, or did a task, was no failure."""

FUTILE_MAX = 5
"""So many times the number of workers may end in a row, ready but without having begun one of the
tasks that wait; then the pool is broken."""
POISON_PAUSE = 0.1
"""At most so many seconds before the successor of a worker that a task has taken along."""

_CONTROL = 0  # tag of the control socket in the wait set
_RESULTS_GRACE = 5.0
_SEE_TO = 0.1

_pools: weakref.WeakSet[ProcessPool] = weakref.WeakSet()

# What the zygote runs. The package itself is put in place without being run: importing its
# public face would cost more time than all the rest of the start. It runs on first use.
_BOOTSTRAP = """
import sys, os, marshal
data = marshal.loads(os.pread({fd}, {size}, 0))
sys.path[:] = data["path"]
sys.argv[:] = data["argv"]
import importlib.util
spec = importlib.util.find_spec("plait")
if spec is None:
    raise SystemExit("plait: the package cannot be found on the parent's sys.path")
package = importlib.util.module_from_spec(spec)
def __getattr__(name):
    if name.startswith("_") and name != "__version__":
        raise AttributeError(name)
    package.__dict__.pop("__getattr__", None)
    spec.loader.exec_module(package)
    return getattr(package, name)
package.__getattr__ = __getattr__
sys.modules["plait"] = package
from plait._zygote import main
main(data)
"""


def cpu_quota() -> float | None:
    """The CPU limit of this process's control group, in cores, or None without one."""
    try:
        with open("/proc/self/cgroup", encoding="ascii") as file:
            lines = file.read().splitlines()
    except (OSError, ValueError):
        return None
    best: float | None = None
    roots: list[tuple[str, str, str | None]]
    for line in lines:
        number, controllers, path = line.split(":", 2)
        if number == "0":
            roots = [("/sys/fs/cgroup", "cpu.max", None)]
        elif "cpu" in controllers.split(","):
            roots = [
                (f"/sys/fs/cgroup/{name}", "cpu.cfs_quota_us", "cpu.cfs_period_us")
                for name in ("cpu", controllers)
            ]
        else:
            continue
        parts = [part for part in path.split("/") if part]
        # Limits of every ancestor hold, too; inside a container the path may not exist.
        for depth in range(len(parts), -1, -1):
            for root, quota_name, period_name in roots:
                where = os.path.join(root, *parts[:depth])
                try:
                    with open(os.path.join(where, quota_name), encoding="ascii") as file:
                        words = file.read().split()
                    if period_name is not None:
                        with open(os.path.join(where, period_name), encoding="ascii") as file:
                            words.append(file.read().strip())
                    if words[0] in ("max", "-1"):
                        continue
                    cores = int(words[0]) / int(words[1])
                except (OSError, ValueError, IndexError, ZeroDivisionError):
                    continue
                best = cores if best is None else min(best, cores)
    return best


def default_workers() -> int:
    """As many workers as this process may use processors: affinity and control group."""
    count = len(os.sched_getaffinity(0))
    quota = cpu_quota()
    if quota is not None:
        count = min(count, max(1, round(quota)))
    return min(count, MAX_WORKERS)


def check_start(start_method: Any, mp_context: Any) -> None:
    """Refuse ways to start workers that the pool does not have."""
    if start_method is not None and not isinstance(start_method, str):
        raise TypeError(f"start_method must be a str or None, not {start_method!r}")
    if start_method in ("fork", "spawn", "forkserver"):
        raise ValueError(
            f"start_method {start_method!r} is not supported: workers are forked from a process "
            "that was executed afresh (start_method 'zygote', the default)"
        )
    if start_method not in (None, "zygote"):
        raise ValueError(f"start_method must be 'zygote' or None, not {start_method!r}")
    if mp_context is None:
        return
    try:
        kind = mp_context.get_start_method()
    except AttributeError:
        raise TypeError(
            f"mp_context must be a multiprocessing context or None, not {mp_context!r}"
        ) from None
    if kind not in ("spawn", "forkserver"):
        raise ValueError(
            f"mp_context with start method {kind!r} is not supported: workers begin in a clean "
            "process ('spawn' and 'forkserver' are taken as meaning that)"
        )


def main_module() -> tuple[str, str | None]:
    """How a worker can import this process's main module: (kind, name or path)."""
    main = sys.modules.get("__main__")
    how = getattr(main, "__dict__", {}).get("_plait_how")
    if how is not None:  # a worker that has not imported it yet makes a pool of its own
        return (how[0], how[1])
    spec = getattr(main, "__spec__", None)
    path = getattr(main, "__file__", None)
    if spec is not None and spec.name == "__main__" and path is not None:
        # A folder or an archive was run; its __main__ has no other name to be found by.
        return ("path", os.path.abspath(os.path.dirname(path)))
    if spec is not None and spec.name is not None:
        return ("module", spec.name)
    if path is not None and os.path.isfile(path):
        return ("path", os.path.abspath(path))
    return ("none", None)


def _authkey() -> bytes | None:
    """What opens multiprocessing's managers: with it their proxies may be arguments.

    None when the program does not use multiprocessing.
    """
    module = sys.modules.get("multiprocessing.process")
    return None if module is None else bytes(module.current_process().authkey)


def decode_exception(value: tuple[bytes | None, str, str, str]) -> BaseException:
    """Make a task's exception from what its worker sent; its traceback is the cause."""
    data, type_name, message, text = value
    error: Any = None
    if data is not None:
        with contextlib.suppress(Exception):
            error = pickle.loads(data)
    if not isinstance(error, BaseException):
        error = RemoteError(type_name, message)
    error.__cause__ = RemoteTraceback(text)
    return error  # type: ignore[no-any-return]


def log_callback_error(future: Any, error: BaseException) -> None:
    """Log what a done-callback raised, as concurrent.futures does."""
    if not isinstance(error, Exception):
        raise error
    import logging

    logging.getLogger("concurrent.futures").error(
        "exception calling callback for %r", future, exc_info=error
    )


class _Worker:
    """A worker process as its parent knows it."""

    __slots__ = ("born", "leaving", "pid", "pidfd", "ready", "stackfd")

    def __init__(self) -> None:
        self.pid = 0
        self.pidfd = -1
        self.stackfd = -1
        self.ready = False
        self.leaving = False
        self.born = 0.0

    def last_stack(self) -> str | None:
        """What the worker's signals left: the Python stack, innermost call first."""
        if self.stackfd < 0:
            return None
        try:
            size = os.fstat(self.stackfd).st_size
            data = os.pread(self.stackfd, STACK_MAX, max(0, size - STACK_MAX))
        except OSError:
            return None
        lines = data.decode(errors="replace").strip().splitlines()
        for i, line in enumerate(lines):
            if line.endswith(" in serve") and "_worker.py" in line:
                return "\n".join(lines[:i])  # below are the pool's own frames
        return "\n".join(lines) or None

    def close(self) -> None:
        """Close the descriptors."""
        for fd in (self.pidfd, self.stackfd):
            if fd >= 0:
                os.close(fd)
        self.pidfd = self.stackfd = -1


class ProcessPool(_core.PoolBase, Executor):
    """A pool of worker processes: an Executor whose futures can be awaited.

    Tasks and results travel through shared memory. A worker's death fails the task that it
    ran, with `WorkerDied`, and nothing else.

    Args:
        workers: how many processes; None for as many as this process may use processors.
        initializer: called in each worker before its first task.
        initargs: its arguments.
        mp_context: for programs that are written for concurrent.futures: None, or a context of
            multiprocessing with the start method "spawn" or "forkserver". Both promise workers
            that begin in a clean process and inherit no locks or threads, and so they do.
            "fork" promises a copy of this process's memory, and is refused.
        start_method: None or "zygote": a clean process with one thread, executed afresh, forks
            the workers. There is no other yet: "fork", "spawn" and "forkserver" are refused.
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
        shared_memory: bound in bytes of what tasks, and the results of each worker, may have
            in shared memory at once; None for half of the machine's memory.

    Raises:
        ValueError: an argument is out of range.
        RuntimeError: made while a worker imports the parent's script.

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
    ) -> None:
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
        check_start(start_method, mp_context)
        if _worker.importing_main:
            raise RuntimeError(
                "a pool is made while a worker imports the main script: put the code that starts "
                "it under `if __name__ == '__main__':`"
            )
        if not sys.executable:
            raise RuntimeError("sys.executable is not set: workers cannot be started")
        self._workers = workers
        self._main = main_module()
        # What a worker makes of the script's classes says that it comes from there.
        sys.modules.setdefault("__mp_main__", sys.modules["__main__"])
        setup = self._pickle((initializer, tuple(initargs)))
        self._lock = threading.RLock()
        self._seats: dict[int, _Worker] = {}
        self._loops: dict[int, Any] = {}
        self._stillborn = 0
        self._young_deaths = 0
        self._futile_deaths = 0
        self._finished_at_death = 0
        self._grace = float(grace)
        self._max_pending = max_pending or 0
        self._on_full = when_full
        self._max_tasks = max_tasks_per_worker or 0
        self._memory_limit = memory_limit or 0
        self._watchdog = Watchdog(self)
        self._resting: set[Any] = set()
        self._stopping: bool | str = False
        self._stopped = False
        self._helper: Helper | None = None
        self._control: socket.socket | None = None
        self._zygote = 0
        self._zygote_fd = -1
        self._zygote_deaths = 0
        self._setup = setup
        by_value = self._main[0] == "none" and _cloudpickle() is not None
        memfd, eventfd, waitfd = self._open(
            workers, MAX_WORKERS, 0, shared_memory or 0, by_value, self._max_pending
        )
        self._fds = (memfd, eventfd)
        self._waitfd = waitfd
        try:
            self._start_zygote()
        except BaseException:
            self._stopped = True
            self._close()
            raise
        _pools.add(self)

    # ---- sending -------------------------------------------------------------------

    def _pickle(self, value: Any) -> bytes:
        try:
            return pickle.dumps(value, 5)
        except Exception as error:
            cloudpickle = _cloudpickle()
            if cloudpickle is None:
                raise _advise(error) from None
            return bytes(cloudpickle.dumps(value, 5))

    def _dump_function(self, fn: Callable[..., Any]) -> tuple[bytes, bool]:
        """A function as a pickle, and whether that is only its name."""
        cloudpickle = None
        if self._main[0] == "none" and getattr(fn, "__module__", None) == "__main__":
            cloudpickle = _cloudpickle()
            if cloudpickle is None:
                raise _advise(
                    pickle.PicklingError(
                        f"{fn!r} is defined in a main module that workers cannot import"
                    )
                )
            return cloudpickle.dumps(fn, 5), False
        try:
            return pickle.dumps(fn, 5), True
        except Exception as error:
            cloudpickle = _cloudpickle()
            if cloudpickle is None:
                raise _advise(error) from None
        return cloudpickle.dumps(fn, 5), False

    def _dump_again(self, call: Any, error: Exception | None) -> tuple[bytes, list[Any]]:
        """Pickle a task's arguments by value, after pickle refused them with `error`."""
        cloudpickle = _cloudpickle()
        if cloudpickle is None:
            assert error is not None
            raise _advise(error) from None
        buffers: list[Any] = []
        try:
            data = cloudpickle.dumps(call, 5, buffer_callback=buffers.append)
        except Exception:
            if error is not None:
                raise error from None
            raise
        return data, buffers

    # ---- processes -----------------------------------------------------------------

    def _start_zygote(self) -> None:
        """Start the zygote and order the workers. Lock held, or not yet shared."""
        import subprocess

        flags = subprocess._args_from_interpreter_flags()  # type: ignore[attr-defined]
        memfd, eventfd = self._fds
        ours, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
        start = -1
        try:
            start = os.memfd_create("plait-start", os.MFD_CLOEXEC)
            data = marshal.dumps(
                {
                    "path": [os.path.abspath(p) if p == "" else p for p in sys.path],
                    "argv": [str(word) for word in sys.argv],
                    "start": start,
                    "control": theirs.fileno(),
                    "memfd": memfd,
                    "eventfd": eventfd,
                    "parent": os.getpid(),
                    "main": self._main,
                    "setup": self._setup,
                    "most": self._max_tasks,
                    "memory_limit": self._memory_limit,
                    "authkey": _authkey(),
                }
            )
            view = memoryview(data)
            while view:
                view = view[os.write(start, view) :]
            code = _BOOTSTRAP.format(fd=start, size=len(data))
            # Duplicating a descriptor onto itself is how a child is told to keep it.
            keep = [(os.POSIX_SPAWN_DUP2, fd, fd) for fd in (start, theirs.fileno(), *self._fds)]
            self._zygote = os.posix_spawn(
                sys.executable,
                [sys.executable, *flags, "-P", "-c", code],
                os.environ,
                file_actions=keep,
                setpgroup=0,
                setsigmask=[],
                setsigdef=[signal.SIGINT, signal.SIGTERM, signal.SIGPIPE],
            )
        except BaseException:
            ours.close()
            raise
        finally:
            theirs.close()
            if start >= 0:
                os.close(start)
        self._zygote_fd = os.pidfd_open(self._zygote)
        ours.setblocking(False)
        self._control = ours
        self._watch(ours.fileno(), _CONTROL)
        if self._helper is not None:
            self._helper.watch(ours.fileno())
        self._fill()

    def _fill(self, delay: float = 0.0) -> None:
        """Order the workers that are missing."""
        staying = sum(not worker.leaving for worker in self._seats.values())
        for _ in range(self._workers - staying):
            self._order_worker(delay)

    def _order_worker(self, delay: float = 0.0) -> None:
        seat, low_mark = self._seat()
        self._seats[seat] = _Worker()
        self._order(b"S", seat, low_mark, int(delay * 1000))

    def _order(self, kind: bytes, seat: int = 0, low_mark: int = 0, delay_ms: int = 0) -> None:
        if self._control is None:
            return
        try:
            self._control.send(HEAD.pack(kind, seat, 0, 0, low_mark, delay_ms))
        except (BrokenPipeError, ConnectionError):
            pass  # the zygote is gone; its end is handled when the socket says so

    def _on_control(self) -> None:
        """The control socket is readable: births, deaths, or the zygote's end."""
        with self._lock:
            while self._control is not None:
                try:
                    message, fds, _flags, _addr = socket.recv_fds(self._control, 65536, 2)
                except BlockingIOError:
                    return
                except ConnectionError:
                    message, fds = b"", []
                if not message:
                    self._on_zygote_end()
                    return
                kind, seat, pid, status, memory, _ = HEAD.unpack(message[: HEAD.size])
                worker = self._seats.get(seat)
                if kind == b"B" and worker is not None:
                    worker.pid = pid
                    worker.pidfd, worker.stackfd = fds
                    worker.born = time.monotonic()
                    for fd in fds:
                        os.set_inheritable(fd, False)
                    fds = []
                    if self._stopping == "kill":
                        self._kill(worker)
                elif kind == b"R" and worker is not None:
                    worker.ready = True
                    self._stillborn = self._zygote_deaths = 0
                elif kind == b"I":
                    text = message[HEAD.size :].decode(errors="replace")
                    error = PoolBroken("the initializer failed in a worker")
                    error.__cause__ = RemoteTraceback(text)
                    self._fail_all(error)
                elif kind == b"D" and worker is not None:
                    self._on_death(seat, pid, status, memory)
                for fd in fds:
                    os.close(fd)

    def _on_death(self, seat: int, pid: int, status: int | None, memory: int | None) -> None:
        """A worker is gone: its task fails, a successor is ordered."""
        worker = self._seats.pop(seat)
        stack = worker.last_stack()
        worker.close()
        exitcode = number = None
        if status is not None and os.WIFSIGNALED(status):
            number = os.WTERMSIG(status)
        elif status is not None:
            exitcode = os.WEXITSTATUS(status)
        lost = self._bury(seat)
        for future in lost:
            self._lose(
                future, WorkerDied(pid, exitcode, number, memory, future._task_name, stack), stack
            )
        if self._stopping or (self._closed and self._outstanding == 0):
            return
        delay = 0.0
        if worker.leaving:
            pass
        elif not worker.ready:
            self._stillborn += 1
            delay = min(2.0, 0.01 * 2**self._stillborn)
            if self._stillborn >= STILLBORN_MAX:
                died = WorkerDied(pid, exitcode, number, memory, None, stack)
                self._fail_all(
                    PoolBroken(f"{self._stillborn} workers in a row did not start: {died}")
                )
                return
        elif self._figures()["finished"] == self._finished_at_death and (
            time.monotonic() - worker.born < STABLE
        ):
            # Nothing was done since the last death: births alone help nobody. A death that takes
            # a task along brings the end of all tasks nearer, at least.
            self._young_deaths += 1
            self._futile_deaths += 1 if not lost and self._outstanding > 0 else 0
            if self._futile_deaths >= FUTILE_MAX * self._workers:
                died = WorkerDied(pid, exitcode, number, memory, None, stack)
                self._fail_all(
                    PoolBroken(
                        f"{self._futile_deaths} workers in a row ended before they began a task, "
                        f"although some wait: {died}"
                    )
                )
                return
            if self._young_deaths > self._workers:
                delay = 0.01 * 2 ** min(self._young_deaths - self._workers, 8)
                delay = min(POISON_PAUSE if lost else 2.0, delay)
        else:
            self._young_deaths = 0
        if lost or self._figures()["finished"] != self._finished_at_death:
            self._futile_deaths = 0
        self._finished_at_death = self._figures()["finished"]
        self._fill(delay)

    def _lose(self, future: Any, died: WorkerDied, stack: str | None) -> None:
        """The worker that had a task is gone: the future ends, or the task has another try."""
        if future._stop:
            error = future._prepared
            if isinstance(error, TaskTimeout):
                error.stack = stack
            self._end_stopped(future)
            return
        order = future._order
        more = order is not None and order.tries < order.retries and not self._stopping
        if more and self._rest(future):
            self._resting.add(future)
            self._watchdog.at(time.monotonic() + order.delay(), "again", future)
            return
        future._fail(died)

    def _on_zygote_end(self) -> None:
        """The zygote is gone, and so are its workers or they will be at once."""
        assert self._control is not None
        self._unwatch(self._control.fileno())
        self._control.close()
        self._control = None
        status = self._reap_zygote(_RESULTS_GRACE)
        for seat, worker in list(self._seats.items()):
            if worker.pidfd >= 0 and not select.select([worker.pidfd], [], [], 1.0)[0]:
                self._kill(worker)
                select.select([worker.pidfd], [], [], 1.0)
            stack = worker.last_stack()
            worker.close()
            del self._seats[seat]
            for future in self._bury(seat):
                died = WorkerDied(worker.pid, None, None, None, future._task_name, stack)
                self._lose(future, died, stack)
        if self._stopping:
            return
        self._zygote_deaths += 1
        if self._zygote_deaths >= STILLBORN_MAX:
            self._fail_all(PoolBroken(f"the process that starts workers ended (status {status})"))
            return
        self._start_zygote()

    def _reap_zygote(self, timeout: float) -> int | None:
        """Wait for the zygote's end, kill it when time is up; its status if it is known."""
        if self._zygote_fd < 0:
            return None
        status: int | None = None
        if not select.select([self._zygote_fd], [], [], timeout)[0]:
            signal.pidfd_send_signal(self._zygote_fd, signal.SIGKILL)
        with contextlib.suppress(ChildProcessError):
            status = os.waitpid(self._zygote, 0)[1]
        os.close(self._zygote_fd)
        self._zygote_fd = -1
        return status

    def _kill(self, worker: _Worker) -> None:
        if worker.pidfd >= 0:
            with contextlib.suppress(ProcessLookupError):
                signal.pidfd_send_signal(worker.pidfd, signal.SIGKILL)

    def _on_suspects(self, seats: int) -> None:
        """Workers that wrote nonsense into the shared memory: bit n is seat n modulo 64."""
        with self._lock:
            for seat, worker in self._seats.items():
                if seats >> (seat % 64) & 1:
                    self._kill(worker)

    def _fail_all(self, error: Exception) -> None:
        """Nothing works any more: every future fails with the error."""
        self._break(error)
        self._stopping = True
        for future in [*self._recall(), *self._resting]:
            if self._withdraw(future):
                future._fail(error)
        self._resting.clear()
        self._dismiss()
        self._order(b"Q")

    # ---- stopping a task -----------------------------------------------------------

    def _stop_task(self, future: Any, error: Exception | None = None) -> bool:
        """Ask the worker that runs a future's task to stop it; kill it after the grace.

        The future will end as cancelled, or with `error`. False when no worker has the task.
        """
        with self._lock:
            seat = self._ask_stop(future, error)
            if seat < 0:
                return False
            worker = self._seats.get(seat)
            if worker is not None and worker.pidfd < 0:
                self._on_control()  # its birth is told in a message that nobody has read yet
            if worker is not None and worker.pidfd >= 0:
                with contextlib.suppress(OSError):
                    os.ftruncate(worker.stackfd, 0)
                with contextlib.suppress(ProcessLookupError):
                    signal.pidfd_send_signal(worker.pidfd, _worker.STOP_SIGNAL)
        self._watchdog.at(time.monotonic() + self._grace, "kill", future)
        return True

    def _on_due(self, what: str, future: Any) -> None:
        """The watchdog calls: the time for something has come."""
        if future._ended:
            return
        if what == "again":
            self._try_again(future)
            return
        held = self._holder(future)
        order = future._order
        if what == "timeout":
            now = time.monotonic()
            if held is None or held[1] < 0:
                # Not begun yet: it cannot be late before its whole time has passed from now.
                self._watchdog.at(now + order.timeout, "timeout", future)
                return
            left = order.timeout - held[1] / 1e9
            if left > 0:
                self._watchdog.at(now + left, "timeout", future)
            elif not future._stop:
                self._stop_task(future, TaskTimeout(future._task_name, order.timeout))
        elif held is not None:  # kill
            with self._lock:
                worker = self._seats.get(held[0])
                if worker is None or self._holder(future) is None:
                    return
                self._kill(worker)
                pidfd = worker.pidfd
                if pidfd >= 0:
                    pidfd = os.dup(pidfd)
            # Nobody may be waiting, and then no one else sees to the future and a successor.
            if pidfd >= 0:
                select.select([pidfd], [], [], _SEE_TO)
                os.close(pidfd)
            self._see_to(seat=held[0])
            if not future._ended and self._holder(future) is not None:
                # Once more, when others had their turn: a busy machine takes its time.
                self._watchdog.at(time.monotonic(), "kill", future)

    def _see_to(self, seat: int) -> None:
        """Wait a moment for the zygote's word on a worker that was killed."""
        end = time.monotonic() + _SEE_TO
        with self._lock:
            worker = self._seats.get(seat)
        while worker is not None and self._seats.get(seat) is worker:
            control = self._control
            left = end - time.monotonic()
            if control is None or control.fileno() < 0 or left <= 0:
                return
            with contextlib.suppress(OSError, ValueError):
                select.select([control], [], [], min(left, 0.05))
            self._on_control()

    def _take(self, options: Options, fn: Any, args: Any, kwargs: Any) -> Any:
        """Submit with options."""
        name = name_of(fn) if options.name is None else options.name
        call = (fn, args, kwargs) if options.retries else None
        order = Order(options.timeout, options.retries, call)
        future = self._submit_order(
            order, name, options.retries > 0, options.priority, fn, *args, **kwargs
        )
        if options.timeout is not None and not future._ended:
            self._watchdog.at(time.monotonic() + options.timeout, "timeout", future)
        return future

    def _on_failed(self, futures: list[Any]) -> None:
        """Tasks raised something, and have tries left."""
        for future in futures:
            order = future._order
            error = future._peek_exception()
            if self._stopping or not isinstance(error, Exception) or order.tries >= order.retries:
                self._give_up(future)
                continue
            self._resting.add(future)
            self._watchdog.at(time.monotonic() + order.delay(), "again", future)

    def _try_again(self, future: Any) -> None:
        self._resting.discard(future)
        order = future._order
        fn, args, kwargs = order.call
        try:
            self._submit_again(future, order.tries < order.retries, fn, *args, **kwargs)
        except Exception as error:
            if self._withdraw(future):
                future._fail(error)
            return
        if order.timeout is not None:
            self._watchdog.at(time.monotonic() + order.timeout, "timeout", future)

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
            except RuntimeError:  # the interpreter is about to end: shutdown collects
                self._helper = None
                self._helper_is(-1)
                helper.close()

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
        if self._on_full != "block":
            advice = "" if self._on_full == "raise" else "; use `await pool.submit_soon(...)`"
            raise PoolFull(
                f"{self._outstanding} tasks are unfinished, as many as max_pending allows{advice}"
            )
        self._wait_room()

    def _wait_room(self) -> None:
        while self._outstanding >= self._max_pending and not self._closed:
            self._wait_idle(-1.0)

    async def submit_soon(self, fn: Callable[..., T], /, *args: Any, **kwargs: Any) -> Any:
        """Submit as soon as there is room, without blocking the event loop.

        Returns:
            Future: of the task, not yet awaited.

        Raises:
            RuntimeError: the pool was shut down.
        """
        import asyncio

        while self._max_pending and self._outstanding >= self._max_pending and not self._closed:
            await asyncio.to_thread(self._wait_room)
        return self.submit(fn, *args, **kwargs)

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

    def map(
        self,
        fn: Callable[..., T],
        *iterables: Iterable[Any],
        timeout: float | None = None,
        chunksize: int = 1,
        buffersize: int | None = None,
        unordered: bool = False,
        progress: bool = False,
    ) -> Iterator[T]:
        """Call fn on the items of the iterables, in workers.

        Args:
            fn: the function.
            iterables: as many as fn takes arguments; the shortest ends it.
            timeout: seconds from this call within which each result must come.
            chunksize: items that travel together as one task.
            buffersize: tasks that are submitted ahead of the results that were taken. None
                submits all at once when the iterables know their length, and otherwise a
                window that keeps the workers busy: a generator without an end is welcome.
            unordered: results come as they are ready, not in the order of the items.
            progress: show how far it is, by rich or tqdm if one is installed, else on stderr.

        Returns:
            Iterator: of results. A task's error is raised in its place, and ends the
            iteration; what has not begun by then is cancelled, as it is when the iterator is
            closed.

        Raises:
            TypeError: fn, chunksize or buffersize is of the wrong type.
            ValueError: chunksize or buffersize is less than 1.
        """
        return map_tasks(
            self.submit,
            fn,
            iterables,
            timeout=timeout,
            chunksize=chunksize,
            buffersize=buffersize,
            unordered=unordered,
            progress=progress,
            submit_each=self._submit_each,
        )

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
        grace = _RESULTS_GRACE
        if end is not None:
            grace = min(grace, max(0.1, end - time.monotonic()))
        self._stop(grace)

    def _stop(self, grace: float) -> None:
        """Dismiss the workers, kill what stays for longer than `grace` seconds, clean up."""
        with self._lock:
            if self._stopped:
                return
            self._stopped = True
            self._stopping = self._stopping or True
            self._dismiss()
            self._order(b"Q")
        end = time.monotonic() + grace
        while self._control is not None and time.monotonic() < end:
            self._wait_idle(max(0.001, end - time.monotonic()))
        if self._control is not None:
            self._unwatch(self._control.fileno())
            self._control.close()  # the zygote kills its workers, and ends
            self._control = None
        with self._lock:  # the helper thread may be at the zygote's end in this moment
            self._reap_zygote(1.0)
        for seat, worker in list(self._seats.items()):
            if worker.pidfd >= 0:
                select.select([worker.pidfd], [], [], 1.0)
            worker.close()
            del self._seats[seat]
            for future in self._bury(seat):
                if not (future._stop and self._end_stopped(future)):
                    future._fail(PlaitError("the pool was stopped while the task ran"))
        self._watchdog.close()
        self._detach_loops()
        if self._helper is not None:
            self._wake_helper()
            self._helper_is(-1)  # its descriptors are about to be closed
            self._helper.stop()
        _pools.discard(self)

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
            if self._control is not None:
                with contextlib.suppress(OSError):
                    self._control.shutdown(socket.SHUT_WR)
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


def _advise(error: Exception) -> Exception:
    error.add_note(
        "plait: functions and arguments travel as pickles; lambdas, closures and what is defined "
        "in an interactive session can be sent when cloudpickle is installed."
    )
    return error


def _cloudpickle() -> Any:
    try:
        import cloudpickle  # type: ignore[import-not-found,import-untyped,unused-ignore]
    except ImportError:
        return None
    return cloudpickle


def _at_exit() -> None:
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
    _pools.clear()


atexit.register(_at_exit)
os.register_at_fork(after_in_child=_after_fork_in_child)
