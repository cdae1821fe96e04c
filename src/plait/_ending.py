"""How the things in a scope end: results, errors, cancellation, time.

Cancellation has levels, not edges: while a scope is cancelled, each await of a coroutine in
it raises CancelledError again, unless a shielding scope is entered in between. asyncio cancels
by edges, so `_deliver` looks again until all have ended: at once at first, then less and less
often. It cancels only tasks that wait for something, so no result that is on its way is lost,
and counts what it did to the task that entered the scope, so that on leaving exactly that is
taken back (Task.uncancel).
"""

from __future__ import annotations

import asyncio
import inspect
import itertools
import threading
import time
import weakref
from asyncio import CancelledError, events
from collections import deque
from collections.abc import Callable
from contextlib import suppress
from contextvars import Token
from functools import partial
from typing import Any

from . import _core, _place, _strands
from ._exceptions import DeadlineExceeded, TaskStopped, TaskTimeout, Unstopped
from ._handle import (
    CANCELLED,
    DONE,
    FAILED,
    LOOP,
    PROCESS,
    RUNNING,
    THREAD,
    UNSTOPPED,
    WAITING,
    Extra,
    Handle,
    Masked,
)
from ._report import ScopeReport, Sums

__all__ = ["GRACE", "Ending", "check_count", "check_seconds", "entered"]

GRACE = 1.0
_FOLD = 8192  # finished handles that are turned into sums at a time
_FOLD_ABOVE = 16384
_MASKED = 0.002  # seconds until a thread that must not be torn apart is asked again
_LAST_TURNS = 8  # of the loop, between the end of the grace and giving up
_WAIT_TURNS = 1000  # for inner scopes that do the same
_LOOK_AGAIN = 0.05  # seconds: the longest pause between two looks at what is cancelled
_numbers = itertools.count(1)

# The scopes that each task is inside of, the innermost last. Only tasks that are in one.
entered: weakref.WeakKeyDictionary[Any, list[Ending]] = weakref.WeakKeyDictionary()


def check_seconds(name: str, value: float | None, least: float) -> None:
    if value is None:
        return
    if isinstance(value, bool) or not isinstance(value, (int, float)):
        raise TypeError(f"{name} must be a number of seconds or None, not {value!r}")
    if not value >= least:
        raise ValueError(f"{name} must be at least {least:g} seconds, not {value!r}")


def check_count(name: str, value: int | None, least: int) -> None:
    if value is None:
        return
    if isinstance(value, bool) or not isinstance(value, int):
        raise TypeError(f"{name} must be an int or None, not {value!r}")
    if value < least:
        raise ValueError(f"{name} must be at least {least}, not {value}")


