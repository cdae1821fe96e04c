"""``map`` for both pools: a window of tasks that moves over the items."""

from __future__ import annotations

import itertools
import queue
import sys
import time
from collections import deque
from collections.abc import Callable, Iterable, Iterator, Sized
from typing import Any, Protocol, TypeVar

from . import _core

T = TypeVar("T")

WINDOW = 1024
"""Tasks ahead of the results over an iterable whose length is not known."""


class Submit(Protocol):
    """What a pool offers: submit, or one that carries a task's options."""

    def __call__(self, fn: Callable[..., Any], /, *args: Any) -> Any:
        """Return a future."""


Chunk = list[Any] | range


def run_chunk(fn: Callable[..., T], items: Chunk) -> list[T]:
    """Call fn on each item."""
    return list(map(fn, items))


def run_rows(fn: Callable[..., T], rows: list[tuple[Any, ...]]) -> list[T]:
    """Call fn on each row of arguments."""
    return list(itertools.starmap(fn, rows))


def length(iterables: tuple[Iterable[Any], ...]) -> int | None:
    """How many items there are, when every iterable knows."""
    try:
        sizes = [len(items) for items in iterables if isinstance(items, Sized)]
    except OverflowError:  # a range of more items than there can be in memory
        return None
    return min(sizes) if sizes and len(sizes) == len(iterables) else None


def check_map(fn: object, chunksize: object, buffersize: object) -> None:
    """Refuse what map cannot take; see map_tasks."""
    if not callable(fn):
        raise TypeError(f"fn must be callable, not {type(fn).__name__}")
    for name, value in (("chunksize", chunksize), ("buffersize", buffersize)):
        if value is None and name == "buffersize":
            continue
        or_none = " or None" if name == "buffersize" else ""
        if isinstance(value, bool) or not isinstance(value, int):
            raise TypeError(f"{name} must be an integer{or_none}, not {value!r}")
        if value < 1:
            what = "None or > 0" if or_none else ">= 1"
            raise ValueError(f"{name} must be {what}, not {value}")


def chunks_of(items: Iterable[Any], size: int) -> Iterator[Chunk]:
    """Cut items into lists of `size`; of a range, into ranges."""
    kind = type(items)
    if kind is range or kind is list or kind is tuple:
        return slices_of(items, size)  # type: ignore[arg-type]
    rest = iter(items)
    return iter(lambda: list(itertools.islice(rest, size)), [])


def slices_of(items: list[Any] | tuple[Any, ...] | range, size: int) -> Iterator[Chunk]:
    """As chunks_of, without a step for each item."""
    for start in itertools.count(0, size):
        chunk = items[start : start + size]
        if not chunk:
            return
        yield list(chunk) if isinstance(chunk, tuple) else chunk


