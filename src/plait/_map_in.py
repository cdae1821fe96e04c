"""Scope.map: a bounded number of calls over an iterable, with results as they are wanted."""

from __future__ import annotations

from collections.abc import AsyncIterator, Callable, Iterator
from typing import TYPE_CHECKING, Any

from ._handle import Masked
from ._processors import default_workers

if TYPE_CHECKING:
    from ._handle import Handle
    from ._scope import Scope

__all__ = ["map_async", "map_sync"]

Options = tuple[str | None, float | None, int]  # where, timeout, retries
ON_LOOP = 32


class _Window:
    """The calls of one map that are under way or not yet taken."""

    def __init__(
        self,
        scope: Scope,
        fn: Callable[..., Any],
        limit: int | None,
        options: Options,
        ordered: bool,
    ) -> None:
        self.scope = scope
        self.fn = fn
        self.options = options
        self.ordered = ordered
        self.limit = limit
        self.handles: list[Handle[Any]] = []
        self.exhausted = False
        self.failure: BaseException | None = None

    def room(self) -> bool:
        """Whether one more may be started."""
        if self.limit is None and self.handles:
            # Known from the first: enough to keep a strand busy while results are taken.
            on_loop = self.handles[0].where == "loop"
            self.limit = ON_LOOP if on_loop else 2 * default_workers() + 2
        return self.limit is None or len(self.handles) < self.limit

    def start(self, item: Any) -> None:
        """Start the call for an item."""
        where, timeout, retries = self.options
        self.handles.append(
            self.scope._launch(self.fn, (item,), {}, where, timeout, None, retries, True)
        )

    def fill(self, items: Iterator[Any]) -> None:
        """Start calls while there is room."""
        while not self.exhausted and self.room():
            try:
                item = next(items)
            except StopIteration:
                self.exhausted = True
            else:
                self.start(item)

    def take(self) -> Handle[Any] | None:
        """The next handle to give out, if it has ended."""
        for i, handle in enumerate(self.handles):
            if not handle._live:
                return self.handles.pop(i)
            if self.ordered:
                break
        return None

    def drop(self) -> None:
        """Nobody wants the rest."""
        for handle in self.handles:
            handle.cancel()


async def _feed(window: _Window, items: Any) -> None:
    """Start calls for the items of an async iterable, as there is room."""
    scope = window.scope
    try:
        async for item in items:
            while not window.room():
                await scope._change()
            window.start(item)
            scope._tell()
    except Exception as error:
        window.failure = error  # raised in its place: after the results before it
    finally:
        window.exhausted = True
        scope._tell()


async def map_async(
    scope: Scope,
    fn: Callable[..., Any],
    items: Any,
    is_async: bool,
    limit: int | None,
    options: Options,
    ordered: bool,
) -> AsyncIterator[Any]:
    """Give results in a scope with a loop."""
    window = _Window(scope, fn, limit, options, ordered)
    feeder: Handle[Any] | None = None
    if is_async:
        feeder = scope._launch(
            _feed, (window, items), {}, "loop", None, f"items of {scope.name}", 0, True
        )
    try:
        while True:
            if not is_async:
                window.fill(items)
            handle = window.take()
            if handle is not None:
                if feeder is not None:
                    scope._tell()  # there is room
                yield handle.result()
            elif window.handles or not window.exhausted:
                await scope._change()
            elif window.failure is not None:
                raise window.failure
            else:
                return
    finally:
        if feeder is not None:
            feeder.cancel()
        window.drop()


def map_sync(
    scope: Scope,
    fn: Callable[..., Any],
    items: Iterator[Any],
    limit: int | None,
    options: Options,
    ordered: bool,
) -> Iterator[Any]:
    """Give results in a scope without a loop."""
    window = _Window(scope, fn, limit, options, ordered)
    try:
        while True:
            window.fill(items)
            with Masked(), scope._lock:
                handle = window.take()
                if handle is None and window.handles:
                    scope._ends.wait()
                    continue
            if handle is None:
                return
            yield handle.result()
    finally:
        window.drop()
