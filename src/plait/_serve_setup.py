"""What the supervisor and its workers both know: settings, sockets, figures."""

from __future__ import annotations

import contextlib
import os
import socket
import stat
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    import ssl

    from . import _core

__all__ = [
    "ServeReport",
    "Setup",
    "WorkerFigures",
    "bound",
    "describe",
    "listen",
    "listen_unix",
    "worker_figures",
]

_STATES = ("free", "serving", "leaving")


@dataclass(frozen=True)
class Setup:
    """The settings of one call of plait.serve; workers inherit it by fork."""

    target: Any
    kind: str | None
    factory: bool
    workers: int
    sockets: tuple[socket.socket, ...]
    backlog: int
    ssl: Callable[[], ssl.SSLContext] | None
    grace: float
    timeout: float | None
    start_timeout: float | None
    max_restarts: int
    options: Mapping[str, Any]
    rota: _core.Rota
    seats: int


@dataclass(frozen=True)
class WorkerFigures:
    """What is known of one worker.

    Attributes:
        seat: its number; a worker that replaces it may have the same.
        state: "serving", "leaving", or "ended".
        connections: how many it has accepted.
        open: descriptors that its loop watches: connections, and a few of its own.
        pid: its process, or None where only the board was looked at.
        exitcode: of one that has ended: its exit code, or the negative number of a signal.
    """

    seat: int
    state: str
    connections: int
    open: int
    pid: int | None = None
    exitcode: int | None = None


@dataclass(frozen=True)
class ServeReport:
    """What came of a call of plait.serve.

    Attributes:
        connections: accepted by all workers together.
        restarts: workers that were replaced because they ended, or hung.
        reloads: how often all workers were replaced on request.
        workers: the workers of the end, and at most 1000 that ended before them.
    """

    connections: int
    restarts: int
    reloads: int
    workers: tuple[WorkerFigures, ...]


def worker_figures(rota: _core.Rota, seats: int) -> tuple[WorkerFigures, ...]:
    """Read the board: all seats that somebody has."""
    found = []
    for seat in range(seats):
        state, watched, connections, _ = rota.read(seat)
        if state != 0:
            found.append(WorkerFigures(seat, _STATES[state], connections, watched))
    return tuple(found)


def describe(sock: socket.socket) -> str:
    """Write where a socket listens."""
    name: Any = sock.getsockname()
    if sock.family == socket.AF_UNIX:
        return f"unix:{os.fsdecode(name)}"
    host = f"[{name[0]}]" if sock.family == socket.AF_INET6 else name[0]
    return f"{host}:{name[1]}"


@contextlib.contextmanager
def bound(
    hosts: Sequence[str | None],
    port: int,
    path: str | None,
    sockets: Sequence[socket.socket],
    backlog: int,
) -> Iterator[tuple[socket.socket, ...]]:
    """Listen for the length of a block; what was given by the caller stays open afterwards."""
    with contextlib.ExitStack() as stack:
        found = []
        for host in hosts:
            for sock in listen(host, port, backlog):
                found.append(stack.enter_context(sock))
                port = sock.getsockname()[1]  # 0 once means the same one for all addresses
        if path is not None:
            found.append(stack.enter_context(listen_unix(path, backlog)))
            stack.callback(_remove, path, os.stat(path).st_ino)
        for sock in sockets:
            # What the caller holds keeps its timeout; workers and supervisor have their own.
            copy = stack.enter_context(sock.dup())
            copy.listen(backlog)
            copy.setblocking(False)
            found.append(copy)
        yield tuple(found)


def listen(host: str | None, port: int, backlog: int) -> list[socket.socket]:
    """Listen on every address that a name stands for; None for all addresses.

    Raises:
        OSError: there is no such name, or it is not possible there.
    """
    infos: list[Any] = socket.getaddrinfo(
        host, port, type=socket.SOCK_STREAM, flags=socket.AI_PASSIVE
    )
    found: list[socket.socket] = []
    try:
        for family, kind, number, _, address in dict.fromkeys(infos):
            sock = socket.socket(family, kind, number)
            found.append(sock)
            sock.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            if family == socket.AF_INET6:
                sock.setsockopt(socket.IPPROTO_IPV6, socket.IPV6_V6ONLY, 1)
            if port == 0 and len(found) > 1:
                address = (address[0], found[0].getsockname()[1], *address[2:])
            try:
                sock.bind(address)
            except OSError as error:
                where = f"{address[0]} port {address[1]}"
                raise OSError(error.errno, f"cannot listen on {where}: {error.strerror}") from None
            sock.listen(backlog)
            sock.setblocking(False)
    except BaseException:
        for sock in found:
            sock.close()
        raise
    return found


def listen_unix(path: str, backlog: int) -> socket.socket:
    """Listen on a Unix socket; one that nobody listens on any more makes room.

    Raises:
        OSError: it is not possible there.
    """
    sock = socket.socket(socket.AF_UNIX)
    try:
        with contextlib.suppress(FileNotFoundError):
            if stat.S_ISSOCK(os.stat(path).st_mode) and not _answers(path):
                os.unlink(path)  # left behind by a server that is gone
        try:
            sock.bind(path)
        except OSError as error:
            raise OSError(error.errno, f"cannot listen on {path}: {error.strerror}") from None
        sock.listen(backlog)
        sock.setblocking(False)
    except BaseException:
        sock.close()
        raise
    return sock


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


def _remove(path: str, inode: int) -> None:
    with contextlib.suppress(OSError):
        if os.stat(path).st_ino == inode:
            os.unlink(path)
