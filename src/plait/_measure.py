"""Measures one call on another strand. Imported by workers, so it imports little."""

from __future__ import annotations

import itertools
import os
import pickle
import threading
import time
from typing import Any, NamedTuple

from . import _core

SAMPLE = 16
"""Sizes are taken of every so-manyth call."""


CANNOT_GO = -2
"""The size of a value that cannot be sent to another process."""

_LONG = 1_000_000
"""Nanoseconds of CPU time: who takes so long may be sent to a process the next time."""


class Measured(NamedTuple):
    """What a call elsewhere gave and cost. Nanoseconds and bytes; -1: not taken."""

    value: Any
    wall: int
    cpu: int
    queued: int
    size: int


class _Clock(threading.local):
    """The time that this thread had to wait for a processor, as the kernel counts it."""

    def __init__(self) -> None:
        self.pid = os.getpid()
        try:
            self.fd = os.open("/proc/thread-self/schedstat", os.O_RDONLY | os.O_CLOEXEC)
        except OSError:
            self.fd = -1  # a kernel that does not count, or no /proc

    def __del__(self) -> None:
        if self.fd >= 0 and self.pid == os.getpid():
            os.close(self.fd)

    def queued(self) -> int:
        """Nanoseconds so far; 0 when the kernel does not tell."""
        if self.fd < 0 or self.pid != os.getpid():
            return 0
        try:
            return int(os.pread(self.fd, 64, 0).split()[1])
        except (OSError, ValueError, IndexError):
            return 0


_clock = _Clock()
_calls = itertools.count()


def measured(target: Any, *args: Any, **kwargs: Any) -> Measured:
    """Run a function as a task and measure it. Runs in a worker process or thread."""
    return _measure(target, args, kwargs, False)


def examined(target: Any, *args: Any, **kwargs: Any) -> Measured:
    """As `measured`, and see whether a long call's result could come from a process, too."""
    return _measure(target, args, kwargs, True)


def _measure(target: Any, args: Any, kwargs: Any, examine: bool) -> Measured:
    fn = target.fn if isinstance(target, _core.Task) else target
    queued = _clock.queued()
    cpu = time.thread_time_ns()
    wall = time.monotonic_ns()
    value = _core._run_plain(fn, *args, **kwargs)
    wall = time.monotonic_ns() - wall
    cpu = time.thread_time_ns() - cpu
    queued = _clock.queued() - queued
    size = -1
    if (examine and cpu >= _LONG) or next(_calls) % SAMPLE == 0:
        size = size_of(value)
    return Measured(value, wall, cpu, queued, size)


def size_of(value: Any) -> int:
    """How many bytes a value takes on its way to another process, or CANNOT_GO."""
    buffers: list[pickle.PickleBuffer] = []
    try:
        size = len(pickle.dumps(value, 5, buffer_callback=buffers.append))
        return size + sum(buffer.raw().nbytes for buffer in buffers)
    except Exception:
        return CANNOT_GO
