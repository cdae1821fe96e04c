"""Channels: bounded queues that end, between any two strands.

`Channel` joins the strands of one process: coroutines of any loop, and threads. Its ring, its
coroutines' calls and the lists of those who wait are C (channel.c says how).

`SharedChannel` joins processes as well: the items are bytes in memory that all of them map.
"""

from __future__ import annotations

import asyncio
import errno
import math
import os
import threading
import time
from collections.abc import AsyncIterator, Coroutine, Iterator
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Generic, TypeVar

from . import _core
from ._exceptions import ChannelClosed
from ._waiters import ThreadWaiter, check_may_block

__all__ = ["Channel", "ChannelStatistics", "SharedChannel", "channel"]

_T = TypeVar("_T")

_NOTHING: Any = object()
_PAUSE = 0.1  # seconds
SHARED_SIZE = 4 << 20
"""Bytes of a shared channel's memory, unless said otherwise."""


def _check_timeout(timeout: float | None) -> None:
    if timeout is not None and math.isnan(timeout):
        raise ValueError("timeout must be a number of seconds or None, not nan")


@dataclass(frozen=True)
class ChannelStatistics:
    """What a channel holds and has done.

    Attributes:
        capacity: items that it holds at most.
        items: items in it now.
        sent: items that were ever put in.
        received: items that were ever taken out.
        closed: whether it takes no more.
    """

    capacity: int
    items: int
    sent: int
    received: int
    closed: bool


class Channel(_core.ChannelBase, Generic[_T]):
    """A bounded queue between coroutines and threads. Made by `plait.channel`.

    Coroutines use `send`, `receive` and ``async for``; threads `send_blocking`,
    `receive_blocking` and ``for``; `send_nowait` and `receive_nowait` are for both. Any number
    of loops and threads may be on either end. Items come out in the order in which they went
    in; who waits longest is woken first, but one that comes in between may be faster.

    A coroutine's call that need not wait does not: it costs no turn of the loop, but for one in
    64. A thread that is stopped (`TaskStopped`) while it waits in the channel ends the wait.
    """

    if TYPE_CHECKING:
        # Coroutines in all but their type: they cost no frame.
        def send(self, item: _T, /) -> Coroutine[Any, Any, None]: ...
        def receive(self) -> Coroutine[Any, Any, _T]: ...
        def __anext__(self) -> Coroutine[Any, Any, _T]: ...

    def __reduce__(self) -> Any:
        raise TypeError(
            "a channel of one process cannot be sent to another: make it with shared=True"
        )

    # ---- both ------------------------------------------------------------------------

    def send_nowait(self, item: _T) -> None:
        """Put an item in if there is room.

        Raises:
            asyncio.QueueFull: there is none.
            ChannelClosed: the channel is closed.
        """
        if not self._push(item, None):
            raise asyncio.QueueFull(f"the channel holds {self.capacity} items")

    def receive_nowait(self) -> _T:
        """Take an item if there is one.

        Raises:
            asyncio.QueueEmpty: there is none.
            ChannelClosed: there is none and never will be.
        """
        item = self._pop(None, _NOTHING)
        if item is _NOTHING:
            raise asyncio.QueueEmpty("the channel is empty")
        return item  # type: ignore[no-any-return]

    def statistics(self) -> ChannelStatistics:
        """What it holds and has done."""
        return ChannelStatistics(self.capacity, len(self), self._sent, self._received, self.closed)

    def __repr__(self) -> str:
        state = ", closed" if self.closed else ""
        return f"<plait.Channel {len(self)} of {self.capacity}{state}>"

    # ---- threads ---------------------------------------------------------------------

    def send_blocking(self, item: _T, timeout: float | None = None) -> None:
        """Put an item in, blocking this thread until there is room.

        Args:
            item: what to send.
            timeout: seconds to wait at most; None for ever.

        Raises:
            ChannelClosed: the channel is closed, or was while this waited.
            TimeoutError: there was no room in time.
            ValueError: timeout is nan.
            RuntimeError: it would have to wait, and a loop runs in this thread.
        """
        _check_timeout(timeout)
        if self._push(item, None):
            return
        check_may_block("send_blocking()", "await send()")
        end = None if timeout is None else time.monotonic() + timeout
        waiter = ThreadWaiter()
        # From here on the waiter may be on the list, whatever is raised in this thread.
        try:
            while not self._push(item, waiter):
                self._block(waiter, end)
        except BaseException:
            self._leave(waiter, True)
            raise

    def receive_blocking(self, timeout: float | None = None) -> _T:
        """Take the next item, blocking this thread until there is one.

        Args:
            timeout: seconds to wait at most; None for ever.

        Raises:
            ChannelClosed: there is none, and never will be.
            TimeoutError: there was none in time.
            ValueError: timeout is nan.
            RuntimeError: it would have to wait, and a loop runs in this thread.
        """
        _check_timeout(timeout)
        item = self._pop(None, _NOTHING)
        if item is _NOTHING:
            check_may_block("receive_blocking()", "await receive()")
            end = None if timeout is None else time.monotonic() + timeout
            waiter = ThreadWaiter()
            try:
                while (item := self._pop(waiter, _NOTHING)) is _NOTHING:
                    self._block(waiter, end)
            except BaseException:
                self._leave(waiter, False)
                raise
        return item  # type: ignore[no-any-return]

    @staticmethod
    def _block(waiter: ThreadWaiter, end: float | None) -> None:
        if not waiter.wait(None if end is None else end - time.monotonic()):
            raise TimeoutError("the channel did not change in time")

    def __iter__(self) -> Iterator[_T]:
        return self

    def __next__(self) -> _T:
        try:
            return self.receive_blocking()
        except ChannelClosed:
            raise StopIteration from None


