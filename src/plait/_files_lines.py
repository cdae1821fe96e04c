"""What files of bytes and of text have in common: lines, and the with-block."""

from __future__ import annotations

from abc import ABC, abstractmethod
from types import TracebackType
from typing import TYPE_CHECKING, AnyStr, Generic

if TYPE_CHECKING:
    from typing import Self


class Lines(ABC, Generic[AnyStr]):
    """A file that is read by lines."""

    @abstractmethod
    def _check(self, *, read: bool = False) -> None:
        """Raise ValueError when it is closed, or is to be read and cannot be."""

    @abstractmethod
    async def readline(self, limit: int = -1) -> AnyStr:
        """Read until the end of a line, or `limit` bytes or characters; empty at the end."""

    @abstractmethod
    async def close(self) -> None:
        """Write what is held back, and close it."""

    async def readlines(self, hint: int = -1) -> list[AnyStr]:
        """Read all lines, or lines until they hold `hint` bytes, or characters of text."""
        lines: list[AnyStr] = []
        size = 0
        async for line in self:
            lines.append(line)
            size += len(line)
            if 0 < hint <= size:
                break
        return lines

    def __aiter__(self) -> Self:
        self._check(read=True)
        return self

    async def __anext__(self) -> AnyStr:
        line = await self.readline()
        if not line:
            raise StopAsyncIteration
        return line

    async def __aenter__(self) -> Self:
        self._check()
        return self

    async def __aexit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        await self.close()
