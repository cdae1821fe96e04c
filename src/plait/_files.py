"""Files whose reads and writes do not block the event loop.

The operations run in the kernel's io_uring, or in a few threads of C where there is none.
What the page cache holds is answered at once, without either.
"""

from __future__ import annotations

import asyncio
import bisect
import codecs
import contextlib
import io
import os
import stat
import sys
import warnings
from collections.abc import AsyncIterator, Generator, Iterable, Iterator
from types import TracebackType
from typing import Any, Generic, Literal, TypeVar, overload

from . import _core

__all__ = ["BinaryFile", "TextFile", "open_file"]

BUFFER_SIZE = 1 << 16
"""Bytes read ahead, and written behind, by default."""

_READ_ALL_MIN = 1 << 16
_READ_ALL_MAX = 1 << 26

T = TypeVar("T")
F = TypeVar("F", "BinaryFile", "TextFile")


# ---- one queue per loop ------------------------------------------------------------------


def engine() -> str | None:
    """The engine that ``PLAIT_FILES`` asks for, or None."""
    return os.environ.get("PLAIT_FILES") or None


def queue_of(loop: asyncio.AbstractEventLoop) -> _core.FileQueue:
    """The loop's queue of file operations, made on first use."""
    found: _core.FileQueue | None = getattr(loop, "_plait_files", None)
    if found is not None:
        return found
    queue = _core.FileQueue(loop, engine() or "auto")
    loop.add_reader(queue.fileno(), queue.collect)
    loop._plait_files = queue  # type: ignore[attr-defined]
    return queue


def _queue() -> _core.FileQueue:
    return queue_of(asyncio.get_running_loop())


async def _result(queue: _core.FileQueue, answer: T | asyncio.Future[T]) -> T:
    """The end of an operation; when the wait is cancelled, so is the operation."""
    if not isinstance(answer, asyncio.Future):
        return answer
    try:
        return await answer
    except asyncio.CancelledError:
        queue.cancel(answer)
        raise


# ---- opening -----------------------------------------------------------------------------


def _flags(mode: str) -> tuple[int, bool]:
    """The flags of open(2) for a mode of open(), and whether it is a text mode."""
    letters = set(mode)
    kinds = letters & set("rwax")
    if (
        not isinstance(mode, str)
        or letters - set("rwaxbt+")
        or len(letters) != len(mode)
        or len(kinds) != 1
        or {"b", "t"} <= letters
    ):
        raise ValueError(
            f"mode must be one of 'r', 'w', 'a', 'x', with '+' and 'b' or 't' at most, not {mode!r}"
        )
    kind = kinds.pop()
    one_way = os.O_RDONLY if kind == "r" else os.O_WRONLY
    flags = (os.O_RDWR if "+" in letters else one_way) | {
        "r": 0,
        "w": os.O_CREAT | os.O_TRUNC,
        "a": os.O_CREAT | os.O_APPEND,
        "x": os.O_CREAT | os.O_EXCL,
    }[kind]
    return flags, "b" not in letters


class _Opening(Generic[F]):
    """What open_file returns: to be awaited, or used by ``async with``."""

    __slots__ = ("_file", "_open")

    def __init__(self, opening: Any) -> None:
        self._open = opening
        self._file: F | None = None

    def __await__(self) -> Generator[Any, Any, F]:
        return self._open().__await__()  # type: ignore[no-any-return]

    async def __aenter__(self) -> F:
        self._file = await self._open()
        return self._file

    async def __aexit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        if self._file is not None:
            await self._file.close()


_Path = str | bytes | os.PathLike[str] | os.PathLike[bytes] | int


@overload
def open_file(
    path: _Path,
    mode: Literal["rb", "r+b", "rb+", "wb", "w+b", "wb+", "ab", "a+b", "ab+", "xb", "x+b", "xb+"],
    *,
    buffering: int = ...,
    permissions: int = ...,
) -> _Opening[BinaryFile]: ...


@overload
def open_file(
    path: _Path,
    mode: Literal["r", "rt", "r+", "w", "wt", "w+", "a", "at", "a+", "x", "xt", "x+"] = ...,
    *,
    buffering: int = ...,
    encoding: str | None = ...,
    errors: str | None = ...,
    newline: str | None = ...,
    permissions: int = ...,
) -> _Opening[TextFile]: ...


