"""Threads that wait in a channel."""

from __future__ import annotations

import time
from asyncio import events

from . import _core

__all__ = ["ThreadWaiter", "check_may_block"]


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


def check_may_block(what: str, instead: str) -> None:
    """Refuse to block the loop that runs in this thread.

    Raises:
        RuntimeError: one does.
    """
    if events._get_running_loop() is not None:
        raise RuntimeError(f"{what} would block the loop that runs in this thread: {instead}")
