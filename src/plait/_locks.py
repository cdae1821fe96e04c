"""Lock, Limiter and Event for threads and coroutines alike.

The state is guarded by a thread lock that is held for a few steps and never across a wait.
What is freed is handed to who has waited longest; nobody overtakes. One who is cancelled, or
whose time is over, after something was handed to it gives that to the next.
"""

from __future__ import annotations

import threading
from collections import deque
from types import TracebackType
from typing import Any

from ._handle import Masked
from ._waiters import LoopWaiter, ThreadWaiter, Waiter, check_may_block

__all__ = ["Event", "Limiter", "Lock"]


class _Tokens:
    """A number of tokens, and those who wait for one."""

    _what = "a token"

    def __init__(self, total: int) -> None:
        self._guard = threading.Lock()
        self._free = total
        self._waiters: deque[Waiter] = deque()

    def _take(self, waiter: Waiter | None) -> bool:
        with Masked(), self._guard:
            if self._free > 0:
                self._free -= 1
                if waiter is not None:
                    waiter.woken = True
                return True
            if waiter is not None:
                self._waiters.append(waiter)
            return False

    def _give(self) -> None:
        """A token is free: the next who waits has it."""
        with Masked(), self._guard:
            while self._waiters:
                if self._waiters.popleft().wake():
                    return
            self._free += 1

    def _leave(self, waiter: Waiter) -> None:
        """A waiter goes away without what it may have been given."""
        with Masked(), self._guard:
            if isinstance(waiter, ThreadWaiter):
                waiter.gone = True
            if not waiter.woken:
                try:
                    self._waiters.remove(waiter)
                except ValueError:
                    pass
                return
        self._give()

    async def _acquire(self) -> None:
        if self._take(None):
            return
        waiter = LoopWaiter()
        if self._take(waiter):
            return
        try:
            await waiter.future
        except BaseException:
            self._leave(waiter)
            raise

    def _acquire_blocking(self, timeout: float | None) -> bool:
        if self._take(None):
            return True
        if timeout is not None and timeout <= 0:
            return False
        check_may_block(f"waiting for {self._what}", "use `async with`, or await acquire()")
        waiter = ThreadWaiter()
        try:
            if self._take(waiter) or waiter.wait(timeout):
                return True
        except BaseException:
            self._leave(waiter)
            raise
        self._leave(waiter)
        return False


class _Owned(_Tokens):
    async def acquire(self) -> None:
        """Wait for it, as a coroutine. Cancelling the wait takes nothing."""
        await self._acquire()

    def acquire_blocking(self, timeout: float | None = None) -> bool:
        """Wait for it, blocking this thread.

        Args:
            timeout: seconds to wait at most; None for ever.

        Returns:
            bool: False when the time was over.

        Raises:
            RuntimeError: it would have to wait, and a loop runs in this thread.
        """
        return self._acquire_blocking(timeout)

    def acquire_nowait(self) -> bool:
        """Take it if it is free; whether it was."""
        return self._take(None)

    def release(self) -> None:
        """Give it back. Any strand may do so.

        Raises:
            RuntimeError: nobody has it.
        """
        raise NotImplementedError

    async def __aenter__(self) -> None:
        await self._acquire()

    async def __aexit__(
        self,
        exc_type: type[BaseException] | None,
        exc: BaseException | None,
        tb: TracebackType | None,
    ) -> None:
        self.release()

    def __enter__(self) -> None:
        self._acquire_blocking(None)

    def __exit__(
        self,
        exc_type: type[BaseException] | None,
        exc: BaseException | None,
        tb: TracebackType | None,
    ) -> None:
        self.release()

    def __reduce__(self) -> Any:
        raise TypeError(f"{type(self).__name__} is for the strands of one process")


class Lock(_Owned):
    """A lock for threads and coroutines, of any number of loops.

    ``async with lock:`` in coroutines, ``with lock:`` in threads. It is fair, has no owner (a
    strand may release what another one acquired), and cannot be acquired twice.
    """

    _what = "the lock"

    def __init__(self) -> None:
        super().__init__(1)

    def locked(self) -> bool:
        """Whether someone has it."""
        return self._free == 0

    def release(self) -> None:
        if self._free:
            raise RuntimeError("the lock is released, and nobody has it")
        self._give()

    def __repr__(self) -> str:
        state = "locked" if self.locked() else "unlocked"
        return f"<plait.Lock {state}, {len(self._waiters)} waiting>"


class Limiter(_Owned):
    """At most so many at once, of threads and coroutines together.

    Args:
        total: how many.

    Raises:
        TypeError, ValueError: total is no int, or less than 1.
    """

    _what = "the limiter"

    def __init__(self, total: int) -> None:
        if isinstance(total, bool) or not isinstance(total, int):
            raise TypeError(f"total must be an int, not {total!r}")
        if total < 1:
            raise ValueError(f"total must be at least 1, not {total}")
        super().__init__(total)
        self._total = total

    @property
    def total(self) -> int:
        """How many there may be at once."""
        return self._total

    @property
    def available(self) -> int:
        """How many more there may be now."""
        return self._free

    def release(self) -> None:
        if self._free >= self._total:
            raise RuntimeError("the limiter is released more often than it was acquired")
        self._give()

    def __repr__(self) -> str:
        return (
            f"<plait.Limiter {self._total - self._free} of {self._total}, "
            f"{len(self._waiters)} waiting>"
        )


class Event:
    """A flag that threads and coroutines wait for."""

    def __init__(self) -> None:
        self._guard = threading.Lock()
        self._set = False
        self._waiters: deque[Waiter] = deque()

    def is_set(self) -> bool:
        """Whether the flag is up."""
        return self._set

    def set(self) -> None:
        """Put the flag up and wake all who wait. Any strand may."""
        with Masked(), self._guard:
            self._set = True
            waiters, self._waiters = self._waiters, deque()
            for waiter in waiters:
                waiter.wake()

    def clear(self) -> None:
        """Take the flag down. Who was woken before goes on all the same."""
        with Masked(), self._guard:
            self._set = False

    def _add(self, waiter: Waiter) -> bool:
        with Masked(), self._guard:
            if self._set:
                return False
            self._waiters.append(waiter)
            return True

    def _leave(self, waiter: Waiter) -> None:
        with Masked(), self._guard:
            if isinstance(waiter, ThreadWaiter):
                waiter.gone = True
            if waiter in self._waiters:
                self._waiters.remove(waiter)

    async def wait(self) -> None:
        """Wait for the flag, as a coroutine."""
        if self._set:
            return
        waiter = LoopWaiter()
        if not self._add(waiter):
            return
        try:
            await waiter.future
        except BaseException:
            self._leave(waiter)
            raise

    def wait_blocking(self, timeout: float | None = None) -> bool:
        """Wait for the flag, blocking this thread.

        Args:
            timeout: seconds to wait at most; None for ever.

        Returns:
            bool: False when the time was over.

        Raises:
            RuntimeError: it would have to wait, and a loop runs in this thread.
        """
        if self._set:
            return True
        check_may_block("wait_blocking()", "await wait()")
        waiter = ThreadWaiter()
        try:
            if not self._add(waiter) or waiter.wait(timeout):
                return True
        except BaseException:
            self._leave(waiter)
            raise
        self._leave(waiter)
        return waiter.woken

    def __reduce__(self) -> Any:
        raise TypeError("Event is for the strands of one process")

    def __repr__(self) -> str:
        return f"<plait.Event {'set' if self._set else 'unset'}, {len(self._waiters)} waiting>"
