"""The file that names the supervisor of a server by its process id, for scripts."""

from __future__ import annotations

import contextlib
import os

__all__ = ["PidFile"]


class PidFile:
    """A file with this process's number, and a line's end.

    Whoever reads it finds a whole number at any time: the file is replaced, not written to. One
    that is there already, of a server that was killed or of the one that is followed, is replaced
    as well.

    Args:
        path: where.
    """

    def __init__(self, path: str) -> None:
        self._path = os.path.abspath(path)  # the directory may be changed later
        self._beside = f"{self._path}.{os.getpid()}"
        self._mine = f"{os.getpid()}\n"

    def write(self) -> None:
        """Have it name this process.

        Raises:
            OSError: it cannot be written.
        """
        try:
            with contextlib.suppress(FileNotFoundError):
                os.unlink(self._beside)  # of a killed one with this number, or a link: not followed
            with open(self._beside, "x", encoding="ascii") as file:
                file.write(self._mine)
            os.replace(self._beside, self._path)
        except OSError as error:
            with contextlib.suppress(OSError):
                os.unlink(self._beside)
            raise OSError(error.errno, error.strerror, self._path) from None

    def remove(self) -> None:
        """Remove it, if it names this process still and not the one that follows."""
        with contextlib.suppress(OSError):
            if not self._is_mine(self._path):
                return
            # The other one may write its own in this moment: so it is looked at once more, aside.
            os.rename(self._path, self._beside)
            if self._is_mine(self._beside):
                os.unlink(self._beside)
            else:
                os.rename(self._beside, self._path)

    def _is_mine(self, path: str) -> bool:
        with open(path, "rb") as file:
            return file.read(len(self._mine) + 1) == self._mine.encode()
