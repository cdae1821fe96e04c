"""A pool's workers and the zygote that they are born from: births, deaths, successors."""

from __future__ import annotations

import contextlib
import errno
import os
import signal
import socket
import threading
import time
from typing import Any

from . import _core
from ._exceptions import PlaitError, PoolBroken, RemoteTraceback, WorkerDied
from ._helper import Helper
from ._start import start_zygote
from ._zygote import HEAD, wait_for

STILLBORN_MAX = 5
"""So many workers in a row may end before they are ready; then the pool is broken."""

STACK_MAX = 65536
_FAULT = "Fatal Python error: "
STABLE = 1.0
"""A worker that lived for so many seconds, or did a task, was no failure."""

FUTILE_MAX = 5
"""So many times the number of workers may end in a row, ready but without having begun one of the
tasks that wait; then the pool is broken."""
KILL_PATIENCE = 3
"""Ends by SIGKILL are so many times less of a sign: the kernel or a person may be behind them. So is
a birth for which the system lacks something that it may have in a while."""
LACKS = (errno.EAGAIN, errno.ENOMEM, errno.EMFILE, errno.ENFILE)
POISON_PAUSE = 0.1
"""At most so many seconds before the successor of a worker that a task has taken along."""

RESULTS_GRACE = 5.0
"""Seconds that workers have to end by themselves when the pool does."""

_CONTROL = 0  # tag of the control socket in the wait set


class Worker:
    """A worker process as its parent knows it."""

    __slots__ = ("born", "leaving", "pid", "pidfd", "ready", "stackfd", "suspect")

    def __init__(self) -> None:
        self.pid = 0
        self.pidfd = -1
        self.stackfd = -1
        self.ready = False
        self.leaving = False
        self.suspect = False
        self.born = 0.0

    def last_stack(self, asked: bool) -> str | None:
        """The Python stack that the worker left, innermost call first.

        Args:
            asked: for the task that the worker was asked for its stack in; else only what a
                fault wrote counts, since the rest may be an earlier task's.
        """
        if self.stackfd < 0:
            return None
        try:
            size = os.fstat(self.stackfd).st_size
            data = os.pread(self.stackfd, STACK_MAX, max(0, size - STACK_MAX))
        except OSError:
            return None
        stack, fault, after = data.decode(errors="replace").partition(_FAULT)
        if not asked or not stack:
            stack = fault + after
        lines = stack[: stack.rfind("\n") + 1].strip().splitlines()  # whole ones
        for i, line in enumerate(lines):
            if line.endswith((" in serve", " in run_each")) and "_worker.py" in line:
                return "\n".join(lines[:i])  # below are the pool's own frames
        return "\n".join(lines) if len(lines) > 1 else None

    def forget_stack(self) -> None:
        """Drop what the worker has left so far."""
        if self.stackfd >= 0:
            with contextlib.suppress(OSError):
                os.ftruncate(self.stackfd, 0)

    def close(self) -> None:
        """Close the descriptors."""
        for fd in (self.pidfd, self.stackfd):
            if fd >= 0:
                os.close(fd)
        self.pidfd = self.stackfd = -1


