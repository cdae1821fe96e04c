"""How scopes run functions on other strands: where, and what is learnt from it.

A seam between scopes and `_auto`, which keeps the figures, and `generators`.
"""

from __future__ import annotations

import functools
import inspect
from collections.abc import Callable, Mapping
from types import BuiltinMethodType
from typing import Any, NamedTuple

from . import _auto
from ._core import ChannelBase, EventBase, Task, TokensBase
from ._measure import measured

__all__ = [
    "Placement",
    "call_inline",
    "choose",
    "drive",
    "is_coroutine_function",
    "is_pickling",
]


class Placement(NamedTuple):
    """Where a call runs.

    Attributes:
        strand: "inline", "thread" or "process".
        far: what is run there in the function's place; None for the function itself.
        note: gets what `far` returned, and gives the function's own result.
        refused: called when the call cannot be sent to a process, or its result back.
        again: whether it may run again when its result cannot be sent back.
    """

    strand: str
    far: Callable[..., Any] | None = None
    note: Callable[[Any], Any] | None = None
    refused: Callable[[BaseException], object] | None = None
    again: bool = False


def choose(
    fn: Callable[..., Any], args: tuple[Any, ...], kwargs: Mapping[str, Any], where: str
) -> Placement:
    """Say where a call runs, by what its calls have cost.

    Args:
        fn: an ordinary function.
        args: its arguments.
        kwargs: its named arguments.
        where: "thread" or "process" when that is settled; else "auto".
    """
    if where != "auto" and not isinstance(fn, Task):
        return Placement(where)
    task = _auto.figures_of(fn)
    index, away = task._record(args, dict(kwargs))
    if where == "auto" and not away:
        return Placement("inline")
    plain = fn.fn if isinstance(fn, Task) else fn
    state = _auto.state_of(task)
    strand = state.choose(task, plain, index) if where == "auto" else where
    target = state.target(plain) if strand == "process" else plain

    def note(result: Any) -> Any:
        state.note(plain, index, strand, result)
        return result.value

    def refused(error: BaseException) -> None:
        state.away_of(task, plain, index).refused = f"{type(error).__name__}: {error}"

    how = measured if strand == "process" else state.in_thread(task, plain, index)
    return Placement(strand, functools.partial(how, target), note, refused, task.pure)


def is_pickling(error: BaseException) -> bool:
    """Whether it tells that something cannot be sent to another process, or back."""
    return _auto.is_pickling(error)


def call_inline(fn: Callable[..., Any], args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
    """Call a function that is expected to be short; it may turn out to have gone away.

    Returns:
        A `Call`.
    """
    return _auto.call(fn, *args, **kwargs)


def is_coroutine_function(fn: Callable[..., Any]) -> bool:
    """Whether calling fn gives a coroutine; sees through partial and ``__call__``."""
    inner = fn
    while isinstance(inner, functools.partial):
        inner = inner.func
    if isinstance(inner, BuiltinMethodType) and isinstance(
        inner.__self__, ChannelBase | TokensBase | EventBase
    ):
        return inner.__name__ in ("send", "receive", "acquire", "wait")
    return inspect.iscoroutinefunction(fn) or inspect.iscoroutinefunction(
        getattr(type(fn), "__call__", None)  # noqa: B004
    )


async def drive(gen: Any) -> Any:
    """Run a plain generator on the loop's generator scheduler until it returns."""
    from . import generators

    task = generators.start(gen)
    try:
        return await task
    except BaseException:
        task.cancel()
        raise
