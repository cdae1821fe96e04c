"""What plait.serve and `plait serve` do: check, listen, and supervise."""

from __future__ import annotations

import asyncio
import math
import socket
from collections.abc import Callable, Mapping, Sequence
from typing import TYPE_CHECKING, Any

from . import _core
from ._serve_asgi import RESERVED, need_uvicorn
from ._serve_boss import Supervisor
from ._serve_setup import PROGRAM, Setup, Words
from ._serve_sockets import Listeners
from ._serve_target import KINDS, check_name, resolve
from ._serve_worker import main_thread_only
from ._serving import ServeReport

if TYPE_CHECKING:
    import ssl as _ssl

__all__ = ["serve_on", "serve_target"]

_SEATS = 512
_MOST_WORKERS = 240


def serve_target(
    target: Any,
    *,
    workers: int | None,
    host: str | Sequence[str] | None,
    port: int,
    path: str | None,
    sockets: Sequence[socket.socket],
    kind: str | None,
    factory: bool,
    backlog: int,
    ssl: Callable[[], _ssl.SSLContext] | None,
    grace: float,
    timeout: float | None,
    start_timeout: float | None,
    max_restarts: int,
    options: Mapping[str, Any] | None,
) -> ServeReport:
    """Do what plait.serve, which has the defaults, says."""
    setup = _check(
        target, workers, kind, factory, backlog, ssl, grace, timeout, start_timeout, max_restarts,
        options, PROGRAM,
    )  # fmt: skip
    hosts, port = _check_address(host, port, path, sockets)

    def listen(listeners: Listeners) -> None:
        found = port
        for one in hosts:
            found = listeners.add_tcp(one, found)
        if path is not None:
            listeners.add_unix(path)
        for sock in sockets:
            listeners.add_given(sock)

    return _serve(setup, listen)


def serve_on(
    listen: Callable[[Listeners], None], words: Words, pid: str | None = None, **settings: Any
) -> ServeReport:
    """Serve as plait.serve does, where a function listens that is called for it.

    Args:
        listen: adds to the listeners that it is given.
        words: what messages call settings.
        pid: a file that names the supervisor while it serves.
        **settings: those of plait.serve, all of them, but for where to listen.
    """
    return _serve(_check(words=words, **settings), listen, pid)


def _serve(
    setup: dict[str, Any], listen: Callable[[Listeners], None], pid: str | None = None
) -> ServeReport:
    if not main_thread_only():
        raise RuntimeError("serve() must be called from the main thread, which gets the signals")
    if asyncio._get_running_loop() is not None:
        raise RuntimeError("serve() cannot be called from a running event loop")
    with Listeners(setup["backlog"]) as listeners:
        listen(listeners)
        listeners.settle()
        rota = _core.Rota(setup["seats"])
        sockets = tuple(listeners.sockets)
        return Supervisor(Setup(sockets=sockets, rota=rota, **setup), listeners, pid).run()


def _check(
    target: Any, workers: Any, kind: Any, factory: Any, backlog: Any, ssl: Any, grace: Any,
    timeout: Any, start_timeout: Any, max_restarts: Any, options: Any, words: Words,
) -> dict[str, Any]:  # fmt: skip
    """Check everything before anything happens."""
    if workers is None:
        from ._processors import default_workers

        workers = min(default_workers(), _MOST_WORKERS)
    for name, value, least, most in (
        ("workers", workers, 1, _MOST_WORKERS),
        ("backlog", backlog, 1, 2**31 - 1),
        ("max_restarts", max_restarts, 0, 2**31 - 1),
    ):
        if isinstance(value, bool) or not isinstance(value, int):
            raise TypeError(f"{name} must be an int, not {value!r}")
        if not least <= value <= most:
            raise ValueError(f"{name} must be from {least} to {most}, not {value}")
    for name, value, optional in (
        ("grace", grace, False),
        ("timeout", timeout, True),
        ("start_timeout", start_timeout, True),
    ):
        if optional and value is None:
            continue
        if isinstance(value, bool) or not isinstance(value, int | float):
            raise TypeError(f"{name} must be a number of seconds, not {value!r}")
        if not math.isfinite(value) or value < 0 or (optional and value < 0.5):
            bound_text = "at least 0.5" if optional else "at least 0"
            raise ValueError(f"{name} must be finite and {bound_text}, not {value!r}")
    if kind is not None and kind not in KINDS:
        raise ValueError(f"kind must be one of {', '.join(KINDS)}, not {kind!r}")
    if ssl is not None and not callable(ssl):
        raise TypeError(f"ssl must be a function that returns an SSLContext, not {ssl!r}")
    options = dict(options or {})
    for name in options:
        if name in RESERVED:
            raise ValueError(f"{words.options} must leave {name!r} to settings of plait's own")
    if isinstance(target, str):
        check_name(target)
    elif not factory:
        kind = resolve(target, kind, False, words).kind
    elif not callable(target):
        raise TypeError(f"target must be callable with factory=True, not {target!r}")
    if kind == "asgi":
        need_uvicorn()
    elif options and kind is not None:
        raise ValueError(
            f"{words.options} is for ASGI applications, and the target is of kind {kind!r}"
        )
    return {
        "target": target,
        "kind": kind,
        "factory": bool(factory),
        "workers": workers,
        "backlog": backlog,
        "ssl": ssl,
        "grace": float(grace),
        "timeout": timeout,
        "start_timeout": start_timeout,
        "max_restarts": max_restarts,
        "options": options,
        "seats": min(_SEATS, 2 * workers + 32),
        "words": words,
    }


def _check_address(
    host: Any, port: Any, path: Any, sockets: Sequence[Any]
) -> tuple[Sequence[str], int]:
    if isinstance(port, bool) or not isinstance(port, int):
        raise TypeError(f"port must be an int, not {port!r}")
    if not 0 <= port <= 65535:
        raise ValueError(f"port must be from 0 to 65535, not {port}")
    if path is not None and not isinstance(path, str):
        raise TypeError(f"path must be a str or None, not {path!r}")
    for sock in sockets:
        if not isinstance(sock, socket.socket):
            raise TypeError(f"sockets must be sockets, not {sock!r}")
        if sock.type != socket.SOCK_STREAM:
            raise ValueError(f"sockets must be stream sockets, not {sock!r}")
    if host is None:
        return ((), port) if path is not None or sockets else (("127.0.0.1",), port)
    hosts = (host,) if isinstance(host, str) else tuple(host)
    for one in hosts:
        if not isinstance(one, str):
            raise TypeError(f"host must be a str or several, not {one!r}")
    return hosts, port