def map_tasks(
    submit: Submit,
    fn: Callable[..., T],
    iterables: tuple[Iterable[Any], ...],
    *,
    timeout: float | None = None,
    chunksize: int = 1,
    buffersize: int | None = None,
    unordered: bool = False,
    progress: bool = False,
    submit_each: Callable[[Callable[..., T], Chunk], Any] | None = None,
) -> Iterator[T]:
    """Call fn on the items of the iterables in a pool.

    At most `buffersize` tasks are under way or have results that were not taken; with None, all
    items are submitted at once if the iterables know their length, and otherwise so many that
    the pool is never idle. So a generator without an end runs in constant memory.

    Args:
        submit: hands one task to the pool.
        fn: the function.
        iterables: as many as fn takes arguments; the shortest ends it.
        timeout: seconds from this call within which each result must come.
        chunksize: items that travel together as one task.
        buffersize: see above.
        unordered: results come as they are ready.
        progress: show how far it is: by rich or tqdm if they are installed, else as lines on
            stderr.
        submit_each: hands a chunk to the pool, if it has a faster way for that.

    Returns:
        Iterator: of results. A task's error is raised in its place and ends the iteration.
        When the iteration ends early, or the iterator is closed or dropped after its first
        step, tasks that have not begun are cancelled and results that nobody took are freed.

    Raises:
        TypeError: chunksize, buffersize or fn is of the wrong type.
        ValueError: chunksize or buffersize is less than 1, or timeout is not a number.
    """
    check_map(fn, chunksize, buffersize)
    if timeout is not None and timeout != timeout:
        raise ValueError("timeout must be a number of seconds or None, not nan")
    end = None if timeout is None else timeout + time.monotonic()
    total = length(iterables)
    tasks: Iterator[Any]
    if chunksize == 1:
        if len(iterables) == 1:
            tasks = map(submit, itertools.repeat(fn), iterables[0])
        else:
            tasks = (submit(fn, *row) for row in zip(*iterables, strict=False))
    else:
        if len(iterables) > 1:
            chunks = chunks_of(zip(*iterables, strict=False), chunksize)
            tasks = (submit(run_rows, fn, chunk) for chunk in chunks)
        elif submit_each is not None:
            tasks = map(submit_each, itertools.repeat(fn), chunks_of(iterables[0], chunksize))
        else:
            chunks = chunks_of(iterables[0], chunksize)
            tasks = (submit(run_chunk, fn, chunk) for chunk in chunks)
    window = buffersize
    if window is None and total is None:
        window = max(2, WINDOW // chunksize)
    bar = make_bar(total) if progress else None
    take = Unordered(tasks, window) if unordered else Ordered(tasks, window)
    taken = results(take, end, chunksize > 1, bar)
    return taken if chunksize == 1 else _core.Items(taken)


class Ordered:
    """Tasks under way, in the order of their items."""

    def __init__(self, tasks: Iterator[Any], window: int | None) -> None:
        self.tasks = tasks
        self.ahead = deque(tasks if window is None else itertools.islice(tasks, window))

    def next(self, left: float | None) -> Any:
        """The next task's result; the window moves on. StopIteration after the last."""
        if not self.ahead:
            raise StopIteration
        future = self.ahead.popleft()
        try:
            value = future.result(left)
        except BaseException:
            future.cancel()
            raise
        self.ahead.extend(itertools.islice(self.tasks, 1))
        return value

    def cancel(self) -> None:
        """Nobody wants the rest."""
        while self.ahead:
            self.ahead.popleft().cancel()


class Unordered:
    """Tasks under way; those that are done say so in a queue."""

    def __init__(self, tasks: Iterator[Any], window: int | None) -> None:
        self.tasks = tasks
        self.ended: queue.SimpleQueue[Any] = queue.SimpleQueue()
        self.ahead: set[Any] = set()
        self.more(window)

    def more(self, n: int | None) -> None:
        """Submit the next n tasks."""
        for future in itertools.islice(self.tasks, n):
            self.ahead.add(future)
            future.add_done_callback(self.ended.put)

    def next(self, left: float | None) -> Any:
        """A task's result; the window moves on. StopIteration after the last."""
        if not self.ahead:
            raise StopIteration
        try:
            future = self.ended.get(timeout=None if left is None else max(0.0, left))
        except queue.Empty:
            raise TimeoutError from None
        self.ahead.discard(future)
        value = future.result(0)
        self.more(1)
        return value

    def cancel(self) -> None:
        """Nobody wants the rest."""
        while self.ahead:
            self.ahead.pop().cancel()


def results(
    take: Ordered | Unordered, end: float | None, chunked: bool, bar: Bar | None
) -> Iterator[Any]:
    """Yield tasks' results until there are none, or nobody wants more."""
    ready: list[Any] = []
    try:
        while True:
            try:
                ready.append(take.next(None if end is None else end - time.monotonic()))
            except StopIteration:
                return
            if bar is not None:
                bar.advance(len(ready[0]) if chunked else 1)
            # What was handed out is the caller's alone: nothing here keeps it alive.
            yield ready.pop()
    finally:
        take.cancel()
        if bar is not None:
            bar.close()


# ---- progress ------------------------------------------------------------------------


class Bar(Protocol):
    """Something that shows how far it is."""

    def advance(self, n: int) -> None:
        """N more items are done."""

    def close(self) -> None:
        """It is over."""


class RichBar:
    """Progress by rich."""

    def __init__(self, total: int | None) -> None:
        from rich.console import Console  # type: ignore[import-not-found,unused-ignore]
        from rich.progress import Progress  # type: ignore[import-not-found,unused-ignore]

        # As the others do: stdout is for the program's own words.
        self.progress = Progress(console=Console(stderr=True))
        self.task = self.progress.add_task("map", total=total)
        self.progress.start()

    def advance(self, n: int) -> None:
        """N more items are done."""
        self.progress.advance(self.task, n)

    def close(self) -> None:
        """It is over."""
        self.progress.stop()


class TqdmBar:
    """Progress by tqdm."""

    def __init__(self, total: int | None) -> None:
        from tqdm import tqdm  # type: ignore[import-not-found,import-untyped,unused-ignore]

        self.bar = tqdm(total=total)

    def advance(self, n: int) -> None:
        """N more items are done."""
        self.bar.update(n)

    def close(self) -> None:
        """It is over."""
        self.bar.close()


class PlainBar:
    """Progress as lines on stderr, one a second at most, and one at the end."""

    def __init__(self, total: int | None, clock: Callable[[], float] = time.monotonic) -> None:
        self.total = total
        self.clock = clock
        self.done = 0
        self.start = self.told = clock()

    def advance(self, n: int) -> None:
        """N more items are done."""
        self.done += n
        now = self.clock()
        if now - self.told >= 1.0:
            self.told = now
            self.tell(now)

    def tell(self, now: float) -> None:
        """Write a line."""
        if sys.stderr is None:
            return
        of = "" if self.total is None else f" of {self.total}"
        rate = self.done / max(now - self.start, 1e-9)
        print(f"map: {self.done}{of} done, {rate:.0f}/s", file=sys.stderr, flush=True)

    def close(self) -> None:
        """It is over."""
        self.tell(self.clock())


def make_bar(total: int | None) -> Bar:
    """The best one that is installed."""
    for kind in (RichBar, TqdmBar):
        try:
            return kind(total)
        except Exception:
            # Not installed, or it refuses (older richs have one live display at a time): how far
            # it is can be told in other ways, and the work goes on in any case.
            continue
    return PlainBar(total)