class Ending(_core.ScopeBase):
    """What a scope knows of what it has started, and how it brings that to an end."""

    def __init__(
        self,
        deadline: float | None = None,
        limit: int | None = None,
        name: str | None = None,
        grace: float = GRACE,
        shield: bool = False,
    ) -> None:
        check_seconds("deadline", deadline, float("-inf"))
        check_count("limit", limit, 1)
        check_seconds("grace", grace, 0.0)
        if grace is None:
            raise TypeError("grace must be a number of seconds, not None")
        if name is not None and not isinstance(name, str):
            raise TypeError(f"name must be a str or None, not {name!r}")
        self._deadline = deadline
        self._limit = limit
        self._name = name if name is not None else f"scope-{next(_numbers)}"
        self._grace = float(grace)
        self._shield = bool(shield)
        self._phase = "new"
        self._loop: asyncio.AbstractEventLoop | None = None
        self._thread = 0
        self._lock = threading.RLock()
        self._ends = threading.Condition(self._lock)  # used without a loop only
        self._host: asyncio.Task[Any] | None = None
        self._parent: Any = None  # the scope around this one
        self._inner: set[Ending] = set()  # scopes without a loop that threads of this one are in
        self._token: Token[Any] | None = None
        self._queue: deque[Handle[Any]] = deque()  # they wait for the limit
        self._running = 0  # counted when there is a limit
        self._timer: Any = None
        self._grace_timer: Any = None
        self._delivery: Any = None
        self._looks = 0
        self._cancelled = False
        self._expired: DeadlineExceeded | None = None
        self._give_up_at = 0.0
        self._body_done = False
        self._late = False
        self._worker: Extra | None = None  # of the thread that is in it
        self._last_turns = 0  # nonzero: about to give up
        self._wait_turns = 0
        self._host_cancels = 0
        self._host_cancelling = 0
        self._errors: list[BaseException] = []
        self._unstopped: list[str] = []
        self._watchers: list[asyncio.Future[None]] = []
        self._calls: set[asyncio.Task[Any]] = set()  # of from_thread
        self._taken = 0  # finished handles that completed() has given out
        self._iterated = False
        self._sums = Sums()
        self._entered_at = 0.0
        self._left_at = 0.0

    # ---- what it says ----------------------------------------------------------------

    @property
    def name(self) -> str:
        """What errors and reports call it."""
        return self._name

    @property
    def cancelled(self) -> bool:
        """Whether it has been cancelled: by `cancel`, an error, its deadline or from outside."""
        return self._cancelled

    @property
    def expired(self) -> bool:
        """Whether its own deadline has passed before it was over."""
        return self._expired is not None

    @property
    def remaining(self) -> float | None:
        """Seconds until the tightest deadline of this scope and those around it, or None."""
        best: float | None = None
        scope: Ending | None = self
        while scope is not None:
            if scope._deadline is not None and scope._phase != "new":
                left = scope._entered_at + scope._deadline - time.monotonic()
                best = left if best is None else min(best, left)
            if scope._shield:
                break
            scope = scope._parent
        return best

    def __repr__(self) -> str:
        state = self._phase
        if self._cancelled:
            state += ", cancelled"
        return f"<plait.Scope {self._name!r} {state}, {self._count} running>"

    def report(self) -> ScopeReport:
        """Tell where each started thing ran, for how long, and how it ended.

        Of a scope that has started very many, the oldest are in the sums only. Any thread may
        ask, at any time, also after the end.
        """
        end = self._left_at or time.monotonic()
        seconds = end - self._entered_at if self._phase != "new" else 0.0
        with self._lock:
            handles = [*(self._finished or ()), *self._living()]
        return ScopeReport.make(self._name, seconds, handles, self._sums)

    def _later(self, seconds: float, call: Callable[[], object]) -> Any:
        if self._loop is None:
            return _Timer(self._lock, seconds, call)
        return None if self._loop.is_closed() else self._loop.call_later(max(0.0, seconds), call)

    def _run(self, handle: Handle[Any]) -> None:
        """Begin an attempt. Raises when that is not possible, with nothing begun."""
        raise NotImplementedError

    # ---- ends ------------------------------------------------------------------------

    def _future_done(self, handle: Handle[Any], future: Any) -> None:
        """A thread or process has ended its part. Called in any thread."""
        loop = self._loop
        if loop is None:
            with self._lock:
                self._future_ended(handle, future)
        elif threading.get_ident() == self._thread and events._get_running_loop() is loop:
            self._future_ended(handle, future)
        else:
            with suppress(RuntimeError):  # the loop is closed: nobody wants to know
                loop.call_soon_threadsafe(self._future_ended, handle, future)

    def _future_ended(self, handle: Handle[Any], future: Any) -> None:
        error: BaseException | None
        result: Any = None
        extra = handle._extra
        if future.cancelled():
            error = CancelledError()
            if extra is not None and extra.outcome is not None:
                result, error = extra.outcome
        else:
            error = future.exception()
            if error is None:
                result = future.result()
        if error is None and extra is not None and extra.placement.note is not None:
            result = extra.placement.note(result)
        if extra is not None:
            extra.outcome = None
        self._ended(handle, result, error)

    def _ended(self, handle: Handle[Any], result: Any, error: BaseException | None) -> None:
        """An attempt has ended. In the loop's thread, or with the lock held."""
        stopped = isinstance(error, (CancelledError, TaskStopped))
        if not handle._live:
            if error is not None and not stopped:
                self._tell_late(handle, error)
            return
        extra = handle._extra
        if self._limit is not None:
            self._running -= 1
        if extra is not None:
            self._disarm(extra)
            if stopped and extra.expired:
                error = TaskTimeout(handle.name, extra.timeout)
                stopped = False
            if isinstance(error, Exception) and self._goes_to_thread(handle, extra, error):
                return
            if (
                isinstance(error, Exception)
                and extra.attempts <= extra.retries
                and not self._cancelled
                and not extra.cancelled
            ):
                extra.attempts += 1
                extra.expired = False
                try:
                    self._run(handle)
                    return
                except Exception as second:
                    error = second
        if stopped:
            self._end(handle, CANCELLED, None, None)
        elif error is not None:
            self._end(handle, FAILED, None, error)
        else:
            self._end(handle, DONE, result, None)

    def _goes_to_thread(self, handle: Handle[Any], extra: Extra, error: Exception) -> bool:
        """Whether what ran in a process runs again in a thread.

        Only who was placed there unasked, and may run again; others do so the next time.
        """
        place = extra.placement
        if (
            handle._where != PROCESS
            or not extra.auto
            or place.refused is None
            or not _place.is_pickling(error)
        ):
            return False
        place.refused(error)
        if not place.again or self._cancelled or extra.cancelled or extra.expired:
            return False
        handle._where = THREAD
        try:
            self._run(handle)
        except Exception:
            handle._where = PROCESS
            return False
        return True

    def _end(
        self, handle: Handle[Any], state: int, result: Any, error: BaseException | None
    ) -> None:
        """A handle's end, whatever it is: note it and tell whoever waits."""
        extra = handle._extra
        self._settle(handle, state, result, error)
        if extra is not None and extra.waiters is not None:
            waiters, extra.waiters = extra.waiters, None
            for future in waiters:
                _wake(future)
        if state == FAILED:
            assert error is not None
            self._fail(error)
        if self._queue:
            self._run_queued()
        self._tell()
        if self._count == 0 or len(self._finished) > _FOLD_ABOVE:
            self._idle()

    def _run_queued(self) -> None:
        assert self._limit is not None
        while self._queue and self._running < self._limit:
            handle = self._queue.popleft()
            if not handle._live:
                continue
            try:
                self._run(handle)
            except BaseException as error:
                self._end(handle, FAILED, None, error)

    def _tell(self) -> None:
        """Something has changed: wake those who look at it."""
        if self._loop is None:
            self._ends.notify_all()
        elif self._watchers:
            watchers, self._watchers = self._watchers, []
            for future in watchers:
                _wake(future)

    def _idle(self) -> None:
        """Nothing runs any more, or much has finished; the C part calls this, too."""
        if self._count == 0 and self._waiter is not None:
            _wake(self._waiter)
        if len(self._finished) > _FOLD_ABOVE:
            self._fold(min(_FOLD, self._taken) if self._iterated else _FOLD)

    def _fold(self, count: int) -> None:
        """Forget the oldest finished handles but for their sums."""
        gone = self._finished[:count]
        self._sums.add(gone)
        self._sums.untold += sum(not handle._quiet for handle in gone[self._taken :])
        del self._finished[:count]
        self._taken = max(0, self._taken - count)

    def _fail(self, error: BaseException) -> None:
        if not any(error is known for known in self._errors):
            self._errors.append(error)
        self._cancel_now()

    def _tell_late(self, handle: Handle[Any], error: BaseException) -> None:
        """An error of something that the scope had given up on."""
        text = f"{handle.name}, which {self._name} could not stop, has failed"
        if self._loop is not None and not self._loop.is_closed():
            self._loop.call_exception_handler({"message": text, "exception": error})
            return
        import logging

        logging.getLogger("plait").error(text, exc_info=error)

    # ---- cancelling ------------------------------------------------------------------

    def cancel(self) -> None:
        """Cancel the scope: its body, if it still runs, and all that was started.

        Coroutines get CancelledError at their next await and at each one after, tasks in
        threads and processes are stopped, what has not begun never does. Leaving the scope
        then raises no error of its own. Any thread may call this; it does not wait.
        """
        if self._loop is None:
            with Masked(), self._lock:
                self._cancel_now()
        elif threading.get_ident() == self._thread:
            self._cancel_now()
        else:
            with suppress(RuntimeError):  # the loop is closed: so is this scope
                self._loop.call_soon_threadsafe(self._cancel_now)

    def _cancel_now(self) -> None:
        if self._cancelled or self._phase not in ("open", "closing"):
            return
        self._cancelled = True
        self._fast = False
        self._watched = True
        self._limit_grace()
        queue, self._queue = self._queue, deque()
        for handle in queue:
            if handle._live:
                self._end(handle, CANCELLED, None, None)
        for handle in self._living():
            extra = handle._extra
            if extra is not None and not (extra.cancelled or extra.expired):
                self._stop_far(handle)
        with self._lock:
            inner = list(self._inner)
        for scope in inner:
            scope.cancel()
        if self._loop is not None:
            self._look_soon()

    def _limit_grace(self) -> None:
        """Set, or bring forward, the time at which what does not stop is given up."""
        now = time.monotonic()
        left = self._grace
        parent = self._parent
        if self._give_up_at:
            left = self._give_up_at - now
        if parent is not None and parent._cancelled and parent._give_up_at:
            # The scope around this one gives up soon: be through, and say so, before it is.
            left = min(left, 0.9 * max(0.0, parent._give_up_at - now))
        elif self._give_up_at:
            return
        if self._grace_timer is not None:
            self._grace_timer.cancel()
        self._give_up_at = now + left
        self._grace_timer = self._later(left, self._grace_over)

    def _cancel_one(self, handle: Handle[Any]) -> bool:
        """Handle.cancel; any thread."""
        if not handle._live:
            return False
        if self._loop is None:
            with Masked(), self._lock:
                self._cancel_handle(handle)
        elif threading.get_ident() == self._thread:
            self._cancel_handle(handle)
        else:
            with suppress(RuntimeError):
                self._loop.call_soon_threadsafe(self._cancel_handle, handle)
        return True

    def _cancel_handle(self, handle: Handle[Any]) -> None:
        if not handle._live:
            return
        extra = handle._widen()
        if extra.cancelled:
            return
        extra.cancelled = True
        if not extra.expired:  # then it has been asked to stop already
            self._stop_one(handle, extra)

    def _expire_one(self, handle: Handle[Any]) -> None:
        """A task's timeout has passed."""
        extra = handle._extra
        if extra is not None and handle._live and not extra.cancelled:
            extra.expired = True
            self._stop_one(handle, extra)

    def _stop_one(self, handle: Handle[Any], extra: Extra) -> None:
        if handle._state == WAITING:
            with suppress(ValueError):
                self._queue.remove(handle)
            self._end(handle, CANCELLED, None, None)
            return
        self._disarm(extra)
        extra.timer = self._later(self._grace, partial(self._abandon, handle))
        if handle._where == LOOP:
            self._look_soon()
        else:
            self._stop_far(handle)

    def _stop_far(self, handle: Handle[Any], attempt: Any = None) -> None:
        """Ask a thread or a process to stop.

        Once only: each call raises TaskStopped again, where a task may be cleaning up.

        Args:
            handle: what is to stop.
            attempt: the future of the attempt that is meant; None for the one that runs.
        """
        if not handle._live or handle._task is None or attempt not in (None, handle._task):
            return
        if handle._where == PROCESS:
            handle._task.cancel()
        elif handle._where == THREAD:
            extra = handle._extra
            assert extra is not None
            with extra.guard:
                if extra.masked == 0:
                    handle._task.cancel()
                    return
            self._later(_MASKED, partial(self._stop_far, handle, handle._task))

    @staticmethod
    def _disarm(extra: Extra) -> None:
        timer, extra.timer = extra.timer, None
        if timer is not None:
            timer.cancel()

    def _expire_scope(self) -> None:
        """The deadline has passed."""
        if self._phase == "closed" or self._cancelled:
            return
        assert self._deadline is not None
        names = [handle.name for handle in self._living()]
        if not self._body_done:
            names.insert(0, "its body")
        self._expired = DeadlineExceeded(self._name, self._deadline, tuple(names))
        self._cancel_now()

    def _look_soon(self) -> None:
        """Have `_deliver` called in the next iteration of the loop."""
        assert self._loop is not None
        if self._delivery is not None:
            self._delivery.cancel()
            self._delivery = None
        self._looks = 0
        if not self._loop.is_closed():
            self._delivery = self._loop.call_soon(self._deliver)

    def _deliver(self) -> None:
        """Cancel the tasks that are to be and wait for something; look again later."""
        self._delivery = None
        assert self._loop is not None
        if self._phase == "closed" or self._loop.is_closed():
            return
        again = False
        for handle in self._living():
            if handle._where != LOOP or handle._task is None:
                continue
            extra = handle._extra
            if self._cancelled or (extra is not None and (extra.cancelled or extra.expired)):
                again = True
                _poke(handle._task, None)
        if self._cancelled:
            for task in list(self._calls):
                again = True
                _poke(task, None)
        if self._cancelled and not self._body_done and self._host is not None:
            again = True
            if _poke(self._host, self):
                self._host_cancels += 1
        if again:
            self._looks += 1
            if self._looks < 4:
                self._delivery = self._loop.call_soon(self._deliver)
            else:
                pause = min(_LOOK_AGAIN, 0.0005 * 2 ** min(self._looks - 4, 10))
                self._delivery = self._loop.call_later(pause, self._deliver)

    def _grace_over(self) -> None:
        """The grace time is over."""
        if self._phase == "closed":
            return
        if not self._body_done:
            self._late = True  # the body is the caller's own: only leaving it can end it
        elif self._loop is None:
            self._give_up()
        else:
            self._last_turns = _LAST_TURNS
            self._wait_turns = _WAIT_TURNS
            self._last_turn()

    def _last_turn(self) -> None:
        """Let the loop turn a few times before giving up, for what is about to end.

        A loop that was held up finds the ends of this scope's grace and of its inner scopes'
        together. Those come first, and what they then raise needs some turns to arrive here.
        """
        if self._phase == "closed" or self._count == 0:
            return
        busy = any(
            inner._last_turns
            for handle in self._living()
            if handle._where == LOOP and handle._task is not None
            for inner in entered.get(handle._task, ())
        )
        if busy and self._wait_turns > 0:
            self._wait_turns -= 1
        else:
            self._last_turns -= 1
        if self._last_turns > 0:
            assert self._loop is not None
            self._grace_timer = self._loop.call_soon(self._last_turn)
        else:
            self._give_up()

    def _give_up(self) -> None:
        for handle in self._living():
            self._abandon(handle)

    def _abandon(self, handle: Handle[Any]) -> None:
        """Stop waiting for something that does not stop."""
        if not handle._live:
            return
        extra = handle._widen()
        self._disarm(extra)
        if self._limit is not None and handle._state == RUNNING:
            self._running -= 1
        what = f"{handle.name} ({handle.where}{' ' + extra.place if extra.place else ''})"
        self._unstopped.append(what)
        error = Unstopped(self._name, self._grace, (what,))
        if extra.expired:
            late = TaskTimeout(handle.name, extra.timeout)
            late.__cause__ = error
            self._end(handle, UNSTOPPED, None, late)
            self._fail(late)
        else:
            self._end(handle, UNSTOPPED, None, error)