@overload
def open_file(
    path: _Path,
    mode: str,
    *,
    buffering: int = ...,
    encoding: str | None = ...,
    errors: str | None = ...,
    newline: str | None = ...,
    permissions: int = ...,
) -> _Opening[Any]: ...


def open_file(
    path: _Path,
    mode: str = "r",
    *,
    buffering: int = -1,
    encoding: str | None = None,
    errors: str | None = None,
    newline: str | None = None,
    permissions: int = 0o666,
) -> _Opening[Any]:
    """Open a file whose methods are coroutines and do not block the event loop.

    Args:
        path: the file's path, or a descriptor that the file takes over.
        mode: as of the built-in open().
        buffering: bytes to read ahead and to write behind; 0 for none (binary modes only),
            -1 for 64 KiB.
        encoding: of a text file; None for UTF-8.
        errors: what to do about bytes that are not valid, as of open().
        newline: as of open().
        permissions: of a file that is made, less the process's umask.

    Returns:
        An object to be awaited for the file, or to be used by ``async with``, which closes it.

    Raises:
        ValueError: mode, buffering, encoding or newline cannot be.
        OSError: when awaited, as of open().

    Works on any asyncio event loop that can watch a descriptor.

    Example:
        >>> async def copy(source, target):
        ...     async with plait.open_file(source, "rb") as a, plait.open_file(target, "wb") as b:
        ...         while block := await a.read(1 << 20):
        ...             await b.write(block)
    """
    flags, text = _flags(mode)
    if isinstance(buffering, bool) or not isinstance(buffering, int) or buffering < -1:
        raise ValueError(f"buffering must be -1 or a number of bytes, not {buffering!r}")
    if text:
        if buffering == 0:
            raise ValueError("a text file cannot be unbuffered: buffering=0 needs a binary mode")
        if newline not in (None, "", "\n", "\r", "\r\n"):
            raise ValueError(f"newline must be None, '', '\\n', '\\r' or '\\r\\n', not {newline!r}")
        codecs.lookup(encoding or "utf-8")
        codecs.lookup_error(errors or "strict")
    else:
        for name, value in (("encoding", encoding), ("errors", errors), ("newline", newline)):
            if value is not None:
                raise ValueError(f"a binary file takes no {name}, got {value!r}")
    if not isinstance(path, int):
        path = os.fspath(path)
    size = BUFFER_SIZE if buffering == -1 else buffering

    async def opening() -> Any:
        file = await _open(path, mode, flags, size, permissions)
        if not text:
            return file
        return TextFile(file, encoding or "utf-8", errors or "strict", newline)

    return _Opening(opening)


async def _open(
    path: str | bytes | int, mode: str, flags: int, size: int, permissions: int
) -> BinaryFile:
    if isinstance(path, int):
        fd = path
    else:
        queue = _queue()
        fd = await _result(queue, queue.open(os.fsencode(path), flags, permissions, path))
    try:
        kind = os.fstat(fd).st_mode
        if stat.S_ISDIR(kind):
            raise IsADirectoryError(21, os.strerror(21), path)
        seekable = stat.S_ISREG(kind) or stat.S_ISBLK(kind)
        return BinaryFile(fd, path, mode, flags, size, seekable)
    except BaseException:
        if not isinstance(path, int):
            os.close(fd)
        raise


# ---- bytes -------------------------------------------------------------------------------


