"""``map``, as both pools and their views with options offer it."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from typing import Any, TypeVar

from ._map import Chunk, Submit, check_map, map_tasks

T = TypeVar("T")

Way = tuple[Submit, int, Callable[[Callable[..., Any], Chunk], Any] | None]
"""How something maps: by which submit, how many items in a task, and by what it hands a chunk
over if it has a faster way for that."""


class Mapper:
    """Has map, by a submit of its own."""

    __slots__ = ()

    def _how_to_map(self, fn: Callable[..., Any], chunksize: int) -> Way:
        raise NotImplementedError

    def map(
        self,
        fn: Callable[..., T],
        *iterables: Iterable[Any],
        timeout: float | None = None,
        chunksize: int = 1,
        buffersize: int | None = None,
        unordered: bool = False,
        progress: bool = False,
    ) -> Iterator[T]:
        """Call fn on the items of the iterables, in workers.

        Args:
            fn: the function.
            iterables: as many as fn takes arguments; the shortest ends it.
            timeout: seconds from this call within which each result must come.
            chunksize: items that travel together as one task; it has no meaning for threads.
                Options of a task (``pool.options(timeout=1.0).map(...)``) hold for each chunk.
            buffersize: tasks that are submitted ahead of the results that were taken. None
                submits all at once when the iterables know their length, and otherwise a
                window that keeps the workers busy: a generator without an end is welcome.
            unordered: results come as they are ready, not in the order of the items.
            progress: show how far it is, by rich or tqdm if one is installed, else on stderr.

        Returns:
            Iterator: of results. A task's error is raised in its place, and ends the
            iteration; what has not begun by then is cancelled, as it is when the iterator is
            closed.

        Raises:
            TypeError: fn, chunksize or buffersize is of the wrong type.
            ValueError: chunksize or buffersize is less than 1.
        """
        check_map(fn, chunksize, buffersize)
        submit, size, submit_each = self._how_to_map(fn, chunksize)
        return map_tasks(
            submit,
            fn,
            iterables,
            timeout=timeout,
            chunksize=size,
            buffersize=buffersize,
            unordered=unordered,
            progress=progress,
            submit_each=submit_each,
        )
