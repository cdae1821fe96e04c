"""Files whose reads and writes do not block the event loop.

The operations run in the kernel's io_uring, or in a few threads of C where there is none.
What the page cache holds is answered at once, without either.
"""

from __future__ import annotations

import codecs
import os
import stat
from collections.abc import Generator
from types import TracebackType
from typing import Any, Generic, Literal, TypeVar, overload

from ._files_binary import BUFFER_SIZE, BinaryFile
from ._files_queue import queue_here, result_of
from ._files_text import TextFile

__all__ = ["BinaryFile", "TextFile", "open_file"]

F = TypeVar("F", BinaryFile, TextFile)


def _flags(mode: str) -> tuple[int, bool]:
    """The flags of open(2) for a mode of open(), and whether it is a text mode."""
    if not isinstance(mode, str):
        raise TypeError(f"mode must be a string, not {mode!r}")
    letters = set(mode)
    kinds = letters & set("rwax")
    if (
        letters - set("rwaxbt+")
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
        TypeError: mode is no string, or path neither a path nor a descriptor.
        LookupError: there is no such encoding, or no such way as errors names.
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
        queue = queue_here()
        fd = await result_of(queue, queue.open(os.fsencode(path), flags, permissions, path))
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
