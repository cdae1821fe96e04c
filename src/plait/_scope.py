"""Scopes: what is started in one has ended before the scope has.

A scope with a loop (``async with``) is used in that loop's thread; whatever ends elsewhere is
told there. One without a loop (``with``) is used by any thread, with its lock held.

`_ending` has the other half: how results, errors and cancellation come about.
"""

from __future__ import annotations

import asyncio
import inspect
import threading
import time
from asyncio import CancelledError, events
from collections.abc import Callable
from contextvars import ContextVar, copy_context
from functools import partial
from typing import TYPE_CHECKING, Any, Literal, TypeVar

from . import _place, _strands
from ._completed import Completed
from ._ending import GRACE, Ending, check_count, check_seconds, entered
from ._exceptions import (
    ScopeClosed,
    TaskStopped,
    Unstopped,
)
from ._handle import (
    CANCELLED,
    INLINE,
    LOOP,
    PROCESS,
    RUNNING,
    STRANDS,
    THREAD,
    Extra,
    Handle,
    Masked,
    working,
)

if TYPE_CHECKING:
    from types import TracebackType

__all__ = ["Scope", "Where", "current_scope", "home", "scope"]

_T = TypeVar("_T")
Where = Literal["loop", "thread", "process", "auto"]

_current: ContextVar[Scope | None] = ContextVar("plait_scope", default=None)
home: ContextVar[asyncio.AbstractEventLoop | None] = ContextVar("plait_home", default=None)
"""The loop that a thread's work was sent from."""


