"""Threads of a pool's own, and interrupts while they start."""

from __future__ import annotations

import threading
from collections.abc import Callable


class Daemon(threading.Thread):
    """A daemon thread that is known to run, or not to, when its start was interrupted.

    An exception out of start, Ctrl+C for example, does not say whether the thread is there.
    Then whoever is the first to `claim` it, its starter or itself, decides.
    """

    def __init__(self, call: Callable[[], object], name: str) -> None:
        super().__init__(name=name, daemon=True)
        self._call = call
        self._ticket = [None]

    def claim(self) -> bool:
        """Take the thread's one right to run; False when it is taken."""
        try:
            self._ticket.pop()
        except IndexError:
            return False
        return True

    def run(self) -> None:
        """Call, unless the starter has given the thread up."""
        if self.claim():
            self._call()
