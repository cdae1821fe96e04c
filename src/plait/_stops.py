"""Tasks that are stopped or tried again: timeouts, cancelled ones, retries."""

from __future__ import annotations

import contextlib
import dataclasses
import os
import signal
import time
from typing import Any

from . import _worker
from ._exceptions import TaskTimeout, WorkerDied
from ._options import Options, Order, name_of
from ._staff import Staff, Worker
from ._watchdog import Watchdog
from ._zygote import wait_for

_SEE_TO = 0.1
_NUDGES = (0.05, 0.25)
"""Seconds after which a worker is asked again: a signal that comes just before a system call
begins, as time.sleep's, is not seen by Python before that ends."""
_LOOK = 0.005
_LOOKS = 0.5
"""At most so many seconds are added to the grace for the last stack, which is looked for so often."""


@dataclasses.dataclass
class Look:
    """A worker that is about to be killed has been asked for its stack: until when, what is there."""

    until: float
    size: int = 0


class Stopper(Staff):
    """The part of a pool that stops tasks and has them tried again."""

    _watchdog: Watchdog
    _grace: float

    def _stop_task(self, future: Any, error: Exception | None = None) -> bool:
        """Ask the worker that runs a future's task to stop it; kill it after the grace.

        The future will end as cancelled, or with `error`. False when no worker has the task.
        """
        with self._lock:
            seat = self._ask_stop(future, error)
            if seat >= 0:
                worker = self._seats.get(seat)
                if worker is not None and worker.pidfd < 0:
                    self._on_control()  # its birth is told in a message that nobody has read yet
                if worker is not None:
                    worker.forget_stack()  # of an earlier task, which ended before it was killed
                self._nudge(worker)
        if seat < 0:
            return error is None and future._order is not None and self._no_more_tries(future)
        now = time.monotonic()
        for delay in _NUDGES:
            if delay < self._grace:
                self._watchdog.at(now + delay, "nudge", future)
        self._watchdog.at(now + self._grace, "end", future)
        return True

    def _no_more_tries(self, future: Any) -> bool:
        """An attempt has ended when it is cancelled: whether there was to be another."""
        future._order.retries = 0
        if not self._withdraw(future):  # not noticed yet: that attempt was the last one
            return False
        self._cancel_now(future)
        return True

    def _nudge(self, worker: Worker | None) -> None:
        """Send the signal that asks a worker to stop its task."""
        if worker is not None and self._reachable(worker):
            with contextlib.suppress(ProcessLookupError):
                signal.pidfd_send_signal(worker.pidfd, _worker.STOP_SIGNAL)

    def _look(self, look: Look | None, seat: int, future: Any) -> bool:
        """Whether a worker has to live a moment longer, so that its last stack can be read.

        Writing it is risky: a signal can find the interpreter between two stacks. So it is asked
        for only when the worker is as good as dead. When all has been written nobody can tell
        but by its length, which stays the same.
        """
        with self._lock:
            worker = self._seats.get(seat)
            if worker is None or worker.stackfd < 0 or not self._reachable(worker):
                return False
            now = time.monotonic()
            if look is None:
                look = Look(now + _LOOKS)
                worker.forget_stack()
                with contextlib.suppress(ProcessLookupError):
                    signal.pidfd_send_signal(worker.pidfd, _worker.STACK_SIGNAL)
            else:
                size = os.fstat(worker.stackfd).st_size
                if now >= look.until or (size > 0 and size == look.size):
                    return False
                look.size = size
        self._watchdog.at(now + _LOOK, look, future)
        return True

    def _on_due(self, what: str | Look, future: Any) -> None:
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
        elif what == "nudge":
            if held is not None:
                with self._lock:
                    self._nudge(self._seats.get(held[0]))
        elif held is not None:
            if isinstance(what, Look):
                if self._look(what, held[0], future):
                    return
            elif (
                what == "end"
                and isinstance(future._prepared, TaskTimeout)
                and self._look(None, held[0], future)
            ):
                return
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
                wait_for([pidfd], _SEE_TO)
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
                wait_for([control.fileno()], min(left, 0.05))
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
