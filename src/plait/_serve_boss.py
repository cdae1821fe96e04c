"""The supervisor of plait.serve: starts workers, replaces them, and passes on signals.

It runs no event loop and no threads, since it forks: it polls pidfds, the workers' control
sockets and the wake-up descriptor of signals. No connection passes through it.
"""

from __future__ import annotations

import contextlib
import logging
import os
import select
import signal
import socket
import time
from collections import deque
from dataclasses import dataclass, field
from typing import Any

from ._exceptions import ServeFailed
from ._serve_pid import PidFile
from ._serve_setup import Setup, counted
from ._serve_sockets import Listeners, describe
from ._serve_upgrade import Successor, at_a_terminal, starting_place
from ._serve_worker import leave, reopen_logs, run
from ._serving import ServeReport, WorkerFigures

__all__ = ["Supervisor"]

log = logging.getLogger("plait.serve")

YOUNG = 10.0  # a worker that ends sooner ends too soon
DELAY_FIRST, DELAY_MOST = 0.1, 5.0  # seconds before a worker is replaced that ended too soon
MARGIN = 2.0  # what a worker has after its grace before it is killed
ABORT = 1.0  # what a hung worker has to write its stack
REMEMBERED = 1000

_HANDLED = (
    signal.SIGTERM,
    signal.SIGINT,
    signal.SIGQUIT,
    signal.SIGHUP,
    signal.SIGTTIN,
    signal.SIGTTOU,
    signal.SIGUSR1,
    signal.SIGUSR2,
    signal.SIGWINCH,
)


@dataclass(eq=False)
class _Worker:
    pid: int
    pidfd: int
    control: socket.socket
    seat: int
    generation: int
    born: float
    ready: bool = False
    leaving: bool = False  # it was told to end
    kill_at: float | None = None
    hung: bool = False
    problem: str = ""
    unservable: bool = False  # the problem is the target, and says so
    fds: list[int] = field(default_factory=list)