class Scope(Ending):
    """Started things that end before it does. Made by `plait.scope`."""

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
        stack = entered.get(host)
        if stack is None:
            entered[host] = [self]
        else:
            stack.append(self)
        return self

    def __enter__(self) -> Scope:
        if events._get_running_loop() is not None:
            raise RuntimeError(
                "`with scope()` would block the loop that runs in this thread: use `async with`"
            )
        with Masked():
            if self._phase == "new":
                self._open(None, Handle, _current, False)
                self._watched = True
            self._begin()
            self._worker = working.get()
            if self._worker is not None:
                self._worker.open.append(self)
            parent = self._parent
            if parent is not None and not self._shield:
                with parent._lock:
                    parent._inner.add(self)
                if parent._cancelled:
                    self.cancel()
        return self

    # ---- starting --------------------------------------------------------------------

    def _start(self, fn: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Handle[Any]:
        """All that the C part of start() does not do itself."""
        where = kwargs.pop("where", None)
        timeout = kwargs.pop("timeout", None)
        name = kwargs.pop("name", None)
        retries = kwargs.pop("retries", 0)
        if self._loop is not None:
            return self._launch(fn, args, kwargs, where, timeout, name, retries, False)
        with Masked():
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
        check_seconds("timeout", timeout, 0.0)
        check_count("retries", retries, 0)
        if retries is None:
            raise TypeError("retries must be an int, not None")
        if name is not None and not isinstance(name, str):
            raise TypeError(f"name must be a str or None, not {name!r}")
        extra = Extra()
        extra.generator = inspect.isgenerator(fn) or inspect.isgeneratorfunction(fn)
        extra.placement = self._place(fn, args, kwargs, where, extra.generator)
        strand = STRANDS.index(extra.placement.strand)
        if retries and inspect.isgenerator(fn):
            raise ValueError("a generator runs once: pass its function to have retries")
        extra.auto = where in (None, "auto")
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
                if self._cancelled and self._loop is not None:
                    self._look_soon()
        return handle

    def _place(
        self,
        fn: Any,
        args: tuple[Any, ...],
        kwargs: dict[str, Any],
        where: str | None,
        generator: bool,
    ) -> _place.Placement:
        """Where a call runs; complains about what cannot be."""
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
        if where is None or (where == "auto" and waits):
            where = "loop" if waits else "auto"
        elif where not in ("loop", "thread", "process", "auto"):
            raise ValueError(f"where must be 'loop', 'thread', 'process' or 'auto', not {where!r}")
        if waits and where != "loop":
            raise ValueError(f"where={where!r}: {fn!r} can run on the loop only")
        if where == "loop":
            if self._loop is None:
                raise RuntimeError(
                    f"{self._name} has no loop to run {fn!r} on: use `async with plait.scope()`"
                )
            return _place.Placement("loop")
        return _place.choose(fn, args, kwargs, where)

    def _run(self, handle: Handle[Any]) -> None:
        """Begin an attempt. Raises when that is not possible, with nothing begun."""
        extra = handle._extra
        assert extra is not None
        handle._state = RUNNING
        if handle._began == 0:
            handle._began = time.monotonic_ns()
        if handle._where == INLINE and self._run_inline(handle, extra):
            return
        if extra.timeout is not None:
            extra.timer = self._later(extra.timeout, partial(self._expire_one, handle))
        if self._limit is not None:
            self._running += 1
        try:
            if handle._where == LOOP:
                self._run_on_loop(handle, extra)
                return
            future = self._submit(handle, extra)
        except BaseException:
            if self._limit is not None:
                self._running -= 1
            self._disarm(extra)
            raise
        handle._task = future
        future.add_done_callback(partial(self._future_done, handle))

    def _submit(self, handle: Handle[Any], extra: Extra) -> Any:
        """Give a call to a pool; its future."""
        place = extra.placement
        fn = place.far or handle._fn
        if handle._where == PROCESS:
            try:
                return _strands.processes().submit(fn, *extra.args, **extra.kwargs)
            except Exception as error:
                if not extra.auto or place.refused is None:
                    raise
                # It cannot be sent: a thread will do, and next time is known from the start.
                place.refused(error)
                handle._where = THREAD
        return _strands.threads().submit(self._in_thread, extra, fn, extra.args, extra.kwargs)

    def _run_inline(self, handle: Handle[Any], extra: Extra) -> bool:
        """Run a call that is known to be short.

        Returns:
            bool: False when it has gone away after all: then it is to be waited for on the
            handle's strand.
        """
        try:
            call = _place.call_inline(handle._fn, extra.args, extra.kwargs)
            if not call.done():
                handle._name = handle.name
                handle._fn, extra.args, extra.kwargs = call.result, (), {}
                extra.retries = 0
                extra.call = call
                handle._where = THREAD
                if self._loop is not None:
                    handle._fn, extra.args = _await, (call,)
                    handle._where = LOOP
                return False
            result = call.result()
        except BaseException as error:
            if self._limit is not None:
                self._running += 1
            self._ended(handle, None, error)
            if not isinstance(error, Exception):
                raise
        else:
            if self._limit is not None:
                self._running += 1
            self._ended(handle, result, None)
        return True

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
        try:
            task.add_done_callback(handle)
        except BaseException:
            task.cancel()  # nobody would learn of its end, so it must not begin
            raise

    def _in_thread(
        self, extra: Extra, fn: Any, args: tuple[Any, ...], kwargs: dict[str, Any]
    ) -> Any:
        """What a thread of the pool runs."""
        extra.place = threading.current_thread().name
        context = extra.context
        assert context is not None
        # A pool's task that was cancelled ends as cancelled whatever it did last. Nothing must
        # be lost here, so it leaves its own account.
        extra.outcome = None
        extra.masked = 0
        extra.open.clear()
        result: Any = None
        try:
            try:
                # An attempt that was given up may still be in the context: this gets a copy.
                result = context.copy().run(_thread_main, self._loop, extra, fn, args, kwargs)
            except TaskStopped as stopped:
                # It may have come just before a scope of this thread was left: leave it now.
                while extra.open:
                    extra.open[-1]._leave(stopped)
                raise
            extra.outcome = result, None
        except TaskStopped:
            raise
        except BaseException as error:
            extra.outcome = None, error
            raise
        return result

    # ---- leaving ---------------------------------------------------------------------

    async def __aexit__(
        self,
        exc_type: type[BaseException] | None,
        exc: BaseException | None,
        tb: TracebackType | None,
    ) -> bool:
        assert self._loop is not None
        assert self._host is not None
        # A coroutine that is closed may be so by anyone, in a task or not, its loop open or not.
        if not isinstance(exc, GeneratorExit) and asyncio.current_task() is not self._host:
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
            self._leave_now()
        elif self._late and self._count:
            self._grace_over()
        while self._count:
            self._waiter = self._loop.create_future()
            try:
                await self._waiter
            except CancelledError as cut:
                outer = cut
                self._cancel_now()
                self._limit_grace()
            except GeneratorExit as closing:
                self._fail(closing)
                self._leave_now()
            finally:
                self._waiter = None
        self._close()
        host = self._host
        stack = entered.get(host, [])
        if self in stack:
            stack.remove(self)
            if not stack:
                entered.pop(host, None)
        for _ in range(self._host_cancels):
            host.uncancel()
        pending = host.cancelling() - self._host_cancelling
        self._host = None
        parent = self._parent
        if (
            self._shield
            and parent is not None
            and parent._cancelled
            and parent._loop is self._loop
            and parent._phase != "closed"
        ):
            parent._look_soon()  # what it has kept out until now
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

    def _leave_now(self) -> None:
        """Leave a coroutine that is being closed and must not wait: ask all once, and go."""
        self._deliver()
        self._give_up()

    def __exit__(
        self,
        exc_type: type[BaseException] | None,
        exc: BaseException | None,
        tb: TracebackType | None,
    ) -> bool:
        with Masked():
            return self._leave(exc)

    def _leave(self, exc: BaseException | None) -> bool:
        """Leave a scope without a loop."""
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
                self._grace_over()
            # What another thread raises in this one may come at any instruction.
            while self._phase != "closed":
                try:
                    while self._count:
                        self._ends.wait()
                    self._close()
                except (TaskStopped, CancelledError) as cut:
                    outer = cut
                    self._cancel_now()
                    self._limit_grace()
                except BaseException as cut:
                    self._fail(cut)
        if self._parent is not None:
            with self._parent._lock:
                self._parent._inner.discard(self)
        if self._worker is not None and self in self._worker.open:
            self._worker.open.remove(self)
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
        with Masked(), self._lock:
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

        check_count("limit", limit, 1)
        check_seconds("timeout", timeout, 0.0)
        check_count("retries", retries, 0)
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


def _thread_main(
    loop: asyncio.AbstractEventLoop | None,
    extra: Extra,
    fn: Any,
    args: tuple[Any, ...],
    kwargs: dict[str, Any],
) -> Any:
    home.set(loop)
    working.set(extra)
    return fn(*args, **kwargs)


async def _await(awaitable: Any) -> Any:
    return await awaitable


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