class _Bell:
    """The tasks of one loop that wait for one pipe of a shared channel."""

    __slots__ = ("fd", "loop", "waiters")

    def __init__(self, loop: asyncio.AbstractEventLoop, fd: int) -> None:
        self.loop = loop
        self.fd = fd
        self.waiters: list[asyncio.Future[None]] = []

    def add(self) -> asyncio.Future[None]:
        future = self.loop.create_future()
        if not self.waiters:
            self.loop.add_reader(self.fd, self.ring)
        self.waiters.append(future)
        return future

    def remove(self, future: asyncio.Future[None]) -> bool:
        """Take a waiter off; False when a byte was meant for it."""
        if future not in self.waiters:
            return False
        self.waiters.remove(future)
        self.rest()
        return True

    def rest(self) -> None:
        if not self.waiters:
            self.loop.remove_reader(self.fd)

    def ring(self) -> None:
        try:
            count = len(os.read(self.fd, max(1, len(self.waiters))))
        except BlockingIOError:  # another process was faster
            return
        for future in self.waiters[:count]:
            if not future.done():
                future.set_result(None)
        del self.waiters[:count]
        self.rest()


class SharedChannel(Generic[_T]):
    """A bounded queue between processes, their threads and their loops.

    `plait.channel(shared=True)` makes it. It has the methods of `Channel`. Items are pickled. It
    can be an argument or a result of a task of a process pool, and an item of another channel:
    what arrives is another end of the same channel, with descriptors of its own. A forked child's
    copy is such an end, too. It lasts until every end is gone; who sends one keeps its own until
    it has arrived. When a process dies, what it had not begun to take is still there, and the
    channel works on.
    """

    def __init__(self, capacity: int, size: int) -> None:
        # The order is that of their making, for what has to be undone.
        fds: list[int] = []
        try:
            fds.append(_core.create_ring(capacity, size))
            for _ in range(2):
                read, write = os.pipe2(os.O_NONBLOCK | os.O_CLOEXEC)
                # One descriptor with both ends: it reads what others, who open it by its
                # number, write.
                fds.append(_open_pipe(f"/proc/self/fd/{read}"))
                os.close(read)
                os.close(write)
        except BaseException:
            for fd in fds:
                os.close(fd)
            raise
        self._adopt(fds)

    def _adopt(self, fds: list[int]) -> None:
        self._fds = tuple(fds)
        self._pid = os.getpid()
        self._ring = _core.SharedRing(*fds)
        self._bells: dict[tuple[int, bool], _Bell] = {}
        self.capacity = self._ring.figures()[0]

    # ---- other processes -------------------------------------------------------------

    def __reduce__(self) -> Any:
        self._settle_in()
        return _attach, (self._pid, _boot_time(self._pid), self._fds)

    def _settle_in(self) -> None:
        """In a forked child: its descriptors are its own copies, and nobody waits yet."""
        if self._pid != os.getpid():
            self._pid = os.getpid()
            self._bells = {}

    # ---- both ------------------------------------------------------------------------

    @property
    def closed(self) -> bool:
        """Whether nothing more can be sent."""
        return bool(self._ring.figures()[4])

    def close(self) -> None:
        """Take no more items, for all ends. What is in the channel can still be received."""
        self._ring.close()

    def release(self) -> None:
        """Let this end's memory and descriptors go; other ends stay.

        It is unusable then. Nobody may be using it; a forked child's end is its own, whoever waits
        in the parent.

        Raises:
            RuntimeError: a task or a thread waits for it.
        """
        self._settle_in()
        for bell in self._bells.values():
            if not bell.loop.is_closed() and bell.waiters:
                raise RuntimeError("a task waits for this channel")
        self._ring.release()

    def __len__(self) -> int:
        _, _, sent, received, _ = self._ring.figures()
        return sent - received

    def statistics(self) -> ChannelStatistics:
        """What it holds and has done, over all ends."""
        capacity, _, sent, received, closed = self._ring.figures()
        return ChannelStatistics(capacity, sent - received, sent, received, closed)

    def __repr__(self) -> str:
        try:
            capacity, _, sent, received, closed = self._ring.figures()
        except ValueError:
            return "<plait.SharedChannel released>"
        state = ", closed" if closed else ""
        return f"<plait.SharedChannel {sent - received} of {capacity}{state}>"

    def send_nowait(self, item: _T) -> None:
        """As Channel.send_nowait; also raises ValueError for an item beyond half the memory."""
        if not self._ring.send(self._ring.encode(item)):
            raise asyncio.QueueFull(f"the channel holds {self.capacity} items")

    def receive_nowait(self) -> _T:
        """As Channel.receive_nowait."""
        item = self._ring.receive(_NOTHING)
        if item is _NOTHING:
            raise asyncio.QueueEmpty("the channel is empty")
        return item  # type: ignore[no-any-return]

    # ---- threads ---------------------------------------------------------------------

    def send_blocking(self, item: _T, timeout: float | None = None) -> None:
        """As Channel.send_blocking; also raises ValueError for an item beyond half the memory."""
        _check_timeout(timeout)
        message = self._ring.encode(item)
        if self._ring.send(message):
            return
        check_may_block("send_blocking()", "await send()")
        end = math.inf if timeout is None else time.monotonic() + timeout
        while True:
            self._park(True, end)
            if self._ring.send(message):
                return

    def receive_blocking(self, timeout: float | None = None) -> _T:
        """As Channel.receive_blocking."""
        _check_timeout(timeout)
        item = self._ring.receive(_NOTHING)
        if item is _NOTHING:
            check_may_block("receive_blocking()", "await receive()")
            end = math.inf if timeout is None else time.monotonic() + timeout
            while item is _NOTHING:
                self._park(False, end)
                item = self._ring.receive(_NOTHING)
        return item  # type: ignore[no-any-return]

    def _park(self, for_room: bool, end: float) -> None:
        left = end - time.monotonic()
        if left <= 0:
            raise TimeoutError("the channel did not change in time")
        # What stops a task's thread is raised between two waits; nobody else is in a hurry.
        self._ring.wait(for_room, min(left, 3600.0 if _in_main_thread() else _PAUSE))

    def __iter__(self) -> Iterator[_T]:
        return self

    def __next__(self) -> _T:
        try:
            return self.receive_blocking()
        except ChannelClosed:
            raise StopIteration from None

    # ---- coroutines ------------------------------------------------------------------

    async def send(self, item: _T) -> None:
        """As Channel.send; also raises ValueError for an item beyond half the memory."""
        message = self._ring.encode(item)
        while not self._ring.send(message):
            await self._wait(True)

    async def receive(self) -> _T:
        """As Channel.receive."""
        while True:
            item = self._ring.receive(_NOTHING)
            if item is not _NOTHING:
                return item  # type: ignore[no-any-return]
            await self._wait(False)

    async def _wait(self, for_room: bool) -> None:
        """Wait until the side may have something. Cancelling it loses nothing."""
        loop = asyncio.get_running_loop()
        key = (id(loop), for_room)
        bell = self._bells.get(key)
        if bell is None or bell.loop is not loop:
            self._bells = {k: b for k, b in self._bells.items() if not b.loop.is_closed()}
            # Each loop has a descriptor of its own: two may share a poller's thread.
            bell = self._bells[key] = _Bell(loop, self._fds[2 if for_room else 1])
        if not self._ring.arm(for_room):
            return
        future = bell.add()
        try:
            await future
        except BaseException:
            if bell.remove(future):
                self._ring.disarm(for_room)
            else:
                # Woken, and not looking: let someone else look.
                self._pass_on(for_room)
            raise

    def _pass_on(self, for_room: bool) -> None:
        fd = self._fds[2 if for_room else 1]
        try:
            os.write(fd, b"\1")
        except BlockingIOError:
            pass  # full: everyone is woken as it is

    def __aiter__(self) -> AsyncIterator[_T]:
        return self

    async def __anext__(self) -> _T:
        try:
            return await self.receive()
        except ChannelClosed:
            raise StopAsyncIteration from None