class Supervisor:
    """Runs the workers of one call of plait.serve.

    Args:
        setup: what they serve.
        listeners: where.
        pid: the file that names this process while it serves, or None.
    """

    def __init__(self, setup: Setup, listeners: Listeners, pid: str | None = None) -> None:
        self._setup = setup
        self._pid = None if pid is None else PidFile(pid)
        self._listeners = listeners
        self._place = starting_place()
        self._successor: Successor | None = None
        self._resting = False  # no workers are wanted until SIGHUP
        self._workers: dict[int, _Worker] = {}
        self._wanted = setup.workers
        self._most = max(setup.workers, setup.seats // 2)
        self._generation = 0
        self._ever_ready = False
        self._announced = False
        self._stopping: str | None = None  # "graceful" or "quick"
        self._failure: str | None = None
        self._young = 0
        self._not_before = 0.0
        self._reload_again = False
        self._restarts = 0
        self._reloads = 0
        self._connections = 0
        self._ended: deque[WorkerFigures] = deque(maxlen=REMEMBERED)
        self._poll = select.poll()

    def run(self) -> ServeReport:
        """Serve until a signal ends it.

        Raises:
            ServeFailed: workers could not be started, or ended again and again.
            OSError: the file for the process id cannot be written, or another server has it.
        """
        wake, waker = socket.socketpair()
        with wake, waker:
            for end in (wake, waker):
                end.setblocking(False)
            before: dict[signal.Signals, Any] = {}
            # This first: a signal that finds its handler is not lost from the very beginning.
            old = signal.set_wakeup_fd(waker.fileno(), warn_on_full_buffer=False)
            try:
                for number in _HANDLED:
                    before[number] = signal.signal(number, _noted)
                # Now: who finds the file may send signals. But a successor waits until it serves:
                # until then the other one is whom scripts mean.
                if self._pid is not None and not self._listeners.predecessor_lives():
                    self._pid.write()
                self._poll.register(wake, select.POLLIN)
                self._turn(wake)
            finally:
                self._kill_all()
                if self._successor is not None and self._successor.ended():
                    self._bury_successor()
                if self._successor is not None:
                    self._listeners.handed_over = True
                    self._successor.let_go()
                if self._pid is not None:
                    self._pid.remove()
                signal.set_wakeup_fd(old)
                for number, handler in before.items():
                    signal.signal(number, signal.SIG_DFL if handler is None else handler)
        report = self._report()
        if self._ever_ready:
            log.info(
                "ended: %s, %s, %s",
                counted(report.connections, "connection"),
                counted(report.restarts, "restart"),
                counted(report.reloads, "reload"),
            )
        if self._failure is not None:
            raise ServeFailed(self._failure)
        return report

    def _turn(self, wake: socket.socket) -> None:
        while self._stopping is None or self._workers:
            now = time.monotonic()
            if self._stopping is None:
                self._fill(now)
                self._retire()
            timeout = self._look_after(now)
            for fd, _ in self._poll.poll(timeout * 1000):
                if fd == wake.fileno():
                    for number in wake.recv(4096):
                        if number in _HANDLED:  # else one that the program handles itself
                            self._on_signal(signal.Signals(number))
                elif self._successor is not None and fd == self._successor.pidfd:
                    self._bury_successor()
                else:
                    self._on_event(fd)

    # ---- workers ----

    def _serving(self) -> list[_Worker]:
        return [w for w in self._workers.values() if not w.leaving]

    def _fill(self, now: float) -> None:
        """Start what is missing of the newest generation."""
        if self._resting:
            return
        new = [w for w in self._serving() if w.generation == self._generation]
        while len(new) < self._wanted and now >= self._not_before:
            worker = self._start()
            if worker is None:
                self._not_before = now + DELAY_FIRST
                return
            new.append(worker)

    def _start(self) -> _Worker | None:
        taken = {w.seat for w in self._workers.values()}
        seat = next((s for s in range(self._setup.seats) if s not in taken), None)
        if seat is None:
            return None  # those that leave have all seats
        self._setup.rota.clear(seat)
        try:
            ours, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
        except OSError as error:
            log.error("cannot start a worker: %s", error)
            return None
        parent, pid = os.getpid(), 0
        # A signal between fork and the worker's own handlers must not be taken for ours.
        mask = signal.pthread_sigmask(signal.SIG_BLOCK, {*_HANDLED, signal.SIGCHLD})
        try:
            pid = os.fork()
            if pid == 0:
                self._be_worker(seat, theirs, parent)
            pidfd = os.pidfd_open(pid)
        except OSError as error:
            ours.close()
            if pid != 0:  # nobody could tell when it ends
                os.kill(pid, signal.SIGKILL)
                os.waitpid(pid, 0)
            log.error("cannot start a worker: %s", error)
            return None
        finally:
            signal.pthread_sigmask(signal.SIG_SETMASK, mask)
            theirs.close()
        ours.setblocking(False)
        worker = _Worker(pid, pidfd, ours, seat, self._generation, time.monotonic())
        self._workers[pid] = worker
        for fd in (pidfd, ours.fileno()):
            self._poll.register(fd, select.POLLIN)
            worker.fds.append(fd)
        return worker

    def _be_worker(self, seat: int, control: socket.socket, parent: int) -> None:
        code = 1
        try:
            for other in self._workers.values():
                other.control.close()
                os.close(other.pidfd)
            if self._successor is not None:
                os.close(self._successor.pidfd)
            if self._pid is not None:
                self._pid.let_go()
            code = run(self._setup, seat, control, parent)
        finally:
            leave(code)

    def _on_event(self, fd: int) -> None:
        worker = next((w for w in self._workers.values() if fd in w.fds), None)
        if worker is None:
            return  # ended in this very turn
        self._listen_to(worker)
        if fd == worker.pidfd:
            self._bury(worker)

    def _listen_to(self, worker: _Worker) -> bool:
        """Take one message of a worker's. Whether there was one."""
        try:
            words = worker.control.recv(65536)
        except OSError:
            return False
        if words == b"ready":
            worker.ready = self._ever_ready = True
            log.debug("worker %d is ready", worker.pid)
            new = [w for w in self._serving() if w.generation == self._generation]
            if not self._announced and sum(w.ready for w in new) >= self._wanted:
                self._announced = True
                where = ", ".join(describe(sock) for sock in self._setup.sockets)
                log.info("serving on %s with %s", where, counted(self._wanted, "worker"))
                if self._successor is None:  # else it is the one that scripts mean, or will be
                    self._take_pid_file()
                _notify("READY=1")
        elif words:
            word, _, problem = words.partition(b" ")
            worker.problem = problem.decode(errors="replace")
            worker.unservable = word == b"unservable"
        elif worker.control.fileno() in worker.fds:
            self._poll.unregister(worker.control)  # the end of the process follows
            worker.fds.remove(worker.control.fileno())
        return words != b""

    def _bury(self, worker: _Worker) -> None:
        _, status = os.waitpid(worker.pid, 0)
        code = os.waitstatus_to_exitcode(status)
        while self._listen_to(worker):
            pass  # what it said last is why it has ended
        for fd in worker.fds:
            self._poll.unregister(fd)
        worker.control.close()
        os.close(worker.pidfd)
        del self._workers[worker.pid]
        figures = self._figures(worker, code)
        self._connections += figures.connections
        self._ended.append(figures)
        self._setup.rota.clear(worker.seat)
        if worker.leaving:
            log.debug("worker %d has left", worker.pid)
            return
        self._lost(worker, code)

    def _lost(self, worker: _Worker, code: int) -> None:
        """A worker ended that was not told to."""
        how = f"exit code {code}" if code >= 0 else _signal_name(-code)
        detail = f":\n{worker.problem}" if worker.problem else ""
        if self._stopping is not None:
            log.warning("worker %d ended by itself (%s)%s", worker.pid, how, detail)
            return
        if not worker.ready and self._unready(worker, how, detail):
            return
        self._restarts += 1
        level = logging.INFO if code == 0 else logging.ERROR
        why = "hung and was killed" if worker.hung else "ended"
        log.log(level, "worker %d %s (%s); it is replaced%s", worker.pid, why, how, detail)
        now = time.monotonic()
        if now - worker.born >= YOUNG:
            self._young = 0
            return
        if code == 0 and worker.ready:
            # By its own will, and not counted; but not one fork after the other, either.
            self._not_before = max(self._not_before, now + DELAY_FIRST)
            return
        self._young += 1
        if self._young > self._setup.max_restarts:
            self._give_up(
                f"{self._young} workers in a row ended within {YOUNG:g} s, "
                f"the last one ({worker.pid}) with {how}{detail}"
            )
            return
        delay = min(DELAY_MOST, DELAY_FIRST * 2.0 ** min(self._young - 1, 20))
        self._not_before = max(self._not_before, now + delay)

    def _unready(self, worker: _Worker, how: str, detail: str) -> bool:
        """A worker ended before it served. Whether that settles it."""
        if not self._ever_ready:
            self._give_up(
                worker.problem if worker.unservable else f"a worker could not start ({how}){detail}"
            )
            return True
        older = [w for w in self._serving() if w.generation < self._generation]
        if not older:
            return False
        # A reload failed: what serves goes on serving.
        log.error("a new worker could not start (%s); the old ones stay%s", how, detail)
        for other in self._serving():
            if other.generation == self._generation:
                self._tell_to_leave(other, signal.SIGQUIT)
            else:
                other.generation = self._generation
        self._reload_again = False
        _notify("READY=1")
        return True

    def _retire(self) -> None:
        """Let go of as many as there are too many, the oldest first."""
        new = [w for w in self._serving() if w.generation == self._generation]
        old = [w for w in self._serving() if w.generation < self._generation]
        ready = sum(w.ready for w in new)
        for worker in sorted(old, key=lambda w: w.born)[: max(0, ready + len(old) - self._wanted)]:
            self._tell_to_leave(worker, signal.SIGTERM)
        for worker in sorted(new, key=lambda w: w.born)[: max(0, len(new) - self._wanted)]:
            self._tell_to_leave(worker, signal.SIGTERM)
        if not old and ready >= self._wanted and self._reload_again:
            self._reload_again = False
            self._reload()

    def _tell_to_leave(self, worker: _Worker, number: signal.Signals) -> None:
        seconds = self._setup.grace if number == signal.SIGTERM else 0.0
        worker.leaving = True
        end = time.monotonic() + seconds + MARGIN
        # Sooner stays sooner: it may hang, or have been told before.
        worker.kill_at = end if worker.kill_at is None else min(end, worker.kill_at)
        _send(worker, number)

    # ---- time ----

    def _look_after(self, now: float) -> float:
        """Kill those whose time is over; seconds until the next look."""
        setup = self._setup
        next_look = 60.0
        for worker in list(self._workers.values()):
            if worker.kill_at is not None:
                if now >= worker.kill_at:
                    _send(worker, signal.SIGKILL)
                    worker.kill_at = None
                else:
                    next_look = min(next_look, worker.kill_at - now)
                continue
            if worker.hung or worker.leaving:
                continue
            if worker.ready:
                limit, since = setup.timeout, setup.rota.read(worker.seat)[3]
                what = "its loop has not turned"
            else:
                limit, since, what = setup.start_timeout, worker.born, "it has not started"
            if limit is None:
                continue
            if now - since > limit:
                log.error("worker %d hangs: %s for %g s; it is killed", worker.pid, what, limit)
                worker.hung = True
                worker.kill_at = now + ABORT
                _send(worker, signal.SIGABRT)
                next_look = min(next_look, ABORT)
            else:
                next_look = min(next_look, max(limit - (now - since), 0.01))
        if self._stopping is None and self._not_before > now:
            next_look = min(next_look, self._not_before - now)
        return max(next_look, 0.001)

    # ---- signals ----

    def _on_signal(self, number: signal.Signals) -> None:
        if number in (signal.SIGTERM, signal.SIGINT, signal.SIGQUIT):
            how = "graceful" if number == signal.SIGTERM else "quick"
            log.info("%s: %s end", number.name, how)
            self._stop(how)
        elif number == signal.SIGUSR1:
            reopen_logs()
            for worker in self._workers.values():
                if worker.ready:
                    _send(worker, number)
            self._log_figures()
        elif self._stopping is not None:
            return
        elif number == signal.SIGUSR2:
            self._start_successor()
        elif number == signal.SIGWINCH:
            self._rest()
        elif number == signal.SIGHUP:
            self._resting = False
            if any(w.generation < self._generation for w in self._serving()):
                self._reload_again = True
            elif self._ever_ready:
                self._reload()
        elif number in (signal.SIGTTIN, signal.SIGTTOU):
            wanted = self._wanted + (1 if number == signal.SIGTTIN else -1)
            if 1 <= wanted <= self._most:
                self._wanted = wanted
                log.info("wanted: %s", counted(wanted, "worker"))
            else:
                log.warning("there can be from 1 to %d workers", self._most)

    def _start_successor(self) -> None:
        """Start the same command again, beside this process."""
        if self._successor is not None:
            log.warning("SIGUSR2: the successor %d is there already", self._successor.pid)
            return
        if self._listeners.predecessor_lives():
            log.warning("SIGUSR2: the process that this one follows must end first")
            return
        if None in self._listeners.keys:
            log.warning("SIGUSR2: the successor must find its own way to sockets given to serve()")
        try:
            self._successor = Successor(self._place, *self._listeners.hand_over())
        except OSError as error:
            log.error("cannot start a successor: %s; this process goes on", error)
            return
        self._poll.register(self._successor.pidfd, select.POLLIN)
        log.info("successor %d starts on the same sockets; this process goes on until it is told "
                 "to end", self._successor.pid)  # fmt: skip

    def _bury_successor(self) -> None:
        assert self._successor is not None
        pid = self._successor.pid
        self._poll.unregister(self._successor.pidfd)
        code = self._successor.bury()
        self._successor = None
        self._take_pid_file()  # it may have named that one
        how = f"exit code {code}" if code >= 0 else _signal_name(-code)
        goes_on = "" if self._stopping is not None else "; this process goes on"
        log.log(
            logging.INFO if code == 0 else logging.ERROR,
            "successor %d ended (%s)%s", pid, how, goes_on,
        )  # fmt: skip
        if self._resting and self._stopping is None:
            self._resting = self._announced = False
            self._not_before = 0.0

    def _take_pid_file(self) -> None:
        if self._pid is not None:
            try:
                # The one that this one follows holds the file: it is this one's turn to be named.
                self._pid.write(instead_of=self._listeners.predecessor())
            except OSError as error:
                log.error("cannot write the file for the process id: %s", error)

    def _rest(self) -> None:
        """Let all workers leave, and go on without any."""
        if self._resting or (self._successor is None and at_a_terminal()):
            return  # a terminal says that its size has changed
        log.info("SIGWINCH: the workers leave; SIGHUP brings them back")
        self._resting = True
        self._reload_again = False
        for worker in self._serving():
            self._tell_to_leave(worker, signal.SIGTERM if worker.ready else signal.SIGKILL)

    def _reload(self) -> None:
        log.info("reloading: new workers start, then the old ones leave")
        _notify("RELOADING=1")
        self._reloads += 1
        self._generation += 1
        self._announced = False
        self._not_before = 0.0

    def _stop(self, how: str) -> None:
        _notify("STOPPING=1" if self._successor is None else f"MAINPID={self._successor.pid}")
        again = self._stopping == "quick" and how == "quick"
        self._stopping = "quick" if "quick" in (how, self._stopping) else how
        for worker in self._workers.values():
            if again:
                _send(worker, signal.SIGKILL)
            elif worker.ready:
                self._tell_to_leave(
                    worker, signal.SIGTERM if self._stopping == "graceful" else signal.SIGQUIT
                )
            else:
                self._tell_to_leave(worker, signal.SIGKILL)  # it serves nobody yet

    def _give_up(self, why: str) -> None:
        self._failure = why
        if self._ever_ready:  # those that serve have yet to leave; else the caller is told now
            log.critical("giving up: %s", why)
        self._stop("graceful")

    def _kill_all(self) -> None:
        """Leave nobody behind, whatever went wrong."""
        for worker in list(self._workers.values()):
            _send(worker, signal.SIGKILL)
            self._bury(worker)

    # ---- figures ----

    def _figures(self, worker: _Worker, code: int | None = None) -> WorkerFigures:
        _, watched, connections, _ = self._setup.rota.read(worker.seat)
        state = "ended" if code is not None else "leaving" if worker.leaving else "serving"
        return WorkerFigures(worker.seat, state, connections, watched, worker.pid, code)

    def _report(self) -> ServeReport:
        return ServeReport(self._connections, self._restarts, self._reloads, tuple(self._ended))

    def _log_figures(self) -> None:
        found = [self._figures(w) for w in self._workers.values()]
        workers = "; ".join(
            f"{f.pid} {f.state}: {counted(f.connections, 'connection')}, "
            f"{counted(f.open, 'descriptor')}"
            for f in found
        )
        total = self._connections + sum(f.connections for f in found)
        log.info(
            "%s, %s, %s; workers: %s",
            counted(total, "connection"),
            counted(self._restarts, "restart"),
            counted(self._reloads, "reload"),
            workers or "none",
        )


def _noted(number: int, frame: Any) -> None:
    """Handle a signal by its byte in the wake-up descriptor alone."""


def _send(worker: _Worker, number: signal.Signals) -> None:
    with contextlib.suppress(ProcessLookupError):
        signal.pidfd_send_signal(worker.pidfd, number)


def _signal_name(number: int) -> str:
    try:
        return signal.Signals(number).name
    except ValueError:
        return f"signal {number}"


def _notify(state: str) -> None:
    """Tell systemd, where it has asked to be told."""
    address = os.environ.get("NOTIFY_SOCKET", "")
    if not address:
        return
    if address.startswith("@"):
        address = "\0" + address[1:]
    with contextlib.suppress(OSError), socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as sock:
        sock.sendto(state.encode(), address)
