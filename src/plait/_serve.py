"""plait.serve: several processes that serve one address, and a supervisor over them.

The rest of it is imported when it is called: few programs serve, and a sub-interpreter, which
cannot, could not import it.
"""

from __future__ import annotations

import socket
from collections.abc import Callable, Mapping, Sequence
from typing import TYPE_CHECKING, Any

from ._serving import ServeReport

if TYPE_CHECKING:
    import ssl as _ssl

__all__ = ["serve"]


def serve(
    target: Any,
    *,
    workers: int | None = None,
    host: str | Sequence[str] | None = None,
    port: int = 8000,
    path: str | None = None,
    sockets: Sequence[socket.socket] = (),
    kind: str | None = None,
    factory: bool = False,
    backlog: int = 2048,
    ssl: Callable[[], _ssl.SSLContext] | None = None,
    grace: float = 30.0,
    timeout: float | None = 30.0,
    start_timeout: float | None = 120.0,
    max_restarts: int = 10,
    options: Mapping[str, Any] | None = None,
) -> ServeReport:
    """Serve with several worker processes, each with a plait loop, until a signal ends it.

    Every worker accepts from the same sockets, and they take turns: none has more than its
    share of the connections. The caller supervises. A worker that ends, or whose loop hangs,
    is replaced; only connections that it had are lost.

    Args:
        target: a protocol factory (no arguments), a streams callback (async, takes reader
            and writer), an ASGI application (takes scope, receive and send; uvicorn must be
            installed), or "module:attribute" for one of these. What is given by name is
            imported by the workers only, so that a reload finds the new code.
        workers: how many processes; None for one per usable processor.
        host: an address or several; None for 127.0.0.1 unless path or sockets are given.
        port: for each host; 0 for any free port.
        path: a Unix socket to listen on, removed at the end.
        sockets: stream sockets, bound already; they stay open.
        kind: "protocol", "streams" or "asgi", where it cannot be seen from the target.
        factory: call the target, without arguments, in each worker, for what is to be served.
        backlog: connections that the kernel keeps until a worker takes them.
        ssl: called in each worker; returns the context of its TLS connections.
        grace: seconds that connections have to end when a worker leaves.
        timeout: seconds after which a worker whose loop does not turn is killed, its stack
            written to stderr; None for never.
        start_timeout: seconds that a worker has to import and start; None for no limit.
        max_restarts: how many workers in a row may end within 10 s; more end it all.
        options: for an ASGI application, settings of uvicorn.Config.

    Returns:
        ServeReport: connections, restarts and reloads, when a signal has ended it.

    Raises:
        TypeError, ValueError: an argument is not as it should be.
        OSError: it cannot listen there.
        RuntimeError: not in the main thread, a loop runs, or uvicorn is not installed.
        ServeFailed: workers cannot start, or end again and again.

    Signals: SIGTERM ends it in good order; SIGINT and SIGQUIT at once; SIGHUP starts new
    workers and lets the old ones leave when those serve; SIGTTIN and SIGTTOU make it one worker
    more or less; SIGUSR1 opens the files of logging anew and logs figures. SIGUSR2 starts the
    program's command line once more, beside this process: that call of serve() finds host, port
    and path listened on already and serves them too, until this one is told to end. SIGWINCH
    lets all workers leave, SIGHUP brings them back; it is obeyed where no terminal controls the
    process, or a successor serves. Sockets given as `sockets` are not handed to a successor.

    Messages go to the logger "plait.serve". Call it from the main thread, with no other thread
    running: it forks.

    Example:
        >>> import plait
        >>> async def echo(reader, writer):
        ...     while data := await reader.read(65536):
        ...         writer.write(data)
        ...         await writer.drain()
        ...     writer.close()
        >>> report = plait.serve(echo, workers=2, port=2000)  # doctest: +SKIP
    """
    from ._serve_run import serve_target

    return serve_target(
        target,
        workers=workers,
        host=host,
        port=port,
        path=path,
        sockets=sockets,
        kind=kind,
        factory=factory,
        backlog=backlog,
        ssl=ssl,
        grace=grace,
        timeout=timeout,
        start_timeout=start_timeout,
        max_restarts=max_restarts,
        options=options,
    )
