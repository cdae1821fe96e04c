"""A thread for each client: the sequential program, once per client.

The operating system switches between the threads wherever it likes, and all are served.
But the interpreter's lock lets one of them at a time run Python: threads that wait for the
network cost nothing, threads that compute take turns of a switch interval (5 ms) each.
"""

from __future__ import annotations

import socket
import threading
from contextlib import suppress

from ..fib import fib
from ..protocol import MAX_LINE, BadLine, parse
from ..serving import connections, refuse


def serve(listener: socket.socket, limit: int, workers: int) -> None:
    """Start a thread for every client."""
    for conn in connections(listener):
        # Daemon threads do not keep the program alive when it is told to stop.
        threading.Thread(target=client, args=(conn, limit), daemon=True).start()


def client(conn: socket.socket, limit: int) -> None:
    """Answer one client until it leaves."""
    with suppress(ConnectionError), conn, conn.makefile("rb") as lines:
        while (line := lines.readline(MAX_LINE + 1)).endswith(b"\n"):
            try:
                n = parse(line, limit)
            except BadLine as bad:
                conn.sendall(bad.answer)
            else:
                conn.sendall(b"%d\n" % fib(n))
        if len(line) > MAX_LINE:
            refuse(conn)
