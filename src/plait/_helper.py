"""A thread that looks after a process pool when nobody else does.

It sees to callbacks that no thread waits for, to wake-ups that are owed, to tasks that wait for
room, and to deaths: a worker that ends while nobody waits has a successor at once. It comes with
the first task and sleeps in the kernel unless there is something to do.
"""

from __future__ import annotations

import contextlib
import os
import select
import sys
import threading
import weakref
from typing import Any

from ._daemon import Daemon


class Helper:
    """The thread, and what wakes it: an eventfd, and the zygote's socket.

    While it sleeps it does not refer to the pool: one that nobody refers to ends.
    """

    def __init__(self, pool: Any) -> None:
        self._pool = weakref.ref(pool)
        self._stopped = False
        self.nudge = os.eventfd(0, os.EFD_CLOEXEC | os.EFD_NONBLOCK)
        self._epoll = select.epoll()
        self._epoll.register(self.nudge, select.EPOLLIN)
        self._knock = pool._fds[1]
        self._epoll.register(self._knock, 0)
        self.thread = Daemon(self._run, "plait-pool-helper")

    def watch(self, fd: int) -> None:
        """Call the pool's ``_on_control`` when a descriptor is readable, until it is closed."""
        self._epoll.register(fd, select.EPOLLIN)

    def stop(self) -> None:
        """End the thread; it may be this one. Its descriptors are closed when it has ended."""
        self._stopped = True
        with contextlib.suppress(OSError):
            os.eventfd_write(self.nudge, 1)
        if self.thread is not threading.current_thread():
            self.thread.join()

    def _run(self) -> None:
        rest: float | None = 1.0
        try:
            while rest is not None and not self._stopped:
                events = self._epoll.poll(rest)
                with contextlib.suppress(BlockingIOError):
                    os.eventfd_read(self.nudge)
                pool = self._pool()
                if pool is None or self._stopped:
                    return
                try:
                    known = (self.nudge, self._knock)
                    if any(fd not in known for fd, _ in events):
                        pool._on_control()
                        pool._kick()  # who sleeps for that descriptor, too, must look again
                    ready = [fd for fd, _ in events]
                    rest = pool._help(self._knock in ready or (rest > 0 and not ready))
                    if rest is not None and pool._unread:
                        # Results come that nobody waits for; a worker that has no memory for
                        # more says so. Once, since it knocks for others, too.
                        self._epoll.modify(self._knock, select.EPOLLIN | select.EPOLLONESHOT)
                except Exception:
                    sys.excepthook(*sys.exc_info())
                    rest = 1.0
                del pool
        finally:
            self.close()

    def close(self) -> None:
        """Close the descriptors. Twice is fine."""
        self._epoll.close()
        if self.nudge >= 0:
            os.close(self.nudge)
            self.nudge = -1
