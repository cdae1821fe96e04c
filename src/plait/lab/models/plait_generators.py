"""The scheduler by hand, made fast: generators on plait's loop, and its process pool.

Compare it with the model generators: a strand still says, with ``yield``, what it waits for,
but receives, sends and accepts are requests that a scheduler in C carries out. One of them is
what the scheduler by hand cannot do: to wait for a future, so that another process computes
and nobody is stopped. Every request takes that trip, the smallest too.
"""

from __future__ import annotations

import socket
from concurrent.futures import BrokenExecutor

import plait
from plait.generators import Strand, accept, recv, run, send, sleep, spawn, timeout, wait

from ..fib import fib
from ..protocol import MAX_LINE, TOO_LONG, BadLine, parse


def serve(listener: socket.socket, limit: int, workers: int) -> None:
    """Start the pool, then run one strand that accepts."""
    pool = plait.ProcessPool(workers)
    try:
        list(pool.map(fib, [1] * workers))  # Starts the workers.
        listener.setblocking(False)
        run(welcome(listener, limit, pool))
    finally:
        pool._terminate()  # At once: shutdown would let running numbers be finished.


def welcome(listener: socket.socket, limit: int, pool: plait.ProcessPool) -> Strand[None]:
    """Start a strand for every client."""
    while True:
        try:
            conn, _ = yield accept(listener)
        except OSError:
            yield sleep(0.1)  # Out of descriptors, or the client was gone before we took it.
            continue
        conn.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        yield spawn(client(conn, limit, pool))


def client(conn: socket.socket, limit: int, pool: plait.ProcessPool) -> Strand[None]:
    """Answer one client until it leaves."""
    buffer = bytearray()
    with conn:
        try:
            while (line := (yield from read_line(conn, buffer))).endswith(b"\n"):
                try:
                    answer = b"%d\n" % (yield wait(pool.submit(fib, parse(line, limit))))
                except BadLine as bad:
                    answer = bad.answer
                except plait.WorkerDied as died:
                    # It failed this request; the pool has a new worker for the next.
                    answer = b"error: the worker died (pid %d)\n" % died.pid
                except BrokenExecutor:
                    # Only when workers cannot be started any more.
                    answer = b"error: the process pool is broken\n"
                yield send(conn, answer)
            if len(line) > MAX_LINE:
                yield send(conn, TOO_LONG)
                conn.shutdown(socket.SHUT_WR)
                yield timeout(1.0, read_on(conn))
        except (ConnectionError, TimeoutError):
            pass  # The client has left.


def read_line(conn: socket.socket, buffer: bytearray) -> Strand[bytes]:
    """Return the next line, or what there is when it is too long or the stream ends."""
    while (end := buffer.find(b"\n", 0, MAX_LINE + 1)) < 0 and len(buffer) <= MAX_LINE:
        data = yield recv(conn, 4096)
        if not data:
            return bytes(buffer)
        buffer += data
    line = bytes(buffer[: MAX_LINE + 1 if end < 0 else end + 1])
    del buffer[: len(line)]
    return line


def read_on(conn: socket.socket) -> Strand[None]:
    """Read for a while, so that the answer to an over-long line arrives."""
    for _ in range(16):
        if not (yield recv(conn, 4096)):
            return
