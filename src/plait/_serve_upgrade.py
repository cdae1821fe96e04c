"""The supervisor's successor: the same command again, which inherits the listening sockets."""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Mapping, Sequence

__all__ = ["Successor", "at_a_terminal", "starting_place"]


def starting_place() -> str | None:
    """Where the program was started, by the name that its user gave it.

    A symbolic link in that name may lead elsewhere when the successor starts: to the new release.
    """
    try:
        here = os.getcwd()
    except FileNotFoundError:
        return None
    named = os.environ.get("PWD", "")
    try:
        return named if os.path.samefile(named, here) else here
    except OSError:
        return here


def at_a_terminal() -> bool:
    """Whether a terminal controls this process: it sends SIGWINCH whenever it is resized."""
    try:
        os.close(os.open("/dev/tty", os.O_RDWR | os.O_NOCTTY))
    except OSError:
        return False
    return True


class Successor:
    """A new supervisor beside this one.

    Args:
        place: the directory to start it in; None for the one of now.
        variables: for its environment.
        fds: what it inherits.

    Raises:
        OSError: it could not be started.
    """

    def __init__(self, place: str | None, variables: Mapping[str, str], fds: Sequence[int]) -> None:
        self._process = subprocess.Popen(
            [sys.executable, *sys.orig_argv[1:]],
            cwd=place,
            env={**os.environ, **variables},
            pass_fds=fds,
        )
        self.pid = self._process.pid
        self.pidfd = -1
        try:
            self.pidfd = os.pidfd_open(self.pid)
        except OSError:
            self._process.kill()
            self._process.wait()
            raise

    def bury(self) -> int:
        """Take note of its end: the exit code, or the negative number of a signal."""
        os.close(self.pidfd)
        return self._process.wait()

    def let_go(self) -> None:
        """Leave it alone: it goes on when this process has ended."""
        os.close(self.pidfd)
        self._process.returncode = 0  # nobody here waits for it any more
