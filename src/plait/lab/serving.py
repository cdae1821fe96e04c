"""What a server needs that teaches nothing about concurrency.

Listening, hanging up politely, stopping by signal: kept here so that the files of the
models show only what differs between them.
"""

from __future__ import annotations

import errno
import multiprocessing
import os
import signal
import socket
import sys
import time
from collections.abc import Callable, Iterator
from typing import TYPE_CHECKING

from .fib import fib
from .protocol import TOO_LONG

if TYPE_CHECKING:
    import asyncio
    import threading
    from concurrent.futures import ProcessPoolExecutor

__all__ = [
    "STARVED",
    "connections",
    "cpu_count",
    "end_pool",
    "listen",
    "on_sigterm_cancel",
    "refuse",
    "refuse_async",
    "run",
    "start_pool",
]

STARVED = (errno.EMFILE, errno.ENFILE, errno.ENOBUFS, errno.ENOMEM)
_DRAIN = 1 << 16  # bytes of an over-long line that are read after its answer
_LINGER = 1.0  # seconds that are spent on it


def cpu_count() -> int:
    """How many processors this process may use."""
    return len(os.sched_getaffinity(0))


def listen(host: str, port: int) -> socket.socket:
    """Open a listening TCP socket.

    Args:
        host: A name or an address.
        port: A port; 0 lets the system choose a free one.

    Raises:
        OSError: The address is not there, or in use.
    """
    family, kind, proto, _, address = socket.getaddrinfo(
        host, port, type=socket.SOCK_STREAM, flags=socket.AI_PASSIVE
    )[0]
    listener = socket.socket(family, kind, proto)
    try:
        listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        listener.bind(address)
        listener.listen(512)
    except BaseException:
        listener.close()
        raise
    return listener


def run(
    serve: Callable[[socket.socket, int, int], None],
    host: str,
    port: int,
    limit: int,
    workers: int,
) -> None:
    """Serve until Ctrl+C or SIGTERM.

    Args:
        serve: The model's function; gets the listening socket, limit and workers.
        host: Where to listen.
        port: Where to listen; 0 for any free port.
        limit: The largest number that clients may ask for.
        workers: Processes, where the model has any.
    """
    with listen(host, port) as listener:
        signal.signal(signal.SIGTERM, _interrupt)
        shown, number = listener.getsockname()[:2]
        if ":" in shown:
            shown = f"[{shown}]"
        print(f"listening on {shown}:{number}", flush=True)
        try:
            serve(listener, limit, workers)
        except KeyboardInterrupt:
            print("stopped", file=sys.stderr)


def _interrupt(signum: int, frame: object) -> None:
    raise KeyboardInterrupt


def connections(listener: socket.socket) -> Iterator[socket.socket]:
    """Accept clients, for ever, with blocking calls."""
    # A signal that comes just before the call blocks interrupts nothing: it is seen at its end.
    listener.settimeout(1.0)
    while True:
        try:
            conn, _ = listener.accept()
        except TimeoutError:
            continue
        except ConnectionError:
            continue  # It was gone before we took it.
        except OSError as error:
            if error.errno not in STARVED:
                raise
            # The client stays in the queue of the system until a descriptor is free.
            time.sleep(0.1)
            continue
        conn.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        yield conn


def refuse(conn: socket.socket) -> None:
    """Answer an over-long line and end the connection.

    Closing a socket while unread bytes wait in it resets the connection, and the answer
    may be lost with it. So the rest is read, up to a bound.
    """
    conn.sendall(TOO_LONG)
    conn.shutdown(socket.SHUT_WR)
    end = time.monotonic() + _LINGER
    left = _DRAIN
    try:
        while left > 0 and (patience := end - time.monotonic()) > 0:
            conn.settimeout(patience)
            data = conn.recv(4096)
            if not data:
                return
            left -= len(data)
    except TimeoutError:
        return


async def refuse_async(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
    """Do the same as `refuse`, for streams."""
    import asyncio

    writer.write(TOO_LONG)
    writer.write_eof()
    left = _DRAIN
    try:
        async with asyncio.timeout(_LINGER):
            while left > 0 and (data := await reader.read(4096)):
                left -= len(data)
    except TimeoutError:
        return


def on_sigterm_cancel() -> None:
    """Let SIGTERM end the running task as Ctrl+C does under ``asyncio.run``."""
    import asyncio

    task = asyncio.current_task()
    assert task is not None
    asyncio.get_running_loop().add_signal_handler(signal.SIGTERM, task.cancel)


def start_pool(workers: int) -> ProcessPoolExecutor:
    """Make a standard library pool and start all its workers.

    It returns when every worker is prepared, not only the first that answers: a signal to
    all of the process group ends one that is not yet prepared with a traceback, and a fork
    is safe only while there is one thread.
    """
    from concurrent.futures import ProcessPoolExecutor

    together = multiprocessing.Barrier(workers)
    pool = ProcessPoolExecutor(workers, initializer=_in_worker, initargs=(together,))
    try:
        list(pool.map(fib, [1] * workers))
    except BaseException:
        end_pool(pool)
        raise
    return pool


def _in_worker(together: threading.Barrier) -> None:
    # The parent decides when a worker ends.
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    signal.signal(signal.SIGTERM, signal.SIG_DFL)
    together.wait()


def end_pool(pool: ProcessPoolExecutor) -> None:
    """End a standard library pool now, with the numbers that it still computes."""
    for child in multiprocessing.active_children():
        child.terminate()
    # Its thread notices the deaths and ends. Leaving that to the interpreter's exit races
    # with it.
    pool.shutdown(wait=True, cancel_futures=True)