def _in_main_thread() -> bool:
    return threading.get_ident() == threading.main_thread().ident


def _open_pipe(path: str) -> int:
    return os.open(path, os.O_RDWR | os.O_NONBLOCK | os.O_CLOEXEC)


def _boot_time(pid: int) -> int:
    """When a process began, in ticks since the start of the machine: its number may be reused."""
    with open(f"/proc/{pid}/stat", "rb") as file:
        return int(file.read().rsplit(b")", 1)[1].split()[19])


def _attach(pid: int, began: int, fds: tuple[int, int, int]) -> SharedChannel[Any]:
    """Another end of a channel, of which process `pid` has one with these descriptors."""
    opened: list[int] = []
    try:
        if _boot_time(pid) != began:
            raise FileNotFoundError(errno.ESRCH, "its process has ended")
        opened.append(os.open(f"/proc/{pid}/fd/{fds[0]}", os.O_RDWR | os.O_CLOEXEC))
        opened.extend(_open_pipe(f"/proc/{pid}/fd/{fd}") for fd in fds[1:])
    except OSError as error:
        for fd in opened:
            os.close(fd)
        raise ChannelClosed(
            f"the end of a channel that process {pid} sent is gone: {error.strerror}"
        ) from error
    channel: SharedChannel[Any] = SharedChannel.__new__(SharedChannel)
    channel._adopt(opened)
    return channel


