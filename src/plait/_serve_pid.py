"""The file that names the supervisor of a server by its process id, for scripts."""

from __future__ import annotations

import contextlib
import errno
import fcntl
import logging
import os
import stat

__all__ = ["PidFile"]

log = logging.getLogger("plait.serve")


class PidFile:
    """A file with this process's number, and a line's end.

    Whoever reads it finds a whole number at any time: the file is replaced, not written to. One
    that is there already is replaced as well, unless the process lives that has written it. That
    is not asked by its number, which may be another process's by now, or mean nothing in this
    container: who writes such a file holds a lock on it (flock), which the kernel takes away with
    the process, and with the children that have not called let_go().

    Args:
        path: where.
    """

    def __init__(self, path: str) -> None:
        self._path = os.path.abspath(path)  # the directory may be changed later
        self._beside = f"{self._path}.{os.getpid()}"
        self._mine = f"{os.getpid()}\n"
        self._held: int | None = None  # the file, open: the lock ends when it is closed

    def write(self, instead_of: int | None = None) -> None:
        """Have it name this process.

        Args:
            instead_of: a process whose file may be replaced although it lives.

        Raises:
            FileExistsError: it names another process, which lives, or is no regular file.
            OSError: it cannot be written.
        """
        if self._is_held():
            return
        try:
            with contextlib.suppress(FileNotFoundError):
                os.unlink(self._beside)  # of a killed one with this number, or a link: not followed
            fd = os.open(self._beside, os.O_RDWR | os.O_CREAT | os.O_EXCL, 0o666)
            try:
                os.write(fd, self._mine.encode())
                try:
                    fcntl.flock(fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
                except OSError as error:
                    log.warning(
                        "%s cannot be locked (%s): another server with that file is not refused",
                        self._path, error.strerror,
                    )  # fmt: skip
                while not self._put(instead_of):
                    pass  # another one has come in between
            except BaseException:
                os.close(fd)
                raise
        except OSError as error:
            with contextlib.suppress(OSError):
                os.unlink(self._beside)
            raise OSError(error.errno, error.strerror, self._path) from None
        self.let_go()
        self._held = fd

    def remove(self) -> None:
        """Remove it, if it names this process still and not the one that follows."""
        try:
            with contextlib.suppress(OSError):
                if self._held is None or not self._is_mine(self._path):
                    return
                # The other one may write its own in this moment: so it is looked at once more,
                # aside.
                os.rename(self._path, self._beside)
                if self._is_mine(self._beside):
                    os.unlink(self._beside)
                else:
                    os.rename(self._beside, self._path)
        finally:
            self.let_go()

    def let_go(self) -> None:
        """Have nothing to do with it any more; the file stays, and other processes keep it."""
        if self._held is not None:
            os.close(self._held)
            self._held = None

    def _put(self, instead_of: int | None) -> bool:
        """Give the new file its name; False when what lay there has just been replaced."""
        try:
            os.link(self._beside, self._path, follow_symlinks=False)
        except FileExistsError:
            pass
        except OSError:  # a file system without links
            if not os.path.lexists(self._path):
                os.replace(self._beside, self._path)
                return True
        else:
            os.unlink(self._beside)
            return True
        try:
            kind = os.lstat(self._path).st_mode
            if not stat.S_ISREG(kind) and not stat.S_ISLNK(kind):  # such as /dev/null
                raise FileExistsError(errno.EEXIST, "there is something that is no file")
            old = _open(self._path)
        except FileNotFoundError:
            return False
        if old is None:
            os.replace(self._beside, self._path)
            return True
        try:
            # Held until it is replaced: of several that find it left behind, one gets it.
            if not _lock(old):
                named = os.pread(old, 32, 0).strip().decode("ascii", "replace")
                if named != str(instead_of):
                    raise FileExistsError(
                        errno.EEXIST, f"another server has this file: process {named} lives"
                    )
            try:
                if not os.path.samestat(os.fstat(old), os.lstat(self._path)):
                    return False
            except FileNotFoundError:
                return False
            os.replace(self._beside, self._path)
            return True
        finally:
            os.close(old)

    def _is_held(self) -> bool:
        if self._held is None:
            return False
        try:
            return os.path.samestat(os.fstat(self._held), os.lstat(self._path))
        except FileNotFoundError:
            return False

    def _is_mine(self, path: str) -> bool:
        with open(path, "rb") as file:
            return file.read(len(self._mine) + 1) == self._mine.encode()


def _open(path: str) -> int | None:
    """Open a file to lock it; None when no server can have written it: it is a link."""
    # NFS gives a lock to whoever may write only.
    for access in (os.O_RDWR, os.O_RDONLY):
        try:
            return os.open(path, access | os.O_NOFOLLOW | os.O_NONBLOCK)
        except PermissionError:
            if access == os.O_RDONLY:
                raise
        except OSError as error:
            if error.errno != errno.ELOOP:
                raise
            break
    return None


def _lock(fd: int) -> bool:
    """Lock a file; False when another process has it locked."""
    try:
        fcntl.flock(fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        return False
    except OSError:
        pass  # there are no locks here, which write() has told
    return True
