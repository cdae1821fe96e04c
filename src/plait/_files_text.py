"""Files of text, on files of bytes: decoding in chunks, lines, and positions within a chunk."""

from __future__ import annotations

import asyncio
import bisect
import codecs
import contextlib
import io
import os
import sys
from collections.abc import Iterable, Iterator
from typing import Any

from ._files_binary import BinaryFile
from ._files_lines import Lines


class TextFile(Lines[str]):
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

    def _check(self, *, read: bool = False) -> None:
        self._file._check(read=read)

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
