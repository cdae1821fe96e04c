"""What the torture suite runs in workers: crashes at every stage of a task."""

from __future__ import annotations

import ctypes
import os
import signal
import sys
from collections.abc import Callable
from typing import Any


def segfault() -> None:
    """Touch address zero."""
    ctypes.string_at(0)


def leave() -> None:
    """End without a word."""
    os._exit(7)


def killed() -> None:
    """Die as by the kernel's out-of-memory killer."""
    os.kill(os.getpid(), signal.SIGKILL)


def abort() -> None:
    """Die as by a failed assertion in C."""
    os.abort()


def raise_error() -> None:
    """Fail as ordinary code does."""
    raise ValueError("torture")


def system_exit() -> None:
    """Fail as a script ends."""
    sys.exit(3)


def close_everything() -> None:
    """Close every descriptor, the pool's among them, and go on."""
    os.closerange(3, 4096)


def fork_and_leave() -> None:
    """Fork a child that ends in its own way, and go on."""
    pid = os.fork()
    if pid == 0:
        os._exit(0)
    os.waitpid(pid, 0)


CRASHES: dict[str, Callable[[], None]] = {
    crash.__name__: crash
    for crash in (
        segfault,
        leave,
        killed,
        abort,
        raise_error,
        system_exit,
        close_everything,
        fork_and_leave,
    )
}
"""All of them; those in SURVIVED leave the worker alive and the task with a result."""

SURVIVED = {"close_everything", "fork_and_leave"}
RAISED = {"raise_error": ValueError, "system_exit": SystemExit}


class CrashInUnpickle:
    """Crashes whoever unpickles it."""

    def __init__(self, name: str) -> None:
        self.name = name

    def __reduce__(self) -> Any:
        return (crash, (self.name,))


class CrashInPickle:
    """Crashes the worker that returns it."""

    def __init__(self, name: str) -> None:
        self.name = name

    def __reduce__(self) -> Any:
        crash(self.name)
        return (str, ("survived",))


def crash(name: str) -> str:
    """Crash now."""
    CRASHES[name]()
    return "survived"


def take(_value: Any) -> str:
    """Receive an argument."""
    return "survived"


def give(name: str) -> CrashInPickle:
    """Return what crashes while it is sent."""
    return CrashInPickle(name)


def square(x: int) -> int:
    """An honest task."""
    return x * x


def blob(x: int, size: int) -> bytes:
    """An honest task with a result that needs a block."""
    return bytes([x % 256]) * size
