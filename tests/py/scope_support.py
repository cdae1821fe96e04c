"""What the tests of scopes share."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Coroutine
from typing import Any

FOREVER = 3600.0
Run = Callable[[Coroutine[Any, Any, Any]], Any]


async def value(n: int, turns: int = 1) -> int:
    for _ in range(turns):
        await asyncio.sleep(0)
    return n


async def fail(error: BaseException, turns: int = 1) -> None:
    for _ in range(turns):
        await asyncio.sleep(0)
    raise error


async def forever() -> None:
    await asyncio.sleep(FOREVER)


def cancelling() -> int:
    task = asyncio.current_task()
    assert task is not None
    return task.cancelling()