class BinaryFile:
    """A file of bytes; made by open_file.

    Several tasks may use it at once: calls that depend on the position, and close, take
    turns. A cancelled read has not moved the position. A cancelled write may have reached
    the file wholly, in part or not at all; the next call waits for its end.
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
        queue = _queue()
        data = await _result(queue, queue.read(self._fd, n, self._place))
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
                queue = _queue()
                while done < len(view):
                    n = await _result(queue, queue.readinto(self._fd, view[done:], self._place))
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

    async def readlines(self, hint: int = -1) -> list[bytes]:
        """Read all lines, or lines until they hold `hint` bytes."""
        lines: list[bytes] = []
        size = 0
        async for line in self:
            lines.append(line)
            size += len(line)
            if 0 < hint <= size:
                break
        return lines

    def __aiter__(self) -> AsyncIterator[bytes]:
        self._check(read=True)
        return self

    async def __anext__(self) -> bytes:
        line = await self.readline()
        if not line:
            raise StopAsyncIteration
        return line

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
        queue = _queue()
        return await _result(queue, queue.read(self._fd, n, offset))

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
        queue = _queue()
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
        queue = _queue()
        return await _result(queue, queue.write(self._fd, data, offset))

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
        queue = _queue()
        fd = self.fileno()
        await _result(queue, queue.fdatasync(fd) if data_only else queue.fsync(fd))

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
            queue = _queue()
            await _result(queue, queue.truncate(self._fd, size))
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
                queue = _queue()
                answer = queue.close_fd(fd)
                if isinstance(answer, asyncio.Future):
                    await asyncio.shield(answer)

    async def __aenter__(self) -> BinaryFile:
        self._check()
        return self

    async def __aexit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        await self.close()

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


# ---- text --------------------------------------------------------------------------------


class TextFile:
    """A file of text; made by open_file. Sizes are in characters, positions opaque numbers.

    As with BinaryFile, tasks take turns.
    """

    def __init__(self, file: BinaryFile, encoding: str, errors: str, newline: str | None) -> None:
        self._file = file
        self.encoding = encoding
        self.errors = errors
        self._newline = newline
        self._encoder = codecs.getincrementalencoder(encoding)(errors)
        if (
            file.seekable()
            and file.writable()
            and (file.tell() > 0 or (file._append and os.fstat(file.fileno()).st_size > 0))
        ):
            self._skip_mark()
        self._decoder = self._new_decoder()
        # The bytes decoded last, where they begin, the decoder's state before them, and what
        # they decoded to, given out up to `_given`.
        self._chunk = b""
        self._start = 0
        self._state: tuple[bytes, int] = (b"", 0)
        self._text = ""
        self._given = 0
        self._lock = asyncio.Lock()

    def _skip_mark(self) -> None:
        """The mark that some encodings begin with belongs to the start of a file only."""
        self._encoder.setstate(0)  # means "after the mark" to every encoder

    def _new_decoder(self) -> codecs.IncrementalDecoder:
        decoder: Any = codecs.getincrementaldecoder(self.encoding)(self.errors)
        if self._newline in (None, ""):
            # Never splits "\r\n", whatever the chunks are.
            decoder = io.IncrementalNewlineDecoder(decoder, self._newline is None)
        return decoder  # type: ignore[no-any-return]

    @property
    def name(self) -> str | bytes | int:
        """What was opened."""
        return self._file.name

    @property
    def mode(self) -> str:
        """The mode that it was opened with."""
        return self._file.mode

    @property
    def buffer(self) -> BinaryFile:
        """The file of bytes behind it."""
        return self._file

    @property
    def closed(self) -> bool:
        """Whether close was called."""
        return self._file.closed

    def fileno(self) -> int:
        """Return the descriptor, or raise ValueError."""
        return self._file.fileno()

    def readable(self) -> bool:
        """Whether the mode allows reading."""
        return self._file.readable()

    def writable(self) -> bool:
        """Whether the mode allows writing."""
        return self._file.writable()

    def seekable(self) -> bool:
        """Whether it has a position that can be set."""
        return self._file.seekable()

    def isatty(self) -> bool:
        """Whether it is a terminal."""
        return self._file.isatty()

    def __repr__(self) -> str:
        state = "closed" if self.closed else f"fd {self.fileno()}"
        return f"<TextFile {self.name!r} mode={self.mode!r} encoding={self.encoding!r} {state}>"

    # ---- reading

    async def _next(self, history: list[tuple[bytes, str]]) -> bool:
        """Decode the next chunk, when this one is given out; False at the end of the file."""
        file = self._file
        start = file.tell() if file.seekable() else 0
        state = self._decoder.getstate()
        data = await file.read1()
        text = self._decoder.decode(data, not data)
        while self._newline == "\r\n" and text.endswith("\r"):
            # An end of line is in one chunk, so that it is found.
            more = await file.read1()
            data += more
            text += self._decoder.decode(more, not more)
            if not more:
                break
        self._start, self._state = start, state
        self._chunk, self._text, self._given = data, text, 0
        history.append((data, text))
        return bool(data or text)

    def _take(self, n: int) -> str:
        text = self._text[self._given : self._given + n]
        self._given += len(text)
        return text

    @contextlib.contextmanager
    def _all_or_nothing(self) -> Iterator[list[tuple[bytes, str]]]:
        """A read that fails or is cancelled on its way has read nothing."""
        saved = self._start, self._state, self._chunk, self._text, self._given
        history: list[tuple[bytes, str]] = []
        try:
            yield history
        except BaseException:
            self._start, self._state, chunk, text, self._given = saved
            self._chunk = b"".join([chunk, *(data for data, _ in history)])
            self._text = "".join([text, *(part for _, part in history)])
            raise

    async def read(self, n: int = -1) -> str:
        """Read n characters; fewer only at the end of the file.

        Args:
            n: how many; negative or None for all up to the end.

        Raises:
            ValueError: the file is closed.
            io.UnsupportedOperation: it is not open for reading.
            UnicodeError: the bytes do not decode.
            OSError: the read failed.
        """
        self._file._check(read=True)
        async with self._lock:
            with self._all_or_nothing() as history:
                missing = sys.maxsize if n is None or n < 0 else n
                parts = []
                while True:
                    part = self._take(missing)
                    parts.append(part)
                    missing -= len(part)
                    if missing == 0 or not await self._next(history):
                        return "".join(parts)

    def _line_end(self) -> int:
        """Where the first line of what is left of the chunk ends; 0 when it does not."""
        if self._newline == "":
            ends = [p for mark in "\n\r" if (p := self._text.find(mark, self._given)) >= 0]
            if not ends:
                return 0
            end = min(ends)
            return end + (2 if self._text.startswith("\r\n", end) else 1)
        mark = self._newline or "\n"
        place = self._text.find(mark, self._given)
        return place + len(mark) if place >= 0 else 0

    async def readline(self, limit: int = -1) -> str:
        """Read up to and with the next end of line, as `newline` defines it.

        Args:
            limit: characters at most; negative for no limit.
        """
        self._file._check(read=True)
        async with self._lock:
            with self._all_or_nothing() as history:
                missing = sys.maxsize if limit < 0 else limit
                parts = []
                while True:
                    end = self._line_end()
                    part = self._take(min((end or len(self._text)) - self._given, missing))
                    parts.append(part)
                    missing -= len(part)
                    if (end and self._given == end) or missing == 0:
                        break
                    if not await self._next(history):
                        break
                return parts[0] if len(parts) == 1 else "".join(parts)

    async def readlines(self, hint: int = -1) -> list[str]:
        """Read all lines, or lines until they hold `hint` characters."""
        lines: list[str] = []
        size = 0
        async for line in self:
            lines.append(line)
            size += len(line)
            if 0 < hint <= size:
                break
        return lines

    def __aiter__(self) -> AsyncIterator[str]:
        self._file._check(read=True)
        return self

    async def __anext__(self) -> str:
        line = await self.readline()
        if not line:
            raise StopAsyncIteration
        return line

    # ---- writing

    async def write(self, text: str) -> int:
        """Write text; see BinaryFile.write for when it reaches the kernel.

        Returns:
            The number of characters.

        Raises:
            TypeError: text is no str.
            UnicodeError: it cannot be encoded; nothing was written.
        """
        self._file._check(write=True)
        if not isinstance(text, str):
            raise TypeError(f"a text file takes str, not {type(text).__name__}")
        async with self._lock:
            written = text
            if self._newline is None and os.linesep != "\n":
                written = text.replace("\n", os.linesep)
            elif self._newline in ("\r", "\r\n"):
                written = text.replace("\n", self._newline or "")
            if self._file.seekable():
                # The position becomes that of the text which was given out.
                place, _, _, skip = self._place()
                if skip:
                    raise OSError(
                        "cannot write here: this position is inside of what some bytes decode to"
                    )
                if place > 0 and not self._file._append:
                    self._skip_mark()
                if self._chunk or self._text:
                    await self._file.seek(place)
            self._forget()
            await self._file.write(self._encoder.encode(written))
            return len(text)

    def _forget(self) -> None:
        self._text, self._given, self._chunk = "", 0, b""
        self._decoder = self._new_decoder()

    async def writelines(self, lines: Iterable[str]) -> None:
        """Write each of an iterable of strings; no newlines are added."""
        for line in lines:
            await self.write(line)

    async def flush(self) -> None:
        """Hand to the kernel what has been collected."""
        await self._file.flush()

    async def fsync(self, *, data_only: bool = False) -> None:
        """As BinaryFile.fsync."""
        await self._file.fsync(data_only=data_only)

    async def truncate(self, size: int | None = None) -> int:
        """Set the file's size in bytes; None for the position."""
        async with self._lock:
            if size is None and self._file.seekable():
                size = self._place()[0]
            return await self._file.truncate(size)

    # ---- the position

    def _place(self) -> tuple[int, int, int, int]:
        """Where the first character is that was not given out.

        Returns:
            A position in bytes; the decoder's flag there; and, where no position is between
            two characters, how many bytes to decode from there and how many characters of
            that to skip. (The built-in text files keep the same facts in their numbers.)
        """
        if not self._chunk:
            waiting, flag = self._decoder.getstate()
            return self._file.tell() - len(waiting), flag, 0, 0
        decoder = self._new_decoder()

        def decode(n: int) -> int:
            decoder.setstate(self._state)
            return len(decoder.decode(self._chunk[:n]))

        # The fewest bytes that decode to what was given out, then back to where the decoder
        # holds nothing.
        n = bisect.bisect_left(range(len(self._chunk)), self._given, key=decode)
        while n > 0:
            given = decode(n)
            waiting, flag = decoder.getstate()
            held = isinstance(decoder, io.IncrementalNewlineDecoder) and flag & 1
            if given <= self._given and not waiting and not held:
                break
            n -= 1
        else:
            given = 0
            waiting, flag = self._state
        skip = self._given - given
        return self._start + n - len(waiting), flag, skip and len(self._chunk) - n, skip

    async def tell(self) -> int:
        """Return the position, as a number for seek.

        Raises:
            io.UnsupportedOperation: it is a pipe or terminal.
        """
        self._file._check(seek=True)
        async with self._lock:
            return self._number()

    def _number(self) -> int:
        place, flag, feed, skip = self._place()
        if place == 0 and skip == 0:
            return 0  # where every decoder begins afresh
        return place | flag << 64 | feed << 128 | skip << 192

    async def seek(self, place: int, whence: int = os.SEEK_SET) -> int:
        """Set the position: to the start (0), to a number from tell, or to the end.

        Args:
            place: a number from tell; 0 with os.SEEK_END or SEEK_CUR.
            whence: os.SEEK_SET, SEEK_CUR or SEEK_END.

        Raises:
            io.UnsupportedOperation: it is a pipe or terminal, or place is not 0 where it
                has to be.
        """
        self._file._check(seek=True)
        if whence != os.SEEK_SET and place != 0:
            raise io.UnsupportedOperation(
                f"a text file is moved from its start only: got {place} with whence={whence}"
            )
        async with self._lock:
            if whence == os.SEEK_CUR:
                return self._number()
            part = (1 << 64) - 1
            flag, feed, skip = (place >> shift & part for shift in (64, 128, 192))
            result = await self._file.seek(place & part if place > 0 else place, whence)
            place = place or result
            self._forget()
            if place != 0:
                self._decoder.setstate((b"", flag))
            if feed:
                self._start, self._state = result, self._decoder.getstate()
                self._chunk = await self._file.read(feed)
                self._text = self._decoder.decode(self._chunk)
                self._given = min(skip, len(self._text))
            if result == 0:
                self._encoder.reset()
            else:
                self._skip_mark()
            return place

    # ---- the end

    async def close(self) -> None:
        """Flush and close; does nothing when it is closed."""
        await self._file.close()

    async def __aenter__(self) -> TextFile:
        self._file._check()
        return self

    async def __aexit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        await self.close()
