"""Where a started function runs when nobody says so."""

from __future__ import annotations

import inspect
from collections.abc import Callable, Mapping
from typing import Any

__all__ = ["choose"]


def choose(fn: Callable[..., Any], args: tuple[Any, ...], kwargs: Mapping[str, Any]) -> str:
    """Pick a strand for a call.

    Args:
        fn: the function.
        args: its arguments.
        kwargs: its named arguments.

    Returns:
        str: "loop" for what can be awaited, "inline", "thread" or "process".
    """
    if is_coroutine_function(fn):
        return "loop"
    return "thread"


def is_coroutine_function(fn: Callable[..., Any]) -> bool:
    """Whether calling fn gives a coroutine; sees through partial and ``__call__``."""
    return inspect.iscoroutinefunction(fn) or inspect.iscoroutinefunction(
        getattr(type(fn), "__call__", None)  # noqa: B004
    )


async def drive(gen: Any) -> Any:
    """Run a plain generator on the loop's generator scheduler until it returns."""
    try:
        from . import generators  # type: ignore[attr-defined,unused-ignore]
    except ImportError:
        raise NotImplementedError("this build of plait runs no plain generators") from None
    task = generators.start(gen)
    try:
        return await task
    except BaseException:
        task.cancel()
        raise