class _Timer:
    """A call of a scope without a loop, with its lock held: none comes after `cancel`."""

    __slots__ = ("_call", "_lock", "_timer")

    def __init__(self, lock: Any, seconds: float, call: Callable[[], object]) -> None:
        self._lock = lock
        self._call: Callable[[], object] | None = call
        self._timer = _strands.later(seconds, self._run)

    def _run(self) -> None:
        with self._lock:
            if self._call is not None:  # else cancelled while this waited for the lock
                self._call()

    def cancel(self) -> None:
        """Call it off. The lock is held."""
        self._call = None
        self._timer.cancel()


def _wake(future: asyncio.Future[None]) -> None:
    """Wake who waits by a future, if there may be someone."""
    if not future.done() and not future.get_loop().is_closed():
        future.set_result(None)


def _poke(task: asyncio.Task[Any], scope: Ending | None) -> bool:
    """Cancel a task if it waits and nothing inside `scope` shields it.

    Args:
        task: of the loop that runs.
        scope: the scope inside of which shields count; None for the whole task.

    Returns:
        bool: whether it was cancelled.
    """
    if task.done():
        return False
    stack = entered.get(task)
    if stack:
        inner = stack if scope is None else stack[stack.index(scope) + 1 :]
        if any(each._shield for each in inner):
            return False
        # What is itself between scopes, or leaves one, is told through that scope.
    waiter = getattr(task, "_fut_waiter", None)
    if waiter is not None:
        if waiter.done():
            return False
    else:
        if getattr(task, "_must_cancel", False):
            return False
        coro = task.get_coro()
        if inspect.iscoroutine(coro) and inspect.getcoroutinestate(coro) == "CORO_CREATED":
            return False  # it runs to its first await, as any other
    return task.cancel()
