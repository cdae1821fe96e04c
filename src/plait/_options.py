"""What a task may be given beside its arguments: a time limit, tries, a name."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any, Protocol, TypeVar

from ._mapper import Mapper, Way

T = TypeVar("T")

RETRY_FIRST = 0.01
RETRY_MOST = 2.0


class Taker(Protocol):
    """A pool, as options see it."""

    def _take(self, options: Options, fn: Callable[..., T], args: Any, kwargs: Any) -> Any: ...


def name_of(fn: Any) -> str:
    """What a task is called that was given no name."""
    return getattr(fn, "__qualname__", None) or repr(fn)


class Order:
    """What a pool keeps about a task with options, until it has ended."""

    __slots__ = ("call", "retries", "timeout", "tries")

    def __init__(self, timeout: float | None, retries: int, call: Any) -> None:
        self.timeout = timeout
        self.retries = retries
        self.tries = 0
        self.call = call

    def delay(self) -> float:
        """Seconds until the next try: doubled each time."""
        self.tries += 1
        return min(RETRY_MOST, RETRY_FIRST * 2.0 ** min(self.tries - 1, 20))


class Options(Mapper):
    """Submits tasks with options; made by a pool's ``options``, immutable."""

    __slots__ = ("_pool", "name", "priority", "retries", "timeout")

    def __init__(
        self, pool: Taker, timeout: float | None, priority: int, name: str | None, retries: int
    ) -> None:
        if timeout is not None:
            if isinstance(timeout, bool) or not isinstance(timeout, int | float):
                raise TypeError(f"timeout must be a number of seconds or None, not {timeout!r}")
            if not timeout > 0 or not math.isfinite(timeout):
                raise ValueError(f"timeout must be finite and more than 0, not {timeout!r}")
        for what, value in (("priority", priority), ("retries", retries)):
            if isinstance(value, bool) or not isinstance(value, int):
                raise TypeError(f"{what} must be an int, not {value!r}")
        if retries < 0:
            raise ValueError(f"retries must be at least 0, not {retries}")
        if not -(2**31) <= priority < 2**31:
            raise ValueError(f"priority must fit 32 bits, not {priority}")
        if name is not None and not isinstance(name, str):
            raise TypeError(f"name must be a str or None, not {name!r}")
        self._pool = pool
        self.timeout = timeout
        self.priority = priority
        self.name = name
        self.retries = retries

    def submit(self, fn: Callable[..., T], /, *args: Any, **kwargs: Any) -> Any:
        """As the pool's submit, with these options."""
        return self._pool._take(self, fn, args, kwargs)

    def _how_to_map(self, fn: Callable[..., Any], chunksize: int) -> Way:
        named = self
        if self.name is None and chunksize != 1:
            # A chunk goes by the name of what it calls, not of what calls that.
            named = Options(self._pool, self.timeout, self.priority, name_of(fn), self.retries)
        return named.submit, chunksize, None
