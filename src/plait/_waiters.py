"""Those who wait in a channel, a lock, a limiter or an event: a thread, or a task of a loop."""

from __future__ import annotations

import threading
import time
from asyncio import Future, events

from . import _core

__all__ = ["LoopWaiter", "ThreadWaiter", "Waiter", "check_may_block"]


class LoopWaiter:
    """A task that waits on its loop.

    `wake` may be called by any thread, more than once.
    """

    __slots__ = ("_token", "future", "loop", "woken")

    def __init__(self) -> None:
        self.loop = events.get_running_loop()
        self.future: Future[None] = self.loop.create_future()
        self.woken = False
        self._token = threading.Lock()

    def wake(self) -> bool:
        """Let the task go on; False when it has gone away or was woken already."""
        if self.future.done() or not self._token.acquire(blocking=False):
            return False
        self.woken = True
        if events._get_running_loop() is self.loop:
            self.future.set_result(None)
            return True
        try:
            self.loop.call_soon_threadsafe(self._set)
        except RuntimeError:  # the loop is closed: its tasks are gone
            return False
        return True

    def _set(self) -> None:
        if not self.future.done():
            self.future.set_result(None)


class ThreadWaiter(_core.ThreadWaiterBase):
    """A thread that waits.

    `wake` may be called by any thread, more than once.
    """

    __slots__ = ()

    def wait(self, timeout: float | None) -> bool:
        """Wait to be woken; False when the time is over."""
        if timeout is None:
            while (told := self._park(None)) is None:
                pass
            return told
        end = time.monotonic() + timeout
        while (told := self._park(max(0.0, end - time.monotonic()))) is None:
            pass
        return told


Waiter = LoopWaiter | ThreadWaiter


def check_may_block(what: str, instead: str) -> None:
    """Refuse to block the loop that runs in this thread.

    Raises:
        RuntimeError: one does.
    """
    if events._get_running_loop() is not None:
        raise RuntimeError(f"{what} would block the loop that runs in this thread: {instead}")
