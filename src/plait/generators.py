"""Generators as coroutines: the scheduler that people write to learn, in C.

A generator says with ``yield`` what it waits for, and gets the answer as the value of the
``yield``. ``yield from`` composes generators as functions compose; a ``return`` value is the
result; errors are raised at the ``yield``. All run in one thread, on plait's event loop, so
nothing is switched between two yields.

Example:
    >>> from plait.generators import join, run, sleep, spawn
    >>> def worker(n):
    ...     yield sleep(0.01)
    ...     return n * n
    >>> def main():
    ...     tasks = []
    ...     for n in range(3):
    ...         tasks.append((yield spawn(worker(n))))
    ...     squares = []
    ...     for task in tasks:
    ...         squares.append((yield join(task)))
    ...     return squares
    >>> run(main())
    [0, 1, 4]

What can be yielded:

- ``recv(sock, n)``, ``recv_into(sock, buffer)``, ``send(sock, data)``, ``accept(sock)``,
  ``connect(sock, address)``: plain sockets;
- ``sleep(seconds)``; ``timeout(seconds, request_or_generator)``;
- ``wait(future)``: of a plait pool, of ``concurrent.futures``, of asyncio;
- ``spawn(generator)``, which gives a `Task`, and ``join(task)``.

Anything else raises TypeError at the yield. A task that fails and that nobody joins is told to
the loop's exception handler, which logs it. ``task.cancel()`` closes a generator: its
``finally`` blocks run, and cannot wait.

Everything here belongs to the loop's thread.
"""

# ruff: noqa: D101, D102, D103 - the docstrings of what is C are in the extension

from __future__ import annotations

from asyncio import events
from collections.abc import Generator
from typing import TYPE_CHECKING, Any, TypeAlias, TypeVar

from . import _core
from ._exceptions import PlaitError
from ._loop import Loop

if TYPE_CHECKING:
    import asyncio
    import concurrent.futures
    import socket
    from collections.abc import Awaitable, Callable, Iterator
    from contextvars import Context
    from typing import Generic

__all__ = [
    "Cancelled",
    "Deadlock",
    "Request",
    "Strand",
    "Task",
    "accept",
    "all_tasks",
    "connect",
    "current_task",
    "join",
    "recv",
    "recv_into",
    "run",
    "send",
    "sleep",
    "spawn",
    "start",
    "timeout",
    "wait",
]

_T = TypeVar("_T")

if TYPE_CHECKING:
    # The functions are C, with docstrings of their own; these are their types.

    class Cancelled(PlaitError): ...

    class Deadlock(PlaitError, RuntimeError): ...

    class Request(Generic[_T]): ...

    class Task(Generic[_T]):
        def cancel(self, msg: object = None) -> bool: ...
        def throw(self, exception: BaseException, /) -> bool: ...
        def done(self) -> bool: ...
        def cancelled(self) -> bool: ...
        def result(self) -> _T: ...
        def exception(self) -> BaseException | None: ...
        def add_done_callback(
            self, fn: Callable[[Task[_T]], object], /, *, context: Context | None = None
        ) -> None: ...
        def remove_done_callback(self, fn: Callable[[Task[_T]], object], /) -> int: ...
        def get_loop(self) -> Loop: ...
        def get_name(self) -> str: ...
        def __await__(self) -> Generator[Any, Any, _T]: ...
        def __iter__(self) -> Iterator[Any]: ...

    def recv(sock: socket.socket, n: int, /) -> Request[bytes]: ...
    def recv_into(
        sock: socket.socket, buffer: bytearray | memoryview, n: int = 0, /
    ) -> Request[int]: ...
    def send(sock: socket.socket, data: bytes | bytearray | memoryview, /) -> Request[None]: ...
    def accept(sock: socket.socket, /) -> Request[tuple[socket.socket, Any]]: ...
    def connect(sock: socket.socket, address: Any, /) -> Request[None]: ...
    def sleep(seconds: float, /) -> Request[None]: ...
    def wait(
        future: concurrent.futures.Future[_T] | asyncio.Future[_T] | Awaitable[_T],
        /,
        *,
        shield: bool = False,
    ) -> Request[_T]: ...
    def spawn(
        gen: Generator[Request[Any], Any, _T], /, name: str | None = None
    ) -> Request[Task[_T]]: ...
    def join(task: Task[_T], /) -> Request[_T]: ...
    def timeout(
        seconds: float | None, what: Request[_T] | Generator[Request[Any], Any, _T], /
    ) -> Request[_T]: ...
    def start(gen: Generator[Request[Any], Any, _T], /, *, name: str | None = None) -> Task[_T]: ...
    def current_task() -> Task[Any] | None: ...
    def all_tasks() -> list[Task[Any]]: ...
    def _start(
        loop: Loop, gen: Generator[Request[Any], Any, _T], name: str | None, /
    ) -> Task[_T]: ...
    def _close(loop: Loop, /) -> None: ...

else:
    for _name, _object in vars(_core.generators).items():
        if not _name.startswith("__"):
            globals()[_name] = _object
    del _name, _object

Strand: TypeAlias = "Generator[Request[Any], Any, _T]"
"""A generator that plait can run, with what it returns: ``-> Strand[bytes]``."""


def run(main: Strand[_T], /, *, debug: bool | None = None) -> _T:
    """Run a generator on a new plait loop until it returns, and close the loop.

    Tasks that still run then are closed, the youngest first: join those whose work is needed.
    So it is when an error, Ctrl+C or SystemExit ends the run.

    Args:
        main: the generator, not started yet.
        debug: asyncio's debug mode, which reports steps that take too long; None leaves it
            to PYTHONASYNCIODEBUG.

    Returns:
        What the generator returns.

    Raises:
        RuntimeError: a loop runs in this thread already; start() is for that.
        TypeError: main is no generator.
        ValueError: main runs or has run already.
        asyncio.CancelledError: main was cancelled.

    Example:
        >>> from plait.generators import run, sleep
        >>> def main():
        ...     yield sleep(0.01)
        ...     return "done"
        >>> run(main())
        'done'
    """
    if events._get_running_loop() is not None:
        raise RuntimeError("plait.generators.run() cannot be called from a running event loop")
    loop = Loop()
    if debug is not None:
        loop.set_debug(debug)
    try:
        try:
            task = _start(loop, main, None)
            # The task has what asyncio's loop asks of a future.
            return loop.run_until_complete(task)
        finally:
            _close(loop)
            loop.run_until_complete(loop.shutdown_asyncgens())
    finally:
        loop.close()
