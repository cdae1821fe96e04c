"""Scopes: what is started in one has ended before the scope has.

A scope with a loop (``async with``) is used in that loop's thread; whatever ends elsewhere is
told there. One without a loop (``with``) is used by any thread, with its lock held.

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
from collections.abc import AsyncIterator, Callable, Iterator
from contextlib import suppress
from contextvars import ContextVar, Token, copy_context
from functools import partial
from typing import TYPE_CHECKING, Any, Literal, TypeVar

from . import _core, _place, _strands
from ._exceptions import (
    DeadlineExceeded,
    ScopeClosed,
    TaskStopped,
    TaskTimeout,
    Unstopped,
)
from ._handle import (
    CANCELLED,
    DONE,
    FAILED,
    INLINE,
    LOOP,
    PROCESS,
    RUNNING,
    STRANDS,
    THREAD,
    UNSTOPPED,
    WAITING,
    Extra,
    Handle,
)
from ._report import ScopeReport, Sums

if TYPE_CHECKING:
    from types import TracebackType

__all__ = ["Scope", "Where", "current_scope", "home", "scope"]

_T = TypeVar("_T")
Where = Literal["loop", "thread", "process", "auto"]

GRACE = 1.0
_FOLD = 8192  # finished handles that are turned into sums at a time
_FOLD_ABOVE = 16384
_LOOK_AGAIN = 0.05  # seconds: the longest pause between two looks at what is cancelled
_numbers = itertools.count(1)

_current: ContextVar[Scope | None] = ContextVar("plait_scope", default=None)
home: ContextVar[asyncio.AbstractEventLoop | None] = ContextVar("plait_home", default=None)
"""The loop that a thread's work was sent from."""

# The scopes that each task is inside of, the innermost last. Only tasks that are in one.
_entered: weakref.WeakKeyDictionary[Any, list[Scope]] = weakref.WeakKeyDictionary()


def _check_seconds(name: str, value: float | None, least: float) -> None:
    if value is None:
        return
    if isinstance(value, bool) or not isinstance(value, (int, float)):
        raise TypeError(f"{name} must be a number of seconds or None, not {value!r}")
    if not value >= least:
        raise ValueError(f"{name} must be at least {least:g} seconds, not {value!r}")


def _check_count(name: str, value: int | None, least: int) -> None:
    if value is None:
        return
    if isinstance(value, bool) or not isinstance(value, int):
        raise TypeError(f"{name} must be an int or None, not {value!r}")
    if value < least:
        raise ValueError(f"{name} must be at least {least}, not {value}")


