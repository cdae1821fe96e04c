"""Coroutines by hand: plain generators, and a scheduler that fits on a page.

A strand is a generator that says, with ``yield``, what it is about to wait for. The
scheduler keeps a queue of strands that can go on and asks select for those that wait.
Everything runs in one thread: no locks, because nothing is switched between two yields.
That is also the weakness. fib does not yield, so while it computes nobody else runs.
"""

from __future__ import annotations

import select
import socket
import sys
import traceback
from collections import deque
from collections.abc import Generator
from contextlib import suppress

from ..fib import fib
from ..protocol import MAX_LINE, TOO_LONG, BadLine, parse

Strand = Generator[tuple[str, socket.socket], None, None]
Lines = Generator[tuple[str, socket.socket], None, bytes]


class Scheduler:
    """Runs strands until none is left."""

    def __init__(self) -> None:
        self.ready: deque[Strand] = deque()
        self.waiting: dict[str, dict[socket.socket, Strand]] = {"read": {}, "write": {}}

    def start(self, strand: Strand) -> None:
        """Queue a strand."""
        self.ready.append(strand)

    def run(self) -> None:
        """Run each strand up to its next yield, again and again."""
        readers, writers = self.waiting["read"], self.waiting["write"]
        while self.ready or readers or writers:
            if not self.ready:
                readable, writable, _ = select.select(readers, writers, [])
                self.ready.extend(readers.pop(sock) for sock in readable)
                self.ready.extend(writers.pop(sock) for sock in writable)
            strand = self.ready.popleft()
            try:
                event, sock = next(strand)
            except (StopIteration, ConnectionError):
                continue
            except Exception:
                traceback.print_exc()  # An error ends one strand, not the scheduler.
                continue
            self.waiting[event][sock] = strand


def serve(listener: socket.socket, limit: int, workers: int) -> None:
    """Schedule one strand that accepts, and one for every client."""
    scheduler = Scheduler()
    scheduler.start(accept(listener, limit, scheduler))
    scheduler.run()


def accept(listener: socket.socket, limit: int, scheduler: Scheduler) -> Strand:
    """Start a strand for every client."""
    listener.setblocking(False)
    while True:
        yield "read", listener
        try:
            conn, _ = listener.accept()
        except (BlockingIOError, ConnectionError):
            continue  # It was gone before we took it.
        if conn.fileno() >= 1000:
            # select can look at descriptors below 1024 only.
            print("too many clients for select: one is turned away", file=sys.stderr)
            conn.close()
            continue
        conn.setblocking(False)
        conn.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        scheduler.start(client(conn, limit))


def client(conn: socket.socket, limit: int) -> Strand:
    """Answer one client until it leaves."""
    with conn:
        buffer = bytearray()
        while (line := (yield from read_line(conn, buffer))).endswith(b"\n"):
            try:
                n = parse(line, limit)
            except BadLine as bad:
                yield from send(conn, bad.answer)
            else:
                yield from send(conn, b"%d\n" % fib(n))
        if len(line) > MAX_LINE:
            yield from refuse(conn)


def read_line(conn: socket.socket, buffer: bytearray) -> Lines:
    """Return the next line, or what there is when it is too long or the stream ends."""
    while (end := buffer.find(b"\n", 0, MAX_LINE + 1)) < 0 and len(buffer) <= MAX_LINE:
        yield "read", conn
        with suppress(BlockingIOError):
            data = conn.recv(4096)
            if not data:
                return bytes(buffer)
            buffer += data
    line = bytes(buffer[: MAX_LINE + 1 if end < 0 else end + 1])
    del buffer[: len(line)]
    return line


def send(conn: socket.socket, data: bytes) -> Strand:
    """Send all of it; wait only if the system takes no more."""
    while True:
        with suppress(BlockingIOError):
            data = data[conn.send(data) :]
        if not data:
            return
        yield "write", conn


def refuse(conn: socket.socket) -> Strand:
    """Answer an over-long line and read on for a while, so that the answer arrives."""
    yield from send(conn, TOO_LONG)
    conn.shutdown(socket.SHUT_WR)
    for _ in range(16):
        yield "read", conn
        with suppress(BlockingIOError):
            if not conn.recv(4096):
                return