class Staff(_core.PoolBase):
    """The part of a pool that sees to its processes."""

    def _hire(self, method: str, workers: int, fds: tuple[int, int], told: dict[str, Any]) -> None:
        """Start the zygote and order the workers.

        Args:
            method: how they are started.
            workers: how many.
            fds: descriptors of the shared memory and its bell.
            told: what the workers are told; see `plait._zygote.enter`.
        """
        self._method = method
        self._workers = workers
        self._fds = fds
        self._told = told
        self._lock = threading.RLock()
        self._seats: dict[int, Worker] = {}
        self._resting: set[Any] = set()
        self._stopping: bool | str = False
        self._stillborn = 0
        self._young_deaths = 0
        self._futile_deaths = 0
        self._finished_at_death = 0
        self._helper: Helper | None = None
        self._control: socket.socket | None = None
        self._zygote = 0
        self._zygote_fd = -1
        self._zygote_deaths = 0
        self._start_zygote()

    def _lose(self, future: Any, died: WorkerDied, stack: str | None) -> None:
        """The worker that had a task is gone: the future ends, or the task has another try."""
        raise NotImplementedError

    def _start_zygote(self) -> None:
        """Start the zygote and order the workers. Lock held, or not yet shared."""
        memfd, eventfd = self._fds
        self._zygote, self._control = start_zygote(
            self._method, {**self._told, "memfd": memfd, "eventfd": eventfd}, self._fds
        )
        self._zygote_fd = os.pidfd_open(self._zygote)
        self._watch(self._control.fileno(), _CONTROL)
        if self._helper is not None:
            self._helper.watch(self._control.fileno())
        self._fill()

    def _fill(self, delay: float = 0.0) -> None:
        """Order the workers that are missing."""
        staying = sum(not worker.leaving for worker in self._seats.values())
        for _ in range(self._workers - staying):
            self._order_worker(delay)

    def _order_worker(self, delay: float = 0.0) -> None:
        seat, low_mark = self._seat()
        self._seats[seat] = Worker()
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
                    worker.born = time.monotonic()
                    if len(fds) == 2:  # they get lost where this process has too many
                        worker.pidfd, worker.stackfd = fds
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
        lost = self._bury(seat)
        stack = worker.last_stack(asked=any(future._stop for future in lost))
        worker.close()
        exitcode = number = None
        if status is not None and os.WIFSIGNALED(status):
            number = os.WTERMSIG(status)
        elif status is not None:
            exitcode = os.WEXITSTATUS(status)
        for future in lost:
            self._lose(
                future, WorkerDied(pid, exitcode, number, memory, future._task_name, stack), stack
            )
        if self._stopping or (self._closed and self._outstanding == 0):
            return
        delay = 0.0
        unborn = None if pid else OSError(exitcode, os.strerror(exitcode or 0))
        # One that was killed for what it wrote into the shared memory has its own end.
        killed = number == signal.SIGKILL and not worker.suspect
        patience = KILL_PATIENCE if killed or (unborn and exitcode in LACKS) else 1
        if worker.leaving:
            pass
        elif not worker.ready:
            self._stillborn += 1
            delay = min(2.0, 0.01 * 2**self._stillborn)
            if self._stillborn >= STILLBORN_MAX * patience:
                died = WorkerDied(pid, exitcode, number, memory, None, stack)
                self._fail_all(
                    PoolBroken(
                        f"{self._stillborn} workers in a row did not start: {unborn or died}"
                    )
                )
                return
        elif self._figures()["finished"] == self._finished_at_death and (
            time.monotonic() - worker.born < STABLE
        ):
            # Nothing was done since the last death: births alone help nobody. A death that takes
            # a task along brings the end of all tasks nearer, at least.
            self._young_deaths += 1
            self._futile_deaths += 1 if not lost and self._outstanding > 0 else 0
            if self._futile_deaths >= FUTILE_MAX * patience * self._workers:
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

    def _on_zygote_end(self) -> None:
        """The zygote is gone, and so are its workers or they will be at once."""
        assert self._control is not None
        self._unwatch(self._control.fileno())
        self._control.close()
        self._control = None
        status = self._reap_zygote(RESULTS_GRACE)
        for seat, worker in list(self._seats.items()):
            if worker.pidfd >= 0 and not wait_for([worker.pidfd], 1.0):
                self._kill(worker)
                wait_for([worker.pidfd], 1.0)
            lost = self._bury(seat)
            stack = worker.last_stack(asked=any(future._stop for future in lost))
            worker.close()
            del self._seats[seat]
            for future in lost:
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
        if not wait_for([self._zygote_fd], timeout):
            signal.pidfd_send_signal(self._zygote_fd, signal.SIGKILL)
        with contextlib.suppress(ChildProcessError):
            status = os.waitpid(self._zygote, 0)[1]
        os.close(self._zygote_fd)
        self._zygote_fd = -1
        return status

    def _reachable(self, worker: Worker) -> bool:
        """Whether there is a descriptor to signal the worker by; one that was lost is made anew."""
        if worker.pidfd < 0 and worker.pid > 0:
            fd = -1
            with contextlib.suppress(OSError):
                fd = os.pidfd_open(worker.pid)
                # The number may be another process's by now, but that one is no child of the
                # zygote's.
                with open(f"/proc/{worker.pid}/stat", encoding="utf-8", errors="replace") as stat:
                    parent = int(stat.read().rpartition(")")[2].split()[1])
                if parent == self._zygote:
                    worker.pidfd, fd = fd, -1
            if fd >= 0:
                os.close(fd)
        return worker.pidfd >= 0

    def _kill(self, worker: Worker, number: signal.Signals = signal.SIGKILL) -> None:
        if self._reachable(worker):
            with contextlib.suppress(ProcessLookupError):
                signal.pidfd_send_signal(worker.pidfd, number)

    def _on_suspects(self, seats: int) -> None:
        """Workers that wrote nonsense into the shared memory: bit n is seat n modulo 64."""
        with self._lock:
            for seat, worker in self._seats.items():
                if seats >> (seat % 64) & 1:
                    worker.suspect = True
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

    def _hang_up(self) -> None:
        """Have the zygote kill its workers and end."""
        if self._control is not None:
            with contextlib.suppress(OSError):
                self._control.shutdown(socket.SHUT_WR)  # whoever has a copy of the descriptor

    def _dismiss_all(self, grace: float) -> None:
        """Dismiss the workers, kill what stays for longer than `grace` seconds."""
        with self._lock:
            self._dismiss()
            self._order(b"Q")
        self._await_zygote(time.monotonic() + grace)
        with self._lock:  # another thread may be at the zygote's end in this moment
            if self._control is not None:
                self._unwatch(self._control.fileno())
                self._hang_up()  # the zygote kills its workers, and ends
                self._control.close()
                self._control = None
            self._reap_zygote(1.0)
        for seat, worker in list(self._seats.items()):
            if worker.pidfd >= 0:
                wait_for([worker.pidfd], 1.0)
            worker.close()
            del self._seats[seat]
            for future in self._bury(seat):
                if not (future._stop and self._end_stopped(future)):
                    future._fail(PlaitError("the pool was stopped while the task ran"))

    def _await_zygote(self, end: float) -> None:
        """Take the zygote's last words, until `end` of the monotonic clock at most.

        Another thread may take them instead (the watchdog, or the helper), so this waits for
        the process as well as for its words.
        """
        with self._lock:
            if self._control is None or self._zygote_fd < 0:
                return
            fds = [os.dup(self._control.fileno()), os.dup(self._zygote_fd)]
        try:
            while self._control is not None:
                ready = wait_for(fds, end - time.monotonic())
                if not ready:
                    return
                self._on_control()
                if fds[1] in ready:
                    with self._lock:
                        if self._control is not None:  # someone holds the other end
                            self._on_zygote_end()
        finally:
            for fd in fds:
                os.close(fd)

    def _let_go(self) -> None:
        """In a forked child: close what the parent's zygote and workers are known by."""
        control = getattr(self, "_control", None)
        if control is not None:
            control.close()
        for worker in getattr(self, "_seats", {}).values():
            worker.close()
