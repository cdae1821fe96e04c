"""A thread for each client, and a pool of processes that computes.

Each process has an interpreter, and so a lock, of its own: a long computation holds up
nobody but its own client, and two run at the same instant on two cores. The price is a
trip to another process for every request, the smallest ones too.
"""

from __future__ import annotations

import socket
import threading
from concurrent.futures import BrokenExecutor, ProcessPoolExecutor
from contextlib import suppress

from ..fib import fib
from ..protocol import MAX_LINE, BadLine, parse
from ..serving import connections, end_pool, refuse, start_pool


def serve(listener: socket.socket, limit: int, workers: int) -> None:
    """Start the pool, then a thread for every client."""
    pool = start_pool(workers)
    try:
        for conn in connections(listener):
            threading.Thread(target=client, args=(conn, limit, pool), daemon=True).start()
    finally:
        end_pool(pool)


def client(conn: socket.socket, limit: int, pool: ProcessPoolExecutor) -> None:
    """Answer one client until it leaves."""
    with suppress(ConnectionError), conn, conn.makefile("rb") as lines:
        while (line := lines.readline(MAX_LINE + 1)).endswith(b"\n"):
            try:
                n = parse(line, limit)
                conn.sendall(b"%d\n" % pool.submit(fib, n).result())
            except BadLine as bad:
                conn.sendall(bad.answer)
            except BrokenExecutor:
                # One dead worker breaks a pool of the standard library for good.
                conn.sendall(b"error: the process pool is broken\n")
        if len(line) > MAX_LINE:
            refuse(conn)
