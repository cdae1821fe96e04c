"""One queue of file operations per loop, and the end of an operation."""

from __future__ import annotations

import asyncio
import os
from typing import TypeVar

from . import _core

T = TypeVar("T")


def engine() -> str | None:
    """The engine that ``PLAIT_FILES`` asks for, or None."""
    return os.environ.get("PLAIT_FILES") or None


def queue_of(loop: asyncio.AbstractEventLoop) -> _core.FileQueue:
    """The loop's queue of file operations, made on first use."""
    found: _core.FileQueue | None = getattr(loop, "_plait_files", None)
    if found is not None:
        return found
    queue = _core.FileQueue(loop, engine() or "auto")
    loop.add_reader(queue.fileno(), queue.collect)
    loop._plait_files = queue  # type: ignore[attr-defined]
    return queue


def queue_here() -> _core.FileQueue:
    """The running loop's queue."""
    return queue_of(asyncio.get_running_loop())


async def result_of(queue: _core.FileQueue, answer: T | asyncio.Future[T]) -> T:
    """The end of an operation; when the wait is cancelled, so is the operation."""
    if not isinstance(answer, asyncio.Future):
        return answer
    try:
        return await answer
    except asyncio.CancelledError:
        queue.cancel(answer)
        raise
