"""Waiting for what no event tells of, and for the ends of processes."""

from __future__ import annotations

import os
import select
import time
from collections.abc import Callable
from typing import Any


def until(condition: Callable[[], Any], seconds: float = 100.0) -> Any:
    """Look again and again until it holds, and return that; fail after so many seconds."""
    end = time.monotonic() + seconds
    while not (held := condition()):
        assert time.monotonic() < end, f"it did not happen in time: {held!r}"
        time.sleep(0.001)
    return held


def wait_for_end(pidfd: int, what: str = "a process", seconds: float = 100.0) -> None:
    """Wait until the process of a pidfd has ended, and close the pidfd."""
    try:
        assert select.select([pidfd], [], [], seconds)[0], f"{what} did not end"
    finally:
        os.close(pidfd)
