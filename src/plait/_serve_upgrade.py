"""The supervisor's successor: the same command again, which inherits the listening sockets."""

from __future__ import annotations

import os
import select
import subprocess
import sys
from collections.abc import Mapping, Sequence

__all__ = ["Successor", "at_a_terminal", "birth_of", "process_ended", "starting_place"]


def process_ended(pidfd: int) -> bool:
    """Whether the process is gone that a descriptor is for."""
    poll = select.poll()
    poll.register(pidfd, select.POLLIN)
    return bool(poll.poll(0))


def birth_of(pid: int) -> int | None:
    """When a process was started, in the system's ticks since its own start.

    None: there is none, or it is not to be seen (/proc mounted with hidepid, or not at all).

    With it a number means one process, although numbers are used again.
    """
    try:
        with open(f"/proc/{pid}/stat", "rb") as stat:
            # The name may hold anything, brackets and blanks, too.
            return int(stat.read().rpartition(b")")[2].split()[19])
    except (OSError, IndexError, ValueError):
        return None


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

    def ended(self) -> bool:
        """Whether it is gone, and can be buried."""
        return process_ended(self.pidfd)

    def bury(self) -> int:
        """Take note of its end: the exit code, or the negative number of a signal."""
        os.close(self.pidfd)
        return self._process.wait()

    def let_go(self) -> None:
        """Leave it alone: it goes on when this process has ended."""
        os.close(self.pidfd)
        self._process.returncode = 0  # nobody here waits for it any more
