"""What the tests of scopes and channels run in worker processes."""

from __future__ import annotations

import os
import threading
import time
from typing import Any

import plait


def fail(error: type[BaseException], text: str) -> None:
    raise error(text)


def pid(_: Any = None) -> int:
    return os.getpid()


def send_range(channel: Any, start: int, stop: int) -> int:
    for n in range(start, stop):
        channel.send_blocking(n)
    return stop - start


def receive_all(channel: Any) -> list[Any]:
    return list(channel)


def die_sending(channel: Any) -> None:
    channel.send_blocking("last words")
    os._exit(3)


def echo(inbox: Any, outbox: Any) -> int:
    count = 0
    for item in inbox:
        outbox.send_blocking(item)
        count += 1
    return count


def spin(seconds: float) -> None:
    """Compute for a while, step by step."""
    end = time.monotonic() + seconds
    while time.monotonic() < end:
        pass


def announce_and_spin(path: str) -> None:
    """Say in a file that this is reached, and compute for ever."""
    with open(path, "w"):
        while True:
            pass


def flaky(path: str, failures: int) -> int:
    """Fail the first `failures` times that it is called with a path."""
    with open(path, "a") as file:
        file.write("x")
    count = os.path.getsize(path)
    if count <= failures:
        raise OSError(f"attempt {count}")
    return count


@plait.task(pure=True, budget=0.002)
def count_down(n: int) -> int:
    while n > 0:
        n -= 1
    return n


@plait.task(pure=True, budget=0.005)
def unsendable(seconds: float) -> Any:
    """Compute for so long and return what cannot be pickled."""
    end = time.thread_time() + seconds
    while time.thread_time() < end:
        pass
    lock = threading.Lock()
    return lambda: (lock, seconds)[1]


@plait.task(pure=True, budget=0.005)
def endless() -> None:
    """Compute for ever."""
    while True:
        pass
