"""The handle of something that was started in a scope."""

from __future__ import annotations

import threading
import time
from asyncio import CancelledError, events
from collections.abc import Generator
from contextvars import ContextVar
from typing import TYPE_CHECKING, Any, Generic, TypeVar

from . import _core
from ._place import Placement

if TYPE_CHECKING:
    from asyncio import Future
    from contextvars import Context

__all__ = ["STATES", "STRANDS", "Extra", "Handle", "Masked", "working"]

_T = TypeVar("_T")

# The C part knows the first three states and the first strand by number.
WAITING, RUNNING, DONE, FAILED, CANCELLED, UNSTOPPED = range(6)
STATES = ("waiting", "running", "done", "failed", "cancelled", "unstopped")
LOOP, THREAD, PROCESS, INLINE = range(4)
STRANDS = ("loop", "thread", "process", "inline")


class Extra:
    """What a handle has beyond a plain coroutine without options."""

    __slots__ = (
        "args",
        "attempts",
        "auto",
        "call",
        "cancelled",
        "context",
        "expired",
        "generator",
        "guard",
        "kwargs",
        "masked",
        "open",
        "outcome",
        "place",
        "placement",
        "retries",
        "timeout",
        "timer",
        "waiters",
    )

    def __init__(self) -> None:
        self.args: tuple[Any, ...] = ()
        self.kwargs: dict[str, Any] = {}
        self.context: Context | None = None
        self.timeout: float | None = None
        self.retries = 0
        self.attempts = 1
        self.placement = Placement("loop")
        self.auto = False  # the strand was not asked for
        self.call: Any = None  # begun inline, went away: only the wait for it is the handle's
        self.generator = False
        self.cancelled = False  # by Handle.cancel
        self.expired = False  # its timeout has passed
        self.outcome: tuple[Any, BaseException | None] | None = None  # a thread's own account
        self.guard = threading.Lock()
        self.open: list[Any] = []  # scopes that its thread has entered and not left
        self.masked = 0  # how deep its thread is in what TaskStopped must not tear apart
        self.place = ""  # the thread's name
        self.timer: Any = None  # of its timeout, later of its grace
        self.waiters: list[Future[None]] | None = None


working: ContextVar[Extra | None] = ContextVar("plait_working", default=None)
"""What this thread does for a scope."""


class Masked:
    """A block of plait's own in which this thread's task is not sent TaskStopped.

    That exception may be raised between any two steps, also between taking a lock and the
    block that gives it back. A scope that wants the task to stop asks again a little later.
    """

    __slots__ = ("_extra",)

    def __enter__(self) -> None:
        self._extra = working.get()
        if self._extra is not None:
            with self._extra.guard:
                self._extra.masked += 1

    def __exit__(self, *exc_info: object) -> None:
        if self._extra is not None:
            with self._extra.guard:
                self._extra.masked -= 1


class Handle(_core.HandleBase, Generic[_T]):
    """Something that was started in a scope: await it, cancel it, ask it.

    `await handle` gives the result or raises the exception. When the one who awaits is
    cancelled, the wait ends, and what was started goes on. In a scope without a loop,
    `result()` waits instead.
    """

    __slots__ = ()

    if TYPE_CHECKING:
        from ._scope import Scope

        _scope: Scope
        _extra: Extra | None

    @property
    def name(self) -> str:
        """What reports and errors call it."""
        return self._name or getattr(self._fn, "__qualname__", None) or repr(self._fn)

    @property
    def where(self) -> str:
        """The strand that it runs on: "loop", "thread", "process" or "inline"."""
        extra = self._extra
        if extra is not None and extra.call is not None:
            return str(extra.call.where)
        return STRANDS[self._where]

    @property
    def state(self) -> str:
        """How it stands.

        One of "waiting" (for the scope's limit), "running", "done", "failed", "cancelled" and
        "unstopped" (the scope has given up; it goes on).
        """
        return STATES[self._state]

    @property
    def seconds(self) -> float:
        """How long it ran, or has been running, in seconds."""
        if self._began == 0:
            return 0.0
        return ((self._ended or time.monotonic_ns()) - self._began) / 1e9

    def done(self) -> bool:
        """Whether it has ended, however."""
        return not self._live

    def cancelled(self) -> bool:
        """Whether it has ended by cancellation."""
        return self._state == CANCELLED

    def cancel(self) -> bool:
        """Ask it to stop: a coroutine at its next await, a thread or process by TaskStopped.

        Any thread may call this. The handle ends when the task has really stopped, or, as
        "unstopped", when the scope's grace has passed.

        Returns:
            bool: False when it had ended already.
        """
        return self._scope._cancel_one(self)

    def result(self, timeout: float | None = None) -> _T:
        """The result; raises what the task raised.

        Args:
            timeout: in a scope without a loop, seconds to wait for the end; None for ever.

        Raises:
            asyncio.CancelledError: it was cancelled.
            asyncio.InvalidStateError: it has not ended (scope with a loop: await it).
            TimeoutError: it did not end in time.
            Unstopped: it could not be stopped.
        """
        if self._live:
            self._scope._await_end(self, timeout)
        if self._state == DONE:
            return self._result  # type: ignore[no-any-return]
        error = self._error
        if error is None or self._state == CANCELLED:
            raise CancelledError(f"{self.name} was cancelled")
        try:
            raise error
        finally:
            del error, self

    def exception(self, timeout: float | None = None) -> BaseException | None:
        """What the task raised, or None. Waits and raises as `result` does."""
        if self._live:
            self._scope._await_end(self, timeout)
        if self._state == CANCELLED:
            raise CancelledError(f"{self.name} was cancelled")
        return self._error

    def __await__(self) -> Generator[Any, None, _T]:
        if self._live:
            loop = self._scope._loop
            if loop is None:
                raise RuntimeError("the scope has no loop: call result() instead of awaiting")
            if events._get_running_loop() is not loop:
                raise RuntimeError(f"{self!r} is awaited in another loop than its scope's")
            future = loop.create_future()
            extra = self._widen()
            if extra.waiters is None:
                extra.waiters = [future]
            else:
                extra.waiters.append(future)
            try:
                yield from future
            finally:
                # The scope takes the list when it tells of the end.
                if extra.waiters is not None and not future.done():
                    extra.waiters.remove(future)
        return self.result()

    def _widen(self) -> Extra:
        extra = self._extra
        if extra is None:
            extra = self._extra = Extra()
        return extra

    def __repr__(self) -> str:
        where = self.where
        extra = self._extra
        if extra is not None and extra.place:
            where = f"{where} {extra.place}"
        text = f"<plait.Handle {self.name!r} {self.state}"
        text += f" on the {where}" if where == "loop" else f" in {where}"
        if self._began:
            text += f", {_seconds(self.seconds)}"
        if self._error is not None:
            text += f": {type(self._error).__name__}: {self._error}"
        return text + ">"


def _seconds(seconds: float) -> str:
    for unit, size in (("s", 1.0), ("ms", 1e-3)):
        if seconds >= size:
            return f"{seconds / size:.3g} {unit}"
    return f"{seconds / 1e-6:.3g} us"
