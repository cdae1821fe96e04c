"""What the torture suite runs in workers: crashes at every stage of a task."""

from __future__ import annotations

import atexit
import ctypes
import mmap
import os
import pathlib
import signal
import struct
import sys
import threading
import time
from collections.abc import Callable
from typing import Any

# ---- crashes -------------------------------------------------------------------------


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


def unpicklable() -> Any:
    """Come to something that cannot be sent."""
    return threading.Lock()


def close_everything() -> None:
    """Close every descriptor, the pool's among them, and go on."""
    os.closerange(3, 4096)


def fork_and_leave() -> None:
    """Fork a child that ends in its own way, and go on."""
    pid = os.fork()
    if pid == 0:
        os._exit(0)
    os.waitpid(pid, 0)


def fork_and_return() -> None:
    """Fork a child that goes on as this process does."""
    os.fork()


def hang() -> None:
    """Be in C for ever, with the interpreter's lock."""
    sum(range(10**15))


SEAT = struct.Struct("<I")  # of what lies first in a seat: the tail of its ring of results
SEAT_SIZE = 192
LAYOUT = struct.Struct("<Q6I7Q")


def own_seat() -> int:
    """The number of this worker's seat."""
    frame: Any = sys._getframe()
    while frame is not None:
        if frame.f_code.co_name == "serve" and "seat" in frame.f_locals:
            return int(frame.f_locals["seat"])
        frame = frame.f_back
    raise RuntimeError("this is no worker")


def pool_memory() -> mmap.mmap:
    """The first megabytes of the pool's memory."""
    for fd in os.listdir("/proc/self/fd"):
        try:
            if "plait-pool" in os.readlink(f"/proc/self/fd/{fd}"):
                return mmap.mmap(int(fd), 1 << 22)
        except OSError:
            continue
    raise RuntimeError("there is no pool's memory here")


def garbage() -> None:
    """Write nonsense into its own ring of results."""
    memory = pool_memory()
    fields = LAYOUT.unpack_from(memory, 0)
    seats_at = fields[10]
    SEAT.pack_into(memory, seats_at + own_seat() * SEAT_SIZE, 0x7FFF1234)


CRASHES: dict[str, Callable[[], Any]] = {
    crash.__name__: crash
    for crash in (
        segfault,
        leave,
        killed,
        abort,
        raise_error,
        system_exit,
        unpicklable,
        close_everything,
        garbage,
        fork_and_leave,
        fork_and_return,
        hang,
    )
}
"""All of them."""

FATAL = {"segfault", "leave", "killed", "abort", "garbage"}
"""Those that cost the worker its life at any stage of a task."""


def block() -> None:
    """Wait in C for very long."""
    time.sleep(1000)


def crash(name: str) -> Any:
    """Crash now; what survives that goes on."""
    result = CRASHES[name]()
    if name == "garbage":
        block()  # the pool kills who does this
    return "survived" if result is None else result


# ---- stages --------------------------------------------------------------------------


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
        return (str, (crash(self.name),))


def take(_value: Any) -> str:
    """Receive an argument."""
    return "survived"


def give(name: str) -> CrashInPickle:
    """Return what crashes while it is sent."""
    return CrashInPickle(name)


def before_start(name: str) -> None:
    """An initializer that crashes."""
    CRASHES[name]()


def arm_idle(name: str, path: str) -> int:
    """Crash when a signal comes, which it does once the worker has nothing to do."""

    def handle(*_: object) -> None:
        pathlib.Path(path, str(os.getpid())).touch()
        CRASHES[name]()

    signal.signal(signal.SIGUSR1, handle)
    return os.getpid()


def arm_end(name: str) -> int:
    """Crash while the worker ends."""
    atexit.register(CRASHES[name])
    return os.getpid()


# ---- honest work ---------------------------------------------------------------------


def square(x: int) -> int:
    """An honest task."""
    return x * x


def blob(x: int, size: int) -> bytes:
    """An honest task with a result that needs a block."""
    return bytes([x % 256]) * size


class Announces:
    """Says in a file that it is pickled, or unpickled, and takes for ever to be so."""

    def __init__(self, path: str, where: str) -> None:
        self.path = path
        self.where = where

    def __reduce__(self) -> Any:
        if self.where == "unpickle":
            return (announce_and_sleep, (self.path,))
        announce_and_sleep(self.path)
        return (str, ())


def announce_and_sleep(path: str) -> None:
    """Say in a file that this is reached, and go no further."""
    pathlib.Path(path, str(os.getpid())).touch()
    block()


def give_slowly(path: str) -> Announces:
    """A result that takes for ever to be sent."""
    return Announces(path, "pickle")
