"""One client after the other: the plain program, where everybody should start.

There is nothing to go wrong between clients, for there is only one at a time. The second
waits in the system's queue until the first has left.
"""

from __future__ import annotations

import socket
from contextlib import suppress

from ..fib import fib
from ..protocol import MAX_LINE, BadLine, parse
from ..serving import connections, refuse


def serve(listener: socket.socket, limit: int, workers: int) -> None:
    """Answer clients in the order in which they came."""
    for conn in connections(listener):
        with suppress(ConnectionError):
            client(conn, limit)


def client(conn: socket.socket, limit: int) -> None:
    """Answer one client until it leaves."""
    with conn, conn.makefile("rb") as lines:
        while (line := lines.readline(MAX_LINE + 1)).endswith(b"\n"):
            try:
                n = parse(line, limit)
            except BadLine as bad:
                conn.sendall(bad.answer)
            else:
                conn.sendall(b"%d\n" % fib(n))
        if len(line) > MAX_LINE:
            refuse(conn)
