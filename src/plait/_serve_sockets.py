"""Where plait.serve listens: sockets of its own, of the caller's, of systemd's, and inherited.

A supervisor that is to be replaced by a new program hands its sockets over by number, in an
environment variable that says of each what had been asked for. The new one asks for the same,
finds it there and binds nothing; nobody who connects meanwhile is refused.
"""

from __future__ import annotations

import contextlib
import json
import os
import socket
import stat
from collections.abc import Sequence
from typing import Any

from ._serve_upgrade import birth_of, process_ended

__all__ = ["Listeners", "describe"]

ENVIRONMENT = "PLAIT_SERVE_INHERIT"
_FIRST_OF_SYSTEMD = 3


class Listeners:
    """The listening sockets of one call of plait.serve; a context manager that closes them.

    Args:
        backlog: connections that the kernel keeps until somebody takes them.

    Raises:
        RuntimeError: the environment hands something over that is not there.
    """

    def __init__(self, backlog: int) -> None:
        self._backlog = backlog
        self._stack = contextlib.ExitStack()
        self._paths: list[tuple[str, int]] = []
        self._inherited: list[tuple[str, socket.socket]] = []
        self._before: int | None = None  # a pidfd
        self._before_pid = 0
        self.sockets: list[socket.socket] = []
        self.keys: list[str | None] = []
        """What was asked for; None of a socket of the caller's, which cannot be handed over."""
        self.handed_over = False
        """Whether another process listens on the same sockets, and outlives this one."""
        try:
            self._inherit()
        except BaseException:
            self.close()
            raise

    def __enter__(self) -> Listeners:
        return self

    def __exit__(self, *exc: object) -> None:
        self.close()

    def close(self) -> None:
        """Close all, and remove the Unix sockets that nobody else listens on."""
        shared = self.handed_over or self.predecessor_lives()
        self._stack.close()
        for _, sock in self._inherited:
            sock.close()
        for path, inode in self._paths if not shared else ():
            with contextlib.suppress(OSError):
                if os.stat(path).st_ino == inode:
                    os.unlink(path)
        self._paths.clear()
        self._forget_predecessor()

    def _forget_predecessor(self) -> None:
        if self._before is not None:
            os.close(self._before)
            self._before = None

    def predecessor_lives(self) -> bool:
        """Whether the supervisor that has handed the sockets over is still there."""
        return self._before is not None and not process_ended(self._before)

    def predecessor(self) -> int | None:
        """The number of the supervisor that has handed the sockets over, while it is there."""
        return self._before_pid if self.predecessor_lives() else None

    def hand_over(self) -> tuple[dict[str, str], list[int]]:
        """Say what a successor is started with: its variables, and descriptors to keep open."""
        found = [
            (key, sock.fileno())
            for key, sock in zip(self.keys, self.sockets, strict=True)
            if key is not None
        ]
        me = os.getpid()
        text = json.dumps({"pid": me, "born": birth_of(me), "sockets": found})
        return {ENVIRONMENT: text}, [fd for _, fd in found]

    # ---- where to listen ----

    def add_tcp(self, host: str | None, port: int) -> int:
        """Listen on every address that a name stands for; None for all addresses.

        Returns:
            The port, which is the same for all of them.

        Raises:
            OSError: there is no such name, or it is not possible there.
        """
        infos: list[Any] = socket.getaddrinfo(
            host, port, type=socket.SOCK_STREAM, flags=socket.AI_PASSIVE
        )
        for family, kind, number, _, address in dict.fromkeys(infos):
            address = (address[0], port, *address[2:])
            key = f"tcp:{address[0]}:{port}"
            sock = self._take(key)
            if sock is None:
                sock = self._stack.enter_context(socket.socket(family, kind, number))
                sock.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
                if family == socket.AF_INET6:
                    sock.setsockopt(socket.IPPROTO_IPV6, socket.IPV6_V6ONLY, 1)
                _bind(sock, address, f"{address[0]} port {port}")
            self._add(key, sock)
            port = sock.getsockname()[1]  # 0 once means the same one for all addresses
        return port

    def add_unix(self, path: str) -> None:
        """Listen on a Unix socket; one that nobody listens on any more makes room.

        Raises:
            OSError: it is not possible there.
        """
        key = f"unix:{path}"
        sock = self._take(key)
        if sock is None:
            sock = self._stack.enter_context(socket.socket(socket.AF_UNIX))
            with contextlib.suppress(FileNotFoundError):
                if stat.S_ISSOCK(os.stat(path).st_mode) and not _answers(path):
                    os.unlink(path)  # left behind by a server that is gone
            _bind(sock, path, path)
        self._remember(path)
        self._add(key, sock)

    def add_descriptor(self, fd: int, key: str | None = None) -> None:
        """Listen on a descriptor that this process was started with, and close it at the end.

        Raises:
            OSError: it is no stream socket.
        """
        key = key or f"fd:{fd}"
        sock = self._take(key)
        if sock is None:
            sock = self._stack.enter_context(_stream_socket(fd))
        self._add(key, sock)

    def add_given(self, sock: socket.socket) -> None:
        """Listen on a copy of the caller's socket, which keeps its timeout and stays open."""
        self._add(None, self._stack.enter_context(sock.dup()))

    def add_activated(self) -> bool:
        """Listen on what systemd has started this process for. Whether there is any.

        Raises:
            OSError: one of them is no stream socket.
        """
        keys = [key for key, _ in self._inherited if key.startswith("systemd:")]
        for key in keys:
            self.add_descriptor(-1, key)
        fds = _activated()
        for number, fd in enumerate(fds):
            self.add_descriptor(fd, f"systemd:{number}")
        return bool(keys or fds)

    def settle(self) -> None:
        """All that is wanted has been added: close what was inherited and is wanted no more.

        Who connects there is then refused as soon as the predecessor has ended, instead of
        waiting for nobody.
        """
        for key, sock in self._inherited:
            sock.close()
            if key.startswith("unix:"):
                self._remember(key.removeprefix("unix:"))
        self._inherited.clear()

    def _remember(self, path: str) -> None:
        """Have a Unix socket's path removed at the end."""
        with contextlib.suppress(FileNotFoundError):  # who inherits may find it gone
            self._paths.append((path, os.stat(path).st_ino))

    def _add(self, key: str | None, sock: socket.socket) -> None:
        sock.set_inheritable(False)
        sock.listen(self._backlog)
        sock.setblocking(False)
        self.sockets.append(sock)
        self.keys.append(key)

    # ---- what was inherited ----

    def _inherit(self) -> None:
        text = os.environ.pop(ENVIRONMENT, None)  # for this process alone
        if text is None:
            return
        try:
            found = json.loads(text)
            pid = int(found["pid"])
            parent = os.getppid()
            with contextlib.suppress(ProcessLookupError):  # it has ended already
                self._before = os.pidfd_open(pid)
                self._before_pid = pid
            told, seen = found.get("born"), birth_of(pid)
            # Where /proc does not show it (hidepid), the descriptor alone is believed.
            if told is not None and seen is not None and told != seen:
                self._forget_predecessor()  # it has ended: the number is another process's
            if parent != pid and self.predecessor_lives():
                # Meant for the successor, which has started this process before it served.
                self._forget_predecessor()
                return
            for key, fd in found["sockets"]:
                self._inherited.append((str(key), _stream_socket(int(fd))))
        except (ValueError, TypeError, KeyError, OSError) as error:
            raise RuntimeError(
                f"{ENVIRONMENT} is set by a supervisor for the one that follows it, and what it "
                f"names is not here: {text!r} ({error})"
            ) from None

    def _take(self, key: str) -> socket.socket | None:
        for number, (name, sock) in enumerate(self._inherited):
            if name == key:
                del self._inherited[number]
                return self._stack.enter_context(sock)
        return None