def channel(
    capacity: int = 64, *, shared: bool = False, size: int = SHARED_SIZE
) -> Channel[Any] | SharedChannel[Any]:
    """Make a channel: a bounded queue that can be closed, between any two strands.

    Args:
        capacity: items that it holds; who sends more waits.
        shared: whether its ends may be in several processes. Items are then pickled.
        size: bytes of memory for the items of a shared channel; one item may take half.

    Returns:
        Channel | SharedChannel: send and receive, iterate, close.

    Raises:
        TypeError, ValueError: an argument is not as above.
        OSError: the system has no memory or descriptors.

    Example:
        >>> import plait
        >>> async def main() -> list[int]:
        ...     numbers = plait.channel(2)
        ...     async def produce() -> None:
        ...         for n in range(4):
        ...             await numbers.send(n)
        ...         numbers.close()
        ...     async with plait.scope() as s:
        ...         s.start(produce)
        ...         return [n async for n in numbers]
        >>> plait.run(main())
        [0, 1, 2, 3]
    """
    for name, value in (("capacity", capacity), ("size", size)):
        if isinstance(value, bool) or not isinstance(value, int):
            raise TypeError(f"{name} must be an int, not {value!r}")
        if value < 1:
            raise ValueError(f"{name} must be at least 1, not {value}")
    if not shared:
        return Channel(capacity)
    if capacity >= 1 << 23:
        raise ValueError(f"capacity of a shared channel must be below {1 << 23}, not {capacity}")
    return SharedChannel(capacity, size)
