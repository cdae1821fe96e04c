"""Lock, Limiter and Event for threads and coroutines alike.

What they do is C (locks.c says how, and why).
"""

from __future__ import annotations

import os
from typing import Any

from . import _core

__all__ = ["Event", "Limiter", "Lock"]


def _pause() -> None:
    """Let what is to be raised in this thread be raised."""


_core._pause_by(_pause)
os.register_at_fork(after_in_child=_core._threads_gone)


class Lock(_core.TokensBase):
    """A lock for threads and coroutines, of any number of loops.

    ``async with lock:`` in coroutines, ``with lock:`` in threads. It is fair, has no owner (a
    strand may release what another one acquired), and cannot be acquired twice. A thread whose
    task is stopped in or around the ``with`` block leaves it released; but CPython 3.14 can raise
    between ``__enter__`` and the block, and then a lock stays held, as a `threading.Lock` does.
    """

    __slots__ = ("__dict__", "__weakref__")

    def __new__(cls) -> Lock:
        return super().__new__(cls, 1, True)

    def locked(self) -> bool:
        """Whether someone has it."""
        return self._free == 0

    def __reduce__(self) -> Any:
        raise TypeError("Lock is for the strands of one process")

    def __repr__(self) -> str:
        state = "locked" if self.locked() else "unlocked"
        return f"<plait.Lock {state}, {self._waiting} waiting>"


class Limiter(_core.TokensBase):
    """At most so many at once, of threads and coroutines together.

    Args:
        total: how many.

    Raises:
        TypeError, ValueError: total is no int, or less than 1.
    """

    __slots__ = ("__dict__", "__weakref__")

    def __new__(cls, total: int) -> Limiter:
        if isinstance(total, bool) or not isinstance(total, int):
            raise TypeError(f"total must be an int, not {total!r}")
        if total < 1:
            raise ValueError(f"total must be at least 1, not {total}")
        return super().__new__(cls, total, False)

    @property
    def total(self) -> int:
        """How many there may be at once."""
        return self._total

    @property
    def available(self) -> int:
        """How many more there may be now."""
        return self._free

    def __reduce__(self) -> Any:
        raise TypeError("Limiter is for the strands of one process")

    def __repr__(self) -> str:
        return (
            f"<plait.Limiter {self._total - self._free} of {self._total}, {self._waiting} waiting>"
        )


class Event(_core.EventBase):
    """A flag that threads and coroutines wait for."""

    __slots__ = ("__dict__", "__weakref__")

    def __reduce__(self) -> Any:
        raise TypeError("Event is for the strands of one process")

    def __repr__(self) -> str:
        return f"<plait.Event {'set' if self.is_set() else 'unset'}, {self._waiting} waiting>"
