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
        self._mine = f"{os.getpid()}\n"

    def write(self) -> None:
        """Have it name this process.

        Raises:
            OSError: it cannot be written.
        """
        fresh = f"{self._path}.{os.getpid()}"
        try:
            with open(fresh, "w", encoding="ascii") as file:
                file.write(self._mine)
            os.replace(fresh, self._path)
        except OSError:
            with contextlib.suppress(OSError):
                os.unlink(fresh)
            raise

    def remove(self) -> None:
        """Remove it, if it names this process still and not the one that follows."""
        with contextlib.suppress(OSError, UnicodeDecodeError):
            with open(self._path, encoding="ascii") as file:
                named = file.read(len(self._mine) + 1)
            if named == self._mine:
                os.unlink(self._path)
