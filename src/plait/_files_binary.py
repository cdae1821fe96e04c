"""Files of bytes: read ahead and written behind, at the kernel's position or one of their own."""

from __future__ import annotations

import asyncio
import contextlib
import io
import os
import warnings
from collections.abc import Iterable
from typing import Any

from ._files_lines import Lines
from ._files_queue import queue_here, result_of

BUFFER_SIZE = 1 << 16
"""Bytes read ahead, and written behind, by default."""

_READ_ALL_MIN = 1 << 16
_READ_ALL_MAX = 1 << 26


class BinaryFile(Lines[bytes]):
    """A file of bytes; made by open_file.

    Several tasks may use it at once: calls that depend on the position, and close, take
    turns; so close waits for a read of a pipe that does not end, unless that is cancelled. A
    cancelled read has not moved the position; but what a thread reads of a pipe, where there is
    no io_uring, is lost. A cancelled write may have reached the file wholly, in part or not at
    all; the next call waits for its end.
    """

    def __init__(
        self, fd: int, name: str | bytes | int, mode: str, flags: int, size: int, seekable: bool
    ) -> None:
        self._fd = fd
        self.name = name
        self.mode = mode
        access = flags & os.O_ACCMODE
        self._readable = access != os.O_WRONLY
        self._writable = access != os.O_RDONLY
        self._append = bool(flags & os.O_APPEND)
        self._seekable = seekable
        self._size = size
        # Where the next operation of the kernel's begins; None: at its own position.
        self._place: int | None = None
        if seekable:
            self._place = os.lseek(fd, 0, os.SEEK_END if self._append else os.SEEK_CUR)
        self._ahead = b""  # read, and not given out from `_given` on
        self._given = 0
        self._behind = bytearray()  # written, and not handed to the kernel yet
        self._lock = asyncio.Lock()
        self._stray: asyncio.Future[Any] | None = None  # a write whose task was cancelled

    # ---- what it is

    @property
    def closed(self) -> bool:
        """Whether close was called."""
        return self._fd < 0

    def fileno(self) -> int:
        """Return the descriptor.

        Raises:
            ValueError: the file is closed.
        """
        self._check()
        return self._fd

    def readable(self) -> bool:
        """Whether the mode allows reading."""
        return self._readable

    def writable(self) -> bool:
        """Whether the mode allows writing."""
        return self._writable

    def seekable(self) -> bool:
        """Whether it has a position that can be set: not a pipe or terminal."""
        return self._seekable

    def isatty(self) -> bool:
        """Whether it is a terminal."""
        self._check()
        return os.isatty(self._fd)

    def __repr__(self) -> str:
        state = "closed" if self._fd < 0 else f"fd {self._fd}"
        return f"<{type(self).__name__} {self.name!r} mode={self.mode!r} {state}>"

    def _check(self, *, read: bool = False, write: bool = False, seek: bool = False) -> None:
        if self._fd < 0:
            raise ValueError(f"I/O operation on closed file {self.name!r}")
        if read and not self._readable:
            raise io.UnsupportedOperation(f"file {self.name!r} is not open for reading")
        if write and not self._writable:
            raise io.UnsupportedOperation(f"file {self.name!r} is not open for writing")
        if seek and not self._seekable:
            raise io.UnsupportedOperation(f"{self.name!r} has no position that can be set")

    # ---- reading

    async def _fetch(self, n: int) -> bytes:
        """Up to n bytes from the kernel, at the position."""
        queue = queue_here()
        data = await result_of(queue, queue.read(self._fd, n, self._place))
        if self._place is not None:
            self._place += len(data)
        return data

    async def _fill(self) -> bool:
        """Read ahead; False at the end of the file. The rest of what was read stays."""
        data = await self._fetch(max(self._size, 1))
        self._ahead = self._ahead[self._given :] + data
        self._given = 0
        return bool(data)

    def _take(self, n: int) -> bytes:
        """At most n bytes of what was read ahead."""
        data = self._ahead[self._given : self._given + n]
        self._given += len(data)
        if self._given == len(self._ahead):
            self._ahead, self._given = b"", 0
        return data

    async def _before_reading(self) -> None:
        if self._stray is not None or self._behind:
            await self._flush()

    async def read(self, n: int = -1) -> bytes:
        """Read n bytes; fewer only at the end of the file.

        Args:
            n: how many; negative or None for all up to the end.

        Raises:
            ValueError: the file is closed.
            io.UnsupportedOperation: it is not open for reading.
            OSError: the read failed.
        """
        self._check(read=True)
        async with self._lock:
            self._check()
            await self._before_reading()
            if n is None or n < 0:
                return await self._read_all()
            if n <= len(self._ahead) - self._given:
                return self._take(n)
            if self._given == len(self._ahead) and n >= self._size:
                # Nothing was read ahead, and nothing needs to be.
                data = await self._fetch(n)
                if len(data) == n or not data:
                    return data
                parts = [data]
            else:
                parts = [self._take(n)]
            missing = n - len(parts[0])
            try:
                while missing > 0:
                    if missing >= self._size:
                        data = await self._fetch(missing)
                        if not data:
                            break
                    else:
                        if not await self._fill():
                            break
                        data = self._take(missing)
                    parts.append(data)
                    missing -= len(data)
            except BaseException:
                self._give_back(parts)
                raise
            return b"".join(parts)

    def _give_back(self, parts: list[bytes]) -> None:
        """A read that failed on its way has read nothing."""
        self._ahead = b"".join(parts) + self._ahead[self._given :]
        self._given = 0

    async def _read_all(self) -> bytes:
        parts = [self._take(len(self._ahead))]
        step = _READ_ALL_MIN
        if self._place is not None:
            # One more byte than there are: then the first read finds the end as well.
            rest = os.fstat(self._fd).st_size - self._place
            step = min(max(rest + 1, 512), _READ_ALL_MAX)
        try:
            while data := await self._fetch(step):
                parts.append(data)
                if self._place is None or len(data) == step:
                    step = min(max(2 * len(data), _READ_ALL_MIN), _READ_ALL_MAX)
                else:
                    step = 512
        except BaseException:
            self._give_back(parts)
            raise
        return b"".join(parts)

    async def read1(self, n: int = -1) -> bytes:
        """Read what one operation gives, at most n bytes: for pipes and terminals.

        Args:
            n: how many at most; negative for the buffer's size.

        Returns:
            Empty at the end of the file only, or when n is 0.
        """
        self._check(read=True)
        async with self._lock:
            self._check()
            await self._before_reading()
            if n == 0:
                return b""
            if n < 0:
                n = self._size or BUFFER_SIZE
            if self._ahead:
                return self._take(n)
            return await self._fetch(n)

    async def readinto(self, buffer: Any) -> int:
        """Read into a writable buffer until it is full or the file ends.

        Returns:
            The number of bytes read.
        """
        self._check(read=True)
        async with self._lock:
            self._check()
            await self._before_reading()
            with memoryview(buffer).cast("B") as view:
                done = len(head := self._take(len(view)))
                view[:done] = head
                queue = queue_here()
                while done < len(view):
                    n = await result_of(queue, queue.readinto(self._fd, view[done:], self._place))
                    if n == 0:
                        break
                    if self._place is not None:
                        self._place += n
                    done += n
                return done

    async def readline(self, limit: int = -1) -> bytes:
        """Read up to and with the next newline.

        Args:
            limit: bytes at most; negative for no limit.

        Returns:
            The line; without a newline only at the limit or the end of the file, and empty
            at its end.
        """
        self._check(read=True)
        async with self._lock:
            self._check()
            await self._before_reading()
            return await self._readline(limit)

    async def _readline(self, limit: int) -> bytes:
        looked = self._given
        while True:
            end = self._ahead.find(b"\n", looked) + 1
            n = (end or len(self._ahead)) - self._given
            if 0 <= limit <= n:
                return self._take(limit)
            if end:
                return self._take(n)
            # The buffer's rest moves to its front, and only what is new is searched.
            looked = len(self._ahead) - self._given
            if not await self._fill():
                return self._take(len(self._ahead))

    async def pread(self, n: int, offset: int) -> bytes:
        """Read at most n bytes at an offset, whatever the position; does not change it.

        Calls of this kind go on side by side.

        Raises:
            ValueError: n or offset is negative, or the file is closed.
            io.UnsupportedOperation: it is a pipe or terminal, or not open for reading.
        """
        self._check(read=True, seek=True)
        if self._behind or self._stray is not None:
            await self.flush()
        queue = queue_here()
        return await result_of(queue, queue.read(self._fd, n, offset))

    # ---- writing

    async def _settle(self) -> None:
        """Wait for a write whose task was cancelled."""
        while (stray := self._stray) is not None:
            with contextlib.suppress(OSError):  # nobody waits for its result any more
                await asyncio.shield(stray)
            if self._stray is stray:
                self._stray = None
                self._locate()

    def _locate(self) -> None:
        """Ask the kernel where an appended write, or an unknown number of bytes, has led."""
        if self._append and self._place is not None:
            self._place = os.lseek(self._fd, 0, os.SEEK_CUR)

    async def _put(self, data: Any) -> None:
        """Hand all of data to the kernel."""
        if self._seekable and not self._append and self._given < len(self._ahead):
            assert self._place is not None
            self._place -= len(self._ahead) - self._given
        self._ahead, self._given = b"", 0
        queue = queue_here()
        view = memoryview(data).cast("B")
        done = 0
        while done < len(view):
            where = None if self._append else self._place
            answer = queue.write(self._fd, view[done:] if done else view, where)
            if isinstance(answer, asyncio.Future):
                try:
                    n = await asyncio.shield(answer)
                except asyncio.CancelledError:
                    if not answer.done():
                        self._stray = answer
                        if not self._seekable:
                            queue.cancel(answer)
                    raise
            else:
                n = answer
            done += n
            if where is not None:
                self._place = where + n
        self._locate()

    async def _flush(self) -> None:
        await self._settle()
        while self._behind:
            # Out of the buffer before it is handed over: data that was handed over once is
            # not written a second time after a failure.
            data, self._behind = self._behind, bytearray()
            await self._put(data)

    async def write(self, data: Any) -> int:
        """Write all of data.

        Small pieces are collected and handed to the kernel by flush, close, the next read,
        or when they fill the buffer.

        Args:
            data: bytes, or any object with a contiguous buffer.

        Returns:
            The number of bytes.

        Raises:
            TypeError: data is a str, or no buffer.
            ValueError: the file is closed.
            io.UnsupportedOperation: it is not open for writing.
            OSError: this write, or one that it was collected with, failed.
        """
        self._check(write=True)
        if isinstance(data, str):
            raise TypeError("a binary file takes bytes, not str; open it in a text mode")
        view = memoryview(data)
        size = view.nbytes
        async with self._lock:
            self._check()
            if self._stray is not None:
                await self._settle()
            if self._given < len(self._ahead):
                # Where the write belongs depends on what was read ahead.
                await self._put(b"")
            if size + len(self._behind) <= self._size:
                self._behind += view.cast("B") if view.contiguous else view.tobytes()
                return size
            await self._flush()
            if size < self._size:
                self._behind += view.cast("B") if view.contiguous else view.tobytes()
            else:
                await self._put(view if view.contiguous else view.tobytes())
            return size

    async def writelines(self, lines: Iterable[Any]) -> None:
        """Write each of an iterable of buffers; no newlines are added."""
        for line in lines:
            await self.write(line)

    async def pwrite(self, data: Any, offset: int) -> int:
        """Write at an offset, whatever the position; does not change it.

        Calls of this kind go on side by side.

        Returns:
            The number of bytes written, which can be fewer than were given.

        Raises:
            ValueError: offset is negative, or the file is closed.
            io.UnsupportedOperation: it is a pipe or terminal, or not open for writing; or it
                is open for appending, where Linux ignores the offset.
        """
        self._check(write=True, seek=True)
        if self._append:
            raise io.UnsupportedOperation("a file in append mode is written at its end only")
        if self._behind or self._stray is not None:
            await self.flush()
        queue = queue_here()
        return await result_of(queue, queue.write(self._fd, data, offset))

    async def flush(self) -> None:
        """Hand to the kernel what has been collected; see fsync for the disk."""
        self._check()
        async with self._lock:
            self._check()
            await self._flush()

    async def fsync(self, *, data_only: bool = False) -> None:
        """Flush, and wait until the file is on the disk.

        Args:
            data_only: leave out what is not needed to read the data back (times), as
                fdatasync(2) does.
        """
        await self.flush()
        queue = queue_here()
        fd = self.fileno()
        await result_of(queue, queue.fdatasync(fd) if data_only else queue.fsync(fd))

    async def truncate(self, size: int | None = None) -> int:
        """Set the file's size.

        Args:
            size: in bytes; None for the position.

        Returns:
            The size. The position stays where it is.
        """
        self._check(write=True, seek=True)
        async with self._lock:
            self._check()
            await self._flush()
            if size is None:
                size = self._tell()
            queue = queue_here()
            await result_of(queue, queue.truncate(self._fd, size))
            # What was read ahead may be gone.
            self._place = self._tell()
            self._ahead, self._given = b"", 0
            return size

    # ---- the position

    def _tell(self) -> int:
        assert self._place is not None
        return self._place - (len(self._ahead) - self._given) + len(self._behind)

    def tell(self) -> int:
        """Return the position in bytes from the start.

        Raises:
            io.UnsupportedOperation: it is a pipe or terminal.
        """
        self._check(seek=True)
        return self._tell()

    async def seek(self, offset: int, whence: int = os.SEEK_SET) -> int:
        """Set the position.

        Args:
            offset: bytes from where `whence` says.
            whence: os.SEEK_SET (the start), SEEK_CUR (the position) or SEEK_END.

        Returns:
            The new position.

        Raises:
            ValueError: the position would be negative, or whence is something else.
            io.UnsupportedOperation: it is a pipe or terminal.
        """
        self._check(seek=True)
        async with self._lock:
            self._check()
            await self._flush()
            if whence == os.SEEK_SET:
                place = offset
            elif whence == os.SEEK_CUR:
                place = self._tell() + offset
            elif whence == os.SEEK_END:
                place = os.lseek(self._fd, 0, os.SEEK_END) + offset
            else:
                raise ValueError(f"whence must be 0, 1 or 2, not {whence!r}")
            if place < 0:
                raise ValueError(f"the position cannot be negative: {place}")
            assert self._place is not None
            start = self._place - len(self._ahead)
            if start <= place <= self._place:
                self._given = place - start
            else:
                self._ahead, self._given = b"", 0
                self._place = place
            return place

    # ---- the end

    async def close(self) -> None:
        """Flush and close; does nothing when it is closed.

        The descriptor is closed even when flushing fails.
        """
        async with self._lock:
            if self._fd < 0:
                return
            try:
                await self._flush()
            finally:
                fd, self._fd = self._fd, -1
                queue = queue_here()
                answer = queue.close_fd(fd)
                if isinstance(answer, asyncio.Future):
                    await asyncio.shield(answer)

    def __del__(self) -> None:
        fd = getattr(self, "_fd", -1)
        if fd < 0:
            return
        warnings.warn(f"unclosed file {self!r}", ResourceWarning, stacklevel=2, source=self)
        # As the built-in files do: what was written is not lost.
        with contextlib.suppress(OSError, ValueError):
            if self._behind:
                if self._append or self._place is None:
                    os.write(fd, self._behind)
                else:
                    os.pwrite(fd, self._behind, self._place)
        self._fd = -1
        with contextlib.suppress(OSError):
            os.close(fd)