class Scope(_core.ScopeBase):
    """Started things that end before it does. Made by `plait.scope`."""

    def __init__(
        self,
        deadline: float | None = None,
        limit: int | None = None,
        name: str | None = None,
        grace: float = GRACE,
        shield: bool = False,
    ) -> None:
        _check_seconds("deadline", deadline, float("-inf"))
        _check_count("limit", limit, 1)
        _check_seconds("grace", grace, 0.0)
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
        self._parent: Scope | None = None
        self._inner: weakref.WeakSet[Scope] = weakref.WeakSet()  # scopes without a loop
        self._token: Token[Scope | None] | None = None
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
        self._host_cancels = 0
        self._host_cancelling = 0
        self._errors: list[BaseException] = []
        self._unstopped: list[str] = []
        self._watchers: list[asyncio.Future[None]] = []
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
        scope: Scope | None = self
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

    # ---- entering --------------------------------------------------------------------

    def _begin(self) -> None:
        if self._phase != "new":
            raise RuntimeError(f"{self._name} was entered before: make a new scope")
        parent = _current.get()
        if parent is not None and parent._phase not in ("closed", "new"):
            self._parent = parent
        self._entered_at = time.monotonic()
        self._phase = "open"
        self._token = _current.set(self)
        if self._deadline is not None:
            self._timer = self._later(self._deadline, self._expire_scope)

    async def __aenter__(self) -> Scope:
        loop = asyncio.get_running_loop()
        host = asyncio.current_task()
        if host is None:
            raise RuntimeError("a scope is entered by a task of the loop")
        if self._phase == "new":
            self._loop = loop
            self._host = host
            self._thread = threading.get_ident()
            self._host_cancelling = host.cancelling()
            self._open(loop.create_task, Handle, _current, self._limit is None)
            self._watched = self._limit is not None
        self._begin()
        stack = _entered.get(host)
        if stack is None:
            _entered[host] = [self]
        else:
            stack.append(self)
        return self

    def __enter__(self) -> Scope:
        if events._get_running_loop() is not None:
            raise RuntimeError(
                "`with scope()` would block the loop that runs in this thread: use `async with`"
            )
        if self._phase == "new":
            self._open(None, Handle, _current, False)
            self._watched = True
        self._begin()
        parent = self._parent
        if parent is not None and not self._shield:
            with parent._lock:
                parent._inner.add(self)
            if parent._cancelled:
                self.cancel()
        return self

    def _later(self, seconds: float, call: Callable[[], object]) -> Any:
        if self._loop is not None:
            return self._loop.call_later(max(0.0, seconds), call)

        def locked() -> None:
            with self._lock:
                call()

        return _strands.later(seconds, locked)

    # ---- starting --------------------------------------------------------------------

    def _start(self, fn: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Handle[Any]:
        """All that the C part of start() does not do itself."""
        where = kwargs.pop("where", None)
        timeout = kwargs.pop("timeout", None)
        name = kwargs.pop("name", None)
        retries = kwargs.pop("retries", 0)
        return self._launch(fn, args, kwargs, where, timeout, name, retries, False)

    def _launch(
        self,
        fn: Any,
        args: tuple[Any, ...],
        kwargs: dict[str, Any],
        where: str | None,
        timeout: float | None,
        name: str | None,
        retries: int,
        quiet: bool,
    ) -> Handle[Any]:
        if self._phase not in ("open", "closing"):
            raise ScopeClosed(
                f"{self._name} has ended: nothing can be started in it"
                if self._phase == "closed"
                else f"{self._name} has not been entered: use `async with` or `with`"
            )
        if self._loop is not None and threading.get_ident() != self._thread:
            raise RuntimeError(
                f"{self._name} belongs to a loop in another thread: use "
                "plait.from_thread(scope.start, ...)"
            )
        _check_seconds("timeout", timeout, 0.0)
        _check_count("retries", retries, 0)
        if retries is None:
            raise TypeError("retries must be an int, not None")
        if name is not None and not isinstance(name, str):
            raise TypeError(f"name must be a str or None, not {name!r}")
        extra = Extra()
        extra.generator = inspect.isgenerator(fn) or inspect.isgeneratorfunction(fn)
        strand = self._strand(fn, args, kwargs, where, extra.generator)
        if retries and inspect.isgenerator(fn):
            raise ValueError("a generator runs once: pass its function to have retries")
        extra.args, extra.kwargs = args, kwargs
        extra.timeout, extra.retries = timeout, retries
        context = extra.context = copy_context()
        if _current.get() is not self:
            context.run(_current.set, self)
        with self._lock:
            if self._phase not in ("open", "closing"):
                raise ScopeClosed(f"{self._name} has ended: nothing can be started in it")
            handle: Handle[Any] = self._add(fn)
            handle._name, handle._extra, handle._where = name, extra, strand
            handle._quiet = quiet
            if self._cancelled and strand != LOOP:
                self._end(handle, CANCELLED, None, None)
            elif self._limit is not None and self._running >= self._limit:
                self._queue.append(handle)
            else:
                try:
                    self._run(handle)
                except BaseException:
                    self._drop(handle)
                    raise
                if self._cancelled:
                    self._look_soon()
        return handle

    def _strand(
        self,
        fn: Any,
        args: tuple[Any, ...],
        kwargs: dict[str, Any],
        where: str | None,
        generator: bool,
    ) -> int:
        """The number of the strand for a call; complains about what cannot be."""
        if inspect.isawaitable(fn):
            raise TypeError(
                f"start() takes a function and its arguments, not {fn!r}: write "
                "s.start(fn, arg) instead of s.start(fn(arg))"
            )
        if inspect.isgenerator(fn):
            if args or kwargs:
                raise TypeError("a generator that has been made takes no arguments")
        elif not callable(fn):
            raise TypeError(f"start() needs a function, not {fn!r}")
        waits = generator or _place.is_coroutine_function(fn)
        if where is None:
            where = "loop" if waits else "auto"
        if where == "auto":
            where = "loop" if waits else _place.choose(fn, args, kwargs)
            if where == "loop" and not waits and self._loop is None:
                where = "thread"
        elif where not in ("loop", "thread", "process"):
            raise ValueError(
                f"where must be 'loop', 'thread', 'process' or 'auto', not {where!r}"
            )
        if waits and where != "loop":
            raise ValueError(f"where={where!r}: {fn!r} can run on the loop only")
        if where == "loop" and self._loop is None:
            raise RuntimeError(
                f"{self._name} has no loop to run {fn!r} on: use `async with plait.scope()`"
            )
        return STRANDS.index(where)

    def _run(self, handle: Handle[Any]) -> None:
        """Begin an attempt. Raises when that is not possible, with nothing begun."""
        extra = handle._extra
        assert extra is not None
        fn, args, kwargs = handle._fn, extra.args, extra.kwargs
        handle._state = RUNNING
        if handle._began == 0:
            handle._began = time.monotonic_ns()
        strand = handle._where
        if strand == INLINE:
            self._run_inline(handle, fn, args, kwargs)
            return
        if extra.timeout is not None:
            extra.timer = self._later(extra.timeout, partial(self._expire_one, handle))
        if self._limit is not None:
            self._running += 1
        try:
            if strand == LOOP:
                self._run_on_loop(handle, extra)
                return
            future: Any
            if strand == THREAD:
                future = _strands.threads().submit(self._in_thread, extra, fn, args, kwargs)
            else:
                future = _strands.processes().submit(fn, *args, **kwargs)
        except BaseException:
            if self._limit is not None:
                self._running -= 1
            self._disarm(extra)
            raise
        handle._task = future
        future.add_done_callback(partial(self._future_done, handle))

    def _run_on_loop(self, handle: Handle[Any], extra: Extra) -> None:
        assert self._loop is not None
        fn = handle._fn
        if extra.generator:
            gen = fn if inspect.isgenerator(fn) else fn(*extra.args, **extra.kwargs)
            coro = _place.drive(gen)
        elif inspect.iscoroutinefunction(fn):
            coro = fn(*extra.args, **extra.kwargs)
        else:
            coro = _call(fn, extra.args, extra.kwargs)
        try:
            task = self._loop.create_task(coro, context=extra.context)
        except BaseException:
            coro.close()
            raise
        if handle._live:  # an eager task may have ended the scope already
            handle._task = task
        task.add_done_callback(handle)

    def _run_inline(
        self, handle: Handle[Any], fn: Any, args: tuple[Any, ...], kwargs: dict[str, Any]
    ) -> None:
        if self._limit is not None:
            self._running += 1
        try:
            result = fn(*args, **kwargs)
        except BaseException as error:
            self._ended(handle, None, error)
            if not isinstance(error, Exception):
                raise
        else:
            self._ended(handle, result, None)

    def _in_thread(
        self, extra: Extra, fn: Any, args: tuple[Any, ...], kwargs: dict[str, Any]
    ) -> Any:
        """What a thread of the pool runs."""
        extra.place = threading.current_thread().name
        context = extra.context
        assert context is not None
        # An attempt that was given up may still be in the context: the next gets a copy.
        return context.copy().run(_thread_main, self._loop, fn, args, kwargs)

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
        if future.cancelled():
            error = CancelledError()
        else:
            error = future.exception()
            if error is None:
                result = future.result()
        if handle._live and handle._task is not future:
            return  # an attempt that was given up before
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

    def _end(
        self, handle: Handle[Any], state: int, result: Any, error: BaseException | None
    ) -> None:
        """A handle's end, whatever it is: note it and tell whoever waits."""
        extra = handle._extra
        self._settle(handle, state, result, error)
        if extra is not None and extra.waiters is not None:
            waiters, extra.waiters = extra.waiters, None
            for future in waiters:
                if not future.done():
                    future.set_result(None)
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
                if not future.done():
                    future.set_result(None)

    def _idle(self) -> None:
        """Nothing runs any more, or much has finished; the C part calls this, too."""
        waiter = self._waiter
        if self._count == 0 and waiter is not None and not waiter.done():
            waiter.set_result(None)
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
            with self._lock:
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
            if handle._where in (THREAD, PROCESS) and handle._task is not None:
                handle._task.cancel()
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
        self._grace_timer = self._later(left, self._give_up)

    def _cancel_one(self, handle: Handle[Any]) -> bool:
        """Handle.cancel; any thread."""
        if not handle._live:
            return False
        if self._loop is None:
            with self._lock:
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
        elif handle._task is not None:
            handle._task.cancel()

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
        self._looks = 0
        self._delivery = self._loop.call_soon(self._deliver)

    def _deliver(self) -> None:
        """Cancel the tasks that are to be and wait for something; look again later."""
        self._delivery = None
        if self._phase == "closed":
            return
        again = False
        for handle in self._living():
            if handle._where != LOOP or handle._task is None:
                continue
            extra = handle._extra
            if self._cancelled or (extra is not None and (extra.cancelled or extra.expired)):
                again = True
                _poke(handle._task, None)
        if self._cancelled and not self._body_done and self._host is not None:
            again = True
            if _poke(self._host, self):
                self._host_cancels += 1
        if again:
            assert self._loop is not None
            self._looks += 1
            if self._looks < 4:
                self._delivery = self._loop.call_soon(self._deliver)
            else:
                pause = min(_LOOK_AGAIN, 0.0005 * 2 ** min(self._looks - 4, 10))
                self._delivery = self._loop.call_later(pause, self._deliver)

    def _give_up(self) -> None:
        """The grace time is over."""
        if self._phase == "closed":
            return
        if not self._body_done:
            self._late = True  # the body is the caller's own: only leaving it can end it
            return
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

    # ---- leaving ---------------------------------------------------------------------

    async def __aexit__(
        self,
        exc_type: type[BaseException] | None,
        exc: BaseException | None,
        tb: TracebackType | None,
    ) -> bool:
        assert self._loop is not None
        assert self._host is not None
        if asyncio.current_task() is not self._host and not isinstance(exc, GeneratorExit):
            raise RuntimeError(f"{self._name} is left by another task than the one that entered")
        self._phase = "closing"
        self._body_done = True
        outer: BaseException | None = None
        own = self._cancelled
        if exc is not None:
            if isinstance(exc, CancelledError):
                self._cancel_now()
                self._limit_grace()
            else:
                self._fail(exc)
        if isinstance(exc, GeneratorExit):
            # The coroutine is being closed and must not wait: ask once, and go.
            self._deliver()
            self._give_up()
        elif self._late and self._count:
            self._give_up()
        while self._count:
            self._waiter = self._loop.create_future()
            try:
                await self._waiter
            except CancelledError as error:
                outer = error
                self._cancel_now()
                self._limit_grace()
            finally:
                self._waiter = None
        self._close()
        host = self._host
        stack = _entered.get(host, [])
        if self in stack:
            stack.remove(self)
            if not stack:
                _entered.pop(host, None)
        for _ in range(self._host_cancels):
            host.uncancel()
        pending = host.cancelling() - self._host_cancelling
        self._host = None
        parent = self._parent
        if self._shield and parent is not None and parent._cancelled:
            if parent._loop is self._loop and parent._phase != "closed":
                parent._look_soon()
        error = self._verdict()
        if error is not None:
            if pending > 0 and (outer is not None or isinstance(exc, CancelledError)):
                # Cancelled from outside as well, and the error goes first: the cancellation
                # must meet the next await, as it does with asyncio.TaskGroup.
                host.uncancel()
                host.cancel()
            return self._raise(error, exc)
        if outer is not None:
            if isinstance(exc, CancelledError):
                return False
            raise outer
        # A CancelledError of the body ends here if it was this scope's doing alone.
        return isinstance(exc, CancelledError) and own and pending <= 0

    def __exit__(
        self,
        exc_type: type[BaseException] | None,
        exc: BaseException | None,
        tb: TracebackType | None,
    ) -> bool:
        outer: BaseException | None = None
        with self._lock:
            self._phase = "closing"
            self._body_done = True
            own = self._cancelled
            if exc is not None and not (own and isinstance(exc, (CancelledError, TaskStopped))):
                if isinstance(exc, (CancelledError, TaskStopped)):
                    outer = exc
                    self._cancel_now()
                else:
                    self._fail(exc)
            if self._late and self._count:
                self._give_up()
            # What another thread raises in this one may come at any instruction.
            while self._phase != "closed":
                try:
                    while self._count:
                        self._ends.wait()
                    self._close()
                except (TaskStopped, CancelledError) as error:
                    outer = error
                    self._cancel_now()
                    self._limit_grace()
                except BaseException as error:
                    self._fail(error)
        if self._parent is not None:
            with self._parent._lock:
                self._parent._inner.discard(self)
        error = self._verdict()
        if error is not None:
            return self._raise(error, exc)
        if outer is not None:
            if outer is exc:
                return False
            raise outer
        return isinstance(exc, (CancelledError, TaskStopped))

    def _close(self) -> None:
        self._phase = "closed"
        self._fast = False
        self._left_at = time.monotonic()
        for timer in (self._timer, self._grace_timer, self._delivery):
            if timer is not None:
                timer.cancel()
        self._timer = self._grace_timer = self._delivery = None
        token, self._token = self._token, None
        if token is not None:
            try:
                _current.reset(token)
            except ValueError:  # left in another context than entered: an async generator
                if _current.get() is self:
                    _current.set(self._parent)
        self._tell()

    def _verdict(self) -> BaseException | None:
        """What leaving raises, of all that happened."""
        errors = list(self._errors)
        if self._expired is not None:
            errors.insert(0, self._expired)
        if self._unstopped:
            errors.append(Unstopped(self._name, self._grace, tuple(self._unstopped)))
        if not errors:
            return None
        for error in errors:
            if isinstance(error, (KeyboardInterrupt, SystemExit, GeneratorExit)):
                return error
        if len(errors) == 1:
            return errors[0]
        return BaseExceptionGroup(f"{len(errors)} errors in {self._name}", errors)

    def _raise(self, error: BaseException, exc: BaseException | None) -> bool:
        if error is exc:
            return False
        context = error.__context__
        try:
            raise error
        finally:
            error.__context__ = context
            del error, exc, context

    # ---- results ---------------------------------------------------------------------

    def _await_end(self, handle: Handle[Any], timeout: float | None) -> None:
        """Block until a handle has ended, in a scope without a loop."""
        if self._loop is not None:
            raise asyncio.InvalidStateError(f"{handle!r} has not ended: await it")
        end = None if timeout is None else time.monotonic() + timeout
        with self._lock:
            while handle._live:
                left = None if end is None else end - time.monotonic()
                if left is not None and left <= 0:
                    raise TimeoutError(f"{handle.name} has not ended within {timeout:g} s")
                self._ends.wait(left)

    async def _change(self) -> None:
        """Wait until something ends (or is fed)."""
        assert self._loop is not None
        self._watched = True
        future = self._loop.create_future()
        self._watchers.append(future)
        try:
            await future
        finally:
            if future in self._watchers:
                self._watchers.remove(future)

    def _next_finished(self) -> Handle[Any] | None:
        """A finished handle that has not been given out, or None."""
        finished = self._finished
        while self._taken < len(finished):
            handle: Handle[Any] = finished[self._taken]
            self._taken += 1
            if self._taken > 1024:
                self._fold(1024)
            if not handle._quiet:
                return handle
        return None

    def completed(self) -> Completed:
        """Give the handles in the order in which they end, each once.

        Iterate with ``async for``, or with ``for`` in a scope without a loop. It ends when
        nothing runs any more; what is started meanwhile is given, too. Several iterations
        share the handles. Items of `map` are not given.

        Raises:
            RuntimeError: more than 16384 handles ended before the first iteration; some of
                them are forgotten.
        """
        if self._phase == "new":
            raise ScopeClosed(f"{self._name} has not been entered: use `async with` or `with`")
        if not self._iterated and self._sums.untold:
            raise RuntimeError(
                f"{self._sums.untold} handles of {self._name} ended before completed() was first "
                "called, and are forgotten: call it earlier"
            )
        self._iterated = True
        return Completed(self)

    def map(
        self,
        fn: Callable[..., Any],
        items: Any,
        *,
        limit: int | None = None,
        where: Where | None = None,
        ordered: bool = True,
        timeout: float | None = None,
        retries: int = 0,
    ) -> Any:
        """Call fn on each item, a bounded number at once, and give the results.

        Items are taken from the iterable only as results are taken from the map, so neither
        pile up. An error is raised in its item's place and, as any error, cancels the scope.
        Leaving the iteration early cancels what it had started.

        Args:
            fn: the function; it gets one item.
            items: an iterable; in a scope with a loop also an async iterable.
            limit: items under way or not yet taken; None for a number that suits the strand.
            where: as for `start`.
            ordered: give results in the order of the items; else as they come.
            timeout: as for `start`, for each item.
            retries: as for `start`, for each item.

        Returns:
            An async iterator of results; in a scope without a loop, an iterator.

        Raises:
            TypeError, ValueError: an argument is not as above.
            ScopeClosed: the scope has ended, or was not entered.
        """
        from ._map_in import map_async, map_sync

        _check_count("limit", limit, 1)
        _check_seconds("timeout", timeout, 0.0)
        _check_count("retries", retries, 0)
        if self._phase not in ("open", "closing"):
            raise ScopeClosed(f"{self._name} is not open: map() needs `async with` or `with`")
        options = (where, timeout, retries)
        is_async = hasattr(items, "__aiter__")
        if not is_async:
            items = iter(items)
        if self._loop is None:
            if is_async:
                raise TypeError(f"{self._name} has no loop: it cannot iterate over {items!r}")
            return map_sync(self, fn, items, limit, options, ordered)
        return map_async(self, fn, items, is_async, limit, options, ordered)


class Completed:
    """The iterator that Scope.completed returns."""

    def __init__(self, scope: Scope) -> None:
        self._scope = scope

    def __aiter__(self) -> AsyncIterator[Handle[Any]]:
        return self

    async def __anext__(self) -> Handle[Any]:
        scope = self._scope
        if scope._loop is None:
            raise TypeError(f"{scope._name} has no loop: use `for` over completed()")
        while True:
            handle = scope._next_finished()
            if handle is not None:
                return handle
            if scope._count == 0:
                raise StopAsyncIteration
            await scope._change()

    def __iter__(self) -> Iterator[Handle[Any]]:
        return self

    def __next__(self) -> Handle[Any]:
        scope = self._scope
        if scope._loop is not None:
            raise TypeError(f"{scope._name} has a loop: use `async for` over completed()")
        with scope._lock:
            while True:
                handle = scope._next_finished()
                if handle is not None:
                    return handle
                if scope._count == 0:
                    raise StopIteration
                scope._ends.wait()


def _poke(task: asyncio.Task[Any], scope: Scope | None) -> bool:
    """Cancel a task if it waits and nothing inside `scope` shields it.

    Args:
        task: of the loop that runs.
        scope: the scope inside of which shields count; None for the whole task.

    Returns:
        bool: whether it was cancelled.
    """
    if task.done():
        return False
    stack = _entered.get(task)
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


def _thread_main(
    loop: asyncio.AbstractEventLoop | None, fn: Any, args: tuple[Any, ...], kwargs: dict[str, Any]
) -> Any:
    home.set(loop)
    return fn(*args, **kwargs)


async def _call(fn: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
    """Run an ordinary function, or one that returns an awaitable, as a coroutine."""
    result = fn(*args, **kwargs)
    if inspect.isawaitable(result):
        result = await result
    return result


def current_scope() -> Scope | None:
    """The innermost open scope around the caller, or None."""
    scope = _current.get()
    return scope if scope is not None and scope._phase != "closed" else None


def scope(
    *,
    deadline: float | None = None,
    limit: int | None = None,
    name: str | None = None,
    grace: float = GRACE,
    shield: bool = False,
) -> Scope:
    """Make a scope: what is started in it has ended before it does.

    ``async with plait.scope() as s:`` works on a plait loop and any asyncio loop;
    ``with plait.scope() as s:`` needs no loop, and runs threads and processes.

    Leaving the scope waits for all that was started. The first error cancels the rest. One
    error is raised as it is, several as an ExceptionGroup.

    Args:
        deadline: seconds from entry after which the scope is cancelled and leaving it raises
            DeadlineExceeded. Of nested scopes the tightest deadline counts.
        limit: how many started things may run at once; the others wait. None for any number.
        name: for errors and reports.
        grace: seconds after a cancellation within which all must end. What has not is named
            in the error Unstopped, and goes on. An inner scope has nine tenths of what is
            left to the scope around it.
        shield: a cancellation of the scopes around it does not reach into this one.

    Returns:
        Scope: to be entered once.

    Raises:
        TypeError, ValueError: an argument is not as above.

    Example:
        >>> import plait
        >>> async def double(n: int) -> int:
        ...     return 2 * n
        >>> async def main() -> int:
        ...     async with plait.scope(deadline=5.0) as s:
        ...         one = s.start(double, 1)
        ...         two = s.start(pow, 2, 2, where="thread")
        ...     return one.result() + two.result()
        >>> plait.run(main())
        6
    """
    return Scope(deadline, limit, name, grace, shield)