def describe(sock: socket.socket) -> str:
    """Write where a socket listens."""
    name: Any = sock.getsockname()
    if sock.family == socket.AF_UNIX:
        return f"unix:{os.fsdecode(name)}"
    host = f"[{name[0]}]" if sock.family == socket.AF_INET6 else name[0]
    return f"{host}:{name[1]}"


def _bind(sock: socket.socket, address: Any, where: str) -> None:
    try:
        sock.bind(address)
    except OSError as error:
        raise OSError(error.errno, f"cannot listen on {where}: {error.strerror or error}") from None


def _stream_socket(fd: int) -> socket.socket:
    try:
        sock = socket.socket(fileno=fd)
    except OSError as error:
        raise OSError(error.errno, f"descriptor {fd} is no socket: {error.strerror}") from None
    if sock.type != socket.SOCK_STREAM:
        sock.detach()
        raise OSError(f"descriptor {fd} is no stream socket")
    return sock


def _activated() -> Sequence[int]:
    """Take what systemd says it hands to this very process; later ones shall not see it."""
    if os.environ.get("LISTEN_PID") != str(os.getpid()):
        return ()
    count = os.environ.get("LISTEN_FDS", "")
    for name in ("LISTEN_PID", "LISTEN_FDS", "LISTEN_FDNAMES"):
        os.environ.pop(name, None)
    if not (count.isascii() and count.isdigit()):
        return ()
    return range(_FIRST_OF_SYSTEMD, _FIRST_OF_SYSTEMD + int(count))


def _answers(path: str) -> bool:
    with socket.socket(socket.AF_UNIX) as probe:
        probe.setblocking(False)
        try:
            probe.connect(path)
        except ConnectionRefusedError:
            return False
        except BlockingIOError:
            pass
    return True
