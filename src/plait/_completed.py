"""The iterator over what has ended in a scope."""

from __future__ import annotations

from collections.abc import AsyncIterator, Iterator
from typing import TYPE_CHECKING, Any

from ._handle import Masked

if TYPE_CHECKING:
    from ._handle import Handle
    from ._scope import Scope

__all__ = ["Completed"]


class Completed:
    """The iterator that Scope.completed returns."""

    def __init__(self, scope: Scope) -> None:
        self._scope = scope

    def __aiter__(self) -> AsyncIterator[Handle[Any]]:
        return self

    async def __anext__(self) -> Handle[Any]:
        scope = self._scope
        if scope._loop is None:
            raise TypeError(f"{scope._name} has no loop: use `for` over completed()")
        while True:
            handle = scope._next_finished()
            if handle is not None:
                return handle
            if scope._count == 0:
                raise StopAsyncIteration
            await scope._change()

    def __iter__(self) -> Iterator[Handle[Any]]:
        return self

    def __next__(self) -> Handle[Any]:
        scope = self._scope
        if scope._loop is not None:
            raise TypeError(f"{scope._name} has a loop: use `async for` over completed()")
        with Masked(), scope._lock:
            while True:
                handle = scope._next_finished()
                if handle is not None:
                    return handle
                if scope._count == 0:
                    raise StopIteration
                scope._ends.wait()
